import t, { type Test } from 'tap'
import { request } from 'undici'
import { build, hello, towards } from '../helper.ts'
import { failure, startUpstream } from '../upstream.ts'

const path = '/v1/chat/completions'
const app_ = 'https://app.example'

/** What the OpenAI SDK of a browser asks leave for. */
const sdkHeaders = [
  'authorization',
  'content-type',
  'user-agent',
  'x-stainless-arch',
  'x-stainless-helper-method',
  'x-stainless-lang',
  'x-stainless-os',
  'x-stainless-package-version',
  'x-stainless-retry-count',
  'x-stainless-runtime',
  'x-stainless-runtime-version',
  'x-stainless-timeout',
  'openai-organization',
  'openai-project'
].join(',')

/** What the SDK reads of an answer, and what is ours. */
const read = [
  'x-request-id',
  'retry-after',
  'retry-after-ms',
  'x-should-retry',
  'x-ratelimit-limit-requests',
  'x-ratelimit-limit-tokens',
  'x-ratelimit-remaining-requests',
  'x-ratelimit-remaining-tokens',
  'x-ratelimit-reset-requests',
  'x-ratelimit-reset-tokens',
  'x-trace-id',
  'x-gateway-provider',
  'x-gateway-model',
  'x-gateway-attempts',
  'x-gateway-cache',
  'x-gateway-cost-usd'
]

async function withCors(t: Test, cors: { origin: string[]; credentials?: boolean } = { origin: [app_] }) {
  const upstream = await startUpstream()
  t.teardown(() => upstream.close())
  const app = await build(t, towards(upstream, { server: { cors } }))
  const preflight = (origin: string, url = path, method = 'POST') =>
    app.inject({
      method: 'OPTIONS',
      url,
      headers: {
        origin,
        'access-control-request-method': method,
        'access-control-request-headers': sdkHeaders
      }
    })
  const send = (payload: object, headers: object = {}) =>
    app.inject({ method: 'POST', url: path, headers: { origin: app_, ...headers }, payload })
  return { upstream, app, preflight, send }
}

function isAllowed(t: Test, headers: Record<string, unknown>, origin = app_) {
  t.equal(headers['access-control-allow-origin'], origin)
  const exposed = String(headers['access-control-expose-headers']).toLowerCase().split(', ')
  t.same(
    read.filter(name => !exposed.includes(name)),
    []
  )
  t.match(headers['vary'], /\bOrigin\b/)
}

t.test('a preflight with the headers of the SDK is granted without a key', async t => {
  const { preflight, upstream } = await withCors(t)
  for (const [url, method] of [
    [path, 'POST'],
    ['/proxy/a/b', 'POST'],
    ['/v1/models', 'GET'],
    ['/v1/models/a%2Fb', 'GET']
  ] as const) {
    const answer = await preflight(app_, url, method)
    t.equal(answer.statusCode, 204, url)
    t.equal(answer.body, '')
    t.equal(answer.headers['access-control-allow-headers'], sdkHeaders)
    t.match(answer.headers['access-control-allow-methods'], new RegExp(`\\b${method}\\b`))
    t.equal(answer.headers['access-control-max-age'], '600')
    t.equal(answer.headers['access-control-allow-credentials'], undefined)
    t.equal(answer.headers['access-control-allow-origin'], app_)
  }
  t.equal(upstream.requests.length, 0)
})

t.test('a preflight of another origin gets no leave', async t => {
  const { preflight } = await withCors(t)
  for (const origin of ['https://evil.example', 'null', 'http://app.example', 'https://app.example.evil.example']) {
    const { headers } = await preflight(origin)
    t.equal(headers['access-control-allow-origin'], undefined, origin)
  }
})

t.test('several origins are told apart', async t => {
  const { preflight } = await withCors(t, { origin: [app_, 'https://other.example'] })
  t.equal((await preflight(app_)).headers['access-control-allow-origin'], app_)
  t.equal((await preflight('https://other.example')).headers['access-control-allow-origin'], 'https://other.example')
  t.equal((await preflight('https://third.example')).headers['access-control-allow-origin'], undefined)
})

t.test('credentials are allowed where the configuration says so', async t => {
  const { preflight, send } = await withCors(t, { origin: [app_], credentials: true })
  t.equal((await preflight(app_)).headers['access-control-allow-credentials'], 'true')
  t.equal((await send(hello)).headers['access-control-allow-credentials'], 'true')
})

t.test('* lets pages of every origin read what a key opens', async t => {
  const { preflight } = await withCors(t, { origin: ['*'] })
  t.ok(
    ['*', 'https://any.example'].includes(
      String((await preflight('https://any.example')).headers['access-control-allow-origin'])
    )
  )
})

t.test('whole answers can be read by the page', async t => {
  const { send } = await withCors(t)
  const answer = await send(hello)
  t.equal(answer.statusCode, 200)
  isAllowed(t, answer.headers)
  t.equal(answer.headers['content-type'], 'application/json; charset=utf-8')
  t.match(answer.headers['x-request-id'], /^req_/)
})

t.test('streams can be read by the page', async t => {
  const { app } = await withCors(t)
  const url = await app.listen({ host: '127.0.0.1', port: 0 })
  const { statusCode, headers, body } = await request(url + path, {
    method: 'POST',
    headers: { origin: app_, 'content-type': 'application/json' },
    body: JSON.stringify({ ...hello, stream: true })
  })
  t.equal(statusCode, 200)
  isAllowed(t, headers)
  t.equal(headers['content-type'], 'text/event-stream; charset=utf-8')
  t.ok((await body.text()).endsWith('data: [DONE]\n\n'))
})

t.test('errors can be read by the page', async t => {
  const { app, send, upstream } = await withCors(t)
  for (const [payload, headers, status] of [
    [{}, {}, 400],
    [{ ...hello, model: 'nope' }, {}, 404],
    [hello, { authorization: 'Bearer gw_unknown' }, 401],
    [hello, { 'content-type': 'application/x-www-form-urlencoded' }, 415],
    [{ ...hello, padding: 'x'.repeat(11 * 1024 * 1024) }, {}, 413]
  ] as const) {
    const answer = await send(payload, headers)
    t.equal(answer.statusCode, status)
    isAllowed(t, answer.headers)
  }
  upstream.script(failure(500))
  for (const stream of [false, true]) {
    const answer = await send({ ...hello, stream })
    t.equal(answer.statusCode, 502)
    isAllowed(t, answer.headers)
  }
  upstream.script(failure(429, {}, { headers: { 'retry-after': '3' } }))
  const limited = await send(hello)
  t.equal(limited.headers['retry-after'], '3')
  isAllowed(t, limited.headers)
  const models = await app.inject({ url: '/v1/models/nope', headers: { origin: app_ } })
  t.equal(models.statusCode, 404)
  isAllowed(t, models.headers)
})

t.test('unknown paths can be read by the page', async t => {
  const { app } = await withCors(t)
  const answer = await app.inject({ url: '/v1/nope', headers: { origin: app_ } })
  t.equal(answer.statusCode, 404)
  isAllowed(t, answer.headers)
})

t.test('an answer to another origin carries no leave', async t => {
  const { send } = await withCors(t)
  const answer = await send(hello, { origin: 'https://evil.example' })
  t.equal(answer.statusCode, 401)
  t.equal(answer.headers['access-control-allow-origin'], undefined)
})

t.test('without CORS nothing of it is sent and a preflight is an unknown path', async t => {
  const app = await build(t, { providers: { echo: { type: 'echo' } } })
  const preflight = await app.inject({
    method: 'OPTIONS',
    url: path,
    headers: { origin: app_, 'access-control-request-method': 'POST' }
  })
  t.equal(preflight.statusCode, 404)
  const answer = await app.inject({ method: 'POST', url: path, payload: { ...hello, model: 'echo/echo' } })
  t.equal(answer.statusCode, 200)
  for (const { headers } of [preflight, answer]) {
    t.same(
      Object.keys(headers).filter(name => name.startsWith('access-control')),
      []
    )
  }
})

t.test('OPTIONS that is no preflight is answered with nothing', async t => {
  const { app } = await withCors(t)
  const answer = await app.inject({ method: 'OPTIONS', url: path, headers: { origin: app_ } })
  t.equal(answer.statusCode, 204)
  t.equal(answer.body, '')
})

t.test('a preflight for an unknown path is granted, so that the page can read the 404', async t => {
  const { app, preflight } = await withCors(t)
  const granted = await preflight(app_, '/nope')
  t.equal(granted.statusCode, 204)
  const answer = await app.inject({ url: '/nope', headers: { origin: app_ } })
  t.equal(answer.statusCode, 404)
  t.equal(answer.json().error.code, 'resource_not_found')
  isAllowed(t, answer.headers)
})
