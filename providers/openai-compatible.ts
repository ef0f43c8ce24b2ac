import type { FastifyInstance } from 'fastify'
import fp from 'fastify-plugin'
import type { Abilities, Attempt } from '../schemas/provider.ts'
import { createEndpoint, type EndpointOptions } from './endpoint.ts'
import { answerTo } from './wires/openai/answer.ts'
import { type Limits, withinLimits } from './wires/openai/limits.ts'
import { createMender } from './wires/openai/mend.ts'
import { modelsIn } from './wires/openai/models.ts'
import { type Dialect, isHost, outputCapOf, toUpstream, withVersion } from './wires/openai/request.ts'

export interface OpenAICompatibleOptions extends EndpointOptions {
  /** With or without `/v1`. Default OpenAI's own. */
  baseUrl?: string
  /** Ask for usage at the end of every stream. Default true. */
  streamUsage?: boolean
  /** Whose server it is, where it is one of these. Default by the host: OpenRouter; else none of them. */
  vendor?: keyof typeof vendors
}

/** What is peculiar to a vendor. */
interface Quirks {
  /** Below the base URL: what answers 200 where the vendor can be reached and takes the key. */
  readonly health: string
  /** Its usage names in USD what it charges. */
  readonly charges: boolean
  readonly abilities: Abilities
  /** Null: what it cannot do it refuses by itself. */
  readonly limits: Limits | null
}

const plain: Quirks = { health: '/models', charges: false, abilities: {}, limits: null }

const vendors = {
  // Its list of models is public and says nothing of a key.
  openrouter: { ...plain, health: '/key', charges: true },
  litellm: plain,
  vllm: plain,
  ollama: {
    ...plain,
    abilities: { choices: false, audio: false, files: false },
    limits: {
      oneChoice: true,
      freeToolChoice: true,
      dataOnly: true,
      ignored: { logit_bias: null, parallel_tool_calls: true }
    }
  }
} satisfies Record<string, Quirks>

/** Everything that speaks OpenAI's wire: OpenRouter, LiteLLM, vLLM, Ollama, another gateway of ours. */
async function openaiCompatible(app: FastifyInstance, options: OpenAICompatibleOptions): Promise<void> {
  const baseUrl = withVersion(options.baseUrl ?? 'https://api.openai.com/v1')
  const dialect: Dialect = { outputCap: outputCapOf(baseUrl), streamUsage: options.streamUsage ?? true }
  const { health, charges, abilities, limits } = quirksOf(options.vendor, baseUrl)
  const endpoint = createEndpoint(options, baseUrl, key => ['authorization', `Bearer ${key}`])

  async function send(attempt: Attempt) {
    const { request, inference } = attempt
    const possible = limits === null ? request : withinLimits(request, limits, inference.facts.warnings)
    const reply = await endpoint.post(attempt, '/chat/completions', toUpstream(possible, dialect))
    return answerTo(request, reply, endpoint, createMender(request))
  }

  app.gateway.providers.register({
    name: options.name,
    vendor: options.vendor ?? 'openai-compatible',
    url: baseUrl,
    keys: endpoint.keys,
    capabilities: { dialects: ['openai'], ...abilities },
    pricing: { url: baseUrl, charges },
    send,
    models: async signal => modelsIn(await endpoint.ask('/models', signal), endpoint.redact),
    health: signal => endpoint.probe(health, signal)
  })
  app.addHook('onClose', () => endpoint.close())
}

function quirksOf(vendor: keyof typeof vendors | undefined, baseUrl: string): Quirks {
  if (vendor !== undefined) return vendors[vendor]
  return isHost(baseUrl, 'openrouter.ai') ? vendors.openrouter : plain
}

export default fp(openaiCompatible, { fastify: '5.x', name: 'openai-compatible', dependencies: ['routing'] })
