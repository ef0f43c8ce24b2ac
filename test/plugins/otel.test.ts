import { readFileSync } from 'node:fs'
import { setImmediate as turn } from 'node:timers/promises'
import { type Attributes, context, SpanKind, SpanStatusCode, trace } from '@opentelemetry/api'
import { AlwaysOffSampler, ParentBasedSampler } from '@opentelemetry/sdk-trace'
import { test } from 'tap'
import { Buckets } from '../../plugins/otel/buckets.ts'
import otel from '../../plugins/otel/index.ts'
import { createMeters } from '../../plugins/otel/meters.ts'
import * as names from '../../plugins/otel/names.ts'
import { placeOf } from '../../plugins/otel/places.ts'
import { Cancelled, detail, InvalidRequest, UpstreamError, UpstreamRejected } from '../../schemas/errors.ts'
import { chunkFrames } from '../../schemas/frames.ts'
import type { Expense } from '../../schemas/gateway.ts'
import { build, hello, stack, towards } from '../helper.ts'
import { completion as answered, chunks, failure, gate, json, sse, startUpstream } from '../upstream.ts'
import {
  ask,
  askStream,
  chunk,
  completion,
  fails,
  feed,
  finish,
  host,
  patient,
  reader,
  rejection,
  role,
  says,
  scripted,
  streams,
  textOf,
  tokens,
  usageChunk
} from './kernel.ts'
import { drawn, record, traced } from './otel/recorder.ts'

const traceparent = '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01'
const traceId = '0af7651916cd43dd8448eb211c80319c'
const hex = /^[0-9a-f]{32}$/
const quick = { pause: async () => {} }
const targets = [
  { provider: 'one', model: 'm1' },
  { provider: 'two', model: 'm2' }
]
const twice = { ...quick, models: { test: { targets, strategy: 'priority' as const, retries: 0 } } }

/** What the plugin gets of a server of our own, whose samplers decide for whole traces. */
const telemetry = { dropped: 3, failed: 4, async stop() {} }

test('the spans of a call', async t => {
  t.test('say what was asked, who answered and what it cost', async t => {
    const sdk = record(t)
    const usage = {
      ...tokens(100, 50),
      prompt_tokens_details: { cached_tokens: 30, cache_write_tokens: 10 },
      completion_tokens_details: { reasoning_tokens: 20 }
    }
    const up = {
      ...scripted('up', says('Hello', usage)),
      vendor: 'azure-openai',
      url: 'https://res.openai.azure.com/openai/v1'
    }
    const { gateway } = await traced(t, { providers: [up] })
    const request = {
      ...ask,
      max_tokens: 64,
      temperature: 0.5,
      top_p: 0.9,
      frequency_penalty: 0.1,
      presence_penalty: -0.2,
      seed: 7,
      n: 2,
      stop: ['END'],
      service_tier: 'flex',
      response_format: { type: 'json_object' },
      metadata: { conversation_id: 'conv_1' }
    }
    const { facts } = await gateway.complete(request, gateway.caller({ tenant: 'acme' }))

    const [attempt, call] = sdk.spans
    if (attempt === undefined || call === undefined) return t.fail('there are no two spans')
    t.same(drawn(sdk.spans), ['internal chat test', '  client chat m'])
    const asked = {
      'gen_ai.request.max_tokens': 64,
      'gen_ai.request.temperature': 0.5,
      'gen_ai.request.top_p': 0.9,
      'gen_ai.request.frequency_penalty': 0.1,
      'gen_ai.request.presence_penalty': -0.2,
      'gen_ai.request.seed': 7,
      'gen_ai.request.choice.count': 2,
      'gen_ai.request.stop_sequences': ['END'],
      'gen_ai.output.type': 'json',
      'gen_ai.conversation.id': 'conv_1',
      'openai.request.service_tier': 'flex'
    }
    const said = {
      'gen_ai.response.model': 'm',
      'gen_ai.response.finish_reasons': ['stop'],
      'gen_ai.usage.input_tokens': 100,
      'gen_ai.usage.output_tokens': 50,
      'gen_ai.usage.cache_read.input_tokens': 30,
      'gen_ai.usage.cache_creation.input_tokens': 10,
      'gen_ai.usage.reasoning.output_tokens': 20,
      'gen_ai.cost.estimated_usd': 0.0015
    }
    t.strictSame(attempt.attributes, {
      'gen_ai.operation.name': 'chat',
      'gen_ai.provider.name': 'azure.ai.openai',
      'gen_ai.request.model': 'm',
      'server.address': 'res.openai.azure.com',
      'server.port': 443,
      'gateway.attempt.number': 1,
      'gateway.provider.name': 'up',
      'openai.api.type': 'chat_completions',
      'gen_ai.response.id': 'c1',
      ...asked,
      ...said
    })
    t.strictSame(call.attributes, {
      'gen_ai.operation.name': 'chat',
      'gen_ai.request.model': 'test',
      'gateway.request.id': call.attributes['gateway.request.id'],
      'gateway.tenant.id': 'acme',
      'gateway.lane': 'process',
      'gateway.model.alias': 'test',
      ...asked,
      'gen_ai.provider.name': 'azure.ai.openai',
      'gateway.attempts': 1,
      'gateway.cache': 'off',
      ...said
    })
    t.match(call.attributes['gateway.request.id'], /^req_/)
    t.equal(call.spanContext().traceId, facts.traceId)
    t.equal(call.status.code, SpanStatusCode.UNSET)
    t.equal(attempt.kind, SpanKind.CLIENT)
  })

  t.test('leave out what nobody said or knows', async t => {
    const sdk = record(t)
    const app = await host(t)
    await app.register(otel, {})
    await app.ready()
    await app.gateway.complete({ ...ask, temperature: null, n: 1 }, app.gateway.caller())
    const named = Object.keys({ ...sdk.spans[0]?.attributes, ...sdk.spans[1]?.attributes })
    for (const name of named)
      t.notMatch(name, /usage|cost|gen_ai\.request\.(?!model)|output\.type|conversation|server\./)
  })

  t.test('of a stream end when it does, with its times and its last words', async t => {
    const sdk = record(t)
    const source = feed(chunkFrames([role()]), chunkFrames([chunk('one ')]))
    const { gateway } = await traced(t, { providers: [scripted('up', source.send)] })
    const frames = reader(await gateway.complete(askStream, gateway.caller()))
    await frames.next()
    source.push(chunkFrames([chunk('two')]))
    await frames.next()
    t.equal(sdk.spans.length, 0, 'nothing has ended')
    source.push(chunkFrames([finish('length')]), chunkFrames([usageChunk(tokens(7, 2))]))
    source.end()
    while (!(await frames.next()).done);

    t.same(drawn(sdk.spans), ['internal chat test', '  client chat m'])
    for (const { attributes } of sdk.spans) {
      t.match(attributes, {
        'gen_ai.request.stream': true,
        'gen_ai.response.model': 'm',
        'gen_ai.response.finish_reasons': ['length'],
        'gen_ai.usage.input_tokens': 7,
        'gen_ai.usage.output_tokens': 2,
        'gen_ai.response.time_to_first_chunk': Number
      })
    }
    t.type(sdk.spans[0]?.attributes['gateway.response.time_per_output_chunk'], 'number')
  })

  t.test('show a fallback with the fault that led to it', async t => {
    const sdk = record(t)
    const providers = [scripted('one', fails(new UpstreamError('it is ill.'))), scripted('two')]
    const { gateway } = await traced(t, { providers, routing: twice })
    await gateway.complete(ask, gateway.caller())
    t.same(drawn(sdk.spans), ['internal chat test', '  client chat m1 !upstream_error', '  client chat m2'])
    const [first, second, call] = sdk.spans
    t.strictSame(first?.status, {
      code: SpanStatusCode.ERROR,
      message: 'The provider of this model failed: it is ill.'
    })
    t.match(second?.attributes, { 'gateway.attempt.number': 2, 'gateway.provider.name': 'two' })
    t.match(call?.attributes, { 'gateway.attempts': 2, 'gateway.fallbacks': 1, 'gen_ai.provider.name': 'two' })
    t.equal(call?.status.code, SpanStatusCode.UNSET)
  })

  const cause = new Error('connect ECONNREFUSED')
  for (const [what, fault, message] of [
    [
      'told the words of a vendor without a cause',
      detail(new UpstreamError('you said: the secret plan'), { quotes: true }),
      'The provider of this model failed.'
    ],
    [
      'did not tell our own words of a fault with a cause',
      new UpstreamError('it refused the connection.', { cause }),
      'The provider of this model failed: it refused the connection.'
    ]
  ] as const) {
    t.test(what, async t => {
      const sdk = record(t)
      const { gateway } = await traced(t, { providers: [scripted('up', fails(fault))] })
      await rejection(gateway.complete(ask, gateway.caller()))
      t.strictSame(new Set(sdk.spans.map(({ status }) => status.message)), new Set([message]))
    })
  }

  t.test('do not repeat what a vendor says of a request', async t => {
    const sdk = record(t)
    const rejected = detail(new UpstreamRejected('You said: my secret'), { wire: 'my secret', upstream: 400 })
    const { gateway } = await traced(t, { providers: [scripted('up', fails(rejected))] })
    await rejection(gateway.complete(ask, gateway.caller()))
    t.same(drawn(sdk.spans), ['internal chat test !upstream_rejected', '  client chat m !upstream_rejected'])
    for (const { status } of sdk.spans) t.strictSame(status, { code: SpanStatusCode.ERROR })
    t.notMatch(JSON.stringify(sdk.spans.map(({ attributes }) => attributes)), /secret/)
  })

  t.test('nor what is no fault of ours', async t => {
    const sdk = record(t)
    const { gateway } = await traced(t, { providers: [scripted('up', fails(new TypeError('my secret')))] })
    await rejection(gateway.complete(ask, gateway.caller()))
    t.same(drawn(sdk.spans), ['internal chat test !_OTHER', '  client chat m !_OTHER'])
    for (const { status, events } of sdk.spans) {
      t.strictSame(status, { code: SpanStatusCode.ERROR })
      t.same(events, [])
    }
  })

  t.test('of a call that is refused has no provider call', async t => {
    const sdk = record(t)
    const app = await host(t)
    await app.register(otel, {})
    app.gateway.intercept('admit', async () => {
      throw new InvalidRequest('No.')
    })
    await app.ready()
    await rejection(app.gateway.complete(ask, app.gateway.caller()))
    t.same(drawn(sdk.spans), ['internal chat test !invalid_request'])
    t.match(sdk.spans[0]?.attributes, { 'gateway.attempts': 0 })
    t.notOk('gen_ai.provider.name' in (sdk.spans[0]?.attributes ?? {}))
  })

  t.test('end once when the caller leaves, before an answer or in a stream', async t => {
    const sdk = record(t)
    const source = feed(chunkFrames([chunk('one ')]))
    const { gateway } = await traced(t, { providers: [scripted('up', patient, source.send)] })
    const controller = new AbortController()
    const call = gateway.complete(ask, gateway.caller({ signal: controller.signal }))
    setImmediate(() => controller.abort())
    await rejection(call)
    const cancelled = ['internal chat test !client_cancelled', '  client chat m !client_cancelled']
    t.same(drawn(sdk.spans), cancelled)
    const frames = reader(await gateway.complete(askStream, gateway.caller()))
    await frames.next()
    await frames.return()
    t.same(drawn(sdk.spans), [...cancelled, ...cancelled])
    for (const { status } of sdk.spans) t.equal(status.code, SpanStatusCode.UNSET)
  })

  t.test('of a second attempt that ends late do not say what the one that won says', async t => {
    const sdk = record(t)
    const named = (id: string, one: ReturnType<typeof chunk>) => chunkFrames([{ ...one, id }])
    const started = gate()
    const over = gate()
    const loser = scripted('one', async ({ signal }) => {
      async function* frames() {
        yield named('loser', role())
        await started.promise
        throw signal.reason
      }
      return { stream: true, frames: frames() }
    })
    const winner = scripted('two', async () => {
      async function* frames() {
        yield named('winner', chunk('Hello'))
        started.open()
        await over.promise
        yield named('winner', finish())
      }
      return { stream: true, frames: frames() }
    })
    const routing = { models: { test: { targets, strategy: 'priority' as const, retries: 0, hedge: { after: 1 } } } }
    const { gateway } = await traced(t, { routing, providers: [loser, winner] })
    const answer = await gateway.complete(askStream, gateway.caller())
    if (!answer.stream) return t.fail('no stream')
    const reading = textOf(answer)
    while (sdk.spans.length === 0) await turn()
    over.open()
    await reading
    const said = sdk.spans.map(({ name, attributes }) => [
      name,
      attributes['gen_ai.response.id'],
      attributes['gen_ai.response.finish_reasons']
    ])
    t.strictSame(said, [
      ['chat m1', undefined, undefined],
      ['chat m2', 'winner', ['stop']],
      ['chat test', undefined, ['stop']]
    ])
  })

  t.test('end when the gateway closes under them', async t => {
    const sdk = record(t)
    const app = await traced(t, { providers: [scripted('up', patient)], shutdownGrace: 1 })
    const call = rejection(app.gateway.complete(ask, app.gateway.caller()))
    await app.close()
    await call
    t.same(drawn(sdk.spans), ['internal chat test !shutting_down', '  client chat m !shutting_down'])
  })

  t.test('are one call where a layer outside asks twice', async t => {
    const sdk = record(t)
    const app = await host(t)
    await app.register(otel, {})
    app.gateway.intercept('seal', async (inference, next) => {
      await next(inference)
      return next(inference)
    })
    await app.ready()
    await app.gateway.complete(ask, app.gateway.caller())
    t.same(drawn(sdk.spans), ['internal chat test', '  client chat m', '  client chat m'])
  })

  t.test('do not read a large answer', async t => {
    const sdk = record(t)
    let read = 0
    const send = async () => ({
      stream: false as const,
      raw: new Uint8Array(300_000),
      usage: tokens(1, 1),
      get body() {
        read++
        return completion('x')
      }
    })
    const { gateway } = await traced(t, { providers: [scripted('up', send)] })
    await gateway.complete(ask, gateway.caller())
    t.equal(read, 0)
    t.equal(sdk.spans.length, 2)
  })

  t.test('outlive an answer that is no JSON', async t => {
    const sdk = record(t)
    const send = async () => ({
      stream: false as const,
      raw: Buffer.from('<html>'),
      usage: null,
      get body(): never {
        throw new UpstreamError('its answer is not JSON.')
      }
    })
    const { gateway } = await traced(t, { providers: [scripted('up', send)] })
    await rejection(gateway.complete(ask, gateway.caller()))
    t.same(drawn(sdk.spans), ['internal chat test !upstream_error', '  client chat m !upstream_error'])
  })
})

test('contexts', async t => {
  t.test('what a caller sends along is joined, and one goes upstream that names the attempt', async t => {
    const sdk = record(t)
    const up = scripted('up')
    const { gateway } = await traced(t, { providers: [up] })
    const trace = { traceparent, tracestate: 'vendor=1' }
    const { facts } = await gateway.complete(ask, gateway.caller({ trace }))
    t.equal(facts.traceId, traceId)
    const [attempt, call] = sdk.spans
    t.equal(call?.parentSpanContext?.spanId, 'b7ad6b7169203331')
    t.strictSame(up.attempts[0]?.headers, {
      traceparent: `00-${traceId}-${attempt?.spanContext().spanId}-01`,
      tracestate: 'vendor=1'
    })
  })

  t.test('a call in process is below what is active, and what it calls is below its attempt', async t => {
    const sdk = record(t)
    const inside: string[] = []
    const up = scripted('up', async attempt => {
      await null
      trace.getTracer('up').startSpan('provider').end()
      inside.push(trace.getActiveSpan()?.spanContext().spanId ?? '')
      return says('Hello')(attempt)
    })
    const { gateway } = await traced(t, { providers: [up] })
    await trace.getTracer('host').startActiveSpan('host', async span => {
      await gateway.complete(ask, gateway.caller())
      span.end()
    })
    t.same(drawn(sdk.spans), ['internal host', '  internal chat test', '    client chat m', '      internal provider'])
    t.equal(inside[0], sdk.spans.find(({ name }) => name === 'chat m')?.spanContext().spanId)
    t.equal(trace.getSpan(context.active()), undefined)
  })

  t.test('what is not sampled is carried all the same, and says so', async t => {
    const sdk = record(t, new AlwaysOffSampler())
    const up = scripted('up')
    const { gateway } = await traced(t, { providers: [up] })
    const { facts } = await gateway.complete(ask, gateway.caller())
    t.match(up.attempts[0]?.headers['traceparent'], new RegExp(`^00-${facts.traceId}-[0-9a-f]{16}-00$`))
    t.same(sdk.spans, [])
  })

  t.test("a server's sampler is asked once for a whole trace", async t => {
    let asked = 0
    const sampler = {
      shouldSample(...given: Parameters<AlwaysOffSampler['shouldSample']>) {
        asked++
        return new AlwaysOffSampler().shouldSample(...given)
      },
      toString: () => 'counting'
    }
    record(t, new ParentBasedSampler({ root: sampler, localParentNotSampled: sampler }))
    const up = scripted('up')
    const { gateway } = await traced(t, { providers: [up], otel: { telemetry } })
    const { facts } = await gateway.complete(ask, gateway.caller())
    t.equal(asked, 1)
    t.match(up.attempts[0]?.headers['traceparent'], new RegExp(`^00-${facts.traceId}-[0-9a-f]{16}-00$`))
    t.equal(gateway.tracing?.dropped, 3)
    t.equal(gateway.tracing?.failed, 4)
  })

  t.test('without an SDK nothing is sent, and calls have ids of their own', async t => {
    const up = scripted('up')
    const { gateway } = await traced(t, { providers: [up] })
    const { facts } = await gateway.complete(ask, gateway.caller())
    t.match(facts.traceId, hex)
    t.same(up.attempts[0]?.headers, {})
    t.equal(gateway.tracing?.traceId(), undefined)
    t.equal(gateway.tracing?.dropped, 0)
  })

  t.test('an SDK that the API does not reach is spoken of', async t => {
    const key = Symbol.for('opentelemetry.js.api.1')
    const before = Reflect.get(globalThis, key)
    t.teardown(() => Reflect.set(globalThis, key, before))
    Reflect.set(globalThis, key, { version: '1.2.0', trace: {} })
    const lines: string[] = []
    await traced(t, { log: line => void lines.push(line) })
    t.equal(lines.length, 1)
    t.match(lines[0], /"version":"1\.2\.0".*older than the one of the gateway: nothing is traced/)
  })
})

test('over HTTP', async t => {
  const post = { method: 'POST' as const, url: '/v1/chat/completions', payload: hello }

  t.test('the request has a span above the call, and the answer names the trace', async t => {
    const sdk = record(t)
    const { app, upstream } = await stack(t, { plugins: { otel: true } })
    upstream.script(json(answered({ content: 'Hello' })))
    const answer = await app.inject({ ...post, url: `${post.url}?ticket=secret`, headers: { 'user-agent': 'kit/1' } })
    t.same(drawn(sdk.spans), [
      'server POST /v1/chat/completions',
      '  internal chat test',
      '    client chat upstream-model'
    ])
    const server = sdk.spans.find(({ kind }) => kind === SpanKind.SERVER)
    t.strictSame(server?.attributes, {
      'http.request.method': 'POST',
      'url.scheme': 'http',
      'url.path': '/v1/chat/completions',
      'http.route': '/v1/chat/completions',
      'user_agent.original': 'kit/1',
      'http.response.status_code': 200
    })
    for (const span of sdk.spans) t.equal(span.spanContext().traceId, answer.headers['x-trace-id'])
    const attempt = sdk.spans.find(({ kind }) => kind === SpanKind.CLIENT)
    t.equal(
      upstream.requests[0]?.headers['traceparent'],
      `00-${answer.headers['x-trace-id']}-${attempt?.spanContext().spanId}-01`
    )
    const { port } = new URL(upstream.url)
    t.match(attempt?.attributes, { 'server.address': '127.0.0.1', 'server.port': Number(port) })
  })

  t.test('a client that is traced is joined, and only our context goes upstream', async t => {
    const sdk = record(t)
    const upstream = await startUpstream()
    t.teardown(() => upstream.close())
    const forwardHeaders = ['traceparent', 'tracestate', 'baggage']
    const up = { type: 'openai-compatible' as const, baseUrl: upstream.url, forwardHeaders }
    const app = await build(t, towards(upstream, { plugins: { otel: true }, providers: { up } }))
    upstream.script(failure(500))
    const answer = await app.inject({ ...post, headers: { traceparent, tracestate: 'vendor=1', baggage: 'user=1' } })
    t.equal(answer.headers['x-trace-id'], traceId)
    const attempt = sdk.spans.find(({ kind }) => kind === SpanKind.CLIENT)
    // Two of a name would arrive as one, with a comma.
    const headers = upstream.requests[0]?.headers ?? {}
    t.equal(headers['traceparent'], `00-${traceId}-${attempt?.spanContext().spanId}-01`)
    t.equal(headers['tracestate'], 'vendor=1')
    t.equal(headers['baggage'], 'user=1', 'as its provider is told to')
    const server = sdk.spans.find(({ kind }) => kind === SpanKind.SERVER)
    t.equal(server?.parentSpanContext?.spanId, 'b7ad6b7169203331')
    t.match(server?.attributes, { 'http.response.status_code': 502, 'error.type': '502' })
    t.equal(server?.status.code, SpanStatusCode.ERROR)
  })

  t.test('what a route refuses has a span without a call', async t => {
    const sdk = record(t)
    const { app } = await stack(t, { plugins: { otel: true } })
    const answer = await app.inject({ ...post, payload: '{', headers: { 'content-type': 'application/json' } })
    t.same(drawn(sdk.spans), ['server POST /v1/chat/completions'])
    t.equal(sdk.spans[0]?.attributes['http.response.status_code'], 400)
    t.equal(sdk.spans[0]?.status.code, SpanStatusCode.UNSET)
    t.equal(sdk.spans[0]?.spanContext().traceId, answer.headers['x-trace-id'])
    const unknown = await app.inject('/nowhere')
    t.match(unknown.headers['x-trace-id'], hex)
    t.equal(sdk.spans.length, 1, 'what is no route of ours has none')
  })

  t.test('a probe has no span, and an answer with a trace id all the same', async t => {
    const sdk = record(t)
    const { app } = await stack(t, { plugins: { otel: true } })
    for (const url of ['/health', '/ready']) t.match((await app.inject(url)).headers['x-trace-id'], hex, url)
    t.equal(sdk.spans.length, 0)
    await app.inject('/v1/models')
    t.equal(sdk.spans.length, 1)
  })

  t.test('a stream keeps its span to its end', async t => {
    const sdk = record(t)
    const { url, upstream } = await stack(t, { plugins: { otel: true } })
    upstream.script(sse(chunks('one two three')))
    const answer = await fetch(url + post.url, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ ...hello, stream: true })
    })
    await answer.text()
    await t.resolves(until(() => sdk.spans.length === 3))
    const [attempt, call, server] = sdk.spans
    t.equal(server?.kind, SpanKind.SERVER)
    t.ok(ends(server) >= ends(call) && ends(call) >= ends(attempt))
  })

  t.test('a client that leaves says so', async t => {
    const sdk = record(t)
    const { url, upstream } = await stack(t, { plugins: { otel: true } })
    upstream.script(sse(chunks('one two three'), { interval: index => (index > 2 ? new Promise(() => {}) : 0) }))
    const controller = new AbortController()
    const answer = await fetch(url + post.url, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ ...hello, stream: true }),
      signal: controller.signal
    })
    await answer.body?.getReader().read()
    controller.abort()
    await t.resolves(until(() => sdk.spans.length === 3))
    for (const { attributes } of sdk.spans) t.equal(attributes['error.type'], 'client_cancelled')
  })

  t.test('a span of the host that is active is above everything, and there is none of ours', async t => {
    const sdk = record(t)
    const { app, upstream } = await stack(t, { plugins: { otel: true } })
    upstream.script(json(answered({ content: 'Hello' })))
    const answer = await trace.getTracer('host').startActiveSpan('host', async span => {
      const answer = await app.inject(post)
      span.end()
      return answer
    })
    t.same(drawn(sdk.spans), ['internal host', '  internal chat test', '    client chat upstream-model'])
    t.equal(answer.headers['x-trace-id'], sdk.spans[0]?.spanContext().traceId)
  })
})

test('content', async t => {
  const messages = [
    { role: 'system' as const, content: 'Be brief.' },
    {
      role: 'user' as const,
      content: [
        { type: 'text', text: 'My key is gw_live_abcdefgh or sk-abcdefghijklmnop.' },
        { type: 'image_url', image_url: { url: `data:image/png;base64,${'A'.repeat(5_000)}` } },
        { type: 'image_url', image_url: { url: 'https://user@img.example/a.png?signature=secret' } },
        { type: 'input_audio', input_audio: { data: 'B'.repeat(300), format: 'wav' } },
        { type: 'file', file: { file_data: `data:application/pdf;base64,${'C'.repeat(200)}`, filename: 'x.pdf' } }
      ]
    },
    {
      role: 'assistant' as const,
      content: null,
      tool_calls: [{ id: 't1', function: { name: 'f', arguments: '{"a":1}' } }]
    },
    { role: 'tool' as const, tool_call_id: 't1', content: '42' }
  ]

  t.test('is not in a span unless asked for', async t => {
    const sdk = record(t)
    const { gateway } = await traced(t, { providers: [scripted('up', says('An answer.'))] })
    await gateway.complete({ ...ask, messages }, gateway.caller())
    t.notMatch(JSON.stringify(sdk.spans.map(({ attributes }) => attributes)), /Be brief|My key|An answer|AAAA/)
  })

  t.test('has the form of the convention, without keys and without media', async t => {
    const sdk = record(t)
    const { gateway } = await traced(t, {
      otel: { captureContent: true },
      providers: [scripted('up', says('An answer.'))]
    })
    await gateway.complete({ ...ask, messages }, gateway.caller())
    const attributes = sdk.spans[1]?.attributes
    t.strictSame(parsed(attributes, 'gen_ai.system_instructions'), [{ type: 'text', content: 'Be brief.' }])
    t.strictSame(parsed(attributes, 'gen_ai.input.messages'), [
      {
        role: 'user',
        parts: [
          { type: 'text', content: 'My key is gw_… or ….' },
          { type: 'blob', modality: 'image', mime_type: 'image/png', content: '(5022 characters, not captured)' },
          { type: 'uri', modality: 'image', uri: 'https://img.example/a.png' },
          { type: 'blob', modality: 'audio', content: '(300 characters, not captured)' },
          { type: 'blob', modality: 'file', mime_type: 'application/pdf', content: '(228 characters, not captured)' }
        ]
      },
      { role: 'assistant', parts: [{ type: 'tool_call', id: 't1', name: 'f', arguments: '{"a":1}' }] },
      { role: 'tool', parts: [{ type: 'tool_call_response', id: 't1', response: '42' }] }
    ])
    t.strictSame(parsed(attributes, 'gen_ai.output.messages'), [
      { role: 'assistant', parts: [{ type: 'text', content: 'An answer.' }], finish_reason: 'stop' }
    ])
  })

  t.test('of a stream is put together', async t => {
    const sdk = record(t)
    const call = (index: number, more: object) => ({
      ...chunk(''),
      choices: [{ index: 0, delta: { tool_calls: [{ index, ...more }] } }]
    })
    const frames = [
      chunkFrames([{ ...chunk(''), choices: [{ index: 0, delta: { reasoning_content: 'Hm. ' } }] }]),
      chunkFrames([chunk('one '), chunk('two')]),
      chunkFrames([
        call(0, { id: 't1', function: { name: 'f', arguments: '{"a"' } }),
        call(0, { function: { arguments: ':1}' } })
      ]),
      chunkFrames([finish('tool_calls')])
    ]
    const { gateway } = await traced(t, {
      otel: { captureContent: true },
      providers: [scripted('up', streams(...frames))]
    })
    await textOf(await gateway.complete(askStream, gateway.caller()))
    t.strictSame(parsed(sdk.spans[1]?.attributes, 'gen_ai.output.messages'), [
      {
        role: 'assistant',
        parts: [
          { type: 'reasoning', content: 'Hm. ' },
          { type: 'text', content: 'one two' },
          { type: 'tool_call', id: 't1', name: 'f', arguments: '{"a":1}' }
        ],
        finish_reason: 'tool_calls'
      }
    ])
  })

  t.test('is cut, the latest turn last', async t => {
    const sdk = record(t)
    const otel = { captureContent: true, maxContentLength: 10 }
    const providers = [scripted('up', says('x'.repeat(30)))]
    const { gateway } = await traced(t, { otel, providers })
    const long = [
      { role: 'user' as const, content: 'never told' },
      { role: 'user' as const, content: 'y'.repeat(5) },
      { role: 'user' as const, content: 'z'.repeat(8) }
    ]
    await gateway.complete({ ...ask, messages: long }, gateway.caller())
    await textOf(await gateway.complete({ ...askStream, messages: long }, gateway.caller()))
    const [, whole, , stream] = sdk.spans
    t.strictSame(parsed(whole?.attributes, 'gen_ai.input.messages'), [
      { role: 'user', parts: [{ type: 'text', content: 'yy… (3 characters more)' }] },
      { role: 'user', parts: [{ type: 'text', content: 'zzzzzzzz' }] }
    ])
    t.match(parsed(whole?.attributes, 'gen_ai.output.messages'), [
      { parts: [{ content: `${'x'.repeat(10)}… (20 characters more)` }] }
    ])
    t.match(parsed(stream?.attributes, 'gen_ai.output.messages'), [{ parts: [{ content: 'x'.repeat(10) }] }])
  })
})

test('what has a form of its own is not captured, and its spans end', async t => {
  const bodies = {
    'no choices': {},
    'no message': { choices: [{ index: 0, text: 'Hello' }] },
    'arguments that are no text': {
      choices: [{ message: { tool_calls: [{ function: { name: 'f', arguments: {} } }] } }]
    },
    'a part that is null': { choices: [{ message: { content: [null] } }] }
  }
  for (const [name, body] of Object.entries(bodies)) {
    await t.test(name, async t => {
      const sdk = record(t)
      const lines: string[] = []
      const raw = Buffer.from(JSON.stringify(body))
      const send = async () => ({ stream: false as const, raw, body: JSON.parse(raw.toString()) })
      const { gateway } = await traced(t, {
        otel: { captureContent: true },
        providers: [scripted('up', send)],
        log: line => void lines.push(line)
      })
      await gateway.complete(ask, gateway.caller())
      t.same(drawn(sdk.spans), ['internal chat test', '  client chat m'])
      t.same(lines, [])
    })
  }
  await t.test('a chunk', async t => {
    const sdk = record(t)
    const lines: string[] = []
    const odd = JSON.parse('{"choices":[{"index":0,"delta":{"tool_calls":[null]}}]}')
    const { gateway } = await traced(t, {
      otel: { captureContent: true },
      providers: [scripted('up', streams(...[chunk('a'), odd, chunk('b'), finish()].map(one => chunkFrames([one]))))],
      log: line => void lines.push(line)
    })
    await textOf(await gateway.complete(askStream, gateway.caller()))
    t.same(drawn(sdk.spans), ['internal chat test', '  client chat m'])
    t.same(sdk.spans.at(-1)?.attributes['gen_ai.response.finish_reasons'], ['stop'])
    t.same(lines, [])
  })
})

test('keys that stand where names belong are not told', async t => {
  const sdk = record(t)
  const key = 'gw_abcdefghijkl_secretsecret'
  const { gateway } = await traced(t, {
    routing: { models: {}, routing: { passThrough: true } },
    providers: [scripted('up')]
  })
  await gateway.complete({ ...ask, model: `up/${key}` }, gateway.caller())
  t.same(drawn(sdk.spans), ['internal chat up/gw_…', '  client chat gw_…'])
  t.notMatch(JSON.stringify(sdk.spans.map(({ name, attributes }) => [name, attributes])), key)
  const points = await sdk.points('gen_ai.client.operation.duration')
  t.equal(points.length, 1)
  t.notMatch(JSON.stringify(points), key)

  const app = await build(t, { plugins: { otel: {} } })
  await app.inject({ url: `/v1/models/${key}`, headers: { 'user-agent': key } })
  const server = sdk.spans.at(-1)
  t.equal(server?.kind, SpanKind.SERVER)
  t.notMatch(JSON.stringify(server?.attributes), key)
})

test('older names', async t => {
  const sdk = record(t)
  const { gateway } = await traced(t, {
    otel: { legacyAttributes: true },
    providers: [scripted('up', says('one two', tokens(7, 2)))]
  })
  await textOf(await gateway.complete(askStream, gateway.caller()))
  t.same(drawn(sdk.spans).toSorted(), [
    '  client genai.provider.up',
    '  internal genai.chat.route',
    '  internal genai.chat.stream',
    'internal genai.chat.request'
  ])
  const older = { 'gen_ai.system': 'up', 'gen_ai.usage.prompt_tokens': 7, 'gen_ai.usage.completion_tokens': 2 }
  for (const { name, attributes } of sdk.spans) if (/request|provider/.test(name)) t.match(attributes, older, name)
  const [route, stream] = ['genai.chat.route', 'genai.chat.stream'].map(is => sdk.spans.find(({ name }) => name === is))
  const call = sdk.spans.find(({ name }) => name === 'genai.chat.request')
  t.ok(ends(route) <= ends(stream) && ends(stream) <= ends(call))
})

test('metrics', async t => {
  const usage = tokens(7, 2)

  t.test('are those of the convention, by target and error', async t => {
    const sdk = record(t, new AlwaysOffSampler())
    const providers = [scripted('one', fails(new UpstreamError('ill')), says('one two three', usage)), scripted('two')]
    const { gateway } = await traced(t, { providers, routing: twice })
    await gateway.complete(ask, gateway.caller())
    await textOf(await gateway.complete(askStream, gateway.caller()))
    const durations = await sdk.points('gen_ai.client.operation.duration')
    t.same(
      durations.map(({ attributes, value }) => [
        attributes['gen_ai.request.model'],
        attributes['error.type'],
        value.count
      ]),
      [
        ['m1', 'upstream_error', 1],
        ['m2', undefined, 1],
        ['m1', undefined, 1]
      ]
    )
    t.same(durations[0]?.value.buckets.boundaries, names.metrics.duration.bounds)
    const counts = await sdk.points('gen_ai.client.token.usage')
    t.same(
      counts.map(({ attributes, value }) => [attributes['gen_ai.token.type'], value.sum]),
      [
        ['input', 7],
        ['output', 2]
      ]
    )
    t.equal((await sdk.points('gen_ai.client.operation.time_to_first_chunk'))[0]?.value.count, 1)
    t.equal((await sdk.points('gen_ai.client.operation.time_per_output_chunk'))[0]?.value.count, 1)
  })

  t.test('are not made where they are switched off', async t => {
    const sdk = record(t)
    const { gateway } = await traced(t, { otel: { metrics: false } })
    await gateway.complete(ask, gateway.caller())
    t.same(await sdk.points('gen_ai.client.operation.duration'), [])
    t.equal(sdk.spans.length, 2)
  })

  t.test('go to buckets as the SDK fills them', async t => {
    const cell = new Buckets(names.metrics.tokens, {})
    for (const value of [0, 1, 2, 4, 5, 1e9, Number.NaN, -1]) cell.add(value)
    t.same(cell.counts, [2, 2, 1, ...Array(11).fill(0), 1])
    t.match(cell, { count: 6, sum: 1e9 + 12, min: 0, max: 1e9 })
    cell.clear()
    t.match(cell, { count: 0, sum: 0 })
    t.ok(cell.counts.every(count => count === 0))
  })

  t.test('models beyond a limit are counted together', async t => {
    const made: Attributes[] = []
    const measure = createMeters((instrument, attributes) => {
      if (instrument === names.metrics.duration) made.push(attributes)
      return { add() {} }
    })
    const provider = scripted('up')
    for (let index = 0; index < 2_000; index++) measure(ended({ provider, model: `m${index}` }))
    t.equal(made.length, 201)
    t.equal(made.at(-1)?.['gen_ai.request.model'], '_OTHER')
  })

  function ended(target: Pick<Expense['target'], 'provider' | 'model'>): Expense {
    return {
      target: { ...target, weight: 1, price: null },
      status: 'failed',
      error: new Cancelled(),
      usage: { source: 'estimated' },
      duration: 1,
      firstToken: null,
      reads: 0
    } as unknown as Expense
  }
})

test('providers are called what the convention calls them', async t => {
  const named = (vendor: string | undefined, url?: string) => placeOf({ ...scripted('mine'), vendor, url }).provider
  t.equal(named('openai', 'https://api.openai.com/v1'), 'openai')
  t.equal(named('azure-openai', 'https://res.openai.azure.com'), 'azure.ai.openai')
  t.equal(named('anthropic'), 'anthropic')
  t.equal(named('gemini'), 'gcp.gemini')
  t.equal(named('vertex'), 'gcp.vertex_ai')
  t.equal(named('llamacpp'), 'llama_cpp')
  t.equal(named('vllm', 'http://gpu:8000'), 'vllm')
  t.equal(named('openai-compatible', 'https://openrouter.ai/api/v1'), 'openrouter')
  t.equal(named('openai-compatible', 'https://api.groq.com/openai/v1'), 'groq')
  t.equal(named('openai-compatible', 'https://api.x.ai/v1'), 'x_ai')
  t.equal(named('openai-compatible', 'https://notx.ai/v1'), 'mine')
  t.equal(named(undefined), 'mine')
  t.same(placeOf({ ...scripted('up'), url: 'http://[::1]:8080/v1' }), { provider: 'up', address: '::1', port: 8080 })
})

test('the page has every name', async t => {
  const page = readFileSync(new URL('../../docs/plugins/otel.md', import.meta.url), 'utf8')
  const listed = new Set([...page.matchAll(/^\| `([\w.]+)`/gm)].map(([, name]) => name))
  const own = [
    ...Object.values(names.attributes),
    ...Object.values(names.legacy),
    ...Object.values(names.metrics).map(({ name }) => name),
    ...Object.values(names.metricAttributes)
  ]
  t.same([...listed].filter(name => name?.includes('.')).toSorted(), own.toSorted())
})

function parsed(attributes: Attributes | undefined, name: string): unknown {
  return JSON.parse(String(attributes?.[name]))
}

function ends(span: { readonly endTime: readonly [number, number] } | undefined): number {
  return span === undefined ? Number.NaN : span.endTime[0] * 1e9 + span.endTime[1]
}

async function until(holds: () => boolean): Promise<void> {
  while (!holds()) await new Promise(setImmediate)
}
