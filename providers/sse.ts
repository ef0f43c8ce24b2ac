import type { ChatCompletionChunk, CompletionUsage } from '../schemas/chat.ts'
import { UpstreamError } from '../schemas/errors.ts'
import { type Frames, isToken, isUsageOnly, spokenKeys } from '../schemas/frames.ts'
import { jsonOf } from '../schemas/json.ts'

const LF = 10
const CR = 13
const finishKey = '"finish_reason"'
const terminator = '[DONE]'
/** As nearly everybody writes it, with the blank line before it. */
const wholeTerminator = '\n\ndata: [DONE]\n\n'
// Few alternatives on purpose: V8 searches these several times faster than one pattern that says everything. A key that
// stands inside a string cannot match, because its closing quote would be escaped.
const eventful = /"(error|usage)"\s*:\s*[^n\s]/g
const erroneous = /"error"\s*:\s*[^n\s]/
const counting = /"usage"\s*:\s*\{/
const finish = /"finish_reason"\s*:\s*"[^"]/
/** What most first tokens look like; everything else is parsed. */
const spoken = /"(?:content|arguments|reasoning|reasoning_content)"\s*:\s*"[^"]/

/** Up to the first character of a text that is not empty. */
const saying = new RegExp(`"(?:${spokenKeys.join('|')})"\\s*:\\s*"(?!")`, 'g')

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
  const cutter = createCutter(limit)

  function read(bytes: Buffer): Read {
    const whole = cutter.cut(bytes)
    return whole === null ? nothing : take(whole)
  }

  function end(): Read {
    const rest = cutter.rest()
    if (rest === null) return nothing
    // Now nothing can follow that makes a CRLF of a CR at the end.
    if (lastBoundary(Buffer.concat([rest, Buffer.from(' ')])) === rest.length) return take(rest)
    const read = take(Buffer.concat([rest, Buffer.from('\n\n')]))
    return read.frames === null || read.frames.isReadable ? read : nothing
  }

  return { read, end }
}

/** Takes the data of events out of a stream that is not OpenAI's; bytes may be split anywhere. */
export interface DataReader {
  /** The data of each event that these bytes complete. @throws UpstreamError when one event grows over the limit */
  read(bytes: Buffer): string[]
  /** The same for an event that lacks its blank line at the end of the stream, or for JSON that is no event at all. */
  end(): string[]
}

/**
 * @param limit the most bytes that one event may have
 * @param encoding `latin1` gives every byte as a character, for those who hand on most of it as it is
 */
export function dataReader(limit: number, encoding: 'utf8' | 'latin1' = 'utf8'): DataReader {
  const cutter = createCutter(limit)

  function datasOf(whole: Buffer | null): string[] {
    if (whole === null) return []
    const datas: string[] = []
    const events = eventsIn(encoding === 'utf8' ? whole : null, whole.toString('latin1'))
    for (const { data } of events) if (data !== null && data !== '') datas.push(data)
    return datas
  }

  return {
    read: bytes => datasOf(cutter.cut(bytes)),
    end() {
      const rest = cutter.rest()
      const datas = datasOf(rest)
      // Google, for one, breaks off with an error that is no event.
      const bare = datas.length === 0 && rest !== null ? rest.toString(encoding).trim() : ''
      return /^[[{]/.test(bare) ? [bare] : datas
    }
  }
}

/** Cuts bytes after the last event that is whole and keeps the rest. */
function createCutter(limit: number) {
  let held: Buffer[] = []
  let size = 0

  function cut(bytes: Buffer): Buffer | null {
    const own = lastBoundary(bytes)
    if (own === bytes.length && size === 0) return bytes
    const at = own > 0 || size === 0 ? own : boundaryAcross(held, bytes)
    if (at < 0 || (at === 0 && size === 0)) {
      hold(bytes)
      return null
    }
    const whole = size === 0 ? bytes.subarray(0, at) : Buffer.concat([...held, bytes.subarray(0, at)])
    held = []
    size = 0
    if (at < bytes.length) hold(bytes.subarray(at))
    return whole
  }

  function hold(bytes: Buffer): void {
    size += bytes.length
    if (size > limit) throw new UpstreamError(`one event of its stream is larger than ${limit} bytes.`)
    held.push(bytes)
  }

  function rest(): Buffer | null {
    if (size === 0) return null
    const bytes = Buffer.concat(held)
    held = []
    size = 0
    return bytes
  }

  return { cut, rest }
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
    if (text.startsWith(wholeTerminator, start - 2)) return ended(bytes, text, start)
    if (!text.startsWith('data:', start) || !isLineEnd(text[at + terminator.length])) continue
    const event = eventAround(bytes, text, at)
    if (event?.data !== terminator) continue
    return ended(bytes, text, event.start)
  }
  return { frames: new EventFrames(bytes, false, text), done: false }
}

/** What came before the terminator. */
function ended(bytes: Buffer, text: string, at: number): Read {
  if (at === 0) return { frames: null, done: true }
  return { frames: new EventFrames(bytes.subarray(0, at), true, text.slice(0, at)), done: true }
}

/** The event in which a position lies. */
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

/**
 * Frames backed by the provider's bytes. What a search of them can answer is answered without parsing; iterating
 * parses event by event and no further than the consumer goes.
 */
export class EventFrames implements Frames {
  readonly raw: Buffer
  readonly dialect = 'openai'
  readonly last: boolean
  #latin1: string | null
  #chunks: ChatCompletionChunk[] = []
  #events: Iterator<Event> | null = null
  #found: Words | null = null
  #said: Said | null = null
  #finished: boolean | null = null

  constructor(raw: Buffer, last = false, text: string | null = null) {
    this.raw = raw
    this.last = last
    this.#latin1 = text
  }

  get finished(): boolean {
    this.#finished ??= finishIn(this.#text())
    return this.#finished
  }

  /** Whether a search of these bytes, each taken as one character, finds what it looks for. */
  has(search: (text: string) => boolean): boolean {
    return search(this.#text())
  }

  get hasUsage(): boolean {
    return this.#words().usage
  }

  get usage(): CompletionUsage | null {
    if (!this.hasUsage) return null
    let usage: CompletionUsage | null = null
    for (const { data } of found(this.raw, this.#text(), counting)) {
      const chunk = jsonOf(data)
      if (isChunk(chunk) && typeof chunk.usage === 'object' && chunk.usage !== null) usage = chunk.usage
    }
    return usage
  }

  /** The first error that an event of these carries, and the frames before it; null without one. */
  get fault(): { error: unknown; before: EventFrames | null } | null {
    if (!this.#words().error) return null
    for (const { start, data } of found(this.raw, this.#text(), erroneous)) {
      const value = jsonOf(data)
      const error = typeof value === 'object' && value !== null ? errorOf(value) : undefined
      if (!error) continue
      return { error, before: start > 0 ? new EventFrames(this.raw.subarray(0, start)) : null }
    }
    return null
  }

  get hasToken(): boolean {
    if (spoken.test(this.#text().slice(0, 1_024))) return true
    for (const chunk of this) if (isToken(chunk)) return true
    return false
  }

  get hasData(): boolean {
    return this.raw.toString('latin1', 0, 4) === 'data' || /(?:[\r\n]|^\xef\xbb\xbf)data/.test(this.#text())
  }

  get pieces(): number {
    this.#said ??= saidIn(this.#text())
    return this.#said.pieces
  }

  get textBytes(): number {
    this.#said ??= saidIn(this.#text())
    return this.#said.bytes
  }

  /** True when everything that these events say is JSON. */
  get isReadable(): boolean {
    const events = eventsIn(this.raw, this.#text())
    for (const { data } of events) if (data !== null && jsonOf(data) === undefined) return false
    return true
  }

  withoutUsage(): Frames | null {
    const kept: Buffer[] = []
    let from = 0
    for (const { start, end, data } of found(this.raw, this.#text(), counting)) {
      const chunk = jsonOf(data)
      if (!isChunk(chunk) || !isUsageOnly(chunk)) continue
      if (start > from) kept.push(this.raw.subarray(from, start))
      from = end
    }
    if (from === 0) return this
    if (from < this.raw.length) kept.push(this.raw.subarray(from))
    if (kept.length === 0) return null
    return new EventFrames(kept.length === 1 ? kept[0]! : Buffer.concat(kept), this.last)
  }

  *[Symbol.iterator](): Generator<ChatCompletionChunk> {
    for (let index = 0; ; index++) {
      const chunk = this.#chunks[index] ?? this.#parseNext()
      if (chunk === null) return
      yield chunk
    }
  }

  #parseNext(): ChatCompletionChunk | null {
    this.#events ??= eventsIn(this.raw, this.#text())
    for (let read = this.#events.next(); !read.done; read = this.#events.next()) {
      const value = jsonOf(read.value.data)
      if (!isChunk(value)) continue
      this.#chunks.push(value)
      return value
    }
    return null
  }

  #text(): string {
    this.#latin1 ??= this.raw.toString('latin1')
    return this.#latin1
  }

  #words(): Words {
    this.#found ??= wordsIn(this.#text())
    return this.#found
  }
}

function finishIn(text: string): boolean {
  // Where it is, it stands in the last event or two.
  const last = text.indexOf(finishKey, text.length - 1_024)
  return (last !== -1 && finish.test(text.slice(last))) || finish.test(text)
}

/** Whether an error or a usage may be told of; false is certain. */
interface Words {
  error: boolean
  usage: boolean
}

/** One search for both words, since most reads hold neither. */
function wordsIn(text: string): Words {
  const words = { error: false, usage: false }
  eventful.lastIndex = 0
  for (let match = eventful.exec(text); match !== null; match = eventful.exec(text)) {
    if (match[1] === 'error') words.error = true
    else words.usage = true
  }
  return words
}

/** How much these events say. */
interface Said {
  pieces: number
  bytes: number
}

/**
 * Finds texts without parsing. No line end stands inside JSON text, so texts without one between them are of one event;
 * there the same words under a second name, as OpenRouter sends its reasoning, count once.
 */
function saidIn(text: string): Said {
  const said = { pieces: 0, bytes: 0 }
  let before = ''
  let end = -1
  let lineFeed = -1
  saying.lastIndex = 0
  while (saying.test(text)) {
    const start = saying.lastIndex
    const isNext = end === -1 || lineFeed < start || text.slice(end, start).includes('\r')
    end = closingQuote(text, start)
    saying.lastIndex = end + 1
    const words = text.slice(start, end)
    if (isNext) said.pieces++
    else if (words === before) continue
    before = words
    said.bytes += words.includes('\\') ? unescapedBytes(words) : words.length
    if (lineFeed < end) lineFeed = following('\n', text, end)
  }
  return said
}

function following(character: string, text: string, from: number): number {
  const at = text.indexOf(character, from)
  return at === -1 ? text.length : at
}

/** The first quote from a position on that no backslash escapes. */
function closingQuote(text: string, from: number): number {
  for (let at = text.indexOf('"', from); at !== -1; at = text.indexOf('"', at + 1)) {
    let slash = at
    while (slash > from && text[slash - 1] === '\\') slash--
    if ((at - slash) % 2 === 0) return at
  }
  return text.length
}

/** Bytes of a JSON text once its escapes are what they stand for. */
function unescapedBytes(words: string): number {
  let bytes = words.length
  for (let at = words.indexOf('\\'); at !== -1; at = words.indexOf('\\', at + (words[at + 1] === 'u' ? 6 : 2))) {
    bytes -= words[at + 1] === 'u' ? 6 - utf8Length(Number.parseInt(words.slice(at + 2, at + 6), 16)) : 1
  }
  return bytes
}

/** Bytes of a UTF-16 unit; a half of a pair takes half of its four. */
function utf8Length(unit: number): number {
  if (unit < 0x80) return 1
  return unit < 0x8_00 || (unit >= 0xd8_00 && unit < 0xe0_00) ? 2 : 3
}

/** The events that a search finds, each once. */
function* found(raw: Buffer, text: string, pattern: RegExp): Generator<Event> {
  for (let at = text.search(pattern), from = 0; at !== -1; ) {
    const event = eventAround(raw, text, from + at)
    if (event === undefined) return
    yield event
    from = Math.max(from + at + 1, event.end)
    at = text.slice(from).search(pattern)
  }
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

/**
 * The events of `raw` from a position on, one at a time; `text` is the latin1 of `raw`: one character a byte. Without
 * `raw` their data is latin1, too.
 */
function* eventsIn(raw: Buffer | null, text: string, from = 0): Generator<Event> {
  let start = from
  let line = from
  let data: string | null = null
  // A byte order mark may stand before the first field of a stream.
  if (from === 0 && text.startsWith('\xef\xbb\xbf')) line = 3
  while (line < text.length) {
    const lf = text.indexOf('\n', line)
    const cr = text.slice(line, lf === -1 ? undefined : lf).indexOf('\r')
    const end = cr !== -1 ? line + cr : lf === -1 ? text.length : lf
    const next = text[end] === '\r' && text[end + 1] === '\n' ? end + 2 : end + 1
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

/** The value of a `data:` line, without the one space that may follow the colon; null for any other line. */
function dataOf(raw: Buffer | null, text: string, start: number, end: number): string | null {
  if (!text.startsWith('data', start)) return null
  if (end - start === 4) return ''
  if (text[start + 4] !== ':') return null
  const from = text[start + 5] === ' ' ? start + 6 : start + 5
  return raw === null ? text.slice(from, end) : raw.toString('utf8', from, end)
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
