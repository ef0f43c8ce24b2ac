import { createServer, type IncomingHttpHeaders, type IncomingMessage, type ServerResponse } from 'node:http'
import type { AddressInfo, Socket } from 'node:net'
import { setImmediate as immediate, setTimeout as sleep } from 'node:timers/promises'
import { echo } from './openai.ts'
import { type Delay, type Reply, turn } from './replies.ts'

/** The body of a request, as far as scripts look into it. */
export interface RequestBody {
  readonly model?: string
  readonly stream?: boolean | null
  readonly stream_options?: { readonly include_usage?: boolean } | null
  readonly messages?: ReadonlyArray<{ readonly role: string; readonly content?: unknown }>
  readonly [field: string]: unknown
}

/** How an exchange ended: by its script, or because the client left first. `at` is a performance.now(). */
export interface Closed {
  readonly how: 'ended' | 'aborted'
  readonly at: number
}

/** One request that arrived whole. */
export interface Received {
  readonly index: number
  readonly method: string
  readonly url: string
  readonly headers: IncomingHttpHeaders
  readonly rawHeaders: readonly string[]
  readonly rawBody: Buffer
  /** The body, parsed when first asked for. */
  readonly json: RequestBody
  /** performance.now() when it was complete. */
  readonly at: number
  /** Number of the connection it came on, counted from 1. */
  readonly connection: number
  /** Bytes of the answer's body that the kernel has taken so far. */
  readonly sent: number
  readonly closed: Promise<Closed>
}

/** What answers a request: a reply, or a function that makes one. */
export type Script = Reply | ((request: Received) => Reply | Promise<Reply>)

/** What is open at an upstream. */
export interface Open {
  readonly connections: number
  readonly requests: number
}

/** Options of `startUpstream`. */
export interface UpstreamOptions {
  readonly script?: Script
  readonly host?: string
  readonly port?: number
  /** Milliseconds that an idle connection is kept; 0 (default): for ever. */
  readonly keepAliveTimeout?: number
}

/** A running scripted upstream. */
export interface Upstream extends AsyncDisposable {
  /** Base URL for an OpenAI client, ending in /v1. */
  readonly url: string
  readonly port: number
  readonly requests: readonly Received[]
  readonly open: Open
  /** What scripts threw; their requests got a 500, and `close` rejects with the first. */
  readonly faults: readonly unknown[]
  /** Replaces the script. Several are used one per request; the last one stays. */
  script(...scripts: [Script, ...Script[]]): void
  /** Resolves with the nth request, counted from 1, once it is there. */
  received(n?: number): Promise<Received>
  /** Resolves once the condition holds; looked at on every change. */
  until(condition: (open: Open) => boolean): Promise<void>
  /** Destroys every connection and goes on listening. */
  drop(): void
  /** Destroys every connection and stops listening. */
  close(): Promise<void>
}

/** Starts an upstream on a free port of the loopback address; without a script it echoes. */
export async function startUpstream(options: UpstreamOptions = {}): Promise<Upstream> {
  const sockets = new Map<Socket, number>()
  const ours = new WeakSet<ServerResponse>()
  const running = new Set<ServerResponse>()
  const requests: Received[] = []
  const faults: unknown[] = []
  const watchers = new Set<() => void>()
  let scripts: readonly Script[] = [options.script ?? echo]
  let used = 0
  let connections = 0

  const server = createServer({ noDelay: true, requestTimeout: 0, keepAliveTimeout: options.keepAliveTimeout ?? 0 })
  server.on('connection', socket => {
    sockets.set(socket, ++connections)
    socket.once('close', () => {
      sockets.delete(socket)
      changed()
    })
    changed()
  })
  server.on('request', (incoming, response) => void exchange(incoming, response))

  async function exchange(incoming: IncomingMessage, response: ServerResponse): Promise<void> {
    const left = new AbortController()
    const { promise: closed, resolve } = Promise.withResolvers<Closed>()
    running.add(response)
    response.once('close', () => {
      running.delete(response)
      resolve({ how: response.writableFinished || ours.has(response) ? 'ended' : 'aborted', at: performance.now() })
      left.abort()
      changed()
    })
    changed()
    const connection = sockets.get(incoming.socket) ?? 0
    const rawBody = await readBody(incoming)
    if (rawBody === null) return
    let parsed: RequestBody | undefined
    const progress = { sent: 0 }
    const request: Received = {
      index: requests.length,
      method: incoming.method ?? '',
      url: incoming.url ?? '',
      headers: incoming.headers,
      rawHeaders: incoming.rawHeaders,
      rawBody,
      get json() {
        return (parsed ??= JSON.parse(rawBody.toString()) as RequestBody)
      },
      at: performance.now(),
      connection,
      get sent() {
        return progress.sent
      },
      closed
    }
    const script = scripts[Math.min(used++, scripts.length - 1)]!
    requests.push(request)
    changed()
    try {
      const reply = typeof script === 'function' ? await script(request) : script
      await play(reply, response, incoming.socket, left.signal, progress)
      if (reply.ending === 'end' && reply.wire !== 'raw') return void response.end()
      ours.add(response)
      if (reply.ending === 'reset') incoming.socket.resetAndDestroy()
      else incoming.socket.destroySoon()
    } catch (fault) {
      if (left.signal.aborted) return
      faults.push(fault)
      if (response.headersSent) response.destroy()
      else response.writeHead(500, { connection: 'close' }).end(`The script of the upstream failed: ${fault}`)
    }
  }

  function state(): Open {
    return { connections: sockets.size, requests: running.size }
  }

  function changed(): void {
    for (const check of watchers) check()
  }

  function when(holds: () => boolean): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>()
    const check = () => {
      if (!holds()) return
      watchers.delete(check)
      resolve()
    }
    watchers.add(check)
    check()
    return promise
  }

  function drop(): void {
    for (const response of running) ours.add(response)
    for (const socket of sockets.keys()) socket.destroy()
  }

  async function close(): Promise<void> {
    if (server.listening) {
      const closed = new Promise(resolve => server.once('close', resolve))
      server.close()
      drop()
      await closed
      await when(() => sockets.size + running.size === 0)
    }
    if (faults.length > 0) throw faults[0]
  }

  const host = options.host ?? '127.0.0.1'
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject)
    server.listen(options.port ?? 0, host, resolve)
  })
  const { port } = server.address() as AddressInfo

  return {
    url: `http://${host.includes(':') ? `[${host}]` : host}:${port}/v1`,
    port,
    requests,
    faults,
    get open() {
      return state()
    },
    script(...next) {
      scripts = next
      used = 0
    },
    async received(n = 1) {
      await when(() => requests.length >= n)
      return requests[n - 1]!
    },
    until(condition) {
      return when(() => condition(state()))
    },
    drop,
    close,
    [Symbol.asyncDispose]: close
  }
}

/** The whole body; null when the client left before it was complete. */
async function readBody(incoming: IncomingMessage): Promise<Buffer | null> {
  const parts: Buffer[] = []
  try {
    for await (const part of incoming) parts.push(part)
  } catch {
    return null
  }
  return Buffer.concat(parts)
}

async function play(
  reply: Reply,
  response: ServerResponse,
  socket: Socket,
  signal: AbortSignal,
  progress: { sent: number }
): Promise<void> {
  const gone = new Promise<never>((_, reject) => {
    const leave = () => reject(new Error('The client left.'))
    if (signal.aborted) leave()
    else signal.addEventListener('abort', leave, { once: true })
  })
  gone.catch(() => {})
  const pause = (delay: Delay | undefined): Promise<unknown> => {
    const due = typeof delay === 'function' ? delay() : (delay ?? 0)
    return Promise.race([typeof due === 'number' ? due > 0 && sleep(due, undefined, { signal }) : due, gone])
  }
  await pause(reply.delay)
  if (reply.limit !== null) {
    if (reply.wire !== 'raw') sendHead()
    await pause(reply.bodyDelay)
    await sendBody(reply.limit)
  }
  if (reply.ending === 'silence') await gone
  // Otherwise a reset could overtake what was sent before it.
  if (reply.ending === 'reset') await Promise.race([turn(), gone])

  function sendHead(): void {
    response.statusCode = reply.status
    for (const [name, value] of Object.entries(reply.headers)) if (value !== null) response.setHeader(name, value)
    if (reply.wire === 'close') {
      response.useChunkedEncodingByDefault = false
      response.shouldKeepAlive = false
    }
    if (reply.bodyDelay !== undefined || reply.limit === 0 || reply.ending === 'silence') response.flushHeaders()
  }

  async function sendBody(limit: number): Promise<void> {
    if (limit === 0) return
    const body = reply.body()
    const source = Symbol.asyncIterator in body ? body[Symbol.asyncIterator]() : body[Symbol.iterator]()
    try {
      for (let index = 0; progress.sent < limit; index++) {
        const next = await Promise.race([source.next(), gone])
        if (next.done) return
        const piece = next.value.subarray(0, limit - progress.sent)
        if (piece.length === 0) continue
        if (index > 0) await between(index)
        await Promise.race([write(piece), gone])
        progress.sent += piece.length
      }
    } finally {
      // Not awaited: a source may be waiting for something that never comes.
      Promise.resolve(source.return?.()).catch(() => {})
    }
  }

  function between(index: number): Promise<unknown> {
    const { interval } = reply
    if (typeof interval === 'function') return pause(() => interval(index))
    if (typeof interval === 'number') return pause(interval)
    // Even where pieces may arrive together, a peer that reads fast must not keep this process from everything else.
    return Promise.race([interval === null ? immediate() : turn(), gone])
  }

  function write(piece: Uint8Array): Promise<unknown> {
    const stream = reply.wire === 'raw' ? socket : response
    // A write that fails means that the connection is ending: that end is waited for, as `gone`.
    return new Promise<void>(resolve => stream.write(piece, error => error || resolve()))
  }
}
