import { getEventListeners } from 'node:events'
import { readFileSync } from 'node:fs'
import { createSecureServer } from 'node:http2'
import { type AddressInfo, createServer, connect as dialTcp, type Server, type Socket } from 'node:net'
import { mock } from 'node:test'
import tls from 'node:tls'
import { Worker } from 'node:worker_threads'
import t, { type Test } from 'tap'
import { vendorFault } from '../../providers/faults.ts'
import { type Call, createUpstream, type Reads, type Reply, type Upstream } from '../../providers/upstream.ts'
import type { GatewayError } from '../../schemas/errors.ts'
import type { Timeouts } from '../../schemas/gateway.ts'
import { build, hello, towards } from '../helper.ts'
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
  raw,
  redirect,
  reset,
  silence,
  sse,
  startUpstream,
  turn
} from '../upstream.ts'

const patient: Timeouts = { connect: 5_000, headers: 5_000, firstToken: 5_000, idle: 5_000, total: 60_000 }
const never = new AbortController().signal

type Own = Partial<Omit<Call, 'timeouts'>> & { timeouts?: Partial<Timeouts> }

function ask(upstream: Upstream, own: Own = {}): Promise<Reply> {
  return upstream.post({
    path: '/chat/completions',
    headers: ['content-type', 'application/json'],
    body: '{"model":"m","messages":[]}',
    signal: never,
    stream: true,
    ...own,
    timeouts: { ...patient, ...own.timeouts }
  })
}

async function pair(t: Test, connections = 8) {
  const server = await startUpstream()
  const upstream = createUpstream({ baseUrl: server.url, connections })
  t.teardown(async () => {
    await upstream.close()
    await server.close()
  })
  return { server, upstream }
}

function client(t: Test, baseUrl: string, connections = 8): Upstream {
  const upstream = createUpstream({ baseUrl, connections })
  t.teardown(() => upstream.close())
  return upstream
}

async function listen(t: Test, server: Server): Promise<number> {
  const sockets = new Set<Socket>()
  server.on('connection', (socket: Socket) => {
    sockets.add(socket)
    socket.on('error', () => {})
  })
  t.teardown(() => {
    for (const socket of sockets) socket.destroy()
    server.close()
  })
  await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
  return (server.address() as AddressInfo).port
}

async function rest(reads: Reads | null): Promise<string> {
  const all: Buffer[] = []
  for (let read = await reads!.next(); read !== null; read = await reads!.next()) all.push(read)
  return Buffer.concat(all).toString()
}

async function faultOf(promise: Promise<unknown>): Promise<GatewayError> {
  try {
    await promise
  } catch (error) {
    return error as GatewayError
  }
  throw new Error('Nothing was thrown.')
}

const timedOut = (what: string) => ({
  message: `The provider of this model did not answer in time: ${what}`,
  code: 'GATEWAY_UPSTREAM_TIMEOUT',
  statusCode: 504,
  wire: 'upstream_timeout'
})
const failed = (what: string) => ({
  message: `The provider of this model failed: ${what}`,
  code: 'GATEWAY_UPSTREAM_ERROR',
  statusCode: 502,
  wire: 'upstream_error'
})
const said = chunks('one two three')

t.test('a whole answer comes with its status, headers and bytes', async t => {
  const { server, upstream } = await pair(t)
  server.script(json(completion(), { headers: { 'x-own': 'yes' } }))
  const reply = await ask(upstream, { stream: false })
  t.equal(reply.status, 200)
  t.equal(reply.headers['x-own'], 'yes')
  t.equal(reply.body?.toString(), JSON.stringify(completion()))
  t.equal(reply.reads, null)
})

t.test('a stream is handed on before it has ended', async t => {
  const { server, upstream } = await pair(t)
  const more = gate()
  server.script(
    sse(async function* () {
      yield 'data: 1\n\n'
      await more.promise
      yield 'data: 2\n\n'
    })
  )
  const { reads } = await ask(upstream)
  t.equal((await reads!.next())?.toString(), 'data: 1\n\n')
  more.open()
  t.equal(await rest(reads), 'data: 2\n\ndata: [DONE]\n\n')
})

t.test('GET asks below the base URL', async t => {
  const { server, upstream } = await pair(t)
  const reply = await upstream.get('/models', ['x-own', 'yes'], never, patient)
  t.equal(reply.status, 200)
  t.equal(server.requests[0]?.url, '/v1/models')
  t.equal(server.requests[0]?.headers['x-own'], 'yes')
})

// Deadlines

t.test('connect: a listener that accepts nobody is given up', async t => {
  const source = `
    const { createServer } = require('node:net'), { parentPort } = require('node:worker_threads')
    const server = createServer().listen({ port: 0, host: '127.0.0.1', backlog: 1 }, () => {
      parentPort.postMessage(server.address().port)
      setImmediate(() => Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0))
    })`
  const worker = new Worker(source, { eval: true })
  const port = await new Promise<number>(resolve => worker.once('message', resolve))
  const fillers = Array.from({ length: 8 }, () => dialTcp(port, '127.0.0.1').on('error', () => {}))
  t.teardown(async () => {
    for (const filler of fillers) filler.destroy()
    await worker.terminate()
  })
  await Promise.race(fillers.map(filler => new Promise(resolve => filler.once('connect', resolve))))
  await turn()
  const upstream = client(t, `http://127.0.0.1:${port}/v1`)
  t.match(await faultOf(ask(upstream, { timeouts: { connect: 50 } })), timedOut('no connection within 50 ms.'))
})

t.test('connect: a listener that never finishes the handshake is given up', async t => {
  const port = await listen(t, createServer())
  const upstream = client(t, `https://127.0.0.1:${port}/v1`)
  t.match(await faultOf(ask(upstream, { timeouts: { connect: 50 } })), timedOut('no connection within 50 ms.'))
})

t.test('connect: it also covers the wait for a free connection, and the request is not sent later', async t => {
  const { server, upstream } = await pair(t, 1)
  const hold = gate()
  server.script(json(completion(), { delay: hold.promise }), json(completion({ id: 'third' })))
  const first = ask(upstream, { stream: false })
  await server.received()
  t.match(await faultOf(ask(upstream, { timeouts: { connect: 30 } })), timedOut('no connection within 30 ms.'))
  hold.open()
  await first
  t.match((await ask(upstream, { stream: false })).body?.toString(), /third/)
  t.equal(server.requests.length, 2)
})

t.test('headers: a provider that takes the request and says nothing is given up', async t => {
  const { server, upstream } = await pair(t)
  server.script(silence())
  t.match(await faultOf(ask(upstream, { timeouts: { headers: 50 } })), timedOut('no answer within 50 ms.'))
  t.equal((await server.requests[0]!.closed).how, 'aborted')
})

t.test('headers: a whole answer that stops half way is given up', async t => {
  const { server, upstream } = await pair(t)
  server.script(silence(json(completion()), 20))
  const call = ask(upstream, { stream: false, timeouts: { headers: 50 } })
  t.match(await faultOf(call), timedOut('no answer within 50 ms.'))
})

t.test('headers: a whole answer that keeps coming is not given up', async t => {
  const { server, upstream } = await pair(t)
  server.script(json(completion(), { cut: [50, 100, 150, 200], interval: 100 }))
  const reply = await ask(upstream, { stream: false, timeouts: { headers: 390 } })
  t.equal(reply.body?.toString(), JSON.stringify(completion()))
})

t.test('firstToken: a stream that says nothing is given up', async t => {
  const { server, upstream } = await pair(t)
  server.script(silence('headers'))
  const { reads } = await ask(upstream, { timeouts: { firstToken: 50 } })
  t.match(await faultOf(reads!.next()), timedOut('no first token within 50 ms.'))
  t.equal((await server.requests[0]!.closed).how, 'aborted')
})

t.test('firstToken: comments do not put it off', async t => {
  const { server, upstream } = await pair(t)
  server.script(heartbeats({ interval: 10 }))
  const { reads } = await ask(upstream, { timeouts: { firstToken: 100 } })
  t.match(await faultOf(rest(reads)), timedOut('no first token within 100 ms.'))
})

t.test('idle: a stream that stops after its first token is given up', async t => {
  const { server, upstream } = await pair(t)
  server.script(silence(sse(said)))
  const { reads } = await ask(upstream, { timeouts: { idle: 50 } })
  t.ok(await reads!.next())
  reads!.progress()
  t.match(await faultOf(rest(reads)), timedOut('nothing more within 50 ms.'))
})

t.test('idle: only what counts as progress puts it off', async t => {
  const { server, upstream } = await pair(t)
  server.script(sse(() => forEver('data: 1\n\n'), { interval: 30 }))
  const { reads } = await ask(upstream, { timeouts: { idle: 250 } })
  for (let read = 0; read < 12; read++) {
    await reads!.next()
    reads!.progress()
  }
  t.match(await faultOf(rest(reads)), timedOut('nothing more within 250 ms.'))
})

function* forEver(event: string): Generator<string> {
  for (;;) yield event
}

t.test('through the provider comments put off neither the first token nor the next one', async t => {
  const ping = ': OPENROUTER PROCESSING\n\n'
  for (const [events, what] of [
    [[], 'no first token within 80 ms.'],
    [[said[0]], 'no first token within 80 ms.'],
    [[said[1]], 'nothing more within 80 ms.']
  ] as const) {
    const server = await startUpstream()
    t.teardown(() => server.close())
    server.script(
      sse(
        function* () {
          yield* events
          yield* forEver(ping)
        },
        { interval: 10 }
      )
    )
    const timeouts = { firstToken: 80, idle: 80 }
    const models = { test: { targets: [{ provider: 'up', model: 'm' }], timeouts } }
    const app = await build(t, towards(server, { models }))
    await app.ready()
    const streaming = async () => {
      const answer = await app.gateway.complete({ ...hello, stream: true }, app.gateway.caller())
      if (answer.stream) for await (const _ of answer.frames);
    }
    t.match(await faultOf(streaming()), timedOut(what))
  }
})

t.test('a reader that does not come for more is not taken for a silent provider', async t => {
  const { server, upstream } = await pair(t)
  server.script(sse(said))
  mock.timers.enable({ apis: ['setTimeout'] })
  t.teardown(() => mock.timers.reset())
  const { reads } = await ask(upstream)
  await reads!.next()
  reads!.progress()
  mock.timers.tick(patient.idle * 3)
  mock.timers.reset()
  t.match(await rest(reads), /\[DONE\]/)
})

// Connections

t.test('one connection serves one call after the other', async t => {
  const { server, upstream } = await pair(t)
  server.script(json(completion()), sse(said))
  for (let call = 0; call < 10; call++) {
    const { reads } = await ask(upstream)
    if (reads !== null) await rest(reads)
    // undici frees a connection only after it has told us of the end.
    await turn()
  }
  t.same(
    server.requests.map(request => request.connection),
    Array(10).fill(1)
  )
})

t.test('a refusal leaves the connection usable', async t => {
  const { server, upstream } = await pair(t)
  server.script(failure(400), failure(500), json(completion()))
  for (const status of [400, 500, 200]) {
    t.equal((await ask(upstream)).status, status)
    await turn()
  }
  t.same(
    server.requests.map(request => request.connection),
    [1, 1, 1]
  )
})

t.test('there are never more connections than allowed', async t => {
  const { server, upstream } = await pair(t, 2)
  server.script(json(completion(), { delay: () => turn() }))
  await Promise.all(Array.from({ length: 10 }, () => ask(upstream, { stream: false })))
  t.ok(server.requests.every(request => request.connection <= 2))
})

t.test('a reader that pauses stops the provider, and gets everything in the end', async t => {
  const { server, upstream } = await pair(t)
  const size = 64 * 1024 * 1024
  server.script(flood(size))
  const { reads } = await ask(upstream)
  const request = await server.received()
  await reads!.next()
  for (let still = 0, last = -1; still < 50; last = request.sent) {
    await turn()
    still = request.sent === last ? still + 1 : 0
  }
  t.ok(request.sent < size / 4, `${request.sent} bytes sent`)
  let got = 0
  for (let read = await reads!.next(); read !== null; read = await reads!.next()) got += read.length
  t.ok(got > size - 1024 * 1024)
  t.equal((await request.closed).how, 'ended')
})

t.test('a stream that was read to its terminator keeps its connection although the end comes later', async t => {
  const { server, upstream } = await pair(t)
  const end = gate()
  server.script(
    sse(
      async function* () {
        yield 'data: [DONE]\n\n'
        await end.promise
      },
      { done: false }
    ),
    json(completion())
  )
  const { reads } = await ask(upstream)
  await reads!.next()
  reads!.close(true)
  end.open()
  t.equal((await server.requests[0]!.closed).how, 'ended')
  await turn()
  await ask(upstream, { stream: false })
  t.equal(server.requests[1]?.connection, 1)
})

t.test('a provider that keeps the connection open after its terminator loses it after a second', async t => {
  const { server, upstream } = await pair(t)
  server.script(silence(sse(said)))
  const { reads } = await ask(upstream)
  for (let text = ''; !text.includes('[DONE]'); ) text += await reads!.next()
  mock.timers.enable({ apis: ['setTimeout'] })
  t.teardown(() => mock.timers.reset())
  reads!.close(true)
  mock.timers.tick(999)
  await turn()
  t.equal(server.open.requests, 1)
  mock.timers.tick(1)
  mock.timers.reset()
  t.equal((await server.requests[0]!.closed).how, 'aborted')
})

t.test('a provider that goes on talking after its terminator is not listened to', async t => {
  const { server, upstream } = await pair(t)
  server.script(flood(8 * 1024 * 1024))
  const { reads } = await ask(upstream)
  await reads!.next()
  reads!.close(true)
  t.equal((await server.requests[0]!.closed).how, 'ended')
  t.equal(await reads!.next(), null)
})

// Aborts

t.test('a call that was aborted before it began is not sent', async t => {
  const { server, upstream } = await pair(t)
  const reason = new Error('gone')
  t.equal(await faultOf(ask(upstream, { signal: AbortSignal.abort(reason) })), reason)
  t.equal(server.requests.length, 0)
})

t.test('a call that is aborted before it has a connection is not sent', async t => {
  const { server, upstream } = await pair(t)
  const controller = new AbortController()
  const reason = new Error('gone')
  const call = ask(upstream, { signal: controller.signal })
  controller.abort(reason)
  t.equal(await faultOf(call), reason)
  await ask(upstream, { stream: false })
  t.equal(server.requests.length, 1)
})

for (const [when, script] of [
  ['before the headers', silence()],
  ['after the headers', silence('headers')],
  ['in the middle of a stream', silence(sse(said), 300)],
  ['in the middle of a flood that nobody reads', flood()],
  ['in the middle of a whole answer', silence(json(completion()), 20)]
] as const) {
  t.test(`an abort ${when} closes the request at the provider within 100 ms`, async t => {
    const { server, upstream } = await pair(t)
    server.script(script)
    const controller = new AbortController()
    const reason = new Error('gone')
    const call = ask(upstream, { signal: controller.signal })
    const request = await server.received()
    const streams = when.includes('stream') || when.includes('flood') || when === 'after the headers'
    if (streams) await call
    if (when.includes('stream') || when.includes('flood')) await (await call).reads!.next()
    for (let round = 0; round < 5; round++) await turn()
    const aborted = performance.now()
    controller.abort(reason)
    const end = streams ? (await call).reads! : null
    t.equal(await faultOf(end === null ? call : rest(end)), reason)
    const closed = await request.closed
    t.equal(closed.how, 'aborted')
    t.ok(closed.at - aborted < 100, `${closed.at - aborted} ms`)
  })
}

t.test('a reader that gives up closes the request at the provider within 100 ms', async t => {
  const { server, upstream } = await pair(t)
  server.script(silence(sse(said)))
  const { reads } = await ask(upstream)
  await reads!.next()
  const left = performance.now()
  reads!.close(false)
  const closed = await server.requests[0]!.closed
  t.equal(closed.how, 'aborted')
  t.ok(closed.at - left < 100)
  t.equal(await reads!.next(), null)
})

// Broken connections

t.test('a reset before the headers is a fault of the provider', async t => {
  const { server, upstream } = await pair(t)
  server.script(reset())
  t.match(await faultOf(ask(upstream)), failed('the connection broke before it answered.'))
})

t.test('a connection that is closed before the headers is a fault of the provider', async t => {
  const { server, upstream } = await pair(t)
  server.script(close())
  t.match(await faultOf(ask(upstream)), failed('the connection broke before it answered.'))
})

t.test('a reset after the headers breaks the stream', async t => {
  const { server, upstream } = await pair(t)
  server.script(reset('headers'))
  const streaming = async () => rest((await ask(upstream)).reads)
  t.match(await faultOf(streaming()), failed('the connection broke.'))
})

t.test('a reset in the middle breaks the stream after what arrived before it', async t => {
  const { server, upstream } = await pair(t)
  server.script(reset(sse(said), 200))
  const { reads } = await ask(upstream)
  let got = ''
  const reading = async () => {
    for (let read = await reads!.next(); read !== null; read = await reads!.next()) got += read
  }
  t.match(await faultOf(reading()), failed('the connection broke.'))
  t.equal(got.length, 200)
  t.match(await faultOf(reads!.next()), failed('the connection broke.'))
})

t.test('a truncated stream of chunks is broken, not ended', async t => {
  const { server, upstream } = await pair(t)
  server.script(close(sse(said), 200))
  const streaming = async () => rest((await ask(upstream)).reads)
  t.match(await faultOf(streaming()), failed('the connection broke.'))
})

t.test('an answer shorter than its content-length is broken', async t => {
  const { server, upstream } = await pair(t)
  server.script(close(json(completion()), 30))
  t.match(await faultOf(ask(upstream, { stream: false })), failed('the connection broke.'))
})

t.test('a truncated answer in chunks is broken', async t => {
  const { server, upstream } = await pair(t)
  server.script(close(json(completion(), { framing: 'chunked' }), 30))
  t.match(await faultOf(ask(upstream, { stream: false })), failed('the connection broke.'))
})

t.test('an answer that ends with its connection is whole', async t => {
  const { server, upstream } = await pair(t)
  server.script(json(completion(), { framing: 'close' }))
  t.equal((await ask(upstream, { stream: false })).body?.toString(), JSON.stringify(completion()))
})

t.test('what is no HTTP is a fault of the provider', async t => {
  const { server, upstream } = await pair(t)
  server.script(raw('SSH-2.0-OpenSSH_9.9\r\n'))
  t.match(await faultOf(ask(upstream)), failed('the connection broke before it answered.'))
})

t.test('headers without end are a fault of the provider', async t => {
  const { server, upstream } = await pair(t)
  server.script(raw(`HTTP/1.1 200 OK\r\n${`x-long: ${'x'.repeat(1_000)}\r\n`.repeat(100)}\r\n`))
  t.match(await faultOf(ask(upstream)), failed('its headers are too large.'))
})

t.test('a refused connection says so', async t => {
  const server = await startUpstream()
  await server.close()
  t.match(await faultOf(ask(client(t, server.url))), failed('it refused the connection.'))
})

t.test('an unknown host says so', async t => {
  const fault = await faultOf(ask(client(t, 'http://nobody.invalid/v1')))
  t.equal(fault.statusCode, 502)
  t.match(fault.message, /its host name (is unknown|could not be looked up)\.$/)
})

t.test('a closed pool sends nothing', async t => {
  const { server, upstream } = await pair(t)
  await upstream.close()
  t.equal((await faultOf(ask(upstream))).statusCode, 502)
  t.equal(server.requests.length, 0)
})

t.test('a redirect is an answer like any other and is not followed', async t => {
  const { server, upstream } = await pair(t)
  server.script(redirect(`${server.url}/elsewhere`))
  t.equal((await ask(upstream)).status, 307)
  t.equal(server.requests.length, 1)
})

t.test('early hints are passed over', async t => {
  const { server, upstream } = await pair(t)
  server.script(raw('HTTP/1.1 103 Early Hints\r\nlink: <x>\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}'))
  const reply = await ask(upstream)
  t.equal(reply.status, 200)
  t.equal(reply.body?.toString(), '{}')
})

t.test('a stream is known by its media type in any case, and only with status 200', async t => {
  const { server, upstream } = await pair(t)
  const type = (value: string, status = 200) => bytes('data: 1\n\n', { status, headers: { 'content-type': value } })
  server.script(type('Text/Event-Stream; charset=utf-8'), type('application/json'), type('text/event-stream', 400))
  t.ok((await ask(upstream)).reads)
  t.equal((await ask(upstream)).reads, null)
  t.equal((await ask(upstream)).reads, null)
})

// TLS

const pem = (name: string) => readFileSync(new URL(`../fixtures/tls/${name}.pem`, import.meta.url), 'utf8')

function secure(t: Test, allowHTTP1: boolean) {
  const server = createSecureServer({ key: pem('key'), cert: pem('cert'), allowHTTP1 })
  const ended = Promise.withResolvers<number>()
  server.on('request', (request, response) => {
    response.on('close', () => ended.resolve(performance.now()))
    response.writeHead(200, { 'content-type': 'text/event-stream' })
    response.write('data: 1\n\n')
    if (request.url === '/v1/chat/completions') response.end('data: [DONE]\n\n')
  })
  server.on('sessionError', () => {})
  server.on('tlsClientError', () => {})
  return { listening: listen(t, server as unknown as Server), ended: ended.promise }
}

t.test('a certificate that nobody vouches for is refused', async t => {
  const port = await secure(t, true).listening
  const fault = await faultOf(ask(client(t, `https://127.0.0.1:${port}/v1`)))
  t.match(fault, failed('its certificate is not trusted.'))
})

t.test('over TLS a stream arrives and an abort ends it at the provider', async t => {
  const trusted = tls.getCACertificates('default')
  tls.setDefaultCACertificates([...trusted, pem('cert')])
  t.teardown(() => tls.setDefaultCACertificates(trusted))
  const server = secure(t, true)
  const upstream = client(t, `https://127.0.0.1:${await server.listening}/v1`)
  t.equal(await rest((await ask(upstream)).reads), 'data: 1\n\ndata: [DONE]\n\n')
  const controller = new AbortController()
  const { reads } = await ask(upstream, { path: '/silent', signal: controller.signal })
  t.equal((await reads!.next())?.toString(), 'data: 1\n\n')
  controller.abort(new Error('gone'))
  t.match(await faultOf(reads!.next()), { message: 'gone' })
})

// Nothing stays behind

t.test('every way to end leaves neither a listener nor a timer behind', async t => {
  const { server, upstream } = await pair(t)
  const timers = () => process.getActiveResourcesInfo().filter(name => name === 'Timeout').length
  const before = timers()
  const read = async (call: Promise<Reply>) => void (await rest((await call).reads))
  const ways: Record<string, [Parameters<typeof server.script>[0], (own: Own, abort: () => void) => Promise<unknown>]> =
    {
      'a whole answer': [json(completion()), own => ask(upstream, { ...own, stream: false })],
      'a refusal': [failure(429), own => ask(upstream, own)],
      'a stream': [sse(said), own => read(ask(upstream, own))],
      'a terminator': [
        sse(said),
        async own => {
          const { reads } = await ask(upstream, own)
          for (let text = ''; !text.includes('[DONE]'); ) text += await reads!.next()
          reads!.close(true)
          await server.until(open => open.requests === 0)
          await turn()
        }
      ],
      'a reader that leaves': [silence(sse(said)), async own => (await ask(upstream, own)).reads!.close(false)],
      'a reset': [reset(), own => ask(upstream, own)],
      'a reset in a stream': [reset(sse(said), 100), own => read(ask(upstream, own))],
      'a deadline for headers': [silence(), own => ask(upstream, { ...own, timeouts: { headers: 20 } })],
      'a deadline in a stream': [
        silence('headers'),
        own => read(ask(upstream, { ...own, timeouts: { firstToken: 20 } }))
      ],
      'an abort before headers': [
        silence(),
        async (own, abort) => {
          const call = ask(upstream, own)
          await server.received()
          abort()
          await call
        }
      ],
      'an abort in a stream': [
        silence(sse(said)),
        async (own, abort) => {
          const { reads } = await ask(upstream, own)
          await reads!.next()
          abort()
          await rest(reads)
        }
      ]
    }
  for (const [name, [script, end]] of Object.entries(ways)) {
    const controller = new AbortController()
    server.script(script)
    await end({ signal: controller.signal }, () => controller.abort(new Error('gone'))).catch(() => {})
    await server.until(open => open.requests === 0)
    await turn()
    t.equal(getEventListeners(controller.signal, 'abort').length, 0, `${name}: listeners`)
    t.equal(timers(), before, `${name}: timers`)
  }
})

// What becomes of a provider's refusal: the table of design.md section 6

const mine = (status: number) => ({
  status,
  retry: status === 408 || status === 409 ? null : 'false',
  error: {
    message: `The upstream answers ${status}.`,
    type: 'invalid_request_error',
    param: 'messages',
    code: 'their_code'
  }
})
const ours = (status: number, type: string, code: string, message: string) => ({
  status,
  retry: null,
  error: { message, type, param: null, code }
})
const refusal = (status: number) =>
  `The provider of this model failed: it refused this gateway with status ${status}. The operator has to look at it.`
const overloaded = 'The provider of this model is overloaded. Try again later.'

const table: Record<number, { status: number; retry: string | null; error: object; after?: string }> = {
  400: mine(400),
  401: { ...ours(502, 'server_error', 'upstream_error', refusal(401)), retry: 'false' },
  402: { ...ours(502, 'server_error', 'upstream_error', refusal(402)), retry: 'false' },
  403: { ...ours(502, 'server_error', 'upstream_error', refusal(403)), retry: 'false' },
  404: { ...ours(502, 'server_error', 'upstream_error', refusal(404)), retry: 'false' },
  408: { ...mine(408), after: '7' },
  409: { ...mine(409), after: '7' },
  413: { ...mine(413), after: '7' },
  418: ours(502, 'server_error', 'upstream_error', 'The provider of this model failed: it answered with status 418.'),
  422: mine(422),
  429: {
    ...ours(
      429,
      'rate_limit_error',
      'upstream_rate_limited',
      'The provider of this model is limiting requests. Try again later.'
    ),
    after: '7'
  },
  500: ours(502, 'server_error', 'upstream_error', 'The provider of this model failed: The upstream answers 500.'),
  502: ours(502, 'server_error', 'upstream_error', 'The provider of this model failed: The upstream answers 502.'),
  503: { ...ours(503, 'server_error', 'upstream_overloaded', overloaded), after: '7' },
  504: ours(
    504,
    'server_error',
    'upstream_timeout',
    'The provider of this model did not answer in time: it gave up by itself.'
  ),
  529: { ...ours(503, 'server_error', 'upstream_overloaded', overloaded), after: '7' }
}

async function front(t: Test) {
  const server = await startUpstream()
  t.teardown(() => server.close())
  const app = await build(t, towards(server))
  const url = await app.listen({ host: '127.0.0.1', port: 0 })
  const post = (own: object = {}) =>
    fetch(`${url}/v1/chat/completions`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ ...hello, ...own })
    })
  return { server, app, post }
}

for (const stream of [false, true]) {
  for (const [status, { status: expected, retry, error, after }] of Object.entries(table)) {
    t.test(`a provider's ${status} to a ${stream ? 'stream' : 'whole'} request becomes ${expected}`, async t => {
      const { server, post } = await front(t)
      const their = { param: 'messages', code: 'their_code' }
      server.script(failure(Number(status), their, { headers: { 'retry-after': '7' } }))
      const response = await post({ stream })
      t.equal(response.status, expected)
      t.same(await response.json(), { error })
      t.equal(response.headers.get('x-should-retry'), retry)
      if (after) t.equal(response.headers.get('retry-after'), after)
      t.equal(server.requests.length, 1)
    })
  }
}

t.test('a provider that says whether to repeat is believed', async t => {
  const { server, post } = await front(t)
  server.script(
    failure(409, {}, { headers: { 'x-should-retry': 'false' } }),
    failure(400, {}, { headers: { 'x-should-retry': 'true' } })
  )
  t.equal((await post()).headers.get('x-should-retry'), 'false')
  t.equal((await post()).headers.get('x-should-retry'), 'true')
})

t.test('retry-after-ms and dates are handed on as they are', async t => {
  const { server, post } = await front(t)
  const date = 'Wed, 21 Oct 2026 07:28:00 GMT'
  server.script(failure(429, {}, { headers: { 'retry-after': date, 'retry-after-ms': '1500' } }))
  const { headers } = await post()
  t.equal(headers.get('retry-after'), date)
  t.equal(headers.get('retry-after-ms'), '1500')
})

t.test('a redirect is a fault of the provider', async t => {
  const { server, post } = await front(t)
  server.script(redirect(`${server.url}/elsewhere`))
  const response = await post()
  t.equal(response.status, 502)
  t.match(await response.json(), {
    error: { message: 'The provider of this model failed: it answered with status 307.' }
  })
  t.equal(server.requests.length, 1)
})

t.test('a refusal without a readable body still has a sentence', async t => {
  const { server, post } = await front(t)
  for (const body of [
    '',
    '<html>Bad Request</html>',
    '[]',
    'null',
    '{"error":{}}',
    '{"error":[1]}',
    '{"detail":"no"}'
  ]) {
    server.script(bytes(body, { status: 400 }))
    const response = await post()
    t.equal(response.status, 400)
    t.match(await response.json(), {
      error: { message: 'The provider refused the request with status 400.', code: null }
    })
  }
})

t.test('a very long message of a provider is cut', async t => {
  const fault = vendorFault(400, { message: 'x'.repeat(1_000_000) }, {}, text => text)
  t.equal(fault.message.length, 2_000)
})

// Keys

const key = 'sk-upstream-secret'
const quotes = [
  key,
  `Bearer ${key}.`,
  'sk-upst...cret',
  'sk-upst…',
  'sk-up*********cret',
  `"${key}"`,
  `https://x/?key=${key}&a=1`
]

for (const status of [400, 401, 403, 409, 422, 429, 500, 503]) {
  t.test(`a ${status} that quotes our key does not hand it on`, async t => {
    const { server, post } = await front(t)
    for (const quote of quotes) {
      const error = { message: `Incorrect API key provided: ${quote} (really)`, code: quote, param: quote }
      server.script(failure(status, error), failure(status, error))
      const text = await (await post()).text()
      t.notMatch(text, /sk-up|upstream-secret|cret/, quote)
    }
  })
}

t.test('an error inside a 200 and one in the middle of a stream do not hand our key on', async t => {
  const { server, post } = await front(t)
  for (const quote of quotes) {
    const error = { message: `Incorrect API key provided: ${quote}`, code: 'invalid_api_key' }
    server.script(json({ error }), sse([said[1], { error }], { done: false }), sse([{ error: error.message }]))
    for (const stream of [false, true, true]) t.notMatch(await (await post({ stream })).text(), /sk-up|cret/, quote)
  }
})

t.test('the words around a key stay', async t => {
  const { server, post } = await front(t)
  server.script(failure(400, { message: `The key ${key} may not use this model.` }))
  t.match(await (await post()).json(), { error: { message: 'The key [redacted] may not use this model.' } })
})
