import type { FastifyInstance } from 'fastify'
import fp from 'fastify-plugin'
import type { ChatRequest } from '../schemas/chat.ts'
import { UpstreamError } from '../schemas/errors.ts'
import { fieldsOf } from '../schemas/json.ts'
import type { Attempt, Health, ModelInfo } from '../schemas/provider.ts'
import { createEndpoint, type EndpointOptions } from './endpoint.ts'
import { answerTo, jsonIn } from './wires/openai/answer.ts'
import { type Limits, withinLimits } from './wires/openai/limits.ts'
import { modelsIn } from './wires/openai/models.ts'
import { type Dialect, toUpstream } from './wires/openai/request.ts'

export interface LlamaCppOptions extends EndpointOptions {
  /** With or without `/v1`: what has no such path is asked beside it. Default http://127.0.0.1:8080. */
  baseUrl?: string
  /** Ask for usage at the end of every stream. Default true. */
  streamUsage?: boolean
}

/** It would fetch links from inside its network, and read files, for whoever asks. */
const limits: Limits = { dataOnly: true }

/** llama.cpp's `llama-server`, with one model or as a router before several. */
async function llamacpp(app: FastifyInstance, options: LlamaCppOptions): Promise<void> {
  const baseUrl = (options.baseUrl ?? 'http://127.0.0.1:8080').replace(/(?:\/v1)?\/*$/, '')
  const dialect: Dialect = { outputCap: 'max_tokens', streamUsage: options.streamUsage ?? true }
  const endpoint = createEndpoint(options, baseUrl, key => ['authorization', `Bearer ${key}`])
  const { ask, redact } = endpoint

  async function send(attempt: Attempt) {
    const { request, inference } = attempt
    const possible = withinLimits(request, limits, inference.facts.warnings)
    const reply = await endpoint.post(attempt, '/v1/chat/completions', toLlama(toUpstream(possible, dialect)))
    return answerTo(request, reply, endpoint, null)
  }

  /** By the server's own tokenizer and template; builds that have no path for it do it in two steps. */
  async function countTokens(request: ChatRequest, signal?: AbortSignal): Promise<number> {
    const body = toLlama(withinLimits(request, limits, []))
    const counted = await ask('/v1/chat/completions/input_tokens', signal, body)
    if (counted.status !== 404) return numberIn(jsonIn(counted, redact), 'input_tokens')
    const templated = fieldsOf(jsonIn(await ask('/apply-template', signal, body), redact))['prompt']
    const question = { model: request.model, content: templated, add_special: true, parse_special: true }
    const tokens = fieldsOf(jsonIn(await ask('/tokenize', signal, question), redact))['tokens']
    if (!Array.isArray(tokens)) throw new UpstreamError('it did not count tokens.')
    return tokens.length
  }

  async function models(signal?: AbortSignal): Promise<ModelInfo[]> {
    const listed = modelsIn(await ask('/v1/models', signal), redact)
    const [only] = listed
    // A router knows the context of what it has loaded, and asking for the others would load them.
    if (only === undefined || listed.length > 1 || only.contextLength !== undefined) return listed
    const props = await ask('/props', signal)
    if (props.status !== 200) return listed
    const length = fieldsOf(fieldsOf(jsonIn(props, redact))['default_generation_settings'])['n_ctx']
    return typeof length === 'number' && length > 0 ? [{ ...only, contextLength: length }] : listed
  }

  /** The first path is public: it says whether the model is there. The other one wants the key. */
  async function health(signal?: AbortSignal): Promise<Health> {
    const reply = await endpoint.probe('/health', signal)
    return reply.ok && endpoint.keys > 0 ? endpoint.probe('/props', signal) : reply
  }

  app.gateway.providers.register({
    name: options.name,
    vendor: 'llamacpp',
    url: baseUrl,
    keys: endpoint.keys,
    capabilities: { dialects: ['openai'], files: false },
    // It sends no bills. What the machine costs is the operator's to say, as the price of a target.
    price: { input: 0, output: 0 },
    send,
    countTokens,
    models,
    health
  })
  app.addHook('onClose', () => endpoint.close())
}

/**
 * A schema goes where llama.cpp both documents and reads it. Its README names `{type: 'json_schema', schema}` too, but the
 * server does not look there and answers without a schema (`oaicompat_chat_params_parse` in tools/server).
 */
function toLlama(request: ChatRequest): ChatRequest {
  const format = fieldsOf(request['response_format'])
  if (format['type'] !== 'json_schema') return request
  const schema = fieldsOf(format['json_schema'])['schema'] ?? format['schema']
  return { ...request, response_format: { type: 'json_object', ...(schema !== undefined && { schema }) } }
}

function numberIn(body: unknown, name: string): number {
  const value = fieldsOf(body)[name]
  if (typeof value !== 'number') throw new UpstreamError('it did not count tokens.')
  return value
}

export default fp(llamacpp, { fastify: '5.x', name: 'llamacpp', dependencies: ['routing'] })
