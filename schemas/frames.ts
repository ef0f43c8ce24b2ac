import type { ChatCompletionChunk, CompletionUsage } from './chat.ts'

/**
 * The whole SSE events that arrived in one network read. `raw` is the provider's own bytes while nobody has replaced a
 * chunk, so that a transport forwards them with one write; iterating splits and parses on first touch.
 */
export interface Frames<C = ChatCompletionChunk> extends Iterable<C> {
  readonly raw: Uint8Array | null
  /** The wire that `raw` speaks. */
  readonly dialect: string
  /** True when a choice has its finish_reason in these events. */
  readonly finished: boolean
  /** True when `usage` may be more than null; costs no parsing. */
  readonly hasUsage: boolean
  /** The last usage that these events report. */
  readonly usage: CompletionUsage | null
  /** True when these events bring something a model said, or its end. Parses up to the first such chunk. */
  readonly hasToken: boolean
  /** True when the provider has said that nothing follows: a transport may write these with the end of its answer. */
  readonly last: boolean
  /** True when there is anything but comments: what counts as a sign of life from a model. */
  readonly hasData: boolean
  /** How many events say something; counted without parsing where it can be. */
  readonly pieces: number
  /** Bytes of text that they bring, about: what is left of them without their envelope. */
  readonly textBytes: number
  /** The same events without those that only report usage, the others as the bytes they were; null when none is left. */
  withoutUsage(): Frames<C> | null
}

/** Where a delta says something, at whatever depth: text, thoughts, refusals, names and arguments of tools. */
export const spokenKeys = [
  'content',
  'arguments',
  'reasoning_content',
  'reasoning',
  'refusal',
  'text',
  'thinking',
  'name',
  'transcript'
] as const

/** Frames made of chunks instead of bytes: by a provider that translates, or by a layer that changed something. */
export function chunkFrames(chunks: readonly ChatCompletionChunk[]): Frames {
  return {
    raw: null,
    dialect: 'openai',
    finished: chunks.some(isFinish),
    hasUsage: chunks.some(chunk => chunk.usage),
    usage: chunks.findLast(chunk => chunk.usage)?.usage ?? null,
    hasToken: chunks.some(isToken),
    hasData: chunks.length > 0,
    last: false,
    get pieces() {
      return chunks.reduce((sum, chunk) => sum + (textOf(chunk) > 0 ? 1 : 0), 0)
    },
    get textBytes() {
      return chunks.reduce((sum, chunk) => sum + textOf(chunk), 0)
    },
    withoutUsage() {
      const kept = chunks.filter(chunk => !isUsageOnly(chunk))
      if (kept.length === chunks.length) return this
      return kept.length > 0 ? chunkFrames(kept) : null
    },
    [Symbol.iterator]: () => chunks[Symbol.iterator]()
  }
}

/** True when a choice of this chunk has ended. */
export function isFinish(chunk: ChatCompletionChunk): boolean {
  return chunk.choices.some(choice => typeof choice.finish_reason === 'string' && choice.finish_reason !== '')
}

/** True when this chunk says something or ends: a role alone, an empty delta and a bare usage do not count. */
export function isToken(chunk: ChatCompletionChunk): boolean {
  for (const { delta, finish_reason: reason } of chunk.choices) {
    if (typeof reason === 'string' && reason !== '') return true
    for (const key in delta) {
      const value = delta[key]
      if (key === 'role' || value === null || value === undefined || value === '') continue
      if (!Array.isArray(value) || value.length > 0) return true
    }
  }
  return false
}

/** Bytes of the text that a chunk brings. The same words under a second name, as OpenRouter sends its thoughts, count once. */
function textOf(chunk: ChatCompletionChunk): number {
  const texts: string[] = []
  for (const { delta } of chunk.choices) if (delta) collect(delta, texts, 0)
  let bytes = 0
  for (const text of texts) bytes += Buffer.byteLength(text)
  return bytes
}

const deepest = 8
const spoken: ReadonlySet<string> = new Set(spokenKeys)

function collect(value: object, texts: string[], depth: number): void {
  for (const [key, part] of Object.entries(value)) {
    if (typeof part === 'string') {
      if (part !== '' && spoken.has(key) && part !== texts.at(-1)) texts.push(part)
    } else if (typeof part === 'object' && part !== null && depth < deepest) collect(part, texts, depth + 1)
  }
}

/** True for the event that OpenAI appends for `include_usage`: no choice, only the counts. */
export function isUsageOnly(chunk: ChatCompletionChunk): boolean {
  return chunk.choices.length === 0 && chunk.usage !== null && chunk.usage !== undefined
}
