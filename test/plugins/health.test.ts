import Fastify from 'fastify'
import t from 'tap'
import modelGateway from '../../app.ts'
import { HealthAnswer } from '../../schemas/admin-answers.ts'
import { build } from '../helper.ts'
import { startRedis } from '../services/index.ts'
import { gate, turn } from '../upstream.ts'
import { asker, fits } from './admin/fakes.ts'
import { ask } from './kernel.ts'

const adminToken = 'the-token-of-the-operator'

// Before the first test: tap thinks that all is done when nothing is under way.
const redis = await startRedis(t)

t.test('GET /health says that the process answers, and the time', async t => {
  const app = await build(t)
  const before = Date.now()
  const response = await app.inject('/health')
  t.equal(response.statusCode, 200)
  const { ok, time } = response.json()
  t.equal(ok, true)
  t.ok(Date.parse(time) >= before && Date.parse(time) <= Date.now(), time)
})

t.test('GET /ready names every dependency', async t => {
  const app = await build(t)
  app.gateway.dependency('store', () => ({ ok: true, kind: 'sqlite' }))
  const response = await app.inject('/ready')
  t.equal(response.statusCode, 200)
  t.match(response.json(), {
    ok: true,
    time: /^\d{4}-\d\d-\d\dT/,
    checks: { gateway: { ok: true, running: 0 }, store: { ok: true, kind: 'sqlite' } }
  })
})

t.test('GET /ready is 503 when a dependency is not well', async t => {
  const app = await build(t)
  app.gateway.dependency('store', () => ({ ok: false }))
  const response = await app.inject('/ready')
  t.equal(response.statusCode, 503)
  t.match(response.json(), { ok: false, checks: { gateway: { ok: true }, store: { ok: false } } })
})

t.test('GET /ready is 503 when a check throws, and tells nothing of why', async t => {
  const app = await build(t)
  app.gateway.dependency('store', async () => Promise.reject(new Error('password of the store')))
  const response = await app.inject('/ready')
  t.equal(response.statusCode, 503)
  t.match(response.json(), { checks: { store: { ok: false } } })
  t.notMatch(response.body, /password/)
})

t.test('GET /ready counts the calls that run, and is 503 while the host closes though /health is not', async t => {
  const { promise, open } = gate()
  const app = await build(t)
  app.gateway.intercept('observe', async (inference, next) => {
    await promise
    return next(inference)
  })
  const url = await app.listen({ host: '127.0.0.1', port: 0 })
  const answering = app.gateway.complete({ ...ask, model: 'echo/echo' }, app.gateway.caller())
  t.match((await app.inject('/ready')).json(), { checks: { gateway: { ok: true, running: 1 } } })
  const closing = app.close()
  await turn()
  const ready = await fetch(`${url}/ready`)
  t.equal(ready.status, 503)
  t.match(await ready.json(), { ok: false, checks: { gateway: { ok: false, running: 1 } } })
  t.equal((await fetch(`${url}/health`)).status, 200)
  open()
  await answering
  await closing
})

for (const url of ['/health', '/ready']) {
  t.test(`GET ${url} needs no key`, async t => {
    const app = await build(t, { plugins: { auth: { anonymousTenant: false } } })
    t.equal((await app.inject(url)).statusCode, 200)
    t.equal((await app.inject({ url, headers: { authorization: 'Bearer gw_unknown' } })).statusCode, 200)
    t.equal((await app.inject('/v1/models')).statusCode, 401)
  })

  t.test(`GET ${url} carries the fixed headers`, async t => {
    const app = await build(t)
    const response = await app.inject(url)
    t.equal(response.headers['x-content-type-options'], 'nosniff')
    t.match(response.headers['content-type'], /^application\/json/)
  })

  t.test(`POST ${url} is an unknown path`, async t => {
    const app = await build(t)
    const response = await app.inject({ method: 'POST', url, payload: {} })
    t.equal(response.statusCode, 404)
    t.match(response.json(), { error: { code: 'resource_not_found' } })
  })
}

t.test('GET /ready says how long each check took, and asks all at once', async t => {
  const app = await build(t)
  const { promise, open } = gate()
  const order: string[] = []
  app.gateway.dependency('first', async () => {
    order.push('first')
    await promise
    return { ok: true }
  })
  app.gateway.dependency('second', () => {
    order.push('second')
    open()
    return { ok: true }
  })
  const { checks } = (await app.inject('/ready')).json()
  t.strictSame(order, ['first', 'second'])
  for (const { ms } of Object.values<{ ms: number }>(checks)) t.ok(ms >= 0 && ms < 500, String(ms))
})

t.test('a dependency that does not answer made /ready hang', async t => {
  const lines: string[] = []
  const app = Fastify({ logger: { stream: { write: (line: string) => void lines.push(line) } } })
  t.teardown(() => app.close())
  await app.register(modelGateway, { store: false })
  let asked = 0
  const { promise, open } = gate()
  app.gateway.dependency('silent', async () => {
    asked++
    await promise
    return { ok: true }
  })
  const before = performance.now()
  const answers = await Promise.all([app.inject('/ready'), app.inject('/ready')])
  t.ok(performance.now() - before < 5_000)
  answers.push(await app.inject('/ready'))
  for (const answer of answers) {
    t.equal(answer.statusCode, 503)
    t.match(answer.json().checks, {
      gateway: { ok: true },
      silent: { ok: false, ms: 500, reason: 'It does not answer within 500 ms.' }
    })
  }
  t.equal(asked, 1, 'one question waits, however often anybody asks')
  t.equal(lines.filter(line => line.includes('a dependency does not answer')).length, 1, 'and is one line of the log')
  open()
  await turn()
  t.equal((await app.inject('/ready')).statusCode, 200)
  t.equal(asked, 2)
})

t.test('GET /api/health asks each dependency itself and says what the process uses', async t => {
  const app = await build(t, { store: 'sqlite::memory:', plugins: { auth: { adminToken } } })
  let pings = 0
  app.gateway.dependency(
    'far',
    () => ({ ok: true, kind: 'far' }),
    async () => {
      pings++
    }
  )
  await app.inject('/ready')
  t.equal(pings, 0, 'nobody without a key makes it do anything')
  const ask = asker(app, adminToken)
  const answer = await ask('GET /api/health')
  t.equal(answer.statusCode, 200)
  t.equal(answer.headers['cache-control'], 'no-store')
  const health = answer.json()
  fits(t, HealthAnswer, health)
  t.match(health, { ok: true, checks: { far: { ok: true, kind: 'far' }, store: { ok: true, kind: 'sqlite' } } })
  t.equal(pings, 1)
  t.equal(health.process.pid, process.pid)
  t.ok(health.process.rss_bytes > 10_000_000 && health.process.heap_used_bytes > 1_000_000)
  t.ok(health.process.cpu_percent > 0)
  const again = (await ask('GET /api/health')).json()
  t.equal(again.process.cpu_percent, health.process.cpu_percent, 'who asks at once again gets the same figure')
})

t.test('GET /api/health says which dependency does not answer, and is the answer all the same', async t => {
  const app = await build(t, { plugins: { auth: { adminToken } } })
  app.gateway.dependency(
    'silent',
    () => ({ ok: true }),
    () => new Promise(() => {})
  )
  app.gateway.dependency(
    'broken',
    () => ({ ok: true }),
    () => Promise.reject(new Error('secret words'))
  )
  const answer = await asker(app, adminToken)('GET /api/health')
  t.equal(answer.statusCode, 200)
  t.match(answer.json(), { ok: false, checks: { silent: { ok: false, ms: 500 }, broken: { ok: false } } })
  t.notMatch(answer.body, 'secret')
  t.equal((await app.inject('/ready')).statusCode, 200, 'what is known of them is well')
})

t.test('what the process uses is told to nobody but the administrator', async t => {
  const app = await build(t, { plugins: { auth: { adminToken } } })
  t.equal((await app.inject('/api/health')).statusCode, 401)
  for (const url of ['/health', '/ready']) t.notMatch((await app.inject(url)).body, /process|_bytes|cpu|uptime/)
  const open = await build(t, { plugins: { auth: false } })
  t.equal((await open.inject('/api/health')).statusCode, 404)
})

t.test('GET /api/health pings Redis', { skip: redis === null }, async t => {
  const app = await build(t, { store: false, redis: redis?.url, plugins: { auth: { adminToken } } })
  const ask = asker(app, adminToken)
  const { checks } = (await ask('GET /api/health')).json()
  t.match(checks.redis, { ok: true, processes: 1 })
  t.ok(checks.redis.ms > 0, `${checks.redis.ms} ms`)
  await redis?.stop()
  t.match((await ask('GET /api/health')).json(), { ok: false, checks: { redis: { ok: false } } })
})
