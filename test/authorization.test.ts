import { generateKeyPairSync } from 'node:crypto'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import Fastify, { type FastifyInstance } from 'fastify'
import t, { type Test } from 'tap'
import modelGateway, { type ModelGatewayOptions, readConfig, serverOptions } from '../app.ts'

// Who may do what: every route of the app by every kind of credential. A route that is not in the table fails the test.

const adminToken = 'the-token-of-the-operator'
const receiptKey = String(generateKeyPairSync('ed25519').privateKey.export({ format: 'pem', type: 'pkcs8' }))

interface Row {
  /** `open`: everybody. `key`: whoever may call models. `admin`: the administrator. */
  readonly who: 'open' | 'key' | 'admin'
  /** Status of those who may. */
  readonly status: number
  /** What is asked, where the route itself is no path; made anew for every caller. */
  readonly at?: (app: FastifyInstance, number: number) => string | Promise<string>
  readonly body?: (number: number) => object
  /** False: there is no HEAD beside this GET. */
  readonly head?: false
  /** An answer that does not end: only its head is looked at. */
  readonly endless?: true
}

const chat = () => ({ model: 'test', messages: [{ role: 'user', content: 'Hello' }] })

const table: Readonly<Record<string, Row>> = {
  'GET /health': { who: 'open', status: 200 },
  'GET /ready': { who: 'open', status: 200 },
  'GET /.well-known/jwks.json': { who: 'open', status: 200 },
  'POST /v1/chat/completions': { who: 'key', status: 200, body: chat },
  'POST /proxy/*': { who: 'key', status: 200, at: () => '/proxy/test', body: chat },
  'GET /v1/models': { who: 'key', status: 200 },
  'GET /models': { who: 'key', status: 200 },
  'GET /v1/models/*': { who: 'key', status: 200, at: () => '/v1/models/test' },
  'GET /budget/stats': { who: 'admin', status: 200 },
  'POST /budget/reset': { who: 'admin', status: 200 },
  'GET /api/tenants': { who: 'admin', status: 200 },
  'POST /api/tenants': { who: 'admin', status: 201, body: number => ({ id: `made-${number}`, budget_usd: 1 }) },
  'GET /api/tenants/:id': { who: 'admin', status: 200, at: () => '/api/tenants/acme' },
  'PUT /api/tenants/:id': { who: 'admin', status: 200, at: freshTenant, body: () => ({ budget_usd: 2 }) },
  'DELETE /api/tenants/:id': { who: 'admin', status: 204, at: freshTenant },
  'GET /api/tenants/:id/records': { who: 'admin', status: 200, at: () => '/api/tenants/acme/records', head: false },
  'GET /api/tenants/:id/keys': { who: 'admin', status: 200, at: () => '/api/tenants/acme/keys' },
  'POST /api/tenants/:id/keys': { who: 'admin', status: 201, at: () => '/api/tenants/acme/keys', body: () => ({}) },
  'POST /api/tenants/:id/keys/:keyId/rotate': {
    who: 'admin',
    status: 201,
    at: async app => `${await freshKey(app)}/rotate`,
    body: () => ({})
  },
  'DELETE /api/tenants/:id/keys/:keyId': { who: 'admin', status: 204, at: freshKey },
  'GET /api/records': { who: 'admin', status: 200, head: false },
  'GET /api/stats': { who: 'admin', status: 200 },
  'GET /api/traces': { who: 'admin', status: 200 },
  'GET /api/health': { who: 'admin', status: 200 },
  'GET /api/audit': { who: 'admin', status: 200 },
  'GET /api/targets': { who: 'admin', status: 200 },
  'POST /api/routing/reload': { who: 'admin', status: 200 },
  'GET /metrics': { who: 'admin', status: 200 },
  'GET /events': { who: 'admin', status: 200, head: false, endless: true },
  'POST /events/ticket': { who: 'admin', status: 200 }
}

async function freshTenant(app: FastifyInstance, number: number): Promise<string> {
  const id = `fresh-${number}`
  const [any] = await tenantsOf(app).list({ limit: 1 })
  await tenantsOf(app).create({ ...any!, id, source: 'api' }, 'test')
  return `/api/tenants/${id}`
}

async function freshKey(app: FastifyInstance): Promise<string> {
  const { key } = await keysOf(app).create('acme', {}, 'test')
  return `/api/tenants/acme/keys/${key.id}`
}

function tenantsOf({ gateway }: FastifyInstance) {
  if (gateway.tenants === undefined) throw new Error('The plugin tenants is not there.')
  return gateway.tenants
}

function keysOf({ gateway }: FastifyInstance) {
  if (gateway.keys === undefined) throw new Error('There are no keys.')
  return gateway.keys
}

/** The whole app as server.ts builds it, and every route that it has. */
async function build(t: Test, own: ModelGatewayOptions = {}) {
  const folder = mkdtempSync(join(tmpdir(), 'gateway-authorization-'))
  const app = Fastify(serverOptions({ bodyLimit: 1_000_000, trustProxy: false }))
  t.teardown(async () => {
    await app.close()
    rmSync(folder, { recursive: true, force: true })
  })
  const routes: string[] = []
  app.addHook('onRoute', ({ method, url }) => {
    for (const one of [method].flat()) routes.push(`${one} ${url}`)
  })
  const price = { input: 1_000, output: 1_000 }
  const tenant = { maxOutputTokens: 10, maxRequestUsd: false as const, budget: { usd: 1 } }
  const { settings, hash } = readConfig({
    store: `sqlite:${join(folder, 'gateway.db')}`,
    models: { test: { targets: [{ provider: 'echo', model: 'echo', price }] } },
    tenants: { acme: tenant, other: tenant, public: tenant },
    budget: { dailyLimitUsd: 100 },
    ...own,
    plugins: {
      auth: { adminToken },
      rateLimit: false,
      signing: { secret: 'the secret that signs, which is long enough', receipts: { privateKey: receiptKey } },
      ...own.plugins
    }
  })
  const source = async () => ({ ...settings, hash })
  await app.register(modelGateway, { standalone: { settings, hash, source, log: app.log, adminTokenGenerated: false } })
  await app.ready()
  return { app, routes }
}

async function keyOf(app: FastifyInstance, tenant: string, options = {}): Promise<string> {
  return (await keysOf(app).create(tenant, options, 'test')).secret
}

/** One of each kind, and what it comes to at the three kinds of routes; null: the route's own status. */
async function credentials(app: FastifyInstance) {
  const revoked = await keysOf(app).create('acme', {}, 'test')
  await keysOf(app).revoke('acme', revoked.key.id, 'test')
  const removed = await (async () => {
    await freshTenant(app, -1)
    const secret = await keyOf(app, 'fresh--1', { scopes: ['chat', 'admin'] })
    await tenantsOf(app).remove('fresh--1', 'test')
    return secret
  })()
  const stranger = { open: null, key: 401, admin: 401 }
  const caller = { open: null, key: null, admin: 403 }
  const administrator = { open: null, key: null, admin: null }
  return [
    { name: 'no credential', secret: null, ...stranger },
    { name: 'a wrong one', secret: 'sk-not-from-here', ...stranger },
    { name: 'a made-up key', secret: `gw_aaaaaaaaaaaa_${'A'.repeat(55)}`, ...stranger },
    { name: 'a key with a wrong end', secret: `${(await keyOf(app, 'acme')).slice(0, -1)}!`, ...stranger },
    { name: 'an expired key', secret: await keyOf(app, 'acme', { expiresAt: Date.now() - 1 }), ...stranger },
    {
      name: 'an expired key of an administrator',
      secret: await keyOf(app, 'acme', { expiresAt: Date.now() - 1, scopes: ['chat', 'admin'] }),
      ...stranger
    },
    { name: 'a revoked key', secret: revoked.secret, ...stranger },
    { name: 'a key of a tenant that is gone', secret: removed, ...stranger },
    { name: 'a key of the tenant', secret: await keyOf(app, 'acme'), ...caller },
    { name: 'a key of another tenant', secret: await keyOf(app, 'other'), ...caller },
    {
      name: 'a key with both scopes',
      secret: await keyOf(app, 'acme', { scopes: ['chat', 'admin'] }),
      ...administrator
    },
    { name: 'the admin token', secret: adminToken, ...administrator }
  ]
}

async function ask(app: FastifyInstance, route: string, secret: string | null, body?: object) {
  const [method, url] = route.split(' ')
  const response = await app.inject({
    method: method as 'GET',
    url: url!,
    headers: secret === null ? {} : { authorization: `Bearer ${secret}` },
    payloadAsStream: table[route]?.endless === true,
    ...(body === undefined ? {} : { payload: body })
  })
  if (!table[route]?.endless) return response
  const { statusCode } = response
  let text = ''
  if (statusCode === 200) response.stream().destroy()
  else for await (const part of response.stream()) text += part
  return { statusCode, json: () => JSON.parse(text) }
}

t.test('every route is in the table, and every row of the table is a route', async t => {
  const { routes } = await build(t)
  const heads = Object.entries(table)
    .filter(([route, { head }]) => route.startsWith('GET ') && head !== false)
    .map(([route]) => route.replace('GET', 'HEAD'))
  t.strictSame([...new Set(routes)].sort(), [...Object.keys(table), ...heads].sort())
})

t.test('who may do what', async t => {
  const { app } = await build(t)
  let number = 0
  for (const { name, secret, ...expected } of await credentials(app)) {
    await t.test(name, async t => {
      for (const [route, row] of Object.entries(table)) {
        const [method = '', path = ''] = route.split(' ')
        for (const verb of method === 'GET' && row.head !== false ? ['GET', 'HEAD'] : [method]) {
          const url = (await row.at?.(app, ++number)) ?? path
          const response = await ask(app, `${verb} ${url}`, secret, row.body?.(++number))
          t.equal(response.statusCode, expected[row.who] ?? row.status, `${verb} ${path}`)
          const code = { 401: 'invalid_api_key', 403: 'missing_scope' }[response.statusCode]
          if (code !== undefined && verb !== 'HEAD') t.equal(response.json().error.code, code)
        }
      }
    })
  }
})

t.test('a key that may only administer calls no model', async t => {
  const { app } = await build(t)
  const secret = await keyOf(app, 'acme', { scopes: ['admin'] })
  const response = await ask(app, 'POST /v1/chat/completions', secret, chat())
  t.equal(response.statusCode, 403)
  t.equal(response.json().error.code, 'missing_scope')
  t.equal((await ask(app, 'GET /api/tenants', secret)).statusCode, 200)
})

t.test('where anonymous access is open, administration is not', async t => {
  const { app } = await build(t, { plugins: { auth: {} } })
  t.equal((await ask(app, 'POST /v1/chat/completions', null, chat())).statusCode, 200)
  for (const [route, row] of Object.entries(table)) {
    if (row.who !== 'admin') continue
    for (const secret of [null, 'not-needed', '', adminToken]) {
      t.equal((await ask(app, route, secret, row.body?.(0))).statusCode, 401, `${route} with ${secret}`)
    }
  }
})

t.test('without the plugin auth there is no administration at all', async t => {
  const { app } = await build(t, { plugins: { auth: false } })
  for (const [route, row] of Object.entries(table)) {
    if (row.who === 'admin') t.equal((await ask(app, route, adminToken, row.body?.(0))).statusCode, 404, route)
  }
})

t.test('no other spelling of a path leads past the door', async t => {
  const { app } = await build(t)
  const secret = await keyOf(app, 'acme')
  for (const path of [
    '/API/tenants',
    '/api//tenants',
    '//api/tenants',
    '/api/tenants/',
    '/api/tenants;x=1',
    '/%61pi/tenants',
    '/api/%74enants',
    '/v1/../api/tenants',
    '/health/../api/tenants',
    '/api/tenants%3f',
    '/api/tenants?limit=1',
    '/api/tenants#x'
  ]) {
    const { statusCode } = await ask(app, `GET ${path}`, secret)
    t.ok([403, 404].includes(statusCode), `${path}: ${statusCode}`)
    t.ok([401, 404].includes((await ask(app, `GET ${path}`, null)).statusCode), `${path} without a credential`)
  }
})

t.test('a key cannot name another tenant', async t => {
  const { app } = await build(t)
  const secret = await keyOf(app, 'acme')
  for (const tenant of ['other', 'public', 'nobody', '__proto__']) {
    const response = await ask(app, 'POST /v1/chat/completions', secret, { ...chat(), tenant })
    t.equal(response.statusCode, 403, tenant)
    t.equal(response.json().error.code, 'tenant_mismatch', 'whether it exists is not told')
  }
  const { data } = (await ask(app, 'GET /api/tenants', adminToken)).json()
  for (const { id, spend_usd, requests } of data) t.strictSame([spend_usd, requests], [0, 0], id)
})

t.test('what a tenant spends is its own alone, and when nothing is left others go on', async t => {
  const { app } = await build(t)
  const [acme, other] = [await keyOf(app, 'acme'), await keyOf(app, 'other')]
  let status = 200
  let calls = 0
  while (status === 200 && calls < 1_000) {
    status = (await ask(app, 'POST /v1/chat/completions', acme, chat())).statusCode
    if (status === 200) calls++
  }
  t.equal(status, 429, `after ${calls} calls`)
  t.equal((await ask(app, 'POST /v1/chat/completions', other, chat())).statusCode, 200)

  const shown = async (id: string) => (await ask(app, `GET /api/tenants/${id}`, adminToken)).json()
  const [a, b] = [await shown('acme'), await shown('other')]
  t.equal(a.requests, calls)
  t.equal(b.requests, 1)
  t.ok(b.spend_usd > 0 && Math.abs(a.spend_usd - calls * b.spend_usd) < 1e-9, `${a.spend_usd} and ${b.spend_usd}`)
  t.ok(a.spend_usd <= 1)
  t.ok(b.records.every((record: { tenant: string }) => record.tenant === 'other'))
})

t.test('the limits of a tenant are its own', async t => {
  const { app } = await build(t, {
    tenants: {
      acme: { requestsPerMinute: 2, budget: false, maxRequestUsd: false },
      other: { budget: false, maxRequestUsd: false }
    }
  })
  const [acme, other] = [await keyOf(app, 'acme'), await keyOf(app, 'other')]
  const statuses = []
  for (let call = 0; call < 3; call++) {
    statuses.push((await ask(app, 'POST /v1/chat/completions', acme, chat())).statusCode)
  }
  t.strictSame(statuses, [200, 200, 429])
  t.equal((await ask(app, 'POST /v1/chat/completions', other, chat())).statusCode, 200)
})

t.test('a stored answer is given only to whom it was given before', async t => {
  const { app } = await build(t)
  const headers = { 'idempotency-key': 'the-same-for-both' }
  const call = async (secret: string) =>
    app.inject({
      method: 'POST',
      url: '/v1/chat/completions',
      headers: { ...headers, authorization: `Bearer ${secret}` },
      payload: chat()
    })
  for (const tenant of ['acme', 'other']) t.equal((await call(await keyOf(app, tenant))).statusCode, 200)
  for (const tenant of ['acme', 'other']) {
    const { data } = (await ask(app, `GET /api/tenants/${tenant}/records`, adminToken)).json()
    t.equal(data.length, 1, `${tenant} has paid for its own`)
  }
})
