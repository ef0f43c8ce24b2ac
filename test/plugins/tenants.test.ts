import t from 'tap'
import { allowList } from '../../plugins/tenants/allow.ts'
import type { Principal } from '../../schemas/gateway.ts'
import { tenantDefaults } from '../../schemas/tenants.ts'
import { fakeClock, fakeRedis, fakeStore, type ProcessOptions, start, tenant } from './auth/kit.ts'
import { ask, scripted, textOf } from './kernel.ts'

const notFound = { code: 'GATEWAY_TENANT_NOT_FOUND', statusCode: 404 }
const disabled = { code: 'GATEWAY_TENANT_DISABLED', statusCode: 403 }
const notAllowed = { code: 'GATEWAY_MODEL_NOT_ALLOWED', statusCode: 403 }
const readOnly = { code: 'GATEWAY_TENANT_READ_ONLY', statusCode: 409 }
const exists = { code: 'GATEWAY_TENANT_EXISTS', statusCode: 409 }
const gone = { code: 'GATEWAY_STORE_UNAVAILABLE', statusCode: 503 }
const mismatch = { code: 'GATEWAY_TENANT_MISMATCH', statusCode: 403 }

/** A process that is ready, and calls in it. */
async function running(t: Parameters<typeof start>[0], options: ProcessOptions = {}) {
  const process = await start(t, options)
  await process.app.ready()
  const { gateway } = process
  const call = (principal: Partial<Principal> & { tenant: string }, model = 'test') =>
    gateway
      .complete(
        { ...ask, model },
        {
          ...gateway.caller(),
          principal: { key: null, kind: 'process', scopes: ['chat'], ...principal }
        }
      )
      .then(textOf)
  return { ...process, tenants: gateway.tenants!, call }
}

// configured ones

t.test('configured tenants are compiled, with the defaults of those that say nothing', async t => {
  const { tenants } = await running(t, {
    tenants: {
      tenants: {
        acme: {
          budget: { usd: 12.5, period: 'day' },
          maxRequestUsd: false,
          maxOutputTokens: 7,
          allowModels: ['a'],
          requestsPerMinute: 3,
          tokensPerMinute: 4,
          concurrency: 5,
          open: true,
          active: false,
          metadata: { plan: 'gold' }
        },
        free: { budget: false, maxRequestUsd: 0.1 },
        plain: {}
      }
    }
  })
  t.same(tenants.get('acme'), {
    id: 'acme',
    source: 'config',
    active: false,
    open: true,
    allowModels: ['a'],
    budget: { limit: 12_500_000_000, period: 'day' },
    maxRequest: null,
    maxOutputTokens: 7,
    requestsPerMinute: 3,
    tokensPerMinute: 4,
    concurrency: 5,
    metadata: { plan: 'gold' },
    createdAt: 0
  })
  t.match(tenants.get('free'), { budget: { limit: null, period: 'total' }, maxRequest: 100_000_000 })
  t.same(tenants.get('plain'), { ...tenantDefaults, id: 'plain', source: 'config', createdAt: 0 })
  t.same(tenants.get('public'), { ...tenantDefaults, id: 'public', source: 'config', createdAt: 0 })
})

t.test('configured tenants cannot be changed, removed or made again', async t => {
  const { tenants } = await running(t, { store: fakeStore(), tenants: { tenants: { acme: {} } } })
  await t.rejects(tenants.update('acme', { active: false }, 'admin'), readOnly)
  await t.rejects(tenants.remove('public', 'admin'), readOnly)
  await t.rejects(tenants.create(tenant('acme'), 'admin'), exists)
})

t.test('names that objects inherit are no tenants', async t => {
  const { tenants, call } = await running(t, { store: fakeStore() })
  for (const id of ['__proto__', 'constructor', 'toString', 'hasOwnProperty']) {
    t.equal(tenants.get(id), undefined)
    await t.rejects(call({ tenant: id }), notFound)
  }
})

// stored ones

t.test('a tenant that is made, changed and removed is audited', async t => {
  const store = fakeStore()
  const { tenants } = await running(t, { store })
  const made = await tenants.create(tenant('acme', { maxOutputTokens: 5 }), 'admin')
  t.same(made, tenant('acme', { maxOutputTokens: 5 }))
  const changed = await tenants.update('acme', { active: false, metadata: { a: 1 } }, 'root')
  t.same(changed, { ...made, active: false, metadata: { a: 1 } })
  await tenants.remove('acme', 'root')
  t.same(store.log, [
    { actor: 'admin', action: 'tenant.create', subject: 'acme', before: null, after: made },
    { actor: 'root', action: 'tenant.update', subject: 'acme', before: made, after: changed },
    { actor: 'root', action: 'tenant.remove', subject: 'acme', before: changed, after: null }
  ])
  t.equal(await tenants.find('acme'), undefined)
})

t.test('what is left out of a change, or undefined in it, stays; id, source and age always do', async t => {
  const { tenants } = await running(t, { store: fakeStore() })
  const made = await tenants.create(tenant('acme'), 'admin')
  const change = { active: undefined, maxOutputTokens: 9, id: 'other', source: 'config', createdAt: 5 }
  t.same(await tenants.update('acme', change, 'admin'), { ...made, maxOutputTokens: 9 })
})

t.test('a tenant is made once, and what does not exist cannot be changed', async t => {
  const { tenants } = await running(t, { store: fakeStore() })
  await tenants.create(tenant('acme'), 'admin')
  await t.rejects(tenants.create(tenant('acme'), 'admin'), exists)
  await t.rejects(tenants.update('nobody', {}, 'admin'), notFound)
  await t.rejects(tenants.remove('nobody', 'admin'), notFound)
})

t.test('ids that are none never reach the database', async t => {
  const store = fakeStore()
  const { tenants, call } = await running(t, { store, tenants: { createOnDemand: true } })
  const wild = [
    '',
    'a/b',
    '../etc',
    'a b',
    'ä',
    'a\0b',
    "'; DROP TABLE tenants; --",
    '-a',
    '\u{1f600}',
    'x'.repeat(10_000)
  ]
  const before = store.asked.length
  for (const id of wild) {
    t.equal(await tenants.find(id), undefined, id.slice(0, 30))
    await t.rejects(call({ tenant: id }), notFound)
    await t.rejects(call({ tenant: id, kind: 'admin' }), notFound)
    await t.rejects(tenants.update(id, {}, 'admin'), notFound)
    await t.rejects(tenants.remove(id, 'admin'), notFound)
    await t.rejects(tenants.create(tenant(id), 'admin'), { code: 'GATEWAY_INVALID_REQUEST', statusCode: 400 })
  }
  t.equal(store.asked.length, before)
  for (const id of ['a', 'a.b', 'a:b', 'user@example.com', 'A_b-1', 'x'.repeat(128)]) {
    t.equal((await tenants.create(tenant(id), 'admin')).id, id)
  }
})

t.test('without a store there are only configured tenants', async t => {
  const { tenants, call } = await running(t, { tenants: { createOnDemand: true } })
  await t.rejects(tenants.create(tenant('acme'), 'admin'), gone)
  await t.rejects(call({ tenant: 'acme', kind: 'admin' }), notFound)
  t.equal(await tenants.find('acme'), undefined)
  t.same(
    (await tenants.list({ limit: 10 })).map(({ id }) => id),
    ['public']
  )
})

t.test('the list has configured tenants first, then stored ones by id, in pages of any size', async t => {
  const store = fakeStore()
  for (const id of ['b', 'd', 'a', 'z', 'c'])
    await store.tenants.insert(
      { ...tenant(id), source: 'api' },
      { actor: '', action: '', subject: '', before: null, after: null }
    )
  const { tenants } = await running(t, { store, tenants: { tenants: { zoo: {}, c: {} } } })
  const all = ['public', 'zoo', 'c', 'a', 'b', 'd', 'z']
  t.same(
    (await tenants.list({ limit: 100 })).map(({ id }) => id),
    all
  )
  t.match(
    (await tenants.list({ limit: 100 }))[2],
    { id: 'c', source: 'config' },
    'what is configured hides what is stored'
  )
  for (let limit = 1; limit <= 8; limit++) {
    const found: string[] = []
    for (;;) {
      const page = await tenants.list({ after: found.at(-1), limit })
      found.push(...page.map(({ id }) => id))
      if (page.length < limit) break
    }
    t.same(found, all, `${limit} at a time`)
  }
})

t.test('two changes at once both count', async t => {
  const { tenants } = await running(t, { store: fakeStore() })
  await tenants.create(tenant('acme'), 'admin')
  await Promise.all([
    tenants.update('acme', { active: false }, 'a'),
    tenants.update('acme', { maxOutputTokens: 9 }, 'b'),
    tenants.update('acme', { open: true }, 'c')
  ])
  t.match(tenants.get('acme'), { active: false, maxOutputTokens: 9, open: true })
})

t.test('two changes at once in two processes both count', async t => {
  const store = fakeStore()
  const redis = fakeRedis()
  const one = await running(t, { store, shared: redis() })
  const two = await running(t, { store, shared: redis() })
  await one.tenants.create(tenant('acme'), 'admin')
  await Promise.all([
    one.tenants.update('acme', { active: false }, 'a'),
    two.tenants.update('acme', { maxOutputTokens: 9 }, 'b')
  ])
  const expected = { active: false, maxOutputTokens: 9 }
  t.match(await one.tenants.find('acme'), expected)
  t.match(await two.tenants.find('acme'), expected)
  t.match(await store.tenants.get('acme'), expected)
})

t.test('a tenant that was used is called again without a read, 100,000 idle ones cost nothing', async t => {
  const store = fakeStore()
  for (let n = 0; n < 100_000; n++) store.rows.tenants.set(`t${n}`, JSON.stringify(tenant(`t${n}`)))
  const { tenants, call } = await running(t, { store, tenants: { kept: 10 } })
  t.same(
    store.asked.filter(what => what.startsWith('tenants')),
    []
  )
  await call({ tenant: 't5' })
  await call({ tenant: 't5' })
  t.same(
    store.asked.filter(what => what.startsWith('tenants')),
    ['tenants.get t5']
  )
  for (let n = 100; n < 200; n++) await call({ tenant: `t${n}` })
  t.equal(tenants.get('t5'), undefined, 'idle ones are evicted')
  t.equal(tenants.get('t199')?.id, 't199')
})

// what calls may do

t.test('a call of an unknown tenant is 404, in process too', async t => {
  const { app, gateway } = await running(t, { store: fakeStore() })
  await t.rejects(app.gateway.complete(ask, gateway.caller({ tenant: 'nobody' })), notFound)
  t.equal(await textOf(await gateway.complete(ask, gateway.caller())), 'up says')
})

t.test('a tenant that is switched off is refused at once, and served again when it is on', async t => {
  const { tenants, call } = await running(t, { store: fakeStore(), tenants: { tenants: { off: { active: false } } } })
  await t.rejects(call({ tenant: 'off' }), disabled)
  await tenants.create(tenant('acme'), 'admin')
  await call({ tenant: 'acme' })
  await tenants.update('acme', { active: false }, 'admin')
  await t.rejects(call({ tenant: 'acme' }), disabled)
  await tenants.update('acme', { active: true }, 'admin')
  await call({ tenant: 'acme' })
  await tenants.remove('acme', 'admin')
  await t.rejects(call({ tenant: 'acme' }), notFound)
})

const targets = [{ provider: 'up', model: 'm' }]

t.test('a tenant may use the models of its list, by the name that was resolved', async t => {
  const up = scripted('up')
  const { gateway, tenants, call } = await running(t, {
    providers: [up],
    routing: {
      models: { 'chat-a': { targets }, 'chat-b': { targets }, secret: { targets } },
      tasks: { hidden: 'secret' },
      defaultModel: 'secret'
    },
    tenants: { tenants: { acme: { allowModels: ['chat-*'] }, none: { allowModels: [] } } }
  })
  await call({ tenant: 'acme' }, 'chat-a')
  await call({ tenant: 'acme' }, 'chat-b')
  await t.rejects(call({ tenant: 'acme' }, 'secret'), notAllowed)
  const hidden = { messages: ask.messages, task: 'hidden' }
  await t.rejects(gateway.complete(hidden, gateway.caller({ tenant: 'acme' })), notAllowed)
  await t.rejects(gateway.complete({ messages: ask.messages }, gateway.caller({ tenant: 'acme' })), notAllowed)
  await t.rejects(call({ tenant: 'none' }, 'chat-a'), notAllowed)
  t.equal(up.attempts.length, 2)
  t.equal(tenants.allows('acme', 'chat-a'), true)
  t.equal(tenants.allows('acme', 'secret'), false)
  t.equal(tenants.allows('none', 'chat-a'), false)
  t.equal(tenants.allows('public', 'secret'), true)
  t.equal(tenants.allows('nobody', 'chat-a'), false)
})

t.test('a tenant that is switched off may use no model', async t => {
  const { tenants } = await running(t, { tenants: { tenants: { off: { active: false } } } })
  t.equal(tenants.allows('off', 'test'), false)
})

t.test('a star stands for any characters, and nothing else is special', async t => {
  const fits = (pattern: string, name: string) => allowList([pattern])(name)
  for (const [pattern, name] of [
    ['*', ''],
    ['*', 'anything/at:all'],
    ['gpt-4', 'gpt-4'],
    ['gpt-*', 'gpt-'],
    ['gpt-*', 'gpt-4o'],
    ['*-mini', 'gpt-4o-mini'],
    ['a*b*c', 'abc'],
    ['a*b*c', 'aXbbYc'],
    ['a*bc*c', 'abcbcc'],
    ['**', 'x'],
    ['a**b', 'ab'],
    ['openai/*', 'openai/gpt-4'],
    ['a.c', 'a.c'],
    ['[a-z]+', '[a-z]+']
  ] as const) {
    t.ok(fits(pattern, name), `${pattern} fits ${name}`)
  }
  for (const [pattern, name] of [
    ['gpt-4', 'gpt-4o'],
    ['gpt-4', 'GPT-4'],
    ['gpt-*', 'xgpt-4'],
    ['*-mini', 'gpt-mini-4'],
    ['a*b*c', 'acb'],
    ['ab*ba', 'aba'],
    ['a*bb*b', 'abb'],
    ['a.c', 'abc'],
    ['a?c', 'abc'],
    ['(a|b)', 'a'],
    ['', 'a']
  ] as const) {
    t.notOk(fits(pattern, name), `${pattern} does not fit ${name}`)
  }
  t.notOk(allowList([])('a'))
  t.ok(allowList(['b', 'c*', 'a'])('a'))
})

t.test('a list of stars costs no more than the name is long', async t => {
  const started = performance.now()
  t.notOk(allowList([`${'*a'.repeat(100)}*b`])('a'.repeat(256)))
  t.ok(performance.now() - started < 100)
})

t.test('the output cap of a tenant goes upstream', async t => {
  const up = scripted('up')
  const { gateway } = await running(t, { providers: [up], tenants: { tenants: { acme: { maxOutputTokens: 7 } } } })
  await gateway.complete(ask, gateway.caller({ tenant: 'acme' }))
  await gateway.complete({ ...ask, max_tokens: 3 }, gateway.caller({ tenant: 'acme' }))
  t.same(
    up.attempts.map(({ request }) => request.max_completion_tokens ?? request.max_tokens),
    [7, 3]
  )
})

t.test('a refused call never reaches a provider', async t => {
  const up = scripted('up')
  const { app, call } = await running(t, { providers: [up], tenants: { tenants: { off: { active: false } } } })
  await t.rejects(call({ tenant: 'off' }), disabled)
  await t.rejects(call({ tenant: 'nobody' }), notFound)
  t.equal(up.attempts.length, 0)
  t.equal(app.gateway.running, 0)
})

// on demand

t.test('an administrator, a JWT and the host itself make a tenant by naming it; nobody else does', async t => {
  const store = fakeStore()
  const clock = fakeClock()
  const { tenants, call } = await running(t, {
    store,
    now: clock.now,
    tenants: { createOnDemand: true, defaults: { maxOutputTokens: 55 } }
  })
  await call({ tenant: 'a', kind: 'admin', key: 'admin' })
  await call({ tenant: 'b', kind: 'jwt' })
  await call({ tenant: 'c' })
  t.same(tenants.get('a'), tenant('a', { maxOutputTokens: 55, createdAt: clock.time }))
  t.same(
    store.log.map(({ actor, action, subject }) => [actor, action, subject]),
    [
      ['admin', 'tenant.create', 'a'],
      ['jwt', 'tenant.create', 'b'],
      ['process', 'tenant.create', 'c']
    ]
  )
  await t.rejects(call({ tenant: 'd', kind: 'key', key: 'k' }), notFound)
  await t.rejects(call({ tenant: 'd', kind: 'key', key: 'k', scopes: ['chat', 'admin'] }), notFound)
  await t.rejects(call({ tenant: 'd', kind: 'anonymous' }), notFound)
  t.notOk(store.rows.tenants.has('d'))
})

t.test('without createOnDemand nobody does', async t => {
  const store = fakeStore()
  const { call } = await running(t, { store })
  for (const kind of ['admin', 'jwt', 'process'] as const) await t.rejects(call({ tenant: 'a', kind }), notFound)
  t.equal(store.rows.tenants.size, 0)
})

t.test('two calls at once make one tenant, in one process and in two', async t => {
  const store = fakeStore()
  const redis = fakeRedis()
  const one = await running(t, { store, shared: redis(), tenants: { createOnDemand: true } })
  const two = await running(t, { store, shared: redis(), tenants: { createOnDemand: true } })
  const calls = [one, two, one, two, one].map(({ call }) => call({ tenant: 'new', kind: 'admin' }))
  t.same(await Promise.all(calls), Array(5).fill('up says'))
  t.equal(store.log.length, 1)
})

// made-up names

t.test('a made-up name is read once, and its tenant served as soon as it is made', async t => {
  const store = fakeStore()
  const { tenants, call } = await running(t, { store })
  for (let n = 0; n < 20; n++) await t.rejects(call({ tenant: 'made-up' }), notFound)
  t.same(store.asked.filter(what => what === 'tenants.get made-up').length, 1)
  await tenants.create(tenant('made-up'), 'admin')
  await call({ tenant: 'made-up' })
})

t.test('a tenant that another process makes is served here at once', async t => {
  const store = fakeStore()
  const redis = fakeRedis()
  const one = await running(t, { store, shared: redis() })
  const two = await running(t, { store, shared: redis() })
  await t.rejects(two.call({ tenant: 'acme' }), notFound)
  await one.tenants.create(tenant('acme'), 'admin')
  await two.call({ tenant: 'acme' })
  await one.tenants.update('acme', { active: false }, 'admin')
  await t.rejects(two.call({ tenant: 'acme' }), disabled)
  await one.tenants.remove('acme', 'admin')
  await t.rejects(two.call({ tenant: 'acme' }), notFound)
})

// what is gone

t.test('while the store is gone, tenants in memory are served and others are 503', async t => {
  const store = fakeStore()
  const { tenants, call } = await running(t, { store, tenants: { tenants: { fixed: {} }, createOnDemand: true } })
  await tenants.create(tenant('warm'), 'admin')
  store.up = false
  store.state = { ok: false, reason: 'it was stopped', backlog: 0 }
  await call({ tenant: 'warm' })
  await call({ tenant: 'fixed' })
  await t.rejects(call({ tenant: 'cold' }), gone)
  await t.rejects(call({ tenant: 'cold', kind: 'admin' }), gone)
  await t.rejects(tenants.update('warm', { active: false }, 'admin'), gone)
  await call({ tenant: 'warm' })
})

t.test('while Redis is down a change elsewhere counts after a second', async t => {
  const store = fakeStore()
  const redis = fakeRedis()
  const clock = fakeClock()
  const [sharedOne, sharedTwo] = [redis(), redis()]
  const one = await running(t, { store, shared: sharedOne, now: clock.now })
  const two = await running(t, { store, shared: sharedTwo, now: clock.now })
  await one.tenants.create(tenant('acme'), 'admin')
  await two.call({ tenant: 'acme' })
  sharedOne.cut()
  sharedTwo.cut()
  await one.tenants.update('acme', { active: false }, 'admin')
  clock.time += 1_000
  await t.rejects(two.call({ tenant: 'acme' }), disabled)
})

// anonymous callers

t.test('an anonymous caller may name open tenants, stored ones too', async t => {
  const store = fakeStore()
  const { tenants, gateway, authenticate } = await running(t, {
    store,
    tenants: { tenants: { shut: {}, guests: { open: true } } }
  })
  const anonymous = (await authenticate({})) as Principal
  const as = async (id: string) =>
    gateway.complete(ask, { ...gateway.caller(), principal: gateway.actFor!(anonymous, id) })
  for (const [id, open] of [
    ['stored-open', true],
    ['stored-shut', false]
  ] as const) {
    store.rows.tenants.set(id, JSON.stringify(tenant(id, { open })))
  }
  t.equal(await textOf(await as('public')), 'up says')
  t.equal(await textOf(await as('guests')), 'up says')
  await t.rejects(as('shut'), mismatch)
  await t.rejects(as('stored-shut'), mismatch)
  t.equal(await textOf(await as('stored-open')), 'up says')
  await t.rejects(as('nobody'), notFound)
  await tenants.update('stored-open', { open: false }, 'admin')
  await t.rejects(as('stored-open'), mismatch)
})

t.test('a key learns nothing of other tenants, whether they exist or not', async t => {
  const { by, gateway } = await running(t, {
    store: fakeStore(),
    tenants: { tenants: { acme: { keys: ['gw_acme'] }, other: {} } }
  })
  const key = await by('gw_acme')
  const told = ['other', 'nobody', '__proto__', 'a/b'].map(id => {
    try {
      gateway.actFor!(key, id)
      return 'let in'
    } catch (error) {
      return String(error).replaceAll(id, '<id>')
    }
  })
  t.equal(new Set(told).size, 1)
  t.throws(() => gateway.actFor!(key, 'nobody'), mismatch)
  t.equal(gateway.actFor!(key, 'acme'), key)
})
