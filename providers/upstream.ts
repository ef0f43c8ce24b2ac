import { Readable } from 'node:stream'
import { type Dispatcher, Pool } from 'undici'
import { detail, type GatewayError, UpstreamError, UpstreamTimeout } from '../schemas/errors.ts'
import type { Timeouts } from '../schemas/gateway.ts'
import type { LongBody } from './body.ts'

export interface UpstreamOptions {
  /** With or without a path; `/v1` is not added here. */
  baseUrl: string
  /** The most sockets to the origin. */
  connections: number
}

/** One POST to a provider. */
export interface Call {
  /** Below the base URL, beginning with a slash. */
  path: string
  /** Name, value, name, value. */
  headers: string[]
  body: string | Uint8Array | LongBody
  signal: AbortSignal
  timeouts: Timeouts
  /** True to get an event stream as it arrives; every other answer comes whole. */
  stream: boolean
  /** The most bytes of a whole answer. Default 256 MiB. */
  largest?: number
}

/** What the provider answered. `reads` is set for an event stream, `body` otherwise. */
export interface Reply {
  readonly status: number
  readonly headers: Readonly<Record<string, string | string[] | undefined>>
  readonly body: Buffer | null
  readonly reads: Reads | null
}

/** The network reads of a stream, one at a time; the provider is told to wait while nobody asks for the next. */
export interface Reads {
  /** The next read, null at the end. @throws UpstreamError, UpstreamTimeout, or the reason of the signal */
  next(): Promise<Buffer | null>
  /** A model gave a sign of life: from the first one on, the deadline is the one between tokens. */
  progress(): void
  /** Nobody reads on. `complete` when the provider said that it was done, so that the connection can be used again. */
  close(complete: boolean): void
}

export interface Upstream {
  post(call: Call): Promise<Reply>
  /** @param largest the most bytes of the answer */
  get(path: string, headers: string[], signal: AbortSignal, timeouts: Timeouts, largest?: number): Promise<Reply>
  close(): Promise<void>
}

/** Bytes of a stream that wait for their reader before the provider is paused. */
const highWater = 65_536
/** What a whole answer may come to. */
const largestBody = 256 * 1024 * 1024
/** When a socket gives up connecting, in milliseconds. Calls give up earlier, each by its own deadline. */
const slowestConnect = 30_000
/** How long a provider may keep the connection open after it said that its stream was done, in milliseconds. */
const farewell = 1_000

/** One pool for one origin. Certificates are checked, redirects are not followed, nothing is decompressed. */
export function createUpstream(options: UpstreamOptions): Upstream {
  const url = new URL(options.baseUrl)
  const base = url.pathname.replace(/\/+$/, '')
  const pool = new Pool(url.origin, {
    connections: options.connections,
    pipelining: 1,
    headersTimeout: 0,
    bodyTimeout: 0,
    keepAliveTimeout: 30_000,
    maxHeaderSize: 65_536,
    // One call, one socket: an abort then ends exactly that call, and `connections` is what it says.
    allowH2: false,
    connect: { timeout: slowestConnect }
  })

  return {
    post: call => exchange(pool, 'POST', base + call.path, call),
    get: (path, headers, signal, timeouts, largest) =>
      exchange(pool, 'GET', base + path, { path, headers, body: '', signal, timeouts, stream: false, largest }),
    close: () => pool.destroy()
  }
}

function exchange(pool: Pool, method: 'GET' | 'POST', path: string, call: Call): Promise<Reply> {
  return new Promise((resolve, reject) => {
    if (call.signal.aborted) return reject(call.signal.reason)
    const exchange = new Exchange(call, resolve, reject)
    pool.dispatch({ path, method, ...framed(call) }, exchange)
    exchange.dispatched()
  })
}

function framed({ headers, body }: Call): Pick<Dispatcher.DispatchOptions, 'headers' | 'body'> {
  if (typeof body === 'string' || body instanceof Uint8Array) return { headers, body: body || null }
  // undici reads on when the socket has drained, and destroys the stream with the call.
  return { headers: [...headers, 'content-length', String(body.bytes)], body: Readable.from(body.pieces()) }
}

/**
 * One request on the wire, as undici reports it. A class, because undici calls its methods and because every way it can
 * end (answer, fault, deadline, signal) has to end it once: `#finish` is the only door.
 */
class Exchange implements Dispatcher.DispatchHandler, Reads {
  #call: Call
  #resolve: ((reply: Reply) => void) | null
  #reject: (error: Error) => void
  #controller: Dispatcher.DispatchController | null = null
  #timer: NodeJS.Timeout | undefined
  #deadline: 'connect' | 'headers' | 'firstToken' | 'idle' = 'connect'
  #status = 0
  #headers: Reply['headers'] = {}
  #streaming = false
  /** There is more of a whole answer than white space. */
  #began = false
  #queue: Buffer[] = []
  #queued = 0
  #reader: { resolve: (read: Buffer | null) => void; reject: (error: Error) => void } | null = null
  #ended = false
  #error: Error | null = null
  #abort = () => this.#fail(this.#call.signal.reason)
  #expire = () => {
    // A reader that does not come for more is slow by itself: the provider is not to blame.
    if (this.#streaming && this.#reader === null) this.#timer?.refresh()
    else this.#fail(this.#timeout())
  }

  constructor(call: Call, resolve: (reply: Reply) => void, reject: (error: Error) => void) {
    this.#call = call
    this.#resolve = resolve
    this.#reject = reject
    call.signal.addEventListener('abort', this.#abort)
  }

  /** A free connection has started the request by now; otherwise the wait for one begins. */
  dispatched(): void {
    if (this.#controller === null && !this.#ended) this.#wait('connect')
  }

  onRequestStart(controller: Dispatcher.DispatchController): void {
    this.#controller = controller
    if (this.#error !== null) controller.abort(this.#error)
    else this.#wait('headers')
  }

  onResponseStart(
    _controller: Dispatcher.DispatchController,
    status: number,
    headers: Record<string, string | string[] | undefined>
  ): void {
    if (status < 200) return
    this.#status = status
    this.#headers = headers
    const type = headers['content-type']
    this.#streaming =
      this.#call.stream && status === 200 && typeof type === 'string' && /^text\/event-stream/i.test(type)
    if (!this.#streaming) return
    this.#wait('firstToken')
    const resolve = this.#resolve
    this.#resolve = null
    resolve?.({ status, headers, body: null, reads: this })
  }

  onResponseData(controller: Dispatcher.DispatchController, chunk: Buffer): void {
    if (this.#ended) return
    if (this.#reader !== null) {
      const reader = this.#reader
      this.#reader = null
      reader.resolve(chunk)
      return
    }
    this.#queue.push(chunk)
    this.#queued += chunk.length
    if (this.#streaming) {
      if (this.#queued >= highWater) controller.pause()
    } else {
      // White space before an answer only keeps a connection open.
      this.#began ||= !isBlank(chunk)
      if (this.#began) this.#timer?.refresh()
      if (this.#queued > (this.#call.largest ?? largestBody)) this.#fail(new UpstreamError('its answer is too large.'))
    }
  }

  onResponseEnd(): void {
    if (this.#ended) {
      clearTimeout(this.#timer)
      return
    }
    this.#finish()
    if (this.#streaming) {
      this.#reader?.resolve(null)
      this.#reader = null
      return
    }
    const body = this.#queue.length === 1 ? this.#queue[0]! : Buffer.concat(this.#queue, this.#queued)
    this.#resolve?.({ status: this.#status, headers: this.#headers, body, reads: null })
  }

  onResponseError(_controller: Dispatcher.DispatchController | undefined, error: Error): void {
    if (this.#ended) {
      clearTimeout(this.#timer)
      return
    }
    this.#finish()
    this.#tell(translate(error, this.#status !== 0))
  }

  next(): Promise<Buffer | null> {
    const read = this.#queue.shift()
    if (read !== undefined) {
      this.#queued -= read.length
      if (this.#queue.length === 0) this.#controller?.resume()
      return Promise.resolve(read)
    }
    if (this.#error !== null) return Promise.reject(this.#error)
    if (this.#ended) return Promise.resolve(null)
    return new Promise((resolve, reject) => {
      this.#reader = { resolve, reject }
    })
  }

  progress(): void {
    if (this.#deadline === 'idle') this.#timer?.refresh()
    else if (!this.#ended) this.#wait('idle')
  }

  close(complete: boolean): void {
    this.#queue = []
    this.#queued = 0
    if (this.#ended) return
    this.#finish()
    if (!complete) {
      this.#controller?.abort(new UpstreamError('nobody reads its answer.'))
      return
    }
    // Most providers end the response with their last event; whoever does not loses the connection, not the answer.
    this.#controller?.resume()
    this.#timer = setTimeout(closeLate, farewell, this.#controller)
  }

  #wait(deadline: 'connect' | 'headers' | 'firstToken' | 'idle'): void {
    const after = this.#call.timeouts[deadline]
    const same = this.#timer !== undefined && after === this.#call.timeouts[this.#deadline]
    this.#deadline = deadline
    if (same) {
      this.#timer?.refresh()
      return
    }
    clearTimeout(this.#timer)
    this.#timer = setTimeout(this.#expire, after)
  }

  #timeout(): GatewayError {
    const after = this.#call.timeouts[this.#deadline]
    const what = { connect: 'no connection', headers: 'no answer', firstToken: 'no first token', idle: 'nothing more' }[
      this.#deadline
    ]
    return new UpstreamTimeout(`${what} within ${after} ms.`)
  }

  /** Ends from our side. */
  #fail(error: Error): void {
    if (this.#ended) return
    this.#finish()
    this.#controller?.abort(error)
    this.#tell(error)
  }

  #tell(error: Error): void {
    this.#error = error
    if (this.#resolve !== null) this.#reject(error)
    this.#reader?.reject(error)
    this.#reader = null
  }

  #finish(): void {
    this.#ended = true
    clearTimeout(this.#timer)
    this.#call.signal.removeEventListener('abort', this.#abort)
  }
}

function isBlank(bytes: Buffer): boolean {
  return bytes.every(byte => byte === 32 || (byte >= 9 && byte <= 13))
}

function closeLate(controller: Dispatcher.DispatchController | null): void {
  controller?.abort(new UpstreamError('it kept its connection open.'))
}

/** What no repetition mends: the address, its certificate, the size of what it sends. */
const lasting: Readonly<Record<string, string>> = {
  ENOTFOUND: 'its host name is unknown.',
  CERT_HAS_EXPIRED: 'its certificate has expired.',
  DEPTH_ZERO_SELF_SIGNED_CERT: 'its certificate is not trusted.',
  SELF_SIGNED_CERT_IN_CHAIN: 'its certificate is not trusted.',
  UNABLE_TO_VERIFY_LEAF_SIGNATURE: 'its certificate is not trusted.',
  UNABLE_TO_GET_ISSUER_CERT_LOCALLY: 'its certificate is not trusted.',
  ERR_TLS_CERT_ALTNAME_INVALID: 'its certificate is for another host.',
  UND_ERR_RES_EXCEEDED_MAX_SIZE: 'its answer is too large.',
  UND_ERR_HEADERS_OVERFLOW: 'its headers are too large.'
}
const passing: Readonly<Record<string, string>> = {
  ECONNREFUSED: 'it refused the connection.',
  EAI_AGAIN: 'its host name could not be looked up.'
}

/** An error of undici or of the socket, in our words. The cause stays for the log. */
function translate(cause: Error, answered: boolean): Error {
  const code = 'code' in cause && typeof cause.code === 'string' ? cause.code : ''
  if (code === 'UND_ERR_CONNECT_TIMEOUT') return new UpstreamTimeout('no connection.', { cause })
  const words = lasting[code]
  if (words !== undefined) return detail(new UpstreamError(words, { cause }), { blame: 'target' })
  const fallback = answered ? 'the connection broke.' : 'the connection broke before it answered.'
  return new UpstreamError(passing[code] ?? fallback, { cause })
}
