import { type GatewayError, UpstreamError } from '../../../schemas/errors.ts'
import { jsonOf, listOf } from '../../../schemas/json.ts'
import { dataReader, EventFrames } from '../../sse/index.ts'
import type { StreamReader } from '../../stream.ts'
import type { Reply } from '../../upstream.ts'
import {
  blockOf,
  type Candidate,
  finishOf,
  type GeminiResponse,
  googleFault,
  idOf,
  imageOf,
  isReport,
  isResponse,
  logprobsOf,
  type Origin,
  partsOf,
  refusalOf,
  signed,
  toolCallOf,
  type UsageMetadata,
  unreadable,
  usageFrom
} from './answer.ts'

// Most events bring one text and nothing else. The first of them is taken apart by these three patterns, one after the
// other; those that are built alike are recognised by what stands around their text, which goes on as the JSON that it is.
// Everything else is parsed. All of it goes by bytes, as characters of latin1.
const opening =
  /\{\s*"candidates"\s*:\s*\[\s*\{\s*"content"\s*:\s*\{\s*(?:"role"\s*:\s*"model"\s*,\s*)?"parts"\s*:\s*\[\s*\{\s*"text"\s*:\s*"/y
const literal = /[ !#-[\]-\xff]*(?:\\(?:["\\/bfnrt]|u[\da-fA-F]{4})[ !#-[\]-\xff]*)*/y
const closing =
  /"\s*\}\s*\](?:\s*,\s*"role"\s*:\s*"model")?\s*\}(?:\s*,\s*"index"\s*:\s*0)?\s*\}\s*\]\s*,\s*"usageMetadata"\s*:/y

const textTail = '"},"logprobs":null,"finish_reason":null}]}\n\n'

/** How an event with one text is built: what stands before it, after it up to the counts, and after those. */
interface Shape {
  readonly before: string
  readonly after: string
  readonly tail: string
}

/** What has become of one candidate so far. */
interface Choice {
  readonly index: number
  calls: number
  /** Something that a client sees. */
  said: boolean
  /** The candidate that named a reason to end; old models name one in every event. */
  ended: Candidate | null
}

/**
 * Reads Google's events and writes OpenAI's. Counts of usage are sums, so the last ones are kept. The end of an answer is
 * the end of its connection, so reasons to finish wait for it.
 */
export function geminiReader(headers: Reply['headers'], maxEvent: number, origin: Origin): StreamReader {
  const events = dataReader(maxEvent, 'latin1')
  const choices = new Map<number, Choice>()
  const created = Math.floor(Date.now() / 1_000)
  let head = ''
  let first: Choice | null = null
  let textHead = ''
  let shape: Shape | null = null
  let usage: UsageMetadata | null = null
  /** An event with newer counts that nobody has parsed yet. */
  let counted: string | null = null
  let out = ''

  /** True when the event brought one text, which has been written. */
  function plain(data: string): boolean {
    if (first === null || shape === null) return false
    // Slices, because V8 is several times slower in `startsWith` and `endsWith`.
    const { before, after, tail } = shape
    if (data.slice(0, before.length) !== before || data.slice(data.length - tail.length) !== tail) return false
    literal.lastIndex = before.length
    literal.test(data)
    const to = literal.lastIndex
    const rest = to + after.length
    if (to === before.length || data.slice(to, rest) !== after || rest + tail.length > data.length) return false
    counted = data
    out += textHead + data.slice(before.length, to) + textTail
    first.said = true
    return true
  }

  function translate(data: string): void {
    if (plain(data)) return
    const response = jsonOf(decoded(data))
    if (!isResponse(response) || response.error) throw faultIn(response)
    if (head === '') begin(response)
    shape = shapeOf(data) ?? shape
    if (isReport(response.usageMetadata)) {
      usage = response.usageMetadata
      counted = null
    }
    for (const candidate of listOf(response.candidates)) hear(candidate)
    if (response.promptFeedback?.blockReason && choices.size === 0) {
      const choice = choiceAt(0, null)
      choice.ended = { finishReason: 'SAFETY', finishMessage: blockOf(response.promptFeedback) }
    }
  }

  function faultIn(value: unknown): Error {
    if (value === undefined) return new UpstreamError('an event of its stream is not JSON.')
    return googleFault(0, value, headers, origin.redact)
  }

  function begin(response: GeminiResponse): void {
    const id = JSON.stringify(idOf(response, origin))
    const model = JSON.stringify(response.modelVersion ?? origin.model)
    head = encoded(
      `data: {"id":${id},"object":"chat.completion.chunk","created":${created},"model":${model},"choices":[`
    )
    textHead = `${head}{"index":0,"delta":{"content":"`
  }

  function write(index: number, delta: object, logprobs: object | null = null, reason: string | null = null): void {
    out += `${head}${encoded(JSON.stringify({ index, delta, logprobs, finish_reason: reason }))}]}\n\n`
  }

  /** The state of a candidate; the first time it says who speaks. */
  function choiceAt(index: number, content: '' | null): Choice {
    const known = choices.get(index)
    if (known !== undefined) return known
    const choice: Choice = { index, calls: 0, said: false, ended: null }
    choices.set(index, choice)
    write(index, { role: 'assistant', content, refusal: null })
    if (index === 0) first = choice
    return choice
  }

  function hear(candidate: Candidate): void {
    const parts = partsOf(candidate)
    const choice = choiceAt(candidate.index ?? 0, parts.some(part => part.functionCall) ? null : '')
    let logprobs = logprobsOf(candidate)
    for (const part of parts) {
      const delta = deltaOf(part, choice)
      if (delta === null) continue
      write(choice.index, delta, logprobs)
      logprobs = null
    }
    if (logprobs !== null) write(choice.index, {}, logprobs)
    if (candidate.finishReason) choice.ended = candidate
  }

  function deltaOf(part: ReturnType<typeof partsOf>[number], choice: Choice): object | null {
    if (part.functionCall) {
      choice.said = true
      return {
        tool_calls: [{ index: choice.calls++, ...toolCallOf(part.functionCall, part.thoughtSignature, origin) }]
      }
    }
    if (part.inlineData?.data) return { images: [imageOf(part.inlineData)] }
    if (part.thought) return part.text ? { reasoning_content: part.text } : null
    if (part.text) choice.said = true
    if (!part.thoughtSignature) return part.text ? { content: part.text } : null
    const signature = { extra_content: signed(part.thoughtSignature) }
    return part.text ? { content: part.text, ...signature } : signature
  }

  /** Takes what was written. */
  function frames(last = false): EventFrames | null {
    if (out === '') return null
    const read = new EventFrames(Buffer.from(out, 'latin1'), last, out)
    out = ''
    return read
  }

  /** Writes the ends. @throws UpstreamError for an answer that is not complete */
  function finish(): void {
    if (choices.size === 0) throw new UpstreamError('its stream ended before its answer began.')
    const all = [...choices.values()]
    if (all.some(({ ended }) => ended === null)) throw new UpstreamError('its stream ended before its answer did.')
    const reasons = all.map(({ ended, calls }) => finishOf(ended?.finishReason, calls > 0))
    for (const [place, { index, ended, said }] of all.entries()) {
      const reason = reasons[place]!
      if (reason === 'content_filter' && !said && ended !== null) write(index, { refusal: refusalOf(ended) })
      write(index, {}, null, reason)
    }
  }

  /** An answer that broke off has its price too. */
  function report(): void {
    if (counted !== null) {
      const last = jsonOf(decoded(counted))
      if (!isResponse(last)) throw new UpstreamError('an event of its stream is not JSON.')
      if (isReport(last.usageMetadata)) usage = last.usageMetadata
    }
    if (usage !== null) out += `${head}],"usage":${JSON.stringify(usageFrom(usage))}}\n\n`
  }

  function take(datas: readonly string[]): GatewayError | null {
    try {
      for (const data of datas) translate(data)
      return null
    } catch (error) {
      return unreadable(error)
    }
  }

  return {
    read(bytes) {
      const fault = take(events.read(bytes))
      return { frames: frames(), done: fault !== null, fault }
    },
    end() {
      const fault = take(events.end()) ?? faultOf(finish)
      const uncounted = faultOf(report)
      return { frames: frames(fault === null), done: true, fault: fault ?? uncounted }
    }
  }
}

/** Null for an event that has more than one text, or no counts before the model's version. */
function shapeOf(data: string): Shape | null {
  opening.lastIndex = 0
  if (!opening.test(data)) return null
  const from = opening.lastIndex
  literal.lastIndex = from
  literal.test(data)
  const to = literal.lastIndex
  closing.lastIndex = to
  const version = data.lastIndexOf('"modelVersion"')
  if (!closing.test(data) || version < closing.lastIndex) return null
  return { before: data.slice(0, from), after: data.slice(to, closing.lastIndex), tail: data.slice(version) }
}

function faultOf(run: () => void): GatewayError | null {
  try {
    run()
    return null
  } catch (error) {
    return unreadable(error)
  }
}

/** Bytes as characters, as the text that they are. */
function decoded(latin1: string): string {
  return Buffer.from(latin1, 'latin1').toString('utf8')
}

/** A text as its bytes, as characters. */
function encoded(text: string): string {
  return Buffer.from(text).toString('latin1')
}
