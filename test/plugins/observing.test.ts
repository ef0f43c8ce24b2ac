import { test } from 'tap'
import type { RoutingOptions } from '../../app.ts'
import type { CallRecord } from '../../schemas/call-record.ts'
import { Cancelled, UpstreamError } from '../../schemas/errors.ts'
import { createEventBus, type GatewayEvent } from '../../schemas/events.ts'
import { chunkFrames } from '../../schemas/frames.ts'
import type { Expense } from '../../schemas/gateway.ts'
import { newTraceId, traceIdOf } from '../../schemas/trace.ts'
import { hello, stack } from '../helper.ts'
import { completion, json, turn } from '../upstream.ts'
import { ask, askStream, chunk, fails, feed, host, reader, says, scripted, watched } from './kernel.ts'

const traceparent = '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01'
const traceId = '0af7651916cd43dd8448eb211c80319c'
const hex = /^[0-9a-f]{32}$/

test('trace ids', async t => {
  t.test('a new one is 32 hex digits, and no two are the same', async t => {
    const ids = Array.from({ length: 10_000 }, newTraceId)
    t.ok(ids.every(id => hex.test(id)))
    t.equal(new Set(ids).size, 10_000)
  })

  t.test('a traceparent that is none has no id', async t => {
    t.equal(traceIdOf(traceparent), traceId)
    t.equal(traceIdOf(`01${traceparent.slice(2)}-more`), traceId, 'a later version may say more')
    for (const wrong of [
      undefined,
      '',
      traceId,
      `${traceparent}-more`,
      `ff${traceparent.slice(2)}`,
      traceparent.toUpperCase(),
      traceparent.replace(traceId, '0'.repeat(32)),
      traceparent.replace('b7ad6b7169203331', '0'.repeat(16)),
      `01${traceparent.slice(2)}-${'x'.repeat(300)}`
    ]) {
      t.equal(traceIdOf(wrong), null, String(wrong).slice(0, 60))
    }
  })

  t.test('every answer carries one as x-trace-id', async t => {
    const { app, url, upstream } = await stack(t)
    upstream.script(json(completion({ content: 'Hello' })))
    const post = (payload: unknown, headers = {}) =>
      app.inject({
        method: 'POST',
        url: '/v1/chat/completions',
        headers: { 'content-type': 'application/json', ...headers },
        payload: typeof payload === 'string' ? payload : JSON.stringify(payload)
      })

    const answers = {
      whole: await post(hello),
      'malformed JSON': await post('{'),
      'a schema fault': await post({ ...hello, temperature: 'hot' }),
      'an unknown model': await post({ ...hello, model: 'nobody' }),
      'an unknown path': await app.inject('/nowhere'),
      health: await app.inject('/health'),
      models: await app.inject('/v1/models'),
      'no credential where one is needed': await app.inject('/api/stats')
    }
    t.equal(answers.whole.statusCode, 200)
    for (const [name, { headers }] of Object.entries(answers)) t.match(headers['x-trace-id'], hex, name)
    const malformed = await fetch(`${url}/%zz`)
    t.match(malformed.headers.get('x-trace-id'), hex, 'a path that cannot be read')
  })

  t.test('that of the client is taken over, into the answer and the call', async t => {
    const { app, upstream } = await stack(t)
    upstream.script(json(completion({ content: 'Hello' })))

    const answer = await app.inject({
      method: 'POST',
      url: '/v1/chat/completions',
      headers: { traceparent },
      payload: hello
    })
    t.equal(answer.headers['x-trace-id'], traceId)
    const refused = await app.inject({ url: '/nowhere', headers: { traceparent } })
    t.equal(refused.headers['x-trace-id'], traceId)
    const nonsense = await app.inject({ url: '/nowhere', headers: { traceparent: 'nonsense' } })
    t.match(nonsense.headers['x-trace-id'], hex)
  })

  t.test('a call in process has one too', async t => {
    const { gateway } = await watched(t)
    const { facts } = await gateway.complete(ask, gateway.caller())
    t.match(facts.traceId, hex)
    const joined = await gateway.complete(ask, gateway.caller({ trace: { traceparent } }))
    t.equal(joined.facts.traceId, traceId)
  })
})

test('the bus of events', async t => {
  const data = { id: 'req_1', tenant: 'public', key: null, model: 'm', stream: false, trace_id: traceId }

  t.test('tells every listener, in order, until it is told to stop', async t => {
    const heard: GatewayEvent[] = []
    const bus = createEventBus(error => t.fail(String(error)))
    t.equal(bus.heard, false)
    bus.emit('model.request.start', data)
    const off = bus.on(event => heard.push(event))
    t.equal(bus.heard, true)
    bus.emit('model.request.start', data)
    off()
    off()
    t.equal(bus.heard, false)
    bus.emit('model.request.start', data)
    t.match(heard, [{ type: 'model.request.start', data }])
    t.equal(heard.length, 1)
  })

  t.test('goes on past a listener that throws', async t => {
    const failures: unknown[] = []
    const heard: GatewayEvent[] = []
    const bus = createEventBus(error => failures.push(error))
    const fault = new Error('not me')
    bus.on(() => {
      throw fault
    })
    bus.on(event => heard.push(event))
    bus.emit('model.request.start', data)
    t.equal(failures.length, 1)
    t.equal(failures[0], fault)
    t.equal(heard.length, 1)
  })

  t.test('tells a listener of one type of nothing else', async t => {
    const heard: string[] = []
    const bus = createEventBus(error => t.fail(String(error)))
    bus.on('model.request.start', event => heard.push(`${event.type} ${event.data.id}`))
    bus.emit('tenant.deleted', { actor: 'admin', tenant: 'acme' })
    bus.emit('model.request.start', data)
    t.strictSame(heard, ['model.request.start req_1'])
  })

  t.test('says of a listener that fails later that it did', async t => {
    const failures: unknown[] = []
    const bus = createEventBus(error => failures.push(error))
    const fault = new Error('not me')
    bus.on(() => Promise.reject(fault))
    bus.emit('model.request.start', data)
    await turn()
    t.equal(failures.length, 1)
    t.equal(failures[0], fault)
  })

  t.test('knows one function that listens twice as two listeners', async t => {
    let told = 0
    const bus = createEventBus(error => t.fail(String(error)))
    const listener = () => told++
    const off = bus.on(listener)
    bus.on(listener)
    bus.emit('model.request.start', data)
    t.equal(told, 2)
    off()
    bus.emit('model.request.start', data)
    t.equal(told, 3)
  })

  t.test('is one of each gateway', async t => {
    const [one, two] = [(await host(t)).gateway.events, (await host(t)).gateway.events]
    const heard: GatewayEvent[] = []
    one.on(event => heard.push(event))
    t.equal(one.heard, true)
    t.equal(two.heard, false)
    two.on(() => {})
    two.emit('model.request.start', data)
    t.equal(heard.length, 0)
    one.emit('model.request.start', data)
    t.equal(heard.length, 1)
  })
})

test('the record of a call', async t => {
  const usage = { prompt_tokens: 7, completion_tokens: 5, total_tokens: 12 }

  t.test('says what came of a whole answer', async t => {
    const { gateway, outcomes } = await watched(t, { providers: [scripted('up', says('Hello', usage))] })
    const { facts } = await gateway.complete(ask, gateway.caller({ tenant: 'acme' }))
    const record = outcomes[0]?.record
    t.match(record, {
      tenant: 'acme',
      key: null,
      caller: 'process',
      lane: 'process',
      model: 'test',
      stream: false,
      provider: 'up',
      target: 'm',
      status: 'settled',
      httpStatus: 200,
      error: null,
      message: null,
      attempts: 1,
      retries: 0,
      fallbacks: 0,
      cache: 'off',
      firstToken: null,
      traceId: facts.traceId
    } satisfies Partial<CallRecord>)
    t.equal(outcomes[0]?.record, record, 'it is made once')
  })

  t.test('does not repeat a key that stands where a name belongs', async t => {
    const key = 'gw_abcdefghijkl_secretsecret'
    const routing = { models: {}, routing: { passThrough: true } }
    const { gateway, outcomes } = await watched(t, { routing, providers: [scripted('up')] })
    await gateway.complete({ ...ask, model: `up/${key}` }, gateway.caller())
    t.match(outcomes[0]?.record, { model: 'up/gw_…', target: 'gw_…' })
  })

  t.test('counts repeats and moves apart', async t => {
    const targets = [
      { provider: 'one', model: 'm' },
      { provider: 'two', model: 'm' }
    ]
    const providers = () => [
      scripted('one', fails(new UpstreamError('no')), says('Hello')),
      scripted('two', says('Hello'))
    ]
    async function recordOf(test: NonNullable<RoutingOptions['models']>[string]) {
      const { gateway, outcomes } = await watched(t, {
        providers: providers(),
        routing: { pause: async () => {}, models: { test } }
      })
      await gateway.complete(ask, gateway.caller())
      return outcomes[0]?.record
    }
    const repeated = await recordOf({ retries: 1, targets: targets.slice(0, 1) })
    t.match(repeated, { provider: 'one', attempts: 2, retries: 1, fallbacks: 0 })
    const moved = await recordOf({ strategy: 'priority', retries: 1, targets })
    t.match(moved, { provider: 'two', attempts: 2, retries: 0, fallbacks: 1 })
    const models = ['m', 'n'].map(model => ({ provider: 'one', model }))
    const within = await recordOf({ strategy: 'priority', retries: 1, targets: models })
    t.match(within, { provider: 'one', target: 'n', attempts: 2, retries: 0, fallbacks: 1 })
  })

  t.test('names the fault of a call that failed', async t => {
    const { gateway, outcomes } = await watched(t, { providers: [scripted('up', fails(new TypeError('sk-secret')))] })
    await t.rejects(gateway.complete(ask, gateway.caller()))
    t.match(outcomes[0]?.record, {
      status: 'failed',
      httpStatus: 500,
      error: 'internal_error',
      message: 'The gateway failed.'
    })
  })

  t.test('says 200 of a stream that broke off: its status had left', async t => {
    const up = feed(chunkFrames([chunk('one')]))
    const { gateway, outcomes } = await watched(t, { providers: [scripted('up', up.send)] })
    const read = reader(await gateway.complete(askStream, gateway.caller()))
    await read.next()
    up.fail(new UpstreamError('it broke off'))
    await t.rejects(read.next())
    t.match(outcomes[0]?.record, { status: 'failed', httpStatus: 200, error: 'upstream_error' })
  })

  t.test('is no place for a long story', async t => {
    const story = 'x'.repeat(10_000)
    const { gateway, outcomes } = await watched(t, { providers: [scripted('up', fails(new UpstreamError(story)))] })
    await t.rejects(gateway.complete(ask, gateway.caller()))
    t.equal(outcomes[0]?.record.message?.length, 500)
  })

  t.test('says 499 of a caller that left', async t => {
    const { gateway, outcomes } = await watched(t, { providers: [scripted('up', says('one two three'))] })
    const answer = await gateway.complete(askStream, gateway.caller())
    if (!answer.stream) return t.fail('no stream')
    await answer.frames.next()
    await answer.frames.return()
    t.match(outcomes[0]?.record, { status: 'interrupted', httpStatus: 499, error: 'cancelled' })
    t.type(outcomes[0]?.record.firstToken, 'number')
  })
})

test('whoever listens to the end of a provider call', async t => {
  t.test('is told once, for streams when they end', async t => {
    const told: Array<Pick<Expense, 'number' | 'status'>> = []
    const app = await host(t, { providers: [scripted('up', says('one two'))] })
    app.gateway.interceptAttempt((attempt, next) => {
      attempt.entry.onEnded(({ number, status }) => told.push({ number, status }))
      return next(attempt)
    })
    await app.ready()
    const { gateway } = app
    await gateway.complete(ask, gateway.caller())
    t.same(told, [{ number: 1, status: 'settled' }])
    const answer = await gateway.complete(askStream, gateway.caller())
    if (!answer.stream) return t.fail('no stream')
    t.equal(told.length, 1)
    for await (const _frames of answer.frames);
    t.same(told[1], { number: 1, status: 'settled' })
    const left = await gateway.complete(askStream, gateway.caller())
    if (!left.stream) return t.fail('no stream')
    await left.frames.return()
    t.same(told[2], { number: 1, status: 'interrupted' })
    t.equal(told.length, 3)
  })

  t.test('cannot break the call, and is told at once of what has ended', async t => {
    const lines: string[] = []
    const app = await host(t, {
      providers: [scripted('up', fails(new Cancelled()), says('Hello'))],
      log: line => void lines.push(line)
    })
    let late: Expense['status'] | null = null
    app.gateway.interceptAttempt(async (attempt, next) => {
      attempt.entry.onEnded(() => {
        throw new Error('not me')
      })
      try {
        return await next(attempt)
      } finally {
        attempt.inference.onSettled(() => attempt.entry.onEnded(({ status }) => (late = status)))
      }
    })
    await app.ready()
    await t.rejects(app.gateway.complete(ask, app.gateway.caller()))
    t.equal(late, 'interrupted')
    t.match(lines.join(''), /a listener of a call failed/)
  })
})
