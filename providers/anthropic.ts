import type { FastifyInstance } from 'fastify'
import fp from 'fastify-plugin'
import type { ChatRequest } from '../schemas/chat.ts'
import { UpstreamError } from '../schemas/errors.ts'
import { fieldsOf, jsonOf, listOf } from '../schemas/json.ts'
import type { Attempt, ModelInfo } from '../schemas/provider.ts'
import { isRecord } from '../schemas/reader.ts'
import { createEndpoint, type EndpointOptions } from './endpoint.ts'
import { notStreamed } from './faults.ts'
import { createRecall } from './recall.ts'
import { streamedAnswer } from './stream.ts'
import type { Reply } from './upstream.ts'
import { faultOf, wholeMessage } from './wires/anthropic/answer.ts'
import { memoryOf, type Thought } from './wires/anthropic/messages.ts'
import { abilitiesOf, can } from './wires/anthropic/models.ts'
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
const mostPages = 20

/** Claude, by Anthropic's own Messages API. */
async function anthropic(app: FastifyInstance, options: AnthropicOptions): Promise<void> {
  const { version = '2023-06-01', beta = [], headers = {} } = options
  const baseUrl = (options.baseUrl ?? 'https://api.anthropic.com').replace(/\/+$/, '').replace(/\/v1$/, '')
  const endpoint = createEndpoint(options, baseUrl, key => ['x-api-key', key])
  const { maxEvent, redact } = endpoint
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

  async function countTokens(request: ChatRequest, signal?: AbortSignal): Promise<number> {
    const { messages, system, tools, tool_choice, thinking } = toMessages(request, {
      sampling,
      recollect: nothing
    }).body
    const question = { model: request.model, messages, system, tools, tool_choice, thinking }
    const reply = await endpoint.ask('/v1/messages/count_tokens', signal, question, more)
    const { input_tokens: counted } = answerOf(reply)
    if (typeof counted !== 'number') throw new UpstreamError('it did not count the tokens.')
    return counted
  }

  async function models(signal?: AbortSignal): Promise<ModelInfo[]> {
    const found: ModelInfo[] = []
    let page = ''
    for (let asked = 0; asked < mostPages; asked++) {
      const reply = await endpoint.ask(`/v1/models?limit=1000${page}`, signal, undefined, more)
      const { data, has_more: hasMore, last_id: last } = answerOf(reply)
      found.push(...listOf(data).flatMap(model => infoOf(fieldsOf(model)) ?? []))
      if (hasMore !== true || typeof last !== 'string') break
      page = `&after_id=${encodeURIComponent(last)}`
    }
    return found
  }

  function answerOf(reply: Reply): Record<string, unknown> {
    const body = jsonOf(reply.body)
    if (reply.status !== 200) throw faultOf(reply.status, body, reply.headers, redact)
    if (!isRecord(body)) throw new UpstreamError('its answer is not JSON.')
    return body
  }

  app.gateway.providers.register({
    name: options.name,
    vendor: 'anthropic',
    url: baseUrl,
    keys: endpoint.keys,
    capabilities: { dialects: [], ...can },
    abilitiesOf,
    pricing: { vendor: 'anthropic', url: baseUrl },
    send,
    countTokens,
    models,
    health: signal => endpoint.probe('/v1/models?limit=1', signal, more)
  })
  app.addHook('onClose', () => endpoint.close())
}

/** Thoughts of turns that are over are not counted. */
const nothing = () => undefined

/** Null for an entry without a name. */
function infoOf({ id, created_at: born, max_input_tokens: most }: Readonly<Record<string, unknown>>): ModelInfo | null {
  if (typeof id !== 'string' || id === '') return null
  const created = Math.floor(Date.parse(String(born)) / 1_000)
  return {
    id,
    ownedBy: 'anthropic',
    ...(Number.isNaN(created) ? {} : { created }),
    ...(typeof most === 'number' ? { contextLength: most } : {})
  }
}

export default fp(anthropic, { fastify: '5.x', name: 'anthropic', dependencies: ['routing'] })
