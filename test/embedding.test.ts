import { setTimeout as wait } from 'node:timers/promises'
import fastifyCors from '@fastify/cors'
import fastifyHelmet from '@fastify/helmet'
import fastifySensible from '@fastify/sensible'
import Fastify, { type FastifyInstance, type FastifyRequest, type InjectOptions } from 'fastify'
import fp from 'fastify-plugin'
import t, { type Test } from 'tap'
import modelGateway, { ConfigError, type Gateway, type ModelGatewayOptions } from '../app.ts'
import chatCompletions from '../plugins/chat-completions/index.ts'
import gateway from '../plugins/gateway/index.ts'
import http from '../plugins/http/index.ts'
import routing from '../plugins/routing/index.ts'
import echo from '../providers/echo.ts'
import type { ChatRequest } from '../schemas/chat.ts'
import { isGatewayError } from '../schemas/errors.ts'
import type { Completed } from '../schemas/gateway.ts'

// What a host writes for a gateway under another name.
declare module 'fastify' {
  interface FastifyInstance {
    llm: Gateway
    secondLlm: Gateway
  }
}

const ask: ChatRequest = { model: 'echo/echo', messages: [{ role: 'user', content: 'one two three' }] }
const quick: ModelGatewayOptions = { store: false, providers: { echo: { type: 'echo', words: 3 } } }
const slow: ModelGatewayOptions = { store: false, providers: { echo: { type: 'echo', words: 3, delay: '10s' } } }

/** A host that is as awkward as hosts get: every name, parser, hook and handler that a gateway might want is taken. */
async function awkwardHost(t: Test, where: 'without' | 'first' | 'last') {
  const app = Fastify({
    genReqId: () => 'the-host-made-this',
    bodyLimit: 2_000,
    ajv: { customOptions: { coerceTypes: true } }
  })
  t.teardown(() => app.close())
  const counts: Record<string, number> = {}
  const count = (name: string) => {
    counts[name] = (counts[name] ?? 0) + 1
  }
  if (where === 'first') await app.register(modelGateway, { ...quick, prefix: '/llm', name: 'llm' })

  for (const name of [
    'tenants',
    'budgets',
    'redis',
    'store',
    'principal',
    'providers',
    'models',
    'http',
    'chat',
    'to'
  ]) {
    app.decorate(name, `the host's ${name}`)
    app.decorateRequest(name, `the host's request.${name}`)
    app.decorateReply(name, `the host's reply.${name}`)
  }
  for (const name of ['assert', 'httpErrors', 'authenticate', 'gateway']) app.decorate(name, `the host's ${name}`)
  for (const name of ['is', 'forwarded']) app.decorateRequest(name, `the host's request.${name}`)
  for (const name of ['vary', 'notFound', 'cacheControl']) app.decorateReply(name, `the host's reply.${name}`)

  app.addHook('onRequest', async (_request, reply) => {
    count('onRequest')
    reply.header('x-host', 'seen')
  })
  app.addHook('preHandler', async () => count('preHandler'))
  app.addHook('onSend', async (_request, reply, payload) => {
    count('onSend')
    if (!reply.sent) reply.header('x-host-sent', 'yes')
    return payload
  })
  app.addHook('onResponse', async () => count('onResponse'))
  app.addHook('onError', async () => count('onError'))

  app.setErrorHandler((error: Error, _request, reply) => reply.code(418).send({ host: error.message }))
  app.setNotFoundHandler((request, reply) => reply.code(404).send({ host: `no ${request.url}` }))
  app.removeContentTypeParser('application/json')
  app.removeContentTypeParser('text/plain')
  app.addContentTypeParser('application/json', { parseAs: 'string' }, async (_: FastifyRequest, body: string) => ({
    replaced: JSON.parse(body)
  }))
  app.addContentTypeParser('text/plain', { parseAs: 'string' }, async (_: FastifyRequest, body: string) =>
    body.toUpperCase()
  )
  app.addContentTypeParser('*', { parseAs: 'string' }, async (_: FastifyRequest, body: string) => `* ${body}`)
  app.setSchemaErrorFormatter((errors, where) => new Error(`the host found ${errors.length} in ${where}`))

  app.get('/', async () => 'root')
  app.get('/health', async () => 'the host is well')
  app.get('/llm-of-the-host', async () => 'beside')
  app.get('/llm/own', async () => 'below')
  app.get('/v1/models', async () => ['the host has models'])
  app.post('/echo', async request => ({ got: request.body }))
  app.get('/throws', async () => {
    throw new Error('on purpose')
  })
  app.get(
    '/number/:n',
    { schema: { params: { type: 'object', properties: { n: { type: 'integer' } } } } },
    async request => ({
      n: request.params
    })
  )
  app.get('/decorated', async (request, reply) => {
    const read = (of: object, names: string[]) => names.map(name => Reflect.get(of, name))
    return [
      read(app, ['tenants', 'redis', 'principal', 'to', 'assert', 'httpErrors', 'authenticate', 'gateway', 'store']),
      read(request, ['principal', 'is', 'forwarded', 'to']),
      read(reply, ['vary', 'notFound', 'cacheControl'])
    ]
  })
  await app.register(
    async scope => {
      scope.setErrorHandler((error: Error, _request, reply) => reply.code(419).send({ scope: error.message }))
      scope.get('/throws', async () => {
        throw new Error('inside')
      })
    },
    { prefix: '/scope' }
  )
  if (where === 'last') await app.register(modelGateway, { ...quick, prefix: '/llm', name: 'llm' })
  return { app, counts }
}

const hostRequests: InjectOptions[] = [
  { url: '/' },
  { url: '/health' },
  { method: 'HEAD', url: '/health' },
  { url: '/llm-of-the-host' },
  { url: '/llm/own' },
  { url: '/v1/models' },
  { url: '/nowhere' },
  { method: 'POST', url: '/v1/chat/completions', payload: {} },
  { method: 'POST', url: '/echo', payload: { a: 1 } },
  { method: 'POST', url: '/echo', payload: '{broken', headers: { 'content-type': 'application/json' } },
  { method: 'POST', url: '/echo', payload: 'text', headers: { 'content-type': 'text/plain' } },
  { method: 'POST', url: '/echo', payload: 'anything', headers: { 'content-type': 'application/x-own' } },
  { method: 'POST', url: '/echo', payload: { long: 'x'.repeat(3_000) } },
  { url: '/throws' },
  { url: '/scope/throws' },
  { url: '/scope/nowhere' },
  { url: '/number/17' },
  { url: '/number/many' },
  { url: '/decorated' }
]

t.test('a host with a gateway answers exactly as without', async t => {
  const plain = await awkwardHost(t, 'without')
  const expected = await answersOf(plain.app)
  for (const where of ['first', 'last'] as const) {
    await t.test(`registered ${where}`, async t => {
      const { app, counts } = await awkwardHost(t, where)
      const answers = await answersOf(app)
      for (const [index, request] of hostRequests.entries()) {
        t.same(answers[index], expected[index], `${request.method ?? 'GET'} ${request.url}`)
      }
      t.same(counts, plain.counts, 'its hooks ran as often')
    })
  }
})

async function answersOf(app: FastifyInstance) {
  const answers = []
  for (const request of hostRequests) {
    const { statusCode, headers, body } = await app.inject(request)
    const { date: _, ...kept } = headers
    answers.push({ statusCode, headers: kept, body })
  }
  return answers
}

t.test('in that host the gateway works as it does alone', async t => {
  for (const where of ['first', 'last'] as const) {
    await t.test(`registered ${where}`, async t => {
      const { app } = await awkwardHost(t, where)
      await gatewayWorks(t, app, '/llm')
      const long = { ...ask, messages: [{ role: 'user', content: 'x'.repeat(10_000) }] }
      t.equal((await post(app, '/llm/v1/chat/completions', long)).statusCode, 200, 'its own body limit holds')
      t.equal(contentOf(await app.llm.complete(ask, app.llm.caller())), 'one two three', 'in process')
    })
  }
})

/** The whole HTTP surface once, in our form and with our errors. */
async function gatewayWorks(t: Test, app: FastifyInstance, prefix: string) {
  const url = `${prefix}/v1/chat/completions`
  const whole = await post(app, url, ask)
  t.equal(whole.statusCode, 200)
  t.equal(whole.json().choices[0].message.content, 'one two three')
  const stream = await post(app, url, { ...ask, stream: true })
  t.equal(stream.statusCode, 200)
  t.match(stream.headers['content-type'], /^text\/event-stream/)
  t.ok(stream.body.endsWith('data: [DONE]\n\n'))
  t.equal((await post(app, `${prefix}/proxy/echo/echo`, { messages: ask.messages })).statusCode, 200)
  t.same((await app.inject(`${prefix}/v1/models`)).json().data[0].id, 'echo/echo')
  t.equal((await app.inject(`${prefix}/v1/models/echo/echo`)).json().id, 'echo/echo')
  t.equal((await app.inject(`${prefix}/health`)).json().ok, true)
  t.equal((await app.inject(`${prefix}/ready`)).json().ok, true)

  const strict = await post(app, url, { ...ask, temperature: '0.7' })
  t.equal(strict.statusCode, 400, 'nothing is coerced')
  t.equal(strict.json().error.param, 'temperature')
  t.equal((await post(app, url, { ...ask, max_tokens: null })).statusCode, 200, 'null is unset')
  t.equal((await post(app, url, {})).json().error.param, 'messages')
  t.equal((await post(app, url, '{broken')).json().error.type, 'invalid_request_error')
  t.equal((await post(app, url, '<a/>', 'application/xml')).statusCode, 415, "the host's * parser is not ours")
  t.equal((await post(app, url, { ...ask, model: 'no/such' })).json().error.code, 'model_not_found')
  if (prefix === '') return
  for (const path of [prefix, `${prefix}/`, `${prefix}/nowhere`, `${prefix}/v1/nowhere?q=1`]) {
    const unknown = await app.inject(path)
    t.equal(unknown.statusCode, 404, path)
    t.match(unknown.json().error, { code: 'resource_not_found', type: 'invalid_request_error' })
    t.match(unknown.headers['x-request-id'], /^req_/)
  }
}

function post(app: FastifyInstance, url: string, payload: object | string, type = 'application/json') {
  return app.inject({ method: 'POST', url, payload, headers: { 'content-type': type, host: 'localhost' } })
}

function contentOf(answer: Completed) {
  if (answer.stream) throw new Error('A whole answer was expected.')
  return answer.body.choices[0]?.message.content
}

async function textOf(answer: Completed) {
  if (!answer.stream) throw new Error('A stream was expected.')
  let text = ''
  for await (const frames of answer.frames) for (const chunk of frames) text += chunk.choices[0]?.delta.content ?? ''
  return text
}

t.test("a host's reply serializer is not ours", async t => {
  const app = Fastify()
  t.teardown(() => app.close())
  app.setReplySerializer(payload => JSON.stringify({ wrapped: payload }))
  app.get('/own', async () => ({ a: 1 }))
  await app.register(modelGateway, { ...quick, prefix: '/llm' })
  t.equal((await app.inject('/own')).body, '{"wrapped":{"a":1}}')
  await gatewayWorks(t, app, '/llm')
})

t.test("a host's compilers are not ours", async t => {
  const app = Fastify()
  t.teardown(() => app.close())
  app.setValidatorCompiler(() => () => ({ error: new Error('the host accepts nothing') }))
  app.setSerializerCompiler(() => data => JSON.stringify({ compiled: data }))
  app.get('/own/:n', { schema: { params: {}, response: { 200: {} } } }, async () => ({ a: 1 }))
  await app.register(modelGateway, { ...quick, prefix: '/llm' })
  t.equal((await app.inject('/own/1')).statusCode, 400)
  await gatewayWorks(t, app, '/llm')
})

t.test(
  'a host with @fastify/cors, @fastify/sensible and @fastify/helmet keeps them, before and after the gateway',
  async t => {
    const origin = 'https://app.example'
    const cross = { origin, 'access-control-request-method': 'POST', 'access-control-request-headers': 'authorization' }
    for (const order of ['plugins first', 'gateway first'] as const) {
      await t.test(order, async t => {
        const app = Fastify()
        t.teardown(() => app.close())
        const own: ModelGatewayOptions = {
          ...quick,
          prefix: '/llm',
          server: { cors: { origin: [origin] } },
          plugins: { sensible: order === 'plugins first' ? { sharedSchemaId: 'HttpError' } : true }
        }
        if (order === 'gateway first') await app.register(modelGateway, own)
        await app.register(fastifyCors, { origin: 'https://host.example' })
        await app.register(fastifySensible, { sharedSchemaId: 'HttpError' })
        await app.register(fastifyHelmet, { frameguard: { action: 'deny' } })
        if (order === 'plugins first') await app.register(modelGateway, own)
        app.get('/own', async (_request, reply) => reply.forbidden('no'))
        const answer = await app.inject('/own')
        t.equal(answer.statusCode, 403)
        t.equal(answer.headers['access-control-allow-origin'], 'https://host.example')
        t.equal(answer.headers['x-frame-options'], 'DENY')
        t.equal((await app.inject({ method: 'OPTIONS', url: '/own', headers: cross })).statusCode, 204)
        await gatewayWorks(t, app, '/llm')

        const allowed = order === 'gateway first' ? origin : 'https://host.example'
        const preflight = await app.inject({ method: 'OPTIONS', url: '/llm/v1/chat/completions', headers: cross })
        t.equal(preflight.statusCode, 204, 'preflight of a route of ours')
        t.equal(preflight.headers['access-control-allow-origin'], allowed)
        if (order === 'gateway first') return
        const url = await app.listen({ host: '127.0.0.1', port: 0 })
        const stream = await fetch(`${url}/llm/v1/chat/completions`, {
          method: 'POST',
          headers: { 'content-type': 'application/json' },
          body: JSON.stringify({ ...ask, stream: true })
        })
        t.equal(stream.headers.get('access-control-allow-origin'), allowed, 'also on a stream')
        t.ok((await stream.text()).endsWith('[DONE]\n\n'))
      })
    }
  }
)

t.test('without a prefix, preflights of other routes are not ours', async t => {
  const origin = 'https://app.example'
  const cross = { origin, 'access-control-request-method': 'POST', 'access-control-request-headers': 'authorization' }
  for (const theirs of [false, true]) {
    await t.test(theirs ? 'beside @fastify/cors' : 'alone', async t => {
      const app = Fastify()
      t.teardown(() => app.close())
      await app.register(modelGateway, { ...quick, server: { cors: { origin: [origin] } } })
      if (theirs) await app.register(fastifyCors, { origin: 'https://host.example' })
      app.post('/own', async () => 'own')
      for (const url of ['/v1/chat/completions', '/v1/models', '/v1/models/a/b', '/models', '/proxy/a/b', '/health']) {
        const preflight = await app.inject({ method: 'OPTIONS', url, headers: cross })
        t.equal(preflight.statusCode, 204, url)
        t.equal(preflight.headers['access-control-allow-origin'], origin)
      }
      const preflight = await app.inject({ method: 'OPTIONS', url: '/own', headers: cross })
      t.equal(preflight.statusCode, theirs ? 204 : 404)
      t.equal(preflight.headers['access-control-allow-origin'], theirs ? 'https://host.example' : undefined)
      const read = await app.inject({ url: '/v1/models', headers: { origin, host: 'localhost' } })
      t.equal(read.statusCode, 200)
      // Hooks of a host reach every route, also later ones: where it has CORS of its own, that decides.
      t.equal(read.headers['access-control-allow-origin'], theirs ? 'https://host.example' : origin)
      t.match(read.headers['access-control-expose-headers'], 'x-request-id')
      await gatewayWorks(t, app, '')
    })
  }
})

t.test('names', async t => {
  t.test('one that is taken is refused in words', async t => {
    for (const name of ['gateway', 'routing']) {
      const app = Fastify()
      t.teardown(() => app.close())
      if (name === 'gateway') app.decorate(name, {} as Gateway)
      await t.rejects(async () => app.register(modelGateway, { ...quick, name }), {
        message: new RegExp(`app\\.${name}.*taken`)
      })
    }
  })

  t.test('twice the same', async t => {
    const app = Fastify()
    t.teardown(() => app.close())
    await app.register(modelGateway, { ...quick, prefix: '/a' })
    await t.rejects(async () => app.register(modelGateway, { ...quick, prefix: '/b' }), {
      message: /app\.gateway.*taken/
    })
  })
})

t.test('two gateways in one host share nothing', async t => {
  const app = Fastify()
  t.teardown(() => app.close())
  await app.register(modelGateway, {
    prefix: '/a',
    name: 'llm',
    store: false,
    providers: { short: { type: 'echo', words: 1 } },
    models: { only: { targets: [{ provider: 'short', model: 'm' }] } },
    plugins: { auth: { adminToken: 'token-of-a' }, helmet: false }
  })
  await app.register(modelGateway, {
    prefix: '/b',
    name: 'secondLlm',
    store: false,
    providers: { long: { type: 'echo', words: 5 }, other: { type: 'echo' } },
    tenants: { acme: { keys: ['key-of-b'] } }
  })
  await app.ready()
  t.same(
    app.llm.providers.list().map(provider => provider.name),
    ['short']
  )
  t.same(
    app.secondLlm.providers.list().map(provider => provider.name),
    ['long', 'other']
  )
  t.notOk(app.hasDecorator('gateway'), 'no third name')
  const messages = ask.messages
  t.equal(contentOf(await app.llm.complete({ model: 'only', messages }, app.llm.caller())), 'one')
  const second = await app.secondLlm.complete({ model: 'long/m', messages }, app.secondLlm.caller({ tenant: 'acme' }))
  t.equal(contentOf(second), 'one two three one two')
  await t.rejects(app.llm.complete({ model: 'long/m', messages }, app.llm.caller()), {
    code: 'GATEWAY_MODEL_NOT_FOUND'
  })

  const call = (url: string, key: string, model: string) =>
    app.inject({ method: 'POST', url, headers: { authorization: `Bearer ${key}` }, payload: { model, messages } })
  t.equal((await call('/a/v1/chat/completions', 'token-of-a', 'only')).statusCode, 200)
  t.equal((await call('/b/v1/chat/completions', 'token-of-a', 'long/m')).statusCode, 401)
  t.equal((await call('/b/v1/chat/completions', 'key-of-b', 'long/m')).statusCode, 200)
  t.equal((await call('/a/v1/chat/completions', 'key-of-b', 'only')).statusCode, 401)
  t.equal((await app.inject('/a/health')).headers['x-content-type-options'], undefined, 'a: helmet is off')
  t.equal((await app.inject('/b/health')).headers['x-content-type-options'], 'nosniff')
  t.equal((await app.inject('/nowhere')).json().message, 'Route GET:/nowhere not found', "the host's own 404")
})

t.test('prefixes', async t => {
  for (const prefix of ['/llm', 'llm', '/llm/', '/a/b/c']) {
    await t.test(prefix, async t => {
      const app = Fastify()
      t.teardown(() => app.close())
      await app.register(modelGateway, { ...quick, prefix })
      await gatewayWorks(t, app, `/${prefix.replace(/^\/|\/$/g, '')}`)
      t.equal((await app.inject('/nowhere')).json().message, 'Route GET:/nowhere not found')
    })
  }

  t.test("below the host's own", async t => {
    const app = Fastify()
    t.teardown(() => app.close())
    await app.register(
      async scope => {
        await scope.register(modelGateway, { ...quick, prefix: '/llm' })
        scope.get('/own', async () => typeof scope.gateway.complete)
      },
      { prefix: '/api' }
    )
    await gatewayWorks(t, app, '/api/llm')
    t.equal((await app.inject('/api/own')).body, 'function')
    t.notOk(app.hasDecorator('gateway'), 'the name stays in that scope')
    t.equal((await app.inject('/api/nowhere')).json().message, 'Route GET:/api/nowhere not found')
  })

  for (const prefix of [undefined, '', '/']) {
    await t.test(`none, as ${JSON.stringify(prefix)}: no not-found handler is set`, async t => {
      const app = Fastify()
      t.teardown(() => app.close())
      await app.register(modelGateway, { ...quick, prefix })
      app.setNotFoundHandler(async (_request, reply) => reply.code(404).send('the host says no'))
      await gatewayWorks(t, app, '')
      t.equal((await app.inject('/v1/nowhere')).body, 'the host says no')
    })
  }
})

t.test('in process', async t => {
  const start = async (t: Test, options: ModelGatewayOptions) => {
    const app = Fastify({ forceCloseConnections: true })
    t.teardown(() => app.close())
    await app.register(modelGateway, { ...options, prefix: '/llm' })
    return app
  }

  t.test('whole and streaming, for a tenant', async t => {
    const app = await start(t, { ...quick, tenants: { acme: {} } })
    await app.ready()
    const answer = await app.gateway.complete(ask, app.gateway.caller({ tenant: 'acme' }))
    t.equal(contentOf(answer), 'one two three')
    t.equal(answer.facts.target?.provider.name, 'echo')
    t.equal(answer.facts.attempts, 1)
    t.equal(await textOf(await app.gateway.complete({ ...ask, stream: true }, app.gateway.caller())), 'one two three')
    t.equal(app.gateway.running, 0)
  })

  t.test('aborted before, while waiting and while streaming', async t => {
    const app = await start(t, slow)
    await app.ready()
    const gone = app.gateway.complete(ask, app.gateway.caller({ signal: AbortSignal.abort() }))
    await t.rejects(gone, { code: 'GATEWAY_CANCELLED' })
    for (const stream of [false, true]) {
      const controller = new AbortController()
      const answering = app.gateway.complete({ ...ask, stream }, app.gateway.caller({ signal: controller.signal }))
      t.equal(app.gateway.running, 1)
      setImmediate(() => controller.abort())
      await t.rejects(answering, { code: 'GATEWAY_CANCELLED' })
      t.equal(app.gateway.running, 0)
    }
    const trickling = await start(t, { providers: { echo: { type: 'echo', words: 5, interval: '10s' } } })
    await trickling.ready()
    const controller = new AbortController()
    const caller = trickling.gateway.caller({ signal: controller.signal })
    const answer = await trickling.gateway.complete({ ...ask, stream: true }, caller)
    setTimeout(() => controller.abort(), 20)
    await t.rejects(textOf(answer), { code: 'GATEWAY_CANCELLED' })
    t.equal(trickling.gateway.running, 0)
  })

  t.test('a reader that breaks off ends the call', async t => {
    const app = await start(t, { providers: { echo: { type: 'echo', words: 5, interval: '10s' } } })
    await app.ready()
    const answer = await app.gateway.complete({ ...ask, stream: true }, app.gateway.caller())
    if (!answer.stream) throw new Error('A stream was expected.')
    for await (const _ of answer.frames) break
    t.equal(app.gateway.running, 0)
  })

  t.test('not before the host is ready, not after it began to close', async t => {
    const app = await start(t, quick)
    await t.rejects(app.gateway.complete(ask, app.gateway.caller()), { message: /await app\.ready\(\)/ })
    await app.ready()
    t.equal(contentOf(await app.gateway.complete(ask, app.gateway.caller())), 'one two three')
    const { gateway } = app
    await app.close()
    await t.rejects(gateway.complete(ask, gateway.caller()), { code: 'GATEWAY_SHUTTING_DOWN' })
  })

  t.test('faults are the same as over HTTP', async t => {
    const app = await start(t, quick)
    await app.ready()
    const fault = await app.gateway.complete({ ...ask, model: 'no/such' }, app.gateway.caller()).catch(error => error)
    t.ok(isGatewayError(fault))
    t.match(fault, { statusCode: 404, wire: 'model_not_found', param: 'model' })
  })

  t.test("a layer of the host's stands around every lane", async t => {
    const app = await start(t, quick)
    const seen: string[] = []
    app.gateway.intercept('observe', (inference, next) => {
      seen.push(`${inference.origin.lane} ${inference.route.alias}`)
      inference.onSettled(outcome => seen.push(outcome.status))
      return next(inference)
    })
    await app.ready()
    t.throws(() => app.gateway.intercept('observe', (inference, next) => next(inference)), /refused once/)
    await app.gateway.complete(ask, app.gateway.caller())
    await post(app, '/llm/v1/chat/completions', ask)
    t.same(seen, ['process echo/echo', 'completed', 'http echo/echo', 'completed'])
  })
})

t.test('a closing host waits for what runs and aborts what is left', async t => {
  const build = async (delay: string, shutdownGrace: string) => {
    const app = Fastify()
    t.teardown(() => app.close())
    await app.register(modelGateway, {
      store: false,
      providers: { echo: { type: 'echo', words: 3, delay } },
      server: { shutdownGrace }
    })
    await app.ready()
    return app
  }
  const patient = await build('100ms', '5s')
  const running = patient.gateway.complete(ask, patient.gateway.caller())
  const closing = patient.close()
  await wait(0)
  await t.rejects(patient.gateway.complete(ask, patient.gateway.caller()), { code: 'GATEWAY_SHUTTING_DOWN' })
  t.equal(contentOf(await running), 'one two three')
  await closing

  const hasty = await build('10s', '50ms')
  const lost = hasty.gateway.complete(ask, hasty.gateway.caller())
  const refused = t.rejects(lost, { code: 'GATEWAY_SHUTTING_DOWN' })
  const before = performance.now()
  await hasty.close()
  await refused
  t.ok(performance.now() - before < 2_000)
})

t.test('picked one by one', async t => {
  t.test('kernel, routing and a provider: no HTTP at all', async t => {
    const app = Fastify()
    t.teardown(() => app.close())
    await app.register(gateway)
    await app.register(routing, { defaultModel: 'echo/any' })
    await app.register(echo, { words: 2 })
    await app.ready()
    t.equal(contentOf(await app.gateway.complete({ messages: ask.messages }, app.gateway.caller())), 'one two')
    t.equal(app.printRoutes().trim(), '(empty tree)')
  })

  t.test('with http and chat-completions: one route', async t => {
    const app = Fastify()
    t.teardown(() => app.close())
    await app.register(gateway)
    await app.register(routing)
    await app.register(echo, { words: 3 })
    await app.register(http)
    await app.register(chatCompletions)
    t.equal((await post(app, '/v1/chat/completions', ask)).json().choices[0].message.content, 'one two three')
    t.ok((await post(app, '/v1/chat/completions', { ...ask, stream: true })).body.endsWith('data: [DONE]\n\n'))
    t.equal((await post(app, '/v1/chat/completions', {})).json().error.param, 'messages')
    t.equal((await app.inject('/v1/models')).json().message, 'Route GET:/v1/models not found')
  })

  t.test('below a prefix, in a scope of its own', async t => {
    const app = Fastify()
    t.teardown(() => app.close())
    await app.register(
      async scope => {
        await scope.register(gateway)
        await scope.register(routing)
        await scope.register(echo, { words: 3 })
        await scope.register(http)
        await scope.register(chatCompletions)
      },
      { prefix: '/llm' }
    )
    t.equal((await post(app, '/llm/v1/chat/completions', ask)).statusCode, 200)
  })

  t.test('a wrong order fails at boot with both names', async t => {
    for (const [plugin, needs] of [
      [routing, /routing.*gateway|gateway.*routing/],
      [http, /http.*gateway|gateway.*http/]
    ] as const) {
      const app = Fastify()
      t.teardown(() => app.close())
      await t.rejects(async () => app.register(plugin), needs)
    }
    const app = Fastify()
    t.teardown(() => app.close())
    await app.register(gateway)
    await app.register(http)
    await t.rejects(async () => app.register(chatCompletions), /chat-completions/)
  })

  t.test('a kernel that cannot route says so at boot', async t => {
    const app = Fastify()
    t.teardown(() => app.close())
    await app.register(gateway)
    await t.rejects(async () => app.ready(), /routing after gateway/)
  })

  t.test("a host's own plugin adds a provider and a layer", async t => {
    const app = Fastify()
    t.teardown(() => app.close())
    await app.register(modelGateway, quick)
    await app.register(
      fp(async host => {
        host.gateway.providers.register({
          name: 'constant',
          capabilities: { dialects: [] },
          price: { input: 0, output: 0 },
          async send() {
            const head = { id: 'c', object: 'chat.completion', created: 0, model: 'c' } as const
            const message = { role: 'assistant', content: '42' } as const
            return {
              stream: false,
              raw: null,
              body: { ...head, choices: [{ index: 0, finish_reason: 'stop', message }] }
            }
          }
        })
      })
    )
    const answer = await post(app, '/v1/chat/completions', { ...ask, model: 'constant/any' })
    t.equal(answer.json().choices[0].message.content, '42')
  })
})

t.test('every plugin can be false, one at a time', async t => {
  const silent = [
    'helmet',
    'sensible',
    'rateLimit',
    'auth',
    'shared',
    'tenants',
    'limits',
    'pricing',
    'idempotency',
    'budgets',
    'ledger',
    'requestLog',
    'cache',
    'structuredOutput',
    'opa'
  ] as const
  const more = ['otel', 'metrics', 'events', 'signing', 'insights', 'realtime'] as const
  const routes: Record<string, string[]> = {
    chatCompletions: ['/v1/chat/completions', '/proxy/echo/echo'],
    proxy: ['/proxy/echo/echo'],
    models: ['/v1/models', '/models'],
    health: ['/health', '/ready'],
    // Their paths need an administrator; authorization.test.ts has them.
    traces: [],
    stats: [],
    admin: []
  }
  const all = [...silent, ...more, ...Object.keys(routes)]
  const names = Object.keys((await import('../schemas/plugin-options.ts')).PluginOptions.properties)
  t.same(names.sort(), [...all].sort(), 'these are all there are')
  const start = async (t: Test, options: ModelGatewayOptions) => {
    const app = Fastify()
    t.teardown(() => app.close())
    await app.register(modelGateway, { ...quick, prefix: '/llm', ...options })
    return app
  }

  for (const name of [...silent, ...more]) {
    await t.test(name, async t => {
      const plugins = { [name]: false, ...(name === 'pricing' && { budgets: false }) }
      await gatewayWorks(t, await start(t, { plugins }), '/llm')
    })
  }
  await t.test('all of these', async t => {
    const plugins = Object.fromEntries([...silent, ...more].map(name => [name, false]))
    await gatewayWorks(t, await start(t, { plugins, server: { cors: false } }), '/llm')
  })
  for (const [name, gone] of Object.entries(routes)) {
    await t.test(name, async t => {
      const app = await start(t, { plugins: { [name]: false } })
      for (const path of Object.values(routes).flat()) {
        const method = /chat|proxy/.test(path) ? 'POST' : 'GET'
        const { statusCode } = await app.inject({
          method,
          url: `/llm${path}`,
          ...(method === 'POST' && { payload: ask })
        })
        t.equal(statusCode, gone.includes(path) ? 404 : 200, path)
      }
      t.equal(contentOf(await app.gateway.complete(ask, app.gateway.caller())), 'one two three')
    })
  }
  await t.test('every one', async t => {
    const app = await start(t, { plugins: Object.fromEntries(all.map(name => [name, false])) })
    await app.ready()
    t.equal(contentOf(await app.gateway.complete(ask, app.gateway.caller())), 'one two three')
    t.equal((await app.inject('/llm/health')).json().error.code, 'resource_not_found')
  })
  await t.test('streaming', async t => {
    const app = await start(t, { server: { sse: false } })
    t.equal((await post(app, '/llm/v1/chat/completions', ask)).statusCode, 200)
    t.equal((await post(app, '/llm/v1/chat/completions', { ...ask, stream: true })).json().error.param, 'stream')
  })
})

t.test('options that are wrong are refused with every path', async t => {
  const app = Fastify()
  t.teardown(() => app.close())
  const wrong = {
    prefix: '/llm',
    server: { bodyLimit: 'much' },
    models: { chat: { targets: [{ provider: 'nobody', model: 'm' }] } },
    providers: { one: { type: 'openai-compatible', baseUrl: 'https://one.example', apiKeys: ['env:SECRET'] } },
    plugin: {}
  } as object
  const error = await app.register(modelGateway, wrong).then(
    () => null,
    error => error
  )
  t.ok(error instanceof ConfigError)
  for (const path of ['server.bodyLimit', 'models.chat.targets[0].provider', 'providers.one.apiKeys[0]', 'plugin:']) {
    t.match(error.message, path)
  }
  t.equal(error.faults.length, 4)
})

t.test('what is accepted but not built is told to the log of the host', async t => {
  const lines: string[] = []
  const app = Fastify({ logger: { stream: { write: line => lines.push(line) } } })
  t.teardown(() => app.close())
  await app.register(modelGateway, { ...quick, plugins: { cache: true } })
  t.ok(lines.some(line => line.includes('cache') && line.includes('not built yet')))
})
