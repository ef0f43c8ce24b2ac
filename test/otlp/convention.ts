import type { Attributes, AttributeValue, Point, Span } from './messages.ts'

// The GenAI conventions as data, by which spans and points are judged: semantic-conventions 1.41.1, docs/gen-ai, in parts that
// concern a client of models. It is written from the conventions, not from the plugin: neither may be corrected by the other.

type Type = 'string' | 'int' | 'double' | 'bool' | 'string[]' | 'json'

/** Of spans for a call of a model. `json`: a structure, which a span holds as text. */
export const spanAttributes: Readonly<Record<string, Type>> = {
  'gen_ai.operation.name': 'string',
  'gen_ai.provider.name': 'string',
  'gen_ai.conversation.id': 'string',
  'gen_ai.output.type': 'string',
  'gen_ai.request.model': 'string',
  'gen_ai.request.choice.count': 'int',
  'gen_ai.request.seed': 'int',
  'gen_ai.request.stream': 'bool',
  'gen_ai.request.temperature': 'double',
  'gen_ai.request.top_p': 'double',
  'gen_ai.request.top_k': 'double',
  'gen_ai.request.frequency_penalty': 'double',
  'gen_ai.request.presence_penalty': 'double',
  'gen_ai.request.max_tokens': 'int',
  'gen_ai.request.stop_sequences': 'string[]',
  'gen_ai.response.id': 'string',
  'gen_ai.response.model': 'string',
  'gen_ai.response.finish_reasons': 'string[]',
  'gen_ai.response.time_to_first_chunk': 'double',
  'gen_ai.usage.input_tokens': 'int',
  'gen_ai.usage.output_tokens': 'int',
  'gen_ai.usage.cache_read.input_tokens': 'int',
  'gen_ai.usage.cache_creation.input_tokens': 'int',
  'gen_ai.usage.reasoning.output_tokens': 'int',
  'gen_ai.input.messages': 'json',
  'gen_ai.output.messages': 'json',
  'gen_ai.system_instructions': 'json',
  'gen_ai.tool.definitions': 'json',
  'openai.api.type': 'string',
  'openai.request.service_tier': 'string',
  'openai.response.service_tier': 'string',
  'openai.response.system_fingerprint': 'string',
  'server.address': 'string',
  'server.port': 'int',
  'error.type': 'string'
}

/** Of no convention: the name that the customer asks for. */
const ours: Readonly<Record<string, Type>> = { 'gen_ai.cost.estimated_usd': 'double' }

/** Of conventions before 1.37, which `legacyAttributes` brings back. */
export const legacyAttributes: Readonly<Record<string, Type>> = {
  'gen_ai.system': 'string',
  'gen_ai.usage.prompt_tokens': 'int',
  'gen_ai.usage.completion_tokens': 'int'
}

const values: Readonly<Record<string, readonly string[]>> = {
  'gen_ai.operation.name': [
    'chat',
    'generate_content',
    'text_completion',
    'embeddings',
    'execute_tool',
    'create_agent',
    'invoke_agent',
    'invoke_workflow',
    'retrieval'
  ],
  'gen_ai.output.type': ['text', 'json', 'image', 'speech'],
  'gen_ai.token.type': ['input', 'output'],
  'openai.api.type': ['chat_completions', 'responses']
}

/** Providers that have a name in the conventions; others may bring their own. */
export const providers: readonly string[] = [
  'openai',
  'azure.ai.openai',
  'azure.ai.inference',
  'anthropic',
  'aws.bedrock',
  'gcp.gemini',
  'gcp.vertex_ai',
  'gcp.gen_ai',
  'cohere',
  'deepseek',
  'groq',
  'ibm.watsonx.ai',
  'mistral_ai',
  'perplexity',
  'x_ai'
]
/** How the same were called before. */
const formerProviders = ['az.ai.openai', 'az.ai.inference', 'vertex_ai', 'gemini', 'xai']

const judged = /^(?:gen_ai|openai|server|error)\./

/** What speaks against the attributes of a span or of an event; nothing: they are as the conventions have them. */
export function faultsOfAttributes(attributes: Attributes, { legacy = false } = {}): string[] {
  const known = { ...spanAttributes, ...ours, ...(legacy ? legacyAttributes : {}) }
  return Object.entries(attributes).flatMap(([name, value]) => (judged.test(name) ? faultsOf(name, value, known) : []))
}

/**
 * The same for the span of a call of a model, which has to say more. That of a whole call (`internal`) need not name a
 * provider: it may end before one is chosen.
 */
export function faultsOfModelSpan(span: Span, { legacy = false } = {}): string[] {
  const { attributes, kind } = span
  const faults = faultsOfAttributes(attributes, { legacy })
  const needed = [
    'gen_ai.operation.name',
    'gen_ai.request.model',
    ...(kind === 'client' ? ['gen_ai.provider.name'] : [])
  ]
  for (const name of needed) if (attributes[name] === undefined) faults.push(`${name} is missing`)
  const named = `${attributes['gen_ai.operation.name']} ${attributes['gen_ai.request.model']}`
  if (!legacy && span.name !== named) faults.push(`it is called ${span.name}, not ${named}`)
  if (kind !== 'client' && kind !== 'internal') faults.push(`it is of the kind ${kind}`)
  if (attributes['server.address'] !== undefined && attributes['server.port'] === undefined) {
    faults.push('server.address stands without server.port')
  }
  if (attributes['gen_ai.request.stream'] === false) faults.push('gen_ai.request.stream is said where it is false')
  if (attributes['gen_ai.request.choice.count'] === 1) faults.push('gen_ai.request.choice.count is said where it is 1')
  return faults.concat(faultsOfStatus(span), faultsOfUsage(attributes))
}

/** A client that leaves is no fault of ours, but it is why a span ended: it alone has a type without the status. */
export function faultsOfStatus({ attributes, status }: Span): string[] {
  const type = attributes['error.type']
  if (type === 'client_cancelled') return status.code === 'error' ? ['a client that leaves is an error'] : []
  return (status.code === 'error') === (type !== undefined) ? [] : ['status and error.type do not say the same']
}

/** Cached tokens are part of the input, reasoning is part of the output. */
function faultsOfUsage(attributes: Attributes): string[] {
  const count = (name: string) => Number(attributes[`gen_ai.usage.${name}`] ?? 0)
  const faults: string[] = []
  if (count('cache_read.input_tokens') + count('cache_creation.input_tokens') > count('input_tokens')) {
    faults.push('more input tokens are cached than there are')
  }
  if (count('reasoning.output_tokens') > count('output_tokens')) faults.push('more tokens are reasoning than there are')
  return faults
}

function faultsOf(name: string, value: AttributeValue, known: Readonly<Record<string, Type>>): string[] {
  const type = known[name]
  if (type === undefined) return [`${name} is not in the conventions`]
  if (!isOf(type, value)) return [`${name} is no ${type}: ${JSON.stringify(value)}`]
  if (value === '') return [`${name} is empty`]
  const allowed = values[name]
  if (allowed && !allowed.includes(String(value))) return [`${name} is ${value}, which the conventions do not have`]
  if (name === 'gen_ai.provider.name' && formerProviders.includes(String(value)))
    return [`${name} is ${value}, a former name`]
  return []
}

/** A double that is whole arrives as an int: JavaScript does not tell them apart. */
function isOf(type: Type, value: AttributeValue): boolean {
  if (type === 'string') return typeof value === 'string'
  if (type === 'bool') return typeof value === 'boolean'
  if (type === 'int') return Number.isInteger(value)
  if (type === 'double') return typeof value === 'number' && Number.isFinite(value)
  if (type === 'string[]') return Array.isArray(value) && value.every(item => typeof item === 'string')
  return typeof value === 'string' && isJson(value)
}

function isJson(text: string): boolean {
  try {
    return typeof JSON.parse(text) === 'object'
  } catch {
    return false
  }
}

interface Metric {
  readonly unit: string
  readonly bounds: readonly number[]
  readonly required: readonly string[]
}

const seconds = [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92]
const powersOfFour = Array.from({ length: 14 }, (_, power) => 4 ** power)
const always = ['gen_ai.operation.name', 'gen_ai.provider.name']
const common: Readonly<Record<string, Type>> = {
  'gen_ai.operation.name': 'string',
  'gen_ai.provider.name': 'string',
  'gen_ai.request.model': 'string',
  'gen_ai.response.model': 'string',
  'gen_ai.token.type': 'string',
  'server.address': 'string',
  'server.port': 'int',
  'error.type': 'string'
}

/** Histograms that a client of models reports. */
export const clientMetrics: Readonly<Record<string, Metric>> = {
  'gen_ai.client.token.usage': { unit: '{token}', bounds: powersOfFour, required: [...always, 'gen_ai.token.type'] },
  'gen_ai.client.operation.duration': { unit: 's', bounds: seconds, required: always },
  'gen_ai.client.operation.time_to_first_chunk': { unit: 's', bounds: seconds, required: always },
  'gen_ai.client.operation.time_per_output_chunk': { unit: 's', bounds: seconds, required: always }
}

/** What speaks against a point of a metric whose name begins with `gen_ai.`. */
export function faultsOfPoint({ name, kind, unit, bounds, attributes }: Point): string[] {
  const metric = clientMetrics[name]
  if (metric === undefined) return [`${name} is not in the conventions for a client`]
  const faults: string[] = []
  if (kind !== 'histogram') faults.push(`${name} is a ${kind}`)
  if (unit !== metric.unit) faults.push(`${name} is in ${unit || 'nothing'}, not in ${metric.unit}`)
  if (bounds.join() !== metric.bounds.join()) faults.push(`${name} has the buckets ${bounds}`)
  for (const needed of metric.required) {
    if (attributes[needed] === undefined) faults.push(`${name} lacks ${needed}`)
  }
  for (const [attribute, value] of Object.entries(attributes)) {
    if (judged.test(attribute)) faults.push(...faultsOf(attribute, value, common))
  }
  if (name !== 'gen_ai.client.token.usage' && attributes['gen_ai.token.type'] !== undefined) {
    faults.push(`${name} tells types of tokens apart`)
  }
  return faults
}
