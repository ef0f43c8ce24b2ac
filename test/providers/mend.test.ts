import t from 'tap'
import { chunkReader, wholeAnswer } from '../../providers/wires/openai/answer.ts'
import { createMender } from '../../providers/wires/openai/mend.ts'
import type { ChatCompletionChunk, ChatRequest } from '../../schemas/chat.ts'
import { hello, stack } from '../helper.ts'
import { json, pieces, sse } from '../upstream.ts'
import { eventsOf, fixture } from './openai-wire.ts'

// Forms that servers send which only resemble OpenAI's: protocol/azure-llamacpp-openrouter.md, section 7.

const tools = [{ type: 'function', function: { name: 'weather' } }]
const withTools: ChatRequest = { ...hello, tools }
const reply = { status: 200, headers: {}, body: null, reads: null }
const plainWords = (text: string) => text

/** What a client gets of a stream, cut as told: its chunks, what was handed on as it came, and the fault at its end. */
function streamed(request: ChatRequest, events: ReadonlyArray<string | object>, cut: 'byte' | 'none' | 'event') {
  const reader = chunkReader(reply, 1 << 20, plainWords, createMender(request))
  const wire = [...eventsOf(events), 'data: [DONE]\n\n'].map(event => Buffer.from(event))
  const parts = cut === 'event' ? wire : pieces(Buffer.concat(wire), cut)
  const chunks: ChatCompletionChunk[] = []
  let untouched = ''
  let fault: Error | null = null
  for (const part of parts) {
    const step = reader.read(Buffer.from(part))
    if (step.frames) {
      chunks.push(...step.frames)
      untouched += step.frames.raw === null ? '' : Buffer.from(step.frames.raw).toString()
    }
    fault ??= step.fault
    if (step.done) break
  }
  return { chunks, untouched, fault }
}

function wholeOf(request: ChatRequest, body: object | string) {
  const raw = Buffer.from(typeof body === 'string' ? body : JSON.stringify(body))
  const answer = wholeAnswer({ ...reply, body: raw }, plainWords, createMender(request))
  if (answer.stream) throw new Error('a stream')
  return answer
}

const chunk = (delta: object, finish_reason: string | null = null, index = 0) => ({
  id: 'x',
  object: 'chat.completion.chunk',
  created: 1,
  model: 'm',
  choices: [{ index, delta, finish_reason }]
})
const completed = (message: object, finish_reason: string | null) => ({
  id: 'x',
  object: 'chat.completion',
  created: 1,
  model: 'm',
  choices: [{ index: 0, message: { role: 'assistant', content: null, ...message }, finish_reason }],
  usage: { prompt_tokens: 1, completion_tokens: 2, total_tokens: 3 }
})
const callsOf = (chunks: readonly ChatCompletionChunk[]) =>
  chunks.flatMap(({ choices }) => choices.flatMap(({ delta }) => delta.tool_calls ?? []))
const reasonsOf = (chunks: readonly ChatCompletionChunk[]) =>
  chunks.flatMap(({ choices }) => choices.flatMap(choice => choice.finish_reason || []))

const cuts = ['none', 'event', 'byte'] as const

for (const name of ['openrouter/stream', 'vllm/stream-tools', 'ollama/stream-tools', 'llamacpp/stream-tools']) {
  t.test(`${name} is well formed: nothing of it is touched`, async t => {
    const { events = [] } = fixture(name)
    for (const cut of cuts) {
      t.equal(streamed(withTools, events, cut).untouched, eventsOf(events).join(''), cut)
    }
  })
}

for (const [said, meant] of [
  ['eos_token', 'stop'],
  ['end_turn', 'stop'],
  ['stop_sequence', 'stop'],
  ['STOP', 'stop'],
  ['LENGTH', 'length'],
  ['max_tokens', 'length'],
  ['model_length', 'length'],
  ['tool_use', 'tool_calls'],
  ['SAFETY', 'content_filter'],
  ['constructor', 'stop']
] as const) {
  t.test(`the reason ${said} becomes ${meant}, whole and streamed`, async t => {
    const events = [chunk({ role: 'assistant', content: 'Hi' }), chunk({}, said)]
    for (const cut of cuts) {
      const { chunks, fault } = streamed(hello, events, cut)
      t.strictSame(reasonsOf(chunks), [meant], cut)
      t.equal(fault, null)
      t.match(chunks[0], events[0])
    }
    const { body, raw, usage } = wholeOf(hello, completed({ content: 'Hi' }, said))
    t.equal(raw, null)
    t.equal(body.choices[0]?.finish_reason, meant)
    t.equal((usage ?? body.usage)?.total_tokens, 3)
  })
}

t.test('a reason that speaks of one in its text is content', async t => {
  const body = completed({ content: '"finish_reason":"eos_token"' }, 'stop')
  t.not(wholeOf(hello, body).raw, null)
})

for (const reason of ['', null]) {
  t.test(`a whole answer with the reason ${JSON.stringify(reason)} has stopped`, async t => {
    t.equal(wholeOf(hello, completed({ content: 'Hi' }, reason)).body.choices[0]?.finish_reason, 'stop')
  })
}

t.test('a stream that ends with an empty reason and says that it is done has stopped', async t => {
  const last = { ...chunk({}, ''), choices: [] }
  for (const events of [
    [chunk({ content: 'Hi' }, ''), chunk({}, '')],
    [chunk({ content: 'Hi' }, ''), chunk({}, ''), { ...last, usage: { prompt_tokens: 1, completion_tokens: 1 } }]
  ]) {
    for (const cut of cuts) {
      const { chunks, fault } = streamed(hello, events, cut)
      t.strictSame(reasonsOf(chunks), ['stop'], cut)
      t.match(chunks.at(-1), { id: 'x', model: 'm', choices: [{ index: 0, delta: {}, finish_reason: 'stop' }] })
      t.equal(fault, null)
    }
  }
})

t.test('empty reasons before a real one stay as they are', async t => {
  const events = [chunk({ content: 'Hi' }, ''), chunk({}, 'stop')]
  for (const cut of cuts) t.equal(streamed(hello, events, cut).untouched, eventsOf(events).join(''))
})

t.test('a stream that never says why it ends is not given a reason', async t => {
  for (const cut of cuts) t.strictSame(reasonsOf(streamed(hello, [chunk({ content: 'Hi' })], cut).chunks), [])
})

for (const reason of ['error', 'abort']) {
  t.test(`the reason ${reason} is a fault after what came before it`, async t => {
    for (const cut of cuts) {
      const { chunks, fault } = streamed(hello, [chunk({ content: 'a' }), chunk({ content: 'b' }, reason)], cut)
      t.strictSame(reasonsOf(chunks), [])
      t.equal(chunks.map(({ choices }) => choices[0]?.delta.content).join(''), 'ab')
      t.match(fault, { code: 'GATEWAY_UPSTREAM_ERROR', message: /finish_reason/ })
    }
    t.throws(() => wholeOf(hello, completed({ content: 'part' }, reason)), { code: 'GATEWAY_UPSTREAM_ERROR' })
  })
}

t.test('calls without index and type get theirs, in the order of their ids', async t => {
  const events = [
    chunk({ role: 'assistant', tool_calls: [{ id: 'a', function: { name: 'weather', arguments: '{"n"' } }] }),
    chunk({ tool_calls: [{ function: { arguments: ':1}' } }] }),
    chunk({ tool_calls: [{ id: 'b', function: { name: 'weather', arguments: '{}' } }] }),
    chunk({ tool_calls: [{ id: 'a', function: { arguments: ' ' } }] }),
    chunk({}, 'tool_calls')
  ]
  for (const cut of cuts) {
    t.strictSame(
      callsOf(streamed(withTools, events, cut).chunks),
      [
        { id: 'a', function: { name: 'weather', arguments: '{"n"' }, index: 0, type: 'function' },
        { function: { arguments: ':1}' }, index: 0 },
        { id: 'b', function: { name: 'weather', arguments: '{}' }, index: 1, type: 'function' },
        { id: 'a', function: { arguments: ' ' }, index: 0 }
      ],
      cut
    )
  }
})

t.test('calls without an id are told apart by their names', async t => {
  const call = (name: string) => ({ function: { name, arguments: '{}' } })
  const events = [chunk({ tool_calls: [call('one'), call('two')] }), chunk({ tool_calls: [call('three')] })]
  const calls = callsOf(streamed(withTools, [...events, chunk({}, 'stop')], 'event').chunks)
  t.strictSame(
    calls.map(({ index, function: own }) => [index, own?.name]),
    [
      [0, 'one'],
      [1, 'two'],
      [2, 'three']
    ]
  )
})

t.test('arguments that are an object become their text, whole and streamed', async t => {
  const call = { index: 0, id: 'a', type: 'function', function: { name: 'weather', arguments: { city: 'Zürich' } } }
  const events = [chunk({ tool_calls: [call] }), chunk({}, 'tool_calls')]
  const text = '{"city":"Zürich"}'
  for (const cut of cuts) {
    t.equal(callsOf(streamed(withTools, events, cut).chunks)[0]?.function?.arguments, text)
  }
  const { body } = wholeOf(withTools, completed({ tool_calls: [call] }, 'tool_calls'))
  t.equal(body.choices[0]?.message.tool_calls?.[0]?.function?.arguments, text)
})

t.test('calls of a whole answer get their type, and arguments where they have none', async t => {
  for (const own of [{ name: 'now' }, { name: 'now', arguments: null }]) {
    const { body } = wholeOf(withTools, completed({ tool_calls: [{ id: 'a', function: own }] }, 'tool_calls'))
    t.strictSame(body.choices[0]?.message.tool_calls, [
      { id: 'a', function: { name: 'now', arguments: '{}' }, type: 'function' }
    ])
  }
})

t.test('stop is tool_calls where calls were made, whole and streamed', async t => {
  const call = { index: 0, id: 'a', type: 'function', function: { name: 'weather', arguments: '{}' } }
  for (const reason of ['stop', 'eos_token']) {
    const events = [chunk({ role: 'assistant', tool_calls: [call] }), chunk({}, reason)]
    for (const cut of cuts) {
      t.strictSame(reasonsOf(streamed(withTools, events, cut).chunks), ['tool_calls'], `${reason} ${cut}`)
    }
    const { body } = wholeOf(withTools, completed({ tool_calls: [call] }, reason))
    t.equal(body.choices[0]?.finish_reason, 'tool_calls')
  }
})

t.test('stop stays where no call was made, and where several choices cannot be told apart', async t => {
  const text = [chunk({ content: 'Hi', tool_calls: [] }), chunk({}, 'stop')]
  const call = { index: 0, id: 'a', type: 'function', function: { name: 'weather', arguments: '{}' } }
  const several = [chunk({ tool_calls: [call] }), chunk({}, 'stop', 1), chunk({}, 'tool_calls')]
  for (const cut of cuts) {
    t.equal(streamed(withTools, text, cut).untouched, eventsOf(text).join(''))
    t.equal(streamed({ ...withTools, n: 2 }, several, cut).untouched, eventsOf(several).join(''))
  }
})

t.test('a whole answer that is well formed keeps its bytes, calls or not', async t => {
  const call = { id: 'a', type: 'function', function: { name: 'weather', arguments: '{ "n" : 1.0 }' } }
  for (const body of [completed({ content: 'Hi' }, 'stop'), completed({ tool_calls: [call] }, 'tool_calls')]) {
    t.equal(wholeOf(withTools, body).raw?.toString(), JSON.stringify(body))
  }
})

t.test('without tools in the request nobody looks for calls', async t => {
  const call = { function: { name: 'weather', arguments: {} } }
  const body = completed({ tool_calls: [call] }, 'stop')
  t.equal(wholeOf(hello, body).raw?.toString(), JSON.stringify(body))
})

t.test('choices and calls that are none are left alone', async t => {
  for (const choices of [
    null,
    5,
    'x',
    {},
    [null],
    ['x'],
    [{ message: null }],
    [{ message: { tool_calls: [null, 5] } }]
  ]) {
    t.ok(wholeOf(withTools, { choices, tool_calls: [{}], x: { finish_reason: null } }).body)
  }
  for (const delta of [
    null,
    'x',
    { tool_calls: [null] },
    { tool_calls: [{}, 5] },
    { tool_calls: [{ function: 'x' }] }
  ]) {
    const events = [{ ...chunk({}), choices: [{ delta }], tool_calls: [{}] }, chunk({}, 'odd')]
    for (const cut of cuts) t.equal(streamed(withTools, events, cut).fault, null)
  }
})

// The SDK over a gateway

const weather = { type: 'function' as const, function: { name: 'weather', parameters: { type: 'object' } } }

t.test('the stream helper of the SDK survives every form at once', async t => {
  const { upstream, client } = await stack(t)
  for (const cut of cuts) {
    const call = { function: { name: 'weather', arguments: { city: 'Zürich' } } }
    const events = [chunk({ role: 'assistant', content: '' }, ''), chunk({ tool_calls: [call] }, ''), chunk({}, '')]
    upstream.script(sse(events, { cut, interval: null }))
    const final = await client.chat.completions.stream({ ...hello, tools: [weather] }).finalChatCompletion()
    t.equal(final.choices[0]?.finish_reason, 'tool_calls')
    t.match(final.choices[0]?.message.tool_calls, [
      { type: 'function', function: { name: 'weather', arguments: '{"city":"Zürich"}' } }
    ])
    upstream.script(sse([chunk({ role: 'assistant', content: 'Hi' }), chunk({}, 'eos_token')], { cut, interval: null }))
    t.equal(await client.chat.completions.stream(hello).finalContent(), 'Hi')
  }
})

t.test('runTools of the SDK calls what a server wrote as an object and ended with stop', async t => {
  const { upstream, client } = await stack(t)
  const call = { id: 'c1', function: { name: 'weather', arguments: { city: 'Zürich' } } }
  upstream.script(json(completed({ tool_calls: [call] }, 'stop')), json(completed({ content: 'Sunny.' }, 'eos_token')))
  const asked: string[] = []
  const tool = {
    ...weather,
    function: { ...weather.function, description: '', function: (text: string) => `${asked.push(text)}` }
  }
  t.equal(await client.chat.completions.runTools({ ...hello, tools: [tool] }).finalContent(), 'Sunny.')
  t.strictSame(asked, ['{"city":"Zürich"}'])
})
