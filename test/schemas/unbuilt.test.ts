import t from 'tap'
import { readConfig, unbuilt } from '../../schemas/config.ts'
import { notesOf } from '../../schemas/unbuilt.ts'

const note = (path: string) => `${path} is accepted, but not built yet: it has no effect.`

t.test('what nobody configured has no note', async t => {
  t.strictSame(readConfig({}).notes, [])
  t.strictSame(readConfig({}, { PORT: '1', ADMIN_TOKEN: 'x', OPENAI_API_KEY: 'x' }).notes, [])
})

t.test('a key, a name below any name and a value of a key are noted', async t => {
  const config = {
    store: 'sqlite:x',
    providers: { claude: { type: 'anthropic' }, other: { type: 'echo' } },
    models: { m: { strategy: 'priority' }, n: { strategy: 'weighted' } },
    tenants: { acme: { budget: { usd: 1 }, keys: ['x'] } },
    plugins: { auth: { jwt: { issuer: 'x' } }, metrics: true }
  }
  const missing = [
    'store',
    'providers.*.type=anthropic',
    'models.*.strategy=priority',
    'tenants.*.budget',
    'plugins.auth.jwt'
  ]
  t.strictSame(notesOf(config, missing), [
    note('store'),
    note('providers.claude.type: anthropic'),
    note('models.m.strategy: priority'),
    note('tenants.acme.budget'),
    note('plugins.auth.jwt')
  ])
})

t.test('what is switched off has no note', async t => {
  t.strictSame(notesOf({ plugins: { cache: false } }, ['plugins.cache']), [])
  t.strictSame(notesOf({ providers: { a: { type: 'anthropic', enabled: false } } }, ['providers.*.type=anthropic']), [])
})

t.test('the environment configures as explicitly as the file', async t => {
  const [first] = unbuilt
  if (!unbuilt.includes('redis')) return t.ok(true, `redis is built, ${first ?? 'nothing'} is not`)
  t.strictSame(readConfig({}, { REDIS_URL: 'redis://a' }).notes, [note('redis')])
})

t.test('names that objects inherit are no configuration', async t => {
  t.strictSame(notesOf({}, ['constructor', 'toString.name']), [])
})
