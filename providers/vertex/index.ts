import type { FastifyInstance } from 'fastify'
import fp from 'fastify-plugin'
import type { ChatRequest } from '../../schemas/chat.ts'
import { detail, InvalidRequest, UpstreamError, UpstreamRejected } from '../../schemas/errors.ts'
import type { Answer } from '../../schemas/gateway.ts'
import { fieldsOf, jsonOf } from '../../schemas/json.ts'
import type { Attempt, Health } from '../../schemas/provider.ts'
import { createEndpoint, type EndpointOptions, healthFrom, withoutCredentials } from '../endpoint.ts'
import { notStreamed } from '../faults.ts'
import { createMedia, type MediaOptions } from '../media.ts'
import { createRecall } from '../recall.ts'
import { streamedAnswer } from '../stream.ts'
import { withoutTokens } from '../tokens.ts'
import { faultOf, wholeMessage } from '../wires/anthropic/answer.ts'
import { memoryOf, type Thought } from '../wires/anthropic/messages.ts'
import { abilitiesOf as claudesAbilities } from '../wires/anthropic/models.ts'
import { toMessages } from '../wires/anthropic/request.ts'
import { messageReader } from '../wires/anthropic/stream.ts'
import { googleFault, wholeAnswer } from '../wires/gemini/answer.ts'
import type { Surface } from '../wires/gemini/context.ts'
import { abilitiesOf } from '../wires/gemini/models.ts'
import { linksOf } from '../wires/gemini/parts.ts'
import { toGemini } from '../wires/gemini/request.ts'
import { signaturesOf, withoutRefused } from '../wires/gemini/signatures.ts'
import { geminiReader } from '../wires/gemini/stream.ts'
import { type Asked, askedOf, originOf, pathOf, rootOf } from './address.ts'
import { inlined } from './media.ts'
import { createGoogleTokens } from './token.ts'

export interface VertexOptions extends EndpointOptions {
  /** The id of a project. Absent with `apiKeys`: the express mode, for Gemini only. */
  project?: string
  /** A region, `us` or `eu`, or `global`, which is the default. */
  location?: string
  /** Default the location's own. */
  baseUrl?: string
  /** The path of a service account's key file, or its JSON. Absent: the machine's own identity. */
  credentials?: string
  /** Where tokens are asked for in place of Google, for tests. */
  tokenUrl?: string
  /** Sent with every call of Gemini. */
  safetySettings?: Surface['safetySettings']
  /** Whether links to images and PDFs are read here for Claude, who does not on Vertex AI. Default false. */
  fetchMedia?: false | MediaOptions
}

/** The version of Anthropic's wire here; it takes sampling parameters. */
const version = { anthropic_version: 'vertex-2023-10-16' }

/** Gemini and Claude on Google's Vertex AI. */
async function vertex(app: FastifyInstance, options: VertexOptions): Promise<void> {
  const { root, origin, tokens } = await placed(options).catch(error => {
    throw new Error(`The provider ${options.name} cannot be set up: ${error.message}`)
  })
  // A token takes the place of keys.
  const own = tokens === null ? options : withoutCredentials(options, ['authorization', 'x-goog-api-key'])
  const endpoint = createEndpoint(own, options.baseUrl ?? origin, key => ['x-goog-api-key', key])
  const { maxEvent } = endpoint
  const redact = (text: string) => withoutTokens(endpoint.redact(text))
  const readMedia = options.fetchMedia ? createMedia(options.fetchMedia) : null
  const signatures = createRecall<string>()
  const thoughts = createRecall<readonly Thought[]>()
  // Google reads links by itself, and knows calls by their order.
  const surface: Surface = {
    opens: url => /^(?:gs|https?):\/\//i.test(url),
    callIds: false,
    serviceTier: false,
    safetySettings: options.safetySettings
  }

  async function send(attempt: Attempt): Promise<Answer> {
    const asked = modelAsked(attempt.request)
    return await (asked.publisher === 'anthropic' ? sendToClaude(attempt, asked) : sendToGemini(attempt, asked))
  }

  async function sendToGemini(attempt: Attempt, asked: Asked): Promise<Answer> {
    const { request, inference } = attempt
    const own = signaturesOf(signatures, inference.principal.tenant)
    const { body, warnings } = toGemini(request, surface, { signatures: own })
    warn(attempt, warnings)
    const reply = await post(attempt, asked, body)
    const origin = { model: asked.model, id: inference.id, redact, signatures: own }
    if (reply.reads !== null) return streamedAnswer(reply, reply.reads, geminiReader(reply.headers, maxEvent, origin))
    try {
      return wholeOnly(attempt, wholeAnswer(reply, origin))
    } catch (error) {
      throw withoutRefused(error, request, own)
    }
  }

  async function sendToClaude(attempt: Attempt, asked: Asked): Promise<Answer> {
    const memory = memoryOf(thoughts, attempt.inference.principal.tenant)
    const request = await withMedia(attempt.request, attempt.signal)
    const { body, warnings, jsonTool } = toMessages(request, { sampling: true, recollect: memory.recollect })
    const { service_tier: tier, ...rest } = body
    warn(attempt, tier === undefined ? warnings : [...warnings, 'Claude has no service tiers on Vertex AI.'])
    const reply = await post(attempt, asked, { ...version, ...rest })
    const expected = { jsonTool, keep: memory.keep }
    if (reply.reads !== null) {
      return streamedAnswer(reply, reply.reads, messageReader(reply.headers, maxEvent, redact, expected))
    }
    return wholeOnly(attempt, wholeMessage(reply, redact, expected))
  }

  /** @throws UpstreamRejected for a name that no path can be made of, and for Claude without a project */
  function modelAsked({ model }: ChatRequest): Asked {
    const asked = askedOf(model ?? '')
    if (asked.publisher === 'google' || tokens !== null) return asked
    throw detail(new UpstreamRejected('Claude needs a project on Vertex AI: the express mode has none.'), {
      param: 'model',
      blame: 'target'
    })
  }

  async function post(attempt: Attempt, asked: Asked, body: object) {
    const path = root + pathOf(asked, attempt.request.stream === true)
    const more = await bearer(attempt.signal)
    const reply = await endpoint.post(attempt, path, body, more)
    if (reply.status === 401 && more[1] !== undefined) tokens?.refused(more[1].slice('Bearer '.length))
    return reply
  }

  async function bearer(signal?: AbortSignal): Promise<string[]> {
    return tokens === null ? [] : ['authorization', `Bearer ${await tokens.get(signal)}`]
  }

  /** @throws InvalidRequest naming the link where nobody is to read it */
  async function withMedia(request: ChatRequest, signal = new AbortController().signal): Promise<ChatRequest> {
    const links = linksOf(request, { opens: () => false })
    const [first] = links
    if (first === undefined) return request
    if (readMedia !== null) return inlined(request, await readMedia(links, signal))
    const message = 'Claude reads no links on Vertex AI. Send the data as a data URL, or set the option `fetchMedia`.'
    throw detail(new InvalidRequest(message), { param: first.param })
  }

  async function countTokens(request: ChatRequest, signal?: AbortSignal): Promise<number> {
    const asked = modelAsked(request)
    const isClaude = asked.publisher === 'anthropic'
    const path = isClaude ? '/anthropic/models/count-tokens:rawPredict' : `/google/models/${asked.model}:countTokens`
    const question = isClaude ? await countedByClaude(request, asked, signal) : countedByGemini(request)
    const reply = await endpoint.ask(root + path, signal, question, await bearer(signal))
    const said = jsonOf(reply.body)
    const fail = isClaude ? faultOf : googleFault
    if (reply.status !== 200) throw fail(reply.status, said, reply.headers, redact)
    const counted = fieldsOf(said)[isClaude ? 'input_tokens' : 'totalTokens']
    if (typeof counted !== 'number') throw new UpstreamError('it does not say how many tokens there are.')
    return counted
  }

  function countedByGemini(request: ChatRequest): object {
    const { contents, systemInstruction, tools } = toGemini(request, surface, { signatures: { find: nothing } }).body
    return { contents, systemInstruction, tools }
  }

  async function countedByClaude(request: ChatRequest, { model }: Asked, signal?: AbortSignal): Promise<object> {
    const whole = await withMedia(request, signal)
    const { body } = toMessages(whole, { sampling: true, recollect: nothing })
    const { messages, system, tools, tool_choice, thinking } = body
    return { ...version, model, messages, system, tools, tool_choice, thinking }
  }

  /** By a token, and by any answer of the host: what the location itself says may need a right that no model needs. */
  function health(signal?: AbortSignal): Promise<Health> {
    return healthFrom(signal, async () => {
      const path = root.slice(0, root.lastIndexOf('/'))
      const { status } = await endpoint.ask(path, signal, undefined, await bearer(signal))
      return status < 500 && status !== 401 ? { ok: true } : { ok: false, detail: `It answered with status ${status}.` }
    })
  }

  app.gateway.providers.register({
    name: options.name,
    vendor: 'vertex',
    url: options.baseUrl ?? origin,
    keys: endpoint.keys,
    capabilities: { dialects: [], streaming: true },
    // Its list has Claude too.
    pricing: { vendor: 'google' },
    abilitiesOf: model => (isClaude(model) ? claudesAbilities(model) : abilitiesOf(model)),
    send,
    countTokens,
    ...(tokens === null ? {} : { health })
  })
  app.addHook('onClose', () => endpoint.close())
}

/** @throws Error with one line that does not quote the credentials */
async function placed({ project, location = 'global', apiKeys, credentials, tokenUrl }: VertexOptions) {
  if (project === undefined && !apiKeys?.length) throw new Error('there is neither a project nor a key.')
  const place = { project, location }
  const [root, origin] = [rootOf(place), originOf(place)]
  return { root, origin, tokens: project === undefined ? null : await createGoogleTokens(credentials, tokenUrl) }
}

function isClaude(model: string): boolean {
  try {
    return askedOf(model).publisher === 'anthropic'
  } catch {
    return false
  }
}

function nothing(): undefined {}

function warn({ inference }: Attempt, warnings: readonly string[]): void {
  const told = inference.facts.warnings
  for (const text of warnings) if (!told.includes(text)) told.push(text)
}

function wholeOnly({ request }: Attempt, answer: Answer): Answer {
  if (request.stream === true) throw notStreamed()
  return answer
}

export default fp(vertex, { fastify: '5.x', name: 'vertex', dependencies: ['routing'] })
