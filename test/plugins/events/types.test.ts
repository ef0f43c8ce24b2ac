import { readFileSync } from 'node:fs'
import type { FastifyInstance } from 'fastify'
import t, { type Test } from 'tap'
import type { ModelGatewayOptions } from '../../../app.ts'
import { eventTypes, type GatewayEvent } from '../../../schemas/events.ts'
import { build, towards } from '../../helper.ts'
import { chunks, completion, failure, json, type Reply, silence, sse, startUpstream } from '../../upstream.ts'
import { token } from './kit.ts'

// Every type of event, made by the real thing; and what the page says of them.

const page = readFileSync(new URL('../../../docs/plugins/events.md', import.meta.url), 'utf8')
const secret = 'sk-upstream-secret'
const prompt = 'a word of a prompt'
const ask = { model: 'test', messages: [{ role: 'user' as const, content: prompt }] }

const everything: GatewayEvent[] = []

async function watched(t: Test, options: ModelGatewayOptions, time = {}) {
  const app = await build(
    t,
    {
      ...options,
      plugins: {
        auth: { adminToken: token, anonymousTenant: 'public' },
        budgets: { unpriced: 'allow' },
        ...options.plugins
      }
    },
    time
  )
  const events: GatewayEvent[] = []
  app.gateway.events.on(event => {
    events.push(event)
    everything.push(event)
  })
  await app.ready()
  return { app, events, types: () => events.map(({ type }) => type) }
}

const complete = (app: FastifyInstance, body: object = {}, options = {}) =>
  app.gateway.complete({ ...ask, ...body }, app.gateway.caller(options))

async function upstreams(t: Test, ...scripts: Array<[Reply | (() => Reply), ...Reply[]]>) {
  return Promise.all(
    scripts.map(async script => {
      const upstream = await startUpstream()
      t.teardown(() => upstream.close())
      upstream.script(...script)
      return upstream
    })
  )
}

const usage = { prompt_tokens: 5, completion_tokens: 6, total_tokens: 11 }

t.test('a whole answer', async t => {
  const [up] = await upstreams(t, [json(completion({ content: 'Hello', usage }))])
  const { app, events, types } = await watched(
    t,
    towards(up!, {
      models: {
        test: { targets: [{ provider: 'up', model: 'upstream-model', price: { input: 1_000, output: 2_000 } }] }
      },
      tenants: { public: { maxRequestUsd: false } }
    })
  )
  const { facts } = await complete(app, {}, { tenant: 'public' })
  t.strictSame(types(), [
    'model.request.start',
    'model.attempt.start',
    'model.attempt.complete',
    'model.request.complete'
  ])
  const about = { tenant: 'public', key: null, model: 'test', trace_id: facts.traceId }
  const target = { provider: 'up', target_model: 'upstream-model' }
  t.match(events[0]?.data, { ...about, stream: false })
  t.match(events[2]?.data, {
    ...about,
    ...target,
    attempt: 1,
    status: 'settled',
    usd: 0.017,
    tokens_in: 5,
    tokens_out: 6
  })
  t.match(events[3]?.data, {
    ...about,
    ...target,
    status: 'settled',
    http_status: 200,
    usd: 0.017,
    usage_source: 'reported'
  })
  t.equal(new Set(events.map(({ data }) => ('id' in data ? data.id : null))).size, 1)
})

t.test('repeats and moves, and a stream', async t => {
  const [one, two] = await upstreams(t, [failure(503), failure(503)], [sse(chunks(['Hello ', 'there']))])
  const { app, events, types } = await watched(
    t,
    {
      providers: {
        one: { type: 'openai-compatible', baseUrl: one!.url, apiKeys: [secret] },
        two: { type: 'openai-compatible', baseUrl: two!.url, apiKeys: [secret] }
      },
      models: {
        test: { retries: 1, targets: [{ provider: 'one', model: 'a' }], fallbacks: ['second'] },
        second: { retries: 0, targets: [{ provider: 'two', model: 'b' }] }
      }
    },
    { pause: async () => {} }
  )
  const answer = await complete(app, { stream: true })
  if (!answer.stream) return t.fail('no stream')
  for await (const _frames of answer.frames);
  t.strictSame(types(), [
    'model.request.start',
    'model.attempt.start',
    'model.attempt.complete',
    'model.retry',
    'model.attempt.start',
    'model.attempt.complete',
    'model.fallback',
    'model.attempt.start',
    'model.streaming.start',
    'model.attempt.complete',
    'model.request.complete'
  ])
  t.match(events[2]?.data, { status: 'failed', error: 'upstream_overloaded', usd: 0, attempt: 1 })
  t.match(events[3]?.data, { provider: 'one', target_model: 'a', attempt: 2, reason: 'upstream_overloaded' })
  t.match(events[6]?.data, { from: 'one/a', to: 'two/b', attempt: 3, reason: 'upstream_overloaded' })
  t.match(events[8]?.data, { provider: 'two', target_model: 'b' })
  t.match(events[10]?.data, { attempts: 3, retries: 1, fallbacks: 1, provider: 'two', status: 'settled' })
})

t.test('the end of a call is told once, and last, however it ends', async t => {
  const [up] = await upstreams(t, [silence()])
  const { app, events, types } = await watched(t, towards(up!, { tenants: { shut: { active: false } } }))
  const ends = () => events.filter(({ type }) => type === 'model.request.complete').map(({ data }) => data)

  up!.script(sse(chunks(['one ', 'two ', 'three'])))
  const left = await complete(app, { stream: true })
  if (!left.stream) return t.fail('no stream')
  await left.frames.next()
  await left.frames.return()
  await left.frames.return()
  t.match(ends(), [{ status: 'interrupted', http_status: 499, error: 'cancelled' }])
  t.equal(types().at(-1), 'model.request.complete')

  const leaving = new AbortController()
  up!.script(() => {
    leaving.abort()
    return silence()
  })
  await t.rejects(complete(app, {}, { signal: leaving.signal }))
  t.match(ends()[1], { status: 'interrupted', http_status: 499 })

  await t.rejects(complete(app, {}, { tenant: 'shut' }))
  t.strictSame(types().slice(-2), ['model.request.start', 'model.request.complete'])
  t.match(ends()[2], {
    status: 'failed',
    http_status: 403,
    error: 'tenant_disabled',
    attempts: 0,
    provider: null,
    tenant: 'shut'
  })

  up!.script(failure(400))
  await t.rejects(complete(app))
  t.match(ends()[3], { status: 'failed', http_status: 400, provider: 'up' })

  await t.rejects(complete(app, { model: 'nobody' }))
  t.equal(ends().length, 4, 'an unknown model is no call')
  t.equal(types().filter(type => type === 'model.request.start').length, 4)
})

t.test('a second target that is asked because the first is slow', async t => {
  const [slow, quick] = await upstreams(t, [silence()], [json(completion({ content: 'Hello' }))])
  const { app, events } = await watched(t, {
    providers: {
      slow: { type: 'openai-compatible', baseUrl: slow!.url, apiKeys: [secret] },
      quick: { type: 'openai-compatible', baseUrl: quick!.url, apiKeys: [secret] }
    },
    models: {
      test: {
        strategy: 'priority',
        hedge: { after: '1ms' },
        retries: 0,
        targets: [
          { provider: 'slow', model: 'a' },
          { provider: 'quick', model: 'b' }
        ]
      }
    }
  })
  await complete(app)
  t.match(
    events.find(({ type }) => type === 'model.fallback'),
    { data: { from: 'slow/a', to: 'quick/b', reason: 'hedge' } }
  )
  t.equal(events.at(-1)?.type, 'model.request.complete')
})

t.test('a target that is left alone, and asked again', async t => {
  const [up] = await upstreams(t, [failure(500), failure(500), json(completion({ content: 'Hello' }))])
  let time = 1_000_000
  const { app, events } = await watched(t, towards(up!, { routing: { breaker: { failures: 2, openFor: '1s' } } }), {
    now: () => time,
    pause: async () => {}
  })
  time += 10_000
  await t.rejects(complete(app))
  await t.rejects(complete(app))
  time += 10_000
  await complete(app)
  const breaker = events.filter(({ type }) => type === 'routing.breaker').map(({ data }) => data)
  const target = { provider: 'up', target_model: 'upstream-model' }
  t.strictSame(breaker, [
    { ...target, state: 'open', reason: 'upstream_error' },
    { ...target, state: 'closed', reason: null }
  ])
})

t.test('budgets', async t => {
  const [up] = await upstreams(t, [silence()])
  const models = {
    test: { targets: [{ provider: 'up', model: 'upstream-model', price: { input: 1_000, output: 1_000 } }] }
  }
  const { app, events } = await watched(
    t,
    towards(up!, {
      models,
      budget: { dailyLimitUsd: 1, warningThreshold: 0.01 },
      tenants: {
        poor: { budget: { usd: 0.001, period: 'day' }, maxRequestUsd: false },
        public: { maxRequestUsd: false }
      }
    })
  )
  up!.script(json(completion({ content: 'Hello', usage })))
  await complete(app, { max_tokens: 10 })
  t.match(events.find(({ type }) => type === 'model.budget.warning')?.data, {
    scope: 'gateway',
    period: /^day:/,
    spent_usd: 0.011,
    limit_usd: 1
  })
  await t.rejects(complete(app, { max_tokens: 10 }, { tenant: 'poor' }), { code: 'GATEWAY_INSUFFICIENT_QUOTA' })
  const [exceeded] = events.filter(({ type }) => type === 'model.budget.exceeded')
  t.match(exceeded?.data, {
    tenant: 'poor',
    model: 'test',
    scope: 'tenant:poor',
    period: /^day:/,
    spent_usd: 0,
    reserved_usd: 0,
    limit_usd: 0.001
  })
  t.ok(exceeded?.type === 'model.budget.exceeded' && exceeded.data.bound_usd > 0.01)
  t.equal(events.at(-1)?.type, 'model.request.complete', 'the refusal is inside the call')
})

t.test('a budget that a further attempt does not fit in says what the earlier ones hold', async t => {
  const [up] = await upstreams(t, [failure(503)])
  const models = {
    test: { targets: [{ provider: 'up', model: 'upstream-model', price: { input: 1, output: 1 } }], retries: 3 }
  }
  const tenants = { poor: { budget: { usd: 0.001, period: 'day' as const } } }
  const { app, events } = await watched(t, towards(up!, { models, tenants }), { pause: async () => {} })
  await t.rejects(complete(app, { max_tokens: 400 }, { tenant: 'poor' }), { code: 'GATEWAY_UPSTREAM_OVERLOADED' })
  const [exceeded, ...others] = events.filter(({ type }) => type === 'model.budget.exceeded')
  t.strictSame(others, [])
  if (exceeded?.type !== 'model.budget.exceeded') return t.fail('it was not told')
  const { spent_usd, reserved_usd, limit_usd, bound_usd } = exceeded.data
  t.equal(spent_usd, 0)
  t.ok(bound_usd < limit_usd, 'alone it would fit')
  t.ok(reserved_usd + bound_usd > limit_usd, `${reserved_usd} are held, ${bound_usd} are wanted`)
})

t.test('tenants and keys, whoever changes them', async t => {
  const { app, events } = await watched(t, { store: 'sqlite::memory:', providers: { echo: { type: 'echo' } } })
  const request = (method: 'POST' | 'PUT' | 'DELETE', url: string, payload?: object) =>
    app.inject({
      method,
      url,
      headers: { authorization: `Bearer ${token}` },
      ...(payload === undefined ? {} : { payload })
    })
  await request('POST', '/api/tenants', { id: 'acme', budget_usd: 1 })
  await request('POST', '/api/tenants', { id: 'acme', budget_usd: 1 })
  await request('PUT', '/api/tenants/acme', { active: false })
  const { id, key } = (await request('POST', '/api/tenants/acme/keys', { expires_at: '2999-01-01T00:00:00Z' })).json()
  const rotated = (await request('POST', `/api/tenants/acme/keys/${id}/rotate`, {})).json()
  await request('DELETE', `/api/tenants/acme/keys/${id}`)
  await request('DELETE', '/api/tenants/acme')
  t.match(
    events.map(({ type, data }) => ({ type, ...data })),
    [
      { type: 'tenant.created', tenant: 'acme', actor: 'admin' },
      { type: 'tenant.updated', tenant: 'acme', active: false, actor: 'admin' },
      { type: 'key.created', tenant: 'acme', key: id, expires_at: '2999-01-01T00:00:00.000Z', actor: 'admin' },
      { type: 'key.rotated', tenant: 'acme', key: id, rotated_to: rotated.id, actor: 'admin' },
      { type: 'key.revoked', tenant: 'acme', key: id, actor: 'admin' },
      { type: 'tenant.deleted', tenant: 'acme', actor: 'admin' }
    ]
  )
  t.equal(events.length, 6, 'what was refused is no event')
  for (const one of [key, rotated.key]) t.notOk(JSON.stringify(events).includes(one))
})

t.test('another routing table', async t => {
  const { default: Fastify } = await import('fastify')
  const { default: modelGateway, readConfig } = await import('../../../app.ts')
  const { settings, hash } = readConfig({ store: false, providers: { echo: { type: 'echo' } } })
  const app = Fastify()
  t.teardown(() => app.close())
  const source = async () => ({ ...settings, defaultModel: 'echo/other', hash: 'abcdef0123456789' })
  await app.register(modelGateway, {
    standalone: { settings, hash, source, log: app.log, adminTokenGenerated: true }
  })
  app.gateway.events.on(event => void everything.push(event))
  await app.ready()
  await app.gateway.reload?.({ dryRun: true })
  await app.gateway.reload?.({ actor: 'SIGHUP' })
  const found = everything.filter(({ type }) => type === 'routing.reloaded')
  t.strictSame(
    found.map(({ data }) => data),
    [{ changes: 1, config: 'abcdef012345', actor: 'SIGHUP' }]
  )
})

t.test('what callers write where names belong is not repeated', async t => {
  const { app, events } = await watched(t, { providers: { echo: { type: 'echo' } }, routing: { passThrough: true } })
  const key = 'gw_abcdefghijkl_secretsecret'
  await complete(app, { model: `echo/${key}` })
  await t.rejects(complete(app, { model: 'echo/echo' }, { tenant: `${key}${'x'.repeat(10_000)}` }))
  const text = JSON.stringify(events)
  t.ok(events.length >= 6)
  t.notOk(text.includes('secretsecret'))
  t.ok(text.length < 10_000)
})

t.test('the page has every type with its fields, and no other', async t => {
  const rows = new Map<string, string[]>()
  for (const [, type = '', fields = ''] of page.matchAll(/^\| `([a-z.]+)` \| ((?:`[a-z_]+` ?)+)\|/gm)) {
    rows.set(type, [...fields.matchAll(/`([a-z_]+)`/g)].map(([, field = '']) => field).sort())
  }
  t.strictSame([...eventTypes].sort(), [...rows.keys()].sort(), 'those that can be asked for')
  // Made by Redis going away: test/plugins/events/redis.test.ts.
  rows.delete('gateway.events.dropped')
  t.strictSame([...new Set(everything.map(({ type }) => type))].sort(), [...rows.keys()].sort())
  for (const { type, data } of everything) {
    const fields = Object.keys(data).sort()
    if (fields.join() !== rows.get(type)?.join()) t.strictSame(fields, rows.get(type), type)
    for (const [name, value] of Object.entries(data)) {
      if (value !== null && typeof value === 'object') t.fail(`${type}.${name} is not flat`)
    }
  }
  const text = JSON.stringify(everything)
  for (const word of [secret, prompt, token]) t.notOk(text.includes(word), 'nothing secret, and no prompt')
})
