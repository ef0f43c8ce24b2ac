import fastifyCors, { type FastifyCorsOptions } from '@fastify/cors'
import type { FastifyInstance, RouteHandlerMethod, RouteShorthandOptions } from 'fastify'
import fp from 'fastify-plugin'

export interface CorsOptions {
  /** Origins whose pages may call; `*` for all. */
  origin: readonly string[]
  credentials: boolean
}

/** What the OpenAI SDK and our own callers read of an answer; a browser hides every other header. */
const exposed = [
  'x-request-id',
  'x-trace-id',
  'x-should-retry',
  'retry-after',
  'retry-after-ms',
  'x-ratelimit-limit-requests',
  'x-ratelimit-limit-tokens',
  'x-ratelimit-remaining-requests',
  'x-ratelimit-remaining-tokens',
  'x-ratelimit-reset-requests',
  'x-ratelimit-reset-tokens',
  'x-gateway-provider',
  'x-gateway-model',
  'x-gateway-attempts',
  'x-gateway-cache',
  'x-gateway-cost-usd',
  'x-gateway-warnings',
  'x-gateway-budget-remaining-usd',
  'x-gateway-degraded',
  'x-gateway-key-id',
  'x-gateway-receipt',
  'idempotency-replayed'
]

/** @fastify/cors inside our scope. The requested headers are allowed as asked: SDKs add new ones with every release. */
async function cors(app: FastifyInstance, options: CorsOptions): Promise<void> {
  if (app.hasRequestDecorator('corsPreflightEnabled')) {
    app.gateway.log.warn(
      {},
      "server.cors is left to the host: it has @fastify/cors, whose hooks reach the gateway's routes too"
    )
    return
  }
  // It asks for OPTIONS of every path, which without a prefix would be the host's own; it gets those of our routes.
  const modest: FastifyInstance = Object.create(app, {
    options: {
      value: (_everything: string, options: RouteShorthandOptions, answer: RouteHandlerMethod) => {
        const answered = new Set<string>()
        app.addHook('onRoute', function ({ method, url, routePath }) {
          if (method === 'OPTIONS' || answered.has(url)) return
          answered.add(url)
          this.options(routePath, options, answer)
        })
      }
    }
  })
  await new Promise<void>((resolve, reject) => {
    const given: FastifyCorsOptions = {
      origin: options.origin.includes('*') ? true : [...options.origin],
      credentials: options.credentials,
      methods: ['GET', 'HEAD', 'POST', 'PUT', 'DELETE'],
      exposedHeaders: exposed,
      strictPreflight: false,
      maxAge: 600
    }
    fastifyCors(modest, given, error => (error ? reject(error) : resolve()))
  })
}

export default fp(cors, { fastify: '5.x', name: 'cors', dependencies: ['http'] })
