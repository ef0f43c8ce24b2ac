import type { ChatCompletion, CompletionUsage } from '../../../schemas/chat.ts'
import { UpstreamError } from '../../../schemas/errors.ts'
import type { Answer } from '../../../schemas/gateway.ts'
import { type Redact, type VendorError, vendorFault } from '../../faults.ts'
import { eventReader, type Read } from '../../sse.ts'
import { isEncoded, type Step, type StreamReader } from '../../stream.ts'
import type { Reply } from '../../upstream.ts'

const errorKey = /"error"\s*:\s*[^n\s]|"object"\s*:\s*"error"/
const usageKey = /(?<=[{,\s])"usage"\s*:\s*/g
/** The most bytes from the usage to the end of a body that are searched for brackets; nearly everybody puts it last. */
const longestTail = 65_536
/** A bracket, or a whole string. */
const structural = /[{}[\]]|"(?:[^"\\]|\\.)*"/g
/** Bytes of a body that is parsed as fast as it is searched. */
const cheapToParse = 512
const openBrace = 123
const closeBrace = 125

/** A whole answer, untouched: parsed when somebody reads it, and here only when it may hold an error. */
export function wholeAnswer(reply: Reply, redact: Redact): Answer {
  const raw = reply.body ?? Buffer.alloc(0)
  if (reply.status !== 200) throw vendorFault(reply.status, errorIn(parse(raw)), reply.headers, redact)
  if (isEncoded(reply)) throw new UpstreamError('it compressed an answer that nobody asked to.')
  if (!looksWhole(raw)) throw new UpstreamError('its answer is not JSON.')
  let body: ChatCompletion | null = null
  let usage: CompletionUsage | null | undefined
  if (errorKey.test(raw.toString('latin1'))) {
    const parsed = parse(raw)
    const error = errorIn(parsed)
    if (error !== null) throw vendorFault(statusOf(error), error, reply.headers, redact)
  }
  return {
    stream: false,
    raw,
    get body() {
      body ??= completionOf(raw)
      return body
    },
    get usage() {
      if (usage === undefined) usage = body === null ? usageFound(raw, () => this.body) : usageIn(body)
      return usage
    }
  }
}

/**
 * The usage of a body that nobody else reads, without parsing the rest of it: taken when the key stands there once, as
 * a field of the body itself; otherwise the whole body is parsed. A key inside a string cannot match, because its quotes
 * would be escaped.
 */
function usageFound(raw: Buffer, parsed: () => ChatCompletion): CompletionUsage | null {
  if (raw.length < cheapToParse) return usageIn(parsed())
  const text = raw.toString('latin1')
  usageKey.lastIndex = 0
  if (!usageKey.test(text)) return null
  const start = usageKey.lastIndex
  if (usageKey.test(text) || text[start] !== '{') return usageIn(parsed())
  if (text.length - start > longestTail) return usageIn(parsed())
  const end = closing(text, start, 0)
  // Of the body itself: its own brace is the only one that closes after it.
  if (end === -1 || closing(text, end, 1) !== text.trimEnd().length) return usageIn(parsed())
  const found = parse(raw.subarray(start, end))
  return isUsage(found) ? found : usageIn(parsed())
}

/** The position after the bracket that closes all that are open: those inside `text` from `from` on, and `depth` before. */
function closing(text: string, from: number, depth: number): number {
  structural.lastIndex = from
  for (let match = structural.exec(text); match !== null; match = structural.exec(text)) {
    const mark = match[0]
    if (mark === '{' || mark === '[') depth++
    else if ((mark === '}' || mark === ']') && --depth <= 0) return structural.lastIndex
  }
  return -1
}

function usageIn(body: unknown): CompletionUsage | null {
  return typeof body === 'object' && body !== null && 'usage' in body && isUsage(body.usage) ? body.usage : null
}

function isUsage(value: unknown): value is CompletionUsage {
  return typeof value === 'object' && value !== null
}

/** Reads a stream of OpenAI's events: forwarded as they are, looked into only for errors. */
export function chunkReader(reply: Reply, maxEvent: number, redact: Redact): StreamReader {
  const events = eventReader(maxEvent)

  function step({ frames, done }: Read): Step {
    const failed = frames === null ? null : frames.fault
    if (failed === null) return { frames, done, fault: null }
    const { error, before } = failed
    const fault = vendorFault(statusOf(error), asVendorError(error), reply.headers, redact)
    return { frames: before, done: true, fault }
  }

  return { read: bytes => step(events.read(bytes)), end: () => step(events.end()) }
}

/** JSON objects begin and end with a brace; a truncated one does not. Cheaper than parsing what we only hand on. */
function looksWhole(raw: Buffer): boolean {
  let start = 0
  let end = raw.length - 1
  while (start < end && raw[start]! <= 32) start++
  while (end > start && raw[end]! <= 32) end--
  return raw[start] === openBrace && raw[end] === closeBrace
}

function completionOf(raw: Buffer): ChatCompletion {
  try {
    return JSON.parse(raw.toString('utf8'))
  } catch (cause) {
    throw new UpstreamError('its answer is not JSON.', { cause })
  }
}

function parse(raw: Buffer): unknown {
  try {
    return JSON.parse(raw.toString('utf8'))
  } catch {
    return undefined
  }
}

/** The error in a body: OpenAI's object, a bare string, the body itself (old vLLM), or one inside a choice (OpenRouter). */
function errorIn(body: unknown): VendorError | string | null {
  if (typeof body !== 'object' || body === null) return null
  if ('error' in body && body.error) return asVendorError(body.error)
  if ('object' in body && body.object === 'error') return asVendorError(body)
  if ('choices' in body && Array.isArray(body.choices)) {
    for (const choice of body.choices) if (choice?.error) return asVendorError(choice.error)
  }
  return null
}

function asVendorError(error: unknown): VendorError | string {
  if (typeof error === 'string') return error
  return typeof error === 'object' && error !== null ? error : { message: 'an error without words' }
}

/** Servers that answer 200 say the status in the error's code, as a number or as its text. */
function statusOf(error: unknown): number {
  const code = typeof error === 'object' && error !== null && 'code' in error ? Number(error.code) : 0
  return Number.isInteger(code) && code >= 400 && code <= 599 ? code : 0
}
