import type { FastifyInstance } from 'fastify'
import fp from 'fastify-plugin'
import type { ChatRequest } from '../schemas/chat.ts'
import { UpstreamError } from '../schemas/errors.ts'
import type { Timeouts } from '../schemas/gateway.ts'
import type { Abilities, Attempt, Health, ModelInfo } from '../schemas/provider.ts'
import { isRecord } from '../schemas/reader.ts'
import { createEndpoint, type EndpointOptions } from './endpoint.ts'
import { notStreamed } from './faults.ts'
import { createRecall } from './recall.ts'
import { streamedAnswer } from './stream.ts'
import type { Reply } from './upstream.ts'
import { bodyOf, faultOf, wholeMessage } from './wires/anthropic/answer.ts'
import { memoryOf, type Thought } from './wires/anthropic/messages.ts'
import { modelOf } from './wires/anthropic/models.ts'
import { toMessages } from './wires/anthropic/request.ts'
import { messageReader } from './wires/anthropic/stream.ts'

export interface AnthropicOptions extends EndpointOptions {
  /** With or without `/v1`. Default Anthropic's own. */
  baseUrl?: string
  /** Of the API, a day: sent as `anthropic-version`. Default `2023-06-01`. */
  version?: string
  /** Sent as `anthropic-beta`. */
  beta?: readonly string[]
}

/** From this version on the API refuses temperature, top_p and top_k of every model. */
const withoutSampling = '2026-10-21'
const can: Abilities = {
  streaming: true,
  tools: true,
  images: true,
  files: true,
  jsonSchema: true,
  audio: false,
  choices: false,
  logprobs: false
}
/** For questions beside the answers, in milliseconds. */
const patience: Timeouts = { connect: 5_000, headers: 15_000, firstToken: 15_000, idle: 15_000, total: 60_000 }
const mostPages = 20

/** Claude, by Anthropic's own Messages API. */
async function anthropic(app: FastifyInstance, options: AnthropicOptions): Promise<void> {
  const { version = '2023-06-01', beta = [], headers = {} } = options
  const baseUrl = (options.baseUrl ?? 'https://api.anthropic.com').replace(/\/+$/, '').replace(/\/v1$/, '')
  const endpoint = createEndpoint(options, baseUrl, key => ['x-api-key', key])
  const { maxEvent, redact, upstream } = endpoint
  const set = new Set(Object.keys(headers).map(name => name.toLowerCase()))
  const more = [['anthropic-version', version] as const, ['anthropic-beta', beta.join(',')] as const]
    .filter(([name, value]) => value !== '' && !set.has(name))
    .flat()
  const sampling = version < withoutSampling
  const recall = createRecall<readonly Thought[]>()

  async function send(attempt: Attempt) {
    const { request, inference } = attempt
    const memory = memoryOf(recall, inference.principal.tenant)
    const { body, warnings, jsonTool } = toMessages(request, { sampling, recollect: memory.recollect })
    for (const text of warnings) if (!inference.facts.warnings.includes(text)) inference.facts.warnings.push(text)
    const reply = await endpoint.post(attempt, '/v1/messages', { model: request.model, ...body }, more)
    const expected = { jsonTool, keep: memory.keep }
    if (reply.reads !== null) {
      return streamedAnswer(reply, reply.reads, messageReader(reply.headers, maxEvent, redact, expected))
    }
    const answer = wholeMessage(reply, redact, expected)
    if (request.stream === true) throw notStreamed()
    return answer
  }

  async function countTokens(request: ChatRequest, signal = new AbortController().signal): Promise<number> {
    const { messages, system, tools, tool_choice, thinking } = toMessages(request, {
      sampling,
      recollect: nothing
    }).body
    const body = JSON.stringify({ model: request.model, messages, system, tools, tool_choice, thinking })
    const path = '/v1/messages/count_tokens'
    const own = [...endpoint.headers(0), ...more]
    const { input_tokens: counted } = answerOf(
      await upstream.post({ path, headers: own, body, signal, timeouts: patience, stream: false })
    )
    if (typeof counted !== 'number') throw new UpstreamError('it did not count the tokens.')
    return counted
  }

  async function models(signal = new AbortController().signal): Promise<ModelInfo[]> {
    const found: ModelInfo[] = []
    let query = '?limit=1000'
    for (let page = 0; page < mostPages; page++) {
      const { data, has_more: hasMore, last_id: last } = await listed(query, signal)
      for (const model of Array.isArray(data) ? data : []) if (isRecord(model)) found.push(infoOf(model))
      if (hasMore !== true || typeof last !== 'string') break
      query = `?limit=1000&after_id=${encodeURIComponent(last)}`
    }
    return found
  }

  async function health(signal = new AbortController().signal): Promise<Health> {
    try {
      await listed('?limit=1', signal)
      return { ok: true }
    } catch (error) {
      return { ok: false, detail: error instanceof Error ? error.message : String(error) }
    }
  }

  async function listed(query: string, signal: AbortSignal): Promise<Record<string, unknown>> {
    const own = [...endpoint.headers(0), ...more]
    return answerOf(await upstream.get(`/v1/models${query}`, own, signal, patience))
  }

  function answerOf(reply: Reply): Record<string, unknown> {
    const body = bodyOf(reply)
    if (reply.status !== 200) throw faultOf(reply.status, body, reply.headers, redact)
    if (!isRecord(body)) throw new UpstreamError('its answer is not JSON.')
    return body
  }

  app.gateway.providers.register({
    name: options.name,
    keys: endpoint.keys,
    capabilities: { dialects: [], ...can },
    abilitiesOf: model => ({ ...can, contextLength: modelOf(model).contextLength }),
    pricing: { vendor: 'anthropic', url: baseUrl },
    send,
    countTokens,
    models,
    health
  })
  app.addHook('onClose', () => endpoint.close())
}

/** Thoughts of turns that are over are not counted. */
const nothing = () => undefined

function infoOf({ id, created_at: born, max_input_tokens: most }: Record<string, unknown>): ModelInfo {
  const created = Math.floor(Date.parse(String(born)) / 1_000)
  return {
    id: String(id),
    ownedBy: 'anthropic',
    ...(Number.isNaN(created) ? {} : { created }),
    ...(typeof most === 'number' ? { contextLength: most } : {})
  }
}

export default fp(anthropic, { fastify: '5.x', name: 'anthropic', dependencies: ['routing'] })
