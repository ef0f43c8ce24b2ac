import { once } from 'node:events'
import { type AddressInfo, createServer, type Socket } from 'node:net'
import { Redis } from 'ioredis'
import t, { type Test } from 'tap'
import { createWriter, type Timers } from '../../../plugins/events/writer.ts'
import { createEventBus, type GatewayEvent } from '../../../schemas/events.ts'
import type { Log } from '../../../schemas/gateway.ts'
import { startRedis, type TestRedis } from '../../services/index.ts'
import { closedPort, holds, redisClient } from './kit.ts'

/** Time that a test moves: what is due is done. */
function clock(): Timers & { pass(milliseconds: number): void; readonly next: number } {
  let now = 0
  let due: Array<{ at: number; work: () => void }> = []
  return {
    set(work, milliseconds) {
      const one = { at: now + milliseconds, work }
      due.push(one)
      return () => {
        due = due.filter(other => other !== one)
      }
    },
    pass(milliseconds) {
      now += milliseconds
      const ready = due.filter(({ at }) => at <= now)
      due = due.filter(({ at }) => at > now)
      for (const { work } of ready) work()
    },
    get next() {
      return Math.min(...due.map(({ at }) => at - now))
    }
  }
}

async function writing(t: Test, url: string, own: { mostEvents?: number; mostLength?: number; timers?: Timers } = {}) {
  const redis = new Redis(url, {
    lazyConnect: true,
    enableOfflineQueue: false,
    autoResendUnfulfilledCommands: false,
    maxRetriesPerRequest: 0,
    protocol: 2,
    retryStrategy: () => 20
  }).on('error', () => {})
  const lines: string[] = []
  const note = (details: object, message: string) => void lines.push(`${message} ${JSON.stringify(details)}`)
  const log: Log = { error: note, warn: note, info: note, debug: note }
  const bus = createEventBus(error => t.fail(String(error)))
  const told: GatewayEvent[] = []
  bus.on(event => told.push(event))
  const options = { redis, stream: 'agent.events', guard: 'gw:e:test', maxLength: 100_000, bus, log }
  const writer = createWriter({ mostEvents: 10_000, mostLength: 1e8, ...options, ...own })
  t.teardown(() => writer.close())
  return { writer, redis, lines, told }
}

async function ready(redis: Redis): Promise<void> {
  await redis.connect().catch(() => {})
  await holds(() => redis.status === 'ready')
}

t.test('what is written to Redis', async t => {
  const server = await startRedis(t)
  if (server === null) return
  const client = redisClient(t, server)
  t.beforeEach(() => client.flushall())
  const entries = async () => (await client.xrange('agent.events', '-', '+')).map(([, fields]) => fields)

  t.test('is there within 100 ms, in the form of the contract', async t => {
    const timers = clock()
    const { writer, redis } = await writing(t, server.url, { timers })
    await ready(redis)
    writer.add('a.b', '{"x":1}')
    timers.pass(40)
    writer.add('a.c', '{"x":2}')
    t.equal(writer.waiting, 2)
    t.ok(timers.next <= 10, 'the first one has waited for 40 ms, and not for the second')
    timers.pass(10)
    await holds(async () => (await client.xlen('agent.events')) > 0)
    t.strictSame(await entries(), [
      ['event_type', 'a.b', 'data', '{"x":1}'],
      ['event_type', 'a.c', 'data', '{"x":2}']
    ])
    await holds(() => writer.waiting === 0)
  })

  t.test('is in order, many at a time, and the stream is bounded', async t => {
    const { writer, redis } = await writing(t, server.url)
    await ready(redis)
    for (let count = 0; count < 3_000; count++) writer.add('a.b', `{"count":${count}}`)
    await holds(() => writer.waiting === 0)
    const counts = (await entries()).map(fields => JSON.parse(fields[3]!).count)
    t.strictSame(
      counts,
      Array.from({ length: 3_000 }, (_, count) => count)
    )
    t.equal(writer.dropped, 0)

    const small = createWriter({
      ...{ redis, stream: 'small', guard: 'gw:e:small', maxLength: 200, mostEvents: 10_000, mostLength: 1e8 },
      bus: createEventBus(() => {}),
      log: { error() {}, warn() {}, info() {}, debug() {} }
    })
    for (let count = 0; count < 3_000; count++) small.add('a.b', `{"count":${count}}`)
    await holds(() => small.waiting === 0)
    const length = await client.xlen('small')
    t.ok(length >= 200 && length < 400, `${length}`)
  })

  t.test('is written at the end', async t => {
    const { writer, redis } = await writing(t, server.url)
    await ready(redis)
    writer.add('a.b', '{}')
    await writer.close()
    t.equal(await client.xlen('agent.events'), 1)
    t.equal(writer.dropped, 0)
  })

  t.test('is not taken for written because a process before had the same name', async t => {
    for (const count of [1, 2]) {
      const { writer, redis } = await writing(t, server.url)
      await ready(redis)
      writer.add('a.b', '{}')
      await holds(() => writer.waiting === 0)
      t.equal(await client.xlen('agent.events'), count)
    }
  })

  t.test('is there once, whenever the answer got lost', async t => {
    const { writer, redis, lines } = await writing(t, server.url)
    await ready(redis)
    let written = 0
    for (let round = 0; round < 20; round++) {
      for (let count = 0; count < 50; count++) writer.add('a.b', `{"count":${written++}}`)
      await new Promise(resolve => setImmediate(resolve))
      // Somewhere between the question and the answer.
      if (round % 2 === 0) {
        await holds(
          () => writer.waiting < 50 || redis.status !== 'ready' || Reflect.get(redis, 'commandQueue').length > 0
        )
        redis.disconnect(true)
      }
      await holds(() => writer.waiting === 0)
    }
    const counts = (await entries()).map(fields => JSON.parse(fields[3]!).count)
    t.strictSame(
      counts,
      Array.from({ length: written }, (_, count) => count)
    )
    t.ok(lines.length <= 20)
  })
})

t.test('while Redis is away', async t => {
  await t.test('so much waits, the rest is counted, and it is said once', async t => {
    const timers = clock()
    const { writer, lines } = await writing(t, `redis://127.0.0.1:${await closedPort()}`, { mostEvents: 100, timers })
    for (let count = 0; count < 250; count++) writer.add('a.b', '{}')
    t.equal(writer.waiting, 100)
    t.equal(writer.dropped, 150)
    for (let round = 0; round < 5; round++) {
      timers.pass(500)
      await new Promise(resolve => setTimeout(resolve, 5))
    }
    t.equal(lines.length, 1)
    t.match(lines[0], /events cannot be written to Redis/)
    await writer.close()
    t.equal(writer.dropped, 250)
    t.equal(lines.length, 2)
  })

  await t.test('large ones fill the buffer sooner', async t => {
    const url = `redis://127.0.0.1:${await closedPort()}`
    const { writer } = await writing(t, url, { mostLength: 1_000 })
    for (let count = 0; count < 10; count++) writer.add('abc', 'x'.repeat(395))
    t.equal(writer.waiting, 2)
    t.equal(writer.dropped, 8)
  })

  await t.test('it goes on when Redis is back, and says what is lost', async t => {
    const server = await startRedis(t)
    if (server === null) return
    await outage(t, server)
  })

  await t.test('one that is there and answers nothing is given up, and nothing is written twice', async t => {
    const server = await startRedis(t)
    if (server === null) return
    const timers = clock()
    const { writer, redis, lines } = await writing(t, server.url, { timers })
    await ready(redis)
    server.pause()
    writer.add('a.b', '{"count":0}')
    timers.pass(50)
    await new Promise(resolve => setTimeout(resolve, 20))
    writer.add('a.b', '{"count":1}')
    timers.pass(5_000)
    await holds(() => lines.length === 1)
    // What was sent lies in its socket, and is done.
    server.resume()
    await holds(() => {
      timers.pass(500)
      return writer.waiting === 0
    })
    const client = redisClient(t, server)
    const found = await client.xrange('agent.events', '-', '+')
    t.strictSame(
      found.map(([, fields]) => fields[3]),
      ['{"count":0}', '{"count":1}']
    )
  })
})

async function outage(t: Test, server: TestRedis): Promise<void> {
  const { writer, redis, lines, told } = await writing(t, server.url, { mostEvents: 10 })
  await ready(redis)
  writer.add('a.b', '{"count":0}')
  await holds(() => writer.waiting === 0)
  await server.stop()
  await holds(() => redis.status !== 'ready')
  for (let count = 1; count <= 15; count++) writer.add('a.b', `{"count":${count}}`)
  t.equal(writer.dropped, 5)
  await holds(() => lines.length === 1)
  await server.start()
  await holds(() => writer.waiting === 0)
  const client = redisClient(t, server)
  const found = await client.xrange('agent.events', '-', '+')
  t.strictSame(
    found.map(([, fields]) => JSON.parse(fields[3]!).count),
    [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
  )
  t.match(told, [{ type: 'gateway.events.dropped', data: { dropped: 5 } }])
  t.equal(lines.length, 2)
  t.match(lines[1], /again.*"dropped":5/)
}

t.test('a write that failed during the end began again after it, on a connection that nobody closed', async t => {
  const server = createServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  const sockets: Socket[] = []
  server.on('connection', socket => sockets.push(socket))
  const timers = clock()
  const { port } = server.address() as AddressInfo
  const { writer, lines } = await writing(t, `redis://127.0.0.1:${port}`, { timers })
  writer.add('a.b', '{}')
  timers.pass(50)
  await holds(() => sockets.length === 1)
  const closing = writer.close()
  for (const socket of sockets) socket.destroy()
  server.close()
  await closing
  t.equal(timers.next, Number.POSITIVE_INFINITY, 'nothing is due any more')
  t.match(lines.at(-1), /could not be written to Redis before the end {"stream":"agent.events","dropped":1}/)
})
