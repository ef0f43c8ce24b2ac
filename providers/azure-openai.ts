import type { FastifyInstance } from 'fastify'
import fp from 'fastify-plugin'
import { detail, UpstreamError, UpstreamRejected } from '../schemas/errors.ts'
import { fieldsOf, jsonOf } from '../schemas/json.ts'
import type { Attempt, Health } from '../schemas/provider.ts'
import { createEndpoint, type EndpointOptions, healthFrom, withoutCredentials } from './endpoint.ts'
import { redacting } from './faults.ts'
import { createTokens, type Token, tokenFault, withoutTokens } from './tokens.ts'
import { createUpstream, type Upstream } from './upstream.ts'
import { answerTo } from './wires/openai/answer.ts'
import { type Dialect, toUpstream } from './wires/openai/request.ts'

export interface AzureOpenAIOptions extends EndpointOptions {
  /** The resource, with or without `/openai`, `/openai/v1` or `/openai/deployments/NAME`. */
  baseUrl: string
  /** A date, as `2024-10-21`: the URLs of deployments. Absent: the v1 API. */
  apiVersion?: string
  /** How `apiKeys` travel: as `api-key`, or, being tokens, as `authorization: Bearer`. Default `api-key`. */
  auth?: 'api-key' | 'bearer'
  /** An application of Microsoft Entra, in place of `apiKeys`. */
  entra?: EntraOptions
  /** Ask for usage at the end of every stream. Default true. */
  streamUsage?: boolean
}

export interface EntraOptions {
  tenantId: string
  clientId: string
  clientSecret: string
  /** Default `https://login.microsoftonline.com`. */
  authority?: string
  /** Default `https://cognitiveservices.azure.com/.default`. */
  scope?: string
}

/** OpenAI's models on Azure: the v1 API and the older URLs of deployments. */
async function azureOpenAI(app: FastifyInstance, options: AzureOpenAIOptions): Promise<void> {
  const { entra, apiVersion, auth = 'api-key' } = options
  const address = addressOf(options.baseUrl, apiVersion)
  const dialect = dialectOf(apiVersion, options.streamUsage ?? true)
  const authority =
    entra && createUpstream({ baseUrl: entra.authority ?? 'https://login.microsoftonline.com', connections: 2 })
  const tokens = entra && authority && createTokens(signal => entraToken(entra, authority, signal))
  // A token takes the place of keys.
  const own = tokens ? withoutCredentials(options, ['authorization', 'api-key']) : options
  const endpoint = createEndpoint(own, address.baseUrl, key =>
    auth === 'bearer' ? ['authorization', `Bearer ${key}`] : ['api-key', key]
  )
  const { maxEvent } = endpoint
  const redact = (text: string) => withoutTokens(endpoint.redact(text))

  async function send(attempt: Attempt) {
    const path = address.chat(attempt.request.model ?? '')
    const more = await bearer(attempt.signal)
    const reply = await endpoint.post(attempt, path, toUpstream(attempt.request, dialect), more)
    if (reply.status === 401 && more[1] !== undefined) tokens?.refused(more[1].slice('Bearer '.length))
    return answerTo(attempt.request, reply, { maxEvent, redact }, null)
  }

  async function bearer(signal?: AbortSignal): Promise<string[]> {
    return tokens === undefined ? [] : ['authorization', `Bearer ${await tokens.get(signal)}`]
  }

  /** By the list of the resource's models. Its deployments, which are what we call models, it does not tell. */
  function health(signal?: AbortSignal): Promise<Health> {
    return healthFrom(signal, async () => endpoint.probe(address.models, signal, await bearer(signal)))
  }

  app.gateway.providers.register({
    name: options.name,
    vendor: 'azure-openai',
    url: address.baseUrl,
    keys: endpoint.keys,
    capabilities: { dialects: ['openai'] },
    pricing: { vendor: 'azure' },
    send,
    health
  })
  app.addHook('onClose', () => Promise.all([endpoint.close(), authority?.close()]).then(() => {}))
}

interface Address {
  readonly baseUrl: string
  readonly models: string
  /** @throws UpstreamRejected for a name that no deployment can have */
  chat(model: string): string
}

/**
 * Where a resource answers. Before `/openai` there may be a path: that of a gateway of the user's own, or of a project.
 * @throws Error for a deployment's own URL without a version
 */
export function addressOf(baseUrl: string, apiVersion?: string): Address {
  const { origin, pathname } = new URL(baseUrl)
  const [, before = '', named, own] = /^(.*?)(\/openai)?(?:\/v1)?(\/deployments\/[^/]+)?\/*$/.exec(pathname) ?? []
  // Without `/openai` the path of a deployment is somebody's own.
  const root = origin + before + (own && !named ? '' : '/openai')
  if (apiVersion === undefined) {
    if (own) throw new Error('azure-openai: the URL of a deployment needs an apiVersion.')
    const given = origin + pathname.replace(/\/+$/, '')
    return { baseUrl: given.endsWith('/v1') ? given : `${root}/v1`, models: '/models', chat: () => '/chat/completions' }
  }
  const query = `?api-version=${encodeURIComponent(apiVersion)}`
  return {
    baseUrl: root,
    models: `/models${query}`,
    chat: model => `${own ?? `/deployments/${deploymentOf(model)}`}/chat/completions${query}`
  }
}

/** Names may come from callers, and a path is made of them. */
function deploymentOf(model: string): string {
  if (/^[A-Za-z0-9][\w.-]{0,127}$/.test(model)) return model
  throw detail(new UpstreamRejected('The model is not the name of a deployment on Azure.'), {
    param: 'model',
    blame: 'target'
  })
}

/** The version of September 2024 brought both fields; older ones refuse what they do not know. */
function dialectOf(apiVersion: string | undefined, streamUsage: boolean): Dialect {
  const isOld = apiVersion !== undefined && apiVersion < '2024-09-01'
  return {
    outputCap: isOld ? 'max_tokens' : 'max_completion_tokens',
    streamUsage: streamUsage && !isOld
  }
}

/** For a token, in milliseconds; its own deadline may come first. */
const patience = { connect: 5_000, headers: 10_000, firstToken: 10_000, idle: 10_000, total: 10_000 }

/** The client-credentials grant of Microsoft's identity platform. */
async function entraToken(entra: EntraOptions, authority: Upstream, signal: AbortSignal): Promise<Token> {
  const form = new URLSearchParams({
    grant_type: 'client_credentials',
    client_id: entra.clientId,
    client_secret: entra.clientSecret,
    scope: entra.scope ?? 'https://cognitiveservices.azure.com/.default'
  })
  const asked = authority.post({
    path: `/${encodeURIComponent(entra.tenantId)}/oauth2/v2.0/token`,
    headers: ['content-type', 'application/x-www-form-urlencoded'],
    body: form.toString(),
    signal,
    timeouts: patience,
    stream: false
  })
  const { status, body } = await asked.catch(cause => {
    throw new UpstreamError('its token endpoint cannot be reached.', { cause })
  })
  const said = fieldsOf(jsonOf(body))
  const value = status === 200 && said['access_token']
  const seconds = Number(said['expires_in'])
  if (typeof value !== 'string' || !/^[\x21-\x7e]+$/.test(value) || !(seconds > 0)) {
    throw tokenFault(status, said, redacting([entra.clientSecret], []))
  }
  return { value, expires: Date.now() + seconds * 1_000 }
}

export default fp(azureOpenAI, { fastify: '5.x', name: 'azure-openai', dependencies: ['routing'] })
