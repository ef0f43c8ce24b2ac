import type { FastifyInstance } from 'fastify'
import fp from 'fastify-plugin'
import { UpstreamError } from '../schemas/errors.ts'
import type { Attempt } from '../schemas/provider.ts'
import { createEndpoint, type EndpointOptions } from './endpoint.ts'
import { streamedAnswer } from './stream.ts'
import { chunkReader, wholeAnswer } from './wires/openai/answer.ts'
import { type Dialect, outputCapOf, toUpstream, withVersion } from './wires/openai/request.ts'

export interface OpenAICompatibleOptions extends EndpointOptions {
  /** With or without `/v1`. Default OpenAI's own. */
  baseUrl?: string
  /** Ask for usage at the end of every stream. Default true. */
  streamUsage?: boolean
}

/** OpenAI and everything that speaks its wire: OpenRouter, LiteLLM, vLLM, Ollama, another gateway of ours. */
async function openaiCompatible(app: FastifyInstance, options: OpenAICompatibleOptions): Promise<void> {
  const baseUrl = withVersion(options.baseUrl ?? 'https://api.openai.com/v1')
  const dialect: Dialect = { outputCap: outputCapOf(baseUrl), streamUsage: options.streamUsage ?? true }
  const endpoint = createEndpoint(options, baseUrl, key => ['authorization', `Bearer ${key}`])
  const { maxEvent, redact } = endpoint

  async function send(attempt: Attempt) {
    const reply = await endpoint.post(attempt, '/chat/completions', toUpstream(attempt.request, dialect))
    if (reply.reads !== null) return streamedAnswer(reply, reply.reads, chunkReader(reply, maxEvent, redact))
    const answer = wholeAnswer(reply, redact)
    if (attempt.request.stream === true) {
      throw new UpstreamError('it answered a stream request with something else.')
    }
    return answer
  }

  app.gateway.providers.register({
    name: options.name,
    keys: endpoint.keys,
    capabilities: { dialects: ['openai'] },
    pricing: { url: baseUrl },
    send
  })
  app.addHook('onClose', () => endpoint.close())
}

export default fp(openaiCompatible, { fastify: '5.x', name: 'openai-compatible', dependencies: ['routing'] })
