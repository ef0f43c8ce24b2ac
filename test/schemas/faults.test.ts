import t from 'tap'
import { ConfigError, readConfig } from '../../schemas/config.ts'
import { nearest, show } from '../../schemas/faults.ts'
import { faultsOf } from './helper.ts'

const url = 'an http(s) URL without credentials, query and fragment'
const timeout = 'a duration such as 250ms, 5s or 10m, above 0, at most 24d'
const target = { provider: 'echo', model: 'echo' }

t.test('a ConfigError has every fault, also as the lines of its message', async t => {
  try {
    readConfig({ server: { port: 'x' }, log: { level: 'loud' }, budget: {} })
    t.fail('must throw')
  } catch (error) {
    t.ok(error instanceof ConfigError && error instanceof Error)
    if (!(error instanceof ConfigError)) return
    t.equal(error.name, 'ConfigError')
    t.equal(error.code, 'GATEWAY_INVALID_CONFIG')
    t.strictSame(error.faults, [
      'server.port: found "x"; allowed: a whole number from 0 to 65535',
      'log.level: found "loud"; allowed: fatal | error | warn | info | debug | trace | silent',
      'budget.dailyLimitUsd: found nothing; allowed: a number from 0 to 9000000'
    ])
    t.equal(error.message, error.faults.join('\n'))
  }
})

t.test('a configuration that is no object is one fault', async t => {
  t.strictSame(faultsOf('gateway.yaml'), ['configuration: found a text; allowed: an object'])
  t.strictSame(faultsOf([]), ['configuration: found an empty list; allowed: an object'])
  t.strictSame(faultsOf(new Map()), ['configuration: found an object; allowed: an object'])
  t.strictSame(faultsOf(5, {}), ['configuration: found 5; allowed: an object'])
})

t.test('a wrong type, a number out of range and a missing key are told with what is allowed', async t => {
  const cases: Array<[unknown, string]> = [
    [{ server: [] }, 'server: found an empty list; allowed: an object'],
    [{ server: { port: 70_000 } }, 'server.port: found 70000; allowed: a whole number from 0 to 65535'],
    [{ server: { port: 80.5 } }, 'server.port: found 80.5; allowed: a whole number from 0 to 65535'],
    [{ server: { port: Number.NaN } }, 'server.port: found NaN; allowed: a whole number from 0 to 65535'],
    [{ server: { port: null } }, 'server.port: found null; allowed: a whole number from 0 to 65535'],
    [{ server: { port: 80n } }, 'server.port: found a bigint; allowed: a whole number from 0 to 65535'],
    [{ server: { host: '' } }, 'server.host: found ""; allowed: an address to listen on'],
    [{ server: { bodyLimit: '10' } }, 'server.bodyLimit: found "10"; allowed: a size such as 512kb or 10mb, above 0'],
    [
      { server: { bodyLimit: {} } },
      'server.bodyLimit: found an object; allowed: a size such as 512kb or 10mb, above 0'
    ],
    [{ server: { shutdownGrace: 0 } }, `server.shutdownGrace: found 0; allowed: ${timeout}`],
    [{ server: { shutdownGrace: '30d' } }, `server.shutdownGrace: found "30d"; allowed: ${timeout}`],
    [{ server: { cors: true } }, 'server.cors: found true; allowed: false or an object'],
    [
      { server: { cors: { origin: [] } } },
      'server.cors.origin: found an empty list; allowed: a list that is not empty'
    ],
    [
      { server: { cors: { origin: ['https://a.example/'] } } },
      'server.cors.origin[0]: found "https://a.example/"; allowed: an origin such as https://app.example, or *'
    ],
    [{ server: { sse: { heartbeat: '0s' } } }, `server.sse.heartbeat: found "0s"; allowed: ${timeout}`],
    [
      { server: { trustProxy: {} } },
      'server.trustProxy: found an object; allowed: true or false | a whole number of at least 0 | a text that is not empty | a list'
    ],
    [{ log: { destination: 5 } }, 'log.destination: found 5; allowed: a text that is not empty'],
    [{ models: { a: {} } }, 'models.a.targets: found nothing; allowed: a list that is not empty'],
    [{ models: { a: { targets: [] } } }, 'models.a.targets: found an empty list; allowed: a list that is not empty'],
    [
      { models: { a: { targets: [{ provider: 'echo' }] } } },
      'models.a.targets[0].model: found nothing; allowed: a text that is not empty'
    ],
    [
      { models: { a: { targets: [{ ...target, weight: -1 }] } } },
      'models.a.targets[0].weight: found -1; allowed: a number of at least 0'
    ],
    [
      { models: { a: { targets: [{ ...target, price: { input: 1 } }] } } },
      'models.a.targets[0].price.output: found nothing; allowed: a number of at least 0'
    ],
    [
      { models: { a: { targets: [target], retries: 11 } } },
      'models.a.retries: found 11; allowed: a whole number from 0 to 10'
    ],
    [
      { models: { a: { targets: [target], strategy: 'random' } } },
      'models.a.strategy: found "random"; allowed: weighted | priority | least-latency | least-busy | least-cost'
    ],
    [
      { models: { 'a b': { targets: [target] } } },
      'models["a b"]: found this name; allowed: a name without spaces, at most 256'
    ],
    [
      { tenants: { acme: { budget: { period: 'year' } } } },
      'tenants.acme.budget.period: found "year"; allowed: total | hour | day | week | month'
    ],
    [
      { budget: { dailyLimitUsd: 1, warningThreshold: 80 } },
      'budget.warningThreshold: found 80; allowed: a number from 0 to 1'
    ],
    [
      { plugins: { ledger: { retention: 'forever' } } },
      'plugins.ledger.retention: found "forever"; allowed: a duration such as 250ms, 5s, 10m, 24h or 90d'
    ],
    [{ plugins: { cache: { ttl: 5 } } }, 'plugins.cache.ttl: unknown key; no keys are known here'],
    [{ plugins: { helmet: { hsts: () => {} } } }, 'plugins.helmet.hsts: found a function; allowed: plain data']
  ]
  for (const [config, line] of cases) t.strictSame(faultsOf(config), [line], line)
})

t.test('an unknown key suggests the nearest one', async t => {
  t.strictSame(faultsOf({ server: { prt: 1 }, provider: {}, plugins: { ratelimit: {} } }), [
    'server.prt: unknown key; did you mean port?',
    'plugins.ratelimit: unknown key; did you mean rateLimit?',
    'provider: unknown key; did you mean providers?'
  ])
})

t.test('an unknown key that resembles none lists those that are known, and never its value', async t => {
  t.strictSame(faultsOf({ log: { password: 'hunter2' } }), [
    'log.password: unknown key; known keys: level, destination'
  ])
  t.strictSame(faultsOf({ log: { constructor: 'hunter2' } }), [
    'log.constructor: unknown key; known keys: level, destination'
  ])
})

t.test('every bad name of a map is told', async t => {
  const allowed = 'letters, digits, ".", "_" and "-", at most 64'
  t.strictSame(faultsOf({ providers: { 'a/b': 1, 'c d': 2, '': 3 } }), [
    `providers["a/b"]: found this name; allowed: ${allowed}`,
    `providers["c d"]: found this name; allowed: ${allowed}`,
    `providers[""]: found this name; allowed: ${allowed}`
  ])
})

t.test('a provider is judged by the branch that its type names', async t => {
  t.strictSame(faultsOf({ providers: { a: { type: 'openai-compatible', word: 1 } } }), [
    `providers.a.baseUrl: found nothing; allowed: ${url}`,
    'providers.a.word: unknown key; known keys: type, baseUrl, vendor, apiKeys, headers, enabled, forwardHeaders, streamUsage, connections, maxEvent'
  ])
  t.strictSame(faultsOf({ providers: { a: { type: 'echo', word: 1 } } }), [
    'providers.a.word: unknown key; did you mean words?'
  ])
  t.strictSame(faultsOf({ providers: { a: { type: 'vertex' } } }), [
    'providers.a.project: found nothing; allowed: the id of a project, or apiKeys for the express mode'
  ])
})

t.test('a provider without a known type lists the types and nothing else', async t => {
  const types = 'openai-compatible | openai | anthropic | llamacpp | azure-openai | gemini | vertex | echo | custom'
  t.strictSame(faultsOf({ providers: { a: { type: 'opnai', x: 1 } } }), [
    `providers.a.type: found "opnai"; allowed: ${types}`
  ])
  t.strictSame(faultsOf({ providers: { a: { baseUrl: 5 } } }), [`providers.a.type: found nothing; allowed: ${types}`])
  t.strictSame(faultsOf({ providers: { a: { type: ['echo'] } } }), [
    `providers.a.type: found a list; allowed: ${types}`
  ])
})

t.test('a plugin is judged as an object when it is one, and true as an empty one', async t => {
  t.strictSame(faultsOf({ plugins: { rateLimit: { max: 0 }, opa: true, signing: true, cache: 1, events: 'yes' } }), [
    'plugins.rateLimit.max: found 0; allowed: a whole number of at least 1',
    'plugins.cache: found 1; allowed: true, false or an object',
    `plugins.opa.url: found nothing; allowed: ${url}`,
    'plugins.events: found a text; allowed: true, false or an object',
    'plugins.signing.secret: found nothing; allowed: a text that is not empty'
  ])
  t.strictSame(
    faultsOf({ plugins: { auth: { jwt: { issuer: 'i', audience: 'a', jwksUri: 'x', algorithms: ['HS256'] } } } }),
    [
      'plugins.auth.jwt.jwksUri: found "x"; allowed: an http(s) URL without credentials',
      'plugins.auth.jwt.algorithms[0]: found "HS256"; allowed: RS256 | RS384 | RS512 | PS256 | PS384 | PS512 | ES256 | ES384 | ES512 | EdDSA'
    ]
  )
})

t.test('a base URL is http or https, without credentials, query and fragment', async t => {
  const bad = [
    '',
    'api.example',
    'ftp://a.example',
    'http://',
    'http:/a',
    'https://a.example/v1#x',
    'http://a b',
    'http://[::1'
  ]
  for (const baseUrl of bad) {
    const line = `providers.a.baseUrl: found ${JSON.stringify(baseUrl)}; allowed: ${url}`
    t.strictSame(faultsOf({ providers: { a: { type: 'llamacpp', baseUrl } } }), [line])
  }
  const hidden = [
    'https://user:hunter2@a.example',
    'https://hunter2@a.example',
    'https://a.example?key=hunter2',
    'user:hunter2@a.example'
  ]
  for (const baseUrl of hidden) {
    t.strictSame(faultsOf({ providers: { a: { type: 'llamacpp', baseUrl } } }), [
      `providers.a.baseUrl: found <hidden>; allowed: ${url}`
    ])
  }
})

t.test('credentials and what belongs to one connection are never forwarded', async t => {
  const refused = [
    'authorization',
    'Authorization',
    'cookie',
    'host',
    'content-length',
    'x-api-key',
    'API-Key',
    'proxy-authorization',
    'accept-encoding',
    'connection',
    'keep-alive',
    'proxy-authenticate',
    'te',
    'trailer',
    'transfer-encoding',
    'upgrade',
    'not a header',
    ''
  ]
  for (const name of refused) {
    const [line, ...others] = faultsOf({ providers: { a: { type: 'echo', forwardHeaders: ['x-ok', name] } } })
    t.match(line, /^providers\.a\.forwardHeaders\[1\]: found ".*"; allowed: a header name; never a credential/)
    t.equal(others.length, 0)
  }
  t.strictSame(
    faultsOf({ providers: { a: { type: 'echo', forwardHeaders: ['x-authorization', 'hosts', 'tex'] } } }),
    []
  )
})

t.test('headers of our own may hold credentials but not change the framing', async t => {
  const allowed = 'a header name; never host, content-length, accept-encoding or a hop-by-hop header'
  t.strictSame(
    faultsOf({ providers: { a: { type: 'echo', headers: { Authorization: 'Bearer x', 'HTTP-Referer': 'y' } } } }),
    []
  )
  t.strictSame(
    faultsOf({ providers: { a: { type: 'echo', headers: { 'Content-Length': '1', 'a b': '2', c: 'd\r\ne: f' } } } }),
    [
      `providers.a.headers.Content-Length: found this name; allowed: ${allowed}`,
      `providers.a.headers["a b"]: found this name; allowed: ${allowed}`,
      'providers.a.headers.c: found <hidden>; allowed: a text without control characters'
    ]
  )
})

t.test('what may hold a secret is never shown', async t => {
  const printable = 'printable ASCII without white space'
  const servers = 'a list'
  const cases: Array<[unknown, string]> = [
    [
      { providers: { a: { type: 'openai', apiKeys: 'hunter2' } } },
      'providers.a.apiKeys: found <hidden>; allowed: a list'
    ],
    [
      { providers: { a: { type: 'openai', apiKeys: ['hunter2\n'] } } },
      `providers.a.apiKeys[0]: found <hidden>; allowed: ${printable}`
    ],
    [
      { providers: { a: { type: 'openai', apiKeys: { hunter2: 1 } } } },
      'providers.a.apiKeys: found <hidden> (an object); allowed: a list'
    ],
    [
      { providers: { a: { type: 'openai', headers: 'hunter2' } } },
      'providers.a.headers: found <hidden>; allowed: an object'
    ],
    [
      { providers: { a: { type: 'openai', headers: { a: 22 } } } },
      'providers.a.headers.a: found <hidden> (a number); allowed: a text without control characters'
    ],
    [
      { providers: { a: { type: 'vertex', project: 'p', location: 'l', credentials: ['hunter2'] } } },
      'providers.a.credentials: found <hidden> (a list); allowed: a text that is not empty'
    ],
    [{ providers: { a: 'hunter2' } }, 'providers.a: found a text; allowed: an object'],
    [{ providers: 'hunter2' }, 'providers: found a text; allowed: an object'],
    [{ tenants: { acme: { keys: 'hunter2' } } }, 'tenants.acme.keys: found <hidden>; allowed: a list'],
    [{ tenants: { acme: { keys: ['hunter 2'] } } }, `tenants.acme.keys[0]: found <hidden>; allowed: ${printable}`],
    [{ tenants: { acme: 'hunter2' } }, 'tenants.acme: found a text; allowed: an object'],
    [
      { plugins: { auth: { adminToken: 12345 } } },
      `plugins.auth.adminToken: found <hidden> (a number); allowed: ${printable}`
    ],
    [
      { plugins: { auth: { adminToken: 'hunter 2' } } },
      `plugins.auth.adminToken: found <hidden>; allowed: ${printable}`
    ],
    [{ plugins: { auth: 'hunter2' } }, 'plugins.auth: found a text; allowed: true, false or an object'],
    [{ plugins: { signing: 'hunter2' } }, 'plugins.signing: found a text; allowed: true, false or an object'],
    [
      { plugins: { signing: { secret: ['hunter2'] } } },
      'plugins.signing.secret: found <hidden> (a list); allowed: a text that is not empty'
    ],
    [
      { plugins: { signing: { secrets: 'hunter2', secret: 'x' } } },
      'plugins.signing.secrets: unknown key; did you mean secret?'
    ],
    [
      { plugins: { realtime: { iceServers: 'hunter2' } } },
      `plugins.realtime.iceServers: found <hidden>; allowed: ${servers}`
    ],
    [
      { plugins: { realtime: { iceServers: ['hunter2'] } } },
      'plugins.realtime.iceServers[0]: found <hidden>; allowed: an object'
    ],
    [
      { plugins: { realtime: { iceServers: [{ urls: 'stun:a', credential: 5 }] } } },
      'plugins.realtime.iceServers[0].credential: found <hidden> (a number); allowed: a text that is not empty'
    ],
    [{ plugins: { opa: { url: 'http://u:hunter2@opa' } } }, `plugins.opa.url: found <hidden>; allowed: ${url}`],
    [{ store: 'mysql://u:hunter2@db' }, 'store: found <hidden>; allowed: false, sqlite:FILE or a postgres:// URL'],
    [{ redis: { url: 'hunter2' } }, 'redis: found <hidden> (an object); allowed: a redis:// or rediss:// URL']
  ]
  for (const [config, line] of cases) {
    const lines = faultsOf(config)
    t.strictSame(lines, [line])
    t.notMatch(lines.join('\n'), /hunter2/)
  }
})

t.test('what was found is one short line', async t => {
  const [line] = faultsOf({ log: { level: `a\n\u001b[31m${'x'.repeat(500)}` } })
  t.equal(line?.split('\n').length, 1)
  t.notMatch(line, '\u001b')
  t.ok(line && line.length < 200)
  const [named] = faultsOf({ models: { ['y'.repeat(300)]: { targets: [target] } } })
  t.ok(named && named.length < 200)
})

t.test('paths are written as a reader would write them', async t => {
  t.equal(show([]), 'configuration')
  t.equal(show(['server', 'port']), 'server.port')
  t.equal(show(['models', 'gpt-4.1', 'targets', 0, 'weight']), 'models["gpt-4.1"].targets[0].weight')
  t.equal(show(['a/b']), '["a/b"]')
})

t.test('only a name that is near enough is meant', async t => {
  t.equal(nearest('baseURL', ['apiKeys', 'baseUrl']), 'baseUrl')
  t.equal(nearest('fallback', ['fallbacks', 'targets']), 'fallbacks')
  t.equal(nearest('x', ['y']), 'y')
  t.equal(nearest('password', ['level', 'destination']), undefined)
  t.equal(nearest('z'.repeat(100_000), ['level']), undefined)
})
