import fastifyHelmet, { type FastifyHelmetOptions } from '@fastify/helmet'
import Fastify from 'fastify'
import t, { type Test } from 'tap'
import { request } from 'undici'
import type { ModelGatewayOptions } from '../../app.ts'
import { build, hello, towards } from '../helper.ts'
import { failure, startUpstream } from '../upstream.ts'

const path = '/v1/chat/completions'
const transport = ['content-type', 'content-length', 'date', 'connection', 'keep-alive', 'transfer-encoding']

type Headers = Record<string, unknown>

/** The headers that @fastify/helmet itself sends. */
async function helmetsOwn(t: Test, options: FastifyHelmetOptions): Promise<Headers> {
  const app = Fastify()
  t.teardown(() => app.close())
  await app.register(fastifyHelmet, options)
  app.get('/', async () => '')
  return bare((await app.inject('/')).headers)
}

function bare(headers: Headers): Headers {
  return Object.fromEntries(Object.entries(headers).filter(([name]) => !transport.includes(name)))
}

/** What of an answer is neither of the transport nor of the gateway. */
function security(headers: Headers): Headers {
  const ours = /^(x-request-id|x-trace-id|x-gateway-|x-should-retry|retry-after|cache-control|x-accel-buffering)/
  return Object.fromEntries(Object.entries(bare(headers)).filter(([name]) => !ours.test(name)))
}

const api = {
  contentSecurityPolicy: {
    useDefaults: false,
    directives: { 'default-src': ["'none'"], 'frame-ancestors': ["'none'"] }
  },
  crossOriginResourcePolicy: { policy: 'cross-origin' as const }
}

async function answers(t: Test, options: ModelGatewayOptions = {}) {
  const upstream = await startUpstream()
  t.teardown(() => upstream.close())
  const app = await build(t, towards(upstream, options))
  const url = await app.listen({ host: '127.0.0.1', port: 0 })
  const get = async (where: string) => {
    const { headers, body } = await request(url + where)
    await body.dump()
    return headers
  }
  const post = async (payload: unknown, headers: Record<string, string> = {}) => {
    const answer = await request(url + path, {
      method: 'POST',
      headers: { 'content-type': 'application/json', ...headers },
      body: typeof payload === 'string' ? payload : JSON.stringify(payload)
    })
    await answer.body.dump()
    return answer.headers
  }
  const found: Record<string, Headers> = {
    'a whole answer': await post(hello),
    'a stream': await post({ ...hello, stream: true }),
    'a schema fault': await post({}),
    'broken JSON': await post('{'),
    'a wrong key': await post(hello, { authorization: 'Bearer gw_unknown' }),
    'an unknown model': await post({ ...hello, model: 'nope' }),
    'an unknown path': await get('/nope'),
    'the models': await get('/v1/models'),
    'the health': await get('/health')
  }
  upstream.script(failure(500))
  found['an upstream fault'] = await post(hello)
  return found
}

t.test('every answer carries what @fastify/helmet itself would send', async t => {
  const expected = await helmetsOwn(t, api)
  t.equal(expected['content-security-policy'], "default-src 'none';frame-ancestors 'none'")
  t.equal(expected['x-content-type-options'], 'nosniff')
  for (const [what, headers] of Object.entries(await answers(t))) t.same(security(headers), expected, what)
})

const variants: Array<[string, FastifyHelmetOptions]> = [
  ['one header off', { xFrameOptions: false }],
  ['the policy off', { contentSecurityPolicy: false }],
  ['a policy of its own', { contentSecurityPolicy: { directives: { 'img-src': ["'self'", 'https:'] } } }],
  ['other values', { referrerPolicy: { policy: 'same-origin' }, hsts: { maxAge: 60, preload: true } }],
  ['headers that are off by default', { crossOriginEmbedderPolicy: true }]
]
for (const [what, options] of variants) {
  t.test(`with ${what}, too`, async t => {
    const expected = await helmetsOwn(t, { ...api, ...options })
    const given = await answers(t, { plugins: { helmet: options as Record<string, unknown> } })
    for (const [what, headers] of Object.entries(given)) t.same(security(headers), expected, what)
  })
}

t.test('helmet: false sends none of them', async t => {
  for (const [what, headers] of Object.entries(await answers(t, { plugins: { helmet: false } }))) {
    t.same(security(headers), {}, what)
  }
})

t.test('one answer does not change the next', async t => {
  const first = await answers(t)
  const second = await answers(t)
  for (const what of Object.keys(first)) t.same(security(second[what]!), security(first[what]!), what)
})

t.test('the server does not name its software', async t => {
  for (const headers of Object.values(await answers(t))) {
    t.equal(headers['x-powered-by'], undefined)
    t.equal(headers['server'], undefined)
  }
})
