import type { FastifyInstance } from 'fastify'
import fp from 'fastify-plugin'
import { UpstreamError } from '../../schemas/errors.ts'
import type { Attempt, Provider } from '../../schemas/provider.ts'
import { createUpstream } from '../upstream.ts'
import { type Redact, streamedAnswer, wholeAnswer } from './answer.ts'
import { type Dialect, outputCapOf, toUpstream, withVersion } from './request.ts'

export interface OpenAICompatibleOptions {
  name: string
  /** With or without `/v1`. */
  baseUrl?: string
  /** Used in turn. */
  apiKeys?: readonly string[]
  /** Sent with every request. */
  headers?: Readonly<Record<string, string>>
  /** Headers of the client that may go upstream. */
  forwardHeaders?: readonly string[]
  /** Ask for usage at the end of every stream. Default true. */
  streamUsage?: boolean
  /** The most sockets to the provider. Default 1024. */
  connections?: number
  /** The most bytes of one event. Default 8 MiB. */
  maxEvent?: number
}

/** Headers that are the provider's own business, whatever the options say. */
const neverForwarded = new Set([
  'accept-encoding',
  'api-key',
  'authorization',
  'connection',
  'content-length',
  'cookie',
  'host',
  'transfer-encoding',
  'x-api-key'
])

/** OpenAI and everything that speaks its wire: OpenRouter, LiteLLM, vLLM, Ollama, another gateway of ours. */
async function openaiCompatible(app: FastifyInstance, options: OpenAICompatibleOptions): Promise<void> {
  const { provider, close } = createProvider(options)
  app.gateway.providers.register(provider)
  app.addHook('onClose', close)
}

function createProvider(options: OpenAICompatibleOptions): { provider: Provider; close: () => Promise<void> } {
  const baseUrl = withVersion(options.baseUrl ?? 'https://api.openai.com/v1')
  const keys = options.apiKeys ?? []
  const maxEvent = options.maxEvent ?? 8 * 1024 * 1024
  const dialect: Dialect = { outputCap: outputCapOf(baseUrl), streamUsage: options.streamUsage ?? true }
  const upstream = createUpstream({ baseUrl, connections: options.connections ?? 1024 })
  const redact = redacting(keys, Object.values(options.headers ?? {}))
  const given = Object.entries(options.headers ?? {}).map(([name, value]) => [name.toLowerCase(), value] as const)
  const statics = new Map([['content-type', 'application/json'], ...given])
  if (keys.length > 0) statics.delete('authorization')
  const fixed = [...statics].flat()
  const forward = (options.forwardHeaders ?? [])
    .map(name => name.toLowerCase())
    .filter(name => !statics.has(name) && !neverForwarded.has(name))
  const perKey = keys.map(key => [...fixed, 'authorization', `Bearer ${key}`])
  let turn = 0

  function headersFor(attempt: Attempt): string[] {
    const own = perKey.length === 0 ? fixed : perKey[turn++ % perKey.length]!
    let layered = forward.length > 0
    for (const _name in attempt.headers) layered = true
    if (!layered) return own
    // Our own win over those of layers, theirs over the client's; each name goes out once.
    const headers = new Map<string, string>()
    for (const name of forward) {
      const value = attempt.caller.origin.headers?.[name]
      if (typeof value === 'string') headers.set(name, value)
    }
    for (const name in attempt.headers) {
      const lower = name.toLowerCase()
      if (!neverForwarded.has(lower)) headers.set(lower, attempt.headers[name]!)
    }
    for (let index = 0; index < own.length; index += 2) headers.set(own[index]!, own[index + 1]!)
    return [...headers].flat()
  }

  async function send(attempt: Attempt) {
    const stream = attempt.request.stream === true
    const reply = await upstream.post({
      path: '/chat/completions',
      headers: headersFor(attempt),
      body: JSON.stringify(toUpstream(attempt.request, dialect)),
      signal: attempt.signal,
      timeouts: attempt.timeouts,
      stream
    })
    if (reply.reads !== null) return streamedAnswer(reply, reply.reads, maxEvent, redact)
    const answer = wholeAnswer(reply, redact)
    if (stream) throw new UpstreamError('it answered a stream request with something else.')
    return answer
  }

  const provider: Provider = {
    name: options.name,
    capabilities: { dialects: ['openai'] },
    pricing: { url: baseUrl },
    send
  }
  return { provider, close: () => upstream.close() }
}

/** Vendors quote keys in their messages: whole, shortened, or with stars in the middle. */
function redacting(keys: readonly string[], headers: readonly string[]): Redact {
  const values = headers.map(value => value.slice(value.lastIndexOf(' ') + 1)).filter(value => value.length >= 8)
  const patterns = [
    ...keys.filter(key => key.length >= 12).map(key => `${escaped(key.slice(0, 6))}[^\\s"'\`,;<>()]*`),
    ...[...keys.filter(key => key.length >= 4), ...values].map(escaped),
    '[\\w-]{0,12}\\*{3,}[\\w*-]*'
  ]
  const secrets = new RegExp(patterns.join('|'), 'g')
  return text => text.replace(secrets, '[redacted]')
}

function escaped(text: string): string {
  return text.replace(/[^\w]/g, '\\$&')
}

export default fp(openaiCompatible, { fastify: '5.x', name: 'openai-compatible', dependencies: ['routing'] })
