import { type GatewayError, UpstreamError } from '../../../schemas/errors.ts'
import { dataReader, EventFrames } from '../../sse.ts'
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
  isResponse,
  listOf,
  logprobsOf,
  type Origin,
  parse,
  partsOf,
  refusalOf,
  signed,
  toolCallOf,
  type UsageMetadata,
  unreadable,
  usageFrom
} from './answer.ts'

// Most events bring one text and nothing else. They are recognised by these three patterns, one after the other, and
// their text goes on as the JSON that it is; everything else is parsed.
const opening =
  /\{\s*"candidates"\s*:\s*\[\s*\{\s*"content"\s*:\s*\{\s*(?:"role"\s*:\s*"model"\s*,\s*)?"parts"\s*:\s*\[\s*\{\s*"text"\s*:\s*"/y
const literal = /[ !#-[\]-\uffff]*(?:\\(?:["\\/bfnrt]|u[\da-fA-F]{4})[ !#-[\]-\uffff]*)*/y
const closing = /"\s*\}\s*\](?:\s*,\s*"role"\s*:\s*"model")?\s*\}(?:\s*,\s*"index"\s*:\s*0)?\s*\}\s*\]\s*[,}]/y

const textTail = '"},"logprobs":null,"finish_reason":null}]}\n\n'

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
  const events = dataReader(maxEvent)
  const choices = new Map<number, Choice>()
  const created = Math.floor(Date.now() / 1_000)
  let head = ''
  let first: Choice | null = null
  let textHead = ''
  let usage: UsageMetadata | null = null
  /** An event with newer counts that nobody has parsed yet. */
  let counted: string | null = null
  let out = ''

  /** True when the event brought one text, which has been written. */
  function plain(data: string): boolean {
    opening.lastIndex = 0
    if (first === null || !opening.test(data)) return false
    const from = opening.lastIndex
    literal.lastIndex = from
    literal.test(data)
    const to = literal.lastIndex
    closing.lastIndex = to
    if (to === from || !closing.test(data)) return false
    const rest = closing.lastIndex - 1
    if (data[data.length - 1] !== '}' || data.includes('"error"', rest)) return false
    if (data.includes('"usageMetadata"', rest)) counted = data
    out += textHead + data.slice(from, to) + textTail
    first.said = true
    return true
  }

  function translate(data: string): void {
    if (plain(data)) return
    const response = parse(data)
    if (!isResponse(response) || response.error) throw faultIn(response)
    if (head === '') begin(response)
    if (response.usageMetadata) {
      usage = response.usageMetadata
      counted = null
    }
    for (const candidate of listOf(response.candidates)) take(candidate)
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
    head = `data: {"id":${id},"object":"chat.completion.chunk","created":${created},"model":${model},"choices":[`
    textHead = `${head}{"index":0,"delta":{"content":"`
  }

  function write(index: number, delta: object, logprobs: object | null = null, reason: string | null = null): void {
    out += `${head}${JSON.stringify({ index, delta, logprobs, finish_reason: reason })}]}\n\n`
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

  function take(candidate: Candidate): void {
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
    const raw = Buffer.from(out)
    // As long as its text: then it is ASCII, and its bytes need not be made a text again.
    const read = new EventFrames(raw, last, raw.length === out.length ? out : null)
    out = ''
    return read
  }

  /** Why the answer is not complete, or null once its ends are written. */
  function finish(): GatewayError | null {
    if (choices.size === 0) return new UpstreamError('its stream ended before its answer began.')
    const all = [...choices.values()]
    if (all.some(({ ended }) => ended === null)) return new UpstreamError('its stream ended before its answer did.')
    const reasons = all.map(({ ended, calls }) => finishOf(ended?.finishReason, calls > 0))
    for (const [place, { index, ended, said }] of all.entries()) {
      const reason = reasons[place]!
      if (reason === 'content_filter' && !said && ended !== null) write(index, { refusal: refusalOf(ended) })
      write(index, {}, null, reason)
    }
    return null
  }

  /** An answer that broke off has its price too. */
  function report(): void {
    if (counted !== null) {
      const last = parse(counted)
      if (!isResponse(last)) throw new UpstreamError('an event of its stream is not JSON.')
      usage = last.usageMetadata ?? usage
    }
    if (usage !== null) out += `${head}],"usage":${JSON.stringify(usageFrom(usage))}}\n\n`
  }

  function read(datas: readonly string[]): GatewayError | null {
    try {
      for (const data of datas) translate(data)
      return null
    } catch (error) {
      return unreadable(error)
    }
  }

  return {
    read(bytes) {
      const fault = read(events.read(bytes))
      return { frames: frames(), done: fault !== null, fault }
    },
    end() {
      let fault = read(events.end())
      try {
        fault ??= finish()
        report()
      } catch (error) {
        fault ??= unreadable(error)
      }
      return { frames: frames(fault === null), done: true, fault }
    }
  }
}
