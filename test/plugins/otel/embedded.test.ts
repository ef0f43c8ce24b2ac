import { subscribe, unsubscribe } from 'node:diagnostics_channel'
import { context, propagation, trace } from '@opentelemetry/api'
import Fastify from 'fastify'
import OpenAI from 'openai'
import t, { type Test } from 'tap'
import modelGateway, { type Gateway, type ModelGatewayOptions } from '../../../app.ts'
import { faultsOfModelSpan } from '../../otlp/convention.ts'
import { startReceiver } from '../../otlp/receiver.ts'
import { startSdk } from '../../otlp/sdk.ts'
import { drawn, faultsOfTimes } from '../../otlp/tree.ts'
import { chunks, completion, failure, gate, json, sse, startUpstream } from '../../upstream.ts'
import { textOf } from '../kernel.ts'

declare module 'fastify' {
  interface FastifyInstance {
    otherGateway: Gateway
  }
}

// A host with an SDK of its own: the gateway uses the API, and starts and ends nothing.

const price = { input: 1, output: 2 }
const messages = [{ role: 'user' as const, content: 'Hello' }]
const parent = { traceId: '0af7651916cd43dd8448eb211c80319c', spanId: 'b7ad6b7169203331' }

async function embedded(t: Test, options: ModelGatewayOptions = {}) {
  const upstream = await startUpstream({ script: json(completion()) })
  const receiver = await startReceiver('http/protobuf')
  t.teardown(() => Promise.all([upstream.close(), receiver.close()]))
  const sdk = startSdk(t, { ...receiver.env, OTEL_SERVICE_NAME: 'host' })
  const app = Fastify()
  t.teardown(() => app.close())
  await app.register(modelGateway, {
    prefix: '/llm',
    store: false,
    providers: { up: { type: 'openai-compatible', baseUrl: upstream.url } },
    models: {
      plain: { targets: [{ provider: 'up', model: 'm', price }], retries: 0 },
      twice: { targets: [{ provider: 'up', model: 'm', price }], retries: 1 }
    },
    ...options,
    plugins: { rateLimit: false, otel: true, ...options.plugins }
  })
  await app.ready()
  return { app, gateway: app.gateway, upstream, receiver, sdk }
}

const call = ['internal chat plain', '  client chat m']

t.test('a call in process is a trace of its own', async t => {
  const { gateway, receiver, upstream } = await embedded(t)
  const { facts } = await gateway.complete({ model: 'plain', messages }, gateway.caller({ tenant: 'public' }))
  const spans = await receiver.trace(facts.traceId, 2)
  t.same(drawn(spans), call)
  t.same(faultsOfTimes(spans), [])
  t.same(
    spans.flatMap(span => faultsOfModelSpan(span)),
    []
  )
  t.equal(spans[0]!.resource['service.name'], 'host')
  const attempt = spans.find(({ kind }) => kind === 'client')!
  t.equal(upstream.requests[0]!.headers['traceparent'], `00-${facts.traceId}-${attempt.spanId}-01`)
})

t.test('in a host without an SDK calls go on, and the log says that nothing is traced', async t => {
  const lines: string[] = []
  const app = Fastify({ logger: { level: 'warn', stream: { write: line => lines.push(line) } } })
  t.teardown(() => app.close())
  await app.register(modelGateway, { store: false, providers: { echo: { type: 'echo' } }, plugins: { otel: true } })
  await app.ready()
  const { facts } = await app.gateway.complete({ model: 'echo/echo', messages }, app.gateway.caller())
  t.match(facts.traceId, /^[0-9a-f]{32}$/)
  t.match(lines.join(''), /no OpenTelemetry SDK is registered/)
})

t.test("below the host's span it is part of that", async t => {
  const { gateway, receiver } = await embedded(t)
  const facts = await trace.getTracer('host').startActiveSpan('job', async span => {
    const answer = await gateway.complete({ model: 'plain', messages }, gateway.caller())
    span.end()
    t.equal(answer.facts.traceId, span.spanContext().traceId)
    return answer.facts
  })
  t.same(drawn(await receiver.trace(facts.traceId, 3)), ['internal job', ...call.map(line => `  ${line}`)])
})

t.test('a trace that the caller names is joined', async t => {
  const { gateway, receiver } = await embedded(t)
  const traceparent = `00-${parent.traceId}-${parent.spanId}-01`
  await gateway.complete({ model: 'plain', messages }, gateway.caller({ trace: { traceparent } }))
  const spans = await receiver.trace(parent.traceId, 2)
  t.equal(spans.find(({ kind }) => kind === 'internal')!.parentSpanId, parent.spanId)
})

t.test('a stream in process ends its spans with its end, a broken off one when its reader leaves', async t => {
  const { gateway, receiver, upstream } = await embedded(t)
  upstream.script(sse(chunks('one two three')))
  const whole = await gateway.complete({ model: 'plain', messages, stream: true }, gateway.caller())
  await textOf(whole)
  t.same(drawn(await receiver.trace(whole.facts.traceId, 2)), call)

  const { promise } = gate()
  upstream.script(sse(chunks('one two three'), { interval: index => (index > 2 ? promise : 0) }))
  const broken = await gateway.complete({ model: 'plain', messages, stream: true }, gateway.caller())
  if (!broken.stream) throw new Error('It is no stream.')
  await broken.frames.next()
  await broken.frames.return()
  const spans = await receiver.trace(broken.facts.traceId, 2)
  t.equal(drawn(spans).length, 2)
  t.same(faultsOfTimes(spans), [])
})

t.test('a retry in process', async t => {
  const { gateway, receiver, upstream } = await embedded(t)
  upstream.script(failure(503), json(completion()))
  const { facts } = await gateway.complete({ model: 'twice', messages }, gateway.caller())
  t.same(drawn(await receiver.trace(facts.traceId, 3)), [
    'internal chat twice',
    '  client chat m !upstream_overloaded',
    '  client chat m'
  ])
})

t.test("the host's SDK goes on after the gateway has closed", async t => {
  const { app, receiver } = await embedded(t)
  await app.close()
  const span = trace.getTracer('host').startSpan('after')
  span.end()
  t.equal((await receiver.trace(span.spanContext().traceId, 1))[0]!.name, 'after')
})

t.test('calls do not leave their span active', async t => {
  const { gateway } = await embedded(t)
  await gateway.complete({ model: 'plain', messages }, gateway.caller())
  t.equal(trace.getSpan(context.active()), undefined)
})

t.test('calls that run at once keep to their own parents', async t => {
  const { app, gateway, receiver, upstream } = await embedded(t)
  const wait = (index: number) => (index * 7) % 5
  upstream.script(request =>
    request.json.stream === true ? sse(chunks('one two'), { interval: wait }) : json(completion())
  )
  const url = await app.listen({ port: 0, host: '127.0.0.1' })
  const tracer = trace.getTracer('host')
  const lines = call.map(line => `  ${line}`)
  const many = Array.from({ length: 12 }, (_, index) => index)
  const inProcess = many.map(index =>
    tracer.startActiveSpan(`job ${index}`, async span => {
      const stream = index % 2 === 0
      const answer = await gateway.complete({ model: 'plain', messages, stream }, gateway.caller())
      if (answer.stream) await textOf(answer)
      // What comes after the stream is below the job again.
      t.equal(trace.getSpan(context.active()), span)
      span.end()
      return { traceId: span.spanContext().traceId, tree: [`internal job ${index}`, ...lines], facts: answer.facts }
    })
  )
  const overHttp = many.map(async index => {
    const client = new OpenAI({ baseURL: `${url}/llm/v1`, apiKey: 'none', maxRetries: 0 })
    const request = { model: 'plain', messages }
    const server = ['server POST /llm/v1/chat/completions', ...lines]
    if (index % 2 === 0) {
      const { response } = await client.chat.completions.create(request).withResponse()
      return { traceId: response.headers.get('x-trace-id'), tree: server }
    }
    const { data, response } = await client.chat.completions.create({ ...request, stream: true }).withResponse()
    let text = ''
    for await (const { choices } of data) text += choices[0]?.delta.content ?? ''
    t.equal(text, 'one two')
    return { traceId: response.headers.get('x-trace-id'), tree: server }
  })
  for (const job of await Promise.all(inProcess)) {
    t.equal(job.facts.traceId, job.traceId)
    t.same(drawn(await receiver.trace(job.traceId, 3)), job.tree)
  }
  const answers = await Promise.all(overHttp)
  t.equal(new Set(answers.map(({ traceId }) => traceId)).size, many.length)
  for (const { traceId, tree } of answers) t.same(drawn(await receiver.trace(String(traceId), 3)), tree)
  const sent = upstream.requests.map(({ headers }) => String(headers['traceparent']))
  t.equal(new Set(sent).size, 2 * many.length)
})

t.test('an answer over HTTP names its trace, with the SDK or without', async t => {
  const { app, receiver, sdk } = await embedded(t)
  const ask = () =>
    app.inject({ method: 'POST', url: '/llm/v1/chat/completions', payload: { model: 'plain', messages } })
  const traced = await ask()
  t.equal(traced.statusCode, 200)
  const spans = await receiver.trace(String(traced.headers['x-trace-id']), 3)
  t.same(drawn(spans), ['server POST /llm/v1/chat/completions', ...call.map(line => `  ${line}`)])
  await sdk.shutdown()
  trace.disable()
  const untraced = await ask()
  t.equal(untraced.statusCode, 200)
  t.match(untraced.headers['x-trace-id'], /^[0-9a-f]{32}$/)
})

t.test('of a host that instruments undici there is one context upstream, too', async t => {
  const { gateway, upstream, receiver } = await embedded(t)
  // As @opentelemetry/instrumentation-undici does it.
  const inject = (message: unknown) => {
    const { request } = message as { request: { addHeader(name: string, value: string): void } }
    const carrier: Record<string, string> = {}
    propagation.inject(context.active(), carrier)
    for (const [name, value] of Object.entries(carrier)) request.addHeader(name, value)
  }
  subscribe('undici:request:create', inject)
  t.teardown(() => unsubscribe('undici:request:create', inject))
  const { facts } = await gateway.complete({ model: 'plain', messages }, gateway.caller())
  const attempt = (await receiver.trace(facts.traceId, 2)).find(({ kind }) => kind === 'client')!
  const sent = upstream.requests.at(-1)!.rawHeaders
  t.equal(sent.filter(name => name.toLowerCase() === 'traceparent').length, 1)
  t.equal(sent[sent.indexOf('traceparent') + 1], `00-${facts.traceId}-${attempt.spanId}-01`)
})

t.test('two gateways of one host have spans each', async t => {
  const upstream = await startUpstream({ script: json(completion()) })
  const receiver = await startReceiver('http/protobuf')
  t.teardown(() => Promise.all([upstream.close(), receiver.close()]))
  startSdk(t, receiver.env)
  const app = Fastify()
  t.teardown(() => app.close())
  const options = (model: string): ModelGatewayOptions => ({
    store: false,
    providers: { up: { type: 'openai-compatible', baseUrl: upstream.url } },
    models: { plain: { targets: [{ provider: 'up', model, price }] } },
    plugins: { rateLimit: false, otel: true }
  })
  await app.register(modelGateway, { ...options('m'), prefix: '/one', name: 'gateway' })
  await app.register(modelGateway, { ...options('n'), prefix: '/other', name: 'otherGateway' })
  await app.ready()
  for (const [gateway, model] of [
    [app.gateway, 'm'],
    [app.otherGateway, 'n']
  ] as const) {
    const { facts } = await gateway.complete({ model: 'plain', messages }, gateway.caller())
    t.same(drawn(await receiver.trace(facts.traceId, 2)), ['internal chat plain', `  client chat ${model}`])
  }
})
