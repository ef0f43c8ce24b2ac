import { UpstreamError } from '../../../schemas/errors.ts'
import { fieldsOf } from '../../../schemas/json.ts'
import type { Price } from '../../../schemas/model-options.ts'
import type { ModelInfo } from '../../../schemas/provider.ts'
import type { Redact } from '../../faults.ts'
import type { Reply } from '../../upstream.ts'
import { jsonIn } from './answer.ts'

/** Fields of a JSON object that a vendor sent; each may be anything. */
type Fields = Readonly<Record<string, unknown>>

/**
 * `GET /models` as OpenAI answers it, and what others add: the context length (OpenRouter `context_length`, vLLM
 * `max_model_len`, llama.cpp `meta.n_ctx`) and prices (OpenRouter). Entries without an id are left out.
 * @throws the fault of a status that is not 200, UpstreamError for what is no list
 */
export function modelsIn(reply: Reply, redact: Redact): ModelInfo[] {
  const { data } = fieldsOf(jsonIn(reply, redact))
  if (!Array.isArray(data)) throw new UpstreamError('its list of models is none.')
  return data.flatMap(entry => modelOf(fieldsOf(entry)) ?? [])
}

function modelOf(entry: Fields): ModelInfo | null {
  const { id, created, owned_by: ownedBy, context_length: length, max_model_len: longest } = entry
  if (typeof id !== 'string' || id === '') return null
  const contextLength = countOf(length) ?? countOf(longest) ?? countOf(fieldsOf(entry['meta'])['n_ctx'])
  const price = priceOf(fieldsOf(entry['pricing']))
  return {
    id,
    ...(typeof created === 'number' && Number.isFinite(created) && { created }),
    ...(typeof ownedBy === 'string' && { ownedBy }),
    ...(contextLength !== undefined && { contextLength }),
    ...(price !== null && { price })
  }
}

/** OpenRouter's prices, which are USD per token as texts; null without one for input and one for output. */
function priceOf(pricing: Fields): Price | null {
  const plain = ratesOf(pricing)
  const { input, output } = plain
  if (input === undefined || output === undefined) return null
  const request = usd(pricing['request'], 1)
  // Prices of other conditions, such as times of day, are left to whoever asks OpenRouter itself.
  const steps = Array.isArray(pricing['overrides']) ? pricing['overrides'].map(fieldsOf) : []
  const tiers = steps.flatMap(step => {
    const above = countOf(step['min_prompt_tokens'])
    const isTier = above !== undefined && !('utc_start' in step) && !('utc_days' in step)
    return isTier ? { above, ...ratesOf(step) } : []
  })
  return { ...plain, input, output, ...(request && { request }), ...(tiers.length > 0 && { tiers }) }
}

function ratesOf(pricing: Fields): Partial<Pick<Price, 'input' | 'output' | 'cacheRead' | 'cacheWrite' | 'reasoning'>> {
  const rates = {
    input: usd(pricing['prompt']),
    output: usd(pricing['completion']),
    cacheRead: usd(pricing['input_cache_read']),
    cacheWrite: usd(pricing['input_cache_write']),
    // Where it costs nothing of its own it says 0.
    reasoning: usd(pricing['internal_reasoning']) || undefined
  }
  return Object.fromEntries(Object.entries(rates).filter(([, rate]) => rate !== undefined))
}

/** USD per million tokens; negative amounts stand for prices that vary. */
function usd(text: unknown, times = 1_000_000): number | undefined {
  const amount = typeof text === 'string' && text !== '' ? Number(text) * times : Number.NaN
  return amount >= 0 && Number.isFinite(amount) ? Number(amount.toPrecision(12)) : undefined
}

/** A number of tokens; 0 says that nobody knows. */
function countOf(value: unknown): number | undefined {
  return typeof value === 'number' && Number.isInteger(value) && value > 0 ? value : undefined
}
