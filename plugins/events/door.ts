import { type IncomingMessage, type Server, ServerResponse, STATUS_CODES } from 'node:http'
import { Socket } from 'node:net'
import type { Duplex } from 'node:stream'
import { errorBody, InvalidRequest } from '../../schemas/errors.ts'

// How a WebSocket gets to a route: Node gives a request with `upgrade` to listeners and not to the router. Ours sends it to
// the router all the same, so that the hooks of the route decide. A host may have listeners of its own.

/** A connection that can be upgraded. */
export interface Upgrade {
  readonly socket: Socket
  readonly head: Buffer
}

type Route = (request: IncomingMessage, response: ServerResponse) => void

interface Door {
  readonly routes: Map<string, Route>
  close(): void
}

const doors = new WeakMap<Server, Door>()
const upgrades = new WeakMap<IncomingMessage, Upgrade>()
const callback = 'shouldUpgradeCallback'

/** The connection behind a request that came through a door, once; undefined for every other request. */
export function takeUpgrade(request: IncomingMessage): Upgrade | undefined {
  const upgrade = upgrades.get(request)
  upgrades.delete(request)
  return upgrade
}

/** Sends upgrades to one path of a server through its router. @returns what ends it */
export function openDoor(server: Server, path: string, route: Route): () => void {
  const door = doors.get(server) ?? createDoor(server)
  doors.set(server, door)
  door.routes.set(path, route)
  return () => {
    door.routes.delete(path)
    if (door.routes.size > 0) return
    door.close()
    doors.delete(server)
  }
}

function createDoor(server: Server): Door {
  const routes = new Map<string, Route>()
  const before: unknown = Reflect.get(server, callback)

  function routeOf(request: IncomingMessage): Route | undefined {
    if (request.headers.upgrade?.toLowerCase() !== 'websocket') return undefined
    return routes.get(request.url?.split('?', 1)[0] ?? '')
  }

  function isAlone(): boolean {
    return server.listenerCount('upgrade') === 1
  }

  /** Node from 22.21 and 24.9 on asks first. Where only we listen, an upgrade to another path stays the ordinary request that it was without us. */
  function shouldUpgrade(request: IncomingMessage): boolean {
    if (routeOf(request) !== undefined) return true
    return !isAlone() && typeof before === 'function' && before.call(server, request) === true
  }

  function onUpgrade(request: IncomingMessage, socket: Duplex, head: Buffer): void {
    const route = routeOf(request)
    if (!(socket instanceof Socket)) return
    if (route === undefined) {
      // An older Node, or a further address of a host that Fastify listens on.
      if (isAlone()) asOrdinary(request, socket)
      return
    }
    upgrades.set(request, { socket, head })
    // Other listeners come now. @fastify/websocket sends every upgrade through the router itself.
    process.nextTick(() => {
      const answering = answerOn(socket)
      if (answering !== null) endWith(answering, socket)
      else if (upgrades.has(request) && !socket.destroyed) send(request, socket, route)
    })
  }

  function asOrdinary(request: IncomingMessage, socket: Socket): void {
    const [route] = routes.values()
    if (route !== undefined && !hasBody(request)) send(request, socket, route)
    else refuse(socket)
  }

  server.prependListener('upgrade', onUpgrade)
  if (typeof before === 'function') Reflect.set(server, callback, shouldUpgrade)
  return {
    routes,
    close() {
      server.off('upgrade', onUpgrade)
      if (Reflect.get(server, callback) === shouldUpgrade) Reflect.set(server, callback, before)
    }
  }
}

function send(request: IncomingMessage, socket: Socket, route: Route): void {
  const response = new ServerResponse(request)
  response.shouldKeepAlive = false
  endWith(response, socket)
  // Nobody else looks after this socket until it is upgraded.
  socket.on('error', () => socket.destroy())
  response.assignSocket(socket)
  route(request, response)
}

/** A refusal is the last that is said on a connection which nobody reads: its client could leave unseen. */
function endWith(response: ServerResponse, socket: Socket): void {
  const end = () => {
    if (answerOn(socket) === response) response.detachSocket(socket)
    socket.destroySoon()
  }
  if (response.writableFinished) end()
  else response.once('finish', end)
}

/** Who answers on it; Node keeps whom in this field. */
function answerOn(socket: Socket): ServerResponse | null {
  const message: unknown = Reflect.get(socket, '_httpMessage')
  return message instanceof ServerResponse ? message : null
}

function hasBody({ headers }: IncomingMessage): boolean {
  return headers['transfer-encoding'] !== undefined || Number(headers['content-length'] ?? 0) > 0
}

/** What follows the head was not read as a body, and nobody can read it any more. */
function refuse(socket: Socket): void {
  const body = JSON.stringify(errorBody(new InvalidRequest('Send this request without the header upgrade.')))
  socket.end(
    `HTTP/1.1 400 ${STATUS_CODES[400]}\r\nconnection: close\r\ncontent-type: application/json; charset=utf-8\r\n` +
      `content-length: ${Buffer.byteLength(body)}\r\nx-should-retry: false\r\n\r\n${body}`
  )
}
