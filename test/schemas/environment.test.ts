import t from 'tap'
import { type Config, environmentNames, readConfig, resolveSecrets, withEnvironment } from '../../schemas/config.ts'
import { report } from '../../schemas/faults.ts'
import { faultsOf } from './helper.ts'

const settingsOf = (config: Config, env: Record<string, string>) => readConfig(config, env).settings
const missing = 'a variable that is set and not empty'

t.test('without a file the echo provider is there, and every provider whose variable is set', async t => {
  t.strictSame(Object.keys(settingsOf({}, {}).providers), ['echo'])
  const { providers } = settingsOf(
    {},
    {
      OPENAI_API_KEY: 'sk-1',
      OPENROUTER_API_KEY: 'sk-2',
      ANTHROPIC_API_KEY: 'sk-3',
      LLAMACPP_URL: 'http://127.0.0.1:8081'
    }
  )
  t.match(providers, {
    openai: { type: 'openai', baseUrl: 'https://api.openai.com/v1', apiKeys: ['sk-1'] },
    openrouter: { type: 'openai-compatible', baseUrl: 'https://openrouter.ai/api/v1', apiKeys: ['sk-2'] },
    anthropic: { type: 'anthropic', baseUrl: 'https://api.anthropic.com', apiKeys: ['sk-3'] },
    llamacpp: { type: 'llamacpp', baseUrl: 'http://127.0.0.1:8081', apiKeys: [] },
    echo: { type: 'echo' }
  })
})

t.test('OPENAI_BASE moves the openai provider, LLAMA_CPP_BASE wins over LLAMACPP_URL', async t => {
  const { providers } = settingsOf(
    {},
    {
      OPENAI_API_KEY: 'sk',
      OPENAI_BASE: 'http://litellm:4000/v1',
      LLAMACPP_URL: 'http://b',
      LLAMA_CPP_BASE: 'http://a'
    }
  )
  t.match(providers['openai'], { type: 'openai-compatible', baseUrl: 'http://litellm:4000/v1' })
  t.equal(providers['llamacpp']?.baseUrl, 'http://a')
  t.strictSame(Object.keys(settingsOf({}, { OPENAI_BASE: 'http://litellm:4000/v1' }).providers), ['echo'])
})

t.test('OPENAI_BASE that is still OpenAI, such as a region of it, stays what it is', async t => {
  for (const [base, type] of Object.entries({
    'https://api.openai.com/v1': 'openai',
    'https://eu.api.openai.com/v1': 'openai',
    'https://api.openai.com.example/v1': 'openai-compatible',
    'https://notapi.openai.com': 'openai-compatible'
  })) {
    t.match(settingsOf({}, { OPENAI_API_KEY: 'sk', OPENAI_BASE: base }).providers['openai'], { type, baseUrl: base })
  }
  t.match(faultsOf({}, { OPENAI_API_KEY: 'sk', OPENAI_BASE: 'not a url' }), [/^providers\.openai\.baseUrl/])
})

t.test('a file with providers gets none from the environment', async t => {
  const { providers } = settingsOf({ providers: { mine: { type: 'echo' } } }, { OPENAI_API_KEY: 'sk' })
  t.strictSame(Object.keys(providers), ['mine'])
  t.strictSame(Object.keys(settingsOf({ providers: {} }, { OPENAI_API_KEY: 'sk' }).providers), [])
})

t.test('models of a file may use the providers of the environment', async t => {
  const models = { chat: { targets: [{ provider: 'openai', model: 'gpt-4.1' }] } }
  t.strictSame(faultsOf({ models }, { OPENAI_API_KEY: 'sk' }), [])
  t.strictSame(faultsOf({ models }, {}), [
    'models.chat.targets[0].provider: found "openai"; allowed: a name of providers: echo'
  ])
})

t.test('the environment wins over the file', async t => {
  const { server, store, redis, plugins } = settingsOf(
    {
      server: { host: '10.0.0.1', port: 1, sse: { heartbeat: '1s' } },
      store: 'sqlite:a.db',
      redis: 'redis://file',
      plugins: {
        auth: { adminToken: 'file', anonymousTenant: false },
        rateLimit: { max: 1, timeWindow: '1s' },
        signing: { secret: 'file' },
        opa: { url: 'http://file', path: 'v1/file', timeout: '1s' },
        otel: { endpoint: 'http://file', captureContent: true },
        realtime: { iceServers: [{ urls: 'stun:file' }] }
      }
    },
    {
      HOST: '0.0.0.0',
      PORT: '9000',
      DATABASE_URL: 'postgres://u:p@db/gateway',
      REDIS_URL: 'redis://env',
      ADMIN_TOKEN: 'env-admin',
      HMAC_SECRET: 'env secret',
      OPA_URL: 'http://opa:8181',
      OPA_PATH: 'v1/env',
      OTEL_EXPORTER_OTLP_ENDPOINT: 'http://collector:4317/',
      OTEL_SERVICE_NAME: 'llm',
      RATE_LIMIT_WINDOW_MS: '60000',
      RATE_LIMIT_MAX_REQUESTS: '100',
      ICE_SERVERS: 'stun:env'
    }
  )
  t.strictSame([server.host, server.port, store, redis], ['0.0.0.0', 9000, 'postgres://u:p@db/gateway', 'redis://env'])
  t.match(server.sse, { heartbeat: 1000 })
  t.strictSame(plugins.auth, { anonymousTenant: false, adminToken: 'env-admin', jwt: false })
  t.strictSame(plugins.rateLimit, { max: 100, timeWindow: 60_000 })
  t.strictSame(plugins.signing, { secret: 'env secret', previous: [], receipts: false })
  t.strictSame(plugins.opa, { url: 'http://opa:8181', path: 'v1/env', timeout: 1000, onError: 'deny' })
  t.match(plugins.otel, { endpoint: 'http://collector:4317', serviceName: 'llm', captureContent: true })
  t.strictSame(plugins.realtime, { iceServers: [{ urls: ['stun:env'] }] })
})

t.test('a variable that names a peer or a secret switches its plugin on, also over false', async t => {
  const env = {
    OPA_URL: 'http://opa:8181',
    HMAC_SECRET: 's',
    OTEL_EXPORTER_OTLP_ENDPOINT: 'http://collector:4317',
    ICE_SERVERS: 'stun:a'
  }
  for (const config of [{}, { plugins: { opa: false, signing: false, otel: false, realtime: false } }]) {
    const { plugins } = settingsOf(config, env)
    t.ok(plugins.opa && plugins.signing && plugins.otel && plugins.realtime)
  }
  const { plugins } = settingsOf({ plugins: { opa: true, otel: true } }, env)
  t.match(plugins, { opa: { url: 'http://opa:8181' }, otel: { endpoint: 'http://collector:4317' } })
})

t.test('a detail alone switches nothing on', async t => {
  const { plugins } = settingsOf({}, { OPA_PATH: 'v1/x', OTEL_SERVICE_NAME: 'llm' })
  t.strictSame([plugins.opa, plugins.otel], [false, false])
  t.match(settingsOf({ plugins: { otel: true } }, { OTEL_SERVICE_NAME: 'llm' }).plugins.otel, { serviceName: 'llm' })
})

t.test('features are switched by ENABLE_*', async t => {
  const off = settingsOf(
    { plugins: { realtime: true } },
    {
      ENABLE_STREAMING: 'false',
      ENABLE_RATE_LIMIT: 'FALSE',
      ENABLE_WEBRTC: '0',
      ICE_SERVERS: 'stun:a',
      RATE_LIMIT_MAX_REQUESTS: '5'
    }
  )
  t.strictSame([off.server.sse, off.plugins.rateLimit, off.plugins.realtime], [false, false, false])
  const on = settingsOf(
    { server: { sse: false }, plugins: { rateLimit: false } },
    {
      ENABLE_STREAMING: 'true',
      ENABLE_RATE_LIMIT: 'yes',
      ENABLE_WEBRTC: '1',
      RATE_LIMIT_MAX_REQUESTS: '5',
      ICE_SERVERS: 'stun:a'
    }
  )
  t.strictSame(on.server.sse, { heartbeat: 15_000, headersAfter: 10_000 })
  t.strictSame(on.plugins.rateLimit, { max: 5, timeWindow: 60_000 })
  t.strictSame(on.plugins.realtime, { iceServers: [{ urls: ['stun:a'] }] })
  t.match(settingsOf({ server: { sse: { heartbeat: 1 } } }, { ENABLE_STREAMING: 'true' }).server.sse, { heartbeat: 1 })
})

t.test('ICE_SERVERS is a JSON list, one server in JSON, or URLs with commas', async t => {
  const servers = (text: string) => settingsOf({}, { ICE_SERVERS: text }).plugins.realtime
  t.strictSame(servers('stun:a, turn:b?transport=udp'), {
    iceServers: [{ urls: ['stun:a'] }, { urls: ['turn:b?transport=udp'] }]
  })
  t.strictSame(servers('[{"urls":["turn:a"],"username":"u","credential":"p"}]'), {
    iceServers: [{ urls: ['turn:a'], username: 'u', credential: 'p' }]
  })
  t.strictSame(servers(' {"urls":"stun:a"}'), { iceServers: [{ urls: ['stun:a'] }] })
  t.strictSame(faultsOf({}, { ICE_SERVERS: '[{"urls"' }), [
    'plugins.realtime.iceServers (ICE_SERVERS): found <hidden>; allowed: a list'
  ])
  t.strictSame(faultsOf({}, { ICE_SERVERS: 'http://a' }), [
    'plugins.realtime.iceServers[0].urls: found "http://a"; allowed: a stun:, stuns:, turn: or turns: URL | a list that is not empty'
  ])
})

t.test('an empty variable counts as absent', async t => {
  const env = Object.fromEntries(Object.keys(environmentNames).map(name => [name, '']))
  t.strictSame(readConfig({}, env), readConfig({}))
})

t.test('NODE_ENV changes nothing', async t => {
  for (const NODE_ENV of ['production', 'test', 'x']) t.strictSame(readConfig({}, { NODE_ENV }), readConfig({}))
})

t.test('a variable that does not fit is named beside the path it sets', async t => {
  const env = {
    PORT: '80a',
    HOST: 'a b',
    DATABASE_URL: 'mysql://u:hunter2@db',
    REDIS_URL: 'hunter2',
    ADMIN_TOKEN: 'hunter2\n',
    RATE_LIMIT_MAX_REQUESTS: '-1',
    RATE_LIMIT_WINDOW_MS: '99999999999',
    ENABLE_STREAMING: 'maybe',
    ENABLE_WEBRTC: 'maybe',
    OPA_URL: 'opa:8181',
    OTEL_EXPORTER_OTLP_ENDPOINT: 'collector'
  }
  const url = 'an http(s) URL without credentials, query and fragment'
  const lines = faultsOf({}, env)
  t.strictSame(lines, [
    'server.host (HOST): found "a b"; allowed: an address to listen on',
    'server.port (PORT): found "80a"; allowed: a whole number from 0 to 65535',
    'server.sse (ENABLE_STREAMING): found a text; allowed: false or an object',
    'store (DATABASE_URL): found <hidden>; allowed: false, sqlite:FILE or a postgres:// URL',
    'redis (REDIS_URL): found <hidden>; allowed: a redis:// or rediss:// URL',
    'plugins.rateLimit.max (RATE_LIMIT_MAX_REQUESTS): found "-1"; allowed: a whole number of at least 1',
    'plugins.rateLimit.timeWindow (RATE_LIMIT_WINDOW_MS): found 99999999999; allowed: a duration such as 250ms, 5s or 10m, above 0, at most 24d',
    'plugins.auth.adminToken (ADMIN_TOKEN): found <hidden>; allowed: printable ASCII without white space',
    `plugins.opa.url (OPA_URL): found "opa:8181"; allowed: ${url}`,
    `plugins.otel.endpoint (OTEL_EXPORTER_OTLP_ENDPOINT): found "collector"; allowed: ${url}`,
    'plugins.realtime (ENABLE_WEBRTC): found a text; allowed: true, false or an object'
  ])
})

t.test('a section of the wrong kind stays a fault, whatever the environment sets in it', async t => {
  const env = { PORT: '1', OPA_URL: 'http://opa', ENABLE_WEBRTC: 'true', ADMIN_TOKEN: 'x', ENABLE_STREAMING: 'true' }
  t.strictSame(faultsOf({ server: true, plugins: [] }, env), [
    'server: found true; allowed: an object',
    'plugins: found an empty list; allowed: an object'
  ])
  t.strictSame(faultsOf({ plugins: true }, env), ['plugins: found true; allowed: an object'])
  t.strictSame(faultsOf('x', env), ['configuration: found a text; allowed: an object'])
})

t.test('withEnvironment changes nothing it is given and keeps secrets out of its answer', async t => {
  const config = Object.freeze({ server: Object.freeze({ port: 1 }), plugins: Object.freeze({ opa: false }) })
  const env = Object.freeze({
    PORT: '2',
    OPA_URL: 'http://opa',
    ADMIN_TOKEN: 'hunter2',
    OPENAI_API_KEY: 'hunter2',
    DATABASE_URL: 'hunter2',
    HMAC_SECRET: 'hunter2'
  })
  const result = withEnvironment(config, env)
  t.strictSame(result, {
    server: { port: 2 },
    plugins: {
      opa: { url: 'http://opa' },
      auth: { adminToken: 'env:ADMIN_TOKEN' },
      signing: { secret: 'env:HMAC_SECRET' }
    },
    providers: { openai: { type: 'openai', apiKeys: ['env:OPENAI_API_KEY'] }, echo: { type: 'echo' } },
    store: 'env:DATABASE_URL'
  })
  t.strictSame(config, { server: { port: 1 }, plugins: { opa: false } })
})

t.test('every variable of the table does what its line says', async t => {
  const plain = JSON.stringify(
    readConfig({ plugins: { opa: { url: 'http://a' }, otel: true } }, { OPENAI_API_KEY: 'k' }).settings
  )
  const values: Record<string, string> = {
    PORT: '1',
    DATABASE_URL: 'postgres://a',
    REDIS_URL: 'redis://a',
    RATE_LIMIT_MAX_REQUESTS: '1',
    RATE_LIMIT_WINDOW_MS: '1',
    ENABLE_RATE_LIMIT: 'false',
    ENABLE_STREAMING: 'false',
    ENABLE_WEBRTC: 'true',
    ICE_SERVERS: 'stun:a',
    OPENAI_BASE: 'http://b',
    LLAMA_CPP_BASE: 'http://b',
    LLAMACPP_URL: 'http://b',
    OPA_URL: 'http://b',
    OTEL_EXPORTER_OTLP_ENDPOINT: 'http://b',
    OTEL_EXPORTER_OTLP_PROTOCOL: 'http/protobuf'
  }
  for (const [name, { as, doc }] of Object.entries(environmentNames)) {
    const env = { OPENAI_API_KEY: 'k', [name]: values[name] ?? 'x' }
    const changed = JSON.stringify(readConfig({ plugins: { opa: { url: 'http://a' }, otel: true } }, env).settings)
    if (as === 'none') t.equal(changed, plain, name)
    else t.not(changed, plain, name)
    t.match(doc, /^\S.*\.$/)
  }
})

t.test('env:NAME is replaced anywhere', async t => {
  const { settings } = readConfig(
    {
      providers: {
        a: {
          type: 'openai-compatible',
          baseUrl: 'env:BASE',
          apiKeys: ['env:KEY_1', 'plain'],
          headers: { 'x-org': 'env:ORG' }
        }
      },
      tenants: { acme: { keys: ['env:ACME'] } }
    },
    { BASE: 'http://a.example', KEY_1: 'k1', ORG: 'env:ORG', ACME: 'k2' }
  )
  t.match(settings.providers['a'], { baseUrl: 'http://a.example', apiKeys: ['k1', 'plain'] })
  t.strictSame(settings.providers['a']?.headers, { 'x-org': 'env:ORG' }, 'once, not again')
  t.strictSame(settings.tenants['acme']?.keys, ['k2'])
})

t.test('a missing and an empty variable are faults, all in one report', async t => {
  const config = {
    server: { port: 'x' },
    providers: { a: { type: 'openai', apiKeys: ['env:KEY_1', 'env:KEY_2'], connections: 'env:NUMBER' } },
    store: 'env:toString'
  }
  t.strictSame(faultsOf(config, { KEY_2: '' }), [
    `providers.a.apiKeys[0]: found env:KEY_1; allowed: ${missing}`,
    `providers.a.apiKeys[1]: found env:KEY_2; allowed: ${missing}`,
    `providers.a.connections: found env:NUMBER; allowed: ${missing}`,
    `store: found env:toString; allowed: ${missing}`,
    'server.port: found "x"; allowed: a whole number from 0 to 65535'
  ])
})

t.test('what is no name of a variable may be a secret and is hidden', async t => {
  for (const written of ['env:sk-hunter2', 'env:', 'env:A B', 'env:1A']) {
    t.strictSame(faultsOf({ providers: { a: { type: 'openai', apiKeys: [written] } } }, {}), [
      'providers.a.apiKeys[0]: found <hidden>; allowed: env:NAME, of letters, digits and _'
    ])
  }
})

t.test('a provider that is off keeps its env:NAME', async t => {
  const off = {
    type: 'openai-compatible',
    enabled: false,
    baseUrl: 'env:NO',
    apiKeys: ['env:NO'],
    headers: { a: 'env:NO' }
  }
  for (const env of [{}, { NO: 'set' }, undefined]) {
    const { settings } = readConfig({ providers: { a: off } }, env)
    t.match(settings.providers['a'], {
      enabled: false,
      baseUrl: 'env:NO',
      apiKeys: ['env:NO'],
      headers: { a: 'env:NO' }
    })
  }
})

t.test('an embedder resolves its own secrets', async t => {
  t.strictSame(faultsOf({ providers: { a: { type: 'openai', apiKeys: ['env:KEY'] } } }), [
    'providers.a.apiKeys[0]: found env:KEY; allowed: the value itself; only server.ts resolves env:NAME'
  ])
})

t.test('a value from the environment is shown in no fault, wherever it stands', async t => {
  const env = { SECRET: 'hunter2' }
  const configs = [
    { server: { port: 'env:SECRET', host: { a: 'env:SECRET' }, shutdownGrace: 'env:SECRET', cors: 'env:SECRET' } },
    { log: { level: 'env:SECRET' }, store: 'env:SECRET', redis: 'env:SECRET' },
    {
      providers: {
        a: { type: 'env:SECRET' },
        b: 'env:SECRET',
        c: { type: 'echo', x: 'env:SECRET', forwardHeaders: ['a', 'env:SECRET', 'b c'] }
      }
    },
    { models: { a: { targets: [{ provider: 'env:SECRET', model: 'x' }], fallbacks: ['env:SECRET'] } } },
    { defaultModel: 'env:SECRET', tasks: { a: 'env:SECRET' }, tenants: { a: { allowModels: ['env:SECRET'] } } },
    { tenants: { a: { keys: ['env:SECRET'] }, b: { keys: ['env:SECRET'] } } },
    { plugins: { cache: 'env:SECRET', opa: { url: 'env:SECRET', timeout: 'env:SECRET' } } }
  ]
  for (const config of configs) {
    const lines = faultsOf(config, env)
    t.ok(lines.length > 0)
    t.notMatch(lines.join('\n'), /hunter2/)
  }
})

t.test('resolveSecrets copies circles and depths only as far as it must', async t => {
  const circle: Record<string, unknown> = { key: 'env:A' }
  circle['self'] = circle
  let deep: unknown = 'env:A'
  for (let level = 0; level < 10_000; level++) deep = [deep]
  const faults = report()
  t.match(resolveSecrets({ circle, deep }, { A: '1' }, faults), { circle: { key: '1' } })
  t.equal(faults.count, 0)
  t.equal(circle['key'], 'env:A')
})
