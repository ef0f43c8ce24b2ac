import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { type CryptoKey, exportJWK, generateKeyPair, type JWTPayload, SignJWT, UnsecuredJWT } from 'jose'
import t, { type Test } from 'tap'
import type { JwtOptions } from '../../../plugins/auth/jwt.ts'
import type { Principal } from '../../../schemas/gateway.ts'
import { ask, textOf } from '../kernel.ts'
import { fakeStore, type ProcessOptions, refusedKey, start } from './kit.ts'

const issuer = 'https://id.example'
const audience = 'gateway'
const unavailable = { code: 'GATEWAY_AUTH_UNAVAILABLE', statusCode: 503, wire: 'auth_unavailable' }

/** An issuer with a real endpoint for its keys. */
async function startIssuer(t: Test) {
  const published: object[] = []
  const state = { requests: 0, status: 200, silent: false }
  const server = createServer((_request, response) => {
    state.requests++
    if (state.silent) return
    response.writeHead(state.status, { 'content-type': 'application/json' }).end(JSON.stringify({ keys: published }))
  })
  await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
  t.teardown(() => {
    server.closeAllConnections()
    server.close()
  })
  const { port } = server.address() as AddressInfo

  /** A key of the issuer's; published, unless a test keeps it back. */
  async function key(kid: string, algorithm = 'ES256', publish = true) {
    const { privateKey, publicKey } = await generateKeyPair(algorithm, { extractable: true })
    const jwk = { ...(await exportJWK(publicKey)), kid, alg: algorithm, use: 'sig' }
    if (publish) published.push(jwk)
    return { kid, algorithm, privateKey, publicKey, jwk }
  }
  return { state, published, key, jwksUri: `http://127.0.0.1:${port}/keys` }
}

interface Signer {
  kid?: string
  algorithm: string
  privateKey: CryptoKey
}

function sign(
  { kid, algorithm, privateKey }: Signer,
  claims: JWTPayload = {},
  lifetime: string | number | null = '5m'
) {
  const token = new SignJWT({ iss: issuer, aud: audience, tenant: 'acme', ...claims })
    .setProtectedHeader({ alg: algorithm, ...(kid && { kid }) })
    .setIssuedAt()
  return (lifetime === null ? token : token.setExpirationTime(lifetime)).sign(privateKey)
}

async function setUp(t: Test, jwt: Partial<JwtOptions> = {}, options: ProcessOptions = {}) {
  const issuing = await startIssuer(t)
  const key = await issuing.key('k1')
  const clock = { ahead: 0, now: () => Date.now() + clock.ahead }
  const settings: JwtOptions = {
    issuer,
    audience,
    jwksUri: issuing.jwksUri,
    algorithms: ['ES256', 'RS256'],
    tenantClaim: 'tenant',
    scopeClaim: 'scope',
    ...jwt
  }
  const started = await start(t, {
    now: clock.now,
    tenants: { tenants: { acme: {} } },
    ...options,
    auth: { jwt: settings, ...options.auth }
  })
  return {
    ...started,
    issuing,
    key,
    clock,
    token: (claims?: JWTPayload, lifetime?: string | number | null) => sign(key, claims, lifetime)
  }
}

t.test('a token is known after one look at the keys of its issuer, and then at once', async t => {
  const { authenticate, token, issuing } = await setUp(t)
  const secret = await token()
  const first = authenticate({ authorization: `Bearer ${secret}` })
  t.ok(first instanceof Promise)
  const principal = await first
  t.same(principal, { tenant: 'acme', key: null, kind: 'jwt', scopes: ['chat'] })
  t.equal(authenticate({ authorization: `Bearer ${secret}` }), principal)
  t.equal(authenticate({ 'x-api-key': secret }), principal)
  t.equal(issuing.state.requests, 1)
})

t.test('many tokens at once fetch the keys once', async t => {
  const { by, token, issuing } = await setUp(t)
  const tokens = await Promise.all(Array.from({ length: 20 }, (_, n) => token({ jti: `t${n}` })))
  for (const principal of await Promise.all(tokens.map(by))) t.match(principal, { kind: 'jwt' })
  t.equal(issuing.state.requests, 1)
})

t.test('issuer, audience, tenant and expiry are required', async t => {
  const { by, token } = await setUp(t)
  const claims: Array<[string, JWTPayload]> = [
    ['another issuer', { iss: 'https://evil.example' }],
    ['no issuer', { iss: undefined }],
    ['another audience', { aud: 'somebody-else' }],
    ['no audience', { aud: undefined }],
    ['an empty audience', { aud: [] }],
    ['not valid yet', { nbf: Math.floor(Date.now() / 1_000) + 600 }],
    ['no tenant', { tenant: undefined }],
    ['a tenant that is no text', { tenant: 5 }],
    ['an empty tenant', { tenant: '' }],
    ['a tenant with a slash', { tenant: 'a/b' }],
    ['a tenant of 10 kB', { tenant: 'a'.repeat(10_000) }],
    ['a list of tenants', { tenant: ['acme'] }]
  ]
  for (const [what, claim] of claims) await t.rejects(by(await token(claim)), refusedKey, what)
  await t.rejects(by(await token({}, null)), refusedKey, 'no expiry')
  await t.rejects(by(await token({}, Math.floor(Date.now() / 1_000) - 60)), refusedKey, 'expired')
  t.match(await by(await token({ aud: ['other', audience] })), { tenant: 'acme' })
})

t.test('a token ends with its expiry, in memory too, but for a difference of clocks', async t => {
  const { by, token, clock } = await setUp(t)
  const secret = await token({}, Math.floor(Date.now() / 1_000) + 60)
  t.match(await by(secret), { tenant: 'acme' })
  clock.ahead = 58_000
  t.match(await by(secret), { tenant: 'acme' })
  clock.ahead = 66_000
  await t.rejects(by(secret), refusedKey)
})

t.test('scopes are taken from the claim: chat and admin, nothing else; without it only chat', async t => {
  const { by, token } = await setUp(t)
  const scopes = async (scope: unknown) => (await by(await token({ scope }))).scopes
  t.same(await scopes(undefined), ['chat'])
  t.same(await scopes('chat admin'), ['chat', 'admin'])
  t.same(await scopes(['admin']), ['admin'])
  t.same(await scopes('openid profile'), [])
  t.same(await scopes('administrator superchat'), [])
  t.same(await scopes(''), [])
  t.same(await scopes(5), [])
  t.same(await scopes({ chat: true }), [])
})

t.test('claims may have other names, and inherited ones are none', async t => {
  const { by, token } = await setUp(t, { tenantClaim: 'https://acme.example/org', scopeClaim: 'permissions' })
  t.match(await by(await token({ 'https://acme.example/org': 'globex', permissions: ['admin'] })), {
    tenant: 'globex',
    scopes: ['admin']
  })
  await t.rejects(by(await token()), refusedKey)
  const inherited = await setUp(t, { tenantClaim: 'constructor' })
  await t.rejects(inherited.by(await inherited.token()), refusedKey)
  const scoped = await setUp(t, { scopeClaim: 'constructor' })
  t.same((await scoped.by(await scoped.token())).scopes, ['chat'])
})

t.test('a token without the scope chat may not call models', async t => {
  const { app, gateway, by, token } = await setUp(t)
  await app.ready()
  const call = async (scope: string) =>
    gateway.complete(ask, { ...gateway.caller(), principal: await by(await token({ scope })) })
  t.equal(await textOf(await call('chat')), 'up says')
  await t.rejects(call('admin'), { code: 'GATEWAY_MISSING_SCOPE', statusCode: 403 })
})

t.test('unsigned tokens, and those signed with what is public, are refused', async t => {
  const { by, issuing, key } = await setUp(t)
  const none = new UnsecuredJWT({ iss: issuer, aud: audience, tenant: 'acme' }).setExpirationTime('5m').encode()
  await t.rejects(by(`${none}c2ln`), refusedKey)
  const shared = new TextEncoder().encode(JSON.stringify(key.jwk))
  for (const algorithm of ['HS256', 'HS384', 'HS512']) {
    const forged = await new SignJWT({ iss: issuer, aud: audience, tenant: 'acme' })
      .setProtectedHeader({ alg: algorithm, kid: 'k1' })
      .setExpirationTime('5m')
      .sign(shared)
    await t.rejects(by(forged), refusedKey, algorithm)
  }
  t.equal(issuing.state.requests, 0, 'nobody was asked for such')
})

t.test('a key that the token brings along is not believed', async t => {
  const { by, issuing } = await setUp(t)
  const own = await issuing.key('k1', 'ES256', false)
  const forged = await new SignJWT({ iss: issuer, aud: audience, tenant: 'acme' })
    .setProtectedHeader({ alg: 'ES256', kid: 'k1', jwk: own.jwk, jku: 'http://127.0.0.1:1/keys' })
    .setExpirationTime('5m')
    .sign(own.privateKey)
  await t.rejects(by(forged), refusedKey)
})

t.test('algorithms that were not configured are refused', async t => {
  const { by, issuing } = await setUp(t, { algorithms: ['RS256'] })
  const rsa = await issuing.key('k2', 'RS256')
  const curve = await issuing.key('k3', 'EdDSA')
  t.match(await by(await sign(rsa)), { tenant: 'acme' })
  await t.rejects(by(await sign(curve)), refusedKey)
})

t.test('secrets shared with an issuer are refused at the start', async t => {
  for (const algorithm of ['HS256', 'none', 'dir', '']) {
    await t.rejects(setUp(t, { algorithms: ['RS256', algorithm] }), /asymmetric/)
  }
  await t.rejects(setUp(t, { algorithms: [] }), /algorithms/)
  await t.rejects(setUp(t, { audience: '' }), /audience/)
})

t.test('one changed character breaks a token', async t => {
  const { by, token } = await setUp(t)
  const secret = await token()
  const [head, body, signature] = secret.split('.') as [string, string, string]
  const claims = JSON.parse(Buffer.from(body, 'base64url').toString())
  const other = Buffer.from(JSON.stringify({ ...claims, tenant: 'globex' })).toString('base64url')
  await t.rejects(by(`${head}.${other}.${signature}`), refusedKey)
  await t.rejects(by(`${head}.${body}.${signature.replace(/^./, c => (c === 'A' ? 'B' : 'A'))}`), refusedKey)
  await t.rejects(by('a.b.c'), refusedKey)
  await t.rejects(by(`${head}.${body}.AAAA`), refusedKey)
  t.match(await by(secret), { tenant: 'acme' })
})

t.test('a refused token is remembered for a while, then looked at again', async t => {
  const { authenticate, token, clock } = await setUp(t)
  const secret = await token({ nbf: Math.floor(Date.now() / 1_000) + 20 })
  await t.rejects(async () => authenticate({ 'x-api-key': secret }), refusedKey)
  t.throws(() => authenticate({ 'x-api-key': secret }), refusedKey)
  clock.ahead = 30_000
  t.match(await authenticate({ 'x-api-key': secret }), { tenant: 'acme' })
})

t.test('a new key of the issuer is fetched, but not for every unknown one', async t => {
  const { by, token, issuing, clock } = await setUp(t)
  await by(await token())
  const realNow = Date.now
  t.teardown(() => {
    Date.now = realNow
  })
  const later = (milliseconds: number) => {
    Date.now = () => realNow() + milliseconds
  }
  const second = await issuing.key('k2')
  const unknown = await issuing.key('k9', 'ES256', false)
  for (let n = 0; n < 20; n++) await t.rejects(by(await sign(unknown, { jti: `a${n}` })), refusedKey)
  t.equal(issuing.state.requests, 1, 'the keys were fetched a moment ago')
  later(31_000)
  t.match(await by(await sign(second)), { tenant: 'acme' })
  t.equal(issuing.state.requests, 2)
  for (let n = 0; n < 20; n++) await t.rejects(by(await sign(unknown, { jti: `b${n}` })), refusedKey)
  t.equal(issuing.state.requests, 2)
  t.equal(clock.ahead, 0)
})

t.test('a token whose key was withdrawn ends within minutes', async t => {
  const { by, token, issuing } = await setUp(t)
  const secret = await token({}, '10h')
  await by(secret)
  const realNow = Date.now
  t.teardown(() => {
    Date.now = realNow
  })
  issuing.published.length = 0
  await issuing.key('k2')
  Date.now = () => realNow() + 11 * 60_000
  await t.rejects(by(secret), refusedKey)
})

t.test('while the issuer cannot be asked: 503, and known tokens work', async t => {
  const { by, token, issuing, clock } = await setUp(t)
  const known = await token()
  await by(known)
  const realNow = Date.now
  t.teardown(() => {
    Date.now = realNow
  })
  issuing.state.status = 500
  t.match(await by(await token({ jti: 'new' })), { tenant: 'acme' }, 'its keys are in memory')
  const cold = await setUp(t)
  cold.issuing.state.status = 500
  const secret = await cold.token()
  await t.rejects(cold.by(secret), unavailable)
  for (let n = 0; n < 20; n++) await t.rejects(cold.by(await cold.token({ jti: `t${n}` })), unavailable)
  t.equal(cold.issuing.state.requests, 1, 'it is not asked for every token')
  t.match(await by(known), { tenant: 'acme' })
  t.equal(clock.ahead, 0)
})

t.test('what an issuer answers that is no list of keys is 503', async t => {
  const { by, token, issuing } = await setUp(t)
  issuing.published.push(...[])
  Object.assign(issuing.published, { toJSON: () => 'nonsense' })
  await t.rejects(by(await token()), unavailable)
})

t.test('an issuer that is silent holds nobody up when the gateway closes', async t => {
  const { app, by, token, issuing } = await setUp(t)
  await app.ready()
  issuing.state.silent = true
  const asked = by(await token())
  while (issuing.state.requests === 0) await new Promise(setImmediate)
  const closed = performance.now()
  await Promise.all([t.rejects(asked, unavailable), app.close()])
  t.ok(performance.now() - closed < 3_000)
})

t.test('jwt closes anonymous access; other credentials keep working', async t => {
  const { authenticate, by } = await setUp(
    t,
    {},
    { tenants: { tenants: { acme: { keys: ['gw_acme'] } } }, auth: { adminToken: 'the-admin-token' } }
  )
  t.throws(() => authenticate({}), refusedKey)
  t.throws(() => authenticate({ 'x-api-key': 'sk-x' }), refusedKey)
  t.match(await by('gw_acme'), { kind: 'key' })
  t.match(await by('the-admin-token'), { kind: 'admin' })
})

t.test('where access is open, a bad token is still refused, and what is no token counts as none', async t => {
  const { by } = await setUp(t, {}, { auth: { anonymousTenant: 'public' } })
  await t.rejects(by('a.b.c'), refusedKey)
  for (const secret of ['a.b', 'a.b.c.d', 'a..c', '.b.c', 'sk-x']) t.match(await by(secret), { kind: 'anonymous' })
})

t.test('without jwt a token is a credential that nobody knows', async t => {
  const { by } = await start(t)
  t.match(await by('a.b.c'), { kind: 'anonymous' })
})

t.test('a token acts for its own tenant only, and makes it on demand', async t => {
  const store = fakeStore()
  const { app, gateway, by, token } = await setUp(t, {}, { store, tenants: { createOnDemand: true } })
  await app.ready()
  const principal: Principal = await by(await token({ tenant: 'brand-new' }))
  t.throws(() => gateway.actFor!(principal, 'public'), { code: 'GATEWAY_TENANT_MISMATCH' })
  t.equal(await textOf(await gateway.complete(ask, { ...gateway.caller(), principal })), 'up says')
  t.match(store.log, [{ actor: 'jwt', action: 'tenant.create', subject: 'brand-new' }])
})

t.test('neither token nor claims reach an error', async t => {
  const { by, token } = await setUp(t)
  const secret = await token({ aud: 'a-private-audience' })
  const error = await by(secret).catch(error => error)
  t.notMatch(`${error}${error.stack}${JSON.stringify(error)}`, 'a-private-audience')
  t.notMatch(`${error}${error.stack}${JSON.stringify(error)}`, secret.slice(0, 20))
})
