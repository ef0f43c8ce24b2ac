import t from 'tap'
import {
  clientMetrics,
  faultsOfAttributes,
  faultsOfModelSpan,
  faultsOfPoint,
  legacyAttributes
} from '../../otlp/convention.ts'
import type { Point } from '../../otlp/messages.ts'
import { drawn, faultsOfTimes } from '../../otlp/tree.ts'
import { chunks, completion, failure, json, sse, wantsUsage } from '../../upstream.ts'
import { secrets, stage } from './stage.ts'

// What operators set: who samples, what the process is called, which names attributes have; and the metrics.

t.test('OTEL_TRACES_SAMPLER=always_off exports no span, and metrics go on', async t => {
  const { first, ask, receiver, gateway } = await stage(t, { env: { OTEL_TRACES_SAMPLER: 'always_off' } })
  first.script(json(completion()))
  const asked = await ask({ model: 'plain' })
  t.match(asked.traceId, /^[0-9a-f]{32}$/)
  await asked.text()
  t.match(first.requests[0]!.headers['traceparent'], new RegExp(`^00-${asked.traceId}-[0-9a-f]{16}-00$`))
  await receiver.points(points => points.some(({ name }) => name === 'gen_ai.client.operation.duration'))
  await gateway.stop()
  t.same(await receiver.spans(0), [])
})

for (const [name, value] of [
  ['OTEL_SDK_DISABLED', 'true'],
  ['OTEL_TRACES_EXPORTER', 'none']
] as const) {
  t.test(`with ${name} no context goes upstream, rather than one that is none`, async t => {
    const { first, ask, gateway } = await stage(t, { env: { [name]: value } })
    first.script(json(completion()))
    const asked = await ask({ model: 'plain' })
    t.equal(asked.status, 200)
    t.match(asked.traceId, /^(?!0{32})[0-9a-f]{32}$/)
    await asked.text()
    t.equal(first.requests[0]!.headers['traceparent'], undefined)
    t.equal(await gateway.stop(), 0)
  })
}

t.test('a share of traces is sampled, each whole', async t => {
  const env = { OTEL_TRACES_SAMPLER: 'parentbased_traceidratio', OTEL_TRACES_SAMPLER_ARG: '0.5' }
  const { first, ask, receiver, gateway } = await stage(t, { env })
  first.script(json(completion()))
  const ids: string[] = []
  for (let call = 0; call < 60; call++) {
    const asked = await ask({ model: 'plain' })
    await asked.text()
    ids.push(asked.traceId)
  }
  const traceId = '0af7651916cd43dd8448eb211c80319c'
  const headers = { authorization: `Bearer ${secrets.clientKey}`, traceparent: `00-${traceId}-b7ad6b7169203331-01` }
  await (await ask({ model: 'plain' }, { headers })).text()
  await gateway.stop()
  const spans = await receiver.spans(0)
  const sampled = new Set(spans.map(span => span.traceId))
  t.equal(spans.length, sampled.size * 3, 'all spans of a trace or none')
  t.ok(sampled.size > 10 && sampled.size < 52, `${sampled.size} of 61`)
  t.ok(sampled.has(traceId), 'what the client samples is')
  t.ok(
    [...sampled].every(id => id === traceId || ids.includes(id)),
    'and x-trace-id names them'
  )
})

t.test('the resource says which service it is', async t => {
  const env = { OTEL_SERVICE_NAME: 'llm-eu', OTEL_RESOURCE_ATTRIBUTES: 'deployment.environment.name=test' }
  const { first, ask, spans } = await stage(t, { env })
  first.script(json(completion()))
  const asked = await ask({ model: 'plain' })
  await asked.text()
  for (const { resource } of await spans(asked, 3)) {
    t.match(resource, { 'service.name': 'llm-eu', 'deployment.environment.name': 'test' })
  }
})

t.test('with legacyAttributes there are the older names as well', async t => {
  const { first, second, ask, spans } = await stage(t, { otel: { legacyAttributes: true } })
  first.script(json(completion()))
  const whole = await ask({ model: 'plain' })
  await whole.text()
  const found = await spans(whole, 4)
  const attempt = found.find(({ kind }) => kind === 'client')!
  for (const name of Object.keys(legacyAttributes)) t.ok(attempt.attributes[name] !== undefined, name)
  t.equal(attempt.attributes['gen_ai.usage.prompt_tokens'], attempt.attributes['gen_ai.usage.input_tokens'])
  t.equal(attempt.attributes['gen_ai.usage.completion_tokens'], attempt.attributes['gen_ai.usage.output_tokens'])
  t.match(attempt.name, /^genai\.provider\./)
  for (const span of found) t.same(faultsOfAttributes(span.attributes, { legacy: true }), [])
  t.same(drawn(found), [
    'server POST /v1/chat/completions',
    '  internal genai.chat.request',
    '    internal genai.chat.route',
    '    client genai.provider.first'
  ])
  t.same(faultsOfTimes(found), [])

  first.script(failure(500))
  second.script(sse(chunks('one two')))
  const stream = await ask({ model: 'chain', stream: true })
  await stream.text()
  const streamed = await spans(stream, 6)
  t.same(drawn(streamed).toSorted(), [
    '    client genai.provider.first !upstream_error',
    '    client genai.provider.second',
    '    internal genai.chat.route',
    '    internal genai.chat.stream',
    '  internal genai.chat.request',
    'server POST /v1/chat/completions'
  ])
  t.same(faultsOfTimes(streamed), [])
})

t.test("OpenTelemetry's own server spans stand in place of ours where they are asked for", async t => {
  const { first, ask, spans } = await stage(t, { otel: { instrumentation: true } })
  first.script(request => (request.json.stream ? sse(chunks('one two')) : json(completion())))
  for (const stream of [false, true]) {
    const asked = await ask({ model: 'plain', stream }, { path: '/v1/chat/completions?ticket=secret-ticket' })
    await asked.text()
    const found = await spans(asked, 3)
    t.same(drawn(found), ['server POST /v1/chat/completions', '  internal chat plain', '    client chat first-model'])
    t.same(faultsOfTimes(found), [])
    const server = found.find(({ kind }) => kind === 'server')!
    t.match(server.scope.name, 'instrumentation-http')
    t.match(server.attributes, {
      'http.request.method': 'POST',
      'http.response.status_code': 200,
      'http.route': '/v1/chat/completions'
    })
    t.notMatch(JSON.stringify(server.attributes), 'secret-ticket')
  }
})

t.test('without a collector nothing is traced, and answers name a trace all the same', async t => {
  const { first, ask, receiver } = await stage(t, { collector: {} })
  first.script(json(completion()))
  const asked = await ask({ model: 'plain' })
  t.match(asked.traceId, /^[0-9a-f]{32}$/)
  await asked.text()
  t.equal(first.requests[0]!.headers['traceparent'], undefined)
  t.same(receiver.exports, [])
})

t.test('metrics are those of the conventions, and count what was called', async t => {
  const { first, ask, receiver, gateway } = await stage(t, {})
  first.script(json(completion({ content: 'one two' })))
  for (let call = 0; call < 3; call++) await (await ask({ model: 'plain' })).text()
  first.script(request => sse(chunks('one two three', { usage: wantsUsage(request) })))
  await (await ask({ model: 'plain', stream: true })).text()
  first.script(failure(500))
  await (await ask({ model: 'plain' })).text()
  await (await ask({ model: 'made-up-by-a-client' })).text()
  await gateway.stop()

  const all = await receiver.points(1)
  const last = new Map<string, Point>()
  for (const point of all) last.set(point.name + JSON.stringify(point.attributes), point)
  const points = [...last.values()].filter(({ name }) => name.startsWith('gen_ai.'))
  t.same(points.flatMap(faultsOfPoint), [])
  t.same(new Set(points.map(({ name }) => name)), new Set(Object.keys(clientMetrics)))
  const of = (name: string, matches: (attributes: Point['attributes']) => boolean = () => true) => {
    const found = points.filter(point => point.name === name && matches(point.attributes))
    return {
      count: found.reduce((sum, point) => sum + point.count, 0),
      value: found.reduce((sum, point) => sum + point.value, 0)
    }
  }
  const duration = 'gen_ai.client.operation.duration'
  t.equal(of(duration, attributes => attributes['error.type'] === undefined).count, 4)
  t.equal(of(duration, attributes => attributes['error.type'] !== undefined).count, 1)
  const type = (name: string) => (attributes: Point['attributes']) => attributes['gen_ai.token.type'] === name
  t.same(of('gen_ai.client.token.usage', type('input')), { count: 4, value: 4 * 9 })
  t.same(of('gen_ai.client.token.usage', type('output')), { count: 4, value: 3 * 2 + 3 })
  t.equal(of('gen_ai.client.operation.time_to_first_chunk').count, 1)
  t.ok(of('gen_ai.client.operation.time_per_output_chunk').count > 0)
  t.notOk(JSON.stringify(points.map(({ attributes }) => attributes)).includes('made-up-by-a-client'))
})

t.test('spans over http/protobuf are the same', async t => {
  const { first, ask, spans } = await stage(t, { protocol: 'http/protobuf' })
  first.script(json(completion()))
  const asked = await ask({ model: 'plain' })
  await asked.text()
  const found = await spans(asked, 3)
  t.same(drawn(found), ['server POST /v1/chat/completions', '  internal chat plain', '    client chat first-model'])
  t.same(
    found.flatMap(span => (span.kind === 'server' ? [] : faultsOfModelSpan(span))),
    []
  )
})
