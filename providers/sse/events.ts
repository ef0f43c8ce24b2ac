import { UpstreamError } from '../../schemas/errors.ts'

const LF = 10
const CR = 13

/** Where one event stands, and the data it carries: null for comments and other fields alone. */
export interface Event {
  readonly start: number
  readonly end: number
  readonly data: string | null
}

/** Cuts bytes after the last event that is whole and keeps the rest. */
export function createCutter(limit: number) {
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
export function lastBoundary(bytes: Buffer): number {
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

/** The event in which a position lies. */
export function eventAround(raw: Buffer, text: string, position: number): Event | undefined {
  for (const event of eventsIn(raw, text, eventStart(text, position))) if (event.end > position) return event
  return undefined
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
export function* eventsIn(raw: Buffer | null, text: string, from = 0): Generator<Event> {
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
