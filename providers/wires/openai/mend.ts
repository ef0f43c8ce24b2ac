import type { ChatCompletion, ChatCompletionChunk, ChatRequest, FinishReason, ToolCall } from '../../../schemas/chat.ts'
import { UpstreamError } from '../../../schemas/errors.ts'
import { chunkFrames, type Frames, isToken } from '../../../schemas/frames.ts'
import type { EventFrames } from '../../sse/index.ts'

// Many servers only resemble OpenAI's. What is well formed is recognised by searching it and leaves as its own bytes; only
// what OpenAI's SDKs would stumble over is parsed and made anew.

/** Mends one answer. */
export interface Mender {
  /** The answer made anew; null where nothing is wrong with it. @throws UpstreamError for one that was broken off */
  whole(text: string, parsed: () => ChatCompletion): ChatCompletion | null
  /** @param done the server has said that nothing follows */
  frames(read: EventFrames | null, done: boolean): Mended
}

export interface Mended {
  readonly frames: Frames | null
  /** The server broke the answer off: thrown after the frames. */
  readonly fault: Error | null
}

/** OpenAI's reasons, and those of others that are more than an end. */
const reasons: ReadonlyMap<string, FinishReason> = new Map([
  ['stop', 'stop'],
  ['length', 'length'],
  ['tool_calls', 'tool_calls'],
  ['content_filter', 'content_filter'],
  ['function_call', 'function_call'],
  ['max_tokens', 'length'],
  ['max_length', 'length'],
  ['model_length', 'length'],
  ['tool_call', 'tool_calls'],
  ['tool_use', 'tool_calls'],
  ['safety', 'content_filter']
])
/** The answer is not whole: OpenRouter, vLLM. */
const broken: ReadonlySet<unknown> = new Set(['error', 'abort'])

const ours = '(?:stop|length|tool_calls|content_filter|function_call)'
const hasOddEnd = search('"finish_reason"', `"(?!${ours}?")`)
const hasOddReason = search('"finish_reason"', `(?:null|"(?!${ours}"))`)
const hasStopped = search('"finish_reason"', '"stop"')
const hasCall = search('"tool_calls"', '\\[\\s*\\{')

/**
 * A search for a key with such a value. Keys are found by indexOf, which is several times faster than any pattern; one
 * that stands inside a string cannot match, because its closing quote would be escaped.
 */
function search(key: string, value: string): (text: string) => boolean {
  const pattern = new RegExp(`\\s*:\\s*${value}`, 'y')
  return text => {
    for (let at = text.indexOf(key); at !== -1; at = text.indexOf(key, at + key.length)) {
      pattern.lastIndex = at + key.length
      if (pattern.test(text)) return true
    }
    return false
  }
}

/**
 * The same for the last reason that is more than null. Of one choice there is one, and it stands at the end: a search from
 * the front would look at the nulls of all chunks before it.
 */
function hasOddLastEnd(text: string): boolean {
  const key = '"finish_reason"'
  for (let at = text.lastIndexOf(key); at !== -1; at = at === 0 ? -1 : text.lastIndexOf(key, at - 1)) {
    aText.lastIndex = at + key.length
    if (!aText.test(text)) continue
    anOddText.lastIndex = at + key.length
    return anOddText.test(text)
  }
  return false
}

const aText = /\s*:\s*"/y
const anOddText = new RegExp(`\\s*:\\s*"(?!${ours}?")`, 'y')

/** @param request what the answer is to: without tools nobody looks for calls */
export function createMender(request: ChatRequest): Mender {
  const hasTools = Boolean(request.tools?.length)
  const isOnly = (request.n ?? 1) === 1
  let positions: Map<number, Positions> | null = null
  let called = false
  let loose = false
  let finished = false
  /** The last two reads that end nothing: a choice that ends with an empty reason does so in one of them. */
  let last: EventFrames | null = null
  let former: EventFrames | null = null

  function whole(text: string, parsed: () => ChatCompletion): ChatCompletion | null {
    const hasCalls = hasTools && hasCall(text)
    if (!hasCalls && !hasOddReason(text)) return null
    const body = parsed()
    if (!Array.isArray(body.choices)) return null
    const choices = body.choices.map(mendedChoice)
    return choices.some((choice, index) => choice !== body.choices[index]) ? { ...body, choices } : null
  }

  function frames(read: EventFrames | null, done: boolean): Mended {
    const mended = read === null ? { frames: null, fault: null } : mendedRead(read)
    if (!done || finished || mended.fault !== null) return mended
    const end = closing(last, called) ?? closing(former, called)
    if (end === null) return mended
    return { frames: chunkFrames([...(mended.frames ?? []), end]), fault: null }
  }

  function mendedRead(read: EventFrames): Mended {
    let hasCalls = false
    if (hasTools && (loose || !called)) {
      hasCalls = read.has(hasCall)
      // Whoever writes its first call well is trusted with the others.
      if (hasCalls && !called) loose = isLoose(read)
      called ||= hasCalls
    }
    const ends = read.finished
    finished ||= ends
    if (!ends) {
      former = last
      last = read
    }
    const isOdd = ends && (read.has(isOnly ? hasOddLastEnd : hasOddEnd) || (called && isOnly && read.has(hasStopped)))
    return isOdd || (loose && hasCalls) ? remade(read) : { frames: read, fault: null }
  }

  function remade(read: EventFrames): Mended {
    const chunks: ChatCompletionChunk[] = []
    for (const chunk of read) {
      const breach = chunk.choices.find(choice => broken.has(choice.finish_reason))
      if (breach !== undefined) {
        const said = { ...chunk, choices: chunk.choices.map(choice => ({ ...choice, finish_reason: null })) }
        if (isToken(said)) chunks.push(said)
        return { frames: chunks.length > 0 ? chunkFrames(chunks) : null, fault: brokenOff(breach.finish_reason) }
      }
      chunks.push({ ...chunk, choices: chunk.choices.map(mendedDelta) })
    }
    return { frames: chunks.length > 0 ? chunkFrames(chunks) : null, fault: null }
  }

  function mendedDelta(choice: ChatCompletionChunk['choices'][number]): typeof choice {
    const { finish_reason: reason } = choice
    const written = choice.delta?.tool_calls
    const next: typeof choice = { ...choice }
    if (typeof reason === 'string' && reason !== '') next.finish_reason = reasonOf(reason, called && isOnly)
    if (loose && Array.isArray(written)) {
      positions ??= new Map()
      let places = positions.get(choice.index)
      if (places === undefined) {
        places = { ids: [], last: -1 }
        positions.set(choice.index, places)
      }
      next.delta = { ...choice.delta, tool_calls: written.filter(isObject).map(call => mendedPart(call, places)) }
    }
    return next
  }

  return { whole, frames }
}

/** The calls of one choice, in the order in which they began. */
interface Positions {
  /** Of each: its id, or nothing. */
  ids: Array<string | null>
  last: number
}

type CallPart = NonNullable<ChatCompletionChunk['choices'][number]['delta']['tool_calls']>[number]

/** A piece of a call with its index; the first piece of each says its type. */
function mendedPart(call: CallPart, places: Positions): CallPart {
  const id = call.id || null
  let index: number = call.index
  if (typeof index !== 'number') {
    const at = id === null ? -1 : places.ids.indexOf(id)
    if (at !== -1) index = at
    else index = id !== null || call.function?.name ? places.ids.length : Math.max(0, places.last)
  }
  const isFirst = places.ids[index] === undefined
  if (isFirst) places.ids[index] = id
  places.last = index
  const part: CallPart = { ...call, index }
  if (isFirst && !part.type) part.type = 'function'
  if (isObject(call.function)) part.function = withText(call.function, isFirst ? '' : undefined)
  return part
}

/** Whether the first piece of a call lacks what OpenAI's has. */
function isLoose(read: EventFrames): boolean {
  for (const { choices } of read) {
    for (const { delta } of choices) {
      const first = delta?.tool_calls?.[0]
      if (!isObject(first)) continue
      const text: unknown = first.function?.arguments
      return typeof first.index !== 'number' || !first.type || (text !== undefined && typeof text !== 'string')
    }
  }
  return false
}

/** The end of a stream whose last choice ended with an empty reason; null for every other. */
function closing(read: EventFrames | null, called: boolean): ChatCompletionChunk | null {
  const last = read === null ? undefined : [...read].findLast(({ choices }) => choices.length > 0)
  if (last === undefined || !last.choices.every(choice => choice.finish_reason === '')) return null
  const reason = called ? 'tool_calls' : 'stop'
  return { ...last, choices: last.choices.map(({ index }) => ({ index, delta: {}, finish_reason: reason })) }
}

type Choice = ChatCompletion['choices'][number]

function mendedChoice(choice: Choice): Choice {
  if (!isObject(choice)) return choice
  const reason: unknown = choice.finish_reason
  if (broken.has(reason)) throw brokenOff(reason)
  const written = choice.message?.tool_calls
  const tools = Array.isArray(written) ? written.filter(isObject).map(mendedCall) : []
  const next = reasonOf(typeof reason === 'string' ? reason : '', tools.length > 0)
  const isSame = next === reason && tools.every((call, index) => call === written?.[index])
  if (isSame) return choice
  const message = tools.length > 0 ? { ...choice.message, tool_calls: tools } : choice.message
  return { ...choice, message, finish_reason: next }
}

function mendedCall(call: ToolCall): ToolCall {
  const own = isObject(call.function) ? withText(call.function, '{}') : call.function
  return call.type && own === call.function ? call : { ...call, type: call.type || 'function', function: own }
}

/** Arguments are JSON as a text; `none` stands for those that are missing. */
function withText<Own extends { arguments?: string }>(own: Own, none: string | undefined): Own {
  const text: unknown = own.arguments
  if (typeof text === 'string') return own
  const missing = text === undefined || text === null
  if (missing && none === undefined) return own
  return { ...own, arguments: missing ? none : JSON.stringify(text) }
}

/** One of OpenAI's reasons; where calls were made they are the reason to stop, whatever the server says. */
function reasonOf(said: string, called: boolean): FinishReason {
  const reason = reasons.get(said.toLowerCase()) ?? 'stop'
  return reason === 'stop' && called ? 'tool_calls' : reason
}

function brokenOff(reason: unknown): Error {
  return new UpstreamError(`it broke its answer off (finish_reason ${String(reason)}).`)
}

/** What is there at all, and no text in its place. */
function isObject<Value>(value: Value): value is Value & object {
  return typeof value === 'object' && value !== null
}
