import Fastify, { type FastifyInstance } from 'fastify'
import t, { type Test } from 'tap'
import { request } from 'undici'
import auth, { type AuthOptions } from '../../plugins/auth/index.ts'
import gateway from '../../plugins/gateway/index.ts'
import type { Principal } from '../../schemas/gateway.ts'
import { build, hello, stack, towards } from '../helper.ts'
import { startUpstream } from '../upstream.ts'

const path = '/v1/chat/completions'
const adminToken = 'an-admin-token-that-somebody-set'
const tenants = {
  public: { keys: ['gw_public-key'] },
  acme: { keys: ['gw_acme-key-1', 'a-key-of-another-form'] },
  shared: { open: true },
  shut: {}
}

/** The plugin alone, asked as a transport asks it. */
async function alone(t: Test, options: AuthOptions = {}) {
  const app: FastifyInstance = Fastify()
  t.teardown(() => app.close())
  await app.register(gateway, {})
  await app.register(auth, options)
  const ask = (headers: Record<string, string>) => app.gateway.authenticate!({ headers }) as Principal
  const local = (headers: Record<string, string> = {}) => ask({ host: 'localhost:8080', ...headers })
  const actFor = (principal: Principal, tenant: string) => app.gateway.actFor!(principal, tenant)
  return { app, ask, local, actFor }
}

const anonymous = { tenant: 'public', key: null, kind: 'anonymous', scopes: ['chat'] }
const refused = {
  code: 'GATEWAY_INVALID_API_KEY',
  wire: 'invalid_api_key',
  statusCode: 401,
  type: 'invalid_request_error'
}
const notFound = {
  code: 'GATEWAY_TENANT_NOT_FOUND',
  statusCode: 404,
  wire: 'tenant_not_found',
  type: 'invalid_request_error'
}
const mismatch = { code: 'GATEWAY_TENANT_MISMATCH', statusCode: 403, wire: 'tenant_mismatch', type: 'permission_error' }
const bearer = (secret: string) => ({ authorization: `Bearer ${secret}` })

// anonymous access: auto

t.test('without keys, whoever is on this machine is public', async t => {
  const { ask } = await alone(t)
  for (const host of [
    'localhost',
    'localhost:8080',
    'LocalHost:1',
    '127.0.0.1:8080',
    '127.8.9.1',
    '[::1]:8080',
    '[::1]',
    '[::ffff:127.0.0.1]'
  ]) {
    t.same(ask({ host }), anonymous, host)
  }
})

t.test('a Host that is not this machine is refused', async t => {
  const { ask } = await alone(t)
  for (const host of [
    'evil.example',
    'evil.example:8080',
    'localhost.evil.example',
    '127.0.0.1.evil.example',
    '127.0.0.1.nip.io:8080',
    'evil-localhost',
    '128.0.0.1',
    '127.0.0.1@evil.example',
    'localhost:8080.evil.example',
    '0.0.0.0',
    '192.168.0.1',
    '[::2]',
    ''
  ]) {
    t.throws(() => ask({ host }), refused, host)
  }
  t.throws(() => ask({}), refused)
})

t.test('a Host that was local once does not open the door to the next one', async t => {
  const { ask } = await alone(t)
  t.same(ask({ host: 'localhost' }), anonymous)
  t.throws(() => ask({ host: 'evil.example' }), refused)
  t.throws(() => ask({}), refused)
  t.same(ask({ host: 'localhost' }), anonymous)
})

t.test('what came through a proxy is refused', async t => {
  const { local } = await alone(t)
  for (const name of [
    'forwarded',
    'x-forwarded-for',
    'x-forwarded-host',
    'x-forwarded-proto',
    'x-forwarded-anything'
  ]) {
    t.throws(() => local({ [name]: '127.0.0.1' }), refused, name)
    t.throws(() => local({ [name]: '' }), refused, `${name}, empty`)
  }
})

t.test('pages of another origin are refused, those of an allowed one are not', async t => {
  const { local } = await alone(t, { origins: ['https://app.example'] })
  t.same(local({ origin: 'https://app.example' }), anonymous)
  for (const origin of [
    'https://evil.example',
    'http://app.example',
    'https://app.example:444',
    'https://app.example.evil.example',
    'null',
    '',
    'http://localhost:3000'
  ]) {
    t.throws(() => local({ origin }), refused, origin)
  }
})

t.test('an origin that only * allows still needs a key', async t => {
  const { local } = await alone(t, { origins: ['*'] })
  t.throws(() => local({ origin: 'https://evil.example' }), refused)
})

t.test('JSON as text/plain needs a key', async t => {
  const { local } = await alone(t)
  for (const type of ['text/plain', 'text/plain; charset=utf-8', 'text/plain;a=b', 'Text/Plain', 'TEXT/PLAIN']) {
    t.throws(() => local({ 'content-type': type }), refused, type)
  }
  t.same(local({ 'content-type': 'application/json' }), anonymous)
})

t.test('an ADMIN_TOKEN closes anonymous access', async t => {
  const { local } = await alone(t, { adminToken })
  t.throws(() => local(), refused)
  t.throws(() => local(bearer('not-needed')), refused)
})

t.test('a generated admin token does not', async t => {
  const { local } = await alone(t, { adminToken, adminTokenGenerated: true })
  t.same(local(), anonymous)
  t.match(local(bearer(adminToken)), { kind: 'admin' })
})

t.test('a key of any tenant closes anonymous access', async t => {
  const { local } = await alone(t, { tenants: { acme: { keys: ['k-of-acme'] } } })
  t.throws(() => local(), refused)
  t.throws(() => local(bearer('not-needed')), refused)
  t.match(local(bearer('k-of-acme')), { tenant: 'acme' })
})

t.test('a tenant without keys does not', async t => {
  const { local } = await alone(t, { tenants: { acme: {} } })
  t.same(local(), anonymous)
})

t.test('with a key, neither Host, proxy, origin nor content type matters', async t => {
  const { ask } = await alone(t, { tenants })
  const strange = {
    host: 'evil.example',
    origin: 'https://evil.example',
    forwarded: 'for=1.2.3.4',
    'x-forwarded-for': '1.2.3.4',
    'content-type': 'text/plain'
  }
  t.match(ask({ ...strange, ...bearer('gw_acme-key-1') }), { tenant: 'acme', kind: 'key' })
})

// anonymous access: named and off

t.test('a named tenant is open to everybody, whatever keys there are', async t => {
  const { ask } = await alone(t, { anonymousTenant: 'guests', adminToken, tenants })
  const guest = { tenant: 'guests', key: null, kind: 'anonymous', scopes: ['chat'] }
  t.same(ask({ host: 'gateway.example', 'x-forwarded-for': '1.2.3.4', origin: 'https://other.example' }), guest)
  t.same(ask({}), guest)
  t.same(ask(bearer('sk-whatever')), guest)
  t.throws(() => ask(bearer('gw_unknown')), refused)
  t.throws(() => ask({ 'content-type': 'text/plain' }), refused)
})

t.test('false is closed to everybody without a key', async t => {
  const { local } = await alone(t, { anonymousTenant: false })
  t.throws(() => local(), refused)
  t.throws(() => local(bearer('not-needed')), refused)
})

// credentials

t.test('while access is open, a credential that is not of our form counts as none', async t => {
  const { local } = await alone(t)
  for (const secret of ['not-needed', 'sk-proj-1234', 'x', 'Gw_upper', ' gateway'])
    t.same(local(bearer(secret)), anonymous, secret)
  t.same(local({ authorization: 'Basic dXNlcjpwYXNz' }), anonymous)
  t.same(local({ authorization: '' }), anonymous)
  t.same(local({ authorization: 'Bearer ' }), anonymous)
})

t.test('an unknown key of our form is refused even where access is open', async t => {
  const { local } = await alone(t)
  const ways: Array<Record<string, string>> = [
    bearer('gw_unknown'),
    { 'x-api-key': 'gw_unknown' },
    { 'api-key': 'gw_unknown' },
    { authorization: 'gw_unknown' }
  ]
  for (const headers of ways) {
    t.throws(() => local(headers), { ...refused, message: 'This API key is unknown, revoked or expired.' })
  }
})

t.test('a key may come in any of three headers', async t => {
  const { local } = await alone(t, { tenants })
  const acme = { tenant: 'acme', key: 'acme#1', kind: 'key', scopes: ['chat'] }
  t.same(local(bearer('gw_acme-key-1')), acme)
  t.same(local({ authorization: 'bearer   gw_acme-key-1 ' }), acme)
  t.same(local({ 'x-api-key': 'gw_acme-key-1' }), acme)
  t.same(local({ 'api-key': 'gw_acme-key-1' }), acme)
  t.same(local({ 'x-api-key': 'a-key-of-another-form' }), { ...acme, key: 'acme#2' })
})

t.test('a principal never holds the secret', async t => {
  const { local } = await alone(t, { tenants, adminToken })
  t.notMatch(JSON.stringify(local(bearer('gw_acme-key-1'))), /gw_|key-1/)
  t.notMatch(JSON.stringify(local(bearer(adminToken))), /token/)
})

t.test('the same credential twice is one, two different ones are refused', async t => {
  const { local } = await alone(t, { tenants, adminToken })
  t.match(local({ ...bearer('gw_acme-key-1'), 'x-api-key': 'gw_acme-key-1' }), { tenant: 'acme' })
  for (const other of ['gw_public-key', adminToken, 'not-needed']) {
    t.throws(() => local({ ...bearer('gw_acme-key-1'), 'x-api-key': other }), {
      ...refused,
      message: 'This request carries two different credentials.'
    })
    t.throws(() => local({ 'api-key': other, 'x-api-key': 'gw_acme-key-1' }), refused)
  }
  const open = await alone(t)
  t.throws(() => open.local({ ...bearer('one'), 'x-api-key': 'two' }), refused)
})

t.test('a key is the whole key', async t => {
  const { local } = await alone(t, { tenants, adminToken })
  for (const secret of ['gw_acme-key-', 'gw_acme-key-11', 'GW_ACME-KEY-1', adminToken.slice(0, -1), `${adminToken}x`]) {
    t.throws(() => local(bearer(secret)), refused, secret)
  }
})

t.test('names that objects inherit are no keys and no tenants', async t => {
  const { local, actFor } = await alone(t, { tenants, adminToken })
  for (const name of ['__proto__', 'constructor', 'toString']) {
    t.throws(() => local(bearer(name)), refused)
    t.throws(() => actFor(local(bearer(adminToken)), name), notFound)
  }
})

// tenants

t.test('the admin token may name any tenant and is charged to it', async t => {
  const { local, actFor } = await alone(t, { tenants, adminToken })
  const admin = local(bearer(adminToken))
  t.same(admin, { tenant: 'public', key: 'admin', kind: 'admin', scopes: ['chat', 'admin'] })
  for (const tenant of ['public', 'acme', 'shared', 'shut']) t.same(actFor(admin, tenant), { ...admin, tenant })
  t.throws(() => actFor(admin, 'nobody'), notFound)
})

t.test('a key may name its own tenant and no other', async t => {
  const { local, actFor } = await alone(t, { tenants })
  const acme = local(bearer('gw_acme-key-1'))
  t.same(actFor(acme, 'acme'), acme)
  t.throws(() => actFor(acme, 'public'), mismatch)
  t.throws(() => actFor(acme, 'shared'), mismatch)
  t.throws(() => actFor(acme, 'nobody'), mismatch, 'and does not learn which ones exist')
})

t.test('an anonymous caller may name its own tenant and open ones', async t => {
  const { local, actFor } = await alone(t, { tenants: { shared: { open: true }, shut: {} } })
  const public_ = local()
  t.same(actFor(public_, 'public'), anonymous)
  t.same(actFor(public_, 'shared'), { ...anonymous, tenant: 'shared' })
  t.throws(() => actFor(public_, 'shut'), mismatch)
  t.throws(() => actFor(public_, 'nobody'), notFound)
})

t.test('an anonymous caller of a named tenant may not name public unless it is open', async t => {
  const shut = await alone(t, { anonymousTenant: 'guests', tenants: { public: {} } })
  t.throws(() => shut.actFor(shut.local(), 'public'), mismatch)
  const open = await alone(t, { anonymousTenant: 'guests', tenants: { public: { open: true } } })
  t.match(open.actFor(open.local(), 'public'), { tenant: 'public', kind: 'anonymous' })
})

// over HTTP

t.test('a missing key is told in the form of OpenAI, before the body is read', async t => {
  const app = await build(t, { tenants })
  const answer = await app.inject({
    method: 'POST',
    url: path,
    headers: { 'content-type': 'text/csv' },
    payload: '{"broken'
  })
  t.equal(answer.statusCode, 401)
  t.equal(answer.headers['x-should-retry'], 'false')
  t.same(answer.json(), {
    error: {
      message: 'Send an API key: Authorization: Bearer <key>.',
      type: 'invalid_request_error',
      param: null,
      code: 'invalid_api_key'
    }
  })
})

t.test('the tenant that a body names decides, with 404 and 403 as told', async t => {
  const upstream = await startUpstream()
  t.teardown(() => upstream.close())
  const app = await build(t, { ...towards(upstream), tenants, plugins: { auth: { adminToken } } })
  const charged: string[] = []
  app.gateway.intercept('admit', (inference, next) => {
    charged.push(inference.principal.tenant)
    return next(inference)
  })
  const send = async (secret: string, tenant?: string) => {
    const headers = bearer(secret)
    const answer = await app.inject({ method: 'POST', url: path, headers, payload: { ...hello, tenant } })
    return [answer.statusCode, answer.json().error?.code]
  }
  t.same(await send('gw_acme-key-1'), [200, undefined])
  t.same(await send('gw_acme-key-1', 'acme'), [200, undefined])
  t.same(await send(adminToken), [200, undefined])
  t.same(await send(adminToken, 'acme'), [200, undefined])
  t.same(await send('gw_acme-key-1', 'public'), [403, 'tenant_mismatch'])
  t.same(await send('gw_acme-key-1', 'nobody'), [403, 'tenant_mismatch'])
  t.same(await send(adminToken, 'nobody'), [404, 'tenant_not_found'])
  t.same(charged, ['acme', 'acme', 'public', 'acme'])
  t.equal(upstream.requests.length, 4)
  t.equal(app.gateway.running, 0)
})

t.test('auth: false lets everybody in as public', async t => {
  const app = await build(t, { plugins: { auth: false }, providers: { echo: { type: 'echo' } } })
  const answer = await app.inject({
    method: 'POST',
    url: path,
    headers: { host: 'gateway.example', origin: 'https://other.example' },
    payload: { ...hello, model: 'echo/echo' }
  })
  t.equal(answer.statusCode, 200)
})

t.test('anonymous access is for gateways that only this machine can reach', async t => {
  const app = await build(t, { providers: { echo: { type: 'echo' } } })
  const { port } = new URL(await app.listen({ host: '0.0.0.0', port: 0 }))
  const { statusCode, body } = await request(`http://127.0.0.1:${port}/v1/models`)
  await body.dump()
  t.equal(statusCode, 401)
})

t.test('on a loopback address it is open', async t => {
  const app = await build(t, { providers: { echo: { type: 'echo' } } })
  const { port } = new URL(await app.listen({ host: '127.0.0.1', port: 0 }))
  const { statusCode, body } = await request(`http://127.0.0.1:${port}/v1/models`)
  await body.dump()
  t.equal(statusCode, 200)
})

// what a web page could try

const simple = ['text/plain', 'application/x-www-form-urlencoded', 'multipart/form-data; boundary=x']
const pages: Array<[string, Record<string, string>]> = [
  ...simple.map((type): [string, Record<string, string>] => [
    `a plain form post as ${type}`,
    { 'content-type': type, origin: 'https://evil.example' }
  ]),
  ...simple.map((type): [string, Record<string, string>] => [`${type} without an Origin`, { 'content-type': type }]),
  ['text/plain in capitals', { 'content-type': 'TEXT/PLAIN' }],
  ['no content type', {}],
  ['a foreign Origin', { 'content-type': 'application/json', origin: 'https://evil.example' }],
  ['an opaque Origin', { 'content-type': 'application/json', origin: 'null' }],
  ['a name of its own for 127.0.0.1', { 'content-type': 'application/json', host: 'rebound.evil.example' }],
  [
    'that name with its own Origin',
    { 'content-type': 'application/json', host: 'evil.example', origin: 'http://evil.example' }
  ],
  ['a forwarded request', { 'content-type': 'application/json', 'x-forwarded-for': '203.0.113.9' }]
]
t.test('a page on another origin cannot make a keyless gateway spend', async t => {
  const { upstream, url } = await stack(t)
  for (const [what, headers] of pages) {
    for (const where of [path, '/proxy/test']) {
      await t.test(`${what}, to ${where}: refused`, async t => {
        const { statusCode, body } = await request(url + where, {
          method: 'POST',
          headers,
          body: Buffer.from(JSON.stringify(hello))
        })
        const { error } = (await body.json()) as { error: { code: string } }
        t.ok(statusCode === 401 || statusCode === 415, String(statusCode))
        t.ok(['invalid_api_key', 'unsupported_media_type'].includes(error.code))
      })
    }
  }
  await t.test('nor read the models', async t => {
    for (const headers of [{ origin: 'https://evil.example' }, { host: 'rebound.evil.example' }]) {
      const { statusCode, body } = await request(`${url}/v1/models`, { headers })
      await body.dump()
      t.equal(statusCode, 401)
    }
  })
  await t.test('nor get leave from a preflight', async t => {
    const { headers, body } = await request(url + path, {
      method: 'OPTIONS',
      headers: {
        origin: 'https://evil.example',
        'access-control-request-method': 'POST',
        'access-control-request-headers': 'content-type'
      }
    })
    await body.dump()
    t.equal(headers['access-control-allow-origin'], undefined)
  })
  t.equal(upstream.requests.length, 0)
})
