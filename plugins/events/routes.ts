import type { FastifyInstance, FastifyRequest } from 'fastify'
import { WebSocketServer } from 'ws'
import { detail, InvalidApiKey, InvalidRequest, RateLimitExceeded, ShuttingDown } from '../../schemas/errors.ts'
import type { Principal } from '../../schemas/gateway.ts'
import { isRecord } from '../../schemas/reader.ts'
import { openDoor, takeUpgrade } from './door.ts'
import { type Wish, wishOf } from './filter.ts'
import type { Hub, Reader, Sink } from './hub.ts'
import { sseSink } from './sse.ts'
import { type Holder, isHolder, type Tickets } from './tickets.ts'
import { webSocketSink } from './websocket.ts'

export interface RoutesOptions {
  readonly hub: Hub
  readonly tickets: Tickets
  /** Types that may be asked for beside those of the gateway. */
  readonly types: readonly string[]
  /** The most subscribers at a time. */
  readonly most: number
  /** Milliseconds since 1970. */
  readonly now: () => number
}

type Query = Record<string, unknown>

const path = '/events'
/** Milliseconds that subscribers get to take the news that this process ends. */
const farewell = 500
/** Bytes of what a client sends: it has nothing to say. */
const longestMessage = 1_024

/** GET /events and POST /events/ticket, for administrators. */
export function eventRoutes(app: FastifyInstance, { hub, tickets, types, most, now }: RoutesOptions): void {
  const { gateway } = app
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
    const wish = wishOf(request.query, typeof last === 'string' ? last : undefined, types)
    if (hub.size >= most) {
      throw new RateLimitExceeded(`Events are read by ${most} subscribers already. Try again when one has left.`)
    }
    return { wish, reader: readerOf(gateway.http.principal(request)) }
  }

  /** Null: no ticket was shown. @throws InvalidApiKey */
  function byTicket(request: FastifyRequest): Promise<Principal> | null {
    const ticket = ticketOf(request)
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
          const ids = [`x-request-id: ${gateway.http.id(request)}`, `x-trace-id: ${gateway.http.traceId(request)}`]
          const name = (headers: string[]) => void headers.push(...ids)
          peers.on('headers', name)
          peers.handleUpgrade(request.raw, socket, head, peer => {
            subscribe(wish, reader, gone => webSocketSink(peer, socket, gone))
          })
          peers.off('headers', name)
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

/** Null: no ticket was shown, or where one opens nothing: nobody gets a ticket for a ticket. @throws InvalidApiKey */
function ticketOf({ method, query, headers }: FastifyRequest): string | null {
  const ticket = method === 'GET' && isRecord(query) ? query['ticket'] : undefined
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
