// Every name that leaves in a span or a metric: the GenAI conventions of OpenTelemetry as of 1.41.1, those of HTTP, and our
// own under `gateway.`. Strings, because the package with the constants calls them deprecated. docs/plugins/otel.md explains
// each; a test compares.

/** Attributes of spans. */
export const attributes = {
  // the call, and each provider call
  operation: 'gen_ai.operation.name',
  provider: 'gen_ai.provider.name',
  requestModel: 'gen_ai.request.model',
  maxTokens: 'gen_ai.request.max_tokens',
  temperature: 'gen_ai.request.temperature',
  topP: 'gen_ai.request.top_p',
  frequencyPenalty: 'gen_ai.request.frequency_penalty',
  presencePenalty: 'gen_ai.request.presence_penalty',
  stopSequences: 'gen_ai.request.stop_sequences',
  seed: 'gen_ai.request.seed',
  choiceCount: 'gen_ai.request.choice.count',
  stream: 'gen_ai.request.stream',
  outputType: 'gen_ai.output.type',
  conversation: 'gen_ai.conversation.id',
  responseId: 'gen_ai.response.id',
  responseModel: 'gen_ai.response.model',
  finishReasons: 'gen_ai.response.finish_reasons',
  firstChunk: 'gen_ai.response.time_to_first_chunk',
  inputTokens: 'gen_ai.usage.input_tokens',
  outputTokens: 'gen_ai.usage.output_tokens',
  cacheRead: 'gen_ai.usage.cache_read.input_tokens',
  cacheCreation: 'gen_ai.usage.cache_creation.input_tokens',
  reasoning: 'gen_ai.usage.reasoning.output_tokens',
  cost: 'gen_ai.cost.estimated_usd',
  inputMessages: 'gen_ai.input.messages',
  outputMessages: 'gen_ai.output.messages',
  systemInstructions: 'gen_ai.system_instructions',
  apiType: 'openai.api.type',
  requestTier: 'openai.request.service_tier',
  responseTier: 'openai.response.service_tier',
  fingerprint: 'openai.response.system_fingerprint',
  serverAddress: 'server.address',
  serverPort: 'server.port',
  error: 'error.type',

  // the request over HTTP
  method: 'http.request.method',
  route: 'http.route',
  status: 'http.response.status_code',
  scheme: 'url.scheme',
  path: 'url.path',
  userAgent: 'user_agent.original',

  // ours
  requestId: 'gateway.request.id',
  tenant: 'gateway.tenant.id',
  key: 'gateway.key.id',
  lane: 'gateway.lane',
  alias: 'gateway.model.alias',
  config: 'gateway.config',
  cache: 'gateway.cache',
  attempts: 'gateway.attempts',
  retries: 'gateway.retries',
  fallbacks: 'gateway.fallbacks',
  usageSource: 'gateway.usage.source',
  target: 'gateway.provider.name',
  attempt: 'gateway.attempt.number',
  chunkTime: 'gateway.response.time_per_output_chunk'
} as const

/** Those of older dashboards, with `legacyAttributes`. */
export const legacy = {
  system: 'gen_ai.system',
  promptTokens: 'gen_ai.usage.prompt_tokens',
  completionTokens: 'gen_ai.usage.completion_tokens'
} as const

/** Names of spans. An inference is `chat ALIAS`, a provider call `chat MODEL`, a request `METHOD ROUTE`. */
export const operation = 'chat'

/** Their older names. Those of provider calls end with the provider's name. */
export const legacySpans = {
  inference: 'genai.chat.request',
  route: 'genai.chat.route',
  stream: 'genai.chat.stream',
  attempt: 'genai.provider.'
} as const

/** What errors are called that have no code of ours. */
export const errors = { cancelled: 'client_cancelled', other: '_OTHER' } as const

const seconds = [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92]
const tokens = Array.from({ length: 14 }, (_, index) => 4 ** index)

/** A histogram, with the bounds of its buckets that the convention asks for. */
export interface Instrument {
  readonly name: string
  readonly unit: string
  readonly description: string
  readonly bounds: readonly number[]
}

/** Histograms, of provider calls. */
export const metrics = {
  duration: {
    name: 'gen_ai.client.operation.duration',
    unit: 's',
    description: 'Duration of a provider call, of a stream to its end.',
    bounds: seconds
  },
  tokens: {
    name: 'gen_ai.client.token.usage',
    unit: '{token}',
    description: 'Tokens of a provider call.',
    bounds: tokens
  },
  firstChunk: {
    name: 'gen_ai.client.operation.time_to_first_chunk',
    unit: 's',
    description: 'Time from a provider call to the first chunk of its stream.',
    bounds: seconds
  },
  chunkTime: {
    name: 'gen_ai.client.operation.time_per_output_chunk',
    unit: 's',
    description: 'Time between two chunks of a stream, the mean of each stream.',
    bounds: seconds
  }
} as const satisfies Record<string, Instrument>

/** Attributes of metrics beside those of spans. */
export const metricAttributes = { tokenType: 'gen_ai.token.type' } as const

/**
 * `gen_ai.provider.name` by the vendor that an adapter names, where the convention calls it otherwise. What it does not
 * list keeps the adapter's word.
 */
export const providerNames: Readonly<Record<string, string>> = {
  'azure-openai': 'azure.ai.openai',
  gemini: 'gcp.gemini',
  vertex: 'gcp.vertex_ai',
  llamacpp: 'llama_cpp'
}

/** The same for servers that speak OpenAI's wire, by the end of their host. */
export const providerHosts: ReadonlyArray<readonly [host: string, name: string]> = [
  ['api.openai.com', 'openai'],
  ['openrouter.ai', 'openrouter'],
  ['openai.azure.com', 'azure.ai.openai'],
  ['services.ai.azure.com', 'azure.ai.inference'],
  ['groq.com', 'groq'],
  ['mistral.ai', 'mistral_ai'],
  ['deepseek.com', 'deepseek'],
  ['perplexity.ai', 'perplexity'],
  ['x.ai', 'x_ai'],
  ['cohere.com', 'cohere'],
  ['cohere.ai', 'cohere'],
  ['amazonaws.com', 'aws.bedrock'],
  ['cloud.ibm.com', 'ibm.watsonx.ai'],
  ['moonshot.ai', 'moonshot_ai'],
  ['generativelanguage.googleapis.com', 'gcp.gemini'],
  ['aiplatform.googleapis.com', 'gcp.vertex_ai'],
  ['anthropic.com', 'anthropic']
]
