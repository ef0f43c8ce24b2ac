import { request } from 'node:http'
import { type Context, context, metrics, SpanKind, SpanStatusCode, trace } from '@opentelemetry/api'
import t from 'tap'
import {
  clientMetrics,
  faultsOfAttributes,
  faultsOfModelSpan,
  faultsOfPoint,
  spanAttributes
} from './otlp/convention.ts'
import type { Point, Span } from './otlp/messages.ts'
import { decode, metrics as metricsShape, traces } from './otlp/protobuf.ts'
import { absent, type Protocol, startReceiver } from './otlp/receiver.ts'
import { startSdk } from './otlp/sdk.ts'
import { drawn, faultsOfTimes, treeOf } from './otlp/tree.ts'

// The collector of the test kit, against the exporters of OpenTelemetry; and what judges spans, against spans made up here.

const protocols: Protocol[] = ['grpc', 'http/protobuf', 'http/json']

const attributes = {
  text: 'Zürich 🙂 日本',
  empty: '',
  yes: true,
  no: false,
  zero: 0,
  int: 4_294_967_296_001,
  negative: -7,
  double: 0.1,
  small: -1.5e-300,
  texts: ['a', '', 'ü'],
  numbers: [1, 2.5, -3],
  flags: [true, false],
  long: 'x'.repeat(20_000)
}

/** A span with all that a span can have, and one below it. Gives the context of the upper one. */
function twoSpans(): Context {
  const tracer = trace.getTracer('kit', '1.2.3')
  const links = [{ context: { traceId: 'ab'.repeat(16), spanId: 'cd'.repeat(8), traceFlags: 1 }, attributes: { a: 1 } }]
  const upper = tracer.startSpan('upper', { kind: SpanKind.SERVER, attributes, links })
  const inside = trace.setSpan(context.active(), upper)
  const lower = tracer.startSpan('lower', { kind: SpanKind.CLIENT }, inside)
  lower.addEvent('first', { 'event.text': 'x' })
  lower.setStatus({ code: SpanStatusCode.ERROR, message: 'It broke.' })
  lower.end()
  upper.end()
  return inside
}

for (const protocol of protocols) {
  t.test(`over ${protocol} spans arrive as they were made`, async t => {
    const receiver = await startReceiver(protocol)
    t.teardown(() => receiver.close())
    const before = BigInt(Date.now()) * 1_000_000n
    startSdk(t, { ...receiver.env, OTEL_SERVICE_NAME: 'shop', OTEL_RESOURCE_ATTRIBUTES: 'team=blue' })
    const made = trace.getSpanContext(twoSpans())
    const spans = await receiver.trace(made!.traceId, 2)
    const after = BigInt(Date.now() + 1) * 1_000_000n
    const [upper, lower] = spans.toSorted((a, b) => b.name.localeCompare(a.name))
    t.same(upper!.attributes, attributes)
    t.equal(upper!.kind, 'server')
    t.equal(upper!.spanId, made!.spanId)
    t.equal(upper!.parentSpanId, null)
    t.equal(upper!.status.code, 'unset')
    t.same(upper!.links, [{ traceId: 'ab'.repeat(16), spanId: 'cd'.repeat(8), attributes: { a: 1 } }])
    t.equal(upper!.dropped, 0)
    t.equal(lower!.kind, 'client')
    t.equal(lower!.parentSpanId, made!.spanId)
    t.equal(lower!.remoteParent, false)
    t.same(lower!.status, { code: 'error', message: 'It broke.' })
    t.match(lower!.events, [{ name: 'first', attributes: { 'event.text': 'x' } }])
    for (const { start, end, sampled, scope, resource } of spans) {
      t.ok(before <= start && start <= end && end <= after, 'times are now')
      t.ok(sampled)
      t.same(scope, { name: 'kit', version: '1.2.3' })
      t.match(resource, { 'service.name': 'shop', team: 'blue', 'process.pid': process.pid })
    }
    t.same(drawn(spans), ['server upper', '  client lower !'])
    t.same(faultsOfTimes(spans), [])
  })

  t.test(`over ${protocol} metrics arrive as they were recorded`, async t => {
    const receiver = await startReceiver(protocol)
    t.teardown(() => receiver.close())
    const sdk = startSdk(t, receiver.env)
    const meter = metrics.getMeter('kit', '1.2.3')
    meter.createCounter('calls', { unit: '{call}', description: 'Calls.' }).add(3, { a: 'x' })
    meter.createUpDownCounter('balance').add(-2.5)
    meter.createGauge('lag', { unit: 's' }).record(0.25, { b: 7 })
    const histogram = meter.createHistogram('took', { advice: { explicitBucketBoundaries: [1, 10, 100] } })
    for (const value of [0.5, 5, 50, 500, 1000]) histogram.record(value)
    await sdk.shutdown()
    const points = await receiver.points(4)
    t.match(
      points.map(({ resource, start, time, ...point }) => point),
      [
        { name: 'calls', unit: '{call}', description: 'Calls.', kind: 'sum', monotonic: true, attributes: { a: 'x' } },
        { name: 'balance', kind: 'sum', monotonic: false, value: -2.5, temporality: 'cumulative' },
        { name: 'lag', unit: 's', kind: 'gauge', value: 0.25, attributes: { b: 7 }, temporality: null },
        { name: 'took', kind: 'histogram', value: 1555.5, count: 5, bounds: [1, 10, 100], buckets: [1, 1, 1, 2] }
      ]
    )
    t.equal(points[0]!.value, 3)
    t.ok(points.every(({ start, time }) => start <= time && time > 0n))
    t.ok(points.every(({ scope }) => scope.name === 'kit'))
  })

  t.test(`over ${protocol} packed exports are unpacked`, async t => {
    const receiver = await startReceiver(protocol)
    t.teardown(() => receiver.close())
    startSdk(t, { ...receiver.env, OTEL_EXPORTER_OTLP_COMPRESSION: 'gzip' })
    twoSpans()
    t.equal((await receiver.spans(2)).length, 2)
    const { headers, body } = receiver.exports[0]!
    t.equal(headers['content-encoding'] ?? headers['grpc-encoding'], 'gzip')
    t.ok(body.includes('upper'), 'the body is kept unpacked')
  })

  t.test(`over ${protocol} a collector that does not take it`, async t => {
    for (const [conduct, words] of [
      ['reject', /Bad Request|INVALID_ARGUMENT/],
      ['break', /aborted|UNAVAILABLE|INTERNAL|CANCELLED|socket hang up|deserialize/],
      ['hang', /timed out|DEADLINE_EXCEEDED/]
    ] as const) {
      await t.test(conduct, async t => {
        const receiver = await startReceiver(protocol, { conduct })
        t.teardown(() => receiver.close())
        const sdk = startSdk(t, {
          ...receiver.env,
          OTEL_METRICS_EXPORTER: 'none',
          OTEL_EXPORTER_OTLP_TIMEOUT: '300'
        })
        twoSpans()
        t.match(await sdk.until(words), words, 'the exporter says so')
        t.match(await receiver.arrived(1), [{ signal: 'traces', conduct }])
        t.same(await receiver.spans(0), [], 'it has taken nothing')
      })
    }
  })

  t.test(`over ${protocol} a collector that stores nothing says so`, async t => {
    const receiver = await startReceiver(protocol, { conduct: 'partial' })
    t.teardown(() => receiver.close())
    const sdk = startSdk(t, receiver.env)
    twoSpans()
    t.match(await sdk.until(/Partial Success/), /"rejectedSpans":"?1"?.*The store is full\./)
    t.same(await receiver.spans(0), [])
  })

  t.test(`over ${protocol} a slow collector takes it later`, async t => {
    const receiver = await startReceiver(protocol, { conduct: { slow: 30 } })
    t.teardown(() => receiver.close())
    const sdk = startSdk(t, receiver.env)
    twoSpans()
    await receiver.arrived(1)
    t.same(await receiver.spans(0), [])
    t.equal((await receiver.spans(2)).length, 2)
    await sdk.shutdown()
    t.same(sdk.said, [])
  })

  t.test(`over ${protocol} a collector that is not there`, async t => {
    const env = { ...(await absent(protocol)), OTEL_METRICS_EXPORTER: 'none', OTEL_EXPORTER_OTLP_TIMEOUT: '300' }
    const sdk = startSdk(t, env)
    twoSpans()
    t.match(await sdk.until(/ECONNREFUSED|UNAVAILABLE|DEADLINE_EXCEEDED/), /./)
  })
}

t.test('what was refused is taken when it comes again', async t => {
  const receiver = await startReceiver('http/protobuf', { conduct: 'refuse' })
  t.teardown(() => receiver.close())
  startSdk(t, receiver.env)
  twoSpans()
  await receiver.arrived(1)
  t.same(await receiver.spans(0), [])
  receiver.behave('take')
  t.equal((await receiver.spans(2)).length, 2)
  t.equal(receiver.exports.filter(({ signal }) => signal === 'traces').length, 2)
})

t.test('over gRPC a refusal is UNAVAILABLE', async t => {
  const receiver = await startReceiver('grpc', { conduct: 'refuse' })
  t.teardown(() => receiver.close())
  const sdk = startSdk(t, receiver.env)
  twoSpans()
  t.match(await sdk.until(/UNAVAILABLE/), /as told/)
})

t.test('waiting in vain says what has come', async t => {
  const receiver = await startReceiver('http/json', { patience: 500 })
  t.teardown(() => receiver.close())
  startSdk(t, receiver.env)
  twoSpans()
  await receiver.spans(2)
  await t.rejects(receiver.spans(3), /in vain\. There are 2 spans: client lower, server upper/)
  await t.rejects(receiver.trace('f'.repeat(32), 1), /There are 0 spans: {2}of this trace, and 2 in all/)
  await t.rejects(
    receiver.points(points => points.length > 1e6),
    /in vain/
  )
  const vain = receiver.spans(9)
  vain.catch(() => {})
  await receiver.close()
  await t.rejects(vain, /closed/)
})

t.test('what is not OTLP is refused, and fails the test', async t => {
  const span = { traceId: 'ab'.repeat(16), spanId: 'cd'.repeat(8), name: 'a', kind: 1 }
  const wrap = (span: object) => JSON.stringify({ resourceSpans: [{ scopeSpans: [{ spans: [span] }] }] })
  const twice = [
    { key: 'a', value: {} },
    { key: 'a', value: {} }
  ]
  const wrong: Array<[string, string, RegExp]> = [
    ['application/json', '{', /JSON/],
    ['application/json', '{"resourceSpans":{}}', /no list/],
    ['application/json', wrap({ ...span, traceId: '0'.repeat(32) }), /traceId/],
    ['application/json', wrap({ ...span, spanId: '' }), /spanId is empty/],
    ['application/json', wrap({ ...span, name: 5 }), /name is no text/],
    ['application/json', wrap({ ...span, kind: 9 }), /kind is 9/],
    ['application/json', wrap({ ...span, attributes: twice }), /twice/],
    ['application/x-protobuf', '\x0a\xff', /does not end|ends after/],
    ['application/x-protobuf', 'hello', /./]
  ]
  for (const [type, body, words] of wrong) {
    const receiver = await startReceiver('http/protobuf')
    t.equal(await post(receiver.port, '/v1/traces', type, body), 400, body)
    await t.rejects(receiver.spans(1), words)
    await t.rejects(receiver.close(), words)
  }
  const receiver = await startReceiver('http/protobuf')
  t.equal(await post(receiver.port, '/v1/traces', 'application/json', wrap(span)), 200)
  t.equal(await post(receiver.port, '/v1/spans', 'application/json', wrap(span)), 404)
  t.equal(await post(receiver.port, '/v1/traces', 'text/plain', wrap(span)), 415)
  t.equal((await receiver.spans(1))[0]?.name, 'a')
  await receiver.close()
})

async function post(port: number, path: string, type: string, body: string): Promise<number | undefined> {
  return new Promise((resolve, reject) => {
    const options = { port, host: '127.0.0.1', path, method: 'POST', headers: { 'content-type': type } }
    const sent = request(options, response => {
      response.resume()
      response.once('end', () => resolve(response.statusCode))
    })
    sent.once('error', reject)
    sent.end(Buffer.from(body, 'latin1'))
  })
}

t.test('a message that breaks off anywhere is an error or a shorter message, never another one', async t => {
  const receiver = await startReceiver('http/protobuf')
  t.teardown(() => receiver.close())
  startSdk(t, receiver.env)
  twoSpans()
  await receiver.spans(2)
  const { body } = receiver.exports.find(({ signal }) => signal === 'traces')!
  let errors = 0
  for (let length = 1; length < Math.min(body.length, 3000); length++) {
    try {
      decode(traces, body.subarray(0, length))
    } catch {
      errors++
    }
  }
  t.ok(errors > 2900, `${errors} errors`)
  t.same(decode(metricsShape, new Uint8Array()), {})
})

const made: Span = {
  traceId: 'ab'.repeat(16),
  spanId: '1'.repeat(16),
  parentSpanId: null,
  traceState: '',
  sampled: true,
  remoteParent: false,
  name: 'chat m',
  kind: 'client',
  start: 1_000_000_000n,
  end: 9_000_000_000n,
  attributes: {
    'gen_ai.operation.name': 'chat',
    'gen_ai.provider.name': 'openai',
    'gen_ai.request.model': 'm',
    'server.address': 'api.example',
    'server.port': 443,
    'gen_ai.usage.input_tokens': 10,
    'gen_ai.usage.cache_read.input_tokens': 4,
    'tenant.anything': [1]
  },
  events: [],
  links: [],
  status: { code: 'unset', message: '' },
  dropped: 0,
  resource: {},
  scope: { name: 'kit', version: '' }
}

t.test('a tree has its branches in the order of their beginning', async t => {
  const below = (id: string, parent: string, start: bigint, end: bigint): Span => {
    return { ...made, spanId: id.repeat(16), parentSpanId: parent.repeat(16), name: id, kind: 'internal', start, end }
  }
  const late = below('3', '1', 5_000_000_000n, 6_000_000_000n)
  const early = below('2', '1', 2_000_000_000n, 4_000_000_000n)
  const deep = below('4', '2', 2_000_000_000n, 3_000_000_000n)
  const spans = [deep, late, made, early]
  t.same(drawn(spans), ['client chat m', '  internal 2', '    internal 4', '  internal 3'])
  t.same(faultsOfTimes(spans), [])
  t.same(drawn([deep, late]), ['internal 4', 'internal 3'], 'without their parents they are roots')
  t.same(drawn([made, { ...early, traceId: 'cd'.repeat(16) }]), ['client chat m', 'internal 2'], 'ids are of one trace')
  t.throws(() => treeOf([made, made]), /twice/)
  t.same(drawn([{ ...made, status: { code: 'error', message: '' }, attributes: { 'error.type': '503' } }]), [
    'client chat m !503'
  ])

  t.same(faultsOfTimes([{ ...made, end: 0n }]), ['chat m ends 1000000000 ns before it begins'])
  t.same(faultsOfTimes([made, { ...early, start: 0n }]), ['2 begins 1000000000 ns before chat m'])
  t.same(faultsOfTimes([made, { ...late, end: 9_001_000_001n }]), ['3 ends 1000001 ns after chat m'])
  t.same(faultsOfTimes([made, { ...late, end: 9_001_000_000n }]), [], 'a clock of milliseconds is forgiven')
})

t.test('spans are judged by the conventions', async t => {
  t.same(faultsOfModelSpan(made), [])
  const judged = (attributes: Span['attributes'], rest: Partial<Span> = {}) =>
    faultsOfModelSpan({ ...made, ...rest, attributes: { ...made.attributes, ...attributes } })
  t.same(judged({ 'gen_ai.made_up': 1 }), ['gen_ai.made_up is not in the conventions'])
  t.same(judged({ 'gen_ai.system': 'openai' }), ['gen_ai.system is not in the conventions'])
  t.same(judged({ 'gen_ai.request.max_tokens': 1.5 }), ['gen_ai.request.max_tokens is no int: 1.5'])
  t.same(judged({ 'gen_ai.request.temperature': 1 }), [], 'a whole double')
  t.same(judged({ 'gen_ai.request.temperature': '1' }), ['gen_ai.request.temperature is no double: "1"'])
  t.same(judged({ 'gen_ai.request.stop_sequences': 'x' }), ['gen_ai.request.stop_sequences is no string[]: "x"'])
  t.same(judged({ 'gen_ai.input.messages': 'x' }), ['gen_ai.input.messages is no json: "x"'])
  t.same(judged({ 'gen_ai.request.stream': false }), ['gen_ai.request.stream is said where it is false'])
  t.same(judged({ 'gen_ai.response.id': '' }), ['gen_ai.response.id is empty'])
  t.same(judged({ 'gen_ai.provider.name': 'gemini' }), ['gen_ai.provider.name is gemini, a former name'])
  t.match(judged({ 'gen_ai.operation.name': 'talk' }, { name: 'talk m' }), [/which the conventions do not have/])
  t.same(judged({ 'error.type': '503' }), ['status and error.type do not say the same'])
  const failed = { status: { code: 'error' as const, message: '' } }
  t.same(judged({ 'error.type': '503' }, failed), [])
  t.same(judged({}, failed), ['status and error.type do not say the same'])
  t.same(judged({ 'error.type': 'client_cancelled' }), [])
  t.same(judged({ 'error.type': 'client_cancelled' }, failed), ['a client that leaves is an error'])
  t.same(judged({ 'gen_ai.usage.cache_read.input_tokens': 11 }), ['more input tokens are cached than there are'])
  t.same(judged({}, { name: 'chat' }), ['it is called chat, not chat m'])
  t.same(judged({}, { kind: 'server' }), ['it is of the kind server'])
  const { 'gen_ai.provider.name': _, 'server.port': __, ...fewer } = made.attributes
  t.same(faultsOfModelSpan({ ...made, attributes: fewer }), [
    'gen_ai.provider.name is missing',
    'server.address stands without server.port'
  ])
  t.same(faultsOfModelSpan({ ...made, attributes: { ...fewer, 'server.port': 1 }, kind: 'internal' }), [])
  t.same(faultsOfAttributes({ 'gen_ai.usage.prompt_tokens': 5 }, { legacy: true }), [])
  t.same(faultsOfAttributes({ 'server.port': '80', 'http.route': 1 }), ['server.port is no int: "80"'])
  t.ok(Object.keys(spanAttributes).length > 30)
})

t.test('points are judged by the conventions', async t => {
  const attributes = { 'gen_ai.operation.name': 'chat', 'gen_ai.provider.name': 'openai', 'gen_ai.token.type': 'input' }
  const point: Point = {
    name: 'gen_ai.client.token.usage',
    unit: '{token}',
    description: '',
    kind: 'histogram',
    temporality: 'cumulative',
    monotonic: false,
    attributes,
    start: 1n,
    time: 2n,
    value: 5,
    count: 1,
    bounds: clientMetrics['gen_ai.client.token.usage']!.bounds,
    buckets: [],
    resource: {},
    scope: { name: 'kit', version: '' }
  }
  t.same(faultsOfPoint(point), [])
  t.equal(point.bounds.at(-1), 67_108_864)
  t.match(faultsOfPoint({ ...point, name: 'gen_ai.server.request.duration' }), [/not in the conventions for a client/])
  t.match(faultsOfPoint({ ...point, kind: 'sum', unit: 's', bounds: [1] }), [/is a sum/, /in s, not/, /the buckets 1/])
  t.match(faultsOfPoint({ ...point, attributes: { ...attributes, 'gen_ai.x': 1 } }), [/gen_ai.x is not/])
  const { 'gen_ai.token.type': _, ...fewer } = attributes
  t.match(faultsOfPoint({ ...point, attributes: fewer }), [/lacks gen_ai.token.type/])
  const { bounds } = clientMetrics['gen_ai.client.operation.duration']!
  const duration = { ...point, name: 'gen_ai.client.operation.duration', unit: 's', bounds, attributes: fewer }
  t.same(faultsOfPoint(duration), [])
  t.match(faultsOfPoint({ ...duration, attributes }), [/tells types of tokens apart/])
})
