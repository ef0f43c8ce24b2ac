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
  /** The same events without those that only report usage, the others as the bytes they were; null when none is left. */
  withoutUsage(): Frames<C> | null
}

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

/** True for the event that OpenAI appends for `include_usage`: no choice, only the counts. */
export function isUsageOnly(chunk: ChatCompletionChunk): boolean {
  return chunk.choices.length === 0 && chunk.usage !== null && chunk.usage !== undefined
}
