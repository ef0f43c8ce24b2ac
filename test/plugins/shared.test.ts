import Fastify from 'fastify'
import { Redis } from 'ioredis'
import t, { type Test } from 'tap'
import gateway from '../../plugins/gateway/index.ts'
import shared, { type SharedOptions } from '../../plugins/shared/index.ts'
import type { Script } from '../../schemas/shared.ts'
import { until } from '../conformance/budgets.ts'
import { startRedis } from '../services/index.ts'
import { slowProxy } from './budgets/proxy.ts'
import { rejection } from './kernel.ts'

const redis = await startRedis(t)
const echo: Script = { lua: 'return { KEYS[1], ARGV[1] }' }
let count = 0

async function build(t: Test, options: Partial<SharedOptions> = {}) {
  const log: string[] = []
  const app = Fastify({ logger: { level: 'info', stream: { write: (line: string) => void log.push(line) } } })
  t.teardown(() => app.close())
  await app.register(gateway)
  const base = { url: redis?.url ?? '', prefix: `s${count}:`, timeout: 500, lease: 300 }
  await app.register(shared, { ...base, ...options })
  const states: Array<{ down: string | null; lost: boolean }> = []
  const deaths: string[] = []
  const plugin = app.gateway.shared!
  plugin.onState(state => states.push(state))
  plugin.onDeath(instance => deaths.push(instance))
  return { app, shared: plugin, states, deaths, log }
}

if (redis !== null) {
  const { port } = redis

  t.beforeEach(() => {
    count++
  })

  t.test('keys, values and scripts, below the prefix', async t => {
    const { shared } = await build(t)
    t.equal(shared.down, null)
    t.strictSame(await shared.run(echo, ['a'], ['b']), [`s${count}:a`, 'b'])
    t.equal(await shared.set('k', new Uint8Array([0, 255]), 60_000, true), true)
    t.equal(await shared.set('k', 'other', 60_000, true), false)
    t.strictSame(await shared.get('k'), Buffer.from([0, 255]))
    await shared.delete('k')
    t.equal(await shared.get('k'), null)
  })

  t.test('a script that Redis does not know is sent whole', async t => {
    const { shared } = await build(t)
    await shared.run(echo, ['a'], ['b'])
    const client = new Redis(redis.url)
    await client.script('FLUSH')
    client.disconnect()
    t.strictSame(await shared.run(echo, ['a'], ['c']), [`s${count}:a`, 'c'])
  })

  t.test('messages reach the others and not their sender', async t => {
    const a = await build(t)
    const b = await build(t)
    const heard: string[] = []
    a.shared.subscribe('news', message => heard.push(`a ${message}`))
    b.shared.subscribe('news', message => heard.push(`b ${message}`))
    await until(() => {
      a.shared.publish('news', 'one two')
      return heard.length > 0
    })
    t.ok(heard.every(message => message === 'b one two'))
  })

  t.test('processes see each other come, leave and die', async t => {
    const a = await build(t)
    const b = await build(t)
    await until(() => a.shared.processes === 2)
    t.strictSame([...a.shared.instances].sort(), [a.shared.instance, b.shared.instance].sort())
    await b.app.close()
    await until(() => a.shared.processes === 1)
    t.strictSame(a.deaths, [b.shared.instance])
  })

  t.test('a flushed Redis is another generation', async t => {
    const { shared, states } = await build(t)
    const before = shared.generation
    t.ok(before)
    const client = new Redis(redis.url)
    await client.flushall()
    client.disconnect()
    await until(() => shared.generation !== before)
    t.strictSame(states, [{ down: null, lost: true }])
  })

  t.test('Redis stopped: everything fails at once with a reason, one line says so, and it comes back', async t => {
    const { app, shared, states, log } = await build(t, { url: redis.url.replace('redis://', 'redis://:s3cr3t-word@') })
    await redis.stop()
    await until(() => shared.down !== null)
    const before = performance.now()
    for (let index = 0; index < 100; index++) {
      t.match(await rejection(shared.get('k')), { wire: 'shared_unavailable', statusCode: 503 })
    }
    t.ok(performance.now() - before < 400)
    const { ok, checks } = await app.gateway.readiness()
    t.equal(ok, false)
    t.match(checks['redis'], { ok: false, degraded: true, reason: String })
    await redis.start()
    await until(() => shared.down === null)
    await shared.set('k', 'v', 1_000)
    t.match(states, [
      { down: String, lost: false },
      { down: null, lost: true }
    ])
    t.equal(log.filter(line => line.includes('Redis cannot be asked')).length, 1)
    t.equal(log.filter(line => line.includes('Redis answers')).length >= 1, true)
    t.notMatch(log.join(''), 's3cr3t-word')
  })

  t.test('Redis slow: calls fail within the deadline, then at once, until it is fast again', async t => {
    const proxy = await slowProxy(t, port)
    const { shared } = await build(t, { url: `redis://127.0.0.1:${proxy.port}`, timeout: 50 })
    await until(() => shared.down === null)
    proxy.delay = 500
    for (let index = 0; index < 3 && shared.down === null; index++) {
      const before = performance.now()
      t.match((await rejection(shared.get('k'))).message, 'no answer within 50 ms')
      t.ok(performance.now() - before < 400)
    }
    t.ok(shared.down)
    proxy.delay = 0
    await until(() => shared.down === null)
    t.equal(await shared.get('k'), null)
  })

  t.test('a gateway starts without its Redis, and is not ready: nobody knows what its share is', async t => {
    const { app, shared } = await build(t, { url: 'redis://:s3cr3t-word@127.0.0.1:1', onRedisDown: 'local-share' })
    t.ok(shared.down)
    t.notMatch(shared.down, 's3cr3t-word')
    t.equal(shared.processes, 1)
    t.match((await app.gateway.readiness()).checks, { redis: { ok: false, degraded: true } })
  })

  t.test('Redis that has answered once and went away: ready where a share may be spent', async t => {
    const proxy = await slowProxy(t, port)
    const { app, shared } = await build(t, {
      url: `redis://127.0.0.1:${proxy.port}`,
      timeout: 50,
      onRedisDown: 'local-share'
    })
    await until(() => shared.down === null)
    proxy.delay = 500
    await until(() => shared.down !== null)
    t.match((await app.gateway.readiness()).checks, { redis: { ok: true, degraded: true } })
  })

  t.test('a Redis that may evict keys is warned of once, and shown by /ready', async t => {
    const client = new Redis(redis.url)
    t.teardown(async () => {
      await client.config('SET', 'maxmemory', '0', 'maxmemory-policy', 'noeviction')
      client.disconnect()
    })
    const warnings = (log: string[]) => log.filter(line => line.includes('maxmemory-policy')).length
    await client.config('SET', 'maxmemory', '0', 'maxmemory-policy', 'allkeys-lru')
    t.equal(warnings((await build(t)).log), 0, 'without a maximum nothing is ever evicted')
    await client.config('SET', 'maxmemory', '100mb')
    const { app, log, shared } = await build(t)
    await client.call('CLIENT', 'KILL', 'TYPE', 'normal', 'SKIPME', 'yes')
    await until(() => shared.down !== null)
    await until(() => shared.down === null)
    t.equal(warnings(log), 1)
    t.match((await app.gateway.readiness()).checks['redis'], { ok: true, warning: /allkeys-lru/ })
  })
}
