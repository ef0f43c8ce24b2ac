import Fastify from 'fastify'
import t, { type Test } from 'tap'
import admin from '../../../plugins/admin/index.ts'
import auth from '../../../plugins/auth/index.ts'
import gateway from '../../../plugins/gateway/index.ts'
import http from '../../../plugins/http/index.ts'
import { serverOptions } from '../../../plugins/http/server.ts'
import routing from '../../../plugins/routing/index.ts'
import store from '../../../plugins/store/index.ts'
import tenants from '../../../plugins/tenants/index.ts'
import { AuditAnswer, KeyAnswer, ListAnswer, TenantAnswer } from '../../../schemas/admin-answers.ts'
import { asker, fits } from './fakes.ts'

// The admin routes over the real plugins on SQLite.

const adminToken = 'the-token-of-the-operator'

async function stack(t: Test) {
  const app = Fastify(serverOptions({ bodyLimit: 10 * 1024 * 1024, trustProxy: false }))
  t.teardown(() => app.close())
  const configured = { configured: { keys: ['gw_configured-secret'] } }
  await app.register(gateway, {})
  await app.register(routing, {})
  await app.register(store, { url: 'sqlite::memory:' })
  await app.register(http, {})
  await app.register(tenants, {})
  await app.register(auth, { adminToken, tenants: configured })
  await app.register(admin, {})
  app.gateway.http.catchAll(app)
  await app.ready()
  return { app, ask: asker(app, adminToken) }
}

const ids = (body: { data: Array<{ id: string }> }) => body.data.map(({ id }) => id)

t.test('a tenant lives from POST to DELETE, and every step is in the audit', async t => {
  const { ask } = await stack(t)
  t.equal((await ask('POST /api/tenants', { body: { id: 'acme', budget_usd: 2.5 } })).statusCode, 201)
  t.equal((await ask('POST /api/tenants', { body: { id: 'acme', budget_usd: 9 } })).json().error.code, 'tenant_exists')
  t.match((await ask('PUT /api/tenants/acme', { body: { period: 'week', concurrency: 2 } })).json(), {
    budget_usd: 2.5,
    period: 'week',
    concurrency: 2
  })
  const shown = (await ask('GET /api/tenants/acme')).json()
  fits(t, TenantAnswer, shown)
  t.match(shown, { period: 'week', records: [], source: 'api' })
  t.equal((await ask('DELETE /api/tenants/acme')).statusCode, 204)
  t.equal((await ask('GET /api/tenants/acme')).statusCode, 404)

  const audit = (await ask('GET /api/audit')).json()
  fits(t, ListAnswer(AuditAnswer), audit)
  t.match(audit.data, [
    { actor: 'admin', action: 'tenant.remove', subject: 'acme', before: { concurrency: 2 }, after: null },
    {
      action: 'tenant.update',
      before: { budget: { limit_usd: 2.5, period: 'total' }, concurrency: null },
      after: { budget: { limit_usd: 2.5, period: 'week' }, concurrency: 2 }
    },
    { action: 'tenant.create', before: null, after: { id: 'acme', budget: { limit_usd: 2.5 } } }
  ])
})

t.test('pages of tenants and of the audit are whole and have no row twice', async t => {
  const { ask } = await stack(t)
  const names = Array.from({ length: 25 }, (_, index) => `t${String(index).padStart(2, '0')}`)
  for (const id of names) await ask('POST /api/tenants', { body: { id, budget_usd: 1 } })
  const seen: string[] = []
  const subjects: string[] = []
  for (let after = ''; ; ) {
    const page = (await ask(`GET /api/tenants?limit=10${after}`)).json()
    seen.push(...ids(page))
    if (page.next === null) break
    after = `&after=${page.next}`
  }
  t.strictSame(seen, ['public', ...names])
  for (let after = ''; ; ) {
    const page = (await ask(`GET /api/audit?limit=10${after}`)).json()
    subjects.push(...page.data.map(({ subject }: { subject: string }) => subject))
    if (page.next === null) break
    after = `&after=${page.next}`
  }
  t.strictSame(subjects, names.toReversed())
})

t.test('a place that is none is 400 and names the parameter', async t => {
  const { ask } = await stack(t)
  for (const url of ['/api/audit?after=garbage', '/api/audit?after=1.5']) {
    const response = await ask(`GET ${url}`)
    t.equal(response.statusCode, 400, url)
    t.equal(response.json().error.param, 'after')
  }
})

t.test('a key works from the answer that shows it until it is revoked', async t => {
  const { ask } = await stack(t)
  await ask('POST /api/tenants', { body: { id: 'acme', budget_usd: 1 } })
  const made = (await ask('POST /api/tenants/acme/keys', { body: { name: 'ci', scopes: ['admin'] } })).json()
  fits(t, KeyAnswer, made)
  t.match(made.key, /^gw_[0-9a-z]{12}_[\w-]{55}$/)
  t.equal((await ask('GET /api/tenants', { secret: made.key })).statusCode, 200)

  const rotated = (await ask(`POST /api/tenants/acme/keys/${made.id}/rotate`, { body: { overlap_seconds: 60 } })).json()
  t.not(rotated.key, made.key)
  for (const secret of [made.key, rotated.key]) t.equal((await ask('GET /api/tenants', { secret })).statusCode, 200)
  const list = (await ask('GET /api/tenants/acme/keys')).json()
  fits(t, ListAnswer(KeyAnswer), list)
  t.equal(list.data.length, 2)
  t.match(
    list.data.find(({ id }: { id: string }) => id === made.id),
    { rotated_to: rotated.id, active: true, name: 'ci' }
  )
  t.notMatch(JSON.stringify(list), made.key)
  t.notMatch(JSON.stringify(list), rotated.key)

  await ask(`POST /api/tenants/acme/keys/${rotated.id}/rotate`, { body: { overlap_seconds: 0 } })
  t.equal((await ask('GET /api/tenants', { secret: rotated.key })).statusCode, 401, 'no overlap')
  t.equal((await ask(`DELETE /api/tenants/acme/keys/${made.id}`)).statusCode, 204)
  t.equal((await ask('GET /api/tenants', { secret: made.key })).statusCode, 401)
  t.equal((await ask(`DELETE /api/tenants/acme/keys/${made.id}`)).statusCode, 204, 'once more does no harm')
  const again = await ask(`POST /api/tenants/acme/keys/${made.id}/rotate`)
  t.equal(again.statusCode, 400, 'a key that has ended stays ended')

  const audit = (await ask(`GET /api/audit?subject=${made.id}`)).json()
  t.strictSame(
    audit.data.map(({ action }: { action: string }) => action),
    ['key.revoke', 'key.rotate', 'key.create']
  )
  t.notMatch(JSON.stringify(audit), /hash|gw_/)
})

t.test('the keys of a tenant end with it', async t => {
  const { ask } = await stack(t)
  await ask('POST /api/tenants', { body: { id: 'acme', budget_usd: 1 } })
  const { key } = (await ask('POST /api/tenants/acme/keys', { body: { scopes: ['admin'] } })).json()
  t.equal((await ask('GET /api/tenants', { secret: key })).statusCode, 200)
  await ask('DELETE /api/tenants/acme')
  t.equal((await ask('GET /api/tenants', { secret: key })).statusCode, 401)
})

t.test('a key of one tenant is not reached through another', async t => {
  const { ask } = await stack(t)
  for (const id of ['a', 'b']) await ask('POST /api/tenants', { body: { id, budget_usd: 1 } })
  const { id } = (await ask('POST /api/tenants/a/keys', { body: {} })).json()
  t.equal((await ask(`DELETE /api/tenants/b/keys/${id}`)).json().error.code, 'key_not_found')
  t.equal((await ask(`POST /api/tenants/b/keys/${id}/rotate`)).json().error.code, 'key_not_found')
  t.strictSame(ids((await ask('GET /api/tenants/b/keys')).json()), [])
  t.match((await ask('GET /api/tenants/a/keys')).json().data, [{ id, active: true }])
})
