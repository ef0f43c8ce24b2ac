import { getEventListeners, once } from 'node:events'
import { connect, type Socket } from 'node:net'
import { mock } from 'node:test'
import { setImmediate as immediate } from 'node:timers/promises'
import t, { type Test } from 'tap'
import type { ModelGatewayOptions } from '../app.ts'
import type { Inference, Outcome } from '../schemas/gateway.ts'
import { build, hello, towards } from './helper.ts'
import {
  chunks,
  completion,
  flood,
  gate,
  heartbeats,
  json,
  type Received,
  type Script,
  silence,
  sse,
  startUpstream,
  turn
} from './upstream.ts'

const path = '/v1/chat/completions'

/** Ways of a client to leave. */
const ways: Record<string, (socket: Socket) => void> = {
  'closes its connection': socket => void socket.destroy(),
  'says that it has nothing more to send': socket => void socket.end(),
  'resets its connection': socket => void socket.resetAndDestroy()
}

/** A gateway that notes every call and how it settled. */
async function watched(t: Test, script: Script, options: ModelGatewayOptions = {}) {
  const upstream = await startUpstream({ script })
  t.teardown(() => upstream.close())
  const app = await build(t, towards(upstream, options))
  const calls: Inference[] = []
  const outcomes: Outcome[] = []
  app.gateway.intercept('seal', (inference, next) => {
    calls.push(inference)
    inference.onSettled(outcome => void outcomes.push(outcome))
    return next(inference)
  })
  const url = await app.listen({ host: '127.0.0.1', port: 0 })
  const dial = (text: string) => {
    const socket = connect(Number(new URL(url).port), '127.0.0.1')
    socket.on('error', () => {})
    socket.write(text)
    return socket
  }
  const ask = (body: object) => {
    const text = JSON.stringify(body)
    return dial(`${head(Buffer.byteLength(text))}${text}`)
  }
  return { upstream, app, calls, outcomes, dial, ask, url }
}

function head(length: number): string {
  return `POST ${path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: ${length}\r\n\r\n`
}

/** Lets the client go and holds everything to the promise: closed within 100 ms, settled once, nothing left. */
async function leaves(
  t: Test,
  { upstream, app, calls, outcomes }: Awaited<ReturnType<typeof watched>>,
  request: Received,
  go: () => void
) {
  const left = performance.now()
  const stalls = stalledUntil(request.closed)
  go()
  const { how, at } = await request.closed
  t.equal(how, 'aborted')
  const took = at - left - (await stalls)
  t.ok(took < 100, `closed after ${Math.round(took)} ms`)
  await upstream.until(open => open.requests === 0 && open.connections === 0)
  for (let round = 0; round < 20 && app.gateway.running > 0; round++) await turn()
  t.equal(app.gateway.running, 0)
  t.same(
    outcomes.map(outcome => outcome.status),
    ['cancelled']
  )
  t.equal(calls.length, 1)
  t.equal(calls[0]!.signal.aborted, true)
  t.equal(getEventListeners(calls[0]!.signal, 'abort').length, 0)
  t.equal(await connections(app.server), 0)
}

/** Milliseconds in which this process did not run at all: on a busy machine they are nobody's fault. */
async function stalledUntil(end: Promise<unknown>): Promise<number> {
  let over = false
  end.then(() => (over = true))
  let stalled = 0
  for (let before = performance.now(); !over; ) {
    await immediate()
    const now = performance.now()
    if (now - before > 10) stalled += now - before
    before = now
  }
  return stalled
}

function connections(server: { getConnections(done: (error: Error | null, count: number) => void): unknown }) {
  return new Promise<number>((resolve, reject) => {
    const look = () => server.getConnections((error, count) => (error ? reject(error) : done(count)))
    let rounds = 0
    const done = (count: number) => {
      if (count === 0 || ++rounds > 50) resolve(count)
      else turn().then(look)
    }
    look()
  })
}

async function until(socket: Socket, text: string): Promise<string> {
  let got = ''
  while (!got.includes(text)) got += (await once(socket, 'data'))[0]
  return got
}

for (const [way, leave] of Object.entries(ways)) {
  t.test(`a client that ${way}`, async t => {
    for (const stream of [false, true]) {
      await t.test(`while the upstream has not answered at all (stream: ${stream})`, async t => {
        const gateway = await watched(t, silence())
        const socket = gateway.ask({ ...hello, stream })
        const request = await gateway.upstream.received()
        await leaves(t, gateway, request, () => leave(socket))
      })
    }

    await t.test('while the upstream sends headers and then nothing', async t => {
      const gateway = await watched(t, silence('headers'))
      const socket = gateway.ask({ ...hello, stream: true })
      const request = await gateway.upstream.received()
      await turn()
      await leaves(t, gateway, request, () => leave(socket))
    })

    await t.test('while the upstream sends comments and no first token', async t => {
      const gateway = await watched(t, heartbeats())
      const socket = gateway.ask({ ...hello, stream: true })
      const request = await gateway.upstream.received()
      await leaves(t, gateway, request, () => leave(socket))
    })

    await t.test('while a whole answer is half here', async t => {
      const gateway = await watched(t, silence(json(completion()), 100))
      const socket = gateway.ask(hello)
      const request = await gateway.upstream.received()
      while (request.sent < 100) await turn()
      await leaves(t, gateway, request, () => leave(socket))
    })

    await t.test('in the middle of a stream', async t => {
      const gateway = await watched(t, silence(sse(chunks('one two three')), 900))
      const socket = gateway.ask({ ...hello, stream: true })
      await until(socket, 'one')
      await leaves(t, gateway, gateway.upstream.requests[0]!, () => leave(socket))
    })

    await t.test('as soon as the first byte of the headers is here', async t => {
      const gateway = await watched(t, silence(sse(chunks('one two three')), 900))
      const socket = gateway.ask({ ...hello, stream: true })
      await once(socket, 'readable')
      await leaves(t, gateway, gateway.upstream.requests[0]!, () => leave(socket))
    })
  })
}

t.test('a client that leaves between heartbeats', async t => {
  const gateway = await watched(t, silence('headers'), { server: { sse: { headersAfter: '5s', heartbeat: '15s' } } })
  mock.timers.enable({ apis: ['setTimeout', 'setInterval'] })
  t.teardown(() => mock.timers.reset())
  const socket = gateway.ask({ ...hello, stream: true })
  const request = await gateway.upstream.received()
  await turn()
  mock.timers.tick(5_000)
  await until(socket, ': heartbeat')
  await leaves(t, gateway, request, () => socket.destroy())
  // A heartbeat for nobody would throw or write to a closed connection.
  mock.timers.tick(60_000)
})

t.test('a client that does not read leaves while its stream is held back', async t => {
  const gateway = await watched(t, flood())
  const socket = gateway.ask({ ...hello, stream: true })
  socket.pause()
  const request = await gateway.upstream.received()
  let still = 0
  for (let before = -1; still < 100; before = request.sent) {
    await turn()
    still = request.sent === before && before > 0 ? still + 1 : 0
  }
  await leaves(t, gateway, request, () => socket.destroy())
})

t.test('a client that leaves in the middle of a flood', async t => {
  const gateway = await watched(t, flood())
  const socket = gateway.ask({ ...hello, stream: true })
  let got = 0
  for await (const piece of socket as AsyncIterable<Buffer>) {
    got += piece.length
    if (got > 1_000_000) break
  }
  await leaves(t, gateway, gateway.upstream.requests[0]!, () => socket.destroy())
})

t.test('a client that leaves while a layer still thinks never reaches the upstream', async t => {
  const upstream = await startUpstream()
  t.teardown(() => upstream.close())
  const app = await build(t, towards(upstream))
  const door = gate()
  const entered = gate()
  const outcomes: string[] = []
  app.gateway.intercept('admit', async (inference, next) => {
    inference.onSettled(({ status }) => void outcomes.push(status))
    entered.open()
    await door.promise
    return next(inference)
  })
  const url = await app.listen({ host: '127.0.0.1', port: 0 })
  const socket = connect(Number(new URL(url).port), '127.0.0.1')
  const body = JSON.stringify(hello)
  socket.write(`${head(body.length)}${body}`)
  await entered.promise
  socket.destroy()
  t.equal(await connections(app.server), 0)
  t.equal(app.gateway.running, 0)
  door.open()
  for (let round = 0; round < 10; round++) await turn()
  t.same(outcomes, ['cancelled'])
  t.equal(upstream.requests.length, 0)
})

t.test('a client that leaves before its request is whole makes no call', async t => {
  const { upstream, app, calls, dial } = await watched(t, json(completion()))
  for (const text of ['POST /v1/ch', head(50), `${head(50)}{"model":"te`]) {
    const socket = dial(text)
    await once(app.server, 'connection')
    await turn()
    socket.destroy()
  }
  t.equal(await connections(app.server), 0)
  t.equal(calls.length, 0)
  t.equal(app.gateway.running, 0)
  t.equal(upstream.requests.length, 0)
})

t.test('a settled listener that takes its time is awaited, and still runs once', async t => {
  const upstream = await startUpstream({ script: silence() })
  t.teardown(() => upstream.close())
  const app = await build(t, towards(upstream))
  const door = gate()
  let runs = 0
  app.gateway.intercept('seal', (inference, next) => {
    inference.onSettled(() => {
      runs++
      return door.promise
    })
    return next(inference)
  })
  const url = await app.listen({ host: '127.0.0.1', port: 0 })
  const socket = connect(Number(new URL(url).port), '127.0.0.1')
  const body = JSON.stringify(hello)
  socket.write(`${head(body.length)}${body}`)
  const request = await upstream.received()
  socket.destroy()
  await request.closed
  t.equal(runs, 1)
  t.equal(app.gateway.running, 1)
  door.open()
  await turn()
  t.equal(app.gateway.running, 0)
  t.equal(runs, 1)
})

t.test('a hundred departures leave nothing: no socket, no listener, no warning', async t => {
  const gateway = await watched(t, silence(sse(chunks('one two three')), 900))
  const warnings: Error[] = []
  const warn = (warning: Error) => void warnings.push(warning)
  process.on('warning', warn)
  t.teardown(() => process.off('warning', warn))
  for (let round = 0; round < 10; round++) {
    await Promise.all(
      Array.from({ length: 10 }, async () => {
        const socket = gateway.ask({ ...hello, stream: true })
        await until(socket, 'one')
        socket.destroy()
      })
    )
  }
  await gateway.upstream.until(open => open.requests === 0 && open.connections === 0)
  t.equal(await connections(gateway.app.server), 0)
  for (let round = 0; round < 20 && gateway.app.gateway.running > 0; round++) await turn()
  t.equal(gateway.app.gateway.running, 0)
  t.equal(gateway.calls.length, 100)
  t.same(new Set(gateway.outcomes.map(outcome => outcome.status)), new Set(['cancelled']))
  t.equal(gateway.outcomes.length, 100)
  t.same(warnings, [])
})

t.test('after a departure the next client is served as ever, and its connection is kept', async t => {
  const gateway = await watched(t, silence())
  const socket = gateway.ask(hello)
  await leaves(t, gateway, await gateway.upstream.received(), () => socket.destroy())
  gateway.upstream.script(json(completion({ content: 'next' })))
  for (let round = 0; round < 3; round++) {
    const next = gateway.ask(hello)
    await until(next, 'next')
    next.destroy()
  }
  t.same(
    gateway.outcomes.map(outcome => outcome.status),
    ['cancelled', 'completed', 'completed', 'completed']
  )
  t.equal(gateway.upstream.open.connections, 1)
  t.equal(gateway.upstream.open.requests, 0)
})

t.test('a client that reads everything and then leaves was served', async t => {
  const gateway = await watched(t, sse(chunks('one two three')))
  const socket = gateway.ask({ ...hello, stream: true })
  await until(socket, '[DONE]')
  socket.destroy()
  t.equal(await connections(gateway.app.server), 0)
  t.same(
    gateway.outcomes.map(outcome => outcome.status),
    ['completed']
  )
  t.equal(gateway.app.gateway.running, 0)
})
