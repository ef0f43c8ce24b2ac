import { readFileSync } from 'node:fs'
import t from 'tap'
import type { Origin } from '../../../../providers/wires/gemini/answer.ts'
import { geminiReader } from '../../../../providers/wires/gemini/stream.ts'
import type { ChatCompletionChunk } from '../../../../schemas/chat.ts'
import type { Frames } from '../../../../schemas/frames.ts'
import { usageOf } from '../../../../schemas/usage.ts'
import { pieces } from '../../../upstream.ts'

const origin: Origin = { model: 'asked-model', id: 'req_1', redact: text => text, signatures: { keep() {} } }

function fixture(name: string): Buffer {
  return readFileSync(new URL(`../../../fixtures/gemini/${name}`, import.meta.url))
}

/** Everything that a stream of these reads says, and how it ended. */
function heard(reads: Iterable<Uint8Array>, own: Partial<Origin> = {}) {
  const reader = geminiReader({}, 1_000_000, { ...origin, ...own })
  const frames: Frames[] = []
  let fault: Error | null = null
  for (const bytes of reads) {
    const step = reader.read(Buffer.from(bytes))
    if (step.frames !== null) frames.push(step.frames)
    fault = step.fault
    if (step.done) break
  }
  if (fault === null) {
    const step = reader.end()
    if (!step.done) t.fail('its end is not the end')
    if (step.frames !== null) frames.push(step.frames)
    fault = step.fault
  }
  return { frames, fault, chunks: frames.flatMap(read => [...read]) }
}

const stream = (...events: unknown[]) => [
  Buffer.from(events.map(event => `data: ${JSON.stringify(event)}\r\n\r\n`).join(''))
]
const saying = (text: string, more: object = {}) => ({
  candidates: [{ content: { parts: [{ text }], role: 'model' }, index: 0, ...more }]
})
const end = saying('', { finishReason: 'STOP' })

/** Without what differs from run to run. */
function steady({ created: _, ...chunk }: ChatCompletionChunk) {
  return JSON.parse(JSON.stringify(chunk).replaceAll(/call_[0-9a-f]{32}/g, 'call_x'))
}

function textOf(chunks: readonly ChatCompletionChunk[]): string {
  return chunks.map(chunk => chunk.choices[0]?.delta.content ?? '').join('')
}

function reasonsOf(chunks: readonly ChatCompletionChunk[]): string[] {
  return chunks.flatMap(({ choices }) => choices.flatMap(choice => choice.finish_reason ?? []))
}

t.test('a text comes in its pieces, then its end, then its usage', async t => {
  const { chunks, fault, frames } = heard([fixture('text.sse')])
  t.equal(fault, null)
  const head = { id: 'chatcmpl-k3mTextStream', object: 'chat.completion.chunk', model: 'gemini-2.5-flash' }
  const chunk = (delta: object, finish_reason: string | null = null) => ({
    ...head,
    choices: [{ index: 0, delta, logprobs: null, finish_reason }]
  })
  t.strictSame(chunks.map(steady), [
    chunk({ role: 'assistant', content: '', refusal: null }),
    chunk({ content: 'Zürich' }),
    chunk({ content: ' has "22"\n' }),
    chunk({ content: 'degrees 🌤️ 東京\u2028' }),
    chunk({ content: '.' }),
    chunk({}, 'stop'),
    {
      ...head,
      choices: [],
      usage: {
        prompt_tokens: 12,
        completion_tokens: 10,
        total_tokens: 22,
        prompt_tokens_details: { cached_tokens: 0, audio_tokens: 0 },
        completion_tokens_details: { reasoning_tokens: 0, audio_tokens: 0 }
      }
    }
  ])
  t.equal(new Set(chunks.map(({ created }) => created)).size, 1)
  t.same(
    frames.map(read => read.last),
    [false, true]
  )
})

for (const name of ['text.sse', 'tools.sse', 'blocked.sse']) {
  t.test(`${name} says the same however its bytes are split`, async t => {
    const bytes = fixture(name)
    const whole = heard([bytes]).chunks.map(steady)
    for (let at = 1; at < bytes.length; at++) {
      t.strictSame(heard([bytes.subarray(0, at), bytes.subarray(at)]).chunks.map(steady), whole, `cut at ${at}`)
    }
    t.strictSame(heard(pieces(bytes, 'byte')).chunks.map(steady), whole, 'byte by byte')
  })

  t.test(`${name} is a fault wherever it breaks off, and never finished`, async t => {
    const bytes = fixture(name)
    const last = bytes.lastIndexOf('data: ')
    for (let at = 0; at <= last; at++) {
      const { fault, chunks } = heard([bytes.subarray(0, at)])
      t.match(fault, { code: 'GATEWAY_UPSTREAM_ERROR', statusCode: 502 }, `cut at ${at}`)
      t.same(reasonsOf(chunks), [])
    }
  })
}

t.test('what is taken without parsing says what parsing it says', async t => {
  const texts = [
    'a',
    'Grüße 東京 🙂',
    '"quoted" \\ back\\\\slash \\"',
    '\n\r\t\b\f/\u0001\u2028',
    '}],"role":"model"}',
    '😀'.repeat(50)
  ]
  const usual = (text: string) =>
    `data: {"candidates": [{"content": {"parts": [{"text": ${JSON.stringify(text)}}],"role": "model"},"index": 0}],"usageMetadata": {"promptTokenCount": 1,"totalTokenCount": 2},"modelVersion": "m","responseId": "r"}\r\n\r\n`
  const unusual = (text: string) => usual(text).replace('"index": 0', '"index": 0, "safetyRatings": []')
  const finish = usual('!').replace('"index": 0', '"finishReason": "STOP","index": 0')
  const reads = (form: (text: string) => string) => heard([Buffer.from(usual('-') + texts.map(form).join('') + finish)])
  const fast = reads(usual)
  t.equal(textOf(fast.chunks), `-${texts.join('')}!`)
  t.strictSame(fast.chunks.map(steady), reads(unusual).chunks.map(steady))
})

t.test('events that only look usual are parsed', async t => {
  const usual = (text: string, parts = '') =>
    `{"candidates":[{"content":{"parts":[{"text":"${text}"}${parts}],"role":"model"},"index":0}],"usageMetadata":{"promptTokenCount":1,"totalTokenCount":2},"modelVersion":"m","responseId":"r"}`
  const rest = (event: string) => [
    Buffer.from(`data: ${usual('a')}\n\ndata: ${event}\n\ndata: ${JSON.stringify(end)}\n\n`)
  ]
  t.equal(textOf(heard(rest(usual('b', ',{"text":"c"}'))).chunks), 'abc', 'a second part')
  t.equal(textOf(heard(rest(usual('b').replace('"text":"b"', '"text":"b","thought":true'))).chunks), 'a', 'a thought')
  t.match(heard(rest(usual('\\x'))).fault, { statusCode: 502 }, 'an escape that there is not')
  t.match(heard(rest(usual('b').slice(0, -1))).fault, { statusCode: 502 }, 'JSON without its end')
  const { fault, chunks } = heard(rest(`${usual('b').slice(0, -1)},"error":{"code":503,"message":"x"}}`))
  t.match(fault, { code: 'GATEWAY_UPSTREAM_OVERLOADED' }, 'an error beside a text')
  t.equal(textOf(chunks), 'a')
  const twoLines = usual('b').replace(',"usageMetadata"', ',\ndata: "usageMetadata"')
  t.equal(textOf(heard(rest(twoLines)).chunks), 'ab', 'an event of two lines')
  const broken = usual('b').replace('"promptTokenCount":1', '"promptTokenCount":')
  t.match(
    heard([Buffer.from(`data: ${usual('a', '')}\n\ndata: ${broken}\n\n`)]).fault,
    { statusCode: 502 },
    'broken counts'
  )
})

t.test('thoughts, calls and signatures come as they are', async t => {
  const kept: Array<[string, string]> = []
  const signatures = { keep: (call: string, signature: string) => void kept.push([call, signature]) }
  const { chunks, fault } = heard([fixture('tools.sse')], { signatures })
  t.equal(fault, null)
  const signature = 'EpAFCo0FAXLI2nwSignatureOfTheFirst=='
  const deltas = chunks.flatMap(({ choices }) => choices.map(({ delta }) => delta))
  t.match(deltas, [
    { role: 'assistant', content: '' },
    { reasoning_content: '**Looking**' },
    { content: 'Let me see.' },
    {
      tool_calls: [
        {
          index: 0,
          id: /^call_/,
          type: 'function',
          function: { name: 'get_weather', arguments: '{"city":"Zürich","days":3}' },
          extra_content: { google: { thought_signature: signature } }
        }
      ]
    },
    { tool_calls: [{ index: 1, id: 'fc-2', type: 'function', function: { name: 'now', arguments: '{}' } }] },
    { extra_content: { google: { thought_signature: 'RW5kU2lnbmF0dXJl' } } },
    {}
  ])
  t.same(reasonsOf(chunks), ['tool_calls'])
  t.same(kept, [[deltas[3]?.tool_calls?.[0]?.id, signature]])
})

t.test('counts in streams are sums: the last ones hold, and add up', async t => {
  const { chunks } = heard([fixture('tools.sse')])
  t.equal(chunks.filter(chunk => chunk.usage).length, 1)
  t.match(usageOf(chunks.at(-1)?.usage), { input: 80, output: 30, reasoning: 60, mismatch: false })
  t.equal(chunks.at(-1)?.usage?.total_tokens, 170)
})

t.test('counts that say nothing of tokens do not hide those that did', async t => {
  const traffic = { ...end, usageMetadata: { trafficType: 'ON_DEMAND' } }
  const counted = {
    ...saying('a'),
    usageMetadata: { promptTokenCount: 3, candidatesTokenCount: 1, totalTokenCount: 4 }
  }
  t.match(heard(stream(counted, traffic)).chunks.at(-1)?.usage, { total_tokens: 4 })
  t.equal(heard(stream(saying('a'), traffic)).chunks.at(-1)?.usage, undefined)
})

t.test('a call that comes first is preceded by no text', async t => {
  const call = { candidates: [{ content: { parts: [{ functionCall: { name: 'f', args: {} } }] } }] }
  const { chunks } = heard(stream(call, end))
  t.equal(chunks[0]?.choices[0]?.delta.content, null)
  t.same(reasonsOf(chunks), ['tool_calls'])
})

t.test('old models that name their reason in every event finish once', async t => {
  const { chunks } = heard(stream(saying('a', { finishReason: 'STOP' }), saying('b', { finishReason: 'STOP' })))
  t.equal(textOf(chunks), 'ab')
  t.same(reasonsOf(chunks), ['stop'])
})

t.test('several candidates interleave, and each finishes once', async t => {
  const at = (index: number, text: string, finishReason?: string) => ({
    content: { parts: [{ text }] },
    ...(index > 0 ? { index } : {}),
    finishReason
  })
  const { chunks, fault } = heard(
    stream(
      { candidates: [at(0, 'a'), at(1, 'x')] },
      { candidates: [at(1, 'y', 'MAX_TOKENS')] },
      { candidates: [at(0, 'b', 'STOP')] }
    )
  )
  t.equal(fault, null)
  const of = (index: number) => chunks.flatMap(({ choices }) => choices.filter(choice => choice.index === index))
  t.equal(
    of(0)
      .map(({ delta }) => delta.content ?? '')
      .join(''),
    'ab'
  )
  t.equal(
    of(1)
      .map(({ delta }) => delta.content ?? '')
      .join(''),
    'xy'
  )
  t.same(
    [of(0), of(1)].map(all => all.flatMap(choice => choice.finish_reason ?? [])),
    [['stop'], ['length']]
  )
  t.match(heard(stream({ candidates: [at(0, 'a', 'STOP'), at(1, 'x')] })).fault, { statusCode: 502 }, 'one has no end')
})

t.test('a blocked prompt is a refusal', async t => {
  const { chunks, fault } = heard([fixture('blocked.sse')])
  t.equal(fault, null)
  t.same(
    chunks.flatMap(({ choices }) => choices.map(choice => [choice.delta, choice.finish_reason])),
    [
      [{ role: 'assistant', content: null, refusal: null }, null],
      [{ refusal: 'The prompt was blocked: SAFETY.' }, null],
      [{}, 'content_filter']
    ]
  )
})

t.test('an answer that is blocked before it began is a refusal, one that had begun is cut', async t => {
  const refusals = (...events: object[]) =>
    heard(stream(...events)).chunks.flatMap(({ choices }) => choices.flatMap(({ delta }) => delta.refusal ?? []))
  const blocked = { candidates: [{ finishReason: 'SAFETY', finishMessage: 'Not that.', index: 0 }] }
  t.same(refusals(blocked), ['Not that.'])
  t.same(refusals(saying('a'), saying('b'), blocked), [])
})

t.test('log probabilities come with their text', async t => {
  const logprobsResult = { chosenCandidates: [{ token: 'a', logProbability: -1 }] }
  const { chunks } = heard(stream(saying('a', { logprobsResult }), end))
  t.match(chunks[1]?.choices[0], { delta: { content: 'a' }, logprobs: { content: [{ token: 'a', logprob: -1 }] } })
})

t.test('a call that the model made wrong is a fault, after its usage', async t => {
  const counts = { promptTokenCount: 3, candidatesTokenCount: 2, totalTokenCount: 5 }
  const malformed = { candidates: [{ finishReason: 'MALFORMED_FUNCTION_CALL', index: 0 }], usageMetadata: counts }
  const { chunks, fault } = heard(stream(saying('a'), malformed))
  t.match(fault, { code: 'GATEWAY_UPSTREAM_ERROR', blame: 'provider' })
  t.same(reasonsOf(chunks), [])
  t.equal(chunks.at(-1)?.usage?.total_tokens, 5)
})

for (const [how, error] of Object.entries({
  'as an event': 'data: {"error":{"code":503,"message":"x","status":"UNAVAILABLE"}}\r\n\r\n',
  'as an event with an array': 'data: [{"error":{"code":503,"message":"x","status":"UNAVAILABLE"}}]\r\n\r\n',
  'as bare JSON': '{\n  "error": {\n    "code": 503,\n    "message": "x",\n    "status": "UNAVAILABLE"\n  }\n}\n',
  'as a bare array': '[{\r\n  "error": {"status": "UNAVAILABLE"}\r\n}]'
})) {
  t.test(`an error in the middle ${how} is a fault after what was said`, async t => {
    const bytes = Buffer.concat([...stream(saying('a'), saying('b')), Buffer.from(error)])
    for (const reads of [[bytes], pieces(bytes, 'byte')]) {
      const { chunks, fault } = heard(reads)
      t.match(fault, { code: 'GATEWAY_UPSTREAM_OVERLOADED' })
      t.equal(textOf(chunks), 'ab')
      t.same(reasonsOf(chunks), [])
    }
  })
}

t.test('what is no answer is a fault', async t => {
  for (const garbage of [
    'data: nonsense\n\n',
    'data: null\n\n',
    'data: {"candidates":[{"content":{"parts":[null]}}]}\n\n'
  ]) {
    t.match(heard([Buffer.from(garbage)]).fault, { statusCode: 502 }, garbage)
  }
  t.match(heard([]).fault, { statusCode: 502 }, 'nothing')
  t.match(heard([Buffer.from(': a comment\n\ndata: {}\n\n')]).fault, { statusCode: 502 }, 'an empty event')
})

t.test('an event that is too large is refused', async t => {
  const reader = geminiReader({}, 100, origin)
  t.throws(() => reader.read(Buffer.from(`data: ${'x'.repeat(200)}`)), { code: 'GATEWAY_UPSTREAM_ERROR' })
})

t.test('a stream without ids has one of ours, and keeps it', async t => {
  const { chunks } = heard(stream(saying('a'), { ...end, responseId: 'late', modelVersion: 'late' }))
  t.same(new Set(chunks.map(({ id, model }) => `${id} ${model}`)), new Set(['chatcmpl-req_1 asked-model']))
})
