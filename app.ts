import type { FastifyInstance } from 'fastify'
import fp from 'fastify-plugin'
import auth from './plugins/auth.ts'
import chatCompletions from './plugins/chat-completions/index.ts'
import cors from './plugins/cors.ts'
import gateway from './plugins/gateway/index.ts'
import health from './plugins/health.ts'
import helmet from './plugins/helmet.ts'
import http from './plugins/http/index.ts'
import models from './plugins/models.ts'
import proxy from './plugins/proxy.ts'
import routing from './plugins/routing/index.ts'
import sensible from './plugins/sensible.ts'
import echo from './providers/echo.ts'
import openaiCompatible from './providers/openai-compatible/index.ts'
import { type Config, readConfig, type Settings } from './schemas/config.ts'

/** The configuration of docs/configuration.md, and where the gateway goes in its host. */
export type ModelGatewayOptions = Config & {
  /** Before every route. Without one, no not-found handler is set. */
  prefix?: string
  /** The one name that the host is decorated with. Default `gateway`. */
  name?: string
  /** Validated settings instead of a configuration, from whoever has read one already. */
  settings?: Settings
  /** The admin token of the settings was made up, not set by anybody: it does not close anonymous access. */
  adminTokenGenerated?: boolean
}

/** The gateway in reading order. Everything lives in the scope that it is given. */
async function gatewayApp(app: FastifyInstance, settings: Settings, adminTokenGenerated: boolean): Promise<void> {
  const { server, plugins, tenants } = settings
  const origins = server.cors === false ? [] : server.cors.origin

  // the kernel, and what it routes to
  await app.register(gateway, { shutdownGrace: server.shutdownGrace })
  await app.register(routing, settings)
  for (const [name, provider] of Object.entries(settings.providers)) {
    if (!provider.enabled) continue
    if (provider.type === 'openai-compatible') await app.register(openaiCompatible, { ...provider, name })
    if (provider.type === 'echo') await app.register(echo, { ...provider, name })
  }

  // what all routes share
  await app.register(http, server)
  if (plugins.sensible) await app.register(sensible, plugins.sensible)
  if (plugins.helmet) await app.register(helmet, plugins.helmet)
  if (server.cors) await app.register(cors, server.cors)
  if (plugins.auth) await app.register(auth, { ...plugins.auth, adminTokenGenerated, tenants, origins })

  // transports, each in its own scope
  await app.register(chatCompletions, server)
  await app.register(proxy)
  await app.register(models)
  await app.register(health)
}

/**
 * The gateway as one plugin of somebody's own Fastify app. Its routes, hooks, parsers and error handler stay below
 * `prefix`; the host gets one decorator, by which it calls models in process: `app.gateway.complete(request, caller)`.
 * @throws ConfigError with one line per fault
 */
const modelGateway = fp<ModelGatewayOptions>(
  async (host, { prefix, name = 'gateway', settings: given, adminTokenGenerated = false, ...config }) => {
    const settings = given ?? readSettings(host, config)
    let inner: FastifyInstance['gateway'] | undefined
    await host.register(
      async scope => {
        await gatewayApp(scope, settings, adminTokenGenerated)
        inner = scope.gateway
        if (prefix) scope.setNotFoundHandler((request, reply) => scope.gateway.http.notFound(request, reply))
      },
      { prefix }
    )
    host.decorate(name, inner)
  },
  { fastify: '5.x', name: 'fastify-model-gateway' }
)

function readSettings(host: FastifyInstance, config: Config): Settings {
  const { settings, notes } = readConfig(config)
  for (const note of notes) host.log.warn(note)
  return settings
}

export default modelGateway
export { serverOptions } from './plugins/http/server.ts'
export { ConfigError } from './schemas/faults.ts'
export { modelGateway, readConfig }
