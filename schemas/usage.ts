import type { CompletionUsage } from './chat.ts'

/** Tokens in disjoint buckets: their sum is what the provider reported. */
export interface Usage {
  readonly input: number
  readonly cacheRead: number
  readonly cacheWrite5m: number
  readonly cacheWrite1h: number
  readonly audioInput: number
  readonly output: number
  readonly reasoning: number
  readonly audioOutput: number
  /** `estimated` while no provider has reported anything. */
  readonly source: 'reported' | 'estimated'
}

export const noUsage: Usage = Object.freeze({
  input: 0,
  cacheRead: 0,
  cacheWrite5m: 0,
  cacheWrite1h: 0,
  audioInput: 0,
  output: 0,
  reasoning: 0,
  audioOutput: 0,
  source: 'estimated'
})

/**
 * OpenAI's totals with their details taken out of them, so that no token is counted twice. Negative rests become 0;
 * a report without any count is none.
 */
export function usageOf(reported: CompletionUsage | null | undefined): Usage {
  if (typeof reported?.prompt_tokens !== 'number' && typeof reported?.completion_tokens !== 'number') return noUsage
  const input = reported.prompt_tokens_details
  const output = reported.completion_tokens_details
  const cacheRead = count(input?.cached_tokens)
  const cacheWrite5m = count(input?.cache_write_tokens)
  const audioInput = count(input?.audio_tokens)
  const reasoning = count(output?.reasoning_tokens)
  const audioOutput = count(output?.audio_tokens)
  return {
    input: Math.max(0, count(reported.prompt_tokens) - cacheRead - cacheWrite5m - audioInput),
    cacheRead,
    cacheWrite5m,
    cacheWrite1h: 0,
    audioInput,
    output: Math.max(0, count(reported.completion_tokens) - reasoning - audioOutput),
    reasoning,
    audioOutput,
    source: 'reported'
  }
}

function count(tokens: unknown): number {
  return typeof tokens === 'number' && Number.isFinite(tokens) && tokens > 0 ? Math.floor(tokens) : 0
}
