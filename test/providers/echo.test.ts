import t, { type Test } from 'tap'
import type { ModelGatewayOptions } from '../../app.ts'
import type { ChatCompletionChunk, ChatRequest } from '../../schemas/chat.ts'
import { attemptOf } from '../conformance/provider.ts'
import { build } from '../helper.ts'

type EchoOptions = Omit<Extract<NonNullable<ModelGatewayOptions['providers']>[string], { type: 'echo' }>, 'type'>

async function echo(t: Test, options: EchoOptions = {}) {
  const app = await build(t, { providers: { echo: { type: 'echo', ...options } } })
  await app.ready()
  const provider = app.gateway.providers.get('echo')!

  async function whole(request: Partial<ChatRequest>, signal?: AbortSignal) {
    const answer = await provider.send(attemptOf(provider, { request, signal }))
    if (answer.stream) throw new Error('a stream')
    return answer.body
  }

  async function* stream(request: Partial<ChatRequest>, signal?: AbortSignal) {
    const answer = await provider.send(attemptOf(provider, { request: { ...request, stream: true }, signal }))
    if (answer.stream) yield* answer.frames
  }

  return { app, provider, whole, stream }
}

const say = (content: ChatRequest['messages'][number]['content']) => ({
  messages: [{ role: 'user' as const, content }]
})

async function chunksOf(source: AsyncIterable<Iterable<ChatCompletionChunk>>): Promise<ChatCompletionChunk[]> {
  const all: ChatCompletionChunk[] = []
  for await (const frames of source) all.push(...frames)
  return all
}

const contents = (chunks: ChatCompletionChunk[]) => chunks.flatMap(chunk => chunk.choices[0]?.delta.content || [])

t.test('an answer repeats the words of the last user message up to its length', async t => {
  const { whole } = await echo(t, { words: 5 })
  t.same(await whole(say('one two  three\n')), {
    id: 'chatcmpl-req_conformance',
    created: 0,
    model: 'm',
    object: 'chat.completion',
    choices: [
      {
        index: 0,
        message: { role: 'assistant', content: 'one two three one two', refusal: null },
        logprobs: null,
        finish_reason: 'stop'
      }
    ],
    usage: { prompt_tokens: 3, completion_tokens: 5, total_tokens: 8 }
  })
})

t.test('an answer has 16 words unless configured', async t => {
  const { whole } = await echo(t)
  t.equal((await whole(say('a'))).usage?.completion_tokens, 16)
})

t.test('the same request gets the same answer', async t => {
  const { whole } = await echo(t)
  t.same(await whole(say('one two')), await whole(say('one two')))
})

t.test('the last message of the user counts, and all messages are counted', async t => {
  const { whole } = await echo(t, { words: 1 })
  const messages = [
    { role: 'system' as const, content: 'be kind' },
    { role: 'user' as const, content: 'first' },
    { role: 'user' as const, content: 'second' },
    { role: 'assistant' as const, content: null }
  ]
  const body = await whole({ messages })
  t.equal(body.choices[0]?.message.content, 'second')
  t.equal(body.usage?.prompt_tokens, 4)
})

t.test('text parts are words, other parts are none', async t => {
  const { whole } = await echo(t, { words: 2 })
  const parts = [
    { type: 'text', text: 'look here' },
    { type: 'image_url', image_url: { url: 'data:,x' } }
  ]
  t.equal((await whole(say(parts))).choices[0]?.message.content, 'look here')
})

t.test('a message without words is answered all the same', async t => {
  const { whole } = await echo(t, { words: 2 })
  for (const content of ['', ' \n', []]) t.equal((await whole(say(content))).choices[0]?.message.content, 'echo echo')
})

t.test('an output cap cuts the answer and is its reason to end', async t => {
  const { whole, stream } = await echo(t, { words: 5 })
  for (const cap of [{ max_tokens: 2 }, { max_completion_tokens: 2 }, { max_tokens: 9, max_completion_tokens: 2 }]) {
    const body = await whole({ ...say('a b c'), ...cap })
    t.equal(body.choices[0]?.message.content, 'a b')
    t.equal(body.choices[0]?.finish_reason, 'length')
    const chunks = await chunksOf(stream({ ...say('a b c'), ...cap }))
    t.equal(chunks.at(-2)?.choices[0]?.finish_reason, 'length')
  }
})

t.test('a cap above the length, or null, cuts nothing', async t => {
  const { whole } = await echo(t, { words: 3 })
  for (const max_tokens of [3, 100, null]) {
    t.equal((await whole({ ...say('a'), max_tokens })).choices[0]?.finish_reason, 'stop')
  }
})

t.test('a stream begins with the role, brings word by word and ends with its reason and usage', async t => {
  const { stream } = await echo(t, { words: 3 })
  const chunks = await chunksOf(stream(say('a b')))
  t.same(chunks[0]?.choices[0]?.delta, { role: 'assistant', content: '', refusal: null })
  t.same(contents(chunks), ['a', ' b', ' a'])
  t.equal(chunks.at(-2)?.choices[0]?.finish_reason, 'stop')
  t.same(chunks.at(-1)?.choices, [])
  t.same(chunks.at(-1)?.usage, { prompt_tokens: 2, completion_tokens: 3, total_tokens: 5 })
})

t.test('a chunk may have several words', async t => {
  const { stream } = await echo(t, { words: 5, chunkWords: 2 })
  t.same(contents(await chunksOf(stream(say('a b c')))), ['a b', ' c a', ' b'])
})

t.test('a delay comes before the answer, and before the first token', async t => {
  const { whole, stream } = await echo(t, { delay: '30ms' })
  for (const ask of [() => whole(say('a')), () => chunksOf(stream(say('a')))]) {
    const started = performance.now()
    await ask()
    t.ok(performance.now() - started >= 29)
  }
})

t.test('an interval comes between chunks', async t => {
  const { stream } = await echo(t, { words: 4, interval: '10ms' })
  const started = performance.now()
  await chunksOf(stream(say('a')))
  t.ok(performance.now() - started >= 29)
})

for (const [name, options] of Object.entries({ delay: { delay: '1m' }, interval: { interval: '1m' } })) {
  t.test(`an abort ends the wait of its ${name} at once, with the reason`, async t => {
    const { whole, stream } = await echo(t, options)
    const asks = [(signal: AbortSignal) => chunksOf(stream(say('a'), signal))]
    if (name === 'delay') asks.push(signal => whole(say('a'), signal) as never)
    for (const ask of asks) {
      const controller = new AbortController()
      const reason = new Error('gone')
      const asked = ask(controller.signal)
      setImmediate(() => controller.abort(reason))
      await t.rejects(asked, reason)
    }
  })
}

t.test('it lists one model', async t => {
  const { provider, app } = await echo(t)
  t.same(await provider.models?.(), [{ id: 'echo', created: 0 }])
  t.match(await app.gateway.models.list(), [{ id: 'echo/echo', owned_by: 'echo' }])
})

t.test('several may run under their own names', async t => {
  const app = await build(t, { providers: { one: { type: 'echo', words: 1 }, two: { type: 'echo', words: 2 } } })
  await app.ready()
  for (const [name, text] of [
    ['one', 'a'],
    ['two', 'a a']
  ]) {
    const answer = await app.gateway.complete({ model: `${name}/x`, ...say('a') }, app.gateway.caller())
    t.equal(!answer.stream && answer.body.choices[0]?.message.content, text)
  }
})
