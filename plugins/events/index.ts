import type { FastifyInstance, FastifyRequest } from 'fastify'
import fp from 'fastify-plugin'
import { Redis } from 'ioredis'
import { WebSocketServer } from 'ws'
import {
  detail,
  InvalidApiKey,
  InvalidRequest,
  RateLimitExceeded,
  ShuttingDown,
  TenantDisabled
} from '../../schemas/errors.ts'
import type { Principal } from '../../schemas/gateway.ts'
import { isRecord } from '../../schemas/reader.ts'
import { tellOfCalls } from './calls.ts'
import { openDoor, takeUpgrade } from './door.ts'
import { type Wish, wishOf } from './filter.ts'
import { createHub, type Hub, type Reader, type Sink } from './hub.ts'
import { dataOf, type Item, parsed } from './item.ts'
import { createRing } from './ring.ts'
import type { Source } from './source.ts'
import { sseSink } from './sse.ts'
import { createStream } from './stream.ts'
import { createTickets, type Holder, isHolder } from './tickets.ts'
import { webSocketSink } from './websocket.ts'
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
  /** Milliseconds since 1970. Given by tests. */
  now?: () => number
}

const path = '/events'
/** Characters that wait for Redis at most. */
const mostWaiting = 16 * 1_048_576
/** Milliseconds for which events are kept when nobody subscribes any more. */
const linger = 300_000
/** Milliseconds that subscribers get to take the news that this process ends. */
const farewell = 500
const longestMessage = 1_024

/** What happens, told to Redis and to whoever listens at GET /events. */
async function events(app: FastifyInstance, options: EventsOptions): Promise<void> {
  const { gateway } = app
  const { url, stream = 'agent.events', maxLength = 10_000, kept = 1_000, buffer = 1_048_576 } = options
  const { subscribers: most = 2_000, waiting = 10_000, now = Date.now } = options
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
    const guard = `${shared?.prefix ?? 'gw:'}e:${shared?.instance ?? gateway.newId()}`
    return createWriter({ redis, stream, guard, maxLength, mostEvents: waiting, mostLength: mostWaiting, bus, log })
  }

  function show(items: readonly Item[]): void {
    hub.show(items)
    for (const item of items) if (isAboutRights(item)) revoke(hub, item, now())
  }

  app.addHook('onReady', async () => redis?.connect().catch(() => {}))
  app.addHook('onClose', async () => {
    off?.()
    source.close()
    await writer?.close()
  })
  if (gateway.authenticate === undefined) {
    log.warn({}, 'GET /events is off: without the plugin auth anybody would be the administrator')
    return
  }
  const tickets = createTickets(shared, now)
  const peers = new WebSocketServer({
    noServer: true,
    perMessageDeflate: false,
    maxPayload: longestMessage,
    clientTracking: false
  })
  let closing = false

  /** Who reads, and what; before anything is answered. @throws what refuses it */
  function admitted(request: FastifyRequest<{ Querystring: Query }>): { wish: Wish; reader: Reader } {
    if (closing) throw new ShuttingDown()
    const last = request.headers['last-event-id']
    const wish = wishOf(request.query, typeof last === 'string' ? last : undefined)
    if (hub.size >= most) {
      throw new RateLimitExceeded(`Events are read by ${most} subscribers already. Try again when one has left.`)
    }
    return { wish, reader: readerOf(gateway.http.principal(request)) }
  }

  /** Null: no ticket was shown. It opens the events and nothing else, also no further ticket. @throws InvalidApiKey */
  function byTicket(request: FastifyRequest): Promise<Principal> | null {
    const ticket = request.method === 'GET' ? ticketOf(request) : null
    return ticket === null ? null : tickets.take(ticket).then(withKey)
  }

  /** A ticket is worth what the key is that it was got with. @throws InvalidApiKey, StoreUnavailable */
  async function withKey(holder: Holder): Promise<Holder> {
    if (holder.kind !== 'key' || holder.key === null) return holder
    const key = await gateway.store?.keys.get(holder.key)
    const until = key?.expiresAt ?? null
    if (!key || key.revokedAt !== null || (until !== null && until <= now())) {
      throw new InvalidApiKey('The key that this ticket was got with is revoked or expired.')
    }
    return { ...holder, until }
  }

  /** `open` makes the sink; what it is given tells that the connection is gone, which may be at once. */
  function subscribe(wish: Wish, reader: Reader, open: (gone: () => void) => Sink): void {
    let end: (() => void) | null = null
    let isGone = false
    const sink = open(() => {
      isGone = true
      end?.()
    })
    if (closing || isGone) sink.cut()
    else end = hub.add(sink, wish, reader)
  }

  app.register(async scope => {
    scope.addHook('onRequest', (_request, reply, done) => {
      reply.header('cache-control', 'no-store')
      done()
    })
    gateway.http.prepare(scope, { open: false, scope: 'admin', ticket: byTicket })
    scope.addHook('onRequest', async request => {
      const { kind, tenant } = gateway.http.principal(request)
      if (kind === 'key' && (await gateway.tenants?.find(tenant))?.active === false) throw new TenantDisabled(tenant)
    })

    scope.get<{ Querystring: Query }>(
      path,
      {
        exposeHeadRoute: false,
        // Not in the handler: @fastify/websocket, where a host has it, puts one of its own around every handler.
        preHandler(request, reply, done) {
          const upgrade = takeUpgrade(request.raw)
          if (upgrade === undefined) return done()
          const { wish, reader } = admitted(request)
          checkHandshake(request)
          const { socket, head } = upgrade
          reply.hijack()
          reply.raw.detachSocket(socket)
          peers.handleUpgrade(request.raw, socket, head, peer => {
            subscribe(wish, reader, gone => webSocketSink(peer, socket, gone))
          })
        }
      },
      (request, reply) => {
        const { wish, reader } = admitted(request)
        subscribe(wish, reader, gone => sseSink(reply, gone))
      }
    )

    scope.post(`${path}/ticket`, async (request): Promise<{ ticket: string; expires_at: string }> => {
      const { ticket, expiresAt } = await tickets.give(gateway.http.principal(request))
      return { ticket, expires_at: new Date(expiresAt).toISOString() }
    })

    const close = openDoor(app.server, `${scope.prefix}${path}`, (request, response) => app.routing(request, response))
    // Added when everything else was, this hook is the first of all; the calls that run have their grace after it.
    scope.addHook('onReady', async () => {
      scope.addHook('onClose', async () => {
        closing = true
        hub.close()
      })
    })
    // The server waits for its connections, so they end before it does.
    scope.addHook('preClose', async () => {
      close()
      await hub.emptied(farewell)
      peers.close()
    })
  })
}

type Query = Record<string, unknown>

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

/** Null: no ticket was shown. @throws InvalidApiKey */
function ticketOf({ query, headers }: FastifyRequest): string | null {
  const ticket = isRecord(query) ? query['ticket'] : undefined
  if (ticket === undefined) return null
  if (headers.authorization !== undefined || headers['x-api-key'] !== undefined || headers['api-key'] !== undefined) {
    throw new InvalidApiKey('This request carries two different credentials.')
  }
  return typeof ticket === 'string' ? ticket : ''
}

function readerOf(principal: Principal): Reader {
  const { tenant, key, kind, apiKey } = principal
  const until = isHolder(principal) ? principal.until : (apiKey?.expiresAt ?? null)
  return { tenant, key, kind, until }
}

/** What Node and ws would otherwise answer in words of their own. @throws InvalidRequest */
function checkHandshake({ headers }: FastifyRequest): void {
  const { 'sec-websocket-key': key, 'sec-websocket-version': version } = headers
  if (version !== '13') {
    const words = 'This gateway speaks version 13 of the WebSocket protocol: sec-websocket-version.'
    throw detail(new InvalidRequest(words), { statusCode: 426, headers: { 'sec-websocket-version': '13' } })
  }
  if (typeof key !== 'string' || !/^[+/0-9A-Za-z]{22}==$/.test(key)) {
    throw new InvalidRequest('This is no WebSocket handshake: sec-websocket-key is missing or wrong.')
  }
}

const rights: ReadonlySet<string> = new Set(['key.revoked', 'key.rotated', 'tenant.updated', 'tenant.deleted'])

function isAboutRights({ type }: Item): boolean {
  return rights.has(type)
}

/** Whoever loses the right to listen listens no longer, whichever process has taken it. */
function revoke(hub: Hub, { type, data }: Item, now: number): void {
  const said = parsed(data)
  const { key, tenant, active, expires_at: end } = said ?? {}
  if (type === 'key.revoked') hub.revoke(reader => reader.key === key, now)
  if (type === 'key.rotated' && typeof end === 'string') hub.revoke(reader => reader.key === key, Date.parse(end))
  if (type === 'tenant.deleted' || (type === 'tenant.updated' && active === false)) {
    hub.revoke(reader => reader.kind === 'key' && reader.tenant === tenant, now)
  }
}

export default fp(events, { fastify: '5.x', name: 'events', dependencies: ['http'] })
