import { createHash } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { createMint } from '../../../plugins/auth/mint.ts'
import type { Principal } from '../../../schemas/gateway.ts'
import type { ApiKey, KeyOptions } from '../../../schemas/tenants.ts'
import { ask, textOf } from '../kernel.ts'
import {
  type FakeStore,
  fakeClock,
  fakeRedis,
  fakeStore,
  type ProcessOptions,
  refusedKey,
  start,
  tenant
} from './kit.ts'

const keyNotFound = { code: 'GATEWAY_KEY_NOT_FOUND', statusCode: 404 }
const invalid = { code: 'GATEWAY_INVALID_REQUEST', statusCode: 400 }
const gone = { code: 'GATEWAY_STORE_UNAVAILABLE', statusCode: 503 }
const day = 86_400_000

async function process(t: Test, options: ProcessOptions = {}) {
  const store = options.store ?? fakeStore()
  const clock = fakeClock()
  const started = await start(t, { now: clock.now, tenants: { tenants: { acme: {}, globex: {} } }, ...options, store })
  await started.app.ready()
  const keys = started.gateway.keys!
  const make = (said: KeyOptions = {}, of = 'acme') => keys.create(of, said, 'admin')
  return { ...started, store: store as FakeStore, clock, keys, make }
}

/** Reads of keys since the start. */
const reads = (store: FakeStore) => store.asked.filter(what => what.startsWith('keys.get')).length

// making

t.test('a key has an id, 256 random bits and a checksum; only its hash is stored', async t => {
  const { store, clock, make } = await process(t)
  const { key, secret } = await make({ name: 'ci', expiresAt: clock.time + day })
  t.match(secret, /^gw_[0-9a-z]{12}_[\w-]{43}[\w-]{12}$/)
  t.equal(secret.slice(3, 15), key.id)
  t.same(key, {
    id: key.id,
    tenant: 'acme',
    name: 'ci',
    scopes: ['chat'],
    hash: createHash('sha256').update(secret).digest('base64url'),
    budget: null,
    requestsPerMinute: null,
    tokensPerMinute: null,
    concurrency: null,
    expiresAt: clock.time + day,
    createdAt: clock.time,
    lastUsedAt: null,
    revokedAt: null,
    rotatedTo: null,
    account: null
  } satisfies ApiKey)
  const stored = [...store.rows.keys.values()].join()
  t.match(stored, key.hash)
  t.notMatch(stored + JSON.stringify(store.log), secret.slice(16, 40))
})

t.test('keys and ids never repeat', async t => {
  const mint = createMint('s')
  const made = Array.from({ length: 10_000 }, () => mint.make())
  t.equal(new Set(made.map(({ id }) => id)).size, 10_000)
  t.equal(new Set(made.map(({ secret }) => secret)).size, 10_000)
})

t.test('a key carries what it was made with', async t => {
  const { make, by } = await process(t)
  const { key, secret } = await make({
    scopes: ['chat', 'admin'],
    budget: { limit: 5, period: 'day' },
    requestsPerMinute: 1,
    tokensPerMinute: 2,
    concurrency: 3
  })
  t.same(await by(secret), { tenant: 'acme', key: key.id, kind: 'key', scopes: ['chat', 'admin'], apiKey: key })
})

t.test('changes are audited without the hash', async t => {
  const { store, keys, make } = await process(t)
  const { key } = await make()
  const { key: next } = await keys.rotate('acme', key.id, day, 'root')
  await keys.revoke('acme', next.id, 'root')
  t.same(
    store.log.map(({ actor, action, subject }) => [actor, action, subject]),
    [
      ['admin', 'key.create', key.id],
      ['root', 'key.rotate', key.id],
      ['root', 'key.revoke', next.id]
    ]
  )
  t.notMatch(JSON.stringify(store.log), 'hash')
  t.notMatch(JSON.stringify(store.log), key.hash)
  t.match(store.log[2], { before: { revokedAt: null }, after: { tenant: 'acme' } })
})

t.test('a key is made for tenants that exist, configured or stored', async t => {
  const { keys, gateway } = await process(t)
  await t.rejects(keys.create('nobody', {}, 'admin'), { code: 'GATEWAY_TENANT_NOT_FOUND' })
  await gateway.tenants!.create(tenant('stored'), 'admin')
  t.equal((await keys.create('stored', {}, 'admin')).key.tenant, 'stored')
  t.equal((await keys.create('public', {}, 'admin')).key.tenant, 'public')
})

t.test('a scope that is none is refused', async t => {
  const { keys } = await process(t)
  const said = JSON.parse('{"scopes":["chat","root"]}')
  await t.rejects(keys.create('acme', said, 'admin'), invalid)
})

t.test('without the plugin tenants, keys are made for configured tenants', async t => {
  const store = fakeStore()
  const { gateway, by } = await start(t, { store, tenants: false, auth: { tenants: { acme: {} } } })
  const { secret } = await gateway.keys!.create('acme', {}, 'admin')
  t.match(await by(secret), { tenant: 'acme' })
  await t.rejects(gateway.keys!.create('nobody', {}, 'admin'), { code: 'GATEWAY_TENANT_NOT_FOUND' })
})

t.test('without a store there are no keys', async t => {
  const { gateway, authenticate } = await start(t)
  t.equal(gateway.keys, undefined)
  const { secret } = createMint('s').make()
  t.throws(() => authenticate({ 'x-api-key': secret }), refusedKey)
})

// showing

t.test('a key that is in memory is known at once, any other after one read', async t => {
  const { store, make } = await process(t)
  const { secret, key } = await make()
  const other = await process(t, { store })
  const first = other.authenticate({ 'x-api-key': secret })
  t.ok(first instanceof Promise)
  const [a, b] = await Promise.all([first, other.authenticate({ 'x-api-key': secret })])
  t.match(a, { key: key.id })
  t.equal(a, b)
  const again = other.authenticate({ 'x-api-key': secret })
  t.notOk(again instanceof Promise)
  t.equal(again, a)
  t.equal(reads(store), 1)
})

t.test('a made-up key is refused at once and without a read, also by who holds a real one', async t => {
  const { store, make, authenticate } = await process(t)
  const { secret } = await make()
  const before = store.asked.length
  const letters = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_'
  for (let index = 3; index < secret.length; index++) {
    const changed =
      index < 15 ? (secret[index] === '0' ? '1' : '0') : letters[(letters.indexOf(secret[index]!) + 1) % 64]
    const forged = secret.slice(0, index) + (index === 15 ? 'x' : changed) + secret.slice(index + 1)
    t.throws(() => authenticate({ 'x-api-key': forged }), refusedKey)
  }
  for (let n = 0; n < 1_000; n++) {
    const forged = createMint('a secret of somebody else').make().secret
    t.throws(() => authenticate({ 'x-api-key': forged }), refusedKey)
  }
  t.equal(store.asked.length, before)
})

t.test('a key that is not there any more is read once', async t => {
  const { store, keys, make, by } = await process(t)
  const { key, secret } = await make()
  store.rows.keys.clear()
  const other = await process(t, { store })
  for (let n = 0; n < 10; n++) await t.rejects(other.by(secret), refusedKey)
  t.equal(reads(store), 1)
  t.equal((await by(secret)).key, key.id)
  t.ok(keys)
})

t.test('a process that starts later knows the keys of the earlier one', async t => {
  const { store, make } = await process(t)
  const { secret } = await make()
  const later = await process(t, { store })
  t.match(await later.by(secret), { tenant: 'acme' })
})

t.test('a million keys cost nothing at the start', async t => {
  const store = fakeStore()
  const text = JSON.stringify({ id: 'x' })
  for (let n = 0; n < 1_000_000; n++) store.rows.keys.set(`k${n}`, text)
  await process(t, { store })
  t.same(store.asked, ['setting key_checksum', 'keys.any'])
})

t.test('keys in memory are bounded', async t => {
  const { store, make } = await process(t)
  const secrets = []
  for (let n = 0; n < 50; n++) secrets.push((await make()).secret)
  const other = await process(t, { store, auth: { kept: 5 } })
  for (const secret of secrets) await other.by(secret)
  t.equal(reads(store), 50)
  await other.by(secrets[0]!)
  t.equal(reads(store), 51)
  await other.by(secrets[49]!)
  t.equal(reads(store), 51)
})

t.test('keys are compared in constant time', async t => {
  const source = readFileSync(join(import.meta.dirname, '../../../plugins/auth/keys.ts'), 'utf8')
  t.match(source, 'timingSafeEqual(found.digest, digest)')
  t.notMatch(source, /hash\s*===/)
})

t.test('the right checksum with the wrong hash is refused', async t => {
  const { store, make } = await process(t)
  const { key, secret } = await make()
  store.rows.keys.set(key.id, JSON.stringify({ ...key, hash: Buffer.alloc(32).toString('base64url') }))
  const other = await process(t, { store })
  await t.rejects(other.by(secret), refusedKey)
})

// ending

t.test('a key ends at its expiry, to the millisecond, in memory too', async t => {
  const { clock, make, by } = await process(t)
  const { secret } = await make({ expiresAt: clock.time + 1_000 })
  clock.time += 999
  t.match(await by(secret), { tenant: 'acme' })
  clock.time += 1
  await t.rejects(by(secret), refusedKey)
  clock.time -= 1
  t.match(await by(secret), { tenant: 'acme' })
})

t.test('a revoked key is refused at once, and stays so', async t => {
  const { clock, keys, make, by } = await process(t)
  const { key, secret } = await make()
  await by(secret)
  const revoked = await keys.revoke('acme', key.id, 'admin')
  t.equal(revoked.revokedAt, clock.time)
  await t.rejects(by(secret), refusedKey)
  clock.time += day
  t.same(await keys.revoke('acme', key.id, 'admin'), revoked, 'once is enough')
})

t.test('a key that is being read while it is revoked does not come back', async t => {
  const { store, keys, make } = await process(t)
  const { key, secret } = await make()
  const other = await process(t, { store, shared: undefined })
  const { promise, resolve } = Promise.withResolvers<void>()
  store.gate = promise
  const reading = other.by(secret)
  await new Promise(setImmediate)
  store.gate = null
  await other.keys.revoke('acme', key.id, 'admin')
  resolve()
  await reading.catch(() => {})
  await t.rejects(other.by(secret), refusedKey)
  t.ok(keys)
})

t.test('revoked in one process, refused in the other at once', async t => {
  const store = fakeStore()
  const redis = fakeRedis()
  const one = await process(t, { store, shared: redis() })
  const two = await process(t, { store, shared: redis() })
  const { key, secret } = await one.make()
  t.match(await two.by(secret), { key: key.id })
  await one.keys.revoke('acme', key.id, 'admin')
  await t.rejects(two.by(secret), refusedKey)
})

t.test('while Redis is down, revoked in one process, refused in the other after a second', async t => {
  const store = fakeStore()
  const redis = fakeRedis()
  const clock = fakeClock()
  const [a, b] = [redis(), redis()]
  const one = await process(t, { store, shared: a, now: clock.now })
  const two = await process(t, { store, shared: b, now: clock.now })
  const { key, secret } = await one.make()
  await two.by(secret)
  a.cut()
  b.cut()
  await one.keys.revoke('acme', key.id, 'admin')
  clock.time += 1_000
  await t.rejects(two.by(secret), refusedKey)
})

t.test('what was missed while Redis was down is known when it is back', async t => {
  const store = fakeStore()
  const redis = fakeRedis()
  const [a, b] = [redis(), redis()]
  const one = await process(t, { store, shared: a })
  const two = await process(t, { store, shared: b })
  const { key, secret } = await one.make()
  await two.by(secret)
  b.cut()
  await one.keys.revoke('acme', key.id, 'admin')
  b.mend()
  await t.rejects(two.by(secret), refusedKey)
})

t.test('a rotated key works beside its successor until the overlap is over', async t => {
  const { clock, keys, make, by } = await process(t)
  const { key, secret } = await make({
    name: 'ci',
    scopes: ['chat', 'admin'],
    concurrency: 3,
    budget: { limit: 1, period: 'day' }
  })
  const rotated = await keys.rotate('acme', key.id, 60_000, 'admin')
  t.match(rotated.key, {
    name: 'ci',
    scopes: ['chat', 'admin'],
    concurrency: 3,
    budget: { limit: 1, period: 'day' },
    expiresAt: null
  })
  t.not(rotated.key.id, key.id)
  t.same(rotated.old, { ...key, rotatedTo: rotated.key.id, expiresAt: clock.time + 60_000 })
  clock.time += 59_999
  t.match(await by(secret), { key: key.id })
  t.match(await by(rotated.secret), { key: rotated.key.id })
  clock.time += 1
  await t.rejects(by(secret), refusedKey)
  t.match(await by(rotated.secret), { key: rotated.key.id })
})

t.test('an overlap makes no key live longer, and may be none', async t => {
  const { clock, keys, make, by } = await process(t)
  const short = await make({ expiresAt: clock.time + 10 })
  const rotated = await keys.rotate('acme', short.key.id, day, 'admin')
  t.equal(rotated.old.expiresAt, clock.time + 10)
  t.equal(rotated.key.expiresAt, clock.time + 10)
  const now = await make()
  await keys.rotate('acme', now.key.id, 0, 'admin')
  await t.rejects(by(now.secret), refusedKey)
})

t.test('what has ended or was rotated before cannot be rotated', async t => {
  const { clock, keys, make } = await process(t)
  const revoked = await make()
  await keys.revoke('acme', revoked.key.id, 'admin')
  const expired = await make({ expiresAt: clock.time + 1 })
  clock.time += 1
  const rotated = await make()
  await keys.rotate('acme', rotated.key.id, day, 'admin')
  for (const { key } of [revoked, expired, rotated]) {
    await t.rejects(keys.rotate('acme', key.id, day, 'admin'), invalid)
  }
})

t.test('revoked and rotated at the same time, in two processes: revoked it stays', async t => {
  for (let round = 0; round < 20; round++) {
    const store = fakeStore()
    const redis = fakeRedis()
    const one = await process(t, { store, shared: redis() })
    const two = await process(t, { store, shared: redis() })
    const { key, secret } = await one.make()
    const rotate = () => two.keys.rotate('acme', key.id, day, 'b')
    const revoke = () => one.keys.revoke('acme', key.id, 'a')
    const early = round % 2 ? rotate() : null
    const revoking = revoke()
    const rotated = await (early ?? rotate()).then(
      () => true,
      () => false
    )
    await revoking
    t.equal((await store.keys.get(key.id))?.rotatedTo !== null, rotated)
    await t.rejects(one.by(secret), refusedKey)
    await t.rejects(two.by(secret), refusedKey)
    t.ok((await store.keys.get(key.id))?.revokedAt)
  }
})

t.test('keys of another tenant do not exist', async t => {
  const { keys, make, by } = await process(t)
  const { key, secret } = await make()
  await t.rejects(keys.revoke('globex', key.id, 'admin'), keyNotFound)
  await t.rejects(keys.rotate('globex', key.id, day, 'admin'), keyNotFound)
  t.same(await keys.list('globex', { limit: 10 }), [])
  t.match(await keys.list('acme', { limit: 10 }), [{ id: key.id }])
  t.match(await by(secret), { tenant: 'acme' })
})

t.test('an id that is none is not looked for and not repeated: it may be the key itself', async t => {
  const { store, keys, make } = await process(t)
  const { secret } = await make()
  const before = store.asked.length
  for (const id of [secret, '', '__proto__', "' OR 1=1", 'x'.repeat(10_000), 'ä'.repeat(12), 'ABCDEFGHIJKL']) {
    await t.rejects(keys.revoke('acme', id, 'admin'), { ...keyNotFound, message: 'The key `…` does not exist.' })
    await t.rejects(keys.rotate('acme', id, day, 'admin'), keyNotFound)
  }
  t.equal(store.asked.length, before)
  await t.rejects(keys.revoke('acme', 'abcdefghijkl', 'admin'), keyNotFound)
})

t.test('with its tenant a key ends, in every process, and does not come back with the name', async t => {
  const store = fakeStore()
  const redis = fakeRedis()
  const one = await process(t, { store, shared: redis() })
  const two = await process(t, { store, shared: redis() })
  await one.gateway.tenants!.create(tenant('brief'), 'admin')
  const { secret } = await one.make({}, 'brief')
  t.match(await one.by(secret), { tenant: 'brief' })
  t.match(await two.by(secret), { tenant: 'brief' })
  await one.gateway.tenants!.remove('brief', 'admin')
  await one.gateway.tenants!.create(tenant('brief'), 'admin')
  await t.rejects(one.by(secret), refusedKey)
  await t.rejects(two.by(secret), refusedKey)
})

// scopes

t.test('a key without the scope chat may not call models', async t => {
  const { gateway, make, by } = await process(t)
  const call = async (secret: string) => gateway.complete(ask, { ...gateway.caller(), principal: await by(secret) })
  const { secret: chat } = await make()
  const { secret: admin } = await make({ scopes: ['admin'] })
  t.equal(await textOf(await call(chat)), 'up says')
  await t.rejects(call(admin), { code: 'GATEWAY_MISSING_SCOPE', statusCode: 403 })
})

t.test('a key with the scope admin still calls for its own tenant only', async t => {
  const { gateway, make, by } = await process(t)
  const { secret } = await make({ scopes: ['chat', 'admin'] })
  const principal = await by(secret)
  t.throws(() => gateway.actFor!(principal, 'globex'), { code: 'GATEWAY_TENANT_MISMATCH' })
})

// last use

t.test('the last use is written once a minute and key, in batches', async t => {
  const { app, store, clock, keys, make, by } = await process(t)
  const [a, b] = [await make(), await make()]
  for (let n = 0; n < 100; n++) {
    await by(a.secret)
    clock.time += 100
  }
  await by(b.secret)
  const at = clock.time
  t.match(
    await keys.list('acme', { limit: 10 }),
    [a, b]
      .map(({ key }) => ({ id: key.id, lastUsedAt: key === b.key ? at : at - 10_000 }))
      .sort((x, y) => (x.id < y.id ? -1 : 1)),
    'shown before it is written'
  )
  clock.time += 60_000
  await by(a.secret)
  t.equal(store.touched.length, 0)
  await app.close()
  t.same(store.touched, [
    [
      { id: a.key.id, at: at + 60_000 },
      { id: b.key.id, at }
    ]
  ])
})

t.test('uses are written by themselves after a while', async t => {
  const store = fakeStore()
  const { promise, resolve } = Promise.withResolvers<void>()
  const touch = store.keys.touch
  Object.assign(store.keys, { touch: (uses: Parameters<typeof touch>[0]) => touch(uses).then(resolve) })
  const { make, by, clock } = await process(t, { store, auth: { usesEvery: 5 } })
  const { key, secret } = await make()
  await by(secret)
  // The timer holds no process: this does, for as long as the test waits.
  const held = setInterval(() => {}, 1_000)
  await promise
  clearInterval(held)
  t.same(store.touched, [[{ id: key.id, at: clock.time }]])
})

t.test('a refused key counts as no use', async t => {
  const { app, store, keys, make, by } = await process(t)
  const { key, secret } = await make()
  await keys.revoke('acme', key.id, 'admin')
  await t.rejects(by(secret), refusedKey)
  await app.close()
  t.same(store.touched, [])
})

t.test('uses that cannot be written harm nobody', async t => {
  const { app, store, make, by } = await process(t)
  const { secret } = await make()
  await by(secret)
  store.up = false
  await app.close()
  t.same(store.touched, [])
})

// the store is gone

t.test('while the store is gone, keys in memory work, others are 503: never 401, never in', async t => {
  const { store, make, by, authenticate } = await process(t, { auth: { anonymousTenant: 'public' } })
  const { secret } = await make()
  const cold = await process(t, { store, auth: { anonymousTenant: 'public' } })
  store.up = false
  t.match(await by(secret), { tenant: 'acme' })
  await t.rejects(cold.by(secret), gone)
  t.throws(() => authenticate({ 'x-api-key': 'gw_made-up' }), refusedKey)
  store.up = true
  t.match(await cold.by(secret), { tenant: 'acme' })
})

t.test('a start without the store fails', async t => {
  const store = fakeStore()
  store.up = false
  await t.rejects(start(t, { store }), gone)
})

// anonymous access

t.test('a key of anybody closes anonymous access, here, in other processes and after a start', async t => {
  const store = fakeStore()
  const redis = fakeRedis()
  const one = await process(t, { store, shared: redis() })
  const two = await process(t, { store, shared: redis() })
  t.match(one.authenticate({}), { kind: 'anonymous' })
  t.match(two.authenticate({}), { kind: 'anonymous' })
  await one.make()
  t.throws(() => one.authenticate({}), refusedKey)
  t.throws(() => two.authenticate({}), refusedKey)
  const three = await process(t, { store })
  t.throws(() => three.authenticate({}), refusedKey)
})

t.test('a named anonymous tenant stays open beside keys', async t => {
  const { make, authenticate } = await process(t, { auth: { anonymousTenant: 'public' } })
  await make()
  t.match(authenticate({}) as Principal, { kind: 'anonymous', tenant: 'public' })
})
