import { once } from 'node:events'
import { request } from 'node:http'
import t from 'tap'
import { csvCell } from '../../plugins/admin/csv.ts'
import {
  AuditAnswer,
  BudgetAnswer,
  KeyAnswer,
  ListAnswer,
  RecordAnswer,
  TenantAnswer
} from '../../schemas/admin-answers.ts'
import { StoreUnavailable } from '../../schemas/errors.ts'
import { tenantDefaults } from '../../schemas/tenants.ts'
import { books, fits, host, key, now, record, tenant, token } from './admin/fakes.ts'

const everyRoute = [
  'GET /api/tenants',
  'POST /api/tenants',
  'GET /api/tenants/acme',
  'PUT /api/tenants/acme',
  'DELETE /api/tenants/acme',
  'GET /api/tenants/acme/records',
  'GET /api/tenants/acme/keys',
  'POST /api/tenants/acme/keys',
  'POST /api/tenants/acme/keys/k1/rotate',
  'DELETE /api/tenants/acme/keys/k1',
  'GET /api/records',
  'GET /api/audit',
  'GET /budget/stats',
  'POST /budget/reset'
]

for (const route of everyRoute) {
  t.test(`${route} is the administrator's alone`, async t => {
    const { ask, books } = await host(t)
    const nobody = await ask(route, { secret: null })
    t.equal(nobody.statusCode, 401, 'without a credential, where anonymous access is open')
    t.equal(nobody.json().error.code, 'invalid_api_key')
    t.equal(nobody.headers['cache-control'], 'no-store')
    t.equal((await ask(route, { secret: 'gw_wrong' })).statusCode, 401, 'a wrong one')
    const tenant = await ask(route, { secret: 'gw_chat' })
    t.equal(tenant.statusCode, 403, 'a key of a tenant')
    t.equal(tenant.json().error.code, 'missing_scope')
    t.strictSame(books.actors, [])
  })
}

t.test('a key with the scope admin is let in, and named in the audit', async t => {
  const { ask, books } = await host(t)
  const made = await ask('POST /api/tenants', { secret: 'gw_admin', body: { id: 'new', budget_usd: 1 } })
  t.equal(made.statusCode, 201, made.body)
  t.strictSame(books.actors, ['admin-key creates new'])
})

t.test('answers are not kept by anybody', async t => {
  const { ask } = await host(t)
  for (const route of ['GET /api/tenants', 'GET /api/tenants/nobody', 'GET /api/tenants?limit=0']) {
    t.equal((await ask(route)).headers['cache-control'], 'no-store', route)
  }
})

t.test('a tenant is made with an id and a budget; the rest has defaults', async t => {
  const { ask, books } = await host(t)
  const response = await ask('POST /api/tenants', { body: { id: 'Org:7@eu.x_y-z', budget_usd: 0.1 } })
  t.equal(response.statusCode, 201)
  fits(t, TenantAnswer, response.json())
  t.strictSame(response.json(), {
    id: 'Org:7@eu.x_y-z',
    budget_usd: 0.1,
    period: 'total',
    spend_usd: 0,
    reserved_usd: 0,
    tokens_in: 0,
    tokens_out: 0,
    requests: 0,
    resets_at: null,
    active: true,
    open: false,
    allow_models: null,
    max_output_tokens: 1000,
    max_request_usd: 0.05,
    requests_per_minute: null,
    tokens_per_minute: null,
    concurrency: null,
    metadata: {},
    source: 'api',
    created_at: '2026-11-21T12:00:00.000Z'
  })
  t.equal(books.tenants.at(-1)?.budget.limit, 100_000_000)
  t.strictSame(books.actors, ['admin creates Org:7@eu.x_y-z'])
})

t.test('everything that may be said of a tenant is kept', async t => {
  const { ask } = await host(t)
  const said = {
    id: 'full',
    budget_usd: null,
    period: 'month',
    max_request_usd: null,
    max_output_tokens: 5,
    requests_per_minute: 6,
    tokens_per_minute: 7,
    concurrency: 8,
    allow_models: ['a', 'org/*'],
    active: false,
    open: true,
    metadata: { plan: 'gold', nested: { deep: [1, null] } }
  }
  t.match((await ask('POST /api/tenants', { body: said })).json(), said)
  t.match((await ask('GET /api/tenants/full')).json(), said)
})

t.test('a tenant that exists is 409', async t => {
  const { ask } = await host(t)
  for (const id of ['acme', 'public']) {
    const response = await ask('POST /api/tenants', { body: { id, budget_usd: 1 } })
    t.equal(response.statusCode, 409)
    t.equal(response.json().error.code, 'tenant_exists')
  }
})

t.test('PUT changes what it names and nothing else', async t => {
  const { ask, books } = await host(t)
  const before = books.tenants[1]
  const answer = await ask('PUT /api/tenants/acme', { body: { budget_usd: 7.5 } })
  t.equal(answer.statusCode, 200)
  t.strictSame(books.tenants[1], { ...before, budget: { limit: 7_500_000_000, period: 'total' } })
  await ask('PUT /api/tenants/acme', { body: { period: 'day', active: false } })
  t.strictSame(books.tenants[1], { ...before, budget: { limit: 7_500_000_000, period: 'day' }, active: false })
  await ask('PUT /api/tenants/acme', { body: { budget_usd: null, max_request_usd: null } })
  t.match(books.tenants[1], { budget: { limit: null, period: 'day' }, maxRequest: null })
  t.strictSame(books.actors, ['admin updates acme', 'admin updates acme', 'admin updates acme'])
})

t.test('DELETE removes a tenant', async t => {
  const { ask } = await host(t)
  const response = await ask('DELETE /api/tenants/acme')
  t.equal(response.statusCode, 204)
  t.equal(response.body, '')
  t.equal((await ask('GET /api/tenants/acme')).statusCode, 404)
  t.equal((await ask('DELETE /api/tenants/acme')).json().error.code, 'tenant_not_found')
})

t.test('a tenant of the configuration file is shown and not changed', async t => {
  const { ask, books } = await host(t)
  const shown = (await ask('GET /api/tenants/public')).json()
  t.match(shown, { source: 'config', created_at: null })
  for (const route of ['PUT /api/tenants/public', 'DELETE /api/tenants/public']) {
    const response = await ask(route, { body: {} })
    t.equal(response.statusCode, 409)
    t.equal(response.json().error.code, 'tenant_read_only')
  }
  t.strictSame(books.actors, [])
})

t.test('a list of tenants reads the balances once, and says what is held', async t => {
  const held = books({ held: new Map([['tenant:t3', 12_345]]), records: [record('r1', { tenant: 't3' })] })
  for (let index = 0; index < 250; index++) held.tenants.push(tenant(`t${index}`))
  const { ask } = await host(t, held)
  const page = (await ask('GET /api/tenants?limit=50')).json()
  fits(t, ListAnswer(TenantAnswer), page)
  t.equal(page.data.length, 50)
  t.equal(held.balanceReads, 1)
  t.match(
    page.data.find((one: { id: string }) => one.id === 't3'),
    { spend_usd: 0.00045, reserved_usd: 0.000012345, tokens_in: 5, tokens_out: 6, requests: 1 }
  )
})

t.test('pages of tenants follow one another to the end', async t => {
  const held = books()
  for (let index = 0; index < 250; index++) held.tenants.push(tenant(`t${index}`))
  const { ask } = await host(t, held)
  const seen: string[] = []
  let after = ''
  for (;;) {
    const { data, next } = (await ask(`GET /api/tenants?limit=63${after}`)).json()
    seen.push(...data.map((one: { id: string }) => one.id))
    if (next === null) break
    after = `&after=${encodeURIComponent(next)}`
  }
  t.strictSame(
    seen,
    held.tenants.map(({ id }) => id)
  )
  t.equal((await ask('GET /api/tenants')).json().data.length, 100, 'a hundred where nothing is said')
  t.equal((await ask('GET /api/tenants?limit=252')).json().next, null, 'no page after the last')
})

t.test('one tenant comes with its last 200 records', async t => {
  const held = books({ records: Array.from({ length: 250 }, (_, index) => record(`r${index}`)) })
  held.records.unshift(record('other', { tenant: 'other' }))
  const { ask } = await host(t, held)
  const answer = (await ask('GET /api/tenants/acme')).json()
  fits(t, TenantAnswer, answer)
  t.equal(answer.records.length, 200)
  t.equal(answer.records[0].id, 'r0')
})

t.test('without the store a tenant shows what is in memory', async t => {
  const { ask } = await host(t, books({ records: [record('r1')] }), ['store'])
  const answer = (await ask('GET /api/tenants/acme')).json()
  t.equal(answer.records.length, 1)
  t.equal((await ask('GET /api/tenants/acme/records')).json().error.code, 'resource_not_found')
})

const refusedBodies: Array<[string, string, string | null]> = [
  ['no id', '{"budget_usd":1}', 'id'],
  ['no budget', '{"id":"a"}', 'budget_usd'],
  ['an unknown field', '{"id":"a","budget_usd":1,"budget":2}', 'budget'],
  ['an answer sent back', '{"id":"a","budget_usd":1,"spend_usd":0}', 'spend_usd'],
  ['a negative budget', '{"id":"a","budget_usd":-0.01}', 'budget_usd'],
  ['a budget that cannot be counted', '{"id":"a","budget_usd":9000001}', 'budget_usd'],
  ['1e400', '{"id":"a","budget_usd":1e400}', 'budget_usd'],
  ['NaN as a text', '{"id":"a","budget_usd":"NaN"}', 'budget_usd'],
  ['a number as a text', '{"id":"a","budget_usd":"5"}', 'budget_usd'],
  ['true', '{"id":"a","budget_usd":true}', 'budget_usd'],
  ['a list', '{"id":"a","budget_usd":[5]}', 'budget_usd'],
  ['NaN itself', '{"id":"a","budget_usd":NaN}', null],
  ['an unknown period', '{"id":"a","budget_usd":1,"period":"year"}', 'period'],
  ['a fraction of a request', '{"id":"a","budget_usd":1,"requests_per_minute":1.5}', 'requests_per_minute'],
  ['no concurrency', '{"id":"a","budget_usd":1,"concurrency":0}', 'concurrency'],
  ['no output', '{"id":"a","budget_usd":1,"max_output_tokens":0}', 'max_output_tokens'],
  ['null output', '{"id":"a","budget_usd":1,"max_output_tokens":null}', 'max_output_tokens'],
  ['too many tokens', '{"id":"a","budget_usd":1,"tokens_per_minute":1e10}', 'tokens_per_minute'],
  ['models as a text', '{"id":"a","budget_usd":1,"allow_models":"*"}', 'allow_models'],
  ['a model with a space', '{"id":"a","budget_usd":1,"allow_models":["a","b c"]}', 'allow_models[1]'],
  ['metadata as a list', '{"id":"a","budget_usd":1,"metadata":[]}', 'metadata'],
  ['large metadata', `{"id":"a","budget_usd":1,"metadata":{"x":"${'x'.repeat(17_000)}"}}`, 'metadata'],
  ['deep metadata', `{"id":"a","budget_usd":1,"metadata":{"x":${'['.repeat(9e4)}${']'.repeat(9e4)}}}`, 'metadata'],
  ['__proto__', '{"id":"a","budget_usd":1,"__proto__":{"open":true}}', null],
  ['__proto__ in metadata', '{"id":"a","budget_usd":1,"metadata":{"__proto__":{"x":1}}}', null],
  ['half a body', '{"id":"a"', null],
  ['a list as body', '[]', null],
  ['a text as body', '"acme"', null],
  ['no body', '', null],
  ['an empty id', '{"id":"","budget_usd":1}', 'id'],
  ['an id of 129 characters', `{"id":"${'a'.repeat(129)}","budget_usd":1}`, 'id'],
  ['an id of 10 kB', `{"id":"${'a'.repeat(10_000)}","budget_usd":1}`, 'id'],
  ...[
    'a/b',
    '..',
    '.',
    '../acme',
    'a b',
    'a%2fb',
    '__proto__',
    'größe',
    'a\\u0000',
    'a\\n',
    "a'--",
    'a"',
    '-a',
    '💰',
    'a\\u202e'
  ].map((id): [string, string, string | null] => [
    `the id ${id}`,
    `{"id":${id.includes('\\') ? `"${id}"` : JSON.stringify(id)},"budget_usd":1}`,
    'id'
  ]),
  ['an id that is a number', '{"id":7,"budget_usd":1}', 'id']
]

for (const [name, text, param] of refusedBodies) {
  t.test(`POST /api/tenants refuses ${name}`, async t => {
    const { ask, books } = await host(t)
    const response = await ask('POST /api/tenants', { text })
    t.equal(response.statusCode, 400, response.body)
    t.match(response.json(), { error: { type: 'invalid_request_error', code: null, param, message: String } })
    t.equal(books.tenants.length, 2)
    t.ok(response.body.length < 600, 'what was sent is not repeated')
  })
}

t.test('a fault says what is allowed', async t => {
  const { ask } = await host(t)
  const message = async (body: object) => (await ask('POST /api/tenants', { body })).json().error.message
  t.equal(
    await message({ id: 'a', budget_usd: -1 }),
    'budget_usd must be an amount in USD from 0 to 9000000, or null for none.'
  )
  t.equal(await message({ id: 'a', budget_usd: 1, color: 'red' }), 'color is not known here.')
  t.equal(await message({ budget_usd: 1 }), 'id is required.')
  t.equal(
    await message({ id: 'a', budget_usd: 1, period: 'year' }),
    'period must be one of total, hour, day, week, month.'
  )
})

t.test('-0 and more digits than can be counted are normalised', async t => {
  const { ask, books } = await host(t)
  await ask('POST /api/tenants', { text: '{"id":"zero","budget_usd":-0}' })
  t.ok(Object.is(books.tenants.at(-1)?.budget.limit, 0))
  await ask('POST /api/tenants', { text: '{"id":"fine","budget_usd":0.12345678951234}' })
  t.equal(books.tenants.at(-1)?.budget.limit, 123_456_790)
  await ask('POST /api/tenants', { text: '{"id":"tiny","budget_usd":1e-300}' })
  t.equal(books.tenants.at(-1)?.budget.limit, 0)
  t.equal((await ask('POST /api/tenants', { text: '{"id":"most","budget_usd":9e6}' })).json().budget_usd, 9_000_000)
})

const strangers = ['a%2fb', '%2f', '__proto__', 'constructor', 'a%00', '%E2%82%AC', "x'--", 'nobody', 'a'.repeat(900)]
for (const id of strangers) {
  t.test(`/api/tenants/${id.slice(0, 20)} is no tenant`, async t => {
    const { ask } = await host(t)
    for (const [route, body] of [
      [`GET /api/tenants/${id}`],
      [`PUT /api/tenants/${id}`, {}],
      [`DELETE /api/tenants/${id}`],
      [`GET /api/tenants/${id}/records`],
      [`GET /api/tenants/${id}/keys`],
      [`POST /api/tenants/${id}/keys`, {}],
      [`POST /api/tenants/${id}/keys/k1/rotate`, {}],
      [`DELETE /api/tenants/${id}/keys/k1`]
    ] as Array<[string, object?]>) {
      const response = await ask(route, { body })
      t.equal(response.statusCode, 404, route)
    }
  })
}

t.test('dots in a path as it came are no tenant, and lead nowhere', async t => {
  const { app } = await host(t)
  const { port } = new URL(await app.listen({ host: '127.0.0.1', port: 0 }))
  for (const path of [
    '/api/tenants/..',
    '/api/tenants/%2e%2e',
    '/api/tenants/../records',
    '/api/tenants/..%2frecords'
  ]) {
    const headers = { authorization: `Bearer ${token}` }
    const asked = request({ host: '127.0.0.1', port, path, headers }).end()
    const [response] = await once(asked, 'response')
    response.resume()
    t.equal(response.statusCode, 404, path)
  }
})

t.test('an id of 10 kB in the path is refused', async t => {
  const { ask } = await host(t)
  const { statusCode } = await ask(`GET /api/tenants/${'a'.repeat(10_000)}`)
  t.ok(statusCode === 404 || statusCode === 414, String(statusCode))
})

const refusedQueries: Array<[string, string]> = [
  ['/api/tenants?limit=0', 'limit'],
  ['/api/tenants?limit=1001', 'limit'],
  ['/api/tenants?limit=abc', 'limit'],
  ['/api/tenants?limit=-1', 'limit'],
  ['/api/tenants?limit=1e2', 'limit'],
  ['/api/tenants?limit=', 'limit'],
  ['/api/tenants?limit=1&limit=2', 'limit'],
  ['/api/tenants?after=..', 'after'],
  ['/api/tenants?after=a%00', 'after'],
  [`/api/tenants?after=${'a'.repeat(10_000)}`, 'after'],
  ['/api/tenants?offset=1', 'offset'],
  ['/api/tenants/acme/records?limit=0', 'limit'],
  ['/api/tenants/acme/records?after=%27%3B--', 'after'],
  ['/api/tenants/acme/records?from=yesterday', 'from'],
  ['/api/tenants/acme/records?from=-1', 'from'],
  ['/api/tenants/acme/records?to=2026-13-01', 'to'],
  ['/api/tenants/acme/records?to=99999999999999999', 'to'],
  ['/api/tenants/acme/records?status=done', 'status'],
  ['/api/tenants/acme/records?model=', 'model'],
  ['/api/tenants/acme/records?model=a&model=b', 'model'],
  ['/api/tenants/acme/records?key=%00', 'key'],
  ['/api/tenants/acme/records?format=xml', 'format'],
  ['/api/tenants/acme/records?tenant=other', 'tenant'],
  ['/api/records?tenant=..', 'tenant'],
  ['/api/tenants/acme/keys?limit=0', 'limit'],
  ['/api/audit?limit=1001', 'limit'],
  ['/api/audit?subject=%0a', 'subject']
]
for (const [url, param] of refusedQueries) {
  t.test(`GET ${url.slice(0, 60)} is refused`, async t => {
    const { ask } = await host(t)
    const response = await ask(`GET ${url}`)
    t.equal(response.statusCode, 400, response.body)
    t.match(response.json(), { error: { type: 'invalid_request_error', code: null, param } })
  })
}

t.test('records are paged and carry what a row knows', async t => {
  const held = books({ records: [record('r1'), record('r2'), record('r3')] })
  const { ask } = await host(t, held)
  const first = (await ask('GET /api/tenants/acme/records?limit=2')).json()
  fits(t, ListAnswer(RecordAnswer), first)
  t.strictSame(
    first.data.map(({ id }: { id: string }) => id),
    ['r1', 'r2']
  )
  const rest = (await ask(`GET /api/tenants/acme/records?limit=2&after=${first.next}`)).json()
  t.strictSame(
    rest.data.map(({ id }: { id: string }) => id),
    ['r3']
  )
  t.equal(rest.next, null)
  t.strictSame(first.data[0], {
    id: 'r1',
    time: '2026-11-21T12:00:00.000Z',
    tenant: 'acme',
    key: 'k1',
    model: 'test',
    stream: false,
    http_status: 200,
    provider: 'up',
    upstream_model: 'upstream-model',
    status: 'settled',
    error_code: null,
    tokens_in: 5,
    tokens_out: 6,
    usage: {
      input: 3,
      cache_read: 2,
      cache_write_5m: 0,
      cache_write_1h: 0,
      audio_input: 0,
      output: 5,
      reasoning: 1,
      audio_output: 0
    },
    usage_source: 'reported',
    cost_usd: 0.00045,
    duration_ms: 12.5,
    ttft_ms: null,
    trace_id: null,
    user: null,
    tags: null,
    config_hash: '0123456789ab',
    attempts: [
      {
        number: 1,
        provider: 'up',
        upstream_model: 'upstream-model',
        price_version: 'v1',
        status: 'settled',
        error_code: null,
        tokens_in: 5,
        tokens_out: 6,
        usage: first.data[0].usage,
        usage_source: 'reported',
        cost_usd: 0.00045,
        duration_ms: 12,
        ttft_ms: null
      }
    ]
  })
})

t.test('filters reach the store', async t => {
  const { ask, books } = await host(t)
  await ask(
    'GET /api/tenants/acme/records?model=org/m&key=k1&status=failed&from=2026-11-21T10:00:00+01:00&to=1790000000000'
  )
  await ask('GET /api/records?tenant=acme&from=2026-11-21&to=2026-11-21T12:00')
  await ask('GET /api/records?from=2026-11-21T10:00:00%2B01:00')
  await ask('GET /api/records')
  t.strictSame(books.filters, [
    { tenant: 'acme', key: 'k1', model: 'org/m', status: 'failed', from: Date.UTC(2026, 10, 21, 9), to: 1790000000000 },
    { tenant: 'acme', from: Date.UTC(2026, 10, 21), to: Date.UTC(2026, 10, 21, 12) },
    { from: Date.UTC(2026, 10, 21, 9) },
    {}
  ])
})

t.test('the records of a tenant are never those of another', async t => {
  const { ask } = await host(t, books({ records: [record('r1'), record('r2', { tenant: 'public' })] }))
  const ids = async (url: string) => (await ask(`GET ${url}`)).json().data.map(({ id }: { id: string }) => id)
  t.strictSame(await ids('/api/tenants/acme/records'), ['r1'])
  t.strictSame(await ids('/api/tenants/public/records'), ['r2'])
  t.strictSame(await ids('/api/records'), ['r1', 'r2'])
})

t.test('a store that cannot be read is 503, before a byte of an export', async t => {
  const { ask, books } = await host(t)
  books.failure = new StoreUnavailable('it is being repaired.')
  for (const url of ['/api/tenants/acme/records', '/api/records?format=csv', '/api/audit', '/api/tenants']) {
    const response = await ask(`GET ${url}`)
    t.equal(response.statusCode, 503, url)
    t.equal(response.json().error.code, 'store_unavailable')
    t.notOk(response.headers['content-disposition'])
  }
})

t.test('JSON lines hold every row', async t => {
  const rows = Array.from({ length: 2_500 }, (_, index) => record(`r${index}`))
  const { ask, books: held } = await host(t, books({ records: rows }))
  for (const [url, headers] of [
    ['/api/tenants/acme/records?format=jsonl', {}],
    ['/api/tenants/acme/records', { accept: 'application/x-ndjson' }],
    ['/api/records', { accept: 'text/plain;q=0.5, application/jsonl' }]
  ] as const) {
    const response = await ask(`GET ${url}`, { headers })
    t.equal(response.statusCode, 200)
    t.match(response.headers['content-type'], /^application\/x-ndjson/)
    t.match(response.headers['content-disposition'], /^attachment; filename="records(-acme)?-2026-11-21\.jsonl"$/)
    const lines = response.body.trimEnd().split('\n')
    t.equal(lines.length, 2_500)
    fits(t, RecordAnswer, JSON.parse(lines[0]!))
    t.equal(JSON.parse(lines.at(-1)!).id, 'r2499')
  }
  t.equal(held.exportsClosed >= 3, true)
})

t.test('CSV has a head, CRLF, and quotes where it must', async t => {
  const held = books({
    records: [
      record('r1', { model: 'a,"b"', user: 'two\nlines', tags: { team: 'x' }, cost: 7 }),
      record('r2', { cost: null, config: null })
    ]
  })
  const { ask } = await host(t, held)
  const response = await ask('GET /api/tenants/acme/records?format=csv')
  t.match(response.headers['content-type'], /^text\/csv/)
  const [head = '', first = '', second = '', end] = response.body.split('\r\n')
  t.match(head, /^id,time,tenant,key,status,http_status,error_code,model,provider,.*,tags,config_hash$/)
  t.match(first, 'r1,2026-11-21T12:00:00.000Z,acme,k1,settled,200,,"a,""b""",up,upstream-model,1,false,5,6,')
  t.match(first, ',reported,0.000000007,12.5,,,"two\nlines","{""team"":""x""}",0123456789ab')
  t.match(second, ',reported,,12.5,', 'an unknown cost is empty, not zero')
  t.match(second, /,,$/, 'and so is an unknown configuration')
  t.equal(end, '')
  t.equal((await ask('GET /api/tenants/acme/records', { headers: { accept: 'text/csv' } })).body, response.body)
})

t.test('an empty export is an empty file', async t => {
  const { ask } = await host(t)
  t.equal((await ask('GET /api/records?format=jsonl')).body, '')
  t.match((await ask('GET /api/records?format=csv')).body, /^id,[^\n]*\r\n$/)
})

t.test('a cell that a spreadsheet would run is only a text', async t => {
  for (const evil of ['=1+1', '+1', '-1', '@SUM(A1)', '\t=1', ' =1', '\r=1', '\n=1', '＝1', "=cmd|'/c calc'!A1"]) {
    t.match(csvCell(evil), /^"?'/, evil)
  }
  t.equal(csvCell('=1,"2"'), `"'=1,""2"""`)
  t.equal(csvCell(-1), '-1', 'a number is a number')
  t.equal(csvCell('plain'), 'plain')
  t.equal(csvCell(null), '')
})

t.test('an export reads no faster than its client, and stops when it leaves', async t => {
  const row = record('r', { user: 'x'.repeat(200) })
  const { app, books: held } = await host(t, books({ records: Array.from({ length: 400_000 }, () => row) }))
  const url = await app.listen({ host: '127.0.0.1', port: 0 })
  const asked = request(`${url}/api/records?format=jsonl`, { headers: { authorization: `Bearer ${token}` } }).end()
  const [response] = await once(asked, 'response')
  await once(response, 'readable')
  let before = -1
  while (held.pieces !== before) {
    before = held.pieces
    for (let turn = 0; turn < 200; turn++) await new Promise(resolve => setImmediate(resolve))
  }
  t.ok(held.pieces < 200, `${held.pieces} of 400 pieces were read for a client that takes nothing`)
  t.equal(held.exportsClosed, 0)
  asked.destroy()
  while (held.exportsClosed === 0) await new Promise(resolve => setImmediate(resolve))
  t.equal(held.exportsClosed, 1)
})

t.test('a client that leaves before the first row ends the export too', async t => {
  const gate = Promise.withResolvers<void>()
  const { app, books: held } = await host(t, books({ records: Array(50_000).fill(record('r1')), gate: gate.promise }))
  const url = await app.listen({ host: '127.0.0.1', port: 0 })
  const asked = request(`${url}/api/records?format=jsonl`, { headers: { authorization: `Bearer ${token}` } }).end()
  asked.on('error', () => {})
  const turn = () => new Promise(resolve => setImmediate(resolve))
  while (held.filters.length === 0) await turn()
  asked.destroy()
  const connections = () => new Promise<number>(resolve => app.server.getConnections((_, count) => resolve(count)))
  while ((await connections()) > 0) await turn()
  gate.resolve()
  while (held.exportsClosed === 0) await turn()
  t.ok(held.pieces < 5, `${held.pieces} of 50 pieces were read`)
})

t.test('HEAD of an export does not read the ledger', async t => {
  const { ask, books } = await host(t)
  t.equal((await ask('HEAD /api/records')).statusCode, 404)
  t.equal(books.pieces, 0)
})

t.test('a key is shown once', async t => {
  const { ask, books: held } = await host(t)
  const made = await ask('POST /api/tenants/acme/keys', { body: {} })
  t.equal(made.statusCode, 201)
  fits(t, KeyAnswer, made.json())
  t.match(made.json(), { id: 'k1', key: 'gw_k1_secret', tenant: 'acme', scopes: ['chat'], active: true })
  const list = await ask('GET /api/tenants/acme/keys')
  fits(t, ListAnswer(KeyAnswer), list.json())
  t.notMatch(list.body, 'secret')
  t.notMatch(list.body + made.body, 'a-hash-that-nobody-sees')
  t.strictSame(held.actors, ['admin creates key k1'])
})

t.test('a key is made without a body', async t => {
  const { ask } = await host(t)
  t.equal((await ask('POST /api/tenants/public/keys')).statusCode, 201, 'also for a configured tenant')
})

t.test('everything that may be said of a key is kept', async t => {
  const { ask } = await host(t)
  const said = {
    name: 'ci, größe',
    scopes: ['admin'],
    budget_usd: 2.5,
    period: 'day',
    requests_per_minute: 1,
    tokens_per_minute: 2,
    concurrency: 3
  }
  const expires_at = '2026-12-01T00:00:00Z'
  const made = await ask('POST /api/tenants/acme/keys', { body: { ...said, expires_at } })
  t.match(made.json(), { ...said, expires_at: '2026-12-01T00:00:00.000Z' })
  t.match((await ask('GET /api/tenants/acme/keys')).json().data[0], said)
})

const refusedKeys: Array<[object, string]> = [
  [{ scopes: [] }, 'scopes'],
  [{ scopes: ['root'] }, 'scopes[0]'],
  [{ scopes: ['chat', 'chat'] }, 'scopes'],
  [{ name: '' }, 'name'],
  [{ name: 'x'.repeat(257) }, 'name'],
  [{ name: 'a\u0000' }, 'name'],
  [{ budget_usd: -1 }, 'budget_usd'],
  [{ period: 'day' }, 'period'],
  [{ expires_at: 'tomorrow' }, 'expires_at'],
  [{ expires_at: '2020-01-01' }, 'expires_at'],
  [{ expires_at: now }, 'expires_at'],
  [{ expires_at: 1e300 }, 'expires_at'],
  [{ key: 'gw_mine_secret' }, 'key'],
  [{ hash: 'x' }, 'hash'],
  [{ tenant: 'other' }, 'tenant']
]
for (const [body, param] of refusedKeys) {
  t.test(`POST …/keys refuses ${JSON.stringify(body).slice(0, 40)}`, async t => {
    const { ask, books } = await host(t)
    const response = await ask('POST /api/tenants/acme/keys', { body })
    t.equal(response.statusCode, 400, response.body)
    t.equal(response.json().error.param, param)
    t.equal(books.keys.length, 0)
    t.notMatch(response.body, 'gw_mine_secret')
  })
}

t.test('a key without a limit may be counted by a period', async t => {
  const { ask, books } = await host(t)
  await ask('POST /api/tenants/acme/keys', { body: { budget_usd: null, period: 'week' } })
  await ask('POST /api/tenants/acme/keys', { body: { budget_usd: null } })
  t.strictSame(
    books.keys.map(({ budget }) => budget),
    [{ limit: null, period: 'week' }, null]
  )
})

t.test('a key in place of a tenant is not repeated', async t => {
  const { ask } = await host(t)
  const response = await ask('GET /api/tenants/gw_abc_secret')
  t.equal(response.statusCode, 404)
  t.notMatch(response.body, 'secret')
})

t.test('rotation shows the new key, and for how long the old one works', async t => {
  const { ask, books: held } = await host(t, books({ keys: [key('k1'), key('k2')] }))
  const rotated = await ask('POST /api/tenants/acme/keys/k1/rotate', { body: { overlap_seconds: 60 } })
  t.equal(rotated.statusCode, 201)
  t.match(rotated.json(), { id: 'k1-new', key: 'gw_k1-new_secret', active: true })
  t.match(held.keys[0], { expiresAt: now + 60_000, rotatedTo: 'k1-new' })
  await ask('POST /api/tenants/acme/keys/k2/rotate')
  t.match(held.keys[1], { expiresAt: now + 86_400_000 }, 'a day where nothing is said')
  for (const overlap_seconds of [-1, 1.5, '60', 2_592_001, null]) {
    const response = await ask('POST /api/tenants/acme/keys/k1/rotate', { body: { overlap_seconds } })
    t.equal(response.json().error.param, 'overlap_seconds', String(overlap_seconds))
  }
  t.strictSame(held.actors, ['admin rotates k1', 'admin rotates k2'])
})

t.test('a revoked key stays in the list', async t => {
  const { ask } = await host(t, books({ keys: [key('k1')] }))
  t.equal((await ask('DELETE /api/tenants/acme/keys/k1')).statusCode, 204)
  t.match((await ask('GET /api/tenants/acme/keys')).json().data, [
    { id: 'k1', active: false, revoked_at: '2026-11-21T12:00:00.000Z' }
  ])
})

t.test('a key is its own tenant’s only', async t => {
  const { ask, books: held } = await host(t, books({ keys: [key('k1', { tenant: 'acme' })] }))
  for (const route of ['DELETE /api/tenants/public/keys/k1', 'POST /api/tenants/public/keys/k1/rotate']) {
    const response = await ask(route)
    t.equal(response.statusCode, 404)
    t.equal(response.json().error.code, 'key_not_found')
  }
  t.equal(held.keys[0]?.revokedAt, null)
})

t.test('what stands where the id of a key belongs is not repeated', async t => {
  const { ask } = await host(t)
  const response = await ask('DELETE /api/tenants/acme/keys/gw_abc%20secret')
  t.equal(response.statusCode, 404)
  t.notMatch(response.body, 'secret')
})

t.test('the gateway has no budget of its own', async t => {
  const { ask, books } = await host(t)
  const stats = await ask('GET /budget/stats')
  t.equal(stats.statusCode, 200)
  fits(t, BudgetAnswer, stats.json())
  t.match(stats.json(), { configured: false, limit_usd: null, remaining_usd: null })
  const reset = await ask('POST /budget/reset')
  t.equal(reset.statusCode, 409)
  t.match(reset.json().error, { type: 'invalid_request_error', message: /budget\.dailyLimitUsd/ })
  t.strictSame(books.actors, [])
})

t.test('the budget of the gateway is shown and reset', async t => {
  const budget = {
    scope: 'gateway',
    period: 'day' as const,
    periodKey: 'day:2026-11-21',
    limit: 20_000_000_000,
    spent: 19_000_000_000n,
    held: 1_500_000_000,
    resetsAt: Date.UTC(2026, 10, 22),
    hardStop: true,
    warningThreshold: 0.8,
    warned: true
  }
  const { ask, books: held } = await host(t, books({ gatewayBudget: budget }))
  const stats = (await ask('GET /budget/stats')).json()
  fits(t, BudgetAnswer, stats)
  t.strictSame(stats, {
    configured: true,
    limit_usd: 20,
    spend_usd: 19,
    reserved_usd: 1.5,
    remaining_usd: 0,
    period: 'day',
    resets_at: '2026-11-22T00:00:00.000Z',
    hard_stop: true,
    warning_threshold: 0.8,
    warned: true
  })
  const reset = await ask('POST /budget/reset')
  t.equal(reset.statusCode, 200)
  t.match(reset.json(), { spend_usd: 0, reserved_usd: 1.5, remaining_usd: 18.5 })
  t.strictSame(held.actors, ['admin resets'])
})

t.test('the audit is in the words and units of HTTP', async t => {
  const before = { ...tenantDefaults, id: 'acme', source: 'api' as const, createdAt: now }
  const audits = [
    {
      id: 2,
      time: now,
      actor: 'admin',
      action: 'tenant.update',
      subject: 'acme',
      before,
      after: { ...before, budget: { limit: null, period: 'day' }, metadata: { maxRequest: 1 } }
    },
    { id: 1, time: now, actor: 'k9', action: 'key.create', subject: 'k1', before: null, after: key('k1') }
  ]
  const { ask } = await host(t, books({ audits }))
  const response = await ask('GET /api/audit')
  fits(t, ListAnswer(AuditAnswer), response.json())
  t.match(response.json().data, [
    {
      id: 2,
      actor: 'admin',
      action: 'tenant.update',
      before: {
        budget: { limit_usd: 5, period: 'total' },
        max_request_usd: 0.05,
        max_output_tokens: 1000,
        created_at: '2026-11-21T12:00:00.000Z'
      },
      after: { budget: { limit_usd: null, period: 'day' }, metadata: { maxRequest: 1 } }
    },
    { id: 1, before: null }
  ])
  t.notMatch(response.body, 'a-hash-that-nobody-sees')
  t.strictSame(
    (await ask('GET /api/audit?subject=k1')).json().data.map(({ id }: { id: number }) => id),
    [1]
  )
})

t.test('routes whose plugin is off do not exist', async t => {
  const { ask } = await host(t, books(), ['tenants', 'keys', 'ledger', 'budgets', 'store'])
  for (const route of everyRoute) {
    const response = await ask(route)
    t.equal(response.statusCode, 404, route)
    t.equal(response.json().error.code, 'resource_not_found')
  }
})

t.test('without authentication there is no administrator, so there are no routes', async t => {
  const { ask } = await host(t, books(), ['authenticate'])
  for (const route of everyRoute) t.equal((await ask(route, { secret: null })).statusCode, 404, route)
})

t.test('a key with the scope admin ends with its tenant being switched off', async t => {
  const { ask } = await host(t, books({ tenants: [tenant('acme', { active: false })] }))
  const response = await ask('GET /api/tenants', { secret: 'gw_admin' })
  t.equal(response.statusCode, 403)
  t.equal(response.json().error.code, 'tenant_disabled')
  t.equal((await ask('PUT /api/tenants/acme', { body: { active: true } })).statusCode, 200, 'not the admin token')
})

t.test('bodies are JSON', async t => {
  const { ask } = await host(t)
  const response = await ask('POST /api/tenants', {
    text: 'id=a',
    headers: { 'content-type': 'application/x-www-form-urlencoded' }
  })
  t.equal(response.statusCode, 415)
})
