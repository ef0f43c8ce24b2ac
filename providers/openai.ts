import type { FastifyInstance } from 'fastify'
import fp from 'fastify-plugin'
import type { Abilities, Attempt } from '../schemas/provider.ts'
import { createEndpoint, type EndpointOptions } from './endpoint.ts'
import { answerTo } from './wires/openai/answer.ts'
import { modelsIn } from './wires/openai/models.ts'
import { type Dialect, toUpstream, withVersion } from './wires/openai/request.ts'

export interface OpenAIOptions extends EndpointOptions {
  /** Default OpenAI's own. */
  baseUrl?: string
  /** The organization and the project that calls are counted for, where a key belongs to several. */
  organization?: string
  project?: string
  /** Ask for usage at the end of every stream. Default true. */
  streamUsage?: boolean
}

/** OpenAI itself. */
async function openai(app: FastifyInstance, options: OpenAIOptions): Promise<void> {
  const baseUrl = withVersion(options.baseUrl ?? 'https://api.openai.com/v1')
  // Its reasoning models refuse the older name, and no model the newer one.
  const dialect: Dialect = { outputCap: 'max_completion_tokens', streamUsage: options.streamUsage ?? true }
  const headers = { ...accountOf(options), ...options.headers }
  const endpoint = createEndpoint({ ...options, headers }, baseUrl, key => ['authorization', `Bearer ${key}`])

  async function send(attempt: Attempt) {
    const reply = await endpoint.post(attempt, '/chat/completions', toUpstream(attempt.request, dialect))
    return answerTo(attempt.request, reply, endpoint, null)
  }

  app.gateway.providers.register({
    name: options.name,
    vendor: 'openai',
    url: baseUrl,
    keys: endpoint.keys,
    capabilities: { dialects: ['openai'] },
    abilitiesOf,
    pricing: { url: baseUrl },
    send,
    models: async signal => modelsIn(await endpoint.ask('/models', signal), endpoint.redact),
    health: signal => endpoint.probe('/models', signal)
  })
  app.addHook('onClose', () => endpoint.close())
}

function accountOf({ organization, project }: OpenAIOptions): Record<string, string> {
  return {
    ...(organization !== undefined && { 'openai-organization': organization }),
    ...(project !== undefined && { 'openai-project': project })
  }
}

const text: Abilities = { tools: true, images: false, audio: false }
const sighted: Abilities = { ...text, images: true }
const reasoning: Abilities = { ...sighted, jsonSchema: true, logprobs: false, contextLength: 200_000 }
/** A date, or nothing, stands behind the name of a model. */
const dated = '(?:-20\\d\\d-\\d\\d-\\d\\d)?'

/** What OpenAI's pages say of its models. What is not here is tried. */
const families: ReadonlyArray<readonly [name: RegExp, abilities: Abilities]> = [
  [/^gpt-3\.5-turbo(?:-0125|-1106|-16k)?$/, { ...text, jsonSchema: false, contextLength: 16_385 }],
  [/^gpt-4(?:-0613)?$/, { ...text, jsonSchema: false, contextLength: 8_192 }],
  [/^gpt-4-turbo(?:-2024-04-09)?$/, { ...sighted, jsonSchema: false, contextLength: 128_000 }],
  [/^gpt-4o-2024-05-13$/, { ...sighted, jsonSchema: false, contextLength: 128_000 }],
  [new RegExp(`^gpt-4o(?:-mini)?${dated}$`), { ...sighted, jsonSchema: true, contextLength: 128_000 }],
  [new RegExp(`^gpt-4\\.1(?:-mini|-nano)?${dated}$`), { ...sighted, jsonSchema: true, contextLength: 1_047_576 }],
  [new RegExp(`^(?:o1|o3|o4-mini)${dated}$`), reasoning],
  [new RegExp(`^o3-mini${dated}$`), { ...reasoning, images: false }],
  [new RegExp(`^gpt-5(?:-mini|-nano)?${dated}$`), { ...sighted, jsonSchema: true, contextLength: 400_000 }]
]

function abilitiesOf(model: string): Abilities {
  return families.find(([name]) => name.test(model))?.[1] ?? {}
}

export default fp(openai, { fastify: '5.x', name: 'openai', dependencies: ['routing'] })
