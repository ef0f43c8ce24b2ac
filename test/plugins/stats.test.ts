import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import Fastify from 'fastify'
import t, { type Test } from 'tap'
import modelGateway, { type ModelGatewayOptions } from '../../app.ts'
import gateway from '../../plugins/gateway/index.ts'
import http from '../../plugins/http/index.ts'
import routing from '../../plugins/routing/index.ts'
import stats from '../../plugins/stats.ts'
import { StatsAnswer } from '../../schemas/admin-answers.ts'
import { StoreUnavailable } from '../../schemas/errors.ts'
import type { Ledger } from '../../schemas/ledger.ts'
import { build } from '../helper.ts'
import { startPostgres, startRedis } from '../services/index.ts'
import { asker, fits } from './admin/fakes.ts'

const adminToken = 'the-token-of-the-operator'
const price = { input: 1, output: 1 }

/** The plugin with books that a test makes up; whoever asks is the administrator. */
async function alone(t: Test, sums: Ledger['sums'], patience?: number) {
  const app = Fastify()
  t.teardown(() => app.close())
  await app.register(gateway)
  await app.register(routing, {})
  await app.register(http, {})
  app.gateway.decorate('authenticate', () => ({ tenant: 'public', key: 'admin', kind: 'admin', scopes: ['admin'] }))
  app.gateway.decorate('ledger', {
    recent: () => [],
    totals: () => ({ requests: 2, tokensIn: 7, tokensOut: 8, cost: 9_007_199_254_740_993_000n }),
    sums,
    refused: new Map([['insufficient_quota', 3]]),
    mismatches: 4
  })
  app.gateway.decorate('budgets', {
    state: () => Promise.reject(new Error('not asked')),
    gateway: async () => null,
    reset: () => Promise.reject(new Error('not asked')),
    known: () => null,
    counters: { overrun: 1, unpriced: 2, refused: 3 }
  })
  await app.register(stats, { patience })
  const response = await app.inject('/api/stats')
  t.equal(response.statusCode, 200, response.body)
  fits(t, StatsAnswer, response.json())
  return response.json()
}

/** The whole app on a database. */
async function started(t: Test, options: ModelGatewayOptions = {}) {
  const app = await build(t, {
    store: 'sqlite::memory:',
    models: { test: { targets: [{ provider: 'echo', model: 'echo', price }] } },
    ...options,
    plugins: { auth: { adminToken }, ...options.plugins }
  })
  await app.ready()
  const ask = asker(app, adminToken)
  const call = (model = 'test') =>
    ask('POST /v1/chat/completions', { body: { model, messages: [{ role: 'user', content: 'Hello' }] } })
  const counted = async () => {
    const answer = (await ask('GET /api/stats')).json()
    fits(t, StatsAnswer, answer)
    return answer
  }
  return { app, ask, call, counted }
}

const sums = { requests: 20, tokensIn: 70, tokensOut: 80, cost: 1_500_000_000n }

// Before the first test: tap thinks that all is done when nothing is under way.
const [postgres, redis] = [await startPostgres(t), await startRedis(t)]

t.test('totals are those of the database, the rest is of this process', async t => {
  const { started_at, uptime_s, ...answer } = await alone(t, async () => sums)
  t.strictSame(answer, {
    requests: 20,
    tokens_in: 70,
    tokens_out: 80,
    cost_total_usd: 1.5,
    complete: true,
    running: 0,
    refused: { insufficient_quota: 3 },
    overrun: 1,
    unpriced: 2,
    usage_mismatches: 4
  })
  t.ok(Math.abs(Date.parse(started_at) - Date.now()) < 60_000)
  t.ok(uptime_s >= 0)
})

t.test('without an administrator there is no route, and the log says so', async t => {
  const lines: string[] = []
  const app = Fastify({ logger: { level: 'warn', stream: { write: line => lines.push(line) } } })
  t.teardown(() => app.close())
  await app.register(modelGateway, { store: 'sqlite::memory:', plugins: { auth: false } })
  t.equal((await app.inject('/api/stats')).statusCode, 404)
  t.match(lines.join(''), /GET \/api\/stats is off: without the plugin auth/)
})

t.test('while the database is away, or does not answer, this process says what it knows', async t => {
  const known = { requests: 2, tokens_in: 7, tokens_out: 8, cost_total_usd: 9_007_199_254.740993, complete: false }
  t.match(await alone(t, () => Promise.reject(new StoreUnavailable('gone'))), known)
  t.match(await alone(t, () => new Promise(() => {}), 5), known)
})

t.test('calls that were answered, refused and run', async t => {
  const { app, call, counted } = await started(t)
  t.match(await counted(), { requests: 0, cost_total_usd: 0, complete: true })
  t.equal((await call()).statusCode, 200)
  const one = await counted()
  t.match(one, { requests: 1, running: 0, complete: true })
  t.ok(one.tokens_in > 0 && one.tokens_out > 0)
  t.ok(Math.abs(one.cost_total_usd - (one.tokens_in + one.tokens_out) / 1e6) < 1e-9)
  const answer = await app.gateway.complete(
    { model: 'test', messages: [{ role: 'user', content: 'Hello' }], stream: true },
    app.gateway.caller()
  )
  if (!answer.stream) return t.fail('no stream')
  t.match(await counted(), { requests: 2, running: 1 })
  for await (const _frames of answer.frames);
  t.match(await counted(), { requests: 2, running: 0 })
  t.match(app.gateway.ledger?.totals(), { requests: 2 }, 'memory agrees')
})

t.test('a restart keeps the counters', async t => {
  const folder = mkdtempSync(join(tmpdir(), 'gateway-stats-'))
  t.teardown(() => rmSync(folder, { recursive: true, force: true }))
  const store = `sqlite:${join(folder, 'gateway.db')}`
  const first = await started(t, { store })
  for (let call = 0; call < 5; call++) await first.call()
  const before = await first.counted()
  t.equal(before.requests, 5)
  await first.app.close()
  const second = await started(t, { store })
  const { requests, tokens_in, tokens_out, cost_total_usd } = before
  t.match(await second.counted(), { requests, tokens_in, tokens_out, cost_total_usd })
  await second.call()
  t.match(await second.counted(), { requests: 6, tokens_in: (tokens_in / 5) * 6 })
})

t.test('of two processes each answers with what both have done', { skip: !postgres || !redis }, async t => {
  const both = { store: postgres!.url, redis: redis!.url }
  const one = await started(t, both)
  const other = await started(t, both)
  for (let call = 0; call < 3; call++) t.equal((await one.call()).statusCode, 200)
  for (let call = 0; call < 4; call++) t.equal((await other.call()).statusCode, 200)
  // What the other one has in its journal only is on its way.
  for (const { counted } of [one, other]) {
    for (let tries = 0; tries < 500 && (await counted()).requests < 7; tries++)
      await new Promise(resolve => setTimeout(resolve, 10))
    t.match(await counted(), { requests: 7, complete: true })
  }
  t.equal(one.app.gateway.ledger?.totals().requests, 3, 'memory knows its own')
})

t.test(
  "it is the administrator's alone, and does not exist where it is off, without books or without keys",
  async t => {
    const { app, ask } = await started(t)
    t.equal((await app.inject('/api/stats')).statusCode, 401)
    t.equal((await ask('GET /api/stats')).headers['cache-control'], 'no-store')
    t.equal((await ask('GET /api/stats?hours=1')).statusCode, 200)
    for (const options of [
      { plugins: { stats: false as const } },
      { plugins: { ledger: false as const } },
      { plugins: { auth: false as const } }
    ]) {
      const { ask } = await started(t, options)
      t.equal((await ask('GET /api/stats')).statusCode, 404, JSON.stringify(options))
    }
  }
)
