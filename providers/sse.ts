import type { ChatCompletionChunk, CompletionUsage } from '../schemas/chat.ts'
import { UpstreamError } from '../schemas/errors.ts'
import { type Frames, isToken, isUsageOnly } from '../schemas/frames.ts'

const LF = 10
const CR = 13
const terminator = '[DONE]'
const finishKey = '"finish_reason"'

// Few alternatives on purpose: V8 searches these several times faster than one pattern that says everything. A key that
// stands inside a string cannot match, because its closing quote would be escaped.
const eventful = /"(?:error|usage)"\s*:\s*[^n\s]/g
const finish = /"finish_reason"\s*:\s*"[^"]/

/** What arrived with one network read: whole events, and whether the stream said that it is over. */
export interface Read {
  readonly frames: EventFrames | null
  readonly done: boolean
}

/** Cuts a stream of bytes into reads of whole events; bytes may be split anywhere. */
export interface EventReader {
  /** @throws UpstreamError when one event grows over the limit */
  read(bytes: Buffer): Read
  /** What is left when the provider closes: an event that lacks its blank line still counts, one cut in the middle does not. */
  end(): Read
}

const nothing: Read = { frames: null, done: false }

/** @param limit the most bytes that one event may have */
export function eventReader(limit: number): EventReader {
  let held: Buffer[] = []
  let size = 0

  function read(bytes: Buffer): Read {
    const own = lastBoundary(bytes)
    if (own === bytes.length && size === 0) return take(bytes)
    const at = own > 0 || size === 0 ? own : boundaryAcross(held, bytes)
    if (at < 0 || (at === 0 && size === 0)) {
      hold(bytes)
      return nothing
    }
    const whole = size === 0 ? bytes.subarray(0, at) : Buffer.concat([...held, bytes.subarray(0, at)])
    held = []
    size = 0
    if (at < bytes.length) hold(bytes.subarray(at))
    return take(whole)
  }

  function hold(bytes: Buffer): void {
    size += bytes.length
    if (size > limit) throw new UpstreamError(`one event of its stream is larger than ${limit} bytes.`)
    held.push(bytes)
  }

  function end(): Read {
    if (size === 0) return nothing
    const rest = Buffer.concat(held)
    held = []
    size = 0
    // Now nothing can follow that makes a CRLF of a CR at the end.
    if (lastBoundary(Buffer.concat([rest, Buffer.from(' ')])) === rest.length) return take(rest)
    const read = take(Buffer.concat([rest, Buffer.from('\n\n')]))
    return read.frames === null || read.frames.isReadable ? read : nothing
  }

  return { read, end }
}

/** The position after the last blank line of `bytes`, or 0. A CR at the very end may be half a CRLF: undecided. */
function lastBoundary(bytes: Buffer): number {
  for (let end = bytes.length - 1; end > 0; end--) {
    const byte = bytes[end]
    if (byte !== LF && (byte !== CR || end === bytes.length - 1)) continue
    let before = end - 1
    if (byte === LF && bytes[before] === CR) before--
    if (before >= 0 && (bytes[before] === LF || bytes[before] === CR)) return end + 1
  }
  return 0
}

/** The same for a blank line that began in what is held: a position in `bytes`, 0 included, or -1. */
function boundaryAcross(held: readonly Buffer[], bytes: Buffer): number {
  let tail = Buffer.alloc(0)
  for (let index = held.length - 1; index >= 0 && tail.length < 3; index--) {
    tail = Buffer.concat([held[index]!.subarray(-3), tail])
  }
  const found = lastBoundary(Buffer.concat([tail, bytes.subarray(0, 4)]))
  return found === 0 || found < tail.length ? -1 : found - tail.length
}

/** Takes the terminator off, if it is here; what follows it is nobody's. */
function take(bytes: Buffer): Read {
  const text = bytes.toString('latin1')
  for (let at = text.indexOf(terminator); at !== -1; at = text.indexOf(terminator, at + 1)) {
    const start = text.startsWith('data: ', at - 6) ? at - 6 : at - 5
    if (!text.startsWith('data:', start) || !isLineEnd(text[at + terminator.length])) continue
    const event = eventAround(bytes, text, at)
    if (event?.data !== terminator) continue
    if (event.start === 0) return { frames: null, done: true }
    const rest = new EventFrames(bytes.subarray(0, event.start), text.slice(0, event.start), true)
    return { frames: rest, done: true }
  }
  return { frames: new EventFrames(bytes, text), done: false }
}

function eventAround(raw: Buffer, text: string, position: number): Event | undefined {
  for (const event of eventsIn(raw, text, eventStart(text, position))) if (event.end > position) return event
  return undefined
}

/** A neighbour of a line: a line end, or nothing at all. */
function isLineEnd(character: string | undefined): boolean {
  return character === '\n' || character === '\r' || character === undefined
}

/** Where one event stands, and the data it carries: null for comments and other fields alone. */
interface Event {
  readonly start: number
  readonly end: number
  readonly data: string | null
}

/** What a search of the bytes found, in the events that it found them in. */
interface Findings {
  readonly error: unknown
  /** Where the event with the error begins. */
  readonly errorAt: number
  readonly usage: CompletionUsage | null
  /** Events that carry nothing but usage. */
  readonly usageOnly: readonly Event[]
}

const noFindings: Findings = { error: undefined, errorAt: -1, usage: null, usageOnly: [] }

/**
 * Frames backed by the provider's bytes. What a search can answer is answered without parsing; iterating parses event
 * by event and no further than the consumer goes. `text` is the bytes as latin1: one character a byte, same positions.
 */
export class EventFrames implements Frames {
  readonly raw: Buffer
  readonly dialect = 'openai'
  readonly last: boolean
  #text: string
  #chunks: ChatCompletionChunk[] = []
  #events: Iterator<Event> | null = null
  #findings: Findings | null = null

  constructor(raw: Buffer, text: string = raw.toString('latin1'), last = false) {
    this.raw = raw
    this.last = last
    this.#text = text
  }

  get finished(): boolean {
    // In a read that holds the end of a stream it stands near the end of the read.
    const tail = this.#text.slice(-1024)
    const last = tail.lastIndexOf(finishKey)
    return (last !== -1 && finish.test(tail.slice(last))) || finish.test(this.#text)
  }

  get usage(): CompletionUsage | null {
    return this.#find().usage
  }

  /** The error that an event of these carries, undefined without one. */
  get error(): unknown {
    return this.#find().error
  }

  /** What came before the error. */
  get beforeError(): EventFrames | null {
    const at = this.#find().errorAt
    return at > 0 ? new EventFrames(this.raw.subarray(0, at)) : null
  }

  get hasToken(): boolean {
    for (const chunk of this) if (isToken(chunk)) return true
    return false
  }

  get hasData(): boolean {
    return this.#text.startsWith('data') || /(?:[\r\n]|^\xef\xbb\xbf)data/.test(this.#text)
  }

  /** True when everything that these events say is JSON. */
  get isReadable(): boolean {
    for (const { data } of eventsIn(this.raw, this.#text)) if (data !== null && parse(data) === undefined) return false
    return true
  }

  withoutUsage(): Frames | null {
    const kept: Buffer[] = []
    let from = 0
    for (const { start, end } of this.#find().usageOnly) {
      if (start > from) kept.push(this.raw.subarray(from, start))
      from = end
    }
    if (from === 0) return this
    if (from < this.raw.length) kept.push(this.raw.subarray(from))
    if (kept.length === 0) return null
    return new EventFrames(kept.length === 1 ? kept[0]! : Buffer.concat(kept), undefined, this.last)
  }

  *[Symbol.iterator](): Generator<ChatCompletionChunk> {
    for (let index = 0; ; index++) {
      const chunk = this.#chunks[index] ?? this.#parseNext()
      if (chunk === null) return
      yield chunk
    }
  }

  #parseNext(): ChatCompletionChunk | null {
    this.#events ??= eventsIn(this.raw, this.#text)
    for (let read = this.#events.next(); !read.done; read = this.#events.next()) {
      const value = parse(read.value.data)
      if (!isChunk(value)) continue
      this.#chunks.push(value)
      return value
    }
    return null
  }

  #find(): Findings {
    this.#findings ??= find(this.raw, this.#text)
    return this.#findings
  }
}

/** Parses only the events in which a search finds one of the words. */
function find(raw: Buffer, text: string): Findings {
  eventful.lastIndex = 0
  let match = eventful.exec(text)
  if (match === null) return noFindings
  let usage: CompletionUsage | null = null
  const usageOnly: Event[] = []
  for (const event of eventsIn(raw, text, eventStart(text, match.index))) {
    while (match !== null && match.index < event.start) match = eventful.exec(text)
    if (match === null) break
    if (match.index >= event.end) continue
    const value = parse(event.data)
    if (typeof value !== 'object' || value === null) continue
    const error = errorOf(value)
    if (error) return { error, errorAt: event.start, usage, usageOnly }
    if (!isChunk(value)) continue
    if (typeof value.usage === 'object' && value.usage !== null) usage = value.usage
    if (isUsageOnly(value)) usageOnly.push(event)
  }
  return { error: undefined, errorAt: -1, usage, usageOnly }
}

/** The error of an event, at its top or in a choice. */
function errorOf(value: object): unknown {
  if ('error' in value && value.error) return value.error
  return isChunk(value) ? value.choices.find(choice => choice['error'])?.['error'] : undefined
}

/** Where the event around a position begins: after the blank line before it. */
function eventStart(text: string, position: number): number {
  for (let at = text.lastIndexOf('\n', position); at > 0; at = text.lastIndexOf('\n', at - 1)) {
    const before = text[at - 1] === '\r' ? text[at - 2] : text[at - 1]
    if (before === '\n' || before === '\r') return at + 1
  }
  return 0
}

/** The events of `raw` from a position on, one at a time. */
function* eventsIn(raw: Buffer, text: string, from = 0): Generator<Event> {
  let start = from
  let line = from
  let lf = -1
  let cr = -1
  let data: string | null = null
  // A byte order mark may stand before the first field of a stream.
  if (from === 0 && text.startsWith('\xef\xbb\xbf')) line = 3
  while (line < text.length) {
    if (lf < line) lf = indexOrEnd(text, '\n', line)
    if (cr < line) cr = indexOrEnd(text, '\r', line)
    const end = Math.min(lf, cr)
    const next = end === cr && lf === cr + 1 ? end + 2 : end + 1
    if (end === line) {
      yield { start, end: next, data }
      start = next
      data = null
    } else {
      const value = dataOf(raw, text, line, end)
      if (value !== null) data = data === null ? value : `${data}\n${value}`
    }
    line = next
  }
  if (start < text.length) yield { start, end: text.length, data }
}

function indexOrEnd(text: string, character: string, from: number): number {
  const index = text.indexOf(character, from)
  return index === -1 ? text.length : index
}

/** The value of a `data:` line, without the one space that may follow the colon; null for any other line. */
function dataOf(raw: Buffer, text: string, start: number, end: number): string | null {
  if (!text.startsWith('data', start)) return null
  if (end - start === 4) return ''
  if (text[start + 4] !== ':') return null
  return raw.toString('utf8', text[start + 5] === ' ' ? start + 6 : start + 5, end)
}

/** Events that are no JSON are forwarded and otherwise left alone. */
function parse(data: string | null): unknown {
  if (data === null || data === '') return undefined
  try {
    return JSON.parse(data)
  } catch {
    return undefined
  }
}

function isChunk(value: unknown): value is ChatCompletionChunk {
  return (
    typeof value === 'object' &&
    value !== null &&
    'choices' in value &&
    Array.isArray(value.choices) &&
    value.choices.every(choice => typeof choice === 'object' && choice !== null)
  )
}
