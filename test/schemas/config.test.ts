import t from 'tap'
import { type Config, readConfig, type Settings } from '../../schemas/config.ts'
import { faultsOf } from './helper.ts'

const settingsOf = (config: Config) => readConfig(config).settings
const target = { provider: 'echo', model: 'echo' }

t.test('an empty configuration has every default', async t => {
  t.strictSame(settingsOf({}), {
    server: {
      host: '127.0.0.1',
      port: 8080,
      bodyLimit: 10_485_760,
      trustProxy: false,
      cors: false,
      sse: { heartbeat: 15_000, headersAfter: 10_000 },
      shutdownGrace: 10_000
    },
    log: { level: 'info' },
    store: 'sqlite:./data/gateway.db',
    providers: {
      echo: {
        type: 'echo',
        words: 16,
        delay: 0,
        interval: 0,
        chunkWords: 1,
        apiKeys: [],
        headers: {},
        enabled: true,
        forwardHeaders: [],
        streamUsage: true,
        connections: 1024,
        maxEvent: 8_388_608
      }
    },
    models: {},
    tasks: {},
    routing: {
      passThrough: false,
      sticky: true,
      discovery: 300_000,
      breaker: { failures: 5, openFor: 1_000, mostOpenFor: 60_000 },
      probes: false
    },
    tenants: {
      public: {
        keys: [],
        active: true,
        budget: { usd: 5, period: 'total' },
        maxRequestUsd: 0.05,
        maxOutputTokens: 1000,
        open: false,
        metadata: {}
      }
    },
    plugins: {
      chatCompletions: {},
      proxy: {},
      models: {},
      health: {},
      helmet: {},
      sensible: {},
      rateLimit: { max: 600, timeWindow: 60_000 },
      auth: { anonymousTenant: 'auto', jwt: false },
      shared: { onRedisDown: 'deny', timeout: 50, lease: 10_000 },
      tenants: { createOnDemand: false },
      limits: {},
      pricing: { table: true, extras: 'deny' },
      idempotency: { ttl: 86_400_000, maxAnswer: 4 * 1024 * 1024 },
      requestLog: {},
      traces: {},
      stats: {},
      admin: {},
      budgets: { unpriced: 'deny' },
      ledger: { durability: 'process', onClientGone: 'abort', retention: 7_776_000_000 },
      cache: false,
      structuredOutput: {},
      opa: false,
      otel: false,
      metrics: { public: false, legacyNames: [], maxModels: 100, maxTenants: 100 },
      events: {
        stream: 'agent.events',
        maxLength: 10_000,
        kept: 1_000,
        buffer: 1_048_576,
        subscribers: 2_000,
        types: []
      },
      signing: false,
      insights: false,
      realtime: false
    }
  } satisfies Settings)
})

t.test('nothing at all is an empty configuration', async t => {
  t.strictSame(readConfig(undefined), readConfig({}))
  t.strictSame(readConfig(null), readConfig({}))
})

t.test('a key of the file with nothing below it counts as absent', async t => {
  const empty = { server: null, providers: null, models: null, tenants: null, budget: null, plugins: null }
  t.strictSame(readConfig(empty), readConfig({}))
})

t.test('a key of an embedder that is undefined counts as absent', async t => {
  t.strictSame(settingsOf({ redis: undefined, server: { port: undefined } }), settingsOf({}))
})

t.test('durations and sizes become milliseconds and bytes', async t => {
  const { server, models } = settingsOf({
    server: { bodyLimit: '512kb', shutdownGrace: '1m', sse: { heartbeat: 5000 } },
    models: { a: { targets: [target], timeouts: { total: '1h', idle: 250 } } }
  })
  t.equal(server.bodyLimit, 524_288)
  t.equal(server.shutdownGrace, 60_000)
  t.strictSame(server.sse, { heartbeat: 5000, headersAfter: 10_000 })
  t.strictSame(models['a']?.timeouts, {
    connect: 5000,
    headers: 60_000,
    firstToken: 60_000,
    idle: 250,
    total: 3_600_000
  })
})

t.test('a model has its defaults', async t => {
  t.strictSame(settingsOf({ models: { a: { targets: [target] } } }).models['a'], {
    strategy: 'weighted',
    targets: [{ ...target, weight: 1, abilities: {}, queue: { size: 100, timeout: 10_000 } }],
    fallbacks: [],
    retries: 2,
    hedge: false,
    timeouts: { connect: 5000, headers: 60_000, firstToken: 60_000, idle: 30_000, total: 600_000 },
    inputTokensPerImage: 1600
  })
})

t.test('a price keeps what it names and nothing else', async t => {
  const price = { input: 3, output: 15, cacheRead: 0.3, tiers: [{ above: 200_000, input: 6, output: 22.5 }] }
  t.strictSame(settingsOf({ models: { a: { targets: [{ ...target, price }] } } }).models['a']?.targets[0]?.price, price)
})

t.test('every type of provider is known with its own defaults', async t => {
  const { providers } = settingsOf({
    providers: {
      compatible: { type: 'openai-compatible', baseUrl: 'http://a.example/v1/' },
      openai: { type: 'openai', apiKeys: ['sk-1', 'sk-2'] },
      claude: { type: 'anthropic' },
      local: { type: 'llamacpp', baseUrl: 'HTTP://127.0.0.1:8081//' },
      azure: { type: 'azure-openai', baseUrl: 'https://res.openai.azure.com' },
      google: { type: 'gemini' },
      vertex: { type: 'vertex', project: 'p', location: 'europe-west1', credentials: '{"type":"service_account"}' },
      echo: { type: 'echo', words: 3, delay: '1s' }
    }
  })
  t.match(providers, {
    compatible: { type: 'openai-compatible', baseUrl: 'http://a.example/v1' },
    openai: { type: 'openai', baseUrl: 'https://api.openai.com/v1', apiKeys: ['sk-1', 'sk-2'] },
    claude: { type: 'anthropic', baseUrl: 'https://api.anthropic.com' },
    local: { type: 'llamacpp', baseUrl: 'HTTP://127.0.0.1:8081' },
    azure: { type: 'azure-openai', baseUrl: 'https://res.openai.azure.com' },
    google: { type: 'gemini', baseUrl: 'https://generativelanguage.googleapis.com' },
    vertex: { type: 'vertex', project: 'p', location: 'europe-west1' },
    echo: { type: 'echo', words: 3, delay: 1000, interval: 0, chunkWords: 1 }
  })
  for (const provider of Object.values(providers)) t.match(provider, { enabled: true, connections: 1024 })
})

t.test('forwarded headers are compared in lower case', async t => {
  const { providers } = settingsOf({
    providers: { echo: { type: 'echo', forwardHeaders: ['X-Client-Name', 'traceparent'] } }
  })
  t.strictSame(providers['echo']?.forwardHeaders, ['x-client-name', 'traceparent'])
})

t.test('a plugin that is true has its defaults, one that is false is false', async t => {
  const { plugins } = settingsOf({
    plugins: { otel: true, realtime: true, cache: true, rateLimit: false, helmet: false }
  })
  t.strictSame(plugins.otel, {
    protocol: 'grpc',
    serviceName: 'fastify-model-gateway',
    metrics: true,
    captureContent: false,
    maxContentLength: 4096,
    legacyAttributes: false,
    instrumentation: false
  })
  t.strictSame(plugins.realtime, { iceServers: [] })
  t.strictSame(plugins.cache, {})
  t.equal(plugins.rateLimit, false)
  t.equal(plugins.helmet, false)
})

t.test('plugins merge key by key over the defaults', async t => {
  const { plugins } = settingsOf({
    plugins: { rateLimit: { max: 5 }, auth: { anonymousTenant: false }, opa: { url: 'http://opa:8181' } }
  })
  t.strictSame(plugins.rateLimit, { max: 5, timeWindow: 60_000 })
  t.strictSame(plugins.auth, { anonymousTenant: false, jwt: false })
  t.strictSame(plugins.opa, { url: 'http://opa:8181', path: 'v1/data/rtt/allow', timeout: 500, onError: 'deny' })
  t.strictSame(plugins.ledger, settingsOf({}).plugins.ledger)
})

t.test('options of helmet and sensible pass as they are', async t => {
  const helmet = {
    contentSecurityPolicy: { directives: { 'default-src': ["'none'"] } },
    hsts: false,
    xFrameOptions: null
  }
  t.strictSame(settingsOf({ plugins: { helmet } }).plugins.helmet, helmet)
})

t.test('URLs of an ICE server are a list', async t => {
  const { plugins } = settingsOf({
    plugins: {
      realtime: {
        iceServers: [
          { urls: 'stun:stun.example:3478' },
          { urls: ['turn:turn.example?transport=udp', 'turns:turn.example'], username: 'u', credential: 'p' }
        ]
      }
    }
  })
  t.strictSame(plugins.realtime, {
    iceServers: [
      { urls: ['stun:stun.example:3478'] },
      { urls: ['turn:turn.example?transport=udp', 'turns:turn.example'], username: 'u', credential: 'p' }
    ]
  })
})

t.test('streams can be refused and other origins allowed', async t => {
  const { server } = settingsOf({
    server: { sse: false, cors: { origin: ['https://app.example', 'capacitor://localhost'] } }
  })
  t.equal(server.sse, false)
  t.strictSame(server.cors, { origin: ['https://app.example', 'capacitor://localhost'], credentials: false })
})

t.test('trustProxy is what Fastify takes', async t => {
  for (const trustProxy of [true, false, 0, 2, 'loopback', '10.0.0.0/8, 127.0.0.1', ['10.0.0.1', '10.0.0.2']]) {
    t.strictSame(settingsOf({ server: { trustProxy } }).server.trustProxy, trustProxy)
  }
})

t.test('the tenant public exists without being named and can be changed', async t => {
  t.strictSame(Object.keys(settingsOf({ tenants: { acme: {} } }).tenants).sort(), ['acme', 'public'])
  t.equal(settingsOf({ tenants: { public: { maxRequestUsd: 1 } } }).tenants['public']?.maxRequestUsd, 1)
})

t.test('the budget of the whole gateway stops hard and warns at 80 %', async t => {
  t.strictSame(settingsOf({ budget: { dailyLimitUsd: 20 } }).budget, {
    dailyLimitUsd: 20,
    hardStop: true,
    warningThreshold: 0.8
  })
})

t.test('settings are fresh plain data', async t => {
  const config = { providers: { echo: { type: 'echo' } }, plugins: { helmet: { a: { b: [1] } } } } as const
  const before = JSON.stringify(config)
  const first = readConfig(config).settings
  t.strictSame(JSON.parse(JSON.stringify(first)), first)
  const headers = first.providers['echo']?.headers
  if (headers) headers['x-changed'] = '1'
  first.tasks['changed'] = 'x'
  if (first.plugins.helmet) first.plugins.helmet['a'] = 1
  t.equal(JSON.stringify(config), before, 'what was written is not touched')
  t.strictSame(readConfig({}).settings.tasks, {}, 'nor are the defaults')
  t.strictSame(readConfig({}).settings.providers['echo']?.headers, {})
})

t.test('names that every object inherits are ordinary names', async t => {
  const names = ['constructor', 'toString', 'hasOwnProperty', 'valueOf']
  const models = Object.fromEntries(names.map(name => [name, { targets: [target] }]))
  const { settings } = readConfig({ models, tasks: { constructor: 'toString' }, defaultModel: 'valueOf' })
  t.strictSame(Object.keys(settings.models), names)
  t.equal(Object.getPrototypeOf(settings.models), Object.prototype)
  t.equal(faultsOf({ defaultModel: 'constructor/x' }).length, 1)
})

t.test('__proto__ is refused as a name and changes no prototype', async t => {
  const config = JSON.parse(`{
    "__proto__": { "store": "sqlite:polluted" },
    "server": { "__proto__": { "port": 1 } },
    "providers": { "__proto__": { "type": "echo" }, "echo": { "type": "echo", "headers": { "__proto__": "x" } } },
    "models": { "__proto__": { "targets": [{ "provider": "echo", "model": "x" }] } },
    "tenants": { "__proto__": {} },
    "plugins": { "helmet": { "__proto__": { "polluted": true }, "a": { "__proto__": null } } }
  }`)
  for (const env of [undefined, { PORT: '1', OPA_URL: 'http://opa' }]) {
    t.strictSame(faultsOf(config, env), [
      'server.__proto__: unknown key; known keys: host, port, bodyLimit, trustProxy, cors, sse, shutdownGrace',
      'providers.__proto__: found this name; allowed: letters, digits, ".", "_" and "-", at most 64',
      'providers.echo.headers.__proto__: found this name; allowed: a header name; never host, content-length, accept-encoding or a hop-by-hop header',
      'models.__proto__: found this name; allowed: a name without spaces, at most 256',
      'tenants.__proto__: found this name; allowed: letters, digits, ".", "_", ":", "@" and "-", at most 128',
      'plugins.helmet.__proto__: found this name; allowed: any other name',
      'plugins.helmet.a.__proto__: found this name; allowed: any other name',
      '__proto__: unknown key; known keys: server, log, store, redis, providers, models, defaultModel, tasks, routing, tenants, budget, plugins'
    ])
  }
  t.equal(Reflect.get({}, 'polluted'), undefined)
})

t.test('the types say what must be written and what is always there', async t => {
  const { settings } = readConfig({})
  const port: number = settings.server.port
  const sse: false | { heartbeat: number; headersAfter: number } = settings.server.sse
  const limit: false | { max: number; timeWindow: number } = settings.plugins.rateLimit
  const retention: number | false = settings.plugins.ledger ? settings.plugins.ledger.retention : false
  const redis: string | undefined = settings.redis
  for (const provider of Object.values(settings.providers)) {
    const types:
      | 'openai-compatible'
      | 'openai'
      | 'anthropic'
      | 'llamacpp'
      | 'azure-openai'
      | 'gemini'
      | 'vertex'
      | 'echo'
      | 'custom' = provider.type
    const words: number | undefined = provider.type === 'echo' ? provider.words : undefined
    t.same([types, words], ['echo', 16])
  }
  t.same([port, sse, limit, retention, redis], [8080, sse, limit, 7_776_000_000, undefined])

  // @ts-expect-error: a key that does not exist
  const unknown: Config = { servers: {} }
  // @ts-expect-error: a provider needs its type
  const untyped: Config = { providers: { a: { baseUrl: 'http://a' } } }
  // @ts-expect-error: a target needs a model
  const half: Config = { models: { a: { targets: [{ provider: 'a' }] } } }
  // @ts-expect-error: a plugin is no text
  const text: Config = { plugins: { cache: 'yes' } }
  // @ts-expect-error: durations are numbers in settings
  const duration: string = settings.server.shutdownGrace
  t.equal([unknown, untyped, half, text, duration].length, 5)
})
