import { mock } from 'node:test'
import hostRateLimit from '@fastify/rate-limit'
import Fastify, { type FastifyInstance } from 'fastify'
import fp from 'fastify-plugin'
import t, { type Test } from 'tap'
import gateway from '../../plugins/gateway/index.ts'
import health from '../../plugins/health.ts'
import http from '../../plugins/http/index.ts'
import rateLimit, { type RateLimitOptions } from '../../plugins/rate-limit.ts'
import routing from '../../plugins/routing/index.ts'
import { InvalidApiKey, TenantDisabled } from '../../schemas/errors.ts'

interface Options extends RateLimitOptions {
  /** Around the gateway. */
  before?: (host: FastifyInstance) => Promise<unknown>
  after?: (host: FastifyInstance) => Promise<unknown>
  trustProxy?: boolean
}

/** A host with the gateway in a scope of its own: `/ours` takes the key `right`. */
async function hosting(t: Test, { before, after, trustProxy = false, ...options }: Options = {}) {
  const host = Fastify({ trustProxy })
  t.teardown(() => host.close())
  let asked = 0
  await before?.(host)
  await host.register(async app => {
    await app.register(gateway)
    await app.register(routing, { models: {} })
    await app.register(http)
    app.gateway.decorate('authenticate', ({ headers }) => {
      asked++
      if (headers['authorization'] !== 'Bearer right') throw new InvalidApiKey('This API key is unknown.')
      return { tenant: 'a', key: 'k', kind: 'key', scopes: ['chat'] }
    })
    await app.register(rateLimit, options)
    for (const path of ['/ours', '/theirs']) {
      await app.register(async scope => {
        app.gateway.http.prepare(scope, { open: false })
        scope.get(path, async () => ({ ok: true }))
      })
    }
    await app.register(async scope => {
      app.gateway.http.prepare(scope, { open: false })
      scope.get('/forbidden', async () => {
        throw new TenantDisabled('a')
      })
    })
    await app.register(health)
  })
  await after?.(host)
  host.get('/host', async () => 'host')
  await host.ready()
  const get = (url = '/ours', key = 'right', headers: Record<string, string> = {}, remoteAddress = '192.0.2.1') =>
    host.inject({ url, remoteAddress, headers: { authorization: `Bearer ${key}`, ...headers } })
  return {
    host,
    get,
    get asked() {
      return asked
    }
  }
}

function frozen(t: Test) {
  mock.timers.enable({ apis: ['Date'], now: 1_000_000 })
  t.teardown(() => mock.timers.reset())
  return mock.timers
}

t.test('an address that asks too often is refused in our form, before its key is looked at', async t => {
  const clock = frozen(t)
  const stack = await hosting(t, { max: 3, timeWindow: 60_000 })
  for (let count = 0; count < 3; count++) t.equal((await stack.get()).statusCode, 200)
  t.equal(stack.asked, 3)
  clock.tick(20_500)
  const refused = await stack.get()
  t.equal(refused.statusCode, 429)
  t.same(refused.json(), {
    error: {
      message: 'Too many requests from this address: 3 are allowed in 60 s. Try again in 40 s.',
      type: 'rate_limit_error',
      param: null,
      code: 'rate_limit_exceeded'
    }
  })
  t.equal(refused.headers['retry-after'], '40')
  t.ok(refused.headers['x-request-id'])
  t.equal(stack.asked, 3)
  clock.tick(40_000)
  t.equal((await stack.get()).statusCode, 200)
})

t.test('all routes of ours count together, each request once', async t => {
  const { get } = await hosting(t, { max: 4 })
  for (const path of ['/ours', '/theirs', '/ours', '/theirs']) t.equal((await get(path)).statusCode, 200)
  t.equal((await get('/ours')).statusCode, 429)
  t.equal((await get('/theirs')).statusCode, 429)
})

t.test('OpenAI names for limits are left to the limits of tenants', async t => {
  const { get } = await hosting(t, { max: 1 })
  for (const answer of [await get(), await get()]) {
    t.same(
      Object.keys(answer.headers).filter(name => name.includes('ratelimit')),
      []
    )
  }
})

t.test('each address has its own count', async t => {
  const { get } = await hosting(t, { max: 1 })
  t.equal((await get('/ours', 'right', {}, '192.0.2.1')).statusCode, 200)
  t.equal((await get('/ours', 'right', {}, '192.0.2.1')).statusCode, 429)
  t.equal((await get('/ours', 'right', {}, '192.0.2.2')).statusCode, 200)
  t.equal((await get('/ours', 'right', {}, '::ffff:192.0.2.2')).statusCode, 429, 'the same one, written as IPv6')
})

t.test('an IPv6 network counts as one address', async t => {
  const { get } = await hosting(t, { max: 1 })
  t.equal((await get('/ours', 'right', {}, '2001:db8:1:2::1')).statusCode, 200)
  t.equal((await get('/ours', 'right', {}, '2001:db8:1:2:ffff::9')).statusCode, 429)
  t.equal((await get('/ours', 'right', {}, '2001:db8:1:3::1')).statusCode, 200)
  t.equal((await get('/ours', 'right', {}, 'fe80::1%eth0')).statusCode, 200, 'one with a zone')
})

t.test('the address is that of the client behind a trusted proxy, and of the proxy behind any other', async t => {
  const from = (address: string) => ({ 'x-forwarded-for': address })
  const trusting = await hosting(t, { max: 1, trustProxy: true })
  t.equal((await trusting.get('/ours', 'right', from('198.51.100.1'))).statusCode, 200)
  t.equal((await trusting.get('/ours', 'right', from('198.51.100.2'))).statusCode, 200)
  t.equal((await trusting.get('/ours', 'right', from('198.51.100.1'))).statusCode, 429)
  t.equal((await trusting.get('/ours', 'right', from('x'.repeat(8_000)))).statusCode, 200, 'no address at all')
  const plain = await hosting(t, { max: 1 })
  t.equal((await plain.get('/ours', 'right', from('198.51.100.1'))).statusCode, 200)
  t.equal((await plain.get('/ours', 'right', from('198.51.100.2'))).statusCode, 429)
})

t.test('/health and /ready are never refused', async t => {
  const { get } = await hosting(t, { max: 1 })
  for (let count = 0; count < 5; count++) {
    t.equal((await get('/health')).statusCode, 200)
    t.equal((await get('/ready')).statusCode, 200)
  }
  t.equal((await get('/ours')).statusCode, 200, 'nor do they count')
})

t.test('the routes of a host are none of our business', async t => {
  const { get } = await hosting(t, { max: 1 })
  for (let count = 0; count < 5; count++) t.equal((await get('/host')).statusCode, 200)
})

t.test('a tenth of the requests may fail to authenticate; then the address waits, whatever its key', async t => {
  const clock = frozen(t)
  const stack = await hosting(t, { max: 50, timeWindow: 60_000 })
  for (let count = 0; count < 4; count++) t.equal((await stack.get('/ours', 'wrong')).statusCode, 401)
  t.equal((await stack.get()).statusCode, 200, 'four are not five')
  t.equal((await stack.get('/ours', 'wrong')).statusCode, 401)
  const { asked } = stack
  clock.tick(10_000)
  for (const key of ['wrong', 'right']) {
    const refused = await stack.get('/ours', key)
    t.equal(refused.statusCode, 429)
    t.equal(
      refused.json().error.message,
      'Too many requests with a wrong or missing API key from this address. Try again in 50 s.'
    )
    t.equal(refused.headers['retry-after'], '50')
  }
  t.equal(stack.asked, asked, 'no key was looked at')
  t.equal((await stack.get('/ours', 'right', {}, '192.0.2.9')).statusCode, 200, 'another address')
  clock.tick(50_000)
  t.equal((await stack.get()).statusCode, 200)
})

t.test('refusals of other kinds are no failed authentications', async t => {
  const { get } = await hosting(t, { max: 20 })
  for (let count = 0; count < 10; count++) t.equal((await get('/forbidden')).statusCode, 403)
  t.equal((await get()).statusCode, 200)
})

t.test('addresses that are not seen again are forgotten', async t => {
  const { get } = await hosting(t, { max: 1, addresses: 2 })
  t.equal((await get('/ours', 'right', {}, '192.0.2.1')).statusCode, 200)
  for (let last = 2; last < 10; last++) await get('/ours', 'right', {}, `192.0.2.${last}`)
  t.equal((await get('/ours', 'right', {}, '192.0.2.1')).statusCode, 200)
})

const registered = fp(async (app: FastifyInstance) => {
  await app.register(hostRateLimit, {
    global: false,
    max: 2,
    keyGenerator: () => 'everybody',
    allowList: ['192.0.2.1']
  })
})

t.test("a host's own @fastify/rate-limit works on as it did, and ours beside it", async t => {
  for (const order of ['before', 'after'] as const) {
    const { host, get } = await hosting(t, {
      max: 3,
      [order]: async (host: FastifyInstance) => {
        await host.register(registered)
        await host.register(async scope => {
          scope.get('/limited', { config: { rateLimit: { max: 1 } } }, async () => 'limited')
        })
      }
    })
    t.equal((await get('/limited')).statusCode, 200, order)
    const refused = await get('/limited')
    t.equal(refused.statusCode, 429)
    t.equal(refused.headers['x-ratelimit-limit'], '1')
    t.type(host.createRateLimit, 'function')
    for (let count = 0; count < 3; count++) t.equal((await get()).statusCode, 200)
    t.equal((await get()).statusCode, 429)
    t.equal((await get()).json().error.code, 'rate_limit_exceeded')
    t.equal((await get('/ours', 'right', {}, '192.0.2.2')).statusCode, 200, 'their key is not ours')
  }
})

t.test('a host that has none gets none', async t => {
  const { host } = await hosting(t)
  t.notOk(host.hasDecorator('rateLimit'))
  t.notOk(host.hasDecorator('createRateLimit'))
})

t.test('clients on a socket file have no address and are not counted', async t => {
  const { host } = await hosting(t, { max: 1 })
  const { mkdtempSync, rmSync } = await import('node:fs')
  const { tmpdir } = await import('node:os')
  const folder = mkdtempSync(`${tmpdir()}/rate-limit-`)
  t.teardown(() => rmSync(folder, { recursive: true }))
  await host.listen({ path: `${folder}/socket` })
  const { Client } = await import('undici')
  const client = new Client('http://localhost', { socketPath: `${folder}/socket` })
  t.teardown(() => client.close())
  for (const expected of [200, 200, 401, 401, 200]) {
    const key = expected === 200 ? 'right' : 'wrong'
    const { statusCode, body } = await client.request({
      path: '/ours',
      method: 'GET',
      headers: { authorization: `Bearer ${key}` }
    })
    await body.dump()
    t.equal(statusCode, expected)
  }
})
