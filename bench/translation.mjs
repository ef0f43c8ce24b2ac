// What translating costs: `node bench/translation.mjs`. One thread, no network: a request of a conversation with tools, and a
// stream of text deltas, one event a read and many a read, as Anthropic and Google send them. CPU time, medians of rounds.

import { toMessages } from '../providers/wires/anthropic/request.ts'
import { messageReader } from '../providers/wires/anthropic/stream.ts'
import { toGemini } from '../providers/wires/gemini/request.ts'
import { geminiReader } from '../providers/wires/gemini/stream.ts'

const rounds = 15
const chunks = 200
const parameters = {
  type: 'object',
  properties: { city: { type: 'string', description: 'Where' }, days: { type: 'integer', minimum: 1 } },
  required: ['city'],
  additionalProperties: false
}
const call = index => ({
  id: `call_${index}`,
  type: 'function',
  function: { name: 'weather', arguments: '{"city":"Zürich","days":3}' }
})
/** Twelve messages with two calls of tools: what an agent sends after a few turns. */
const request = {
  model: 'claude-sonnet-4-5',
  stream: true,
  max_tokens: 1_000,
  temperature: 0.7,
  stop: ['END'],
  tools: ['weather', 'search', 'read'].map(name => ({
    type: 'function',
    function: { name, description: 'What it does', parameters }
  })),
  messages: [
    { role: 'system', content: 'You are helpful. '.repeat(40) },
    ...[0, 1].flatMap(turn => [
      { role: 'user', content: 'What is the weather like in Zürich, and what should I wear?' },
      { role: 'assistant', content: 'Let me look.', tool_calls: [call(turn)] },
      { role: 'tool', tool_call_id: `call_${turn}`, content: '{"celsius":21,"sky":"clear"}' },
      { role: 'assistant', content: 'It is 21 °C under a clear sky. '.repeat(8) }
    ]),
    { role: 'user', content: [{ type: 'text', text: 'And tomorrow?' }] }
  ]
}
const redact = text => text
const headers = {}
const usage = { input_tokens: 12, output_tokens: 1, cache_creation_input_tokens: 0, cache_read_input_tokens: 0 }
const words = ['Hello', ' there', ', this', ' is', ' a', ' "quoted"', ' answer', ' from', ' Zürich', '.\n']

function anthropicEvents() {
  const message = { id: 'msg_1', type: 'message', role: 'assistant', model: 'claude', content: [], usage }
  const events = [
    { type: 'message_start', message },
    { type: 'content_block_start', index: 0, content_block: { type: 'text', text: '' } },
    ...Array.from({ length: chunks }, (_, index) => ({
      type: 'content_block_delta',
      index: 0,
      delta: { type: 'text_delta', text: words[index % words.length] }
    })),
    { type: 'content_block_stop', index: 0 },
    { type: 'message_delta', delta: { stop_reason: 'end_turn', stop_sequence: null }, usage: { output_tokens: 200 } },
    { type: 'message_stop' }
  ]
  return events.map(event => Buffer.from(`event: ${event.type}\ndata: ${JSON.stringify(event)}\n\n`))
}

function geminiEvents() {
  return Array.from({ length: chunks }, (_, index) => {
    const last = index === chunks - 1
    const content = { parts: [{ text: words[index % words.length] }], role: 'model' }
    const event = {
      candidates: [{ content, ...(last && { finishReason: 'STOP' }), index: 0 }],
      usageMetadata: { promptTokenCount: 12, candidatesTokenCount: index + 1, totalTokenCount: 13 + index },
      modelVersion: 'gemini-2.5-flash',
      responseId: 'abc'
    }
    return Buffer.from(`data: ${JSON.stringify(event)}\r\n\r\n`)
  })
}

const signatures = { find: () => undefined, keep() {} }
const surface = { opens: () => false, callIds: true, serviceTier: true }
const wires = [
  {
    name: 'anthropic',
    events: anthropicEvents(),
    reader: () => messageReader(headers, 8_388_608, redact, { jsonTool: null, keep() {} }),
    translate: () => toMessages(request, { sampling: true, recollect: () => undefined })
  },
  {
    name: 'gemini',
    events: geminiEvents(),
    reader: () => geminiReader(headers, 8_388_608, { model: 'gemini-2.5-flash', id: 'req', redact, signatures }),
    translate: () => toGemini({ ...request, model: 'gemini-2.5-flash' }, surface, { signatures })
  }
]

/** Microseconds of this thread for each of `count` units that one run does. */
function cost(run, count, runs) {
  const times = []
  for (let round = 0; round < rounds + 3; round++) {
    const before = process.threadCpuUsage()
    for (let index = 0; index < runs; index++) run()
    const { user, system } = process.threadCpuUsage(before)
    if (round >= 3) times.push((user + system) / runs / count)
  }
  return times.sort((a, b) => a - b)[rounds >> 1]
}

function streamed({ reader, events }, perRead) {
  const reads = []
  for (let at = 0; at < events.length; at += perRead) reads.push(Buffer.concat(events.slice(at, at + perRead)))
  let size = 0
  return () => {
    const own = reader()
    for (const bytes of reads) size += own.read(bytes).frames?.raw.length ?? 0
    size += own.end().frames?.raw?.length ?? 0
    if (size === 0) throw new Error('nothing was translated')
  }
}

for (const wire of wires) {
  const each = cost(wire.translate, 1, 2_000)
  const single = cost(streamed(wire, 1), chunks, 60)
  const many = cost(streamed(wire, 20), chunks, 60)
  console.log(`${wire.name} request ${each.toFixed(2)} µs`)
  console.log(`${wire.name} chunk, one a read ${single.toFixed(2)} µs`)
  console.log(`${wire.name} chunk, twenty a read ${many.toFixed(2)} µs`)
}
