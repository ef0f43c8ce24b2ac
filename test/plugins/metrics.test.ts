import { once } from 'node:events'
import { connect } from 'node:net'
import { PerformanceObserver } from 'node:perf_hooks'
import { mock } from 'node:test'
import Fastify, { type FastifyInstance } from 'fastify'
import { Counter, register as hostRegistry } from 'prom-client'
import t, { type Test } from 'tap'
import modelGateway from '../../app.ts'
import http from '../../plugins/http/index.ts'
import { Distribution, Spend } from '../../plugins/metrics/families.ts'
import metrics, { type MetricsOptions } from '../../plugins/metrics/index.ts'
import { detail, UpstreamError, UpstreamRateLimited, UpstreamRejected } from '../../schemas/errors.ts'
import type { Layer } from '../../schemas/gateway.ts'
import { usdOf } from '../../schemas/money.ts'
import { build, hello, stack } from '../helper.ts'
import { mixed } from '../long/money.ts'
import { chunks, completion, flood, gate, json, type Script, silence, sse, turn } from '../upstream.ts'
import {
  ask,
  askStream,
  fails,
  host,
  rejection,
  type Scripted,
  says,
  scripted,
  textOf,
  tokens,
  completion as whole
} from './kernel.ts'
import { parse, type Scrape, scrape } from './metrics/exposition.ts'
import { equalsLedger } from './metrics/ledger.ts'
import { fetched, observed } from './metrics/live.ts'

const adminToken = 'the-token-of-the-operator'
const asAdmin = { authorization: `Bearer ${adminToken}` }

/** The plugin by itself: a kernel, routing and http around it. */
async function alone(
  t: Test,
  options: MetricsOptions & { providers?: Scripted[]; models?: object; cache?: Layer } = {}
) {
  const { providers = [scripted('up', says('one two three', tokens(7, 3)))], models, cache, ...rest } = options
  const target = { targets: [{ provider: 'up', model: 'm' }], retries: 0 }
  const app = await host(t, { providers, routing: { models: { test: target, ...models } } })
  await app.register(http)
  await app.register(metrics, { public: true, ...rest })
  if (cache) app.gateway.intercept('cache', cache)
  await app.ready()
  return app
}

async function complete(app: FastifyInstance, request: object = {}, tenant = 'public'): Promise<string> {
  return textOf(await app.gateway.complete({ ...ask, ...request }, app.gateway.caller({ tenant })))
}

/** Waits until a series has come to a value: the end of an answer is counted when its socket says so. */
async function until(app: FastifyInstance, done: (scrape: Scrape) => boolean): Promise<Scrape> {
  for (let round = 0; ; round++) {
    const found = await scrape(app)
    if (done(found) || round > 500) return found
    await turn()
  }
}

t.test('the reader of the tests refuses what is not the text format', async t => {
  const head = '# HELP a_total A.\n# TYPE a_total counter\n'
  const buckets = '# HELP h H.\n# TYPE h histogram\nh_bucket{le="1"} 2\n'
  t.equal(parse(`${head}a_total{x="\\"\\\\\\n"} 1e-9\n`).get('a_total')?.samples[0]?.labels['x'], '"\\\n')
  for (const [wrong, why] of [
    [`${head}a_total 1`, /does not end/],
    ['a_total 1\n', /without a family/],
    ['# TYPE a_total counter\na_total 1\n', /no TYPE that follows/],
    ['# HELP a_total A.\n', /has no TYPE/],
    ['# HELP a A.\n# TYPE a counter\na 1\n', /_total/],
    [`${head}${head}`, /family comes twice/],
    [`${head}a_total 1\na_total 2\n`, /series comes twice/],
    [`${head}a_total{x="1",y="2"} 1\na_total{y="2",x="1"} 2\n`, /series comes twice/],
    [`${head}a_total{x="1",x="2"} 1\n`, /label comes twice/],
    [`${head}a_total{x="a"b"} 1\n`, /no }/],
    [`${head}a_total{x="\\t"} 1\n`, /no value of a label/],
    [`${head}a_total{x-y="1"} 1\n`, /no =/],
    [`${head}a_total -1\n`, /below zero/],
    [`${head}a_total NaN\n`, /no number/],
    [`${head}b_total 1\n`, /not of a_total/],
    [`${buckets}h_bucket{le="0.5"} 3\nh_bucket{le="+Inf"} 3\nh_sum 1\nh_count 3\n`, /the bound 0.5 follows 1/],
    [`${buckets}h_bucket{le="2"} 1\nh_bucket{le="+Inf"} 3\nh_sum 1\nh_count 3\n`, /1 are at most 2, 2 at most 1/],
    [`${buckets}h_bucket{le="+Inf"} 3\nh_sum 1\nh_count 4\n`, /not everything/],
    [`${buckets}h_bucket{le="+Inf"} 3\nh_count 3\n`, /the sum undefined/]
  ] as const) {
    t.throws(() => parse(wrong), { message: why }, wrong)
  }
})

t.test('a value that equals a bound is below it, as Prometheus counts', async t => {
  const sizes = new Distribution('size', [1, 2], {})
  for (const value of [1, 1.5, 2, 3]) sizes.observe(value)
  const lines = sizes.lines.map(({ metricName, sharedLabels, value }) => [metricName, sharedLabels['le'], value])
  t.strictSame(lines, [
    ['size_bucket', '1', 1],
    ['size_bucket', '2', 3],
    ['size_bucket', '+Inf', 4],
    ['size_sum', undefined, 7.5],
    ['size_count', undefined, 4]
  ])
})

t.test('money that is more than a number can hold to the nano-USD is added up all the same', async t => {
  const spend = new Spend({})
  const large = 2 ** 52
  for (let count = 0; count < 5; count++) spend.add(large)
  spend.add(7)
  t.equal(spend.value, usdOf(5n * BigInt(large) + 7n))
  for (let count = 0; count < 1_000_000; count++) spend.add(1)
  t.equal(spend.value, usdOf(5n * BigInt(large) + 1_000_007n))
})

t.test('calls are counted by model, tenant and what became of them', async t => {
  const app = await alone(t)
  await complete(app, {}, 'acme')
  await complete(app, askStream, 'acme')
  await complete(app, {}, 'other-one')
  const { value, labels } = await fetched(app)
  t.equal(value('gateway_requests_total', { model: 'test', outcome: 'settled', stream: 'false' }), 2)
  t.equal(value('gateway_requests_total', { model: 'test', outcome: 'settled', stream: 'true' }), 1)
  t.equal(value('gateway_tenant_requests_total', { tenant: 'acme', outcome: 'settled' }), 2)
  t.equal(value('llm_tokens_total', { model: 'test', tenant: 'acme', type: 'input' }), 14)
  t.equal(value('llm_tokens_total', { model: 'test', tenant: 'acme', type: 'output' }), 6)
  t.equal(value('gateway_request_duration_seconds_count', { model: 'test' }), 3)
  t.equal(value('gateway_first_token_seconds_count', { model: 'test' }), 1, 'only of streams')
  t.equal(value('gateway_output_tokens_per_second_count', { model: 'test' }), 3)
  t.equal(value('gateway_attempts_total', { provider: 'up', outcome: 'settled' }), 3)
  t.equal(value('gateway_in_flight'), 0)
  t.equal(value('gateway_unpriced_calls_total', { model: 'test' }), 0, 'nobody prices calls here')
  t.strictSame(labels('llm_cost_total', 'tenant'), ['acme', 'other-one'])
})

t.test('the speed of a stream is that from its first token on, of a whole answer that of the whole call', async t => {
  const app = await alone(t, { models: { streamed: { targets: [{ provider: 'up', model: 'm' }] } } })
  await complete(app)
  await complete(app, { ...askStream, model: 'streamed' })
  const { value } = await scrape(app)
  const sum = (name: string, model: string) => value(`${name}_sum`, { model }) ?? Number.NaN
  const whole = 3 / sum('gateway_request_duration_seconds', 'test')
  t.ok(Math.abs(sum('gateway_output_tokens_per_second', 'test') / whole - 1) < 1e-6)
  const took = sum('gateway_request_duration_seconds', 'streamed') - sum('gateway_first_token_seconds', 'streamed')
  t.ok(Math.abs(sum('gateway_output_tokens_per_second', 'streamed') / (2 / took) - 1) < 1e-6, 'without the first token')
})

t.test('calls are counted by what a cache had for them, whether a provider was asked or not', async t => {
  const states = ['miss', 'hit', 'hit', 'off'] as const
  let call = 0
  const app = await alone(t, {
    cache: async (inference, next) => {
      const state = states[call++]!
      inference.facts.cache = state
      return state === 'hit' ? { stream: false, raw: null, body: whole('kept') } : next(inference)
    }
  })
  for (const _state of states) await complete(app)
  const { value } = await scrape(app)
  const counted = (cache: string) => value('gateway_cache_total', { cache })
  t.strictSame([counted('off'), counted('miss'), counted('hit')], [1, 1, 2])
  t.equal(value('gateway_attempts_total', { provider: 'up' }), 2)
})

t.test('with books, money and every kind of token are counted', async t => {
  const usage = {
    ...tokens(100, 40),
    prompt_tokens_details: { cached_tokens: 60 },
    completion_tokens_details: { reasoning_tokens: 15 }
  }
  const app = await build(t, {
    providers: { up: { type: 'custom' } },
    models: { test: { targets: [{ provider: 'up', model: 'm', price: { input: 1, output: 2, cacheRead: 0.5 } }] } }
  })
  app.gateway.providers.register(scripted('up', says('Hello', usage), says('Hello'), says('Hello', tokens(1, 1))))
  await app.ready()
  for (let call = 0; call < 3; call++) await complete(app)
  const { value } = await scrape(app)
  const bucket = (bucket: string) => value('gateway_tokens_total', { model: 'test', bucket })
  t.strictSame([bucket('cacheRead'), bucket('reasoning'), bucket('cacheWrite5m')], [60, 15, undefined])
  t.equal(value('gateway_usage_total', { provider: 'up', source: 'reported' }), 2)
  t.equal(value('gateway_usage_total', { provider: 'up', source: 'estimated' }), 1)
  const cost = value('llm_cost_total', { tenant: 'public' })
  t.equal(value('gateway_cost_usd_total', { model: 'test' }), cost)
  t.equal(value('gateway_provider_cost_usd_total', { provider: 'up' }), cost)
  t.ok(cost && cost > 0.000_15 && cost < 0.000_2, `${cost} USD`)
})

t.test('a usage report that contradicts itself, and a call without a price', async t => {
  const usage = { ...tokens(10, 5), prompt_tokens_details: { cached_tokens: 60 } }
  const app = await build(t, {
    providers: { up: { type: 'custom' } },
    models: { test: { targets: [{ provider: 'up', model: 'm' }] } }
  })
  app.gateway.providers.register(scripted('up', says('Hello', usage)))
  await app.ready()
  await complete(app)
  const { value } = await scrape(app)
  t.equal(value('gateway_usage_mismatches_total', { provider: 'up' }), 1)
  t.equal(value('gateway_unpriced_calls_total', { model: 'test' }), 1)
})

t.test('repeats, moves to another target, and whom a failure is blamed on', async t => {
  const first = scripted('first', fails(new UpstreamError('broken.')))
  const third = scripted('third', fails(new UpstreamError('broken.')), says('again'))
  const app = await alone(t, {
    providers: [
      scripted('up'),
      first,
      third,
      scripted('second', says('at last'), fails(new UpstreamRejected('no such field.')))
    ],
    models: {
      both: {
        strategy: 'priority',
        targets: [
          { provider: 'first', model: 'm' },
          { provider: 'second', model: 'm' }
        ],
        retries: 1
      },
      single: { targets: [{ provider: 'third', model: 'm' }], retries: 1 }
    }
  })
  t.equal(await complete(app, { model: 'both' }), 'at last')
  t.equal(await complete(app, { model: 'single' }), 'again')
  await rejection(complete(app, { model: 'both' }))
  const { value, labels } = await scrape(app)
  t.equal(value('gateway_retries_total', { model: 'single' }), 1)
  t.equal(value('gateway_retries_total', { model: 'both' }), 0)
  t.equal(value('gateway_attempts_total', { provider: 'third', outcome: 'provider' }), 1)
  t.equal(value('gateway_fallbacks_total', { model: 'both' }), 2)
  t.equal(value('gateway_attempts_total', { provider: 'first', outcome: 'provider' }), 2)
  t.equal(value('gateway_attempts_total', { provider: 'second', outcome: 'settled' }), 1)
  t.equal(value('gateway_attempts_total', { provider: 'second', outcome: 'request' }), 1)
  t.equal(value('gateway_requests_total', { model: 'both', outcome: 'failed' }), 1)
  t.strictSame(labels('gateway_errors_total', 'code'), ['upstream_rejected'], 'not what the vendor calls it')
})

t.test('a code of a vendor was a label of errors where its status was 408', async t => {
  const late = detail(new UpstreamRejected('too slow.'), { statusCode: 408, blame: 'time', wire: 'vendors_word' })
  const app = await alone(t, { providers: [scripted('up', fails(late))] })
  await rejection(complete(app))
  const { labels } = await scrape(app)
  t.strictSame(labels('gateway_errors_total', 'code'), ['upstream_rejected'])
})

t.test('the state of breakers and keys', async t => {
  const limited = { ...scripted('up', fails(new UpstreamRateLimited())), keys: 2 }
  const broken = scripted('broken', fails(new UpstreamError('broken.')))
  const app = await alone(t, {
    providers: [limited, broken],
    models: { broken: { targets: [{ provider: 'broken', model: 'm' }], retries: 0 } }
  })
  const breaker = async (provider: string) =>
    (await scrape(app)).value('gateway_breaker_state', { provider, model: 'm' })
  t.equal(await breaker('broken'), 0)
  for (let call = 0; call < 5; call++) await rejection(complete(app, { model: 'broken' }))
  t.equal(await breaker('broken'), 2)
  t.equal(await breaker('up'), 0)
  await rejection(complete(app))
  const { value } = await scrape(app)
  t.equal(value('gateway_keys_cooling', { provider: 'up', reason: 'limited' }), 2)
  t.equal(value('gateway_keys_cooling', { provider: 'up', reason: 'refused' }), 0)
  t.equal(value('gateway_attempts_total', { provider: 'up', outcome: 'limit' }), 2)
})

t.test('a call in flight', async t => {
  const open = gate()
  const app = await alone(t, {
    providers: [
      scripted('up', async attempt => {
        await open.promise
        return says('Hello')(attempt)
      })
    ]
  })
  const answer = complete(app)
  await turn()
  let { value } = await scrape(app)
  t.equal(value('gateway_in_flight'), 1)
  t.equal(value('gateway_target_in_flight', { provider: 'up', model: 'm' }), 1)
  t.equal(value('gateway_requests_total'), undefined)
  open.open()
  await answer
  ;({ value } = await scrape(app))
  t.equal(value('gateway_in_flight'), 0)
  t.equal(value('gateway_target_in_flight', { provider: 'up', model: 'm' }), 0)
})

t.test('budgets are read as they stand, without waiting for anybody', async t => {
  const open = gate()
  const app = await build(t, {
    budget: { dailyLimitUsd: 3 },
    tenants: { acme: { budget: { usd: 1, period: 'day' }, maxRequestUsd: false }, free: { budget: false } },
    providers: { up: { type: 'custom' } },
    models: { test: { targets: [{ provider: 'up', model: 'm', price: { input: 1, output: 2 } }] } }
  })
  app.gateway.providers.register(
    scripted('up', says('Hello', tokens(1_000, 1_000)), async attempt => {
      await open.promise
      return says('Hello', tokens(0, 0))(attempt)
    })
  )
  await app.ready()
  let { value, labels } = await scrape(app)
  t.equal(value('gateway_budget_remaining_usd', { scope: 'gateway' }), 3)
  t.strictSame(labels('gateway_budget_limit_usd', 'tenant'), [''], 'nobody has called yet')
  await complete(app, {}, 'acme')
  const running = complete(app, { max_tokens: 1_000 }, 'acme')
  await turn()
  ;({ value, labels } = await scrape(app))
  const acme = (what: string) => value(`gateway_budget_${what}_usd`, { scope: 'tenant', tenant: 'acme' }) ?? -1
  t.equal(acme('limit'), 1)
  t.equal(acme('spent'), 0.003)
  t.ok(acme('reserved') >= 0.002 && acme('reserved') < 0.0022, `${acme('reserved')} are held`)
  t.equal(acme('remaining').toFixed(9), (1 - acme('spent') - acme('reserved')).toFixed(9))
  open.open()
  await running
  await complete(app, {}, 'free')
  ;({ value, labels } = await scrape(app))
  t.equal(acme('reserved'), 0)
  t.strictSame(labels('gateway_budget_limit_usd', 'tenant'), ['', 'acme'], 'whoever has no limit has none to show')
  t.equal(value('gateway_budget_spent_usd', { tenant: 'free' }), 0)
})

t.test('what a budget and a limit refuse has counters of its own', async t => {
  const app = await build(t, {
    tenants: {
      poor: { budget: { usd: 0.000001, period: 'total' }, maxRequestUsd: false },
      slow: { requestsPerMinute: 1, budget: false, maxRequestUsd: false }
    },
    models: { test: { targets: [{ provider: 'echo', model: 'm', price: { input: 1, output: 2 } }] } },
    plugins: { metrics: { legacyNames: ['titan'] } }
  })
  await app.ready()
  await rejection(complete(app, {}, 'poor'))
  await complete(app, {}, 'slow')
  await rejection(complete(app, {}, 'slow'))
  await rejection(complete(app, {}, 'slow'))
  await rejection(complete(app, {}, 'nobody'))
  const { value, labels } = await scrape(app)
  t.equal(value('llm_budget_exceeded_total'), 1)
  t.equal(value('titan_budget_exceeded_total'), 1)
  t.equal(value('gateway_rate_limited_total', { by: 'limits' }), 2)
  t.equal(value('gateway_refused_total', { code: 'insufficient_quota' }), 1)
  t.equal(value('gateway_refused_total', { code: 'rate_limit_exceeded' }), 2)
  t.equal(value('gateway_refused_total', { code: 'tenant_not_found' }), 1)
  t.equal(value('gateway_requests_total', { model: 'test', outcome: 'refused' }), 4)
  t.equal(value('gateway_tenant_requests_total', { tenant: 'poor', outcome: 'refused' }), 1)
  t.strictSame(labels('gateway_tenant_requests_total', 'tenant'), ['other', 'poor', 'slow'], 'nobody is no label')
  t.equal(value('gateway_request_duration_seconds_count'), 1, 'what is refused has no duration')
})

t.test('a call that is turned away before it begins is counted under no name of its own', async t => {
  const app = await alone(t, { legacyNames: ['titan'] })
  await rejection(complete(app, { model: 'made-up' }))
  await rejection(complete(app, { model: 'made-up', stream: true }))
  const left = AbortSignal.abort()
  await rejection(app.gateway.complete(ask, app.gateway.caller({ signal: left })))
  const { value, labels } = await scrape(app)
  t.equal(value('gateway_requests_total', { model: 'other', outcome: 'refused' }), 3)
  t.equal(value('gateway_refused_total', { code: 'model_not_found' }), 2)
  t.equal(value('gateway_refused_total', { code: 'cancelled' }), 1)
  t.equal(value('titan_model_requests_total', { model: 'other' }), 3)
  t.strictSame(labels('gateway_requests_total', 'model'), ['other'])
})

t.test('beyond the limits names are `other`, and what was configured comes first', async t => {
  const app = await build(t, {
    models: { configured: { targets: [{ provider: 'echo', model: 'm', price: { input: 0, output: 0 } }] } },
    routing: { passThrough: true },
    plugins: { tenants: false, metrics: { maxModels: 3, maxTenants: 2 } }
  })
  await app.ready()
  for (const name of ['a', 'b', 'c', 'd']) await complete(app, { model: `echo/${name}` }, `tenant-${name}`)
  await complete(app, { model: 'configured' }, 'tenant-a')
  const { value, labels } = await scrape(app)
  t.strictSame(labels('gateway_requests_total', 'model'), ['configured', 'echo/a', 'echo/b', 'other'])
  t.strictSame(labels('llm_cost_total', 'tenant'), ['other', 'tenant-a', 'tenant-b'])
  t.equal(value('gateway_requests_total', { model: 'other' }), 2)
  t.equal(value('gateway_tenant_requests_total', { tenant: 'other' }), 2)
  t.equal(value('gateway_requests_total'), 5)
})

t.test('an alias of a new routing table has its label from the next scrape on, before what callers name', async t => {
  const target = { targets: [{ provider: 'up', model: 'm' }], retries: 0 }
  const routing = { passThrough: true }
  const app = await host(t, {
    routing: {
      models: { test: target },
      routing,
      source: async () => ({ models: { test: target, added: target }, routing })
    }
  })
  await app.register(http)
  await app.register(metrics, { public: true, maxModels: 2 })
  await app.ready()
  t.equal((await app.gateway.reload?.())?.applied, true)
  await fetched(app)
  for (const model of ['up/m', 'added', 'test']) await complete(app, { model })
  const { labels } = await scrape(app)
  t.strictSame(labels('gateway_requests_total', 'model'), ['added', 'other', 'test'])
})

t.test('who is called `other` shares its line, and each series comes once', async t => {
  const app = await alone(t, {
    maxTenants: 1,
    models: { other: { targets: [{ provider: 'up', model: 'm' }] } }
  })
  await complete(app, { model: 'other' }, 'other')
  await complete(app, {}, 'first')
  await complete(app, {}, 'second')
  await rejection(complete(app, { model: 'nothing' }))
  const { value } = await scrape(app)
  t.equal(value('gateway_requests_total', { model: 'other' }), 2)
  t.equal(value('gateway_tenant_requests_total', { tenant: 'other' }), 2)
})

t.test('a model that only callers name becomes a label when it has answered', async t => {
  const missing = fails(new UpstreamRejected('there is no such model.'))
  const app = await build(t, { providers: { up: { type: 'custom' } }, models: {}, routing: { passThrough: true } })
  app.gateway.providers.register(scripted('up', missing, says('Hello')))
  await app.ready()
  await rejection(complete(app, { model: 'up/typo' }))
  await complete(app, { model: 'up/real' })
  const { labels } = await scrape(app)
  t.strictSame(labels('gateway_requests_total', 'model'), ['other', 'up/real'])
})

t.test('with 10,000 tenants a scrape has no more series than with 100', async t => {
  const app = await alone(t)
  const series = async () => (await scrape(app)).text.split('\n').filter(line => !line.startsWith('#')).length
  for (let tenant = 0; tenant < 101; tenant++) await complete(app, {}, `tenant-${tenant}`)
  const before = await series()
  for (let tenant = 0; tenant < 10_000; tenant++) await complete(app, {}, `tenant-${tenant}`)
  t.equal(await series(), before)
  const { value, labels } = await scrape(app)
  t.equal(value('gateway_requests_total'), 10_101)
  t.equal(labels('llm_tokens_total', 'tenant').length, 101)
})

t.test('with 10,000 tenants that have called a scrape takes less than 10 ms', async t => {
  const app = await alone(t)
  for (let tenant = 0; tenant < 10_000; tenant++) await complete(app, {}, `tenant-${tenant}`)
  const { registry } = app.gateway.metrics!
  const times: number[] = []
  for (let round = 0; round < 21; round++) {
    const started = performance.now()
    await registry.metrics()
    times.push(performance.now() - started)
    await turn()
  }
  times.sort((one, other) => one - other)
  t.comment(`median ${times[10]!.toFixed(2)} ms, slowest ${times[20]!.toFixed(2)} ms`)
  // Others use this machine too: the quicker half of the rounds is the work itself.
  t.ok(times[5]! < 10, `${times[5]!.toFixed(2)} ms`)
})

t.test('values of labels may hold anything', async t => {
  const strange = 'a "quote", a \\ and a\nline'
  const app = await alone(t)
  await complete(app, {}, strange)
  await complete(app, {}, '\\n')
  const { value } = await fetched(app)
  for (const tenant of [strange, '\\n']) t.equal(value('llm_tokens_total', { tenant, type: 'input' }), 7)
})

t.test('counters never fall', async t => {
  const app = await alone(t, { maxTenants: 2, legacyNames: ['titan'] })
  let before = await scrape(app)
  for (let round = 0; round < 5; round++) {
    await complete(app, round % 2 ? askStream : {}, `tenant-${round}`)
    await rejection(complete(app, { model: 'none' }))
    const after = await scrape(app)
    for (const { type, samples } of before.families.values()) {
      if (type === 'gauge') continue
      for (const { name, labels, value } of samples) {
        const now = after.families
          .get(nameOf(name, after))
          ?.samples.find(sample => same(sample, { name, labels }))?.value
        if (now === undefined || now < value) t.fail(`${name} ${JSON.stringify(labels)}: ${value}, then ${now}`)
      }
    }
    before = after
  }
  t.equal(before.value('gateway_tenant_requests_total'), 5)
})

function nameOf(sample: string, { families }: Scrape): string {
  return families.has(sample) ? sample : sample.replace(/_(bucket|sum|count)$/, '')
}

function same(one: { name: string; labels: object }, other: { name: string; labels: object }): boolean {
  return one.name === other.name && JSON.stringify(one.labels) === JSON.stringify(other.labels)
}

t.test('requests over HTTP', async t => {
  t.test('are counted by the pattern of their route, refused ones too', async t => {
    const app = await build(t, {
      models: { test: { targets: [{ provider: 'echo', model: 'm', price: { input: 0, output: 0 } }] } },
      plugins: { auth: { anonymousTenant: false, adminToken } }
    })
    const statuses: number[] = []
    const get = async (url: string, headers = {}) => void statuses.push((await app.inject({ url, headers })).statusCode)
    const post = async (payload: object | string, headers: object = asAdmin) => {
      const options = { method: 'POST', url: '/v1/chat/completions', payload, headers: { ...headers } } as const
      statuses.push((await app.inject(options)).statusCode)
    }
    await post(hello)
    await post({ ...hello, stream: true })
    await post({ ...hello, model: 'made-up' })
    await post({ messages: 'none' })
    await post(hello, {})
    await get('/v1/models/one/of/many', asAdmin)
    await get('/nowhere/at/all?token=secret')
    await get('/health')
    await get('/metrics', asAdmin)
    t.strictSame(statuses, [200, 200, 404, 400, 401, 404, 404, 200, 200])
    const { value, labels, text } = await until(app, ({ value }) => value('http_requests_total') === statuses.length)
    const of = (method: string, route: string, status: number) =>
      value('http_requests_total', { method, route, status: String(status) })
    t.equal(of('POST', '/v1/chat/completions', 200), 2)
    for (const status of [400, 401, 404]) t.equal(of('POST', '/v1/chat/completions', status), 1, String(status))
    t.equal(of('GET', '/v1/models/*', 404), 1)
    t.equal(of('GET', '/health', 200), 1)
    t.equal(of('GET', '/metrics', 200), 1)
    t.equal(of('GET', 'other', 404), 1)
    t.equal(value('http_request_duration_seconds_count'), statuses.length)
    t.strictSame(labels('http_requests_total', 'route'), [
      '/health',
      '/metrics',
      '/v1/chat/completions',
      '/v1/models/*',
      'other'
    ])
    t.notMatch(text, /nowhere|secret|made-up/)
  })

  t.test('too many of one address, and too many with a wrong key, are 429 and have counters of their own', async t => {
    const app = await build(t, {
      plugins: { auth: { anonymousTenant: false, adminToken }, rateLimit: { max: 3 } }
    })
    const get = (address: string, headers = {}) => app.inject({ url: '/v1/models', remoteAddress: address, headers })
    for (let call = 0; call < 5; call++) await get('192.0.2.1', asAdmin)
    for (let call = 0; call < 2; call++) await get('192.0.2.2')
    const { value } = await until(app, ({ value }) => value('http_requests_total') === 7)
    t.equal(value('http_requests_total', { route: '/v1/models', status: '429' }), 3)
    t.equal(value('gateway_rate_limited_total', { by: 'address' }), 2)
    t.equal(value('gateway_rate_limited_total', { by: 'credentials' }), 1)
  })

  t.test('methods of unknown paths are few', async t => {
    const app = await build(t)
    for (const method of ['GET', 'DELETE', 'PROPFIND', 'MKCOL'] as const) await app.inject({ method, url: '/x' })
    const { labels } = await until(app, ({ value }) => value('http_requests_total') === 4)
    t.strictSame(labels('http_requests_total', 'method'), ['DELETE', 'GET', 'other'])
  })

  t.test('of clients that leave, before and after the first token, are counted as 499', async t => {
    const { app, url, upstream } = await stack(t)
    const body = JSON.stringify({ ...hello, stream: true })
    const head =
      'POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: '
    const start = (script: Script) => {
      upstream.script(script)
      const socket = connect(Number(new URL(url).port), '127.0.0.1')
      socket.on('error', () => {})
      socket.write(`${head}${body.length}\r\n\r\n${body}`)
      return socket
    }
    const early = start(silence())
    while (app.gateway.running === 0) await turn()
    early.destroy()
    const late = start(flood())
    await once(late, 'data')
    late.destroy()
    const left = { route: '/v1/chat/completions', status: '499' }
    const { value } = await until(app, ({ value }) => value('http_requests_total', left) === 2)
    t.equal(value('http_requests_total', left), 2)
    t.equal(value('http_request_duration_seconds_count', left), 2)
    t.equal(value('gateway_requests_total', { outcome: 'interrupted' }), 2)
  })

  t.test('over real sockets, streams and whole answers, have the status that left', async t => {
    const { app, client, upstream } = await stack(t)
    upstream.script(sse(chunks(['one', 'two'])))
    for await (const _ of await client.chat.completions.create({ ...hello, stream: true }));
    upstream.script(json(completion()))
    await client.chat.completions.create(hello)
    const { value } = await until(app, ({ value }) => value('http_requests_total') === 2)
    t.equal(value('http_requests_total', { route: '/v1/chat/completions', status: '200' }), 2)
  })
})

t.test('the names of the contract are always there, those of predecessors when they are asked for', async t => {
  const always = [
    'http_requests_total',
    'http_request_duration_seconds',
    'llm_tokens_total',
    'llm_cost_total',
    'llm_budget_exceeded_total'
  ]
  const titan = [
    'titan_model_requests_total',
    'titan_model_latency_seconds',
    'titan_cost_usd_total',
    'titan_budget_exceeded_total'
  ]
  const plain = await scrape(await alone(t))
  for (const name of always) t.ok(plain.families.has(name), name)
  t.notMatch(plain.text, /titan/)
  const app = await alone(t, { legacyNames: ['titan'] })
  await complete(app)
  await complete(app, askStream)
  const { families, value } = await scrape(app)
  for (const name of [...always, ...titan]) t.ok(families.has(name), name)
  t.equal(value('titan_model_requests_total', { model: 'test' }), 2)
  t.equal(value('titan_model_latency_seconds_count', { model: 'test' }), 2)
})

t.test('who may read them', async t => {
  t.test('an administrator', async t => {
    const app = await build(t, { plugins: { auth: { adminToken, anonymousTenant: 'public' } } })
    t.equal((await app.inject('/metrics')).statusCode, 401)
    const response = await app.inject({ url: '/metrics', headers: asAdmin })
    t.equal(response.statusCode, 200)
    t.equal(response.headers['content-type'], 'text/plain; version=0.0.4; charset=utf-8')
    t.equal(response.headers['cache-control'], 'no-store')
  })

  t.test('not the key of an administrator whose tenant is switched off', async t => {
    const app = await build(t, { store: 'sqlite::memory:', tenants: { acme: {} }, plugins: { auth: { adminToken } } })
    await app.ready()
    const { keys, tenants } = app.gateway
    await tenants?.create({ ...(await tenants.find('acme'))!, id: 'made', source: 'api' }, 'test')
    const made = await keys?.create('made', { scopes: ['admin'] }, 'test')
    const headers = { authorization: `Bearer ${made?.secret}` }
    t.equal((await app.inject({ url: '/metrics', headers })).statusCode, 200)
    await tenants?.update('made', { active: false }, 'test')
    t.equal((await app.inject({ url: '/metrics', headers })).statusCode, 403)
  })

  t.test('everybody, where they are public', async t => {
    const app = await build(t, { plugins: { auth: { anonymousTenant: false }, metrics: { public: true } } })
    t.equal((await app.inject('/metrics')).statusCode, 200)
  })

  t.test('nobody, where nobody can be told from an administrator', async t => {
    const lines: string[] = []
    const app = await host(t, { log: line => lines.push(line) })
    await app.register(http)
    await app.register(metrics)
    await app.ready()
    t.equal((await app.inject('/metrics')).statusCode, 404)
    t.match(lines.join(), /GET \/metrics is off/)
    await complete(app)
    t.equal((await scrape(app)).value('gateway_requests_total'), 1, 'it counts all the same')
  })

  t.test('nobody, where they are switched off', async t => {
    const app = await build(t, { plugins: { auth: { adminToken }, metrics: false } })
    t.equal((await app.inject({ url: '/metrics', headers: asAdmin })).statusCode, 404)
    t.equal(app.gateway.metrics, undefined)
  })
})

t.test('two gateways in a host that has metrics of its own', async t => {
  hostRegistry.clear()
  const own = new Counter({ name: 'http_requests_total', help: 'The host has one of the same name.' })
  t.teardown(() => hostRegistry.clear())
  own.inc(7)
  const before = await hostRegistry.metrics()
  const app = Fastify()
  t.teardown(() => app.close())
  for (const name of ['one', 'two'] as const) {
    const options = { store: false, log: { level: 'silent' }, plugins: { metrics: { public: true } } } as const
    await app.register(modelGateway, { ...options, name, prefix: `/${name}` })
  }
  app.get('/metrics', async () => hostRegistry.metrics())
  await app.ready()
  const request = { method: 'POST', url: '/one/v1/chat/completions', payload: { ...hello, model: 'echo/any' } } as const
  t.equal((await app.inject(request)).statusCode, 200)
  const one = await fetched(app, '/one/metrics')
  const two = await fetched(app, '/two/metrics')
  t.equal(one.value('gateway_requests_total'), 1)
  t.equal(one.value('http_requests_total', { route: '/one/v1/chat/completions' }), 1)
  t.equal(two.value('gateway_requests_total'), undefined)
  t.equal(two.value('http_requests_total', { route: '/one/v1/chat/completions' }), undefined)
  t.equal((await app.inject('/metrics')).body, before, "the host's own registry is as it was")
})

t.test('what a host registers with the gateway stands in GET /metrics, and it can read the rest as JSON', async t => {
  const app = await alone(t)
  const registry = app.gateway.metrics!.registry
  new Counter({ name: 'host_orders_total', help: 'Orders.', registers: [registry] }).inc(3)
  await complete(app, {}, 'acme')
  t.equal((await fetched(app)).value('host_orders_total'), 3)
  const found = (await registry.getMetricsAsJSON()).find(({ name }) => name === 'llm_tokens_total')
  t.match(found?.values, [{ labels: { tenant: 'acme', type: 'input', model: 'test' }, value: 7 }, {}])
})

t.test('an event loop that is blocked is seen', async t => {
  const app = await alone(t)
  const delays = async () => {
    const { value } = await scrape(app)
    const all = value('gateway_event_loop_delay_seconds_count') ?? 0
    return { all, long: all - (value('gateway_event_loop_delay_seconds_bucket', { le: '0.1' }) ?? 0) }
  }
  const { long } = await delays()
  const end = performance.now() + 250
  while (performance.now() < end);
  let after = await delays()
  while (after.all === 0) {
    await turn()
    after = await delays()
  }
  t.ok(after.long > long, `${after.long} of ${after.all} looks were more than 100 ms late`)
})

t.test('what measures the process ends with the gateway, once', async t => {
  const app = await alone(t)
  const disconnected = mock.method(PerformanceObserver.prototype, 'disconnect')
  const cleared = mock.method(globalThis, 'clearInterval')
  t.teardown(() => mock.restoreAll())
  await app.close()
  t.equal(disconnected.mock.callCount(), 1)
  t.equal(cleared.mock.callCount(), 1)
})

t.test('Redis that is not there is seen, and does not hold a scrape up', async t => {
  const app = await build(t, { redis: 'redis://127.0.0.1:1', log: { level: 'silent' } })
  await app.ready()
  await rejection(complete(app))
  const started = performance.now()
  const { value } = await scrape(app)
  t.ok(performance.now() - started < 1_000)
  t.equal(value('gateway_redis_up'), 0)
  t.equal(value('gateway_processes'), 1)
})

t.test('what tracing and the stream of events have lost', async t => {
  const { value } = await scrape(await observed(t))
  t.equal(value('gateway_spans_dropped_total', { reason: 'queue' }), 3)
  t.equal(value('gateway_spans_dropped_total', { reason: 'collector' }), 4)
  t.equal(value('gateway_events_dropped_total'), 7)
  t.equal(value('gateway_event_subscribers_dropped_total'), 6)
  t.equal(value('gateway_event_subscribers'), 5)
})

t.test('what is not used has no metric', async t => {
  const { families } = await scrape(await alone(t))
  for (const part of ['budget_limit', 'store', 'redis', 'spans', 'events_dropped', 'ledger']) {
    t.notOk(
      [...families.keys()].some(name => name.startsWith(`gateway_${part}`)),
      part
    )
  }
})

t.test('the ledger and its database', async t => {
  const app = await build(t, { store: 'sqlite::memory:' })
  await app.ready()
  await complete(app, { model: 'echo/any' })
  const { value } = await scrape(app)
  t.equal(value('gateway_store_up'), 1)
  t.equal(value('gateway_ledger_backlog_bytes'), 0)
})

t.test('after 1,000 mixed calls the counters are what the ledger says', t => mixed(t, 1_000, 64, equalsLedger))

t.test(
  'hedges, repeats by key, refusals and what a provider rejects are counted as the ledger counts them',
  async t => {
    const price = { input: 1, output: 2 }
    const { app, upstream, url } = await stack(t, {
      store: 'sqlite::memory:',
      models: {
        test: { retries: 0, targets: [{ provider: 'up', model: 'm', price }] },
        again: { retries: 1, targets: [{ provider: 'up', model: 'm', price }] },
        hedged: {
          retries: 0,
          hedge: { after: '10ms' },
          targets: [
            { provider: 'up', model: 'slow', weight: 1, price },
            { provider: 'up', model: 'quick', weight: 0, price }
          ]
        }
      },
      tenants: {
        public: { budget: false, maxRequestUsd: false },
        poor: { budget: { usd: 0.000001, period: 'total' }, maxRequestUsd: false, open: true }
      },
      plugins: { metrics: { legacyNames: ['titan'] } }
    })
    const post = async (body: object, headers: Record<string, string> = {}) => {
      const response = await fetch(`${url}/v1/chat/completions`, {
        method: 'POST',
        headers: { 'content-type': 'application/json', ...headers },
        body: JSON.stringify({ ...hello, ...body })
      })
      await response.text()
      return response.status
    }
    const answer = json(completion({ content: 'Hello' }))
    upstream.script(answer)
    const key = { 'idempotency-key': 'once' }
    t.strictSame([await post({}, key), await post({}, key), await post({}, key)], [200, 200, 200])
    upstream.script(({ json }) => (json.model === 'slow' ? silence() : answer))
    t.equal(await post({ model: 'hedged' }), 200)
    upstream.script(json({ error: { message: 'no', code: 'anything_at_all' } }, { status: 400 }))
    t.equal(await post({}), 400)
    upstream.script(json({ error: { message: 'no' } }, { status: 500 }), answer)
    t.equal(await post({ model: 'again' }), 200)
    t.equal(await post({ tenant: 'poor' }), 429)
    t.equal(await post({ tenant: 'nobody' }), 404)
    const { value, labels } = await until(app, ({ value }) => value('gateway_in_flight') === 0)
    t.equal(app.gateway.ledger?.totals().requests, 4)
    t.equal(value('gateway_requests_total', { outcome: 'settled' }), 5, 'a repeat is a call, and has no attempt')
    t.equal(value('gateway_attempts_total'), 6)
    t.equal(value('gateway_attempts_total', { outcome: 'interrupted' }), 1, 'the one of two that was slower')
    t.equal(value('gateway_retries_total'), 1)
    t.equal(value('gateway_fallbacks_total', { model: 'hedged' }), 1)
    t.equal(value('gateway_refused_total'), 2)
    t.strictSame(labels('gateway_errors_total', 'code'), ['upstream_rejected'])
    await equalsLedger(t, app, ['public'], 2)
  }
)
