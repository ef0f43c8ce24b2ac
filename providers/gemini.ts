import type { FastifyInstance } from 'fastify'
import fp from 'fastify-plugin'
import type { ChatRequest } from '../schemas/chat.ts'
import { detail, InvalidRequest, UpstreamError } from '../schemas/errors.ts'
import { jsonOf, listOf } from '../schemas/json.ts'
import type { Attempt, ModelInfo } from '../schemas/provider.ts'
import { isRecord } from '../schemas/reader.ts'
import { createEndpoint, type EndpointOptions } from './endpoint.ts'
import { notStreamed } from './faults.ts'
import { createMedia, type MediaOptions } from './media.ts'
import { createRecall } from './recall.ts'
import { streamedAnswer } from './stream.ts'
import type { Reply } from './upstream.ts'
import { googleFault, type Origin, wholeAnswer } from './wires/gemini/answer.ts'
import type { Surface } from './wires/gemini/context.ts'
import { abilitiesOf } from './wires/gemini/models.ts'
import { linksOf } from './wires/gemini/parts.ts'
import { toGemini } from './wires/gemini/request.ts'
import { signaturesOf, withoutRefused } from './wires/gemini/signatures.ts'
import { geminiReader } from './wires/gemini/stream.ts'

export interface GeminiOptions extends EndpointOptions {
  /** With or without `/v1beta`. Default Google's own. */
  baseUrl?: string
  /** Sent with every call. */
  safetySettings?: Surface['safetySettings']
  /** Whether links to images and PDFs are read here, because Google does not. Default false. */
  fetchMedia?: false | MediaOptions
}

const mostPages = 50
const ownAddresses =
  /^https:\/\/(?:generativelanguage\.googleapis\.com\/v1(?:beta)?\/files\/|(?:www\.)?youtube\.com\/watch\?v=|youtu\.be\/)/

/** Google's Gemini Developer API. */
async function gemini(app: FastifyInstance, options: GeminiOptions): Promise<void> {
  const baseUrl = withVersion(options.baseUrl ?? 'https://generativelanguage.googleapis.com')
  const endpoint = createEndpoint(options, baseUrl, key => ['x-goog-api-key', key])
  const { maxEvent, redact } = endpoint
  const readMedia = options.fetchMedia ? createMedia(options.fetchMedia) : null
  const recall = createRecall<string>()
  const surface: Surface = {
    opens: url => ownAddresses.test(url),
    callIds: true,
    serviceTier: true,
    safetySettings: options.safetySettings
  }

  async function send(attempt: Attempt) {
    const { request, inference, signal } = attempt
    const model = request.model ?? ''
    const streamed = request.stream === true
    const path = pathOf(model, streamed ? 'streamGenerateContent?alt=sse' : 'generateContent')
    const signatures = signaturesOf(recall, inference.principal.tenant)
    const media = readMedia === null ? undefined : await readMedia(linksOf(request, surface), signal)
    const { body, warnings } = toGemini(request, surface, { signatures, media })
    const { warnings: told } = inference.facts
    for (const warning of warnings) if (!told.includes(warning)) told.push(warning)
    const reply = await endpoint.post(attempt, path, body)
    const origin: Origin = { model, id: inference.id, redact, signatures }
    if (reply.reads !== null) return streamedAnswer(reply, reply.reads, geminiReader(reply.headers, maxEvent, origin))
    try {
      const answer = wholeAnswer(reply, origin)
      if (streamed) throw notStreamed()
      return answer
    } catch (error) {
      throw withoutRefused(error, request, signatures)
    }
  }

  async function countTokens(request: ChatRequest, signal?: AbortSignal): Promise<number> {
    const path = pathOf(request.model ?? '', 'countTokens')
    const { contents, systemInstruction, tools } = toGemini(request, surface, { signatures: { find() {} } }).body
    const model = path.slice(1, path.lastIndexOf(':'))
    const question = { generateContentRequest: { model, contents, systemInstruction, tools } }
    const { totalTokens } = answerOf(await endpoint.ask(path, signal, question))
    if (typeof totalTokens !== 'number') throw new UpstreamError('it does not say how many tokens there are.')
    return totalTokens
  }

  async function models(signal?: AbortSignal): Promise<ModelInfo[]> {
    const found: ModelInfo[] = []
    let page = ''
    for (let asked = 0; asked < mostPages; asked++) {
      const reply = await endpoint.ask(`/models?pageSize=1000${page}`, signal)
      const { models: some, nextPageToken: next } = answerOf(reply)
      for (const model of listOf(some)) {
        const info = infoOf(model)
        if (info !== null) found.push(info)
      }
      if (typeof next !== 'string' || next === '') break
      page = `&pageToken=${encodeURIComponent(next)}`
    }
    return found
  }

  function answerOf(reply: Reply): { readonly [field: string]: unknown } {
    const body = jsonOf(reply.body)
    if (reply.status !== 200) throw googleFault(reply.status, body, reply.headers, redact)
    if (!isRecord(body)) throw new UpstreamError('its answer is not JSON.')
    return body
  }

  app.gateway.providers.register({
    name: options.name,
    vendor: 'gemini',
    url: baseUrl,
    keys: endpoint.keys,
    capabilities: { dialects: [], streaming: true, images: true },
    pricing: { vendor: 'google' },
    abilitiesOf,
    send,
    countTokens,
    models,
    health: signal => endpoint.probe('/models?pageSize=1', signal)
  })
  app.addHook('onClose', () => endpoint.close())
}

/** Base URLs are given with and without a version; another path, if there is one, is kept. */
function withVersion(baseUrl: string): string {
  const url = new URL(baseUrl)
  const path = url.pathname.replace(/\/+$/, '')
  return /\/v1(?:alpha|beta\d*)?$/.test(path) ? url.origin + path : `${url.origin}${path}/v1beta`
}

/** Where a model is asked. Its name may come from a client, and is nothing but a name. @throws InvalidRequest */
function pathOf(model: string, method: string): string {
  const [, folder = 'models', name] = /^(?:(models|tunedModels)\/)?([A-Za-z0-9][A-Za-z0-9._@-]*)$/.exec(model) ?? []
  if (name === undefined) throw detail(new InvalidRequest('Gemini has no models of such a name.'), { param: 'model' })
  return `/${folder}/${name}:${method}`
}

/** A model that can be talked to; null for those that embed, draw or do something else. */
function infoOf(model: unknown): ModelInfo | null {
  if (!isRecord(model)) return null
  const { name, supportedGenerationMethods: methods, inputTokenLimit: input, outputTokenLimit: output } = model
  if (typeof name !== 'string' || !listOf(methods).includes('generateContent')) return null
  const known = typeof input === 'number' && typeof output === 'number'
  return { id: name.replace(/^models\//, ''), ownedBy: 'google', ...(known ? { contextLength: input + output } : {}) }
}

export default fp(gemini, { fastify: '5.x', name: 'gemini', dependencies: ['routing'] })
