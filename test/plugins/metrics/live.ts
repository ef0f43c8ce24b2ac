import type { FastifyInstance } from 'fastify'
import type { Test } from 'tap'
import http from '../../../plugins/http/index.ts'
import metrics from '../../../plugins/metrics/index.ts'
import { UpstreamError } from '../../../schemas/errors.ts'
import { build, hello } from '../../helper.ts'
import { fails, host, rejection, says, scripted, tokens } from '../kernel.ts'
import { read, type Scrape, scrape } from './exposition.ts'

// Gateways on which everything has happened that is counted, so that every metric has a series.

/** What a series may be asked for. */
export interface Known {
  readonly family: string
  readonly type: string
  readonly labels: ReadonlySet<string>
}

/** Everything that several scrapes have, by the names of series. */
export async function everything(t: Test): Promise<Map<string, Known>> {
  const known = new Map<string, { family: string; type: string; labels: Set<string> }>()
  for (const app of [await busy(t), await observed(t), await withoutRedis(t)]) {
    for (const { name: family, type, samples } of (await scrape(app)).families.values()) {
      for (const { name, labels } of samples) {
        const found = known.get(name) ?? { family, type, labels: new Set() }
        for (const label of Object.keys(labels)) found.labels.add(label)
        known.set(name, found)
      }
    }
  }
  return known
}

/** The whole gateway, with calls of every kind. */
export async function busy(t: Test): Promise<FastifyInstance> {
  const price = { input: 1, output: 2 }
  const app = await build(t, {
    store: 'sqlite::memory:',
    log: { level: 'silent' },
    budget: { dailyLimitUsd: 5 },
    providers: { up: { type: 'custom' }, down: { type: 'custom' } },
    models: {
      test: { targets: [{ provider: 'up', model: 'm', price }], retries: 0 },
      broken: { targets: [{ provider: 'down', model: 'm', price }], retries: 0 }
    },
    tenants: { slow: { requestsPerMinute: 1 } },
    plugins: { metrics: { public: true, legacyNames: ['titan'] }, rateLimit: true }
  })
  app.gateway.providers.register(scripted('up', says('one two three', tokens(7, 3))))
  app.gateway.providers.register(scripted('down', fails(new UpstreamError('broken.'))))
  await app.ready()
  const post = (payload: object) => app.inject({ method: 'POST', url: '/v1/chat/completions', payload })
  await post(hello)
  await post({ ...hello, stream: true })
  await post({ ...hello, model: 'broken' })
  await post({ ...hello, model: 'made-up' })
  const limited = () => app.gateway.complete(hello, app.gateway.caller({ tenant: 'slow' }))
  await limited()
  await rejection(limited())
  await app.inject('/metrics')
  return app
}

/** Tracing and the stream of events, of which only the counters are there. */
export async function observed(t: Test): Promise<FastifyInstance> {
  const app = await host(t)
  await app.register(http)
  Object.assign(app.gateway, {
    tracing: { traceId: () => undefined, dropped: 3, failed: 4 },
    eventStream: { subscribers: 5, slow: 6, waiting: 0, dropped: 7 }
  })
  await app.register(metrics, { public: true })
  await app.ready()
  return app
}

async function withoutRedis(t: Test): Promise<FastifyInstance> {
  const app = await build(t, { redis: 'redis://127.0.0.1:1', log: { level: 'silent' } })
  await app.ready()
  return app
}

/** GET /metrics, read strictly. */
export async function fetched(app: FastifyInstance, url = '/metrics', headers = {}): Promise<Scrape> {
  const response = await app.inject({ url, headers })
  if (response.statusCode !== 200) throw new Error(`${url}: ${response.statusCode} ${response.body}`)
  return read(response.body)
}
