import { isAscii } from 'node:buffer'
import { randomUUID } from 'node:crypto'
import { Readable } from 'node:stream'
import type { FastifyBodyParser, FastifyRequest, preParsingHookHandler, RequestPayload } from 'fastify'

// Images, sounds and documents in a request. A body that Fastify reads is in memory four times: in reads, in one piece, as
// text and as values. Here long strings leave the bytes before those become text, and come back when the rest was parsed.

export const cutKey = Symbol('gateway.cut')

declare module 'fastify' {
  interface FastifyRequest {
    [cutKey]: Cut | null
  }
}

/** What was taken out of a body. */
interface Cut {
  /** By the mark that stands for each of them. */
  readonly strings: ReadonlyMap<string, string>
  /** What all marks begin with. Nobody can have sent it. */
  readonly mark: string
  /** The body as it came. */
  readonly whole: Buffer
}

/** Bodies of fewer bytes are Fastify's alone. */
const large = 1_048_576
/** Strings of fewer bytes stay where they are. */
const long = 262_144
const quote = 0x22
const backslash = 0x5c

/** Reads large bodies in Fastify's place, if they say how large they are, and hands it the rest. */
export function cutting(bodyLimit: number): preParsingHookHandler {
  return (request, _reply, payload, done) => {
    const size = Number(request.headers['content-length'])
    if (!(size >= large && size <= bodyLimit)) return done(null, payload)
    const count = (bytes: number) => {
      // What Fastify compares with the limit and with the header.
      rest.receivedEncodedLength = bytes
    }
    const rest: RequestPayload = Readable.from(restOf(request, payload, size, count))
    done(null, rest)
  }
}

async function* restOf(
  request: FastifyRequest,
  payload: RequestPayload,
  size: number,
  count: (bytes: number) => void
): AsyncIterable<Buffer> {
  // Grows with what came, not with what was announced. `transfer` frees at once what it leaves; the collector would wait.
  let memory = new ArrayBuffer(large)
  let bytes = 0
  for await (const chunk of payload) {
    const needed = bytes + chunk.length
    if (needed > memory.byteLength) memory = memory.transfer(Math.max(needed, Math.min(size, 2 * memory.byteLength)))
    chunk.copy(Buffer.from(memory), bytes)
    bytes = needed
    count(bytes)
  }
  const whole = Buffer.from(memory, 0, bytes)
  const mark = randomUUID()
  const strings = new Map<string, string>()
  let from = 0
  for (const { start, end } of runsIn(whole)) {
    const text = verbatim(whole.subarray(start, end))
    if (text === null) continue
    const own = `${mark}${strings.size}`
    strings.set(own, text)
    yield whole.subarray(from, start)
    yield Buffer.from(own)
    from = end
  }
  if (strings.size > 0) request[cutKey] = { mark, strings, whole }
  yield whole.subarray(from)
}

/** Long runs between two quotes. The last quote of a window is looked for, so most of an ordinary text is never looked at. */
function* runsIn(bytes: Buffer): Iterable<{ start: number; end: number }> {
  let start = bytes.indexOf(quote) + 1
  while (start > 0 && start + long <= bytes.length) {
    const last = bytes.subarray(start, start + long).lastIndexOf(quote)
    if (last !== -1) {
      start += last + 1
      continue
    }
    const end = bytes.indexOf(quote, start + long)
    if (end !== -1) yield { start, end }
    start = end + 1
  }
}

/** The text of a run that JSON would not read in any other way, or null. */
function verbatim(run: Buffer): string | null {
  if (!isAscii(run) || run.includes(backslash)) return null
  const text = run.toString()
  return /[^ -\uffff]/.test(text) ? null : text
}

/**
 * Puts back what was cut out. Whether a run was a string shows only here: where a mark is not found again as a whole value,
 * once, the run was something else (the name of a field, numbers, a value that a second one of its name replaced), and the
 * body is parsed as it came.
 */
export function mending(parse: FastifyBodyParser<string>): FastifyBodyParser<string> {
  return (request, body, done) => {
    const cut = request[cutKey]
    if (cut === null) return parse(request, body, done)
    request[cutKey] = null
    return parse(request, body, (error, value) => {
      const mended = error ? undefined : mend(value, cut)
      if (mended === undefined) parse(request, cut.whole.toString(), done)
      else done(null, mended)
    })
  }
}

/** The value with its strings, undefined if they do not all have their place. Without recursion: depth is the caller's. */
function mend(value: unknown, { strings, mark }: Cut): unknown {
  const root = { value }
  const left: object[] = [root]
  let found = 0

  function visit(holder: object, name: string | number, part: unknown): void {
    if (typeof part === 'object' && part !== null) left.push(part)
    if (typeof part !== 'string' || !part.startsWith(mark)) return
    const text = strings.get(part)
    if (text === undefined) return
    Reflect.set(holder, name, text)
    found++
  }

  for (let holder = left.pop(); holder !== undefined; holder = left.pop()) {
    if (Array.isArray(holder)) for (let index = 0; index < holder.length; index++) visit(holder, index, holder[index])
    else for (const [name, part] of Object.entries(holder)) visit(holder, name, part)
  }
  return found === strings.size ? root.value : undefined
}
