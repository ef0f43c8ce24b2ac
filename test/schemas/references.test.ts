import t from 'tap'
import { faultsOf } from './helper.ts'

const echo = { provider: 'echo', model: 'x' }
const model = (...fallbacks: string[]) => ({ targets: [echo], fallbacks })

t.test('a target names a provider of the file', async t => {
  t.strictSame(
    faultsOf({ providers: { a: { type: 'echo' } }, models: { m: { targets: [{ provider: 'a', model: 'x' }, echo] } } }),
    ['models.m.targets[1].provider: found "echo"; allowed: a name of providers: a']
  )
  t.strictSame(faultsOf({ providers: {}, models: { m: { targets: [echo] } } }), [
    'models.m.targets[0].provider: found "echo"; allowed: a name of providers: there are none'
  ])
})

t.test('a target may name a provider that is off', async t => {
  const providers = { echo: { type: 'echo', enabled: false } }
  t.strictSame(faultsOf({ providers, models: { m: model() } }), [])
})

t.test('fallbacks, tasks, the default and allowed models name an alias', async t => {
  const allowed = 'a name of models: a, b'
  t.strictSame(
    faultsOf({
      models: { a: model('b', 'c'), b: model() },
      defaultModel: 'echo/x',
      tasks: { ok: 'a', vitals: 'z' },
      tenants: { acme: { allowModels: ['a', 'y'] } }
    }),
    [
      `defaultModel: found "echo/x"; allowed: ${allowed}`,
      `tasks.vitals: found "z"; allowed: ${allowed}`,
      `tenants.acme.allowModels[1]: found "y"; allowed: ${allowed}`,
      `models.a.fallbacks[1]: found "c"; allowed: ${allowed}`
    ]
  )
})

t.test('a fallback is an alias, also where provider/model works beside them', async t => {
  const models = { a: model('echo/x'), b: model() }
  t.strictSame(faultsOf({ models, routing: { passThrough: true }, defaultModel: 'echo/x' }), [
    'models.a.fallbacks[0]: found "echo/x"; allowed: a name of models: a, b'
  ])
})

t.test('without models a name is provider/model', async t => {
  const allowed = 'provider/model with a provider of this file: echo'
  t.strictSame(faultsOf({ defaultModel: 'echo/any/thing', tasks: { a: 'echo/x' }, models: {} }), [])
  for (const defaultModel of ['echo', 'echo/', '/echo', 'openai/gpt', 'toString/x', '/']) {
    t.strictSame(faultsOf({ defaultModel }), [`defaultModel: found "${defaultModel}"; allowed: ${allowed}`])
  }
})

t.test('a loop of fallbacks is told once, where it closes', async t => {
  const allowed = 'fallbacks that come to an end'
  t.strictSame(faultsOf({ models: { a: model('a') } }), [
    `models.a.fallbacks[0]: found a loop, "a" → "a"; allowed: ${allowed}`
  ])
  t.strictSame(faultsOf({ models: { x: model('a'), a: model('b'), b: model('c'), c: model('d', 'a'), d: model() } }), [
    `models.c.fallbacks[1]: found a loop, "a" → "b" → "c" → "a"; allowed: ${allowed}`
  ])
})

t.test('fallbacks that meet again are no loop', async t => {
  t.strictSame(faultsOf({ models: { a: model('b', 'c'), b: model('d'), c: model('d'), d: model() } }), [])
})

t.test('a thousand models in a row are no trouble', async t => {
  const models = Object.fromEntries(
    Array.from({ length: 1000 }, (_, i) => [`m${i}`, i < 999 ? model(`m${i + 1}`) : model()])
  )
  t.strictSame(faultsOf({ models }), [])
})

t.test('weights that add up to nothing choose no target', async t => {
  const targets = [
    { ...echo, weight: 0 },
    { ...echo, weight: 0 }
  ]
  t.strictSame(faultsOf({ models: { m: { targets } } }), [
    'models.m.targets: found weights that add up to 0; allowed: at least one weight above 0 under weighted'
  ])
  t.strictSame(faultsOf({ models: { m: { targets: [...targets, echo] } } }), [])
  t.strictSame(faultsOf({ models: { m: { strategy: 'priority', targets } } }), [])
})

t.test('a key belongs to one tenant and is no admin token', async t => {
  const tenants = { a: { keys: ['k1', 'k2'] }, b: { keys: ['k2', 'k3'] } }
  t.strictSame(faultsOf({ tenants, plugins: { auth: { adminToken: 'k3' } } }), [
    'tenants.b.keys[0]: found the key of tenants.a.keys[1]; allowed: a key of its own',
    'tenants.b.keys[1]: found the key of plugins.auth.adminToken; allowed: a key of its own'
  ])
})

t.test('credentials are not sent to every origin', async t => {
  const cors = (origin: string[], credentials: boolean) => faultsOf({ server: { cors: { origin, credentials } } })
  t.strictSame(cors(['*'], true), [
    'server.cors.origin: found * with credentials; allowed: origins by name where credentials is true'
  ])
  t.strictSame(cors(['*'], false), [])
  t.strictSame(cors(['https://a.example'], true), [])
})

t.test('a fault elsewhere hides none of these, and a part of the wrong kind adds none', async t => {
  t.strictSame(faultsOf({ server: { port: 'x' }, models: { m: { targets: [{ provider: 'no', model: 'x' }] } } }), [
    'server.port: found "x"; allowed: a whole number from 0 to 65535',
    'models.m.targets[0].provider: found "no"; allowed: a name of providers: echo'
  ])
  t.strictSame(faultsOf({ providers: 5, models: { m: model() }, defaultModel: 'x' }), [
    'providers: found 5; allowed: an object'
  ])
  t.strictSame(faultsOf({ models: 5, defaultModel: 'x', tasks: { a: 'b' } }), ['models: found 5; allowed: an object'])
})

t.test('prices that are switched off under budgets, and a budget without budgets, are faults', async t => {
  t.match(faultsOf({ plugins: { pricing: false } }), [
    /^plugins\.pricing: found false; allowed: true, or plugins\.budgets false/
  ])
  t.strictSame(faultsOf({ plugins: { pricing: false, budgets: false } }), [])
  t.match(faultsOf({ budget: { dailyLimitUsd: 1 }, plugins: { budgets: false } }), [/^budget: found a limit/])
})
