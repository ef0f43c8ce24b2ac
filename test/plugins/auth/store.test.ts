import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import Fastify from 'fastify'
import t, { type Test } from 'tap'
import gateway from '../../../plugins/gateway/index.ts'
import routing from '../../../plugins/routing/index.ts'
import shared from '../../../plugins/shared/index.ts'
import storePlugin from '../../../plugins/store/index.ts'
import type { Gateway } from '../../../schemas/gateway.ts'
import { startPostgres, startRedis } from '../../services/index.ts'
import { fakeClock, fakeRedis, refusedKey, start, tenant } from './kit.ts'

// Keys and tenants on real databases and a real Redis.

const day = 86_400_000

/** A store of its own, closed after the test or before it. */
async function openStore(t: Test, url: string, several = false) {
  const app = Fastify()
  t.teardown(() => app.close())
  await app.register(gateway, {})
  await app.register(storePlugin, { url, shared: several })
  return { store: app.gateway.store!, close: () => app.close() }
}

async function folder(t: Test): Promise<string> {
  const directory = await mkdtemp(join(tmpdir(), 'gateway-auth-'))
  t.teardown(() => rm(directory, { recursive: true, force: true }))
  return directory
}

t.test('keys and tenants survive a restart, and the file holds no secret', async t => {
  const directory = await folder(t)
  const url = `sqlite:${join(directory, 'gateway.db')}`
  const clock = fakeClock()
  const first = await openStore(t, url)
  const one = await start(t, { store: first.store, now: clock.now })
  await one.app.ready()
  await one.gateway.tenants!.create(tenant('acme', { maxOutputTokens: 9, metadata: { b: 1, a: [null, 'ü'] } }), 'admin')
  const kept = await one.gateway.keys!.create('acme', { name: 'kept', budget: { limit: 5, period: 'week' } }, 'admin')
  const revoked = await one.gateway.keys!.create('acme', {}, 'admin')
  await one.gateway.keys!.revoke('acme', revoked.key.id, 'admin')
  const rotated = await one.gateway.keys!.rotate('acme', kept.key.id, 1_000, 'admin')
  await one.by(kept.secret)
  await one.app.close()
  await first.close()

  const second = await openStore(t, url)
  const two = await start(t, { store: second.store, now: clock.now })
  await two.app.ready()
  t.match(await two.by(kept.secret), { tenant: 'acme', apiKey: { lastUsedAt: clock.time, rotatedTo: rotated.key.id } })
  t.match(await two.by(rotated.secret), {
    tenant: 'acme',
    apiKey: { name: 'kept', budget: { limit: 5, period: 'week' } }
  })
  await t.rejects(two.by(revoked.secret), refusedKey)
  t.throws(() => two.authenticate({}), refusedKey, 'keys close anonymous access after a restart, too')
  t.match(await two.gateway.tenants!.find('acme'), { maxOutputTokens: 9, metadata: { b: 1, a: [null, 'ü'] } })
  clock.time += 1_000
  await t.rejects(two.by(kept.secret), refusedKey)
  await two.app.close()
  await second.close()
  for (const name of ['gateway.db', 'gateway.db-wal']) {
    const bytes = await readFile(join(directory, name)).catch(() => Buffer.alloc(0))
    for (const { secret } of [kept, revoked, rotated]) t.notOk(bytes.includes(secret.slice(16)), name)
  }
})

t.test('a tenant is removed with its keys', async t => {
  const { store } = await openStore(t, 'sqlite::memory:')
  const { app, gateway, by } = await start(t, { store })
  await app.ready()
  const { tenants, keys } = gateway
  await tenants!.create(tenant('acme'), 'admin')
  const { secret, key } = await keys!.create('acme', {}, 'admin')
  await tenants!.remove('acme', 'admin')
  await tenants!.create(tenant('acme'), 'admin')
  await t.rejects(by(secret), refusedKey)
  t.same(await keys!.list('acme', { limit: 10 }), [])
  await t.rejects(keys!.revoke('acme', key.id, 'admin'), { code: 'GATEWAY_KEY_NOT_FOUND' })
})

/** Two processes on one store change the same things at once. */
async function racing(t: Test, one: Gateway, two: Gateway): Promise<void> {
  await one.tenants!.create(tenant('acme'), 'admin')
  await Promise.all([
    one.tenants!.update('acme', { active: false }, 'a'),
    two.tenants!.update('acme', { maxOutputTokens: 9 }, 'b'),
    one.tenants!.update('acme', { open: true }, 'c'),
    two.tenants!.update('acme', { concurrency: 3 }, 'd')
  ])
  const all = { active: false, maxOutputTokens: 9, open: true, concurrency: 3 }
  t.match(await one.store!.tenants.get('acme'), all)

  for (let round = 0; round < 10; round++) {
    const { key } = await one.keys!.create('acme', {}, 'admin')
    await Promise.allSettled([
      two.keys!.rotate('acme', key.id, day, 'b'),
      one.keys!.revoke('acme', key.id, 'a'),
      two.keys!.rotate('acme', key.id, day, 'c')
    ])
    t.ok((await one.store!.keys.get(key.id))?.revokedAt, 'revoked it stays')
  }
  t.ok((await one.keys!.list('acme', { limit: 1_000 })).length <= 20, 'of two rotations one made a key')
  t.equal((await one.store!.audits.list({ subject: 'acme' }, { limit: 100 })).rows.length, 5)
}

t.test('changes at once lose nothing on SQLite', async t => {
  const { store } = await openStore(t, 'sqlite::memory:')
  const redis = fakeRedis()
  const one = await start(t, { store, shared: redis() })
  const two = await start(t, { store, shared: redis() })
  await racing(t, one.gateway, two.gateway)
})

t.test('on PostgreSQL and Redis', async t => {
  const postgres = await startPostgres(t)
  const redis = await startRedis(t)
  if (postgres === null || redis === null) return
  const url = await postgres.database()

  /** A process with connections of its own. */
  async function process() {
    const { store } = await openStore(t, url, true)
    const side = Fastify()
    t.teardown(() => side.close())
    await side.register(gateway, {})
    await side.register(routing, {})
    side.gateway.decorate('store', store)
    await side.register(shared, { url: redis!.url })
    await side.ready()
    const started = await start(t, { store, shared: side.gateway.shared! })
    await started.app.ready()
    return started
  }
  const one = await process()
  const two = await process()

  await t.test('changes at once lose nothing', t => racing(t, one.gateway, two.gateway))

  await t.test('revoked in one process, refused in the other within a second', async t => {
    const { secret, key } = await one.gateway.keys!.create('public', {}, 'admin')
    t.match(await two.by(secret), { key: key.id })
    await one.gateway.keys!.revoke('public', key.id, 'admin')
    const revoked = performance.now()
    for (;;) {
      const answer = await two.by(secret).catch(error => error.statusCode)
      if (answer === 401) break
      if (performance.now() - revoked > 1_000) return t.fail('it still works')
      await new Promise(setImmediate)
    }
    t.ok(performance.now() - revoked < 1_000)
  })

  await t.test('a process that starts at the same time has the same secret of checksums', async t => {
    const fresh = await postgres!.database()
    const stores = await Promise.all([openStore(t, fresh, true), openStore(t, fresh, true)])
    const [a, b] = await Promise.all(stores.map(({ store }) => start(t, { store })))
    const { secret } = await a!.gateway.keys!.create('public', {}, 'admin')
    t.match(await b!.by(secret), { tenant: 'public' })
  })
})
