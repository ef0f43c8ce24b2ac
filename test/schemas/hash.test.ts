import t from 'tap'
import { parse } from 'yaml'
import { type Environment, readConfig } from '../../schemas/config.ts'

const hashOf = (config: unknown, env?: Environment) => readConfig(config, env).hash
const target = { provider: 'echo', model: 'echo' }
const echo = { type: 'echo' }
const compatible = { type: 'openai-compatible', baseUrl: 'https://up.example/v1' }

t.test('a hash is SHA-256 in hex, the same for the same configuration', async t => {
  t.match(hashOf({}), /^[0-9a-f]{64}$/)
  t.equal(hashOf({}), hashOf(null))
  t.equal(hashOf({ models: { a: { targets: [target] } } }), hashOf({ models: { a: { targets: [{ ...target }] } } }))
})

t.test('neither the order of keys nor the language of the file makes a difference', async t => {
  const json = hashOf({
    server: { port: 1, host: 'localhost' },
    models: { b: { targets: [target] }, a: { retries: 1, targets: [target] } }
  })
  const yaml = parse(`
models:
  a: { targets: [{ model: echo, provider: echo }], retries: 1 } # a comment
  b: { targets: [{ provider: echo, model: echo }] }
server:
  host: localhost
  port: 1
`)
  t.equal(hashOf(yaml), json)
})

t.test('whatever else differs is another hash', async t => {
  const base = {
    models: { a: { targets: [target, { ...target, weight: 2 }] } },
    tenants: { acme: { metadata: { a: 1 } } }
  }
  const others = [
    {},
    { ...base, tasks: { t: 'a' } },
    { ...base, models: { b: base.models.a } },
    { ...base, models: { a: { targets: base.models.a.targets.toReversed() } } },
    { ...base, models: { a: { ...base.models.a, timeouts: { total: '5s' } } } },
    { ...base, models: { a: { ...base.models.a, timeouts: { total: 5000 } } } },
    { ...base, tenants: { acme: {} } },
    { ...base, tenants: { acme: { metadata: { a: 2 } } } },
    { ...base, server: { port: 1 } },
    { ...base, plugins: { helmet: false } },
    { ...base, providers: { echo: { ...echo, words: 3 } } }
  ]
  const hashes = [base, ...others].map(config => hashOf(config))
  t.equal(new Set(hashes).size, hashes.length)
})

t.test('providers that nobody names are the echo, with an environment and without', async t => {
  t.equal(hashOf({}), hashOf({}, {}))
  t.equal(hashOf({}), hashOf({ providers: { echo } }))
})

t.test('the environment is laid over the file before', async t => {
  t.equal(
    hashOf({}, { PORT: '1', OPA_URL: 'http://opa' }),
    hashOf({ server: { port: 1 }, plugins: { opa: { url: 'http://opa' } } })
  )
  t.not(hashOf({}, { PORT: '1' }), hashOf({}, { PORT: '2' }))
})

const secrets: ReadonlyArray<readonly [string, (secret: string) => object]> = [
  ['the key of a provider', key => ({ providers: { up: { ...compatible, apiKeys: [key] } } })],
  [
    'the key of a provider that is off',
    key => ({ providers: { up: { ...compatible, enabled: false, apiKeys: [key] } } })
  ],
  ['a header of a provider', value => ({ providers: { up: { ...compatible, headers: { 'x-secret': value } } } })],
  [
    'credentials of vertex',
    credentials => ({ providers: { up: { type: 'vertex', project: 'p', location: 'l', credentials } } })
  ],
  ['the key of a tenant', key => ({ tenants: { acme: { keys: [key] } } })],
  ['the admin token', adminToken => ({ plugins: { auth: { adminToken } } })],
  ['the secret that signs', secret => ({ plugins: { signing: { secret } } })],
  ['a secret that signed before', secret => ({ plugins: { signing: { secret: 's', previous: [secret] } } })],
  [
    'the password of a TURN server',
    credential => ({ plugins: { realtime: { iceServers: [{ urls: 'turn:a', credential }] } } })
  ],
  ['the password of a database', secret => ({ store: `postgres://user:${secret}@db/gateway` })],
  ['the password of Redis', secret => ({ redis: `redis://:${secret}@cache:6379` })],
  ['the query of a URL', secret => ({ plugins: { helmet: { report: [`https://reports.example/?key=${secret}`] } } })],
  [
    'credentials in somebody else’s option',
    secret => ({ plugins: { helmet: { to: `https://user:${secret}@reports.example` } } })
  ]
]

for (const [name, config] of secrets) {
  t.test(`${name} is not in the hash`, async t => {
    t.equal(hashOf(config('one-secret')), hashOf(config('another')))
    t.notMatch(JSON.stringify(readConfig(config('one-secret')).written), 'one-secret')
    t.not(hashOf(config('one-secret')), hashOf({}), 'that there is one is')
  })
}

t.test('env:NAME stays text: which variable counts, what is in it does not', async t => {
  const config = (name: string) => ({ providers: { up: { ...compatible, apiKeys: [`env:${name}`] } } })
  const env = { ONE: 'a', TWO: 'b' }
  t.equal(hashOf(config('ONE'), env), hashOf(config('ONE'), { ONE: 'c' }))
  t.not(hashOf(config('ONE'), env), hashOf(config('TWO'), env))
  t.not(hashOf(config('ONE'), env), hashOf({ providers: { up: { ...compatible, apiKeys: ['a'] } } }))
  t.equal(hashOf({}, { ADMIN_TOKEN: 'a' }), hashOf({}, { ADMIN_TOKEN: 'b' }))
  t.equal(hashOf({}, { OPENAI_API_KEY: 'a' }), hashOf({}, { OPENAI_API_KEY: 'b' }))
})

t.test('secrets of the environment that arrive as text are hidden too', async t => {
  const ice = (credential: string) => ({ ICE_SERVERS: JSON.stringify([{ urls: 'turn:a', username: 'u', credential }]) })
  t.equal(hashOf({}, ice('one-secret')), hashOf({}, ice('another')))
})

t.test('how many keys there are counts', async t => {
  const config = (...apiKeys: string[]) => ({ providers: { up: { ...compatible, apiKeys } } })
  t.not(hashOf(config('a')), hashOf(config('a', 'b')))
})

t.test('reading changes nothing of what was written', async t => {
  const config = { providers: { up: { ...compatible, apiKeys: ['sk-secret'] } }, models: {} }
  const before = structuredClone(config)
  readConfig(config)
  t.strictSame(config, before)
})
