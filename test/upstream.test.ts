import { once } from 'node:events'
import { Agent, request as httpRequest, type IncomingMessage } from 'node:http'
import { connect, type Socket } from 'node:net'
import OpenAI from 'openai'
import t, { type Test } from 'tap'
import {
  bytes,
  chunks,
  close,
  completion,
  failure,
  flood,
  gate,
  heartbeats,
  json,
  pieces,
  raw,
  redirect,
  reset,
  type Script,
  seeded,
  silence,
  sse,
  startUpstream,
  toolChunks,
  turn,
  type Upstream,
  wantsUsage
} from './upstream.ts'

async function start(t: Test, ...scripts: Script[]): Promise<Upstream> {
  const upstream = await startUpstream()
  t.teardown(() => upstream.close())
  const [first, ...more] = scripts
  if (first) upstream.script(first, ...more)
  return upstream
}

/** A bare connection that has sent one request and keeps every network read by itself. */
function dial(upstream: Upstream, path = '/v1/chat/completions') {
  const socket = connect(upstream.port, '127.0.0.1')
  const reads: Buffer[] = []
  socket.write(`GET ${path} HTTP/1.1\r\nhost: upstream\r\n\r\n`)
  socket.on('data', (read: Buffer) => reads.push(read))
  return { socket, reads, text: () => Buffer.concat(reads).toString(), over: over(socket) }
}

/** The error code that ends a connection, or 'end' when its end is orderly. */
async function over(socket: Socket): Promise<string> {
  let how = 'end'
  socket.on('error', (error: NodeJS.ErrnoException) => {
    how = error.code ?? error.message
  })
  await new Promise(resolve => socket.once('close', resolve))
  return how
}

async function get(upstream: Upstream, options: object = {}): Promise<{ response: IncomingMessage; text: string }> {
  const request = httpRequest(`${upstream.url}/models`, options)
  request.end()
  const [response] = (await once(request, 'response')) as [IncomingMessage]
  let text = ''
  for await (const part of response.setEncoding('utf8')) text += part
  return { response, text }
}

function openai(upstream: Upstream): OpenAI {
  return new OpenAI({ baseURL: upstream.url, apiKey: 'sk-test', maxRetries: 0 })
}

const ask = { model: 'm', messages: [{ role: 'user' as const, content: 'one two three' }] }
const head = 'HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n'

t.test('by default the OpenAI client gets its own last message as a completion', async t => {
  const upstream = await start(t)
  const answer = await openai(upstream).chat.completions.create(ask)
  t.equal(answer.choices[0]?.message.content, 'one two three')
  t.equal(answer.model, 'm')
  t.equal(answer.usage?.completion_tokens, 3)
})

t.test('by default a streaming OpenAI client gets its own last message word by word', async t => {
  const upstream = await start(t)
  const contents: unknown[] = []
  for await (const chunk of await openai(upstream).chat.completions.create({ ...ask, stream: true })) {
    t.notOk('usage' in chunk)
    contents.push(chunk.choices[0]?.delta.content)
  }
  t.same(contents, ['', 'one', ' two', ' three', undefined])
})

t.test('by default a streaming OpenAI client that wants usage gets it last', async t => {
  const upstream = await start(t)
  const options = { ...ask, stream: true as const, stream_options: { include_usage: true } }
  const all: OpenAI.ChatCompletionChunk[] = []
  for await (const chunk of await openai(upstream).chat.completions.create(options)) all.push(chunk)
  t.same(all.at(-1)?.choices, [])
  t.equal(all.at(-1)?.usage?.total_tokens, 12)
  t.ok(all.slice(0, -1).every(chunk => chunk.usage === null))
})

t.test('by default the OpenAI client finds one model', async t => {
  const upstream = await start(t)
  const models = await openai(upstream).models.list()
  t.same(
    models.data.map(model => model.id),
    ['echo']
  )
})

t.test('the stream helper of the OpenAI client accepts the chunks of tool calls', async t => {
  const calls = [
    { name: 'weather', arguments: '{"city":"Zürich"}' },
    { name: 'now', arguments: ['{', '}'], id: 'call_now' }
  ]
  const upstream = await start(t, sse(toolChunks(calls, { usage: true })))
  const final = await openai(upstream).chat.completions.stream(ask).finalChatCompletion()
  t.equal(final.choices[0]?.finish_reason, 'tool_calls')
  t.match(final.choices[0]?.message.tool_calls, [
    { id: 'call_upstream0', function: { name: 'weather', arguments: '{"city":"Zürich"}' } },
    { id: 'call_now', function: { name: 'now', arguments: '{}' } }
  ])
})

t.test('the OpenAI client understands a stream that arrives byte by byte', async t => {
  const upstream = await start(t, sse(chunks('Grüße 👋 aus'), { cut: 'byte' }))
  const final = await openai(upstream).chat.completions.stream(ask).finalChatCompletion()
  t.equal(final.choices[0]?.message.content, 'Grüße 👋 aus')
})

t.test('a failure is an error of the OpenAI client with status, code and headers', async t => {
  const headers = { 'retry-after': 7 }
  const upstream = await start(t, failure(429, { code: 'rate_limit_exceeded', message: 'Slow down.' }, { headers }))
  const error = await openai(upstream)
    .chat.completions.create(ask)
    .catch(error => error)
  t.type(error, OpenAI.RateLimitError)
  t.match(error, { status: 429, code: 'rate_limit_exceeded', type: 'invalid_request_error', param: null })
  t.equal(error.headers.get('retry-after'), '7')
})

t.test('json answers with status, headers and a body of known length', async t => {
  const upstream = await start(t, json({ a: 1 }, { status: 418, headers: { 'X-Thing': ['a', 'b'] } }))
  const { response, text } = await get(upstream)
  t.equal(response.statusCode, 418)
  t.match(response.headers, { 'content-type': 'application/json', 'content-length': '7', 'x-thing': 'a, b' })
  t.equal(text, '{"a":1}')
})

t.test('json can be sent in chunks instead of with a length', async t => {
  const upstream = await start(t, json({ a: 1 }, { framing: 'chunked' }))
  const { response, text } = await get(upstream)
  t.match(response.headers, { 'transfer-encoding': 'chunked', 'content-length': undefined })
  t.equal(text, '{"a":1}')
})

t.test('a null header takes away what a helper sets', async t => {
  const upstream = await start(t, json({}, { headers: { 'Content-Type': null } }))
  const { response } = await get(upstream)
  t.notOk('content-type' in response.headers)
})

t.test('bytes answers garbage without a content type', async t => {
  const upstream = await start(t, bytes(Buffer.from([0, 255, 10])))
  const { response } = await get(upstream)
  t.notOk('content-type' in response.headers)
  t.equal(response.headers['content-length'], '3')
})

t.test('redirect names a location and has no body', async t => {
  const upstream = await start(t, redirect('http://elsewhere.example/', 308))
  const { response, text } = await get(upstream)
  t.equal(response.statusCode, 308)
  t.equal(response.headers.location, 'http://elsewhere.example/')
  t.equal(text, '')
})

t.test('raw bytes reach the client as they are', async t => {
  const upstream = await start(t, raw('220 smtp.example ready\r\n'))
  const client = dial(upstream)
  t.equal(await client.over, 'end')
  t.equal(client.text(), '220 smtp.example ready\r\n')
})

t.test('sse objects become data events, strings and bytes stay what they are, and DONE ends them', async t => {
  const upstream = await start(t, sse([{ a: 1 }, ': note\n\n', Buffer.from('data: {"b":2}\r\n\r\n')]))
  const { response, text } = await get(upstream)
  t.equal(response.headers['content-type'], 'text/event-stream; charset=utf-8')
  t.equal(text, 'data: {"a":1}\n\n: note\n\ndata: {"b":2}\r\n\r\ndata: [DONE]\n\n')
})

t.test('sse adds no DONE to a ready-made string', async t => {
  const upstream = await start(t, sse('data: {}\n\n'))
  t.equal((await get(upstream)).text, 'data: {}\n\n')
})

t.test('sse adds DONE only where it is wanted', async t => {
  const upstream = await start(t, sse([{}], { done: false }), sse('data: 1\n\n', { done: true }))
  t.equal((await get(upstream)).text, 'data: {}\n\n')
  t.equal((await get(upstream)).text, 'data: 1\n\ndata: [DONE]\n\n')
})

t.test('sse calls a function of events once per answer', async t => {
  let calls = 0
  const upstream = await start(
    t,
    sse(() => [{ call: ++calls }], { done: false })
  )
  t.equal((await get(upstream)).text, 'data: {"call":1}\n\n')
  t.equal((await get(upstream)).text, 'data: {"call":2}\n\n')
})

t.test('every event arrives as a network read of its own', async t => {
  const upstream = await start(t, sse([1, 2, 3], { framing: 'close', bodyDelay: turn }))
  const client = dial(upstream)
  await client.over
  t.same(client.reads.slice(1).map(String), ['data: 1\n\n', 'data: 2\n\n', 'data: 3\n\n', 'data: [DONE]\n\n'])
})

t.test('every byte arrives as a network read of its own', async t => {
  const upstream = await start(t, raw(`${head}data: é\n\n`, { cut: 'byte' }))
  const client = dial(upstream)
  await client.over
  t.equal(client.reads.length, Buffer.byteLength(`${head}data: é\n\n`))
  t.ok(client.reads.every(read => read.length === 1))
  t.equal(client.text(), `${head}data: é\n\n`)
})

t.test('bytes are cut at the given offsets', async t => {
  const upstream = await start(t, raw('HTTP/1.1 200 OK\r\n\r\nhello', { cut: [4, 21] }))
  const client = dial(upstream)
  await client.over
  t.same(client.reads.map(String), ['HTTP', '/1.1 200 OK\r\n\r\nhe', 'llo'])
})

t.test('a body with a length is cut within its one frame', async t => {
  const upstream = await start(t, bytes('hello', { cut: [1, 3], bodyDelay: turn, headers: { connection: 'close' } }))
  const client = dial(upstream)
  await client.over
  t.same(client.reads.slice(1).map(String), ['h', 'el', 'lo'])
})

t.test('a seed repeats its random cuts on the wire', async t => {
  const body = 'x'.repeat(300)
  const upstream = await start(t, raw(body, { cut: { seed: 5 } }))
  const [first, second] = [dial(upstream), dial(upstream)]
  await Promise.all([first.over, second.over])
  const expected = pieces(Buffer.from(body), { seed: 5 }).map(piece => piece.length)
  t.ok(expected.length > 10)
  t.same(
    first.reads.map(read => read.length),
    expected
  )
  t.same(
    second.reads.map(read => read.length),
    expected
  )
})

t.test('random cuts lose no byte and keep their maximum, whatever the seed', async t => {
  const whole = Buffer.from('data: {"a":"ü"}\r\n\r\n')
  const fits = (seed: number, max: number) => {
    const cut = pieces(whole, { seed, max })
    return cut.every(piece => piece.length > 0 && piece.length <= max) && Buffer.concat(cut).equals(whole)
  }
  const seeds = Array.from({ length: 200 }, (_, seed) => seed)
  t.same(
    seeds.filter(seed => !fits(seed, 1 + (seed % 20))),
    []
  )
})

t.test('every piece has exactly one byte when cut at bytes', async t => {
  t.same(pieces(Buffer.from('abc'), 'byte').map(String), ['a', 'b', 'c'])
})

t.test('offsets may be unordered, repeated or out of range', async t => {
  t.same(
    pieces(Buffer.from('abc'), [9, 2, 0, 2, 3]).map(piece => Buffer.from(piece).toString()),
    ['ab', 'c']
  )
})

t.test('an empty body has no pieces', async t => {
  for (const cut of ['none', 'byte', [1], { seed: 1 }] as const) t.same(pieces(Buffer.alloc(0), cut), [])
})

t.test('seeded numbers repeat and stay below one', async t => {
  const draw = (random: () => number) => Array.from({ length: 100 }, random)
  const values = draw(seeded(1))
  t.same(values, draw(seeded(1)))
  t.notSame(values, draw(seeded(2)))
  t.ok(values.every(value => value >= 0 && value < 1))
})

t.test('an interval of milliseconds drips', async t => {
  const upstream = await start(t, bytes('abc', { cut: 'byte', interval: 10 }))
  const began = performance.now()
  await get(upstream)
  // A timer of Node may fire up to one millisecond early.
  t.ok(performance.now() - began >= 18)
})

t.test('an interval that is a function holds each piece until the test lets it go', async t => {
  const gates = [gate(), gate()]
  const upstream = await start(t, raw('abc', { cut: 'byte', interval: index => gates[index - 1]!.promise }))
  const client = dial(upstream)
  await once(client.socket, 'data')
  await turn()
  t.equal(client.text(), 'a')
  gates[0]!.open()
  await once(client.socket, 'data')
  await turn()
  t.equal(client.text(), 'ab')
  gates[1]!.open()
  await client.over
  t.equal(client.text(), 'abc')
})

t.test('events may come from a source that waits', async t => {
  const { promise, open } = gate()
  const upstream = await start(
    t,
    sse(async function* () {
      yield 1
      await promise
      yield 2
    })
  )
  const client = dial(upstream)
  await once(client.socket, 'data')
  await turn()
  t.match(client.text(), 'data: 1')
  t.notMatch(client.text(), 'data: 2')
  open()
  await once(client.socket, 'data')
  t.match(client.text(), 'data: 2')
  client.socket.destroy()
})

t.test('a delay that is a gate holds the headers back', async t => {
  const { promise, open } = gate()
  const upstream = await start(t, json({}, { delay: promise }))
  const client = dial(upstream)
  await upstream.received()
  await turn()
  t.equal(client.text(), '')
  open()
  await once(client.socket, 'data')
  t.match(client.text(), 'HTTP/1.1 200 OK')
  client.socket.destroy()
})

t.test('a delay of milliseconds holds the headers back', async t => {
  const upstream = await start(t, json({}, { delay: 20 }))
  const began = performance.now()
  await get(upstream)
  t.ok(performance.now() - began >= 19)
})

t.test('a body delay lets the headers go first', async t => {
  const { promise, open } = gate()
  const upstream = await start(t, json({ a: 1 }, { bodyDelay: promise }))
  const client = dial(upstream)
  await once(client.socket, 'data')
  t.match(client.text(), /^HTTP\/1\.1 200 OK\r\n[^{]*\r\n\r\n$/)
  open()
  await once(client.socket, 'data')
  t.match(client.text(), /\r\n\r\n\{"a":1\}$/)
  client.socket.destroy()
})

t.test('a reset before the headers is ECONNRESET and nothing else', async t => {
  const upstream = await start(t, reset())
  const client = dial(upstream)
  t.equal(await client.over, 'ECONNRESET')
  t.equal(client.text(), '')
  t.equal((await upstream.requests[0]!.closed).how, 'ended')
})

t.test('a reset after the headers is ECONNRESET after the headers', async t => {
  const upstream = await start(t, reset('headers'))
  const client = dial(upstream)
  t.equal(await client.over, 'ECONNRESET')
  t.match(client.text(), /^HTTP\/1\.1 200 OK\r\n[\s\S]*\r\n\r\n$/)
})

t.test('a reset within a body comes after exactly the given bytes', async t => {
  const upstream = await start(t, reset(json({ a: 'long enough' }), 4))
  const client = dial(upstream)
  t.equal(await client.over, 'ECONNRESET')
  t.match(client.text(), /content-length: 19\r\n[\s\S]*\r\n\r\n\{"a"$/)
})

t.test('a reset within a stream comes after its events', async t => {
  const upstream = await start(t, reset(sse([1, 2], { framing: 'close', done: false })))
  const client = dial(upstream)
  t.equal(await client.over, 'ECONNRESET')
  t.match(client.text(), /\r\n\r\ndata: 1\n\ndata: 2\n\n$/)
})

t.test('a close before the headers is an orderly end without a byte', async t => {
  const upstream = await start(t, close())
  const client = dial(upstream)
  t.equal(await client.over, 'end')
  t.equal(client.text(), '')
})

t.test('a close within a body of known length leaves it truncated', async t => {
  const upstream = await start(t, close(json({ a: 'long enough' }), 4))
  const client = dial(upstream)
  t.equal(await client.over, 'end')
  t.match(client.text(), /content-length: 19\r\n[\s\S]*\r\n\r\n\{"a"$/)
})

t.test('a close within chunks leaves out the last chunk', async t => {
  const upstream = await start(t, close(sse([1]), 5))
  const client = dial(upstream)
  t.equal(await client.over, 'end')
  t.match(client.text(), /transfer-encoding: chunked\r\n\r\n5\r\ndata:\r\n$/i)
})

t.test('a close after the headers sends no body', async t => {
  const upstream = await start(t, close('headers'))
  const client = dial(upstream)
  t.equal(await client.over, 'end')
  t.match(client.text(), /\r\n\r\n$/)
})

t.test('silence from the start sends nothing and keeps the connection', async t => {
  const upstream = await start(t, silence())
  const client = dial(upstream)
  await upstream.received()
  await turn()
  t.equal(client.text(), '')
  t.same(upstream.open, { connections: 1, requests: 1 })
  client.socket.destroy()
  t.equal((await upstream.requests[0]!.closed).how, 'aborted')
})

t.test('silence after the headers sends just them', async t => {
  const upstream = await start(t, silence('headers'))
  const client = dial(upstream)
  await once(client.socket, 'data')
  await turn()
  t.match(client.text(), /^HTTP\/1\.1 200 OK\r\n[\s\S]*\r\n\r\n$/)
  t.same(upstream.open, { connections: 1, requests: 1 })
  client.socket.destroy()
})

t.test('silence within a stream keeps what was sent', async t => {
  const upstream = await start(t, silence(sse([1, 2], { framing: 'close' }), 'data: 1\n\n'.length))
  const client = dial(upstream)
  await once(client.socket, 'data')
  await turn()
  t.match(client.text(), /\r\n\r\ndata: 1\n\n$/)
  t.equal(upstream.open.requests, 1)
  client.socket.destroy()
})

t.test('heartbeats go on until the client leaves', async t => {
  const upstream = await start(t, heartbeats({ interval: 1, framing: 'close', comment: ':\n\n' }))
  const client = dial(upstream)
  while (!/(:\n\n){5}$/.test(client.text())) await once(client.socket, 'data')
  t.notMatch(client.text(), 'data:')
  client.socket.destroy()
  t.equal((await upstream.requests[0]!.closed).how, 'aborted')
})

t.test('a flood of 200 MB is made with flat memory', async t => {
  const upstream = await start(t, flood(200e6))
  const before = process.memoryUsage().rss
  const request = httpRequest(upstream.url).end()
  const [response] = (await once(request, 'response')) as [IncomingMessage]
  let size = 0
  for await (const part of response) size += part.length
  t.ok(size >= 200e6)
  t.ok(size < 201e6)
  t.ok(process.memoryUsage().rss - before < 100e6)
  t.equal(upstream.requests[0]!.sent, size)
})

t.test('a flood stops when the client does not read', async t => {
  const upstream = await start(t, flood())
  const request = httpRequest(upstream.url).end()
  const [response] = (await once(request, 'response')) as [IncomingMessage]
  const [received] = upstream.requests
  let sent = -1
  // The kernel takes some megabytes; once it takes no more, nothing changes from one round to the next.
  for (let still = 0; still < 50; still = received!.sent === sent ? still + 1 : 0) {
    sent = received!.sent
    await turn()
  }
  t.ok(sent < 50e6)
  response.destroy()
  t.equal((await received!.closed).how, 'aborted')
})

t.test('a flood holds whole events that the OpenAI client reads', async t => {
  const upstream = await start(t, flood(200_000))
  let count = 0
  for await (const chunk of await openai(upstream).chat.completions.create({ ...ask, stream: true })) {
    if (chunk.choices[0]?.delta.content === 'flood') count++
  }
  t.ok(count > 500)
})

t.test('a request is recorded as it came', async t => {
  const upstream = await start(t)
  const request = httpRequest(`${upstream.url}/a?b=c`, { method: 'PUT', headers: { 'X-Mixed': 'Case' } })
  request.end('{ "model":"m", "messages":[] }')
  const [response] = (await once(request, 'response')) as [IncomingMessage]
  response.resume()
  const received = await upstream.received()
  t.match(received, { index: 0, method: 'PUT', url: '/v1/a?b=c', connection: 1, headers: { 'x-mixed': 'Case' } })
  t.ok(received.rawHeaders.includes('X-Mixed'))
  t.equal(received.rawBody.toString(), '{ "model":"m", "messages":[] }')
  t.same(received.json, { model: 'm', messages: [] })
  t.equal(received.json, received.json)
  t.ok(received.at <= performance.now())
})

t.test('a body that is not JSON is recorded and fails only when it is read as such', async t => {
  const upstream = await start(t, json({}))
  const request = httpRequest(upstream.url, { method: 'POST' }).end('{')
  await once(request, 'response')
  const received = await upstream.received()
  t.equal(received.rawBody.toString(), '{')
  t.throws(() => received.json, SyntaxError)
})

t.test('received waits for the nth request', async t => {
  const upstream = await start(t)
  let there = false
  const second = upstream.received(2).then(request => {
    there = true
    return request
  })
  await get(upstream)
  t.notOk(there)
  await get(upstream)
  t.equal((await second).index, 1)
})

t.test('wantsUsage is true only for a request that asked for it', async t => {
  const upstream = await start(t)
  const client = openai(upstream)
  await client.chat.completions.create({ ...ask, stream: true, stream_options: { include_usage: true } })
  await client.chat.completions.create({ ...ask, stream: true })
  t.same(upstream.requests.map(wantsUsage), [true, false])
})

t.test('closed says ended, with its time, once an answer was sent', async t => {
  const upstream = await start(t, json({}))
  await get(upstream)
  const { how, at } = await upstream.requests[0]!.closed
  t.equal(how, 'ended')
  t.ok(at >= upstream.requests[0]!.at && at <= performance.now())
})

t.test('closed says aborted when the OpenAI client breaks out of a stream', async t => {
  const upstream = await start(t, silence(sse(chunks('a b'))))
  for await (const chunk of await openai(upstream).chat.completions.create({ ...ask, stream: true })) {
    if (chunk.choices[0]?.delta.content) break
  }
  t.equal((await upstream.requests[0]!.closed).how, 'aborted')
  await upstream.until(open => open.requests === 0)
})

t.test('closed says aborted when the client leaves before the headers', async t => {
  const upstream = await start(t, json({}, { delay: gate().promise }))
  const leaving = new AbortController()
  const call = openai(upstream).chat.completions.create(ask, { signal: leaving.signal })
  const received = await upstream.received()
  leaving.abort()
  await t.rejects(call, { message: 'Request was aborted.' })
  t.equal((await received.closed).how, 'aborted')
})

t.test('closed says aborted when the client resets', async t => {
  const upstream = await start(t, silence('headers'))
  const client = dial(upstream)
  await once(client.socket, 'data')
  client.socket.resetAndDestroy()
  t.equal((await upstream.requests[0]!.closed).how, 'aborted')
})

t.test('a client that leaves within its request is not recorded', async t => {
  const upstream = await start(t)
  const socket = connect(upstream.port, '127.0.0.1')
  socket.write('POST / HTTP/1.1\r\nhost: upstream\r\ncontent-length: 10\r\n\r\nhalf')
  await upstream.until(open => open.requests === 1)
  socket.destroy()
  await upstream.until(open => open.connections === 0 && open.requests === 0)
  t.same(upstream.requests, [])
})

t.test('a timer that a script waits for ends with its client', async t => {
  const upstream = await start(t, json({}, { delay: 60_000 }))
  const client = dial(upstream)
  await upstream.received()
  client.socket.destroy()
  t.equal((await upstream.requests[0]!.closed).how, 'aborted')
})

t.test('a source of events is returned when the client leaves', async t => {
  const returned = gate()
  const upstream = await start(
    t,
    sse(
      async function* () {
        try {
          for (;;) yield 1
        } finally {
          returned.open()
        }
      },
      { interval: () => turn() }
    )
  )
  const client = dial(upstream)
  await once(client.socket, 'data')
  client.socket.destroy()
  await returned.promise
  await upstream.until(open => open.requests === 0)
})

t.test('a kept connection is used again', async t => {
  const upstream = await start(t)
  const agent = new Agent({ keepAlive: true, maxSockets: 1 })
  t.teardown(() => agent.destroy())
  await get(upstream, { agent })
  await get(upstream, { agent })
  t.same(
    upstream.requests.map(request => request.connection),
    [1, 1]
  )
  t.same(upstream.open, { connections: 1, requests: 0 })
})

t.test('connection: close ends the connection after the answer', async t => {
  const upstream = await start(t, json({}, { headers: { connection: 'close' } }))
  const agent = new Agent({ keepAlive: true, maxSockets: 1 })
  t.teardown(() => agent.destroy())
  const { response } = await get(upstream, { agent })
  t.equal(response.headers.connection, 'close')
  await upstream.until(open => open.connections === 0)
  await get(upstream, { agent })
  t.equal(upstream.requests[1]!.connection, 2)
})

t.test('framing by close has neither a length nor chunks', async t => {
  const upstream = await start(t, json({ a: 1 }, { framing: 'close' }))
  const client = dial(upstream)
  t.equal(await client.over, 'end')
  t.notMatch(client.text(), /content-length|transfer-encoding/i)
  t.match(client.text(), /\r\n\r\n\{"a":1\}$/)
})

t.test('several scripts answer one request each and the last one stays', async t => {
  const upstream = await start(t, json(1), () => json(2))
  const texts = [await get(upstream), await get(upstream), await get(upstream)].map(({ text }) => text)
  t.same(texts, ['1', '2', '2'])
})

t.test('a new script replaces the old ones', async t => {
  const upstream = await start(t, json(1), json(2))
  await get(upstream)
  upstream.script(json(3))
  t.equal((await get(upstream)).text, '3')
})

t.test('a script sees the request and may be asynchronous', async t => {
  const upstream = await start(t, async request => json({ url: request.url, index: request.index }))
  t.equal((await get(upstream)).text, '{"url":"/v1/models","index":0}')
})

t.test('one reply serves many requests at the same time', async t => {
  const upstream = await start(t, sse(chunks('a b c'), { cut: 'byte' }))
  const texts = await Promise.all([get(upstream), get(upstream), get(upstream)])
  t.equal(new Set(texts.map(({ text }) => text)).size, 1)
  t.match(texts[0]!.text, /data: \[DONE\]\n\n$/)
})

t.test('requests of one connection that do not wait are answered in order', async t => {
  const upstream = await start(t, json(1, { delay: turn }), json(2, { headers: { connection: 'close' } }))
  const socket = connect(upstream.port, '127.0.0.1')
  let text = ''
  socket.setEncoding('utf8').on('data', part => {
    text += part
  })
  socket.write('GET / HTTP/1.1\r\nhost: upstream\r\n\r\n'.repeat(2))
  await once(socket, 'close')
  t.match(text, /\r\n\r\n1HTTP[\s\S]*\r\n\r\n2$/)
})

t.test('a script that throws answers 500, is kept, and makes close reject', async t => {
  const upstream = await startUpstream({
    script() {
      throw new Error('broken script')
    }
  })
  const { response, text } = await get(upstream)
  t.equal(response.statusCode, 500)
  t.match(text, 'broken script')
  t.equal(upstream.faults.length, 1)
  await t.rejects(upstream.close(), { message: 'broken script' })
})

t.test('drop ends the connections and goes on listening', async t => {
  const upstream = await start(t, silence(), json({}))
  const client = dial(upstream)
  await upstream.received()
  upstream.drop()
  await client.over
  t.equal((await upstream.requests[0]!.closed).how, 'ended')
  t.equal((await get(upstream)).response.statusCode, 200)
})

t.test('close ends everything at once and leaves nothing open', async t => {
  const upstream = await start(
    t,
    silence(),
    silence('headers'),
    heartbeats({ interval: 1 }),
    flood(),
    json({}, { delay: 60_000 })
  )
  const clients = [1, 2, 3, 4, 5].map(() => dial(upstream))
  clients[3]!.socket.pause()
  await upstream.received(5)
  const idle = connect(upstream.port, '127.0.0.1')
  const over5 = over(idle)
  await upstream.until(open => open.connections === 6)
  t.equal(upstream.open.requests, 5)
  await upstream.close()
  t.same(upstream.open, { connections: 0, requests: 0 })
  const how = await Promise.all(upstream.requests.map(request => request.closed))
  t.ok(how.every(({ how }) => how === 'ended'))
  clients[3]!.socket.resume()
  await Promise.all([over5, ...clients.map(client => client.over)])
})

t.test('nothing listens after close', async t => {
  const upstream = await start(t)
  await upstream.close()
  t.equal(await over(connect(upstream.port, '127.0.0.1')), 'ECONNREFUSED')
})

t.test('closing twice is harmless', async t => {
  const upstream = await start(t)
  await upstream.close()
  await upstream.close()
})

t.test('a port in use is an error', async t => {
  const upstream = await start(t)
  await t.rejects(startUpstream({ port: upstream.port }), { code: 'EADDRINUSE' })
})

t.test('a completion has the fields of the real one, and takes others', async t => {
  const body = completion({ content: null, finish_reason: 'content_filter', model: 'x', extra: 1 })
  t.match(body, { object: 'chat.completion', model: 'x', extra: 1, service_tier: 'default' })
  t.same(body.choices, [
    {
      index: 0,
      message: { role: 'assistant', content: null, refusal: null, annotations: [] },
      logprobs: null,
      finish_reason: 'content_filter'
    }
  ])
})

t.test('chunks open with the role and close with the finish', async t => {
  const all = chunks('Hello there, you')
  t.same(
    all.map(chunk => chunk.choices[0]?.delta),
    [
      { role: 'assistant', content: '', refusal: null },
      { content: 'Hello' },
      { content: ' there,' },
      { content: ' you' },
      {}
    ]
  )
  t.same(
    all.map(chunk => chunk.choices[0]?.finish_reason),
    [null, null, null, null, 'stop']
  )
  t.equal(new Set(all.map(chunk => chunk.id)).size, 1)
})

t.test('chunks keep every white space of a text', async t => {
  const text = '  a\n\n b  c \n'
  t.equal(
    chunks(text)
      .map(chunk => chunk.choices[0]?.delta['content'] ?? '')
      .join(''),
    text
  )
})

t.test('chunks take a text of nothing but white space', async t => {
  t.same(
    chunks(' \n').map(chunk => chunk.choices[0]?.delta['content']),
    ['', ' \n', undefined]
  )
})

t.test('chunks take given pieces, fields, usage and a missing finish', async t => {
  const usage = { prompt_tokens: 1, completion_tokens: 2, total_tokens: 3 }
  const all = chunks(['a', 'b'], { model: 'x', usage, finish_reason: null })
  t.equal(all.length, 4)
  t.ok(all.every(chunk => chunk.model === 'x'))
  t.same(
    all.map(chunk => chunk.usage),
    [null, null, null, usage]
  )
})
