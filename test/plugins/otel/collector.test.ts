import { trace } from '@opentelemetry/api'
import t from 'tap'
import { startTelemetry, type Telemetry } from '../../../plugins/otel/sdk.ts'
import { absent, type Conduct, type Protocol, type Receiver, startReceiver } from '../../otlp/receiver.ts'
import { forgetSdk } from '../../otlp/sdk.ts'
import { chunks, completion, json, sse, turn } from '../../upstream.ts'
import { stage } from './stage.ts'

// What a collector does is no matter to callers.

// Most of the time of each is spent waiting for the end.
t.jobs = 4

const conducts: Array<Conduct | 'absent'> = ['absent', { slow: 20_000 }, 'refuse', 'reject', 'partial', 'hang', 'break']
const calls = 36
const silent = { error() {}, warn() {}, info() {}, debug() {} }

for (const protocol of ['grpc', 'http/protobuf'] as const) {
  for (const conduct of conducts) {
    const name = typeof conduct === 'object' ? 'slow' : conduct
    t.test(
      `over ${protocol}, collector ${name}: all calls are answered, nothing waits, the end is in time`,
      async t => {
        const collector = conduct === 'absent' ? await absent(protocol) : undefined
        const { first, ask, gateway, receiver } = await stage(t, {
          protocol,
          collector,
          conduct: conduct === 'absent' ? 'take' : conduct,
          // Small, so that it is full at once.
          env: { OTEL_BSP_MAX_QUEUE_SIZE: '20', OTEL_BSP_MAX_EXPORT_BATCH_SIZE: '10' }
        })
        first.script(request => (request.json.stream ? sse(chunks('one two')) : json(completion())))
        const started = performance.now()
        for (let call = 0; call < calls; call += 6) {
          const asked = await Promise.all(
            Array.from({ length: 6 }, (_, index) => ask({ model: 'plain', stream: index % 2 === 0 }))
          )
          for (const answer of asked) {
            t.equal(answer.status, 200)
            t.match(await answer.text(), /Hello from upstream|\[DONE\]/)
          }
        }
        // One wait for a collector that hangs takes ten seconds, for a slow one twenty.
        t.ok(performance.now() - started < 8_000, `${Math.round(performance.now() - started)} ms`)
        if (conduct !== 'absent') await receiver.arrived(1)

        const end = performance.now()
        t.equal(await gateway.stop(), 0)
        t.ok(performance.now() - end < 10_000, `it ended in ${Math.round(performance.now() - end)} ms`)
      }
    )
  }
}

for (const protocol of ['grpc', 'http/protobuf'] satisfies Protocol[]) {
  t.test(`over ${protocol} a collector that comes back gets what is new`, async t => {
    const { first, ask, receiver, spans } = await stage(t, {
      protocol,
      conduct: 'reject',
      env: { OTEL_EXPORTER_OTLP_TIMEOUT: '1000' }
    })
    first.script(json(completion()))
    await (await ask({ model: 'plain' })).text()
    await receiver.arrived(all => all.some(({ signal }) => signal === 'traces'))
    receiver.behave('take')
    const asked = await ask({ model: 'plain' })
    await asked.text()
    t.equal((await spans(asked, 3)).length, 3)
  })

  t.test(`over ${protocol} what is left at the end is exported`, async t => {
    const { first, ask, receiver, gateway } = await stage(t, { protocol, env: { OTEL_BSP_SCHEDULE_DELAY: '60000' } })
    first.script(json(completion()))
    const asked = await ask({ model: 'plain' })
    await asked.text()
    t.same(await receiver.spans(0), [])
    t.equal(await gateway.stop(), 0)
    t.equal((await receiver.trace(asked.traceId, 3)).length, 3)
    t.ok((await receiver.points(1)).length > 0)
  })
}

t.test('what becomes of spans, and what is said of it', async t => {
  const made = 500
  const wave = async (receiver: Receiver, then: (telemetry: Telemetry) => unknown) => {
    const { OTEL_EXPORTER_OTLP_ENDPOINT: endpoint } = receiver.env
    const settings = { endpoint, protocol: 'grpc', serviceName: 'kit', metrics: false } as const
    const others = { captureContent: false, maxContentLength: 0, legacyAttributes: false, instrumentation: false }
    const env = { OTEL_BSP_MAX_QUEUE_SIZE: '100', OTEL_BSP_MAX_EXPORT_BATCH_SIZE: '50', OTEL_BSP_SCHEDULE_DELAY: '10' }
    const telemetry = await startTelemetry({ ...settings, ...others }, env, silent)
    for (let span = 0; span < made; span++) trace.getTracer('kit').startSpan('one').end()
    await then(telemetry)
    await telemetry.stop()
    forgetSdk()
    return { ...telemetry, dropped: telemetry.dropped, failed: telemetry.failed }
  }
  await t.test('by a collector that takes them', async t => {
    const receiver = await startReceiver('grpc')
    t.teardown(() => receiver.close())
    const { dropped, failed } = await wave(receiver, () => {})
    const { length } = await receiver.spans(1)
    t.ok(dropped > 0)
    t.equal(failed, 0)
    t.equal(length + dropped, made)
  })

  await t.test('by one that refuses them', async t => {
    const receiver = await startReceiver('grpc', { conduct: 'reject' })
    t.teardown(() => receiver.close())
    const { dropped, failed } = await wave(receiver, async telemetry => {
      while (telemetry.failed < 100) await turn()
    })
    t.equal(dropped + failed, made)
  })

  await t.test('by one that hangs: no more wait than there is room for', async t => {
    const receiver = await startReceiver('grpc', { conduct: 'hang' })
    t.teardown(() => receiver.close())
    let waiting = 0
    await wave(receiver, async telemetry => {
      await receiver.arrived(1)
      for (let span = 0; span < made; span++) trace.getTracer('kit').startSpan('one').end()
      waiting = 2 * made - telemetry.dropped - telemetry.failed
    })
    t.ok(waiting <= 150, `${waiting}: the queue, and a batch under way`)
  })

  // Here, one after the other: a process has one SDK.
  await t.test('the log says where spans go, and what is wrong there', async t => {
    const receiver = await startReceiver('http/protobuf')
    t.teardown(() => receiver.close())
    const { OTEL_EXPORTER_OTLP_ENDPOINT: endpoint } = receiver.env
    const { promise: wrong, resolve } = Promise.withResolvers<object>()
    const lines: object[] = []
    const log = { ...silent, info: (fields: object, words: string) => lines.push({ ...fields, words }), error: resolve }
    const others = { captureContent: false, maxContentLength: 0, legacyAttributes: false, instrumentation: false }
    const settings = { endpoint, protocol: 'grpc', serviceName: 'kit', metrics: false, ...others } as const
    const telemetry = await startTelemetry(settings, { OTEL_BSP_SCHEDULE_DELAY: '10' }, log)
    trace.getTracer('kit').startSpan('one').end()
    t.match(await wrong, { endpoint, protocol: 'grpc', reason: /./ }, 'gRPC is not what it speaks')
    await telemetry.stop()
    forgetSdk()
    t.match(lines, [{ endpoint, protocol: 'grpc', words: 'OpenTelemetry is on' }])

    const elsewhere = { OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: `${endpoint}/?token=secret`, OTEL_SDK_DISABLED: 'true' }
    const off = await startTelemetry({ ...settings, protocol: 'http/protobuf' }, elsewhere, log)
    await off.stop()
    forgetSdk()
    t.equal(lines.length, 1, 'of what is switched off it says nothing')
  })
})
