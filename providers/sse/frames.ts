import type { ChatCompletionChunk, CompletionUsage } from '../../schemas/chat.ts'
import { type Frames, isToken, isUsageOnly } from '../../schemas/frames.ts'
import { jsonOf } from '../../schemas/json.ts'
import { type Event, eventAround, eventsIn } from './events.ts'
import { type Said, saidIn } from './said.ts'

const finishKey = '"finish_reason"'
// Few alternatives on purpose: V8 searches these several times faster than one pattern that says everything. A key that
// stands inside a string cannot match, because its closing quote would be escaped.
const eventful = /"(error|usage)"\s*:\s*[^n\s]/g
const erroneous = /"error"\s*:\s*[^n\s]/
const counting = /"usage"\s*:\s*\{/
const finish = /"finish_reason"\s*:\s*"[^"]/
/** What most first tokens look like; everything else is parsed. */
const spoken = /"(?:content|arguments|reasoning|reasoning_content)"\s*:\s*"[^"]/

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
    return this.#words().usage !== -1
  }

  get usage(): CompletionUsage | null {
    if (!this.hasUsage) return null
    let usage: CompletionUsage | null = null
    for (const { data } of found(this.raw, this.#text(), counting, this.#words().usage)) {
      const chunk = jsonOf(data)
      if (isChunk(chunk) && typeof chunk.usage === 'object' && chunk.usage !== null) usage = chunk.usage
    }
    return usage
  }

  /** The first error that an event of these carries, and the frames before it; null without one. */
  get fault(): { error: unknown; before: EventFrames | null } | null {
    if (this.#words().error === -1) return null
    for (const { start, data } of found(this.raw, this.#text(), erroneous, this.#words().error)) {
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
    if (!this.hasUsage) return this
    const kept: Buffer[] = []
    let from = 0
    for (const { start, end, data } of found(this.raw, this.#text(), counting, this.#words().usage)) {
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

/** Where the first error and the first usage may be told of; -1, there is none, is certain. */
interface Words {
  error: number
  usage: number
}

/** One search for both words, since most reads hold neither. */
function wordsIn(text: string): Words {
  const words = { error: -1, usage: -1 }
  eventful.lastIndex = 0
  for (let match = eventful.exec(text); match !== null; match = eventful.exec(text)) {
    const word = match[1] === 'error' ? 'error' : 'usage'
    if (words[word] === -1) words[word] = match.index
  }
  return words
}

/** The events that a search finds, each once. Nothing is to be found before `from`. */
function* found(raw: Buffer, text: string, pattern: RegExp, from: number): Generator<Event> {
  for (let at = text.slice(from).search(pattern); at !== -1; at = text.slice(from).search(pattern)) {
    const event = eventAround(raw, text, from + at)
    if (event === undefined) return
    yield event
    from = Math.max(from + at + 1, event.end)
  }
}

/** The error of an event, at its top or in a choice. */
function errorOf(value: object): unknown {
  if ('error' in value && value.error) return value.error
  return isChunk(value) ? value.choices.find(choice => choice['error'])?.['error'] : undefined
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
