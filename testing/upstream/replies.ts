import { setImmediate as immediate } from 'node:timers/promises'

/** Something to wait for: milliseconds, a promise (see `gate`), or a function that gives either when its time has come. */
export type Delay = number | PromiseLike<unknown> | (() => number | PromiseLike<unknown>)

/**
 * Where a body is cut into writes: at its events (the default), nowhere, after every byte, at offsets of the whole body,
 * or at random places that the seed repeats.
 */
export type Cut = 'event' | 'none' | 'byte' | readonly number[] | { readonly seed: number; readonly max?: number }

/**
 * What passes between two pieces. Unset: whole rounds of the event loop, so that a peer in this process has read one
 * piece before the next is written. A peer elsewhere needs milliseconds, or a function of the index of the next piece,
 * called from 1 on, whose promise the test resolves when the peer has the former one. null: pieces may arrive together.
 */
export type Interval = number | null | ((index: number) => number | PromiseLike<unknown>)

/** Header fields of an answer; null takes away one that a helper sets. */
export type Headers = Readonly<Record<string, string | number | readonly string[] | null>>

/** What every helper that makes an answer understands. */
export interface ReplyOptions {
  readonly status?: number
  readonly headers?: Headers
  /** Before the headers. */
  readonly delay?: Delay
  /** Between the headers, which then leave alone, and the body. */
  readonly bodyDelay?: Delay
  readonly cut?: Cut
  readonly interval?: Interval
  /** How the end of the body is told: content-length (not for streams), chunks, or the end of the connection. */
  readonly framing?: 'length' | 'chunked' | 'close'
}

/** One scripted answer: made by the helpers, as often usable as one likes. */
export interface Reply extends Omit<ReplyOptions, 'framing' | 'cut'> {
  readonly status: number
  readonly headers: Headers
  readonly wire: 'http' | 'close' | 'raw'
  readonly body: () => AsyncIterable<Uint8Array> | Iterable<Uint8Array>
  /** Bytes of the body that are sent; null: not even the headers. */
  readonly limit: number | null
  readonly ending: 'end' | 'reset' | 'close' | 'silence'
}

/** A promise that a test opens when it wants. */
export interface Gate {
  readonly promise: Promise<void>
  open(): void
}

/** Makes a closed gate, to be used as a delay. */
export function gate(): Gate {
  const { promise, resolve } = Promise.withResolvers<void>()
  return { promise, open: resolve }
}

/** Waits for whole rounds of the event loop: what was written to a socket before has been read by a peer in this process. */
export async function turn(): Promise<void> {
  // Within a poll phase the next immediate comes before the next poll: only from the second on a poll lies between.
  for (let round = 0; round < 3; round++) await immediate()
}

/** An answer with a JSON body. */
export function json(body: unknown, options: ReplyOptions = {}): Reply {
  return bytes(JSON.stringify(body), {
    ...options,
    headers: { 'content-type': 'application/json', ...options.headers }
  })
}

/** An answer with any body and no content type of its own; in one piece unless cut. */
export function bytes(body: string | Uint8Array, options: ReplyOptions = {}): Reply {
  const whole = Buffer.from(body)
  const length = (options.framing ?? 'length') === 'length' ? whole.length : null
  return reply(() => pieces(whole, options.cut ?? 'none'), {
    ...options,
    headers: { 'content-length': length, ...options.headers }
  })
}

/** Bytes put on the connection as they are, status line included; then the connection ends. */
export function raw(
  body: string | Uint8Array,
  options: Omit<ReplyOptions, 'framing' | 'status' | 'headers'> = {}
): Reply {
  return { ...reply(() => pieces(Buffer.from(body), options.cut ?? 'none'), options), wire: 'raw' }
}

/** Events of a stream: objects become `data:` events, strings and bytes go as they are; a function is called per answer. */
export type Events =
  | string
  | Uint8Array
  | Iterable<unknown>
  | AsyncIterable<unknown>
  | (() => Iterable<unknown> | AsyncIterable<unknown>)

/** A stream of server-sent events. `done` appends `data: [DONE]`: default, except after a ready-made string or bytes. */
export function sse(events: Events, options: ReplyOptions & { readonly done?: boolean } = {}): Reply {
  const whole = typeof events === 'string' || events instanceof Uint8Array
  const { cut = 'event', done = !whole } = options
  const headers = {
    'content-type': 'text/event-stream; charset=utf-8',
    'cache-control': 'no-cache',
    ...options.headers
  }
  return reply(() => recut(encode(whole ? [events] : events, done), cut), { ...options, headers })
}

/** A stream of nothing but comments, until the client leaves. */
export function heartbeats(options: ReplyOptions & { readonly comment?: string } = {}): Reply {
  return sse(() => repeat(Buffer.from(options.comment ?? ': keep-alive\n\n'), Infinity), { interval: 10, ...options })
}

/** A redirect without a body. */
export function redirect(location: string, status = 307): Reply {
  return bytes('', { status, headers: { location } })
}

/** Where an answer breaks off: before its headers, after them, or in or after the body of another answer. */
export type When = 'start' | 'headers' | Reply

/** Resets the connection (RST); with a reply: after `at` bytes of its body. */
export function reset(when: When = 'start', at = Infinity): Reply {
  return breakOff(when, at, 'reset')
}

/** Ends the connection in good order (FIN) while the answer is unfinished: a truncated body. */
export function close(when: When = 'start', at = Infinity): Reply {
  return breakOff(when, at, 'close')
}

/** Says nothing more, for ever, on an open connection. */
export function silence(when: When = 'start', at = Infinity): Reply {
  return breakOff(when, at, 'silence')
}

function breakOff(when: When, at: number, ending: Reply['ending']): Reply {
  if (typeof when === 'object') return { ...when, limit: at, ending }
  return { ...sse([]), limit: when === 'start' ? null : 0, ending }
}

function reply(body: Reply['body'], options: ReplyOptions): Reply {
  const { status = 200, headers = {}, delay, bodyDelay, interval, framing } = options
  const wire = framing === 'close' ? 'close' : 'http'
  return { status, headers: lowerCase(headers), delay, bodyDelay, interval, wire, body, limit: Infinity, ending: 'end' }
}

function lowerCase(headers: Headers): Headers {
  return Object.fromEntries(Object.entries(headers).map(([name, value]) => [name.toLowerCase(), value]))
}

/** Cuts bytes as a scripted body is cut; without a network, for tests of parsers. */
export function pieces(whole: Uint8Array, how: Cut): Uint8Array[] {
  const cuts = [0, ...offsets(whole.length, how), whole.length]
  return cuts.slice(1).flatMap((end, index) => (end > cuts[index]! ? [whole.subarray(cuts[index], end)] : []))
}

function offsets(length: number, how: Cut): number[] {
  if (how === 'none' || how === 'event') return []
  if (how === 'byte') return Array.from({ length }, (_, index) => index)
  if (!('seed' in how)) return how.filter(offset => offset < length).sort((a, b) => a - b)
  const random = seeded(how.seed)
  const found: number[] = []
  for (let at = 0; at < length; found.push(at)) at += 1 + Math.floor(random() * (how.max ?? 16))
  return found.slice(0, -1)
}

/** A repeatable source of numbers from 0 to below 1 (mulberry32). */
export function seeded(seed: number): () => number {
  let state = seed
  return () => {
    state = (state + 0x6d2b79f5) | 0
    let mixed = Math.imul(state ^ (state >>> 15), state | 1)
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61)
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32
  }
}

async function* recut(body: AsyncIterable<Uint8Array>, how: Cut): AsyncGenerator<Uint8Array> {
  if (how === 'event') yield* body
  else yield* pieces(await collect(body), how)
}

async function* encode(events: Exclude<Events, string | Uint8Array>, done: boolean): AsyncGenerator<Uint8Array> {
  for await (const event of typeof events === 'function' ? events() : events) {
    if (event instanceof Uint8Array) yield event
    else yield Buffer.from(typeof event === 'string' ? event : `data: ${JSON.stringify(event)}\n\n`)
  }
  if (done) yield Buffer.from('data: [DONE]\n\n')
}

/** The same block until that many bytes are made; never held in memory. */
export function* repeat(block: Uint8Array, size: number): Generator<Uint8Array> {
  for (let made = 0; made < size; made += block.length) yield block
}

async function collect(body: AsyncIterable<Uint8Array>): Promise<Buffer> {
  const parts: Uint8Array[] = []
  for await (const part of body) parts.push(part)
  return Buffer.concat(parts)
}
