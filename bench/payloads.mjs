// What is asked and answered. One case = one path prefix of the upstream, one request body, one answer.

const words =
  'The gateway keeps the bytes of an answer as they came — nobody reads them twice. ' +
  'A budget says "no" before a provider is asked, and a ledger says what it cost.\nSo much for that. '
const created = 1_763_686_800
const id = 'chatcmpl-CkQf8Zt2mN5rVw7yLxPs0aBdEhGj3'

/** A string of which the JSON form is exactly `size` bytes long, quotes excluded. */
function prose(size) {
  const whole = Math.floor(size / jsonBytes(words))
  let text = words.repeat(whole)
  for (const character of words) {
    if (jsonBytes(text) + jsonBytes(character) > size) break
    text += character
  }
  return text + '.'.repeat(size - jsonBytes(text))
}

function jsonBytes(text) {
  return Buffer.byteLength(JSON.stringify(text)) - 2
}

/** Fills the one empty text of `shape` so that its JSON is `size` bytes long. */
function filled(shape, size) {
  const empty = Buffer.byteLength(JSON.stringify(shape('')))
  return Buffer.from(JSON.stringify(shape(prose(Math.max(0, size - empty)))))
}

function question(size, stream) {
  const extras = stream ? { stream: true, stream_options: { include_usage: true } } : {}
  return filled(content => ({ model: 'bench', messages: [{ role: 'user', content }], ...extras }), size)
}

function completion(size) {
  return filled(
    content => ({
      id: 'chatcmpl-1',
      object: 'chat.completion',
      created,
      model: 'bench',
      choices: [{ index: 0, message: { role: 'assistant', content }, finish_reason: 'stop' }],
      usage: { prompt_tokens: 9, completion_tokens: 12, total_tokens: 21 }
    }),
    size
  )
}

/** The events of a stream as OpenAI sends them when usage was asked for: role, words, finish_reason, usage, [DONE]. */
export function events(chunks) {
  const event = (choices, usage) =>
    `data: ${JSON.stringify({ id, object: 'chat.completion.chunk', created, model: 'bench', system_fingerprint: 'fp_560af6e559', choices, usage })}\n\n`
  const choice = (delta, finish_reason) => [{ index: 0, delta, logprobs: null, finish_reason }]
  const texts = words.split(/(?= )/)
  const list = [event(choice({ role: 'assistant', content: '', refusal: null }, null), null)]
  for (let i = 0; i < chunks - 3; i++) list.push(event(choice({ content: texts[i % texts.length] }, null), null))
  list.push(event(choice({}, 'stop'), null))
  list.push(event([], { prompt_tokens: 42, completion_tokens: chunks - 3, total_tokens: 39 + chunks }))
  list.push('data: [DONE]\n\n')
  return list.map(text => Buffer.from(text))
}

/** Static answers: `connections` is what saturates a contender without queueing for its own sake. */
export const cases = [
  json('json-200', 'JSON 200 B', 200, 64),
  json('json-10k', 'JSON 10 KB', 10_000, 64),
  json('json-1m', 'JSON 1 MB', 1_000_000, 16),
  {
    name: 'sse',
    title: 'SSE 100 chunks',
    type: 'text/event-stream',
    stream: true,
    request: question(200, true),
    answer: Buffer.concat(events(100)),
    connections: 64
  }
]

function json(name, title, size, connections) {
  return {
    name,
    title,
    type: 'application/json',
    stream: false,
    request: question(size, false),
    answer: completion(size),
    connections
  }
}

/** A stream in `chunks` parts, one every `interval` ms. Served by upstream.mjs only, which puts two events into the first. */
export function paced(chunks, interval) {
  return {
    name: `paced-${chunks}-${interval}`,
    title: `${chunks} chunks, one every ${interval} ms`,
    type: 'text/event-stream',
    stream: true,
    request: question(200, true),
    answer: Buffer.concat(events(chunks + 1))
  }
}
