import t from 'tap'
import { build } from '../helper.ts'
import { gate, turn } from '../upstream.ts'
import { ask } from './kernel.ts'

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
