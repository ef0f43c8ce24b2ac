import type { ChatCompletion, ChatRequest, CompletionUsage } from '../../../schemas/chat.ts'
import { detail, type GatewayError, UpstreamError } from '../../../schemas/errors.ts'
import type { Answer } from '../../../schemas/gateway.ts'
import { jsonOf } from '../../../schemas/json.ts'
import type { Endpoint } from '../../endpoint.ts'
import { notJson, notStreamed, type Redact, type VendorError, vendorFault } from '../../faults.ts'
import { eventReader, type Read } from '../../sse/index.ts'
import { isEncoded, type Step, type StreamReader, streamedAnswer } from '../../stream.ts'
import type { Reply } from '../../upstream.ts'
import type { Mender } from './mend.ts'

const errorKey = /"error"\s*:\s*[^n\s]|"object"\s*:\s*"error"/
const usageKey = /(?<=[{,\s])"usage"\s*:\s*/g
/** The most bytes from the usage to the end of a body that are searched for brackets; nearly everybody puts it last. */
const longestTail = 65_536
/** A bracket, or a whole string. */
const structural = /[{}[\]]|"(?:[^"\\]|\\.)*"/g
/** Bytes of a body that is parsed as fast as it is searched. */
const cheapToParse = 512
/** It answers like that however often it is asked. */
const lasting = { blame: 'target' } as const
const openBrace = 123
const closeBrace = 125

/**
 * The answer to a request, whole or as a stream, as it was asked for.
 * @param mender makes anew what is not well formed; null for a vendor whose answers always are
 */
export function answerTo(
  request: ChatRequest,
  reply: Reply,
  { maxEvent, redact }: Pick<Endpoint, 'maxEvent' | 'redact'>,
  mender: Mender | null
): Answer {
  if (reply.reads !== null) return streamedAnswer(reply, reply.reads, chunkReader(reply, maxEvent, redact, mender))
  const answer = wholeAnswer(reply, redact, mender)
  if (request.stream === true) throw notStreamed()
  // Clients take the first choice without a look.
  if (!reply.body?.includes('"choices"')) throw detail(new UpstreamError('its answer is no completion.'), lasting)
  return answer
}

/** A whole answer, untouched: parsed when somebody reads it, and here only when it may hold an error or need mending. */
export function wholeAnswer(reply: Reply, redact: Redact, mender: Mender | null = null): Answer {
  const raw = reply.body ?? Buffer.alloc(0)
  if (reply.status !== 200) throw faultOf(reply.status, errorIn(jsonOf(raw)), reply.headers, redact)
  if (isEncoded(reply)) throw new UpstreamError('it compressed an answer that nobody asked to.')
  if (!looksWhole(raw)) throw notJson(reply.headers)
  let body: ChatCompletion | null = null
  let usage: CompletionUsage | null | undefined
  const text = raw.toString('latin1')
  if (errorKey.test(text)) {
    const error = errorIn(jsonOf(raw))
    if (error !== null) throw faultOf(statusOf(error), error, reply.headers, redact)
  }
  const mended = mender === null ? null : mender.whole(text, () => completionOf(raw))
  if (mended !== null) return { stream: false, raw: null, body: mended }
  // Whoever asks for the usage does so soon; a long text is not kept for somebody who may not come.
  const searched = text.length > longestTail ? null : text
  return {
    stream: false,
    raw,
    get body() {
      body ??= completionOf(raw)
      return body
    },
    get usage() {
      if (usage === undefined) usage = body === null ? usageFound(raw, searched, () => this.body) : usageIn(body)
      return usage
    }
  }
}

/**
 * The usage of a body that nobody else reads, without parsing the rest of it: taken when the key stands there once, as
 * a field of the body itself; otherwise the whole body is parsed. A key inside a string cannot match, because its quotes
 * would be escaped.
 * @param searched the body as latin1, where somebody has it
 */
function usageFound(raw: Buffer, searched: string | null, parsed: () => ChatCompletion): CompletionUsage | null {
  if (raw.length < cheapToParse) return usageIn(parsed())
  const text = searched ?? raw.toString('latin1')
  usageKey.lastIndex = 0
  if (!usageKey.test(text)) return null
  const start = usageKey.lastIndex
  if (usageKey.test(text) || text[start] !== '{') return usageIn(parsed())
  if (text.length - start > longestTail) return usageIn(parsed())
  const end = closing(text, start, 0)
  // Of the body itself: its own brace is the only one that closes after it.
  if (end === -1 || closing(text, end, 1) !== text.trimEnd().length) return usageIn(parsed())
  const found = jsonOf(raw.subarray(start, end))
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
export function chunkReader(
  reply: Reply,
  maxEvent: number,
  redact: Redact,
  mender: Mender | null = null
): StreamReader {
  const events = eventReader(maxEvent)

  function step({ frames, done }: Read): Step {
    const failed = frames === null ? null : frames.fault
    const whole = failed === null ? frames : failed.before
    const mended = mender === null ? { frames: whole, fault: null } : mender.frames(whole, done && failed === null)
    if (failed === null) return { frames: mended.frames, done: done || mended.fault !== null, fault: mended.fault }
    const { error } = failed
    return { frames: mended.frames, done: true, fault: faultOf(statusOf(error), error, reply.headers, redact) }
  }

  return { read: bytes => step(events.read(bytes)), end: () => step(events.end()) }
}

/** What a question besides chat was answered with: a list, a count. @throws the fault of a status that is not 200 */
export function jsonIn(reply: Reply, redact: Redact): unknown {
  const body = jsonOf(reply.body)
  if (reply.status !== 200) throw faultOf(reply.status, errorIn(body), reply.headers, redact)
  if (body === undefined) throw new UpstreamError('its answer is not JSON.')
  return body
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
  } catch {
    // The error of JSON.parse quotes what it parses.
    throw new UpstreamError('its answer is not JSON.')
  }
}

/** The error in a body: OpenAI's object, a bare string, the body itself (old vLLM), or one inside a choice (OpenRouter). */
function errorIn(body: unknown): unknown {
  if (typeof body !== 'object' || body === null) return null
  if ('error' in body && body.error) return body.error
  if ('object' in body && body.object === 'error') return body
  if ('choices' in body && Array.isArray(body.choices)) {
    for (const choice of body.choices) if (choice?.error) return choice.error
  }
  return null
}

/** A vendor's error under OpenAI's own codes, where it is one of those that decide what is tried next. */
function faultOf(status: number, error: unknown, headers: Reply['headers'], redact: Redact): GatewayError {
  if (error === null) return vendorFault(status, null, headers, redact)
  const said = asVendorError(error)
  if (isTooLong(said)) return vendorFault(status || 400, { ...said, code: tooLong }, headers, redact)
  // A moderation's 403 is about the request, not about our key.
  const refused = isModerated(said)
  const code = refused ? 'content_policy_violation' : (said.metadata?.error_type ?? said.code)
  return vendorFault(refused ? 400 : status, { ...said, code }, headers, redact)
}

/** OpenAI's error with what others put into it: OpenRouter its own words for what happened. */
interface WireError extends VendorError {
  readonly metadata?: { readonly error_type?: unknown; readonly flagged_input?: unknown; readonly patterns?: unknown }
}

function asVendorError(error: unknown): WireError {
  if (typeof error === 'string') return { message: error }
  if (typeof error !== 'object' || error === null) return { message: 'an error without words' }
  const said: WireError = { ...error }
  const metadata = typeof said.metadata === 'object' && said.metadata !== null ? said.metadata : undefined
  // LiteLLM writes Python's word for null.
  return { ...said, metadata, param: said.param === 'None' ? null : said.param }
}

const tooLong = 'context_length_exceeded'
/** vLLM, xAI and what LiteLLM passes on of OpenAI; llama.cpp behind Ollama; LiteLLM itself. */
const tooLongWords =
  /maximum (?:context|model|prompt) length|exceeds the (?:available )?context (?:size|length|window)|ContextWindowExceededError/

function isTooLong({ code, type, message, metadata }: WireError): boolean {
  if (code === tooLong || metadata?.error_type === tooLong || type === 'exceed_context_size_error') return true
  return typeof message === 'string' && tooLongWords.test(message)
}

function isModerated({ code, metadata }: WireError): boolean {
  if (metadata === undefined) return false
  const { error_type: type, flagged_input: flagged, patterns } = metadata
  if (type === 'content_policy_violation' || type === 'refusal') return true
  return Number(code) === 403 && (flagged !== undefined || patterns !== undefined)
}

/** Servers that answer 200 say the status in the error's code, as a number or as its text. */
function statusOf(error: unknown): number {
  const code = typeof error === 'object' && error !== null && 'code' in error ? Number(error.code) : 0
  return Number.isInteger(code) && code >= 400 && code <= 599 ? code : 0
}
