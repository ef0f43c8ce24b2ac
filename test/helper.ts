import Fastify, { type FastifyInstance } from 'fastify'
import OpenAI from 'openai'
import type { Test } from 'tap'
import modelGateway, { type ModelGatewayOptions, type RoutingOptions, readConfig, serverOptions } from '../app.ts'
import { startUpstream } from './upstream.ts'

/**
 * A host with nothing but the gateway, built as server.ts builds it; closed after the test. Unless told otherwise it stores
 * nothing, does not limit addresses and asks for no prices.
 *
 * @param time of routing, for tests that do not want to wait for it: no configuration can say these
 */
export async function build(
  t: Test,
  options: ModelGatewayOptions = {},
  time: Pick<RoutingOptions, 'now' | 'pause' | 'random'> = {}
): Promise<FastifyInstance> {
  const app = Fastify(serverOptions({ bodyLimit: 10 * 1024 * 1024, trustProxy: false }))
  t.teardown(() => app.close())
  const config = readConfig({
    store: false,
    ...options,
    plugins: { rateLimit: false, budgets: { unpriced: 'allow' }, ...options.plugins }
  })
  const standalone = {
    settings: { ...config.settings, ...time },
    hash: config.hash,
    log: app.log,
    adminTokenGenerated: false
  }
  await app.register(modelGateway, { standalone })
  return app
}

/** Options for a gateway whose alias `test` is answered by `upstream`, for nothing, and without repeats. */
export function towards(upstream: { url: string }, options: ModelGatewayOptions = {}): ModelGatewayOptions {
  return {
    providers: { up: { type: 'openai-compatible', baseUrl: upstream.url, apiKeys: ['sk-upstream-secret'] } },
    models: {
      test: { retries: 0, targets: [{ provider: 'up', model: 'upstream-model', price: { input: 0, output: 0 } }] }
    },
    ...options
  }
}

/** A scripted upstream, a gateway that listens in front of it, and the real SDK in front of that. */
export async function stack(t: Test, options: ModelGatewayOptions = {}) {
  const upstream = await startUpstream()
  t.teardown(() => upstream.close())
  const app = await build(t, towards(upstream, options))
  const url = await app.listen({ host: '127.0.0.1', port: 0 })
  const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: 'not-needed', maxRetries: 0 })
  return { upstream, app, url, client }
}

export const hello = { model: 'test', messages: [{ role: 'user' as const, content: 'Hello' }] }
