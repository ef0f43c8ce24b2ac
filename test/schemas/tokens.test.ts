import t from 'tap'
import type { ChatRequest } from '../../schemas/chat.ts'
import { sizeOf } from '../../schemas/tokens.ts'
import { numbers } from './helper.ts'

const perImage = 1_600
const size = (request: object) => sizeOf({ messages: [], ...request } as ChatRequest, perImage)
const user = (content: unknown) => ({ messages: [{ role: 'user', content }] })

t.test('a text is at most a token a byte, and likely one for four', async t => {
  t.strictSame(size(user('abcdefgh')), { bound: 8 + 16, estimate: 2 + 4 })
  t.strictSame(size(user('東京🙂')), { bound: 10 + 16, estimate: 3 + 4 })
  t.strictSame(size(user([{ type: 'text', text: '' }])).bound >= 16, true)
})

t.test('every message costs something', async t => {
  t.equal(size({ messages: Array(10).fill({ role: 'user', content: '' }) }).bound, 160)
})

t.test('an image counts by its number and never by its bytes', async t => {
  const data = `data:image/png;base64,${'A'.repeat(1_000_000)}`
  for (const part of [
    { type: 'image_url', image_url: { url: data } },
    { type: 'image_url', image_url: data },
    { type: 'image_url', image_url: { url: 'https://pictures.example/1.png' } },
    { type: 'input_image', image_url: data }
  ]) {
    t.strictSame(size(user([part, part])), { bound: 2 * perImage + 16, estimate: 2 * perImage + 4 })
  }
})

t.test('a sound counts by its length: the bound by the densest speech there is', async t => {
  const data = 'A'.repeat(240_000)
  t.strictSame(size(user([{ type: 'input_audio', input_audio: { data, format: 'mp3' } }])), {
    bound: 10_001 + 16,
    estimate: 601 + 4
  })
})

t.test('a document counts by pages, one at least, and as plain text at most', async t => {
  const file = (bytes: number) => [{ type: 'file', file: { file_data: 'A'.repeat(bytes) } }]
  t.equal(size(user(file(10))).bound, perImage + 16)
  t.equal(size(user(file(204_800))).bound, 100 * perImage + 16)
  t.equal(size(user(file(204_800))).estimate, 4 * perImage + 4)
  t.equal(size(user([{ type: 'file', file: { file_id: 'file-1' } }])).bound, perImage + 16)
  t.equal(sizeOf({ messages: [{ role: 'user', content: file(1_000_000) }] }, 1).bound, 750_000 + 16)
})

t.test('tools, schemas and fields that we do not know are counted; what stays here or says nothing is not', async t => {
  const words = 'x'.repeat(1_000)
  for (const own of [
    { tools: [{ type: 'function', function: { name: 'f', parameters: { description: words } } }] },
    { response_format: { type: 'json_schema', json_schema: { name: 's', schema: { a: [{ b: words }] } } } },
    { response_schema: { description: words } },
    { functions: [{ name: words }] },
    { prediction: { type: 'content', content: words } },
    { instructions: words },
    { messages: [{ role: 'assistant', tool_calls: [{ function: { name: 'f', arguments: words } }] }] },
    { messages: [{ role: 'assistant', content: null, reasoning_content: words }] },
    { messages: [{ role: 'tool', tool_call_id: '1', content: [{ type: 'text', text: words }] }] },
    { messages: [{ role: 'user', content: [{ type: 'thing', thing: words }] }] }
  ]) {
    t.ok(size(own).bound >= 1_000, JSON.stringify(own).slice(0, 40))
  }
  const quiet = {
    metadata: { a: words },
    user: words,
    model: words,
    tenant: words,
    stop: [words],
    logit_bias: { 1: 1 }
  }
  t.equal(size({ ...quiet, temperature: 1, stream: true, seed: 1e9, logprobs: null }).bound, 0)
})

t.test('what providers say about tools is in the bound', async t => {
  t.ok(size({ tools: [{ type: 'function', function: { name: 'f' } }] }).bound >= 600)
  t.equal(size({ tools: [] }).bound, 2)
  t.equal(size({ tools: null }).bound, 0)
})

t.test('the bound is never below the bytes of all texts, nor below the estimate', async t => {
  const random = numbers(17)
  const letters = ['a', ' ', 'é', '東', '🙂', '\u0000', '"', '\\', '\n', '\ud800', 'ﷺ', '👩‍👩‍👧‍👦']
  const pick = <T>(all: readonly T[]): T => all[Math.floor(random() * all.length)]!
  let bytes = 0
  const words = () => {
    const text = Array.from({ length: Math.floor(random() * 30) }, () => pick(letters)).join('')
    bytes += Buffer.byteLength(text)
    return text
  }
  const nested = (depth: number): unknown => {
    if (depth === 0) return words()
    return random() < 0.5 ? [nested(depth - 1), words()] : { a: nested(depth - 1), properties: { b: words() } }
  }
  const part = () =>
    pick([
      () => ({ type: 'text', text: words() }),
      () => ({ type: 'refusal', refusal: words() }),
      () => ({ type: 'unheard_of', value: nested(3) }),
      () => ({ type: 'image_url', image_url: { url: `data:,${'A'.repeat(500)}` } }),
      () => ({ type: 'input_audio', input_audio: { data: 'AAAA', format: 'wav' } }),
      () => ({ type: 'file', file: { file_data: 'AAAA' } })
    ])()
  const message = () => ({
    role: 'user',
    content: pick([words, () => [part(), part(), part()], () => null])(),
    ...(random() < 0.3 && { name: words() }),
    ...(random() < 0.3 && { tool_calls: [{ id: '1', function: { name: words(), arguments: words() } }] })
  })
  for (let round = 0; round < 3_000; round++) {
    bytes = 0
    const request = {
      messages: Array.from({ length: 1 + Math.floor(random() * 4) }, message),
      ...(random() < 0.3 && { tools: [{ type: 'function', function: { name: 'f', parameters: nested(4) } }] }),
      ...(random() < 0.3 && { response_format: { type: 'json_schema', json_schema: nested(5) } }),
      ...(random() < 0.3 && { unheard_of: nested(2) })
    }
    const { bound, estimate } = size(request)
    if (bound < bytes || bound < estimate || !Number.isSafeInteger(bound) || !Number.isSafeInteger(estimate)) {
      t.fail(`${bound} < ${bytes}`, { request })
      return
    }
  }
  t.pass('3,000 requests')
})

t.test('nesting deeper than the stack does no harm', async t => {
  const deep = JSON.parse(`${'['.repeat(200_000)}"inside"${']'.repeat(200_000)}`)
  const { bound } = size({ tools: [{ type: 'function', function: { name: 'f', parameters: { deep } } }] })
  t.ok(bound > 200_000)
})

t.test('what holds itself, as only a caller in this process can send it, is counted once', async t => {
  const ring: Record<string, unknown> = { words: 'x'.repeat(1_000) }
  ring['self'] = ring
  const { bound } = size({ response_format: ring })
  t.ok(bound >= 1_000 && bound < 2_000, `${bound}`)
})
