import type { ChatRequest } from '../../../schemas/chat.ts'
import { fieldsOf } from '../../../schemas/json.ts'
import { invalid, listed } from './complaints.ts'
import type { Context } from './context.ts'
import { responseSchema } from './schema.ts'

export function generationConfigOf(request: ChatRequest, context: Context): Record<string, unknown> | null {
  const config: Record<string, unknown> = {}
  const set = (name: string, value: unknown) => {
    if (value !== null && value !== undefined) config[name] = value
  }
  set('temperature', request.temperature)
  set('topP', request.top_p)
  set('topK', request['top_k'])
  set('seed', request['seed'])
  set('maxOutputTokens', request.max_completion_tokens ?? request.max_tokens)
  // Many models refuse these two, whatever they are; clients send their defaults.
  set('presencePenalty', request.presence_penalty || undefined)
  set('frequencyPenalty', request.frequency_penalty || undefined)
  if (request.n && request.n > 1) config['candidateCount'] = request.n
  const stop = typeof request.stop === 'string' ? [request.stop] : request.stop?.filter(text => text !== '')
  if (stop?.length && stop[0] !== '') config['stopSequences'] = stop
  if (request['logprobs'] === true) {
    config['responseLogprobs'] = true
    set('logprobs', request['top_logprobs'] || undefined)
  }
  addFormat(config, request['response_format'], context)
  const thinking = thinkingOf(request['reasoning_effort'], context)
  if (thinking !== null) config['thinkingConfig'] = thinking
  for (const _name in config) return config
  return null
}

function addFormat(config: Record<string, unknown>, format: unknown, { warn }: Context): void {
  const { type, json_schema: named } = fieldsOf(format)
  if (type !== 'json_object' && type !== 'json_schema') {
    if (type === undefined || type === 'text') return
    throw invalid('A response format is `text`, `json_object` or `json_schema`.', 'response_format')
  }
  config['responseMimeType'] = 'application/json'
  const { schema } = fieldsOf(named)
  if (type === 'json_object' || schema === undefined) return
  const dropped = new Set<string>()
  config['responseJsonSchema'] = responseSchema(fieldsOf(schema), dropped)
  if (dropped.size > 0) warn(`Gemini does not take these keywords of the schema: ${listed([...dropped])}.`)
}

const levels: ReadonlyMap<unknown, string> = new Map(
  Object.entries({
    ...{ none: 'MINIMAL', minimal: 'MINIMAL', low: 'LOW', medium: 'MEDIUM', high: 'HIGH', xhigh: 'HIGH', max: 'HIGH' }
  })
)
/** As Google's own translation of OpenAI's wire has them (https://ai.google.dev/gemini-api/docs/openai). */
const budgets: Readonly<Record<string, number>> = { none: 0, minimal: 1_024, low: 1_024, medium: 8_192, high: 24_576 }

function thinkingOf(effort: unknown, { family, warn }: Context): object | null {
  if (effort === null || effort === undefined) return null
  const level = levels.get(effort)
  if (level === undefined) throw invalid('This effort of reasoning is not known.', 'reasoning_effort')
  const quiet = effort === 'none'
  if (family.thinking === null) {
    if (!quiet) warn('This model does not think: reasoning_effort is left out.')
    return null
  }
  const { least, most } = family.budgets
  if (quiet && (family.thinking === 'level' || least > 0)) warn('This model always thinks: as little as it can.')
  if (family.thinking === 'level') {
    return { includeThoughts: !quiet, thinkingLevel: level === 'MINIMAL' ? family.lowestLevel : level }
  }
  return { includeThoughts: !quiet, thinkingBudget: Math.max(least, budgets[String(effort)] ?? most) }
}
