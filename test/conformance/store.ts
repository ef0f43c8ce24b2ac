import { type ChildProcess, fork } from 'node:child_process'
import { once } from 'node:events'
import { fileURLToPath } from 'node:url'
import Fastify, { type FastifyInstance } from 'fastify'
import type { Test } from 'tap'
import gateway from '../../plugins/gateway/index.ts'
import routing from '../../plugins/routing/index.ts'
import store, { type StoreOptions } from '../../plugins/store/index.ts'
import type { recordStatuses } from '../../schemas/ledger.ts'
import type { Store } from '../../schemas/store.ts'
import {
  addOpen,
  addRows,
  apiKey,
  audit,
  backOf,
  expected,
  ids,
  type Seed,
  seed,
  settle,
  tenant
} from './store-rows.ts'

// What the store promises, whatever its database.

/** Makes the URL of an empty database. */
export type Fresh = (t: Test) => Promise<string>

/** A host with a gateway and its store; closed after the test. */
export async function start(t: Test, options: StoreOptions): Promise<{ app: FastifyInstance; store: Store }> {
  const app = Fastify()
  t.teardown(() => app.close())
  await app.register(gateway)
  await app.register(routing, { models: {} })
  await app.register(store, { lockWait: 0, ...options })
  await app.ready()
  return { app, store: app.gateway.store! }
}

/** Why a start was refused. */
export async function refusal(t: Test, options: StoreOptions): Promise<string> {
  return start(t, options).then(
    () => 'it was not refused',
    error => error.message
  )
}

export interface Second {
  readonly process: ChildProcess
  /** The next thing it says. */
  said(): Promise<Record<string, unknown>>
}

/** The same in a process of its own. */
export function second(t: Test, options: StoreOptions): Second {
  const file = fileURLToPath(new URL('./store-process.ts', import.meta.url))
  const child = fork(file, [JSON.stringify({ lockWait: 0, ...options })], { execArgv: [] })
  const heard: object[] = []
  child.on('message', (message: object) => heard.push(message))
  const exited = once(child, 'exit')
  t.teardown(async () => {
    child.kill('SIGKILL')
    await exited
  })
  return {
    process: child,
    async said() {
      while (heard.length === 0) await Promise.race([once(child, 'message'), exited])
      return { ...heard.shift() }
    }
  }
}

const hostile = [
  "'; DROP TABLE tenants; --",
  '" OR 1=1',
  'a/b/../c',
  '..',
  '%',
  '_',
  '?',
  '$1',
  ':name',
  'päivää 你好 😀',
  'e\u0301',
  '\u00e9',
  ' spaces ',
  'line\nend',
  'tab\t',
  '\\',
  '{"json":1}',
  'x'.repeat(500)
]
const unstorable = ['', 'nul\0nul', 'half \ud83d', 'x'.repeat(10_240)]

export function storeConformance(t: Test, fresh: Fresh): void {
  t.test('a tenant is stored, changed and removed, and each change is written down', async t => {
    const { store } = await start(t, { url: await fresh(t) })
    const first = tenant('acme', { metadata: { team: 'a', deep: { list: [1, null, '\0'] } }, createdAt: 5 })
    t.equal(await store.tenants.insert(first, audit('tenant.create', 'acme', null, { budget: 1 })), true)
    t.strictSame(await store.tenants.get('acme'), first)
    const changed = { ...first, active: false, allowModels: ['a*'] }
    t.equal(
      await store.tenants.update(changed, audit('tenant.update', 'acme', { active: true }, { active: false })),
      true
    )
    t.strictSame(await store.tenants.get('acme'), changed)
    t.equal(await store.tenants.remove('acme', audit('tenant.remove', 'acme', { active: false }, null)), true)
    t.equal(await store.tenants.get('acme'), null)
    const { rows, next } = await store.audits.list({ subject: 'acme' }, { limit: 10 })
    t.equal(next, null)
    t.strictSame(
      rows.map(({ actor, action, before, after }) => ({ actor, action, before, after })),
      [
        { actor: 'admin', action: 'tenant.remove', before: { active: false }, after: null },
        { actor: 'admin', action: 'tenant.update', before: { active: true }, after: { active: false } },
        { actor: 'admin', action: 'tenant.create', before: null, after: { budget: 1 } }
      ]
    )
    t.ok(rows.every(row => Math.abs(row.time - Date.now()) < 60_000))
  })

  t.test('what was not done is not written down', async t => {
    const { store } = await start(t, { url: await fresh(t) })
    await store.tenants.insert(tenant('acme'), audit('tenant.create', 'acme'))
    t.equal(await store.tenants.insert(tenant('acme', { active: false }), audit('tenant.create', 'acme')), false)
    t.equal((await store.tenants.get('acme'))?.active, true)
    t.equal(await store.tenants.update(tenant('nobody'), audit('tenant.update', 'nobody')), false)
    t.equal(await store.tenants.remove('nobody', audit('tenant.remove', 'nobody')), false)
    t.equal((await store.audits.list({}, { limit: 10 })).rows.length, 1)
  })

  t.test('a change of what somebody else has changed meanwhile is refused', async t => {
    const { store } = await start(t, { url: await fresh(t) })
    const read = tenant('acme')
    await store.tenants.insert(read, audit('tenant.create', 'acme'))
    const changes = [1, 2, 3, 4].map(concurrency => ({ ...read, concurrency }))
    const done = await Promise.all(changes.map(one => store.tenants.update(one, audit('tenant.update', 'acme'), read)))
    t.equal(done.filter(Boolean).length, 1)
    t.equal((await store.audits.list({}, { limit: 10 })).rows.length, 2)

    const key = apiKey('k1', 'acme')
    await store.keys.insert(key, audit('key.create', 'k1'))
    await store.keys.touch([{ id: 'k1', at: 9 }])
    const revoked = [1, 2].map(revokedAt => ({ ...key, revokedAt }))
    const ended = await Promise.all(revoked.map(one => store.keys.update([one], audit('key.revoke', 'k1'), key)))
    t.strictSame(ended.toSorted(), [false, true])
  })

  t.test('keys are stored, rotated together, and go with their tenant', async t => {
    const { store } = await start(t, { url: await fresh(t) })
    t.equal(await store.keys.any(), false)
    await store.tenants.insert(tenant('acme'), audit('tenant.create', 'acme'))
    const old = apiKey('k1', 'acme', { name: 'laptop', budget: { limit: 5, period: 'day' } })
    await store.keys.insert(old, audit('key.create', 'k1', null, { name: 'laptop' }))
    t.equal(await store.keys.any(), true)
    t.strictSame(await store.keys.get('k1'), old)
    const next = apiKey('k2', 'acme')
    const rotated = { ...old, expiresAt: 9, rotatedTo: 'k2' }
    t.equal(await store.keys.update([rotated, next], audit('key.rotate', 'k1')), true)
    await store.keys.insert(apiKey('k0', 'other'), audit('key.create', 'k0'))
    t.strictSame(await store.keys.list('acme', { limit: 10 }), [rotated, next])
    t.strictSame(await store.keys.list('acme', { limit: 10, after: 'k1' }), [next])
    await t.rejects(store.keys.insert(apiKey('k2', 'other'), audit('key.create', 'k2')), 'an id is given once')
    await t.rejects(store.keys.update([apiKey('k3', 'acme'), apiKey('k0', 'acme')], audit('key.rotate', 'k3')))
    t.equal(await store.keys.get('k3'), null, 'all of them or none')
    await store.tenants.remove('acme', audit('tenant.remove', 'acme'))
    t.equal(await store.keys.get('k1'), null)
    t.equal((await store.keys.get('k0'))?.tenant, 'other')
  })

  t.test('the last use of a key never goes back', async t => {
    const { store } = await start(t, { url: await fresh(t) })
    await store.keys.insert(apiKey('k1', 'acme'), audit('key.create', 'k1'))
    const before = (await store.audits.list({}, { limit: 10 })).rows.length
    await store.keys.touch([
      { id: 'k1', at: 50 },
      { id: 'nobody', at: 50 }
    ])
    await store.keys.touch([{ id: 'k1', at: 40 }])
    t.equal((await store.keys.get('k1'))?.lastUsedAt, 50)
    await store.keys.update([apiKey('k1', 'acme', { name: 'new' })], audit('key.update', 'k1'))
    t.match(await store.keys.get('k1'), { name: 'new', lastUsedAt: 50 })
    t.equal((await store.audits.list({}, { limit: 10 })).rows.length, before + 1)
  })

  t.test('names and ids of any characters are stored as they are', async t => {
    const { store } = await start(t, { url: await fresh(t) })
    for (const id of hostile) {
      const one = tenant(id, { metadata: { [id]: id, long: 'x'.repeat(10_240) } })
      t.equal(await store.tenants.insert(one, audit('tenant.create', id, null, { id })), true, id)
      t.strictSame(await store.tenants.get(id), one)
      await store.keys.insert(apiKey(`key of ${id}`.slice(0, 500), id, { name: id }), audit('key.create', id))
      t.equal((await store.keys.list(id, { limit: 5 }))[0]?.name, id)
      t.equal((await store.audits.list({ subject: id }, { limit: 5 })).rows.length, 2)
      t.strictSame(await store.ledger.records({ tenant: id, key: id, model: id }, { limit: 5 }), {
        rows: [],
        next: null
      })
      t.equal(await store.setting(id, id), id)
    }
    const all = await store.tenants.list({ limit: 100 })
    const sorted = hostile.toSorted((one, other) => Buffer.compare(Buffer.from(one), Buffer.from(other)))
    t.strictSame(
      all.map(({ id }) => id),
      sorted,
      'in the order of their bytes'
    )
  })

  t.test('an id that one of the databases cannot hold is refused, and is nobody', async t => {
    const { store } = await start(t, { url: await fresh(t) })
    const refused = { code: 'GATEWAY_INVALID_REQUEST', statusCode: 400 }
    for (const id of unstorable) {
      await t.rejects(store.tenants.insert(tenant(id), audit('tenant.create', id)), refused)
      await t.rejects(store.keys.insert(apiKey(id, 'acme'), audit('key.create', id)), refused)
      await t.rejects(store.keys.insert(apiKey('k', id), audit('key.create', 'k')), refused)
      t.equal(await store.tenants.get(id), null)
      t.equal(await store.tenants.update(tenant(id), audit('tenant.update', id)), false)
      t.equal(await store.tenants.remove(id, audit('tenant.remove', id)), false)
      t.equal(await store.keys.get(id), null)
      t.strictSame(await store.keys.list(id, { limit: 5 }), [])
      t.strictSame(await store.ledger.records({ tenant: id }, { limit: 5 }), { rows: [], next: null })
      await store.audits.add(audit('odd', id))
    }
    t.strictSame(await store.tenants.list({ limit: 5, after: 'nul\0' }), [])
    t.equal((await store.audits.list({}, { limit: 10 })).rows.length, unstorable.length)
  })

  t.test('lists come in pages', async t => {
    const { store } = await start(t, { url: await fresh(t) })
    const names = Array.from({ length: 7 }, (_, index) => `t${index}`)
    for (const id of names) await store.tenants.insert(tenant(id), audit('tenant.create', id))
    const seen: string[] = []
    for (let after: string | undefined; ; ) {
      const page = await store.tenants.list({ after, limit: 3 })
      seen.push(...page.map(({ id }) => id))
      if (page.length < 3) break
      after = page.at(-1)?.id
    }
    t.strictSame(seen, names)
    const first = await store.audits.list({}, { limit: 4 })
    const rest = await store.audits.list({}, { limit: 4, after: first.next! })
    t.strictSame(
      [...first.rows, ...rest.rows].map(({ subject }) => subject),
      names.toReversed()
    )
    t.equal(rest.next, null)
    await t.rejects(store.audits.list({}, { limit: 4, after: '1 OR 1=1' }), { code: 'GATEWAY_INVALID_REQUEST' })
  })

  t.test('of several values for a setting the first one stays', async t => {
    const url = await fresh(t)
    const { store, app } = await start(t, { url })
    const values = Array.from({ length: 20 }, (_, index) => `value ${index}`)
    const given = await Promise.all(values.map(value => store.setting('secret', value)))
    t.equal(new Set(given).size, 1)
    await app.close()
    const again = await start(t, { url })
    t.equal(await again.store.setting('secret', 'other'), given[0], 'also after a restart')
  })

  t.test('answers are kept to their end', async t => {
    const { store } = await start(t, { url: await fresh(t) })
    const body = Buffer.from('\0\xff'.repeat(500_000), 'latin1').subarray(3, 900_003)
    const expiresAt = Date.now() + 60_000
    const answer = { id: 'a', fingerprint: 'f', stream: true, body, expiresAt }
    await store.answers.put(answer)
    await store.answers.put({ ...answer, id: 'later', expiresAt: expiresAt + 1, stream: false })
    await store.answers.put({ ...answer, id: 'over', expiresAt: Date.now() - 1 })
    const read = await store.answers.get('a')
    t.ok(read && body.equals(read.body))
    t.equal(read?.body.byteLength, read?.body.buffer.byteLength, 'nothing else travelled with it')
    t.match(read, { fingerprint: 'f', stream: true, expiresAt })
    t.equal(await store.answers.get('over'), null)
    t.equal(await store.answers.get('nobody'), null)
    t.strictSame(await store.answers.ids(10), ['later', 'a'])
    t.strictSame(await store.answers.ids(1), ['later'])
    await store.answers.put({ ...answer, fingerprint: 'g', body: Buffer.from('x') })
    t.match(await store.answers.get('a'), { fingerprint: 'g', body: new Uint8Array([120]) })
    await store.answers.purge(expiresAt)
    t.strictSame(await store.answers.ids(10), ['later'])
  })

  recordTests(t, fresh)

  t.test('a database is brought up to date once, and keeps what it has', async t => {
    const url = await fresh(t)
    const one = await start(t, { url })
    await one.store.tenants.insert(tenant('acme'), audit('tenant.create', 'acme'))
    await one.app.close()
    const other = await start(t, { url })
    t.ok(await other.store.tenants.get('acme'))
    t.not(other.store.instance, one.store.instance)
  })

  t.test('a database of the first version is brought up to date, and its rows stay', async t => {
    const url = await fresh(t)
    await (await start(t, { url })).app.close()
    const back = await backOf(url)
    await back.run('ALTER TABLE inferences DROP COLUMN config')
    await back.run('DELETE FROM migrations WHERE version > 1')
    await addRows(back, [seed(1)])
    const { store } = await start(t, { url })
    await addRows(back, [seed(2)])
    await back.run("UPDATE inferences SET config = '0123456789ab' WHERE seq = 2")
    await back.close()
    const { rows } = await store.ledger.records({}, { limit: 5 })
    t.strictSame(
      rows.map(({ id, config }) => [id, config]),
      [
        ['req_00000002', '0123456789ab'],
        ['req_00000001', null]
      ]
    )
    const exported: Array<string | null> = []
    for await (const piece of store.ledger.export({})) exported.push(...piece.map(({ config }) => config))
    t.strictSame(exported, ['0123456789ab', null])
  })

  t.test('a database that a newer gateway has used is refused', async t => {
    const url = await fresh(t)
    await (await start(t, { url })).app.close()
    const back = await backOf(url)
    await back.run("INSERT INTO migrations (version, name, applied_at) VALUES (9999, 'future', 0)")
    await back.close()
    const reason = await refusal(t, { url })
    t.match(reason, /version 9999, this gateway knows versions up to \d+/)
    t.notMatch(reason, '\n')
  })

  t.test('a second gateway is refused, in this process and in another, until the first has ended', async t => {
    const url = await fresh(t)
    const { app } = await start(t, { url })
    const line = /is in use by another gateway.+REDIS_URL/
    t.match(await refusal(t, { url }), line)
    const refused = await second(t, { url }).said()
    t.match(refused['refused'], line)
    t.notMatch(refused['refused'], '\n')
    t.equal((await app.gateway.readiness()).ok, true, 'the first one goes on')
    await app.close()
    const after = second(t, { url })
    t.strictSame(await after.said(), { open: true })
    after.process.send({ close: true })
    await once(after.process, 'exit')
    await start(t, { url })
  })

  t.test('a gateway that was killed leaves no lock', async t => {
    const url = await fresh(t)
    const first = second(t, { url })
    t.strictSame(await first.said(), { open: true })
    first.process.send({ insert: 'acme' })
    t.strictSame(await first.said(), { inserted: true })
    first.process.kill('SIGKILL')
    await once(first.process, 'exit')
    const { store } = await start(t, { url, lockWait: 5_000 })
    t.ok(await store.tenants.get('acme'), 'what it had confirmed is there')
  })

  t.test('/ready knows the store, and a closed one answers that it is gone', async t => {
    const { app, store } = await start(t, { url: await fresh(t) })
    t.match((await app.gateway.readiness()).checks['store'], { ok: true, kind: store.kind, backlog: 0 })
    await app.close()
    await t.rejects(store.tenants.get('acme'), { code: 'GATEWAY_STORE_UNAVAILABLE', statusCode: 503 })
    store.ledger.grown()
  })
}

function recordTests(t: Test, fresh: Fresh): void {
  /** All pages, one after another. */
  async function all(
    store: Store,
    filter: Parameters<Store['ledger']['records']>[0],
    limit: number
  ): Promise<string[]> {
    const seen: string[] = []
    let after: string | undefined
    do {
      const { rows, next } = await store.ledger.records(filter, { after, limit })
      seen.push(...ids(rows))
      after = next ?? undefined
    } while (after !== undefined)
    return seen
  }

  t.test('every filter finds what fits all of it, newest first, in pages of any size', async t => {
    const url = await fresh(t)
    const { store } = await start(t, { url })
    const back = await backOf(url)
    const long = 'long/'.repeat(100)
    const seeds = Array.from({ length: 400 }, (_, index) =>
      seed(index + 1, {
        time: 1_000 + ((index * 7) % 90),
        tenant: ['acme', 'beta'][index % 2]!,
        key: [null, 'k1', 'k2'][index % 3]!,
        model: ['m', `${long}1`, `${long}2`, "m'; --"][index % 4]!,
        status: (['settled', 'settled', 'failed', 'interrupted', 'settled'] as const)[index % 5]!
      })
    )
    await addRows(back, seeds)
    await back.close()
    let filters = 0
    for (const tenant of [undefined, 'acme'])
      for (const key of [undefined, 'k1'])
        for (const model of [undefined, 'm', `${long}1`])
          for (const status of [undefined, 'settled', 'failed'] as const)
            for (const range of [{}, { from: 1_020 }, { to: 1_050 }, { from: 1_020, to: 1_050 }]) {
              const filter = { tenant, key, model, status, ...range }
              const wanted = expected(seeds, filter)
              if (JSON.stringify(await all(store, filter, 1_000)) !== JSON.stringify(wanted))
                t.fail('whole', { filter })
              if (filters++ % 5 === 0) t.strictSame(await all(store, filter, 7), wanted, JSON.stringify(filter))
            }
    t.equal(filters, 144)
    t.strictSame(await all(store, { tenant: 'nobody' }, 10), [])
  })

  t.test('a row comes back with its attempts', async t => {
    const url = await fresh(t)
    const { store } = await start(t, { url })
    const back = await backOf(url)
    await addRows(back, [seed(1, { key: 'k', tenant: 'acme' }), seed(2)])
    await back.close()
    const { rows } = await store.ledger.records({ key: 'k' }, { limit: 5 })
    const usage = { input: 3, output: 5, cacheRead: 0, source: 'reported', charge: null, mismatch: false }
    t.match(rows, [
      {
        id: 'req_00000001',
        tenant: 'acme',
        key: 'k',
        stream: false,
        status: 'settled',
        httpStatus: null,
        cost: 7,
        usage,
        tags: null,
        attempts: [{ number: 1, provider: 'up', model: 'm', status: 'settled', cost: 7, usage, priceVersion: null }]
      }
    ])
  })

  t.test('pages stay where they are while rows are added and running calls end', async t => {
    const url = await fresh(t)
    const { store } = await start(t, { url })
    const back = await backOf(url)
    // All in three milliseconds, so that pages end between calls of the same moment.
    const running = Array.from({ length: 9 }, (_, index) =>
      seed(100 + index, { id: `open${index}`, time: 1_000 + (index % 3) })
    )
    const ended = Array.from({ length: 9 }, (_, index) => seed(1 + index, { time: 1_000 + (index % 3) }))
    await addRows(back, ended)
    for (const one of running) await addOpen(back, one)
    const seen: string[] = []
    let after: string | undefined
    let waiting = [...running]
    let added = 200
    do {
      const { rows, next } = await store.ledger.records({ tenant: 'acme' }, { after, limit: 2 })
      seen.push(...ids(rows))
      after = next ?? undefined
      // After each page two running calls end, one that was shown and one that was not, and a newer row comes.
      const [one, ...rest] = waiting
      const other = rest.pop()
      for (const call of [one, other]) if (call) await settle(back, { ...call, seq: ++added })
      waiting = rest
      await addRows(back, [seed(++added, { time: 5_000 })])
    } while (after !== undefined)
    await back.close()
    t.equal(seen.length, new Set(seen).size, 'none twice')
    t.strictSame(seen.toSorted(), ids18(running, ended), 'none left out')
  })

  t.test('running calls are found by every filter, and by their status alone', async t => {
    const url = await fresh(t)
    const { store } = await start(t, { url })
    const back = await backOf(url)
    await addOpen(back, seed(1, { id: 'o1', tenant: 'acme', key: 'k', model: 'm', time: 10 }))
    await addOpen(back, seed(2, { id: 'o2', tenant: 'beta', model: 'n', time: 20 }))
    await addRows(back, [seed(3, { time: 15 })])
    await back.close()
    t.strictSame(await all(store, {}, 1), ['o2', 'req_00000003', 'o1'])
    t.strictSame(await all(store, { status: 'open' }, 1), ['o2', 'o1'])
    t.strictSame(await all(store, { key: 'k' }, 5), ['o1'])
    t.strictSame(await all(store, { model: 'n' }, 5), ['o2'])
    t.strictSame(await all(store, { from: 11, to: 21 }, 5), ['o2', 'req_00000003'])
    t.strictSame(await all(store, { status: 'settled' }, 5), ['req_00000003'])
    const [open] = (await store.ledger.records({ key: 'k' }, { limit: 1 })).rows
    t.match(open, { status: 'open', cost: null, attempts: [{ status: 'open', provider: 'up' }] })
  })

  t.test('what is no place, no status and no moment is refused', async t => {
    const { store } = await start(t, { url: await fresh(t) })
    const refused = { code: 'GATEWAY_INVALID_REQUEST' }
    for (const after of ['', 'x', '1', '1.', '1.2; DROP TABLE inferences', '1e400.5', '-0.-0', `${'9'.repeat(30)}.1`]) {
      await t.rejects(store.ledger.records({}, { after, limit: 5 }), refused, after)
    }
    const status = "settled' OR '1'='1" as (typeof recordStatuses)[number]
    await t.rejects(store.ledger.records({ status }, { limit: 5 }), refused)
    await t.rejects(store.ledger.records({ from: Number.NaN }, { limit: 5 }), refused)
    for (const odd of [Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY, -0, 1.5, 1e300]) {
      await store.ledger.records({ from: odd, to: odd }, { limit: 5 })
    }
    for (const limit of [0, -1, Number.NaN, 0.5, 1e9]) t.ok(await store.ledger.records({}, { limit }))
  })

  t.test('an export reads the database as fast as it is taken', async t => {
    const url = await fresh(t)
    const { store } = await start(t, { url })
    const back = await backOf(url)
    const seeds = Array.from({ length: 2_500 }, (_, index) => seed(index + 1))
    await addRows(back, seeds)
    const taken: string[] = []
    for await (const piece of store.ledger.export({ tenant: 'acme' })) {
      if (piece.length > 1_000) t.fail(`${piece.length} rows at once`)
      taken.push(...ids(piece))
    }
    t.strictSame(taken, expected(seeds, {}))
    let pieces = 0
    for await (const piece of store.ledger.export({})) {
      pieces++
      // What is not there any more when it would be read is not in it.
      await back.run('DELETE FROM inferences WHERE seq < ?', 2_501 - piece.length)
    }
    t.equal(pieces, 1)
    await back.close()
  })
}

function ids18(running: readonly Seed[], ended: readonly Seed[]): string[] {
  return [...running, ...ended].map(({ id }) => id).toSorted()
}
