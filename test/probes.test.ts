import { createServer, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import t, { type Test } from 'tap'
import type { ModelGatewayOptions } from '../app.ts'
import { UpstreamError } from '../schemas/errors.ts'
import type { Provider } from '../schemas/provider.ts'
import { build, hello } from './helper.ts'
import { completion } from './plugins/kernel.ts'

// Active probes in the whole app, with an upstream that goes and comes back.

interface Upstream {
  /** What it does when it is asked for an answer, or for its health; `deaf`: its provider does not care for signals. */
  state: 'well' | 'broken' | 'silent' | 'deaf'
  calls: number
  probes: number
  /** Probes that were given up. */
  dropped: number
}

type Probes = { interval: string; timeout: string } | false

async function start(t: Test, probes: Probes, type: 'custom' | 'openai-compatible' | 'llamacpp' = 'custom') {
  const upstream: Upstream = { state: 'well', calls: 0, probes: 0, dropped: 0 }
  const answer = (response: ServerResponse) => {
    if (upstream.state === 'silent') response.on('close', () => upstream.dropped++)
    else {
      response.writeHead(upstream.state === 'well' ? 200 : 500, { 'content-type': 'application/json' })
      response.end(JSON.stringify({ ...completion('hello'), data: [], status: 'ok' }))
    }
  }
  const server = createServer((request, response) => {
    if (request.method === 'GET') upstream.probes++
    else upstream.calls++
    answer(response)
  })
  await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
  t.teardown(() => {
    server.closeAllConnections()
    return new Promise(resolve => server.close(resolve))
  })
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`
  const mine: Provider = {
    name: 'mine',
    capabilities: { dialects: [] },
    price: { input: 0, output: 0 },
    async send({ signal }) {
      const { ok } = await fetch(`${url}/answer`, { method: 'POST', signal })
      if (!ok) throw new UpstreamError('it is broken.')
      return { stream: false, raw: null, body: completion('hello') }
    },
    async health(signal) {
      if (upstream.state === 'deaf') {
        upstream.probes++
        return new Promise(() => {})
      }
      const { ok } = await fetch(`${url}/health`, { signal: signal ?? null })
      return { ok }
    }
  }
  const clock = { now: 0 }
  const options: ModelGatewayOptions = {
    providers: { mine: type === 'custom' ? { type } : { type, baseUrl: url } },
    models: { test: { retries: 0, targets: [{ provider: 'mine', model: 'm' }] } },
    routing: { breaker: { failures: 2, openFor: '1m' }, probes }
  }
  const app = await build(t, options, { now: () => clock.now })
  if (type === 'custom') app.gateway.providers.register(mine)
  await app.ready()
  const call = async () =>
    (await app.inject({ method: 'POST', url: '/v1/chat/completions', payload: hello })).statusCode
  const targets = async () => (await app.inject('/ready')).json().checks.targets
  const until = async (done: () => boolean | Promise<boolean>) => {
    while (!(await done())) await new Promise(resolve => setImmediate(resolve))
  }
  const breaking = async () => {
    upstream.state = 'broken'
    // A breaker opens only where nobody has succeeded for a second.
    clock.now += 1_000
    t.strictSame([await call(), await call()], [502, 502])
    t.match(await targets(), { ok: true, up: [], down: ['mine/m'] })
  }
  return { app, upstream, call, targets, until, breaking }
}

t.test('a target that is well again is found by its probe, long before a call would try it', async t => {
  const { app, upstream, call, targets, until, breaking } = await start(t, { interval: '10ms', timeout: '1s' })
  t.equal(await call(), 200)
  await breaking()
  await until(() => upstream.probes >= 2)
  t.match(await targets(), { down: ['mine/m'] }, 'still not well')
  t.equal(await call(), 503, 'no call has to try it')
  t.equal(upstream.calls, 3)
  t.match(app.gateway.targets.list(), [{ state: 'open', last_error: { code: 'upstream_error' } }])

  upstream.state = 'well'
  await until(async () => (await targets()).up.length === 1)
  t.match(app.gateway.targets.list(), [{ state: 'closed', open_until: null }])
  t.equal(await call(), 200)
  const { probes } = upstream
  for (let turn = 0; turn < 50; turn++) await call()
  t.equal(upstream.probes, probes, 'whoever answers is left in peace')
})

for (const type of ['openai-compatible', 'llamacpp'] as const) {
  t.test(`${type} says by itself how its upstream is`, async t => {
    const { upstream, call, targets, until, breaking } = await start(t, { interval: '10ms', timeout: '1s' }, type)
    await breaking()
    await until(() => upstream.probes >= 2)
    t.match(await targets(), { down: ['mine/m'] })
    upstream.state = 'well'
    await until(async () => (await targets()).up.length === 1)
    t.equal(await call(), 200)
  })
}

t.test('a probe without an answer ends after its time, and the next one goes out', async t => {
  const { upstream, targets, until, breaking } = await start(t, { interval: '10ms', timeout: '50ms' })
  await breaking()
  upstream.state = 'silent'
  await until(() => upstream.dropped >= 2)
  t.match(await targets(), { down: ['mine/m'] })
  upstream.state = 'well'
  await until(async () => (await targets()).up.length === 1)
})

t.test('a provider that never says how it is, whatever it is told, holds up no later probe', async t => {
  const { upstream, targets, until, breaking } = await start(t, { interval: '10ms', timeout: '50ms' })
  await breaking()
  upstream.state = 'deaf'
  const { probes } = upstream
  await until(() => upstream.probes >= probes + 2)
  upstream.state = 'well'
  await until(async () => (await targets()).up.length === 1)
  t.equal(upstream.state, 'well')
})

t.test('probes end with the gateway', async t => {
  const { app, upstream, until, breaking } = await start(t, { interval: '10ms', timeout: '1m' })
  await breaking()
  upstream.state = 'silent'
  const { probes, dropped } = upstream
  await until(() => upstream.probes > probes)
  await app.close()
  await until(() => upstream.dropped > dropped)
  t.ok(upstream.dropped > dropped, 'the one that ran was broken off')
})

t.test('without probes nobody is asked', async t => {
  const { upstream, breaking } = await start(t, false)
  await breaking()
  t.equal(upstream.probes, 0)
})
