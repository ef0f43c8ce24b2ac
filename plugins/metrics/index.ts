import type { FastifyInstance } from 'fastify'
import fp from 'fastify-plugin'
import { Registry } from 'prom-client'
import { createCalls } from './calls.ts'
import { createFamilies } from './families.ts'
import { measureProcess } from './process.ts'
import { createRequests } from './requests.ts'
import { readersOf, readStanding } from './standing.ts'

declare module '../../schemas/gateway.ts' {
  interface Gateway {
    metrics?: Metrics
  }
}

export interface Metrics {
  /** Of this gateway alone: what a host or another plugin registers here stands in GET /metrics too. */
  readonly registry: Registry
}

export interface MetricsOptions {
  /** GET /metrics needs no admin token. */
  public?: boolean
  /** `titan`: also the names of that predecessor. */
  legacyNames?: ReadonlyArray<'titan'>
  /** How many models and tenants become labels, in the order in which they come; the rest is `other`. Default 100. */
  maxModels?: number
  maxTenants?: number
}

/** GET /metrics: what happens here, as Prometheus reads it. Of HTTP, routes that are registered after it. */
async function metrics(app: FastifyInstance, options: MetricsOptions): Promise<void> {
  const { gateway } = app
  const { maxModels = 100, maxTenants = 100, legacyNames = [] } = options
  const registry = new Registry()
  const families = createFamilies(registry)
  const calls = createCalls(gateway, families, { maxModels, maxTenants, titan: legacyNames.includes('titan') })

  gateway.decorate('metrics', { registry })
  gateway.http.watch(createRequests(families))
  gateway.onRefused(calls.turnedAway)
  gateway.intercept('observe', (inference, next) => {
    inference.onSettled(calls.settled)
    return next(inference)
  })
  app.addHook('onReady', async () => {
    calls.reserve()
    readStanding(gateway, readersOf(families), calls)
  })
  const stop = measureProcess(families)
  app.addHook('onClose', async () => stop())

  if (gateway.authenticate === undefined && options.public !== true) {
    gateway.log.warn(
      {},
      'GET /metrics is off: without the plugin auth anybody would be the administrator. Or set metrics.public.'
    )
    return
  }
  app.register(async scope => {
    gateway.http.prepare(scope, options.public ? { open: true } : { open: false, scope: 'admin' })
    scope.get('/metrics', async (_request, reply) => {
      // The routing table may have changed.
      calls.reserve()
      const text = await registry.metrics()
      return reply.header('content-type', registry.contentType).header('cache-control', 'no-store').send(text)
    })
  })
}

export default fp(metrics, { fastify: '5.x', name: 'metrics', dependencies: ['http', 'routing'] })
