import { connect } from 'node:net'
import Fastify from 'fastify'
import t from 'tap'
import modelGateway, { type ModelGatewayOptions } from '../app.ts'
import { build, hello, stack, towards } from './helper.ts'
import { chunks, completion, flood, gate, json, sse, startUpstream } from './upstream.ts'

// One test for each bug that a review or a user found, named after it.

const chunk = (choice: object, rest: object = {}) => ({
  ...chunks('x')[0],
  choices: [{ index: 0, ...choice }],
  ...rest
})

t.test('a finish_reason that stands before kilobytes of arguments in the last event is found', async t => {
  const { upstream, client } = await stack(t)
  const call = { index: 0, id: 'c', type: 'function', function: { name: 'f', arguments: 'a'.repeat(6_000) } }
  upstream.script(sse([chunk({ finish_reason: 'tool_calls', delta: { role: 'assistant', tool_calls: [call] } })]))
  const stream = client.chat.completions.stream({ ...hello, stream: true })
  t.equal((await stream.finalMessage()).tool_calls?.[0]?.type, 'function')
})

t.test('a large error event is an error, and a key in it never reaches the client', async t => {
  const { upstream, url } = await stack(t)
  const error = { message: 'Incorrect key sk-upstream-secret', code: 500, metadata: { raw: 'x'.repeat(6_000) } }
  upstream.script(sse([chunk({ delta: { content: 'Hi' }, finish_reason: null }), { error }]))
  const answer = await fetch(`${url}/v1/chat/completions`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ ...hello, stream: true })
  })
  const text = await answer.text()
  t.match(text, /"code":"upstream_error"/)
  t.notMatch(text, 'sk-upstream-secret')
  t.notMatch(text, '[DONE]')
})

t.test("the SDK's time limit ends with the headers of a stream, not with the stream", async t => {
  const { upstream, app } = await stack(t)
  const { promise, open } = gate()
  const events = chunks(['one', 'two'])
  upstream.script(sse(events, { interval: index => (index === 2 ? promise : 0) }))
  const caller = { ...app.gateway.caller(), deadline: 150 }
  const answer = await app.gateway.complete({ ...hello, stream: true }, caller)
  if (!answer.stream) return t.fail('no stream')
  setTimeout(open, 250)
  let text = ''
  for await (const frames of answer.frames) for (const one of frames) text += one.choices[0]?.delta.content ?? ''
  t.equal(text, 'onetwo')
})

t.test('a stream that a layer drops is ended upstream', async t => {
  const upstream = await startUpstream()
  t.teardown(() => upstream.close())
  upstream.script(flood())
  const app = await build(t, towards(upstream))
  app.gateway.intercept('shape', async (inference, next) => {
    await next(inference)
    throw new Error('no use for it')
  })
  await app.ready()
  await t.rejects(app.gateway.complete({ ...hello, stream: true }, app.gateway.caller()), { message: 'no use for it' })
  t.equal((await (await upstream.received()).closed).how, 'aborted')
})

t.test('a configured JWT closes anonymous access', async t => {
  const jwt = { issuer: 'https://id.example', audience: 'gateway', jwksUri: 'https://id.example/keys' }
  const options: ModelGatewayOptions = { providers: { echo: { type: 'echo' } }, plugins: { auth: { jwt } } }
  const app = await build(t, options)
  const answer = await app.inject({
    method: 'POST',
    url: '/v1/chat/completions',
    payload: { ...hello, model: 'echo/echo' }
  })
  t.equal(answer.statusCode, 401)
})

t.test('a slow reader of a host with large write buffers gets the whole stream', async t => {
  const upstream = await startUpstream()
  t.teardown(() => upstream.close())
  upstream.script(flood(24_000_000))
  const host = Fastify({ http: { highWaterMark: 1_048_576 } })
  t.teardown(() => host.close())
  await host.register(modelGateway, towards(upstream, { store: false }))
  const { port } = new URL(await host.listen({ port: 0, host: '127.0.0.1' }))
  const body = JSON.stringify({ ...hello, stream: true })
  const socket = connect(Number(port), '127.0.0.1')
  t.teardown(() => socket.destroy())
  socket.write(
    `POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: ${body.length}\r\n\r\n${body}`
  )
  const { sent } = await upstream.received()
  t.ok(sent < 24_000_000)
  // A reader that takes its time: everything between it and the upstream fills up.
  await new Promise(resolve => setTimeout(resolve, 300))
  let size = 0
  for await (const bytes of socket) size += bytes.length
  t.ok(size > 24_000_000, `${size} bytes`)
})

t.test('a warning with characters that no header can hold is answered all the same', async t => {
  const { upstream, app, client } = await stack(t)
  upstream.script(json(completion()))
  await client.chat.completions.create(hello)
  const other = await build(t, { providers: { echo: { type: 'echo' } } })
  other.gateway.intercept('observe', (inference, next) => {
    inference.facts.warnings.push('price → unknown')
    return next(inference)
  })
  const answer = await other.inject({
    method: 'POST',
    url: '/v1/chat/completions',
    payload: { ...hello, model: 'echo/echo' }
  })
  t.equal(answer.statusCode, 200)
  t.equal(answer.headers['x-gateway-warnings'], 'price ? unknown')
  t.equal(app.gateway.running, 0)
})

t.test('two different Authorization headers are refused', async t => {
  const { url, upstream } = await stack(t)
  const { port } = new URL(url)
  const body = JSON.stringify(hello)
  const socket = connect(Number(port), '127.0.0.1')
  socket.write(
    `POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\nauthorization: Bearer one\r\nauthorization: Bearer two\r\ncontent-type: application/json\r\ncontent-length: ${body.length}\r\n\r\n${body}`
  )
  let text = ''
  for await (const bytes of socket) text += bytes
  t.match(text, /^HTTP\/1\.1 401 /)
  t.equal(upstream.requests.length, 0)
})

t.test('garbage on a connection is not answered into the middle of a stream', async t => {
  const { upstream, url } = await stack(t)
  const { promise, open } = gate()
  upstream.script(sse(chunks(['one', 'two']), { interval: index => (index === 2 ? promise : 0) }))
  const { port } = new URL(url)
  const body = JSON.stringify({ ...hello, stream: true })
  const socket = connect(Number(port), '127.0.0.1')
  socket.on('error', () => {})
  socket.write(
    `POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: ${body.length}\r\n\r\n${body}`
  )
  let text = ''
  for await (const bytes of socket) {
    const first = text === ''
    text += bytes
    if (first) socket.write('\x00\x01 this is no request\r\n\r\n')
  }
  open()
  t.equal(text.split('HTTP/1.1 ').length, 2, 'one status line')
})

t.test('a 200 in the old error form of vLLM is an error', async t => {
  const { upstream, client } = await stack(t)
  upstream.script(json({ object: 'error', message: 'bad', code: 400 }))
  await t.rejects(client.chat.completions.create(hello), { message: '400 bad' })
})

t.test('a longer limit of another route counts once a layer has changed the model', async t => {
  const upstream = await startUpstream()
  t.teardown(() => upstream.close())
  const { promise, open } = gate()
  upstream.script({ ...json(completion()), delay: promise })
  const target = { provider: 'up', model: 'm' }
  const app = await build(t, {
    ...towards(upstream),
    models: { test: { targets: [target] }, quick: { targets: [target], timeouts: { total: 100 } } }
  })
  app.gateway.intercept('observe', (inference, next) => {
    inference.request = { ...inference.request, model: 'quick' }
    return next(inference)
  })
  await app.ready()
  await t.rejects(app.gateway.complete(hello, app.gateway.caller()), { message: /longer than 100 ms/ })
  open()
})
