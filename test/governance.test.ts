import OpenAI, { RateLimitError } from 'openai'
import t, { type Test } from 'tap'
import type { ModelGatewayOptions } from '../app.ts'
import type { LedgerRecord } from '../schemas/ledger.ts'
import { build, hello, towards } from './helper.ts'
import { scratch } from './long/money.ts'
import { chunks, completion, gate, json, type Received, sse, startUpstream, turn, wantsUsage } from './upstream.ts'

// What tenants, keys, limits, budgets and the ledger come to over HTTP: the real SDK, a real upstream, a real database.

const price = { input: 2, output: 10 }
const usage = { prompt_tokens: 100, completion_tokens: 50, total_tokens: 150 }
/** 100 input and 50 output tokens at that price. */
const cost = 0.0007

/** A gateway with the tenants `acme` and `globex`, each with a key, before a priced upstream. */
async function governed(t: Test, acme: object = {}, more: ModelGatewayOptions = {}) {
  const upstream = await startUpstream()
  t.teardown(() => upstream.close())
  upstream.script(request => (request.json.stream ? sse(streamed(request)) : json(completion({ usage }))))
  const app = await build(t, {
    ...towards(upstream),
    store: `sqlite:${await scratch(t)}/gateway.db`,
    models: { test: { targets: [{ provider: 'up', model: 'upstream-model', price }] } },
    tenants: { acme: { keys: ['key-of-acme'], ...acme }, globex: { keys: ['key-of-globex'] } },
    ...more,
    plugins: { auth: { adminToken: 'admin-token' }, ...more.plugins }
  })
  let asked = 0
  app.addHook('onRequest', async () => void asked++)
  const url = await app.listen({ host: '127.0.0.1', port: 0 })
  const client = (apiKey: string, maxRetries = 0) => new OpenAI({ baseURL: `${url}/v1`, apiKey, maxRetries })
  const admin = async (method: 'GET' | 'POST' | 'PUT' | 'DELETE', path: string, body?: object) => {
    const answer = await app.inject({ method, url: path, headers: { authorization: 'Bearer admin-token' }, body })
    return { status: answer.statusCode, body: answer.body === '' ? null : answer.json() }
  }
  async function rows(): Promise<LedgerRecord[]> {
    await app.gateway.store!.ledger.folded()
    const all: LedgerRecord[] = []
    for await (const piece of app.gateway.store!.ledger.export({})) all.push(...piece)
    return all
  }
  return { upstream, app, url, client, admin, rows, asked: () => asked }
}

function streamed(request: Received) {
  const sent = chunks(['one', ' two', ' three'])
  return wantsUsage(request) ? [...sent, { ...sent[0]!, choices: [], usage }] : sent
}

/** What a promise is refused with. */
async function fault(promise: PromiseLike<unknown>): Promise<unknown> {
  return promise.then(
    () => Promise.reject(new Error('This should have failed.')),
    error => error
  )
}

t.test('a call is charged to its key, its tenant and the gateway, and the answer says what it cost', async t => {
  const { client, admin, rows } = await governed(t)
  const { data, response } = await client('key-of-acme').chat.completions.create(hello).withResponse()
  t.equal(data.usage?.completion_tokens, 50)
  t.equal(response.headers.get('x-gateway-cost-usd'), '0.0007')
  t.ok(Number(response.headers.get('x-gateway-budget-remaining-usd')) < 5)
  for await (const _ of await client('key-of-acme').chat.completions.create({ ...hello, stream: true }));
  const [stream, whole] = await rows()
  t.match(whole, { tenant: 'acme', status: 'settled', httpStatus: 200, stream: false, cost: 700_000, model: 'test' })
  t.match(stream, { tenant: 'acme', status: 'settled', stream: true, cost: 700_000, usage: { source: 'reported' } })
  t.ok(stream!.firstToken! > 0)
  const { body } = await admin('GET', '/api/tenants/acme')
  t.match(body, { spend_usd: 2 * cost, reserved_usd: 0, tokens_in: 200, tokens_out: 100, source: 'config' })
  t.equal(body.records.length, 2)
  t.match((await admin('GET', '/api/tenants/globex')).body, { spend_usd: 0, records: [] })
  t.match((await admin('GET', '/api/stats')).body, {
    requests: 2,
    tokens_in: 200,
    tokens_out: 100,
    cost_total_usd: 2 * cost
  })
})

t.test('the SDK meets a budget that is used up as insufficient_quota, and does not try again', async t => {
  const { client, asked, upstream } = await governed(t, { budget: { usd: 0.0000001 } })
  const error = await fault(client('key-of-acme', 5).chat.completions.create(hello))
  t.type(error, RateLimitError)
  t.match(error, { status: 429, code: 'insufficient_quota', type: 'insufficient_quota' })
  t.equal(asked(), 1)
  t.equal(upstream.requests.length, 0)
})

t.test('the SDK meets a limit as rate_limit_exceeded, waits as long as it is told and tries again', async t => {
  const { client, asked, upstream } = await governed(t, { concurrency: 1 })
  const { promise, open } = gate()
  upstream.script(json(completion({ usage }), { delay: promise }))
  const first = client('key-of-acme').chat.completions.create(hello)
  await upstream.received(1)
  const refused = await fault(client('key-of-acme').chat.completions.create(hello))
  t.match(refused, { status: 429, code: 'rate_limit_exceeded', type: 'rate_limit_error' })
  const headers = refused instanceof RateLimitError ? refused.headers : undefined
  t.equal(headers?.get('retry-after'), '1')
  const before = asked()
  const started = performance.now()
  const second = client('key-of-acme', 5).chat.completions.create(hello)
  while (asked() === before) await turn()
  await turn()
  open()
  await first
  await second
  t.ok(performance.now() - started > 900, 'not before the second that it was told')
  t.equal(asked() - before, 2)
})

t.test('requests per minute are counted for the tenant, whatever its keys, and headers say what is left', async t => {
  const { client, admin } = await governed(t, { requestsPerMinute: 3 })
  const made = await admin('POST', '/api/tenants/acme/keys', {})
  t.equal(made.status, 201)
  const one = await client('key-of-acme').chat.completions.create(hello).withResponse()
  t.equal(one.response.headers.get('x-ratelimit-limit-requests'), '3')
  t.equal(one.response.headers.get('x-ratelimit-remaining-requests'), '2')
  await client(made.body.key).chat.completions.create(hello)
  await client(made.body.key).chat.completions.create(hello)
  t.match(await fault(client('key-of-acme').chat.completions.create(hello)), { code: 'rate_limit_exceeded' })
  t.match(await fault(client(made.body.key).chat.completions.create(hello)), { code: 'rate_limit_exceeded' })
  await client('key-of-globex').chat.completions.create(hello)
})

t.test('a key spends for its own tenant and no other', async t => {
  const { client, upstream, rows } = await governed(t)
  for (const tenant of ['globex', 'nobody', 'public']) {
    const body = { ...hello, tenant }
    t.match(await fault(client('key-of-acme').chat.completions.create(body)), { status: 403, code: 'tenant_mismatch' })
  }
  t.equal(upstream.requests.length, 0)
  await client('admin-token').chat.completions.create({ ...hello, tenant: 'globex' } as typeof hello)
  t.match(await rows(), [{ tenant: 'globex' }])
  const unknown = client('admin-token').chat.completions.create({ ...hello, tenant: 'nobody' } as typeof hello)
  t.match(await fault(unknown), { status: 404, code: 'tenant_not_found' })
})

t.test('a tenant that uses up its budget leaves the others theirs', async t => {
  const { client } = await governed(t, { budget: { usd: 0.012 } })
  let refused: unknown
  for (let call = 0; refused === undefined && call < 50; call++) {
    refused = await client('key-of-acme')
      .chat.completions.create(hello)
      .then(
        () => undefined,
        error => error
      )
  }
  t.match(refused, { code: 'insufficient_quota' })
  t.ok(await client('key-of-globex').chat.completions.create(hello))
})

t.test('a tenant is made, used, changed, switched off and removed over HTTP', async t => {
  const { client, admin } = await governed(t)
  t.equal((await admin('POST', '/api/tenants', { id: 'new', budget_usd: 1 })).status, 201)
  t.equal((await admin('POST', '/api/tenants', { id: 'new', budget_usd: 1 })).status, 409)
  const { body } = await admin('POST', '/api/tenants/new/keys', { name: 'first' })
  t.match(body.key, /^gw_[0-9a-z]{12}_/)
  await client(body.key).chat.completions.create(hello)
  t.match((await admin('GET', '/api/tenants/new')).body, { budget_usd: 1, spend_usd: cost, source: 'api' })
  t.match((await admin('PUT', '/api/tenants/new', { allow_models: ['other-*'] })).body, { budget_usd: 1 })
  t.match(await fault(client(body.key).chat.completions.create(hello)), { status: 403, code: 'model_not_allowed' })
  await admin('PUT', '/api/tenants/new', { allow_models: null, active: false })
  t.match(await fault(client(body.key).chat.completions.create(hello)), { status: 403, code: 'tenant_disabled' })
  await admin('PUT', '/api/tenants/new', { active: true })
  await client(body.key).chat.completions.create(hello)
  t.equal((await admin('DELETE', '/api/tenants/new')).status, 204)
  t.match(await fault(client(body.key).chat.completions.create(hello)), { status: 401 })
  t.equal((await admin('GET', '/api/tenants/new')).status, 404)
  t.equal((await admin('PUT', '/api/tenants/acme', { active: false })).status, 409, 'the file owns this one')
})

t.test('a key is rotated with an overlap, and revoked at once', async t => {
  const { client, admin } = await governed(t)
  const old = (await admin('POST', '/api/tenants/acme/keys', {})).body
  const fresh = (await admin('POST', `/api/tenants/acme/keys/${old.id}/rotate`, {})).body
  for (const { key } of [old, fresh]) await client(key).chat.completions.create(hello)
  t.equal((await admin('DELETE', `/api/tenants/acme/keys/${old.id}`)).status, 204)
  t.match(await fault(client(old.key).chat.completions.create(hello)), { status: 401, code: 'invalid_api_key' })
  await client(fresh.key).chat.completions.create(hello)
  const { body } = await admin('GET', '/api/tenants/acme/keys')
  t.notMatch(JSON.stringify(body), new RegExp(`${old.key}|${fresh.key}`), 'no key is ever shown again')
})

t.test('a key with a budget of its own keeps it through a rotation, and the books agree', async t => {
  const { client, admin, app } = await governed(t)
  const old = (await admin('POST', '/api/tenants/acme/keys', { budget_usd: 0.0107 })).body
  await client(old.key).chat.completions.create(hello)
  const fresh = (await admin('POST', `/api/tenants/acme/keys/${old.id}/rotate`, {})).body
  for (const { key } of [old, fresh]) {
    t.match(await fault(client(key).chat.completions.create(hello)), { code: 'insufficient_quota' })
  }
  const verified = await app.gateway.store!.ledger.verify()
  t.strictSame(verified.differences, [])
})

t.test('the cap of the tenant on output goes upstream, and is what a hold counts with', async t => {
  const { client, upstream } = await governed(t, { maxOutputTokens: 77 })
  await client('key-of-acme').chat.completions.create({ ...hello, max_tokens: 5_000 })
  t.equal(upstream.requests[0]?.json['max_tokens'], 77)
})

t.test('a request that is likely to cost more than one may is refused', async t => {
  const { client } = await governed(t, { maxRequestUsd: 0.001 })
  const dear = { ...hello, max_tokens: 900 }
  t.match(await fault(client('key-of-acme').chat.completions.create(dear)), {
    status: 403,
    code: 'request_cost_exceeded'
  })
  await client('key-of-acme').chat.completions.create({ ...hello, max_tokens: 10 })
})

t.test('a model without a known price is refused, and let in where that is allowed', async t => {
  const models = { test: { targets: [{ provider: 'up', model: 'upstream-model' }] } }
  const strict = await governed(t, {}, { models, plugins: { budgets: { unpriced: 'deny' } } })
  t.match(await fault(strict.client('key-of-acme').chat.completions.create(hello)), {
    status: 403,
    code: 'model_unpriced'
  })
  const lax = await governed(t, {}, { models, plugins: { budgets: { unpriced: 'allow' } } })
  const { response } = await lax.client('key-of-acme').chat.completions.create(hello).withResponse()
  t.equal(response.headers.get('x-gateway-cost-usd'), null)
  t.match(await lax.rows(), [{ cost: null, usage: { input: 100, output: 50 } }])
})

t.test('the whole gateway has a daily limit that an administrator can reset', async t => {
  const { client, admin } = await governed(t, {}, { budget: { dailyLimitUsd: 0.0114 } })
  await client('key-of-acme').chat.completions.create(hello)
  await client('key-of-acme').chat.completions.create(hello)
  t.match(await fault(client('key-of-globex').chat.completions.create(hello)), { code: 'insufficient_quota' })
  t.match((await admin('GET', '/budget/stats')).body, { limit_usd: 0.0114, spend_usd: 2 * cost, reserved_usd: 0 })
  t.equal((await admin('POST', '/budget/reset')).status, 200)
  t.match((await admin('GET', '/budget/stats')).body, { spend_usd: 0 })
  await client('key-of-globex').chat.completions.create(hello)
  const { body } = await admin('GET', '/api/audit')
  t.ok(body.data.some((entry: { action: string }) => entry.action === 'budget.reset'))
})

for (const reports of [true, false]) {
  t.test(`a client that leaves mid-stream is charged once for what it got; usage reported: ${reports}`, async t => {
    const { url, upstream, rows, admin } = await governed(t)
    const words = Array.from({ length: 100 }, (_, index) => ` w${index}`)
    const { promise, open } = gate()
    upstream.script(() => {
      const sent = chunks(words).slice(0, 41)
      if (reports) sent[40] = { ...sent[40]!, usage: { prompt_tokens: 9, completion_tokens: 40, total_tokens: 49 } }
      return sse(
        (async function* () {
          yield* sent
          await promise
        })(),
        { done: false }
      )
    })
    const leaving = new AbortController()
    const answer = await fetch(`${url}/v1/chat/completions`, {
      method: 'POST',
      headers: { authorization: 'Bearer key-of-acme', 'content-type': 'application/json' },
      body: JSON.stringify({ ...hello, stream: true }),
      signal: leaving.signal
    })
    let text = ''
    const decoder = new TextDecoder()
    for (const reader = answer.body!.getReader(); !text.includes(' w39'); ) {
      text += decoder.decode((await reader.read()).value)
    }
    leaving.abort()
    let found = await rows()
    while (found.length === 0 || found[0]?.status === 'open') found = await rows()
    t.match(found, [{ status: 'interrupted', httpStatus: 499, errorCode: 'cancelled' }])
    const [row] = found
    t.equal(row!.usage.source, reports ? 'reported' : 'estimated')
    t.ok(Math.abs(row!.usage.output - 40) <= 2, `${row!.usage.output} of 40 tokens`)
    const { body } = await admin('GET', '/api/tenants/acme')
    t.equal(Math.round(body.spend_usd * 1e9), row!.cost)
    t.equal(body.reserved_usd, 0)
    open()
  })
}

t.test('onClientGone: drain reads a stream that was left to its true usage', async t => {
  const { url, upstream, rows } = await governed(t, {}, { plugins: { ledger: { onClientGone: 'drain' } } })
  const { promise, open } = gate()
  upstream.script(() =>
    sse(
      (async function* () {
        yield* chunks(['one', ' two']).slice(0, 2)
        await promise
        yield { ...chunks(['x']).at(-1)!, usage }
      })()
    )
  )
  const leaving = new AbortController()
  const answer = await fetch(`${url}/v1/chat/completions`, {
    method: 'POST',
    headers: { authorization: 'Bearer key-of-acme', 'content-type': 'application/json' },
    body: JSON.stringify({ ...hello, stream: true }),
    signal: leaving.signal
  })
  await answer.body!.getReader().read()
  leaving.abort()
  await turn()
  open()
  let found = await rows()
  while (found.length === 0 || found[0]?.status === 'open') found = await rows()
  t.match(found, [{ status: 'settled', httpStatus: 499, cost: 700_000, usage: { source: 'reported' } }])
})

t.test('budgets survive a restart', async t => {
  const directory = await scratch(t)
  const store = `sqlite:${directory}/gateway.db`
  const budget = { usd: 0.0114 }
  const first = await governed(t, { budget }, { store })
  await first.client('key-of-acme').chat.completions.create(hello)
  await first.client('key-of-acme').chat.completions.create(hello)
  await first.app.close()
  const second = await governed(t, { budget }, { store })
  t.match((await second.admin('GET', '/api/tenants/acme')).body, { spend_usd: 2 * cost, reserved_usd: 0 })
  t.match(await fault(second.client('key-of-acme').chat.completions.create(hello)), { code: 'insufficient_quota' })
})

t.test('a call in process is under the same limits and in the same books', async t => {
  const { app, rows } = await governed(t, { budget: { usd: 0.0107 } })
  const answer = await app.gateway.complete(hello, app.gateway.caller({ tenant: 'acme' }))
  t.equal(answer.facts.cost, 700_000)
  t.match(await fault(app.gateway.complete(hello, app.gateway.caller({ tenant: 'acme' }))), {
    code: 'GATEWAY_INSUFFICIENT_QUOTA'
  })
  t.match(await fault(app.gateway.complete(hello, app.gateway.caller({ tenant: 'nobody' }))), {
    code: 'GATEWAY_TENANT_NOT_FOUND'
  })
  t.match(await rows(), [{ tenant: 'acme', key: null }])
})

t.test('an idempotency key is answered with what it was answered with, and charged once', async t => {
  const { client, upstream, rows } = await governed(t)
  const options = { headers: { 'Idempotency-Key': 'order-17' } }
  const first = await client('key-of-acme').chat.completions.create(hello, options).asResponse()
  const second = await client('key-of-acme').chat.completions.create(hello, options).asResponse()
  t.equal(await second.text(), await first.text())
  t.equal(upstream.requests.length, 1)
  t.equal((await rows()).length, 1)
  t.match(await fault(client('key-of-acme').chat.completions.create({ ...hello, n: 2 }, options)), {
    code: 'idempotency_key_reused'
  })
  await client('key-of-globex').chat.completions.create(hello, options)
  t.equal(upstream.requests.length, 2, 'the key of another tenant is another key')
})

t.test('/ready names the store, and the price table with its age', async t => {
  const { app } = await governed(t)
  const { checks } = (await app.inject('/ready')).json()
  t.match(checks, { store: { ok: true }, pricing: { ok: true } })
})
