import type { FastifyInstance } from 'fastify'
import fp from 'fastify-plugin'
import type { Timeouts } from '../../schemas/gateway.ts'
import type { Price } from '../../schemas/model-options.ts'
import type { Provider } from '../../schemas/provider.ts'
import { createDispatch } from './dispatch.ts'
import { createModels, type Models, printable } from './models.ts'

declare module '../../schemas/gateway.ts' {
  interface Gateway {
    providers: Providers
    models: Models
  }
}

/** The providers of this gateway, by name. */
export interface Providers {
  /** Adds a provider. Refused for a name that is taken and once the instance is ready. */
  register(provider: Provider): void
  get(name: string): Provider | undefined
  list(): Provider[]
}

/** One alias of the configuration. */
export interface ModelOptions {
  targets: ReadonlyArray<{ provider: string; model: string; weight?: number; price?: Price }>
  timeouts?: Partial<Timeouts>
  maxOutputTokens?: number
  /** Bound used for holds, also for a page of a document. Default 1600. */
  inputTokensPerImage?: number
}

export interface RoutingOptions {
  /** Aliases. Without any, names of the form `provider/model` are routed. */
  models?: Readonly<Record<string, ModelOptions>>
  /** The alias for a request that names neither model nor task. */
  defaultModel?: string
  /** Which alias a request's `task` means. */
  tasks?: Readonly<Record<string, string>>
  /** Draws among weights: 0 <= n < 1. Given by tests to know the draw. */
  random?: () => number
}

export const defaultTimeouts: Timeouts = {
  connect: 5_000,
  headers: 60_000,
  firstToken: 60_000,
  idle: 30_000,
  total: 600_000
}

/** The innermost part of the gateway: the registry of providers, names to routes, and the loop over their targets. */
async function routingPlugin(app: FastifyInstance, options: RoutingOptions): Promise<void> {
  const { gateway } = app
  const registered = new Map<string, Provider>()
  let ready = false

  gateway.decorate('providers', {
    register(provider) {
      if (ready) throw new Error('gateway.providers.register is refused once the instance is ready.')
      if (!printable.test(provider.name))
        throw new Error(`'${provider.name}' is not a provider's name: visible ASCII only.`)
      if (registered.has(provider.name)) throw new Error(`A provider named '${provider.name}' is registered already.`)
      registered.set(provider.name, provider)
    },
    get: name => registered.get(name),
    list: () => [...registered.values()]
  })

  const models = createModels(options, registered, gateway.log)
  gateway.decorate('models', models)
  gateway.routeWith({ resolve: models.resolve, dispatch: createDispatch(gateway, options.random ?? Math.random) })
  app.addHook('onReady', async () => {
    ready = true
    models.compile()
  })
}

export default fp(routingPlugin, { fastify: '5.x', name: 'routing', dependencies: ['gateway'] })
