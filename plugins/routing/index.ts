import { setTimeout as wait } from 'node:timers/promises'
import type { FastifyInstance } from 'fastify'
import fp from 'fastify-plugin'
import type { Timeouts } from '../../schemas/gateway.ts'
import type { Price, Strategy } from '../../schemas/model-options.ts'
import type { Abilities, Provider } from '../../schemas/provider.ts'
import type { Reload, RoutingTable } from '../../schemas/routing.ts'
import type { BreakerOptions } from './breaker.ts'
import { createDiscovery } from './discovery.ts'
import { createDispatch } from './dispatch.ts'
import { createModels, type Models } from './models.ts'
import type { Pause } from './patience.ts'
import { printable } from './plan.ts'
import { createProbes, type ProbeOptions } from './probes.ts'
import { createReload } from './reload.ts'
import { createTargets, type Targets } from './targets.ts'

declare module '../../schemas/gateway.ts' {
  interface Gateway {
    providers: Providers
    models: Models
    targets: Targets
    /** Reads the routing table again; absent where nobody can read it: in an app that gave it as an object. */
    reload?: Reload
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
  targets: ReadonlyArray<TargetOptions>
  /** In which order targets are asked. Default `weighted`. */
  strategy?: Strategy
  /** Aliases to ask, in this order, once no target has answered. */
  fallbacks?: readonly string[]
  /** Repeats on a target whose fault may pass. Default 2. */
  retries?: number
  /** A second target is asked when the first is silent for so many milliseconds, or for longer than usual. Default off. */
  hedge?: false | { after?: number }
  timeouts?: Partial<Timeouts>
  maxOutputTokens?: number
  /** Bound used for holds, also for a page of a document. Default 1600. */
  inputTokensPerImage?: number
}

export interface TargetOptions {
  provider: string
  model: string
  weight?: number
  price?: Price
  abilities?: Abilities
  /** The most calls at a time. */
  concurrency?: number
  /** Calls that may wait for one of these, and for how many milliseconds. Default 100, 10,000. */
  queue?: { size: number; timeout: number }
}

export interface RoutingOptions extends RoutingTable<ModelOptions> {
  routing?: {
    /** Names of the form `provider/model` work beside aliases. */
    passThrough?: boolean
    /** From its second turn on a conversation stays with its target and key. Default true. */
    sticky?: boolean
    /** Milliseconds that a provider's own list of models is kept. Default 300,000. */
    discovery?: number
    breaker?: Partial<BreakerOptions>
    probes?: false | ProbeOptions
  }
  /** Reads the table anew, for a change without a restart. @throws what is wrong with it */
  source?: () => Promise<RoutingTable<ModelOptions>>
  /** Draws: 0 <= n < 1. Given by tests. */
  random?: () => number
  /** Milliseconds that never go back. Given by tests. */
  now?: () => number
  /** Given by tests. */
  pause?: Pause
}

const defaultBreaker: BreakerOptions = { failures: 5, quiet: 1_000, openFor: 1_000, mostOpenFor: 60_000 }

/** The innermost part of the gateway: the registry of providers, names to routes, and the loop over their targets. */
async function routingPlugin(app: FastifyInstance, options: RoutingOptions): Promise<void> {
  const { gateway } = app
  const { random = Math.random, now = monotonic, pause = sleep, source } = options
  const {
    sticky = true,
    breaker,
    discovery: kept = 300_000,
    probes = false,
    passThrough = false
  } = options.routing ?? {}
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

  const targets = createTargets({ ...defaultBreaker, ...breaker }, gateway, now)
  const discovery = createDiscovery({ kept, log: gateway.log, now, pause })
  const models = createModels({ passThrough, providers: registered, targets, discovery, gateway })
  gateway.decorate('targets', targets)
  gateway.decorate('models', models)
  if (source) gateway.decorate('reload', createReload(source, options, models, gateway))
  gateway.routeWith({
    resolve: models.resolve,
    dispatch: createDispatch({ gateway, random, now, sticky, pause })
  })
  // Not a reason to take no calls: whoever cannot be reached has been left alone already.
  gateway.dependency('targets', () => ({ ok: true, ...targets.readiness() }))

  const probing = probes ? createProbes(probes, targets, gateway.log, pause) : null
  app.addHook('onReady', async () => {
    ready = true
    models.replace(options)
    probing?.start()
  })
  app.addHook('onClose', async () => {
    probing?.stop()
    discovery.close()
  })
}

/** Milliseconds since 1970 as of the start of the process, counted on from there: clocks that are set do no harm. */
function monotonic(): number {
  return performance.timeOrigin + performance.now()
}

async function sleep(milliseconds: number, signal: AbortSignal): Promise<void> {
  try {
    await wait(milliseconds, undefined, { signal })
  } catch (error) {
    signal.throwIfAborted()
    throw error
  }
}

export default fp(routingPlugin, { fastify: '5.x', name: 'routing', dependencies: ['gateway'] })
