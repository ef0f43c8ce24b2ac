import Fastify, { type FastifyInstance } from 'fastify'
import t, { type Test } from 'tap'
import modelGateway, { type ModelGatewayOptions } from '../../app.ts'
import gateway from '../../plugins/gateway/index.ts'
import http from '../../plugins/http/index.ts'
import routing from '../../plugins/routing/index.ts'
import traces from '../../plugins/traces.ts'
import { ListAnswer, TraceAnswer } from '../../schemas/admin-answers.ts'
import { InsufficientQuota } from '../../schemas/errors.ts'
import type { Principal } from '../../schemas/gateway.ts'
import { stack } from '../helper.ts'
import { chunks, completion, failure, gate, json, sse } from '../upstream.ts'
import { asker, fits } from './admin/fakes.ts'
import { ask, askStream, patient, says, scripted } from './kernel.ts'

const adminToken = 'the-token-of-the-operator'
const admin: Principal = { tenant: 'public', key: 'admin', kind: 'admin', scopes: ['chat', 'admin'] }

/** The plugin with nothing but what it needs; whoever asks is the administrator. */
async function alone(t: Test, send = says('Hello'), before?: (app: FastifyInstance) => void) {
  const app = Fastify()
  t.teardown(() => app.close())
  await app.register(gateway)
  await app.register(routing, {
    models: Object.fromEntries(
      ['test', 'other'].map(name => [name, { retries: 0, targets: [{ provider: 'up', model: 'm' }] }])
    )
  })
  app.gateway.providers.register(scripted('up', send))
  await app.register(http, {})
  app.gateway.decorate('authenticate', () => admin)
  await app.register(traces)
  app.gateway.http.catchAll(app)
  before?.(app)
  await app.ready()
  const list = async (query = '') => {
    const response = await app.inject(`/api/traces${query}`)
    t.equal(response.statusCode, 200, response.body)
    const answer = response.json()
    fits(t, ListAnswer(TraceAnswer), answer)
    t.equal(answer.next, null)
    return answer.data
  }
  return { app, gateway: app.gateway, list }
}

/** The whole app, with an administrator and an upstream that a test scripts. */
async function started(t: Test, options: ModelGatewayOptions = {}) {
  const made = await stack(t, {
    store: 'sqlite::memory:',
    models: { test: { retries: 0, targets: [{ provider: 'up', model: 'm', price: { input: 1, output: 1 } }] } },
    ...options,
    plugins: { auth: { adminToken }, ...options.plugins }
  })
  const asked = asker(made.app, adminToken)
  const list = async (query = '') => (await asked(`GET /api/traces${query}`)).json().data
  return { ...made, ask: asked, list, client: made.client.withOptions({ apiKey: adminToken }) }
}

const messages = [{ role: 'user' as const, content: 'Hello' }]

t.test('a call is shown with everything that its record says', async t => {
  const { gateway, list } = await alone(t)
  t.strictSame(await list(), [])
  const { facts } = await gateway.complete(ask, { ...gateway.caller({ tenant: 'acme' }), id: 'req_1' })
  const [{ time, duration_ms, ...trace }] = await list()
  t.strictSame(trace, {
    id: 'req_1',
    tenant: 'acme',
    key: null,
    caller: 'process',
    lane: 'process',
    model: 'test',
    stream: false,
    status: 'settled',
    http_status: 200,
    provider: 'up',
    upstream_model: 'm',
    error_code: null,
    error_message: null,
    tokens_in: 0,
    tokens_out: 0,
    usage_source: 'estimated',
    cost_usd: null,
    ttft_ms: null,
    attempts: 1,
    retries: 0,
    fallbacks: 0,
    cache: 'off',
    trace_id: facts.traceId,
    config_hash: null
  })
  t.ok(Math.abs(Date.parse(time) - Date.now()) < 60_000)
  t.ok(duration_ms >= 0)
  t.match(String(duration_ms), /^\d+(\.\d{1,3})?$/, 'no more places than a record has')
})

t.test('without an administrator there is no route, and the log says so', async t => {
  const lines: string[] = []
  const app = Fastify({ logger: { level: 'warn', stream: { write: line => lines.push(line) } } })
  t.teardown(() => app.close())
  await app.register(gateway)
  await app.register(routing, {})
  await app.register(http, {})
  await app.register(traces)
  t.equal((await app.inject('/api/traces')).statusCode, 404)
  t.match(lines.join(''), /GET \/api\/traces is off: without the plugin auth/)
})

t.test('of 1,000 calls the last 200 are kept, newest first', async t => {
  const { gateway, list } = await alone(t)
  for (let call = 0; call < 1_000; call++) await gateway.complete(ask, { ...gateway.caller(), id: `req_${call}` })
  const ids = (await list()).map(({ id }: TraceAnswer) => id)
  t.strictSame(
    ids,
    Array.from({ length: 200 }, (_, index) => `req_${999 - index}`)
  )
  t.strictSame(
    (await list('?limit=3')).map(({ id }: TraceAnswer) => id),
    ['req_999', 'req_998', 'req_997']
  )
  t.strictSame((await list('?limit=200')).length, 200)
})

t.test('calls that run are shown as open, and once when they have ended', async t => {
  const { gateway, list } = await alone(t, patient)
  const departure = new AbortController()
  const answering = gateway.complete(ask, { ...gateway.caller({ signal: departure.signal }), id: 'req_running' })
  t.match(await list(), [
    { id: 'req_running', status: 'open', http_status: null, duration_ms: null, cost_usd: null, attempts: 1 }
  ])
  t.equal((await list('?status=open')).length, 1)
  departure.abort()
  await t.rejects(answering)
  t.match(await list(), [{ id: 'req_running', status: 'interrupted', http_status: 499, error_code: 'cancelled' }])
  t.equal((await list('?status=open')).length, 0)
})

t.test('the newest is the one that began last, whichever ended first', async t => {
  const { promise, open } = gate()
  const { gateway, list } = await alone(t, async attempt => {
    if (attempt.inference.id === 'req_slow') await promise
    return says('Hello')(attempt)
  })
  const slow = gateway.complete(ask, { ...gateway.caller(), id: 'req_slow' })
  await new Promise(resolve => setTimeout(resolve, 5))
  await gateway.complete(ask, { ...gateway.caller(), id: 'req_fast' })
  open()
  await slow
  t.strictSame(
    (await list()).map(({ id }: TraceAnswer) => id),
    ['req_fast', 'req_slow']
  )
})

t.test('refused calls are shown, which no record is of', async t => {
  const { gateway, list } = await alone(t, says('Hello'), app =>
    app.gateway.intercept('admit', () => {
      throw new InsufficientQuota('Nothing is left.')
    })
  )
  await t.rejects(gateway.complete(ask, gateway.caller()))
  t.match(await list(), [
    {
      status: 'failed',
      http_status: 429,
      error_code: 'insufficient_quota',
      error_message: 'Nothing is left.',
      provider: null,
      upstream_model: null,
      attempts: 0
    }
  ])
})

t.test('filters', async t => {
  const { gateway, list } = await alone(t)
  const first = await gateway.complete(ask, { ...gateway.caller({ tenant: 'acme' }), id: 'req_a' })
  await gateway.complete({ ...ask, model: 'other' }, { ...gateway.caller(), id: 'req_b' })
  const left = await gateway.complete(askStream, { ...gateway.caller(), id: 'req_c' })
  if (!left.stream) return t.fail('no stream')
  await left.frames.return()
  const cases: Record<string, string[]> = {
    'tenant=acme': ['req_a'],
    'tenant=public': ['req_c', 'req_b'],
    'model=other': ['req_b'],
    'provider=up': ['req_c', 'req_b', 'req_a'],
    'provider=nobody': [],
    'status=interrupted': ['req_c'],
    'status=failed': [],
    [`trace_id=${first.facts.traceId}`]: ['req_a'],
    'id=req_b': ['req_b'],
    'tenant=public&status=settled': ['req_b'],
    'status=settled&limit=1': ['req_b']
  }
  for (const [query, ids] of Object.entries(cases)) {
    t.strictSame((await list(`?${query}`)).map(({ id }: TraceAnswer) => id).sort(), ids.sort(), query)
  }
})

t.test('what cannot be asked for is refused by its name', async t => {
  const { app } = await alone(t)
  for (const [query, param, message] of [
    ['limit=0', 'limit', 'limit must be a whole number from 1 to 200.'],
    ['limit=201', 'limit', 'limit must be a whole number from 1 to 200.'],
    ['limit=1e1', 'limit', 'limit must be a whole number from 1 to 200.'],
    ['status=good', 'status', 'status must be one of open, settled, interrupted, failed.'],
    ['trace_id=ABC', 'trace_id', 'trace_id must be 32 hex digits.'],
    ['after=x', 'after', 'after is not known here.'],
    ['tenant=a&tenant=b', 'tenant', /^tenant must be/]
  ] as const) {
    const response = await app.inject(`/api/traces?${query}`)
    t.equal(response.statusCode, 400, query)
    t.match(response.json().error, { param, message }, query)
  }
})

t.test('x-trace-id finds the call in the traces and in the records of its tenant', async t => {
  const { client, upstream, list, ask } = await started(t)
  upstream.script(json(completion({ content: 'Hello' })), sse(chunks('Hello')), failure(400, { message: 'no' }))
  const whole = await client.chat.completions.create({ model: 'test', messages }).withResponse()
  const stream = await client.chat.completions.create({ model: 'test', messages, stream: true }).withResponse()
  for await (const _chunk of stream.data);
  const refused = await client.chat.completions.create({ model: 'test', messages }).catch(error => error)
  for (const [headers, status] of [
    [whole.response.headers, 200],
    [stream.response.headers, 200],
    [refused.headers, 400]
  ] as const) {
    const id = headers.get('x-trace-id')
    const request = headers.get('x-request-id')
    t.match(await list(`?trace_id=${id}`), [{ id: request, trace_id: id, http_status: status, tenant: 'public' }])
    const { data } = (await ask('GET /api/tenants/public/records')).json()
    t.match(
      data.filter((row: { trace_id: string }) => row.trace_id === id),
      [{ id: request, http_status: status }]
    )
  }
  t.match(await list('?limit=1'), [{ caller: 'admin', lane: 'http', error_code: String }])
  const all = await list()
  t.ok(all[1].ttft_ms > 0 && all[1].stream)
  t.ok(all[2].cost_usd > 0 && all[2].tokens_in > 0)
})

t.test("it is the administrator's alone, and does not exist where it is off or nobody can be told apart", async t => {
  const { app, ask } = await started(t)
  t.equal((await app.inject('/api/traces')).statusCode, 401)
  t.equal((await ask('GET /api/traces', { secret: 'gw_wrong' })).statusCode, 401)
  const answer = await ask('GET /api/traces')
  t.equal(answer.statusCode, 200)
  t.equal(answer.headers['cache-control'], 'no-store')
  const off = await started(t, { plugins: { traces: false } })
  t.equal((await off.ask('GET /api/traces')).statusCode, 404)
  const open = await started(t, { plugins: { auth: false } })
  t.equal((await open.ask('GET /api/traces')).statusCode, 404)
})

t.test('two gateways in one host each have their own, below their prefix', async t => {
  const app = Fastify()
  t.teardown(() => app.close())
  for (const name of ['one', 'two']) {
    await app.register(modelGateway, { prefix: `/${name}`, name, store: false, plugins: { auth: { adminToken } } })
  }
  await app.ready()
  const ask = asker(app, adminToken)
  t.equal((await ask('POST /one/v1/chat/completions', { body: { model: 'echo/echo', messages } })).statusCode, 200)
  t.match((await ask('GET /one/api/traces')).json().data, [{ model: 'echo/echo', provider: 'echo' }])
  t.strictSame((await ask('GET /two/api/traces')).json().data, [])
  t.equal((await ask('GET /api/traces')).statusCode, 404)
})
