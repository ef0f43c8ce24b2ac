import { once } from 'node:events'
import { createServer } from 'node:http'
import { connect, type Socket } from 'node:net'
import type { Duplex } from 'node:stream'
import Fastify, { type FastifyInstance } from 'fastify'
import fp from 'fastify-plugin'
import t, { type Test } from 'tap'
import WebSocket, { WebSocketServer } from 'ws'
import modelGateway, { type ModelGatewayOptions } from '../../../app.ts'
import { admin, holds, refusedSocket, socketTo, start, token } from './kit.ts'

// The gateway’s WebSocket in a host that has a life of its own.

const options: ModelGatewayOptions = {
  store: false,
  providers: { echo: { type: 'echo' } },
  plugins: { auth: { adminToken: token }, rateLimit: false }
}

async function listen(t: Test, app: FastifyInstance): Promise<string> {
  t.teardown(() => app.close())
  return app.listen({ host: '127.0.0.1', port: 0 })
}

/** A WebSocket of the host: what it answers to a word. */
async function ask(url: string, path: string, word: string): Promise<string> {
  const socket = new WebSocket(url.replace('http', 'ws') + path)
  await once(socket, 'open')
  socket.send(word)
  const [answer] = await once(socket, 'message')
  socket.terminate()
  return String(answer)
}

/** The bytes that a server answers with until it closes, or until they fit. */
async function raw(url: string, request: string, until = /never/): Promise<string> {
  const socket = connect(Number(new URL(url).port), '127.0.0.1')
  socket.write(request)
  let text = ''
  for await (const part of socket) {
    text += part
    if (until.test(text)) break
  }
  socket.destroy()
  return text
}

const post = (path: string, body: string, more: string) =>
  `POST ${path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: ${body.length}\r\n${more}\r\n${body}`

/** What @fastify/websocket 11 does: it sends every upgrade through the router, and puts a handler around each that it sees. */
const likeFastifyWebsocket = fp(async app => {
  const key = Symbol('ws')
  const headKey = Symbol('ws-head')
  const peers = new WebSocketServer({ noServer: true })
  app.server.on('upgrade', (request, socket, head) => {
    const { ServerResponse } = httpModule
    Reflect.set(request, key, socket)
    Reflect.set(request, headKey, head)
    const response = new ServerResponse(request)
    response.assignSocket(socket as Socket)
    app.routing(request, response)
  })
  app.addHook('onRoute', route => {
    const { handler } = route
    const isOurs = route.config !== undefined && Reflect.get(route.config, 'websocket') === true
    route.handler = function (request, reply) {
      const socket = Reflect.get(request.raw, key)
      if (socket === undefined) return handler.call(this, request, reply)
      reply.hijack()
      peers.handleUpgrade(request.raw, socket, Reflect.get(request.raw, headKey), peer => {
        if (isOurs) peer.on('message', word => peer.send(`host: ${word}`))
        else peer.close()
      })
    }
  })
  app.addHook('preClose', async () => peers.close())
})
const httpModule = await import('node:http')

function ownSocket(app: FastifyInstance): void {
  app.get('/own', { config: { websocket: true } as object }, async () => 'plain')
}

t.test('a host with its own listener to upgrades', async t => {
  for (const order of ['before', 'after'] as const) {
    t.test(`registered ${order} the gateway`, async t => {
      const app = Fastify()
      const peers = new WebSocketServer({ noServer: true })
      const strangers: Duplex[] = []
      const own = () =>
        app.server.on('upgrade', (request, socket, head) => {
          if (request.url === '/strange') strangers.push(socket)
          if (request.url !== '/own') return
          peers.handleUpgrade(request, socket, head, peer => peer.on('message', word => peer.send(`host: ${word}`)))
        })
      if (order === 'before') own()
      await app.register(modelGateway, { ...options, prefix: '/llm' })
      if (order === 'after') own()
      const url = await listen(t, app)
      t.equal(await ask(url, '/own', 'hello'), 'host: hello')
      await socketTo(t, `${url}/llm`)
      t.equal((await refusedSocket(url, '', {}, '/llm/events')).status, 401)
      t.equal(await ask(url, '/own', 'again'), 'host: again')
      // Whatever else is upgraded is the host's business, as it was.
      const stranger = connect(Number(new URL(url).port), '127.0.0.1')
      stranger.write('GET /strange HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n')
      await holds(() => strangers.length === 1)
      t.equal(stranger.bytesRead, 0)
      t.equal(strangers[0]?.destroyed, false)
      strangers[0]?.destroy()
      stranger.destroy()
    })
  }
})

t.test('a host with something like @fastify/websocket', async t => {
  for (const order of ['before', 'after'] as const) {
    t.test(`registered ${order} the gateway`, async t => {
      const app = Fastify()
      if (order === 'before') await app.register(likeFastifyWebsocket)
      await app.register(modelGateway, { ...options, prefix: '/llm' })
      if (order === 'after') await app.register(likeFastifyWebsocket)
      await app.register(async scope => ownSocket(scope))
      const url = await listen(t, app)
      t.equal(await ask(url, '/own', 'hello'), 'host: hello')
      await socketTo(t, `${url}/llm`)
      const twice = await Promise.all([socketTo(t, `${url}/llm`), ask(url, '/own', 'two'), socketTo(t, `${url}/llm`)])
      t.equal(twice[1], 'host: two')
      t.equal(app.gateway.eventStream?.subscribers, 3)
      t.equal((await refusedSocket(url, '', {}, '/llm/events')).status, 401)
      t.equal(await (await fetch(`${url}/own`)).text(), 'plain')
    })
  }
})

t.test('two gateways in one host', async t => {
  const app = Fastify()
  await app.register(modelGateway, { ...options, prefix: '/one', name: 'one' })
  await app.register(modelGateway, { ...options, prefix: '/two', name: 'two' })
  const url = await listen(t, app)
  t.equal(app.server.listenerCount('upgrade'), 1)
  const [one, two] = [await socketTo(t, `${url}/one`), await socketTo(t, `${url}/two`)]
  const gateways = app as unknown as Record<'one' | 'two', FastifyInstance['gateway']>
  gateways.one.events.emit('tenant.created', { tenant: 'of-one', actor: 'test' })
  gateways.two.events.emit('tenant.created', { tenant: 'of-two', actor: 'test' })
  await Promise.all([one.count(1), two.count(1)])
  t.match(one.events, [{ tenant: 'of-one' }])
  t.match(two.events, [{ tenant: 'of-two' }])
  await app.close()
  t.equal((await one.closed).code, 1001)
  t.equal((await two.closed).code, 1001)
  t.equal(app.server.listenerCount('upgrade'), 0, 'nothing is left on the server')
})

t.test('requests with an upgrade to something else are answered as without it', async t => {
  const { url } = await start(t)
  const body = JSON.stringify({ model: 'test', messages: [{ role: 'user', content: 'Hello' }] })
  for (const [upgrade, connection] of [
    // Java's HttpClient asks so before its first request.
    ['h2c', 'Upgrade, HTTP2-Settings'],
    ['websocket', 'upgrade']
  ] as const) {
    const more = `connection: ${connection}\r\nupgrade: ${upgrade}\r\nhttp2-settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA\r\n`
    const answer = await raw(url, post('/v1/chat/completions', body, more), /"finish_reason"/)
    t.match(answer, /^HTTP\/1\.1 200 OK/, upgrade)
    t.match(await raw(url, `GET /health HTTP/1.1\r\nhost: localhost\r\n${more}\r\n`, /"ok"/), /^HTTP\/1\.1 200 OK/)
  }
  t.match(
    await raw(
      url,
      `GET /events HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer ${token}\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n`,
      /ready/
    ),
    /content-type: text\/event-stream/,
    'and so are the events'
  )
})

t.test('where Node does not ask before it upgrades', async t => {
  const app = Fastify({
    serverFactory(handler) {
      const server = createServer(handler)
      Reflect.deleteProperty(server, 'shouldUpgradeCallback')
      // As older Nodes do.
      Object.defineProperty(server, 'shouldUpgradeCallback', {
        value: () => server.listenerCount('upgrade') > 0,
        writable: false
      })
      return server
    }
  })
  await app.register(modelGateway, { ...options, prefix: '/llm' })
  app.get('/plain', async () => 'plain')
  app.post('/plain', async () => 'plain')
  const url = await listen(t, app)
  await socketTo(t, `${url}/llm`)
  const h2c = 'connection: upgrade\r\nupgrade: h2c\r\n'
  t.match(
    await raw(url, `GET /plain HTTP/1.1\r\nhost: localhost\r\n${h2c}\r\n`),
    /^HTTP\/1\.1 200 OK[\s\S]*connection: close[\s\S]*plain$/i
  )
  t.match(
    await raw(url, post('/plain', '{}', h2c)),
    /^HTTP\/1\.1 400 Bad Request[\s\S]*"Send this request without the header upgrade\."/
  )
})

t.test('a client that goes while its hooks run leaves nothing', async t => {
  const app = Fastify()
  let arrived: (() => void) | null = null
  let goOn: (() => void) | null = null
  app.addHook('onRequest', async () => {
    arrived?.()
    await new Promise<void>(resolve => (goOn = resolve))
  })
  await app.register(modelGateway, options)
  const url = await listen(t, app)
  for (const leave of [(socket: Socket) => socket.destroy(), (socket: Socket) => socket.resetAndDestroy()]) {
    const here = new Promise<void>(resolve => (arrived = resolve))
    const socket = connect(Number(new URL(url).port), '127.0.0.1')
    socket.write(
      `GET /events HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: websocket\r\nauthorization: ${admin.authorization}\r\n` +
        'sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n'
    )
    await here
    leave(socket)
    await once(socket, 'close')
    await new Promise(resolve => setTimeout(resolve, 20))
    goOn!()
    await new Promise(resolve => setTimeout(resolve, 20))
    t.equal(app.gateway.eventStream?.subscribers, 0)
  }
})

t.test('subscribers that leave in every way leave nothing', async t => {
  const { app, url } = await start(t)
  const handshake =
    `GET /events HTTP/1.1\r\nhost: localhost\r\nauthorization: ${admin.authorization}\r\nconnection: upgrade\r\nupgrade: websocket\r\n` +
    'sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n'
  const plain = `GET /events HTTP/1.1\r\nhost: localhost\r\nauthorization: ${admin.authorization}\r\n\r\n`
  for (const request of [handshake, plain]) {
    for (const leave of ['destroy', 'resetAndDestroy', 'end'] as const) {
      const socket = connect(Number(new URL(url).port), '127.0.0.1')
      socket.on('error', () => {})
      socket.write(request)
      await once(socket, 'data')
      await holds(() => app.gateway.eventStream?.subscribers === 1)
      socket[leave]()
      await holds(() => app.gateway.eventStream?.subscribers === 0)
    }
  }
  const broken = connect(Number(new URL(url).port), '127.0.0.1')
  broken.write(handshake)
  await once(broken, 'data')
  broken.write('this is no frame')
  await once(broken, 'close')
  await holds(() => app.gateway.eventStream?.subscribers === 0)
})
