import type { CompletionUsage } from './chat.ts'
import { nanoOf } from './money.ts'

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
  /** What the provider says that it charged, in nano-USD; null where it says nothing. */
  readonly charge: number | null
  /** The report contradicts itself: its details are more than its totals, or its total more than its parts. */
  readonly mismatch: boolean
}

/** No answer has more; whoever says so is not believed, and sums stay exact. */
const mostTokens = 1_000_000_000_000

/** The kinds of tokens, in the order in which rows and journal lines hold them. */
export const buckets = [
  'input',
  'cacheRead',
  'cacheWrite5m',
  'cacheWrite1h',
  'audioInput',
  'output',
  'reasoning',
  'audioOutput'
] as const

/** What they are called outside: in columns, in receipts. */
export const bucketNames = {
  input: 'input',
  cacheRead: 'cache_read',
  cacheWrite5m: 'cache_write_5m',
  cacheWrite1h: 'cache_write_1h',
  audioInput: 'audio_input',
  output: 'output',
  reasoning: 'reasoning',
  audioOutput: 'audio_output'
} as const satisfies Record<(typeof buckets)[number], string>

export const noUsage: Usage = Object.freeze({
  input: 0,
  cacheRead: 0,
  cacheWrite5m: 0,
  cacheWrite1h: 0,
  audioInput: 0,
  output: 0,
  reasoning: 0,
  audioOutput: 0,
  source: 'estimated',
  charge: null,
  mismatch: false
})

/** What was delivered without a report. */
export function estimatedUsage(input: number, output: number): Usage {
  return { ...noUsage, input: count(input), output: count(output) }
}

/** All input tokens, cached ones too. */
export function inputOf(usage: Usage): number {
  return usage.input + usage.cacheRead + usage.cacheWrite5m + usage.cacheWrite1h + usage.audioInput
}

/** All output tokens. */
export function outputOf(usage: Usage): number {
  return usage.output + usage.reasoning + usage.audioOutput
}

/**
 * OpenAI's totals with their details taken out of them, so that no token is counted twice. Negative rests become 0;
 * a report without any count is none. What `total_tokens` has beyond its two parts is counted where it belongs: some
 * vendors leave reasoning (xAI) or cached tokens out of the parts; what nothing explains are thoughts (Gemini).
 */
export function usageOf(reported: CompletionUsage | null | undefined): Usage {
  if (typeof reported?.prompt_tokens !== 'number' && typeof reported?.completion_tokens !== 'number') return noUsage
  const input = reported.prompt_tokens_details
  const output = reported.completion_tokens_details
  const cacheRead = count(input?.cached_tokens ?? reported['cache_read_input_tokens'])
  const { cacheWrite5m, cacheWrite1h } = writesOf(reported)
  const audioInput = count(input?.audio_tokens)
  const audioOutput = count(output?.audio_tokens)
  let reasoning = count(output?.reasoning_tokens)
  let prompt = count(reported.prompt_tokens)
  let completion = count(reported.completion_tokens)
  let mismatch = false
  const beside = count(reported.total_tokens) - prompt - completion
  if (beside > 0) {
    if (typeof reported.prompt_tokens !== 'number') prompt += beside
    else if (typeof reported.completion_tokens !== 'number' || beside === reasoning) completion += beside
    else if (beside === cacheRead + cacheWrite5m + cacheWrite1h) prompt += beside
    else {
      completion += beside
      reasoning += beside
      mismatch = true
    }
  }
  const plainInput = prompt - cacheRead - cacheWrite5m - cacheWrite1h - audioInput
  const plainOutput = completion - reasoning - audioOutput
  return {
    input: Math.max(0, plainInput),
    cacheRead,
    cacheWrite5m,
    cacheWrite1h,
    audioInput,
    output: Math.max(0, plainOutput),
    reasoning,
    audioOutput,
    source: 'reported',
    charge: chargeOf(reported),
    mismatch: mismatch || plainInput < 0 || plainOutput < 0
  }
}

/** Tokens written to a cache: OpenAI's own name, and those under which proxies before Claude pass its counts on. */
function writesOf(reported: CompletionUsage): { cacheWrite5m: number; cacheWrite1h: number } {
  const details = reported.prompt_tokens_details
  const all = count(
    details?.cache_write_tokens ?? details?.['cache_creation_tokens'] ?? reported['cache_creation_input_tokens']
  )
  const split = details?.['cache_creation_token_details'] ?? reported['cache_creation']
  const hour = typeof split === 'object' && split !== null && 'ephemeral_1h_input_tokens' in split ? split : null
  const cacheWrite1h = Math.min(all, count(hour?.ephemeral_1h_input_tokens))
  return { cacheWrite5m: all - cacheWrite1h, cacheWrite1h }
}

/** OpenRouter's `cost`, in USD; of a call with the user's own key only the fee is in it, the rest stands beside it. */
function chargeOf({ cost, is_byok: own, cost_details: details }: CompletionUsage): number | null {
  if (typeof cost !== 'number') return null
  const rest = own === true ? upstreamCost(details) : 0
  try {
    const charge = nanoOf(cost) + nanoOf(rest)
    return Number.isSafeInteger(charge) ? charge : null
  } catch {
    return null
  }
}

function upstreamCost(details: unknown): number {
  if (typeof details !== 'object' || details === null || !('upstream_inference_cost' in details)) return 0
  return typeof details.upstream_inference_cost === 'number' ? details.upstream_inference_cost : 0
}

/** A number of tokens that can be counted exactly. */
function count(tokens: unknown): number {
  return typeof tokens === 'number' && Number.isFinite(tokens) && tokens > 0
    ? Math.min(Math.floor(tokens), mostTokens)
    : 0
}
