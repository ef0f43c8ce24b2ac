import { randomBytes } from 'node:crypto'
import type { FastifyInstance } from 'fastify'
import fp from 'fastify-plugin'
import { Redis } from 'ioredis'
import { tellOfCalls } from './calls.ts'
import { createHub } from './hub.ts'
import { dataOf, type Item } from './item.ts'
import { revokeBy } from './rights.ts'
import { createRing } from './ring.ts'
import { eventRoutes } from './routes.ts'
import type { Source } from './source.ts'
import { createStream } from './stream.ts'
import { createTickets } from './tickets.ts'
import { createWriter, type Writer } from './writer.ts'

export interface EventsOptions {
  /** Redis that events are written to, and read from by `GET /events`. Absent: they stay in this process. */
  url?: string
  /** The key of the stream; false: nothing is written to Redis. Default `agent.events`. */
  stream?: string | false
  /** About how many entries the stream keeps. Default 10,000. */
  maxLength?: number
  /** Without Redis: how many events are kept for subscribers that come back. Default 1,000. */
  kept?: number
  /** Bytes that may wait for a subscriber before it is let go. Default 1 MiB. */
  buffer?: number
  /** The most subscribers at a time. Default 2,000. */
  subscribers?: number
  /** Events that wait for Redis at most. Default 10,000. */
  waiting?: number
  /** Types of others that `?type=` may name, or their beginnings (`agent.*`). Default none. */
  types?: readonly string[]
  /** Milliseconds since 1970. Given by tests. */
  now?: () => number
}

/** Characters that wait for Redis at most. */
const mostWaiting = 16 * 1_048_576
/** Milliseconds for which events are kept when nobody subscribes any more. */
const linger = 300_000
/** Milliseconds that the start waits for Redis; what happens before it answers waits. */
const firstAnswer = 1_000

/** What happens, told to Redis and to whoever listens at GET /events. */
async function events(app: FastifyInstance, options: EventsOptions): Promise<void> {
  const { gateway } = app
  const { url, stream = 'agent.events', maxLength = 10_000, kept = 1_000, buffer = 1_048_576 } = options
  const { subscribers: most = 2_000, waiting = 10_000, types = [], now = Date.now } = options
  const shared = gateway.optional('shared', 'events')
  const { events: bus, log } = gateway
  const hub = createHub(() => source, {
    buffer,
    now,
    failed: error => log.error({ err: error }, 'a subscriber of events failed')
  })
  const redis = url === undefined || stream === false ? null : connect(url)
  const writer = redis === null || stream === false ? null : writerTo(redis, stream)
  const source: Source =
    redis === null || stream === false
      ? createRing({ bus, kept, linger, show })
      : createStream({ redis, connect: () => reader(redis), stream, show, shown: hub.shown, missed: hub.missed })

  tellOfCalls(gateway)
  const off = writer === null ? null : bus.on(event => writer.add(event.type, dataOf(event)))
  gateway.decorate('eventStream', {
    get subscribers() {
      return hub.size
    },
    get slow() {
      return hub.slow
    },
    get waiting() {
      return writer?.waiting ?? 0
    },
    get dropped() {
      return writer?.dropped ?? 0
    }
  })

  function writerTo(redis: Redis, stream: string): Writer {
    const guard = `${shared?.prefix ?? 'gw:'}e:${randomBytes(9).toString('base64url')}`
    return createWriter({ redis, stream, guard, maxLength, mostEvents: waiting, mostLength: mostWaiting, bus, log })
  }

  function show(items: readonly Item[]): void {
    hub.show(items)
    for (const item of items) revokeBy(item, hub, now())
  }

  app.addHook('onReady', async () => {
    if (redis !== null) await within(firstAnswer, redis.connect())
  })
  app.addHook('onClose', async () => {
    off?.()
    source.close()
    await writer?.close()
  })
  if (gateway.authenticate === undefined) {
    log.warn({}, 'GET /events is off: without the plugin auth anybody would be the administrator')
    return
  }
  eventRoutes(app, { hub, tickets: createTickets(shared, now), types, most, now })
}

/** Keeps nothing to be sent later. A connection of its own: what waits for a stream must not hold up budgets. */
function connect(url: string): Redis {
  return quiet(
    new Redis(url, {
      lazyConnect: true,
      enableOfflineQueue: false,
      autoResendUnfulfilledCommands: false,
      maxRetriesPerRequest: 0,
      connectTimeout: 2_000,
      keepAlive: 10_000,
      protocol: 2,
      // After a failover: this is not the server to write to any more.
      reconnectOnError: error => error.message.startsWith('READONLY'),
      retryStrategy: times => Math.min(200 * times, 1_000)
    })
  )
}

/** A second one, whose reads wait until something comes. */
function reader(redis: Redis): Redis {
  return quiet(redis.duplicate({ lazyConnect: false, enableOfflineQueue: true, socketTimeout: 15_000 }))
}

/** Whoever uses it hears of every fault in another way. */
function quiet(redis: Redis): Redis {
  return redis.on('error', () => {})
}

/** Resolves when something has been done, has failed, or takes longer. */
async function within(patience: number, work: Promise<void>): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<void>()
  const timer = setTimeout(resolve, patience)
  await Promise.race([work.catch(() => {}), promise])
  clearTimeout(timer)
}

export default fp(events, { fastify: '5.x', name: 'events', dependencies: ['http'] })
