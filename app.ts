import { type FastifyInstance, fastify } from 'fastify'
import fp from 'fastify-plugin'
import admin from './plugins/admin/index.ts'
import auth from './plugins/auth/index.ts'
import budgets from './plugins/budgets/index.ts'
import chatCompletions from './plugins/chat-completions/index.ts'
import cors from './plugins/cors.ts'
import events from './plugins/events/index.ts'
import gateway from './plugins/gateway/index.ts'
import health from './plugins/health.ts'
import helmet from './plugins/helmet.ts'
import http from './plugins/http/index.ts'
import idempotency from './plugins/idempotency/index.ts'
import ledger from './plugins/ledger/index.ts'
import limits from './plugins/limits/index.ts'
import metrics from './plugins/metrics/index.ts'
import models from './plugins/models.ts'
import type { Telemetry } from './plugins/otel/sdk.ts'
import pricing from './plugins/pricing/index.ts'
import proxy from './plugins/proxy.ts'
import rateLimit from './plugins/rate-limit.ts'
import requestLog from './plugins/request-log/index.ts'
import routing from './plugins/routing/index.ts'
import sensible from './plugins/sensible.ts'
import shared from './plugins/shared/index.ts'
import signing from './plugins/signing/index.ts'
import stats from './plugins/stats.ts'
import store from './plugins/store/index.ts'
import tenantsPlugin from './plugins/tenants/index.ts'
import traces from './plugins/traces.ts'
import anthropic from './providers/anthropic.ts'
import azureOpenAI from './providers/azure-openai.ts'
import echo from './providers/echo.ts'
import gemini from './providers/gemini.ts'
import llamacpp from './providers/llamacpp.ts'
import openai from './providers/openai.ts'
import openaiCompatible from './providers/openai-compatible.ts'
import vertex from './providers/vertex/index.ts'
import { type Config, type Configuration, readConfig, type Settings } from './schemas/config.ts'
import type { Log } from './schemas/gateway.ts'
import type { ModelSettings } from './schemas/model-options.ts'
import type { RoutingTable } from './schemas/routing.ts'
import type { Verification } from './schemas/store.ts'

/** The configuration of docs/configuration.md, and where the gateway goes in its host. */
export type ModelGatewayOptions = Config & {
  /** Before every route. Without one, no not-found handler is set. */
  prefix?: string
  /** The one name that the host is decorated with. Default `gateway`. */
  name?: string
  /** Given by a server of our own instead of a configuration. */
  standalone?: Standalone
}

/** A server that has read its configuration already and has no hooks of its own. */
export interface Standalone {
  settings: Settings
  /** Of the configuration, see readConfig. */
  hash?: string
  /** Reads the routing table again, for a change without a restart. @throws ConfigError */
  source?: () => Promise<RoutingTable<ModelSettings>>
  log: Log
  /** The admin token was made up, not set by anybody: it does not close anonymous access. */
  adminTokenGenerated: boolean
  /** The OpenTelemetry SDK that it has started. */
  telemetry?: Telemetry
}

/** The gateway in reading order. Everything lives in the scope that it is given. */
async function gatewayApp(
  app: FastifyInstance,
  { settings, hash }: Pick<Standalone, 'settings' | 'hash'>,
  standalone?: Standalone
): Promise<void> {
  const { server, plugins, tenants, store: storeUrl, redis } = settings
  const origins = server.cors === false ? [] : server.cors.origin
  const together = redis !== undefined && plugins.shared !== false

  // the kernel, and what it routes to
  await app.register(gateway, { shutdownGrace: server.shutdownGrace, log: standalone?.log })
  await app.register(routing, { ...settings, hash, source: standalone?.source })
  if (plugins.otel) {
    const { default: otel } = await import('./plugins/otel/index.ts')
    await app.register(otel, { ...plugins.otel, telemetry: standalone?.telemetry })
  }
  for (const [name, provider] of Object.entries(settings.providers)) {
    if (!provider.enabled) continue
    if (provider.type === 'openai') await app.register(openai, { ...provider, name })
    if (provider.type === 'openai-compatible') await app.register(openaiCompatible, { ...provider, name })
    if (provider.type === 'anthropic') await app.register(anthropic, { ...provider, name })
    if (provider.type === 'azure-openai') await app.register(azureOpenAI, { ...provider, name })
    if (provider.type === 'gemini') await app.register(gemini, { ...provider, name })
    if (provider.type === 'vertex') await app.register(vertex, { ...provider, name })
    if (provider.type === 'llamacpp') await app.register(llamacpp, { ...provider, name })
    if (provider.type === 'echo') await app.register(echo, { ...provider, name })
  }

  // what outlives the process, and what processes share
  if (storeUrl) await app.register(store, { url: storeUrl, shared: together })
  if (redis && plugins.shared) await app.register(shared, { ...plugins.shared, url: redis })

  // what all routes have in common
  await app.register(http, server)
  if (plugins.sensible) await app.register(sensible, plugins.sensible)
  if (plugins.helmet) await app.register(helmet, plugins.helmet)
  if (server.cors) await app.register(cors, server.cors)
  if (plugins.rateLimit) await app.register(rateLimit, plugins.rateLimit)

  // what leaves
  if (plugins.signing) await app.register(signing, plugins.signing)

  // who may call, and for how much
  if (plugins.auth) await app.register(auth, { ...standalone, ...plugins.auth, tenants, origins })
  if (plugins.tenants) await app.register(tenantsPlugin, { ...plugins.tenants, tenants })
  if (plugins.limits && plugins.tenants) await app.register(limits)
  if (plugins.idempotency) await app.register(idempotency, plugins.idempotency)
  if (plugins.pricing) await app.register(pricing, plugins.pricing)
  if (plugins.budgets && plugins.pricing) await app.register(budgets, { ...plugins.budgets, gateway: settings.budget })
  if (plugins.ledger && storeUrl) await app.register(ledger, { ...plugins.ledger, ...journalOf(settings) })

  // what happens, for those who watch
  if (plugins.requestLog) await app.register(requestLog)
  if (plugins.traces) await app.register(traces)
  if (plugins.stats) await app.register(stats)
  if (plugins.metrics) await app.register(metrics, plugins.metrics)

  // transports, each in its own scope
  if (plugins.chatCompletions) await app.register(chatCompletions, { ...server, direct: standalone !== undefined })
  if (plugins.proxy && plugins.chatCompletions) await app.register(proxy)
  if (plugins.models) await app.register(models)
  if (plugins.admin) await app.register(admin)
  if (plugins.health) await app.register(health)
  if (plugins.events) await app.register(events, { ...plugins.events, url: redis })
}

/** Where this process writes its journal, and how it tells that another one is dead. */
function journalOf({ store, redis, plugins }: Settings) {
  const shared = redis !== undefined && plugins.shared !== false
  return { directory: journalDirectory(store), shared, lease: plugins.shared ? plugins.shared.lease : 10_000 }
}

/** Beside a SQLite file; undefined, a temporary one, for a database in memory. */
function journalDirectory(store: string | false): string | undefined {
  if (store === false || !store.startsWith('sqlite:')) return './data/journal'
  return store === 'sqlite::memory:' ? undefined : `${store.slice('sqlite:'.length)}.journal`
}

/**
 * Compares every balance of the configured database with its ledger. What a killed gateway has left is taken over first.
 * @throws Error with one line for the operator: there is no database, or another gateway uses it
 */
export async function verifyBooks(settings: Settings, log: Log): Promise<Verification> {
  const { store: url, plugins } = settings
  if (url === false) throw new Error('There is no database: store is false.')
  const app = fastify({ logger: false })
  try {
    await app.register(gateway, { log })
    await app.register(routing)
    const journal = journalOf(settings)
    await app.register(store, { url, shared: journal.shared })
    const books = app.gateway.store?.ledger
    if (books === undefined) throw new Error('The store has not started.')
    const named = plugins.ledger ? plugins.ledger.journal : undefined
    const directory = named ?? journal.directory ?? './data/journal'
    await books.open({ directory, lease: journal.lease, exclusive: !journal.shared })
    return await books.verify()
  } finally {
    await app.close()
  }
}

/**
 * The gateway as one plugin of somebody's own Fastify app. Its routes, hooks, parsers and error handler stay below
 * `prefix`; the host gets one decorator, by which it calls models in process: `app.gateway.complete(request, caller)`.
 * @throws ConfigError with one line per fault
 */
const modelGateway = fp<ModelGatewayOptions>(
  async (host, { prefix: written, name = 'gateway', standalone, ...config }) => {
    if (host.hasDecorator(name)) {
      throw new Error(`The gateway cannot be app.${name}: that name is taken. Give it another one: { name: 'llm' }.`)
    }
    const prefix = written?.replace(/\/+$/, '')
    const configuration = standalone ?? readOptions(host, config)
    let inner: FastifyInstance['gateway'] | undefined
    await host.register(
      async scope => {
        await gatewayApp(scope, configuration, standalone)
        inner = scope.gateway
        if (prefix || standalone) scope.gateway.http.catchAll(scope)
      },
      { prefix }
    )
    host.decorate(name, inner)
  },
  { fastify: '5.x', name: 'fastify-model-gateway' }
)

function readOptions(host: FastifyInstance, config: Config): Configuration {
  const configuration = readConfig(config)
  for (const note of configuration.notes) host.log.warn(note)
  return configuration
}

export default modelGateway
// A consumer's compiler finds what plugins add to `app` and to `app.gateway` only where the entry names their types.
export type { ChatCompletionsOptions } from './plugins/chat-completions/index.ts'
export type { GatewayOptions } from './plugins/gateway/index.ts'
export type { Http } from './plugins/http/index.ts'
export { serverOptions } from './plugins/http/server.ts'
export { logDestination } from './plugins/request-log/destination.ts'
export { callLine } from './plugins/request-log/line.ts'
export type { Providers, RoutingOptions } from './plugins/routing/index.ts'
export type { Signing } from './plugins/signing/index.ts'
export { ConfigError } from './schemas/faults.ts'
export type { Caller, Completed, Gateway, Inference, Layer } from './schemas/gateway.ts'
export type { Provider } from './schemas/provider.ts'
export type { RoutingTable } from './schemas/routing.ts'
export type { Config, Configuration, Settings }
export { modelGateway, readConfig }
