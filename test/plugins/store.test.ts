import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Worker } from 'node:worker_threads'
import t, { type Test } from 'tap'
import { openPostgres } from '../../plugins/store/postgres.ts'
import { callTo } from '../../plugins/store/rpc.ts'
import { openSqlite } from '../../plugins/store/sqlite.ts'
import { databaseConformance } from '../conformance/database.ts'
import { refusal, second, start, storeConformance } from '../conformance/store.ts'
import { audit, backOf, tenant } from '../conformance/store-rows.ts'
import { freePort, startPostgres } from '../services/index.ts'

function folder(t: Test): string {
  const path = mkdtempSync(join(tmpdir(), 'gateway-store-'))
  t.teardown(() => rmSync(path, { recursive: true, force: true }))
  return path
}

t.test('a worker that dies rejects who waits for it', async t => {
  const worker = new Worker("require('node:worker_threads').parentPort.on('message', () => process.exit())", {
    eval: true
  })
  const remote = callTo<{ ask(): void }, Record<string, never>>(worker, () => {})
  worker.on('exit', () => remote.fail('its worker has ended'))
  const gone = { code: 'GATEWAY_STORE_UNAVAILABLE', message: /its worker has ended/ }
  await t.rejects(remote.call('ask'), gone)
  await t.rejects(remote.call('ask'), gone)
})

t.test('on SQLite', async t => {
  const fresh = async (t: Test) => `sqlite:${join(folder(t), 'new folder', 'gateway.db')}`
  storeConformance(t, fresh)
  t.test('the driver', async t =>
    databaseConformance(t, async t => {
      const driver = openSqlite({ url: await fresh(t), lockWait: 0 })
      t.teardown(() => driver.close())
      return driver
    })
  )

  t.test('a database in memory works, and two of them are two', async t => {
    const one = await start(t, { url: 'sqlite::memory:' })
    const other = await start(t, { url: 'sqlite::memory:' })
    await one.store.tenants.insert(tenant('acme'), audit('tenant.create', 'acme'))
    t.equal(await other.store.tenants.get('acme'), null)
    t.strictSame((await one.store.ledger.records({}, { limit: 5 })).rows, [])
  })

  t.test('another name of the same file is the same file', async t => {
    const path = folder(t)
    mkdirSync(join(path, 'real'))
    symlinkSync(join(path, 'real'), join(path, 'link'))
    await start(t, { url: `sqlite:${join(path, 'real', 'gateway.db')}` })
    t.match(await refusal(t, { url: `sqlite:${join(path, 'link', '..', 'link', 'gateway.db')}` }), 'is in use by')
  })

  t.test('a reader beside the gateway does not loosen its lock', async t => {
    const url = await fresh(t)
    await start(t, { url })
    await (await backOf(url)).close()
    t.match((await second(t, { url }).said())['refused'], 'is in use by')
  })

  t.test('a database that another program blocks is away, and comes back by itself', async t => {
    const url = await fresh(t)
    const { app, store } = await start(t, { url })
    const back = await backOf(url)
    await back.run('BEGIN IMMEDIATE')
    const refused = { code: 'GATEWAY_STORE_UNAVAILABLE', message: /database is locked/ }
    await t.rejects(store.tenants.insert(tenant('acme'), audit('tenant.create', 'acme')), refused)
    t.match((await app.gateway.readiness()).checks['store'], { ok: false, reason: /database is locked/ })
    t.ok(await store.ledger.records({}, { limit: 1 }), 'it can still be read')
    const returned = new Promise<void>(resolve => store.onState(({ ok }) => ok && resolve()))
    await back.run('ROLLBACK')
    await back.close()
    await returned
    t.equal(await store.tenants.insert(tenant('acme'), audit('tenant.create', 'acme')), true)
  })

  t.test('what cannot be a database stops the start with one line', async t => {
    const path = folder(t)
    writeFileSync(join(path, 'text.db'), 'this is no database at all '.repeat(100))
    writeFileSync(join(path, 'file'), '')
    for (const file of [join(path, 'text.db'), join(path, 'file', 'gateway.db'), path]) {
      const reason = await refusal(t, { url: `sqlite:${file}` })
      t.match(reason, 'cannot be opened')
      t.match(reason, file)
      t.notMatch(reason, '\n')
    }
  })
})

t.test('on PostgreSQL', async t => {
  const server = await startPostgres(t)
  if (server === null) return
  storeConformance(t, () => server.database())
  t.test('the driver', async t =>
    databaseConformance(t, async t => {
      const driver = await openPostgres({ url: await server.database(), shared: false, lockWait: 0 })
      t.teardown(() => driver.close())
      return driver
    })
  )

  t.test('with Redis several processes share it, and start at the same moment', async t => {
    const url = await server.database()
    const others = [1, 2, 3].map(() => second(t, { url, shared: true }))
    for (const other of others) t.strictSame(await other.said(), { open: true })
    for (const other of others) other.process.send({ insert: 'acme' })
    const inserted = await Promise.all(others.map(other => other.said()))
    t.equal(inserted.filter(({ inserted }) => inserted).length, 1, 'the same tenant is made once')
    for (const other of others) other.process.send({ setting: String(other.process.pid) })
    const settings = await Promise.all(others.map(other => other.said()))
    t.equal(new Set(settings.map(({ setting }) => setting)).size, 1)
    t.match(await refusal(t, { url }), 'is in use by another gateway', 'one without Redis is refused')
  })

  t.test('with Redis one is refused beside a gateway without', async t => {
    const url = await server.database()
    await start(t, { url })
    t.match(await refusal(t, { url, shared: true }), /started without Redis.+REDIS_URL/)
  })

  t.test('two schemas of one database are two stores', async t => {
    const url = await server.database()
    const back = await backOf(url)
    await back.run('CREATE SCHEMA other')
    await back.close()
    const one = await start(t, { url })
    const other = await start(t, { url: `${url}?options=-csearch_path%3Dother` })
    await one.store.tenants.insert(tenant('acme'), audit('tenant.create', 'acme'))
    t.equal(await other.store.tenants.get('acme'), null)
  })

  t.test('one that nobody reaches stops the start with one line, without the password', async t => {
    const port = await freePort()
    for (const host of [`127.0.0.1:${port}`, `localhost:${port}`]) {
      const reason = await refusal(t, { url: `postgres://user:hunter2@${host}/books` })
      t.match(reason, `books at ${host}`)
      t.match(reason, 'ECONNREFUSED')
      t.notMatch(reason, /hunter2|\n/)
    }
    const broken = await refusal(t, { url: 'postgres://user:hunter2@host:port:5/x' })
    t.match(broken, 'DATABASE_URL')
    t.notMatch(broken, /hunter2|\n/)
    const missing = await refusal(t, {
      url: `${server.url.replace('postgres://gateway@', 'postgres://gateway:hunter2@')}x`
    })
    t.match(missing, /does not exist/)
    t.notMatch(missing, 'hunter2')
  })

  t.test('a lock that was lost is taken again before the store is back', async t => {
    const url = await server.database()
    const { app, store } = await start(t, { url })
    const states: boolean[] = []
    const back = new Promise<void>(resolve =>
      store.onState(({ ok }) => {
        states.push(ok)
        if (ok) resolve()
      })
    )
    const admin = await backOf(server.url)
    const name = new URL(url).pathname.slice(1)
    await admin.run(
      'SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = ? AND granted AND database = (SELECT oid FROM pg_database WHERE datname = ?)',
      'advisory',
      name
    )
    await admin.close()
    await back
    t.strictSame(states.at(-1), true)
    t.equal((await app.gateway.readiness()).ok, true)
    t.match(await refusal(t, { url }), 'is in use by another gateway')
  })

  // The last one: it takes the server away.
  t.test('stopped and started again it works by itself', async t => {
    const url = await server.database()
    const { app, store } = await start(t, { url })
    const listeners = new Set<(ok: boolean) => void>()
    store.onState(({ ok }) => listeners.forEach(listener => void listener(ok)))
    const turns = (wanted: boolean) =>
      new Promise<void>(resolve => listeners.add(ok => void (ok === wanted && resolve())))
    await store.tenants.insert(tenant('acme'), audit('tenant.create', 'acme'))
    const away = turns(false)
    const busy = Array.from({ length: 20 }, () => store.tenants.get('acme').catch(error => error.code))
    await server.stop()
    await away
    for (const answer of await Promise.all(busy)) {
      if (answer !== 'GATEWAY_STORE_UNAVAILABLE' && answer?.id !== 'acme') t.fail(`answered ${answer}`)
    }
    await t.rejects(store.tenants.get('acme'), { code: 'GATEWAY_STORE_UNAVAILABLE', statusCode: 503 })
    const { ok, checks } = await app.gateway.readiness()
    t.equal(ok, false)
    t.match(checks['store'], { ok: false, reason: /./ })
    const again = turns(true)
    await server.start()
    await again
    t.ok(await store.tenants.get('acme'))
    t.equal(await store.tenants.insert(tenant('beta'), audit('tenant.create', 'beta')), true)

    const hung = turns(false)
    server.pause()
    const waiting = store.tenants.get('acme').catch(error => error.code)
    await hung
    t.equal(await waiting, 'GATEWAY_STORE_UNAVAILABLE', 'who waits for a server that hangs is told')
    const awake = turns(true)
    server.resume()
    await awake
    t.ok(await store.tenants.get('beta'))
  })
})
