import t, { type Test } from 'tap'
import {
  BudgetAnswer,
  KeyAnswer,
  ListAnswer,
  RecordAnswer,
  StatsAnswer,
  TenantAnswer
} from '../../../schemas/admin-answers.ts'
import { build } from '../../helper.ts'
import { asker, fits } from './fakes.ts'

// The admin routes in the whole app: what calls leave behind is what is shown.

const adminToken = 'the-token-of-the-operator'
/** Every echo of `Hello` costs the same, at a micro-USD a token. */
const price = { input: 1, output: 1 }
const chat = (more: object = {}) => ({ model: 'test', messages: [{ role: 'user', content: 'Hello' }], ...more })

async function start(t: Test, options = {}) {
  const app = await build(t, {
    store: 'sqlite::memory:',
    models: {
      test: { targets: [{ provider: 'echo', model: 'echo', price }] },
      second: { targets: [{ provider: 'echo', model: 'echo', price }] }
    },
    budget: { dailyLimitUsd: 20 },
    ...options,
    plugins: { auth: { adminToken }, rateLimit: false }
  })
  await app.ready()
  const ask = asker(app, adminToken)
  await ask('POST /api/tenants', { body: { id: 'acme', budget_usd: 1, period: 'day' } })
  const key = (await ask('POST /api/tenants/acme/keys', { body: { budget_usd: 0.5 } })).json()
  const call = (more: object = {}, secret = key.key) => ask('POST /v1/chat/completions', { body: chat(more), secret })
  return { app, ask, key, call }
}

const ids = (body: { data: Array<{ id: string }> }) => body.data.map(({ id }) => id)

t.test('a call that was answered is in the books when it is asked for', async t => {
  const { ask, key, call } = await start(t)
  t.equal((await call({ user: 'ann', metadata: { team: 'x' } })).statusCode, 200)
  const tenant = (await ask('GET /api/tenants/acme')).json()
  fits(t, TenantAnswer, tenant)
  t.match(tenant, { requests: 1, reserved_usd: 0, resets_at: /T00:00:00\.000Z$/ })
  const [record] = tenant.records
  t.match(record, { tenant: 'acme', key: key.id, model: 'test', provider: 'echo', status: 'settled', http_status: 200 })
  t.match(record, { user: 'ann', tags: { team: 'x' }, error_code: null })
  t.equal(record.cost_usd, (record.tokens_in + record.tokens_out) / 1e6)
  t.equal(tenant.spend_usd, record.cost_usd)
  t.equal(tenant.tokens_in, record.tokens_in)
  t.equal(tenant.tokens_out, record.tokens_out)

  const keys = (await ask('GET /api/tenants/acme/keys')).json()
  fits(t, ListAnswer(KeyAnswer), keys)
  t.match(keys.data, [{ id: key.id, budget_usd: 0.5, spend_usd: record.cost_usd, requests: 1, last_used_at: String }])
  t.match((await ask('GET /api/tenants')).json().data, [{ id: 'public', spend_usd: 0 }, { spend_usd: record.cost_usd }])

  const stats = (await ask('GET /api/stats')).json()
  fits(t, StatsAnswer, stats)
  t.match(stats, { requests: 1, tokens_in: record.tokens_in, cost_total_usd: record.cost_usd, running: 0 })
})

t.test('records are paged, filtered and exported from the store', async t => {
  const { ask, call, key } = await start(t)
  const from = new Date().toISOString()
  for (let index = 0; index < 7; index++) await call({ model: index % 2 === 0 ? 'test' : 'second' })
  await call({}, adminToken)

  const all = (await ask('GET /api/tenants/acme/records')).json()
  fits(t, ListAnswer(RecordAnswer), all)
  t.equal(all.data.length, 7)
  const seen: string[] = []
  for (let after = ''; ; ) {
    const page = (await ask(`GET /api/tenants/acme/records?limit=3${after}`)).json()
    seen.push(...ids(page))
    if (page.next === null) break
    after = `&after=${encodeURIComponent(page.next)}`
  }
  t.strictSame(seen, ids(all), 'newest first, each once')

  const count = async (query: string) => (await ask(`GET /api/records?${query}`)).json().data.length
  t.equal(await count(''), 8)
  t.equal(await count('tenant=public'), 1)
  t.equal(await count('tenant=acme&model=second'), 3)
  t.equal(await count('model=test'), 5)
  t.equal(await count(`key=${key.id}`), 7)
  t.equal(await count('key=admin'), 1)
  t.equal(await count('status=settled'), 8)
  t.equal(await count('status=failed'), 0)
  t.equal(await count(`from=${encodeURIComponent(from)}`), 8)
  t.equal(await count(`to=${encodeURIComponent(from)}`), 0)
  t.equal(await count('from=0&to=1'), 0)

  const lines = (await ask('GET /api/tenants/acme/records?format=jsonl')).body.trimEnd().split('\n')
  t.strictSame(
    lines.map(line => JSON.parse(line)),
    all.data
  )
  const csv = (await ask('GET /api/records?format=csv')).body.split('\r\n')
  t.equal(csv.length, 10)
})

const injections = ["' OR '1'='1", "'; DROP TABLE inferences; --", '%', '_', '" OR 1=1 --', '\\', '1) UNION SELECT 1']
t.test('filters are values, never SQL', async t => {
  const { ask, call } = await start(t)
  await call()
  for (const evil of injections) {
    for (const filter of ['model', 'key']) {
      const response = await ask(`GET /api/records?${filter}=${encodeURIComponent(evil)}`)
      t.strictSame(response.json().data, [], `${filter}=${evil}`)
    }
    t.strictSame((await ask(`GET /api/audit?subject=${encodeURIComponent(evil)}`)).json().data, [], evil)
    t.equal((await ask(`GET /api/tenants/${encodeURIComponent(evil)}`)).statusCode, 404)
    t.equal((await ask(`GET /api/records?after=${encodeURIComponent(evil)}`)).statusCode, 400)
  }
  t.equal((await ask('GET /api/records')).json().data.length, 1)
})

t.test('a place that no page gave is 400 and names the parameter', async t => {
  const { ask } = await start(t)
  for (const after of ['garbage', '1', '9'.repeat(40), '-1.1']) {
    const response = await ask(`GET /api/records?after=${after}`)
    t.equal(response.statusCode, 400, after)
    t.equal(response.json().error.param, 'after')
  }
})

t.test('the budget of the gateway is spent, reset, and the reset stands in the audit', async t => {
  const { ask, call } = await start(t)
  await call()
  const before = (await ask('GET /budget/stats')).json()
  fits(t, BudgetAnswer, before)
  t.match(before, { configured: true, limit_usd: 20, period: 'day', reserved_usd: 0, hard_stop: true, warned: false })
  t.ok(before.spend_usd > 0)
  t.equal(before.remaining_usd, Number((20 - before.spend_usd).toFixed(9)))

  const reset = await ask('POST /budget/reset')
  t.equal(reset.statusCode, 200)
  t.match(reset.json(), { spend_usd: 0, remaining_usd: 20 })
  const audit = (await ask('GET /api/audit?limit=1')).json().data
  t.match(audit, [{ actor: 'admin', action: 'budget.reset' }])
  t.notMatch(JSON.stringify(audit), /\d{6,}n|NaN/)
  const tenant = (await ask('GET /api/tenants/acme')).json()
  t.equal(tenant.spend_usd, before.spend_usd, 'a reset is the gateway’s: what a tenant spent stays')
  t.equal(tenant.records.length, 1)
})

t.test('without a budget of the gateway there is nothing to reset', async t => {
  const { ask } = await start(t, { budget: undefined })
  t.match((await ask('GET /budget/stats')).json(), { configured: false, limit_usd: null })
  t.equal((await ask('POST /budget/reset')).statusCode, 409)
})

t.test('a budget that is changed holds for the next call', async t => {
  const { ask, call } = await start(t)
  t.equal((await ask('PUT /api/tenants/acme', { body: { budget_usd: 0 } })).json().budget_usd, 0)
  const refused = await call()
  t.equal(refused.statusCode, 429)
  t.equal(refused.json().error.code, 'insufficient_quota')
  t.match((await ask('GET /api/stats')).json(), { refused: { insufficient_quota: 1 }, requests: 0 })
  await ask('PUT /api/tenants/acme', { body: { budget_usd: null } })
  t.equal((await call()).statusCode, 200)
  await ask('PUT /api/tenants/acme', { body: { active: false } })
  t.equal((await call()).json().error.code, 'tenant_disabled')
})

t.test('what a tenant spent outlives it', async t => {
  const { ask, call } = await start(t)
  await call()
  const { spend_usd } = (await ask('GET /api/tenants/acme')).json()
  t.ok(spend_usd > 0)
  await ask('DELETE /api/tenants/acme')
  t.equal((await call()).statusCode, 401, 'its key has ended')
  t.equal((await ask('GET /api/records?tenant=acme')).json().data.length, 1)
  const again = (await ask('POST /api/tenants', { body: { id: 'acme', budget_usd: 1, period: 'day' } })).json()
  t.equal(again.spend_usd, spend_usd)
})

t.test('a thousand tenants are one short answer', async t => {
  const { app, ask } = await start(t)
  const { tenants } = app.gateway
  const acme = await tenants!.find('acme')
  for (let index = 0; index < 1_000; index++) await tenants!.create({ ...acme!, id: `t${index}` }, 'test')
  const started = performance.now()
  const page = (await ask('GET /api/tenants?limit=1000')).json()
  t.equal(page.data.length, 1_000)
  t.ok(performance.now() - started < 2_000, `${Math.round(performance.now() - started)} ms`)
})
