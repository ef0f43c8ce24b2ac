import { createServer as createHttpServer, type IncomingMessage, type ServerResponse } from 'node:http'
import { createServer as createHttp2Server, type ServerHttp2Session, type ServerHttp2Stream } from 'node:http2'
import type { AddressInfo, Socket } from 'node:net'
import type { Readable } from 'node:stream'
import { setTimeout as pause } from 'node:timers/promises'
import { gunzipSync } from 'node:zlib'
import { type Point, pointsOf, type Span, spansOf } from './messages.ts'
import { decode, type Message, metrics, partialSuccess, traces } from './protobuf.ts'

// A collector for tests: OTLP over gRPC (HTTP/2 as it is on the wire) and over HTTP, in protobuf or JSON. It keeps what it was
// sent, tells who waits, and misbehaves when told to.

export type Protocol = 'grpc' | 'http/protobuf' | 'http/json'

/**
 * `refuse`: UNAVAILABLE or 503, which exporters repeat. `reject`: INVALID_ARGUMENT or 400, which they do not. `partial`: taken
 * by the letter, but nothing of it was stored. `hang`: no answer, ever. `break`: the connection ends amid the answer.
 */
export type Conduct = 'take' | 'refuse' | 'reject' | 'partial' | 'hang' | 'break' | { readonly slow: number }

type Signal = 'traces' | 'metrics' | 'logs'

/** One export that arrived whole, whatever became of it. */
export interface Export {
  readonly signal: Signal
  /** What it was answered with, or would have been. */
  readonly conduct: Conduct
  readonly headers: Readonly<Record<string, string | string[] | undefined>>
  /** Unpacked. */
  readonly body: Buffer
}

type Enough<T> = number | ((all: readonly T[]) => boolean)

export interface Receiver extends AsyncDisposable {
  readonly port: number
  /** What points an exporter here. */
  readonly env: Readonly<Record<string, string>>
  readonly exports: readonly Export[]
  /** Why exports were answered with an error of their own: not OTLP. `close` rejects with the first. */
  readonly faults: readonly unknown[]
  /** The spans that were taken, once there are that many or the function says so. */
  spans(enough: Enough<Span>): Promise<Span[]>
  /** The same for those of one trace. */
  trace(traceId: string, enough: Enough<Span>): Promise<Span[]>
  /** The points that were taken. Cumulative ones come with every export. */
  points(enough: Enough<Point>): Promise<Point[]>
  /** Exports that arrived, once there are that many or the function says so. */
  arrived(enough: Enough<Export>): Promise<Export[]>
  /** What it does with whatever arrives from now on. */
  behave(conduct: Conduct): void
  /** Destroys every connection and stops listening. */
  close(): Promise<void>
}

export interface ReceiverOptions {
  readonly conduct?: Conduct
  /** Milliseconds after which a wait fails and says what has come. Default 20 s. */
  readonly patience?: number
}

/** Starts a collector on a free port of the loopback address. */
export async function startReceiver(protocol: Protocol, options: ReceiverOptions = {}): Promise<Receiver> {
  const spans: Span[] = []
  const points: Point[] = []
  const exports: Export[] = []
  const faults: unknown[] = []
  const watchers = new Set<() => void>()
  let conduct = options.conduct ?? 'take'
  let closed = false

  /** What becomes of an export. */
  const judge: Judge = async (signal, headers, body, json) => {
    const now = conduct
    exports.push({ signal, conduct: now, headers, body })
    changed()
    try {
      if (typeof now === 'object') await pause(now.slow, undefined, { ref: false })
      if (now === 'take' || typeof now === 'object') {
        const read = contentOf(signal, body, json)
        spans.push(...read.spans)
        points.push(...read.points)
      }
      return typeof now === 'object' ? 'take' : now
    } catch (fault) {
      faults.push(fault)
      return 'reject'
    } finally {
      changed()
    }
  }

  function changed(): void {
    for (const check of watchers) check()
  }

  function when<T>(all: readonly T[], enough: Enough<T>, told: (all: readonly T[]) => string): Promise<T[]> {
    const { promise, resolve, reject } = Promise.withResolvers<T[]>()
    const late = setTimeout(() => end(`It waited in vain. There are ${told(all)}.`), options.patience ?? 20_000)
    const end = (words: string) => {
      watchers.delete(check)
      clearTimeout(late)
      reject(faults.length > 0 ? faults[0] : new Error(words))
    }
    const check = () => {
      if (typeof enough === 'number' ? all.length >= enough : enough(all)) {
        watchers.delete(check)
        clearTimeout(late)
        resolve([...all])
      } else if (closed || faults.length > 0) end('The receiver was closed.')
    }
    watchers.add(check)
    check()
    return promise
  }

  const server = protocol === 'grpc' ? await listenGrpc(judge) : await listenHttp(judge)

  async function close(): Promise<void> {
    closed = true
    changed()
    await server.close()
    if (faults.length > 0) throw faults[0]
  }

  const said = (all: readonly Span[]) =>
    `${all.length} spans: ${all.map(({ kind, name }) => `${kind} ${name}`).join(', ')}`
  const lines = (all: readonly { name?: string; signal?: string }[]) =>
    `${all.length}: ${all.map(({ name, signal }) => name ?? signal).join(', ')}`
  return {
    port: server.port,
    env: environment(protocol, server.port),
    exports,
    faults,
    spans: enough => when(spans, enough, said),
    async trace(traceId, enough) {
      const own = (all: readonly Span[]) => all.filter(span => span.traceId === traceId)
      await when(
        spans,
        all => (typeof enough === 'number' ? own(all).length >= enough : enough(own(all))),
        all => `${said(own(all))} of this trace, and ${all.length} in all`
      )
      return own(spans)
    },
    points: enough => when(points, enough, lines),
    arrived: enough => when(exports, enough, lines),
    behave: next => {
      conduct = next
    },
    close,
    [Symbol.asyncDispose]: close
  }
}

/** The environment of an exporter whose collector is not there. */
export async function absent(protocol: Protocol): Promise<Receiver['env']> {
  const receiver = await startReceiver(protocol)
  await receiver.close()
  return receiver.env
}

function environment(protocol: Protocol, port: number) {
  return { OTEL_EXPORTER_OTLP_ENDPOINT: `http://127.0.0.1:${port}`, OTEL_EXPORTER_OTLP_PROTOCOL: protocol }
}

type Judge = (
  signal: Signal,
  headers: Export['headers'],
  body: Buffer,
  json: boolean
) => Promise<Exclude<Conduct, object>>

function contentOf(signal: Signal, body: Buffer, json: boolean): { spans: Span[]; points: Point[] } {
  if (signal === 'logs') return { spans: [], points: [] }
  const message: Message = json ? JSON.parse(body.toString()) : decode(signal === 'traces' ? traces : metrics, body)
  return { spans: signal === 'traces' ? spansOf(message) : [], points: signal === 'metrics' ? pointsOf(message) : [] }
}

async function listenHttp(judge: Judge) {
  const server = createHttpServer({ requestTimeout: 0 }, (request, response) => void exchange(request, response))

  async function exchange(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const body = await bodyOf(request)
    if (body === null) return
    const signal = /^\/v1\/(traces|metrics|logs)$/.exec(request.url ?? '')?.[1]
    const type = request.headers['content-type'] ?? ''
    const json = type === 'application/json'
    if (request.method !== 'POST' || !isSignal(signal)) return void response.writeHead(404).end()
    if (!json && type !== 'application/x-protobuf') return void response.writeHead(415).end()
    const unpacked = request.headers['content-encoding'] === 'gzip' ? gunzipSync(body) : body
    const conduct = await judge(signal, request.headers, unpacked, json)
    const answer = (status: number, content: string | Uint8Array) => {
      response.writeHead(status, { 'content-type': type, 'content-length': Buffer.byteLength(content) })
      return response
    }
    if (conduct === 'hang') return
    if (conduct === 'refuse') return void answer(503, '').end()
    if (conduct === 'reject') return void answer(400, '').end()
    // Amid the head: what breaks off after it is a success to exporters.
    if (conduct === 'break') return void request.socket.write('HTTP/1.1 200 O', () => request.socket.destroy())
    const refused = signal === 'traces' ? 'rejectedSpans' : 'rejectedDataPoints'
    const partial = json ? JSON.stringify({ partialSuccess: { [refused]: '1', errorMessage: full } }) : refusal
    const content = conduct === 'partial' ? partial : json ? '{}' : ''
    answer(200, content).end(content)
  }

  return listening(server, () => server.closeAllConnections())
}

const full = 'The store is full.'
const refusal = partialSuccess(1, full)

async function listenGrpc(judge: Judge) {
  const sessions = new Set<ServerHttp2Session>()
  const server = createHttp2Server()
  server.on('session', session => {
    sessions.add(session)
    session.on('error', () => {})
    session.once('close', () => sessions.delete(session))
    session.on('stream', (stream, headers) => void exchange(stream, headers))
  })

  async function exchange(stream: ServerHttp2Stream, headers: Export['headers']): Promise<void> {
    stream.on('error', () => {})
    const body = await bodyOf(stream)
    if (body === null) return
    const service =
      /^\/opentelemetry\.proto\.collector\.(?:trace|metrics|logs)\.v1\.(Trace|Metrics|Logs)Service\/Export$/
    const name = service.exec(String(headers[':path']))?.[1]
    // A client may have left meanwhile.
    const fail = (status: number) => {
      if (stream.destroyed) return
      const trailers = { 'grpc-status': String(status), 'grpc-message': 'as told' }
      stream.respond({ ':status': 200, 'content-type': 'application/grpc', ...trailers }, { endStream: true })
    }
    if (name === undefined) return fail(unimplemented)
    const message = unframed(body, headers['grpc-encoding'])
    if (message === null) return fail(invalidArgument)
    const signal = name === 'Trace' ? 'traces' : name === 'Metrics' ? 'metrics' : 'logs'
    const conduct = await judge(signal, headers, message, false)
    if (conduct === 'hang' || stream.destroyed) return
    if (conduct === 'refuse') return fail(unavailable)
    if (conduct === 'reject') return fail(invalidArgument)
    stream.respond({ ':status': 200, 'content-type': 'application/grpc' }, { waitForTrailers: conduct !== 'break' })
    if (conduct === 'break') return void stream.write(Buffer.alloc(3), () => stream.session?.destroy())
    stream.once('wantTrailers', () => stream.sendTrailers({ 'grpc-status': '0' }))
    const content = conduct === 'partial' ? refusal : new Uint8Array()
    stream.end(Buffer.concat([Buffer.from([0, 0, 0, 0, content.length]), content]))
  }

  return listening(server, () => {
    for (const session of sessions) session.destroy()
  })
}

const invalidArgument = 3
const unimplemented = 12
const unavailable = 14

/** The only message of a gRPC call; null where it is not whole, or packed in a way that nobody was told. */
function unframed(body: Buffer, encoding: unknown): Buffer | null {
  if (body.length < 5 || body.readUInt32BE(1) !== body.length - 5) return null
  const message = body.subarray(5)
  if (body[0] === 0) return message
  return encoding === 'gzip' ? gunzipSync(message) : null
}

function isSignal(name: string | undefined): name is Signal {
  return name === 'traces' || name === 'metrics' || name === 'logs'
}

/** null: whoever sent it left before its end. */
async function bodyOf(stream: Readable): Promise<Buffer | null> {
  const parts: Buffer[] = []
  try {
    for await (const part of stream) parts.push(part)
    return Buffer.concat(parts)
  } catch {
    return null
  }
}

interface Listener {
  listen(port: number, host: string, listening: () => void): unknown
  address(): AddressInfo | string | null
  close(closed: () => void): unknown
  on(event: 'connection', listener: (socket: Socket) => void): unknown
}

async function listening(server: Listener, drop: () => void) {
  const sockets = new Set<Socket>()
  server.on('connection', socket => {
    sockets.add(socket)
    socket.on('error', () => {})
    socket.once('close', () => sockets.delete(socket))
  })
  await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
  const address = server.address()
  if (address === null || typeof address === 'string') throw new Error('It listens on no port.')
  return {
    port: address.port,
    async close() {
      const closed = new Promise<void>(resolve => server.close(() => resolve()))
      drop()
      for (const socket of sockets) socket.destroy()
      await closed
    }
  }
}
