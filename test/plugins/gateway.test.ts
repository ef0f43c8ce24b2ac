import { getEventListeners } from 'node:events'
import { mock } from 'node:test'
import Fastify from 'fastify'
import t from 'tap'
import gateway from '../../plugins/gateway/index.ts'
import routing from '../../plugins/routing/index.ts'
import { Cancelled, ModelNotFound, ShuttingDown, UpstreamError, UpstreamTimeout } from '../../schemas/errors.ts'
import { chunkFrames, type Frames } from '../../schemas/frames.ts'
import type { Inference, Layer, Outcome, Stage } from '../../schemas/gateway.ts'
import { stages } from '../../schemas/gateway.ts'
import { build } from '../helper.ts'
import { gate, turn } from '../upstream.ts'
import {
  ask,
  askStream,
  chunk,
  completion,
  fails,
  feed,
  finish,
  host,
  nothingLeft,
  patient,
  reader,
  rejection,
  role,
  says,
  scripted,
  silent,
  streams,
  textOf,
  tokens,
  usageChunk,
  watched
} from './kernel.ts'

/** Time stands still. Before the first call: a timer belongs to the clock that it was set by. */
function clock(t: { teardown(fn: () => void): void }): void {
  mock.timers.enable({ apis: ['setTimeout'] })
  t.teardown(() => mock.timers.reset())
}

const passOn: Layer = (inference, next) => next(inference)

t.test('layers', async t => {
  t.test('run in the order of the stages, outermost first, whatever the order of registration', async t => {
    const app = await host(t)
    const passed: string[] = []
    for (const stage of stages.toReversed()) {
      app.gateway.intercept(stage, async (inference, next) => {
        passed.push(`into ${stage}`)
        const answer = await next(inference)
        passed.push(`out of ${stage}`)
        return answer
      })
    }
    await app.ready()
    await app.gateway.complete(ask, app.gateway.caller())
    t.strictSame(passed, [
      ...stages.map(stage => `into ${stage}`),
      ...stages.toReversed().map(stage => `out of ${stage}`)
    ])
  })

  t.test('of one stage run in the order of registration', async t => {
    const app = await host(t)
    const passed: number[] = []
    for (const number of [1, 2, 3]) {
      app.gateway.intercept('shape', (inference, next) => {
        passed.push(number)
        return next(inference)
      })
    }
    await app.ready()
    await app.gateway.complete(ask, app.gateway.caller())
    t.strictSame(passed, [1, 2, 3])
  })

  t.test('of an unknown stage are refused with the list of stages', async t => {
    const app = await host(t)
    t.throws(() => app.gateway.intercept('perform' as Stage, passOn), {
      message: `Unknown stage 'perform': the stages are ${stages.join(', ')}.`
    })
  })

  t.test('of an inherited name are refused as unknown', async t => {
    const app = await host(t)
    t.throws(() => app.gateway.intercept('constructor' as Stage, passOn), { message: /^Unknown stage/ })
  })

  t.test('are refused once the instance is ready', async t => {
    const app = await host(t)
    await app.ready()
    t.throws(() => app.gateway.intercept('cache', passOn), { message: /^gateway\.intercept is refused once/ })
  })

  t.test('around attempts are refused once the instance is ready', async t => {
    const app = await host(t)
    await app.ready()
    t.throws(() => app.gateway.interceptAttempt((attempt, next) => next(attempt)), {
      message: /^gateway\.interceptAttempt is refused once/
    })
  })

  t.test('of a host app see the calls of its routes and of its own code', async t => {
    const app = await build(t)
    const lanes: string[] = []
    app.gateway.intercept('admit', (inference, next) => {
      lanes.push(inference.origin.lane)
      return next(inference)
    })
    await app.ready()
    const payload = { model: 'echo/echo', messages: ask.messages }
    const response = await app.inject({ method: 'POST', url: '/v1/chat/completions', payload })
    t.equal(response.statusCode, 200, response.body)
    await app.gateway.complete({ ...ask, model: 'echo/echo' }, app.gateway.caller())
    t.strictSame(lanes, ['http', 'process'])
  })

  t.test('answer by themselves without calling next', async t => {
    const up = scripted('up')
    const app = await host(t, { providers: [up] })
    app.gateway.intercept('cache', async inference => {
      inference.facts.cache = 'hit'
      return { stream: false, raw: null, body: completion('from the cache') }
    })
    await app.ready()
    const answer = await app.gateway.complete(ask, app.gateway.caller())
    t.equal(await textOf(answer), 'from the cache')
    t.match(answer.facts, { cache: 'hit', attempts: 0, target: null })
    t.equal(up.attempts.length, 0)
    nothingLeft(t, app)
  })

  t.test('answer a stream by themselves', async t => {
    const app = await host(t)
    app.gateway.intercept('cache', says('from the cache') as unknown as Layer)
    await app.ready()
    const answer = await app.gateway.complete(askStream, app.gateway.caller())
    t.equal(await textOf(answer), 'from the cache')
    nothingLeft(t, app)
  })

  t.test('call next again to repair an answer', async t => {
    const up = scripted('up', says('broken'), says('mended'))
    const app = await host(t, { providers: [up] })
    app.gateway.intercept('shape', async (inference, next) => {
      await next(inference)
      inference.request = { ...inference.request, messages: [{ role: 'user', content: 'Again' }] }
      return next(inference)
    })
    await app.ready()
    const answer = await app.gateway.complete(ask, app.gateway.caller())
    t.equal(await textOf(answer), 'mended')
    t.equal(answer.facts.attempts, 2)
    t.strictSame(
      up.attempts.map(({ number, request }) => [number, request.messages[0]?.content]),
      [
        [1, 'Hello'],
        [2, 'Again']
      ]
    )
  })

  t.test('catch what the inner ones throw', async t => {
    const app = await host(t, { providers: [scripted('up', fails(new UpstreamError('broken')))] })
    app.gateway.intercept('observe', async (inference, next) => {
      try {
        return await next(inference)
      } catch (error) {
        return { stream: false, raw: null, body: completion(`caught: ${error}`) }
      }
    })
    await app.ready()
    const answer = await app.gateway.complete(ask, app.gateway.caller())
    t.match(await textOf(answer), /^caught: .*broken/)
  })

  t.test('see the route resolved again when they replace the model', async t => {
    const targets = (model: string) => ({ targets: [{ provider: 'up', model }] })
    const up = scripted('up')
    const app = await host(t, { providers: [up], routing: { models: { test: targets('a'), other: targets('b') } } })
    const aliases: string[] = []
    app.gateway.intercept('shape', (inference, next) => {
      aliases.push(inference.route.alias)
      inference.request = { ...inference.request, model: 'other' }
      aliases.push(inference.route.alias)
      return next(inference)
    })
    await app.ready()
    const { facts } = await app.gateway.complete(ask, app.gateway.caller())
    t.strictSame(aliases, ['test', 'other'])
    t.equal(facts.target?.model, 'b')
    t.equal(up.attempts[0]?.request.model, 'b')
    t.equal(ask.model, 'test', 'the request of the caller is not touched')
  })

  t.test('get ModelNotFound when they replace the model by an unknown one', async t => {
    const up = scripted('up')
    const app = await host(t, { providers: [up] })
    app.gateway.intercept('shape', async (inference, next) => {
      inference.request = { ...inference.request, model: 'nowhere' }
      return next(inference)
    })
    await app.ready()
    const error = await rejection(app.gateway.complete(ask, app.gateway.caller()))
    t.type(error, ModelNotFound)
    t.match(error, { statusCode: 404, param: 'model' })
    t.equal(up.attempts.length, 0)
    nothingLeft(t, app)
  })

  t.test('do not run for an unknown model', async t => {
    const app = await host(t)
    app.gateway.intercept('seal', () => t.fail('it ran') as never)
    await app.ready()
    const error = await rejection(app.gateway.complete({ ...ask, model: 'nowhere' }, app.gateway.caller()))
    t.type(error, ModelNotFound)
    nothingLeft(t, app)
  })

  t.test('do not run for an unknown model or a caller who has left, of which those are told who ask', async t => {
    const lines: string[] = []
    const app = await host(t, { log: line => lines.push(line) })
    const told: unknown[] = []
    app.gateway.onRefused(() => {
      throw new Error('a listener that fails')
    })
    app.gateway.onRefused(error => told.push(error))
    await app.ready()
    const { gateway } = app
    const unknown = await rejection(gateway.complete({ ...ask, model: 'nowhere' }, gateway.caller()))
    const left = await rejection(gateway.complete(ask, gateway.caller({ signal: AbortSignal.abort() })))
    await gateway.complete(ask, gateway.caller())
    t.strictSame(told, [unknown, left])
    t.match(lines.join(), /a listener that fails/)
    t.throws(() => gateway.onRefused(() => {}), /refused once the instance is ready/)
  })

  t.test('replace the body of a whole answer', async t => {
    const raw = Buffer.from('{}')
    const up = scripted('up', async () => ({ stream: false, raw, body: completion('before') }))
    const app = await host(t, { providers: [up] })
    app.gateway.intercept('shape', async (inference, next) => {
      const answer = await next(inference)
      if (answer.stream) return answer
      return { stream: false, raw: null, body: { ...answer.body, choices: [], changed: true } }
    })
    await app.ready()
    const answer = await app.gateway.complete(ask, app.gateway.caller())
    t.match(answer, { stream: false, raw: null, body: { id: 'c1', choices: [], changed: true } })
  })

  t.test('that change nothing leave the raw bytes of a whole answer', async t => {
    const raw = Buffer.from('{"id":"c1"}')
    const up = scripted('up', async () => ({ stream: false, raw, body: completion('x') }))
    const app = await host(t, { providers: [up] })
    app.gateway.intercept('shape', passOn)
    await app.ready()
    const answer = await app.gateway.complete(ask, app.gateway.caller())
    t.equal(!answer.stream && answer.raw, raw)
  })

  t.test('map the frames of a stream', async t => {
    const app = await host(t, { providers: [scripted('up', says('one two', tokens(3, 2)))] })
    app.gateway.intercept('shape', async (inference, next) => {
      const answer = await next(inference)
      return answer.stream ? { stream: true, frames: shout(answer.frames) } : answer
    })
    let usage: Inference['usage'] | null = null
    app.gateway.intercept('observe', (inference, next) => {
      inference.onSettled(() => (usage = inference.usage))
      return next(inference)
    })
    await app.ready()
    const answer = await app.gateway.complete(askStream, app.gateway.caller())
    t.equal(await textOf(answer), 'ONE TWO')
    t.match(usage, { input: 3, output: 2, source: 'reported' })
    nothingLeft(t, app)

    async function* shout(frames: AsyncIterable<Frames>): AsyncGenerator<Frames> {
      for await (const read of frames) {
        const chunks = Array.from(read, chunk => ({
          ...chunk,
          choices: chunk.choices.map(choice => {
            const { content } = choice.delta
            return { ...choice, delta: { ...choice.delta, content: content?.toUpperCase() } }
          })
        }))
        yield chunkFrames(chunks)
      }
    }
  })

  t.test('that throw at once fail the call like those that reject', async t => {
    const app = await host(t)
    const thrown = new Error('at once')
    app.gateway.intercept('seal', () => {
      throw thrown
    })
    await app.ready()
    t.equal(await rejection(app.gateway.complete(ask, app.gateway.caller())), thrown)
    nothingLeft(t, app)
  })

  t.test('that throw something else than an error fail the call with it, and listeners get an error', async t => {
    const app = await host(t)
    const outcomes: Outcome[] = []
    app.gateway.intercept('seal', async inference => {
      inference.onSettled(outcome => outcomes.push(outcome))
      throw 'just text'
    })
    await app.ready()
    t.equal(await rejection(app.gateway.complete(ask, app.gateway.caller())), 'just text' as unknown as Error)
    t.match(outcomes, [{ status: 'failed', error: { cause: 'just text' } }])
    t.type(outcomes[0]?.error, Error)
    nothingLeft(t, app)
  })

  t.test('that answer with nothing fail the call', async t => {
    const app = await host(t)
    app.gateway.intercept('seal', (async () => {}) as unknown as Layer)
    await app.ready()
    t.type(await rejection(app.gateway.complete(ask, app.gateway.caller())), TypeError)
    nothingLeft(t, app)
  })

  t.test('that are not asynchronous fail the call', async t => {
    const app = await host(t)
    app.gateway.intercept('seal', (() => ({ stream: false })) as unknown as Layer)
    await app.ready()
    t.type(await rejection(app.gateway.complete(ask, app.gateway.caller())), TypeError)
    nothingLeft(t, app)
  })

  t.test('do not reach a provider any more when the caller left meanwhile', async t => {
    const up = scripted('up')
    const { promise, open } = gate()
    const app = await host(t, { providers: [up] })
    app.gateway.intercept('authorize', async (inference, next) => {
      await promise
      return next(inference)
    })
    await app.ready()
    const leaving = new AbortController()
    const answering = rejection(app.gateway.complete(ask, app.gateway.caller({ signal: leaving.signal })))
    leaving.abort()
    t.type(await answering, Cancelled)
    open()
    await turn()
    t.equal(up.attempts.length, 0)
  })
})

t.test('the kernel', async t => {
  t.test('refuses calls before the instance is ready', async t => {
    const app = await host(t)
    const error = await rejection(app.gateway.complete(ask, app.gateway.caller()))
    t.match(error, { message: /not ready.*app\.ready\(\)/ })
    await app.ready()
    t.ok(await app.gateway.complete(ask, app.gateway.caller()))
  })

  t.test('refuses a name that is taken, by itself or by a plugin', async t => {
    const app = await host(t)
    t.throws(() => app.gateway.decorate('complete', async () => Promise.reject()), { message: /complete is taken/ })
    t.throws(() => app.gateway.decorate('providers', app.gateway.providers), { message: /providers is taken/ })
    const authenticate = () => app.gateway.caller().principal
    app.gateway.decorate('authenticate', authenticate)
    t.equal(app.gateway.authenticate, authenticate)
    t.throws(() => app.gateway.decorate('authenticate', authenticate), { message: /authenticate is taken/ })
  })

  t.test('lives twice in one host, each with its own providers', async t => {
    const app = Fastify()
    t.teardown(() => app.close())
    const kernels: (typeof app.gateway)[] = []
    for (const name of ['one', 'two']) {
      app.register(async scope => {
        await scope.register(gateway)
        await scope.register(routing)
        scope.gateway.providers.register(scripted(name, says(`from ${name}`)))
        kernels.push(scope.gateway)
      })
    }
    await app.ready()
    t.notOk('gateway' in app)
    const [one, two] = kernels
    t.equal(await textOf(await one!.complete({ ...ask, model: 'one/m' }, one!.caller())), 'from one')
    t.equal(await textOf(await two!.complete({ ...ask, model: 'two/m' }, two!.caller())), 'from two')
    t.type(await rejection(one!.complete({ ...ask, model: 'two/m' }, one!.caller())), ModelNotFound)
  })

  t.test('of an inner scope hides that of the outer one', async t => {
    const app = await host(t, { providers: [scripted('up', says('outer'))] })
    let inner: typeof app.gateway | undefined
    app.register(async scope => {
      await scope.register(gateway)
      await scope.register(routing)
      scope.gateway.providers.register(scripted('up', says('inner')))
      inner = scope.gateway
    })
    await app.ready()
    t.equal(await textOf(await app.gateway.complete(ask, app.gateway.caller())), 'outer')
    t.equal(await textOf(await inner!.complete({ ...ask, model: 'up/m' }, inner!.caller())), 'inner')
  })

  t.test('is refused twice in one scope', async t => {
    const app = Fastify()
    t.teardown(() => app.close())
    app.register(gateway)
    app.register(gateway)
    t.match(await rejection(app.ready() as unknown as Promise<void>), { message: /gateway is registered twice/ })
  })

  t.test('does not start without routing and says what to register', async t => {
    const app = Fastify()
    t.teardown(() => app.close())
    app.register(gateway)
    t.match(await rejection(app.ready() as unknown as Promise<void>), {
      message: 'The gateway cannot route: register the plugin routing after gateway.'
    })
  })

  t.test('has to be there before routing, and the error names both', async t => {
    const app = Fastify()
    t.teardown(() => app.close())
    app.register(routing)
    app.register(gateway)
    const error = await rejection(app.ready() as unknown as Promise<void>)
    t.match(error.message, /'gateway'/)
    t.match(error.message, /'routing'/)
  })

  t.test('refuses what is added after somebody has looked for it, and names both', async t => {
    const app = await host(t)
    t.equal(app.gateway.optional('store', 'budgets'), undefined)
    t.throws(() => app.gateway.decorate('store', undefined), { message: /gateway\.store .* after budgets/ })
  })

  t.test('refuses a second router and a second accountant', async t => {
    const app = await host(t)
    t.throws(
      () => app.gateway.routeWith({ resolve: () => t.fail() as never, dispatch: async () => t.fail() as never }),
      {
        message: /routes already/
      }
    )
    app.gateway.accountWith({ open() {} })
    app.gateway.accountWith({ cost: () => 0 })
    t.throws(() => app.gateway.accountWith({ open() {} }), { message: /keeps the books already/ })
    t.throws(() => app.gateway.accountWith({ cost: () => 0 }), { message: /knows the prices already/ })
  })

  t.test('makes callers of this process: public unless they name a tenant, each with its own id', async t => {
    const { gateway } = await watched(t)
    const caller = gateway.caller()
    t.match(caller, { principal: { tenant: 'public', kind: 'process', key: null }, origin: { lane: 'process' } })
    t.notOk(caller.signal.aborted)
    t.equal(gateway.caller({ tenant: 'acme' }).principal.tenant, 'acme')
    t.not(gateway.caller().id, caller.id)
    t.equal(new Set(Array.from({ length: 10_000 }, () => gateway.newId())).size, 10_000)
  })

  t.test('hands the caller to the layers as it is', async t => {
    const app = await host(t)
    let seen: Inference | undefined
    app.gateway.intercept('admit', (inference, next) => {
      seen = inference
      return next(inference)
    })
    await app.ready()
    const trace = { traceparent: '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01' }
    const caller = app.gateway.caller({ tenant: 'acme', trace, deadline: 5_000, idempotencyKey: 'again' })
    await app.gateway.complete(ask, caller)
    const { id, principal, deadline, idempotencyKey, origin } = caller
    t.match(seen, { id, principal, trace, deadline, idempotencyKey, origin, operation: 'chat', request: ask })
    t.not(seen?.signal, caller.signal, 'the signal of a call also ends with its deadline')
  })

  t.test('names every dependency in its readiness, also one that fails', async t => {
    const app = await host(t, { log: () => {} })
    app.gateway.dependency('fine', () => ({ ok: true, latency: 3 }))
    app.gateway.dependency('down', async () => Promise.reject(new Error('secret address')))
    t.throws(() => app.gateway.dependency('fine', () => ({ ok: true })), { message: /'fine' is taken/ })
    t.match(await app.gateway.readiness(), { ok: false, checks: { gateway: { ok: false } } }, 'not ready yet')
    await app.ready()
    const { ok, checks } = await app.gateway.readiness()
    t.equal(ok, false)
    t.strictSame(
      Object.entries(checks).map(([name, { ms, ...known }]) => [name, known, typeof ms]),
      [
        ['gateway', { ok: true, running: 0 }, 'number'],
        ['targets', { ok: true, up: ['up/m'], down: [] }, 'number'],
        ['fine', { ok: true, latency: 3 }, 'number'],
        ['down', { ok: false }, 'number']
      ]
    )
  })
})

t.test('onSettled', async t => {
  t.test('is awaited before a whole answer is given', async t => {
    const { promise, open } = gate()
    const app = await host(t)
    app.gateway.intercept('budget', (inference, next) => {
      inference.onSettled(() => promise)
      return next(inference)
    })
    await app.ready()
    let given = false
    const answering = app.gateway.complete(ask, app.gateway.caller()).then(() => (given = true))
    await turn()
    t.notOk(given)
    t.equal(app.gateway.running, 1)
    open()
    await answering
    nothingLeft(t, app)
  })

  t.test('is awaited before a stream ends', async t => {
    const { promise, open } = gate()
    const app = await host(t, { providers: [scripted('up', streams(chunkFrames([chunk('x'), finish()])))] })
    app.gateway.intercept('budget', (inference, next) => {
      inference.onSettled(() => promise)
      return next(inference)
    })
    await app.ready()
    const frames = reader(await app.gateway.complete(askStream, app.gateway.caller()))
    t.notOk((await frames.next()).done)
    let ended = false
    const ending = frames.next().then(read => (ended = read.done === true))
    await turn()
    t.notOk(ended)
    open()
    t.ok(await ending)
    nothingLeft(t, app)
  })

  t.test('is awaited before a failure is told', async t => {
    const { promise, open } = gate()
    const app = await host(t, { providers: [scripted('up', fails(new UpstreamError('broken')))] })
    app.gateway.intercept('budget', (inference, next) => {
      inference.onSettled(() => promise)
      return next(inference)
    })
    await app.ready()
    let told = false
    const answering = rejection(app.gateway.complete(ask, app.gateway.caller())).then(() => (told = true))
    await turn()
    t.notOk(told)
    open()
    await answering
    nothingLeft(t, app)
  })

  t.test('is awaited before a reader is told of an end that came while nobody read', async t => {
    const { promise, open } = gate()
    const app = await host(t, { providers: [scripted('up', feed(chunkFrames([chunk('x')])).send)] })
    app.gateway.intercept('budget', (inference, next) => {
      inference.onSettled(() => promise)
      return next(inference)
    })
    await app.ready()
    const leaving = new AbortController()
    const frames = reader(await app.gateway.complete(askStream, app.gateway.caller({ signal: leaving.signal })))
    leaving.abort()
    let told = false
    const reading = rejection(frames.next()).then(error => {
      told = true
      return error
    })
    await turn()
    t.notOk(told)
    open()
    t.type(await reading, Cancelled)
    nothingLeft(t, app, leaving.signal)
  })

  t.test('runs once for a whole answer', async t => {
    const { app, gateway, outcomes } = await watched(t)
    await gateway.complete(ask, gateway.caller())
    t.match(outcomes, [{ status: 'completed', error: null, duration: Number }])
    t.equal(outcomes.length, 1)
    nothingLeft(t, app)
  })

  t.test('runs once for a stream, however often the reader asks after the end', async t => {
    const { app, gateway, outcomes } = await watched(t)
    const frames = reader(await gateway.complete(askStream, gateway.caller()))
    while (!(await frames.next()).done) t.equal(outcomes.length, 0)
    t.ok((await frames.next()).done)
    await frames.return()
    t.match(outcomes, [{ status: 'completed', error: null }])
    t.equal(outcomes.length, 1)
    nothingLeft(t, app)
  })

  t.test('runs once when the provider fails', async t => {
    const fault = new UpstreamError('broken')
    const { app, gateway, outcomes } = await watched(t, { providers: [scripted('up', fails(fault))] })
    t.equal(await rejection(gateway.complete(ask, gateway.caller())), fault)
    t.strictSame(
      outcomes.map(({ status, error }) => [status, error]),
      [['failed', fault]]
    )
    nothingLeft(t, app)
  })

  t.test('runs once when a stream fails in the middle', async t => {
    const source = feed(chunkFrames([chunk('x')]))
    const { app, gateway, outcomes } = await watched(t, { providers: [scripted('up', source.send)] })
    const frames = reader(await gateway.complete(askStream, gateway.caller()))
    await frames.next()
    const fault = new UpstreamError('broken')
    source.fail(fault)
    t.equal(await rejection(frames.next()), fault)
    t.ok((await frames.next()).done, 'the fault is told once')
    t.strictSame(
      outcomes.map(({ status, error }) => [status, error]),
      [['failed', fault]]
    )
    nothingLeft(t, app)
  })

  t.test('runs once when the reader breaks off', async t => {
    const source = feed(chunkFrames([chunk('x')]))
    const up = scripted('up', source.send)
    const { app, gateway, outcomes } = await watched(t, { providers: [up] })
    const answer = await gateway.complete(askStream, gateway.caller())
    if (answer.stream) for await (const _ of answer.frames) break
    t.match(outcomes, [{ status: 'cancelled', error: Cancelled }])
    t.equal(outcomes.length, 1)
    t.equal(source.closed, 1, 'the provider is told')
    t.ok(up.attempts[0]?.signal.aborted)
    nothingLeft(t, app)
  })

  t.test('runs once when the reader breaks off during a read', async t => {
    const source = feed(chunkFrames([chunk('x')]))
    const { app, gateway, outcomes } = await watched(t, { providers: [scripted('up', source.send)] })
    const frames = reader(await gateway.complete(askStream, gateway.caller()))
    await frames.next()
    const reading = frames.next()
    t.match(await frames.return(), { done: true })
    t.match(await reading, { done: true })
    t.match(outcomes, [{ status: 'cancelled' }])
    t.equal(source.closed, 1)
    nothingLeft(t, app)
  })

  t.test('runs once when the reader breaks off before the first read', async t => {
    const source = feed(chunkFrames([chunk('x')]))
    const { app, gateway, outcomes } = await watched(t, { providers: [scripted('up', source.send)] })
    const frames = reader(await gateway.complete(askStream, gateway.caller()))
    await frames.return()
    t.ok((await frames.next()).done)
    t.match(outcomes, [{ status: 'cancelled' }])
    t.equal(source.closed, 1)
    nothingLeft(t, app)
  })

  t.test('runs once when the caller leaves and nobody ever read the stream', async t => {
    const source = feed(chunkFrames([chunk('x')]))
    const { app, gateway, outcomes } = await watched(t, { providers: [scripted('up', source.send)] })
    const leaving = new AbortController()
    const answer = await gateway.complete(askStream, gateway.caller({ signal: leaving.signal }))
    leaving.abort()
    await turn()
    t.match(outcomes, [{ status: 'cancelled' }])
    t.equal(outcomes.length, 1)
    t.equal(source.closed, 1, 'the stream of the provider is closed')
    nothingLeft(t, app, leaving.signal)
    const frames = reader(answer)
    t.type(await rejection(frames.next()), Cancelled)
    t.ok((await frames.next()).done)
  })

  t.test('does not run for a caller that left before', async t => {
    const up = scripted('up')
    const { app, gateway, outcomes } = await watched(t, { providers: [up] })
    const signal = AbortSignal.abort()
    t.type(await rejection(gateway.complete(ask, gateway.caller({ signal }))), Cancelled)
    t.equal(outcomes.length, 0)
    t.equal(up.attempts.length, 0)
    nothingLeft(t, app, signal)
  })

  for (const [kind, provider] of Object.entries({ patient, silent })) {
    t.test(`runs once when the caller leaves while a ${kind} provider thinks`, async t => {
      const up = scripted('up', provider)
      const { app, gateway, outcomes } = await watched(t, { providers: [up] })
      const leaving = new AbortController()
      const answering = rejection(gateway.complete(ask, gateway.caller({ signal: leaving.signal })))
      await turn()
      t.equal(gateway.running, 1)
      leaving.abort()
      t.type(await answering, Cancelled)
      t.ok(up.attempts[0]?.signal.aborted)
      t.match(outcomes, [{ status: 'cancelled', error: { statusCode: 499 } }])
      t.equal(outcomes.length, 1)
      nothingLeft(t, app, leaving.signal)
    })
  }

  t.test('runs once when the caller leaves in the middle of a read', async t => {
    const source = feed(chunkFrames([chunk('x')]))
    const { app, gateway, outcomes } = await watched(t, { providers: [scripted('up', source.send)] })
    const leaving = new AbortController()
    const frames = reader(await gateway.complete(askStream, gateway.caller({ signal: leaving.signal })))
    await frames.next()
    const reading = rejection(frames.next())
    leaving.abort()
    t.type(await reading, Cancelled)
    t.ok((await frames.next()).done)
    t.equal(outcomes.length, 1)
    t.equal(source.closed, 1)
    nothingLeft(t, app, leaving.signal)
  })

  t.test('is over when the caller leaves after the end', async t => {
    const { app, gateway, outcomes } = await watched(t)
    const leaving = new AbortController()
    const caller = gateway.caller({ signal: leaving.signal })
    await textOf(await gateway.complete(askStream, caller))
    leaving.abort()
    await turn()
    t.match(outcomes, [{ status: 'completed' }])
    t.equal(outcomes.length, 1)
    nothingLeft(t, app, leaving.signal)
  })

  t.test('keeps to the first outcome when the caller leaves while it runs', async t => {
    const { promise, open } = gate()
    const app = await host(t)
    const outcomes: Outcome[] = []
    app.gateway.intercept('budget', (inference, next) => {
      inference.onSettled(outcome => {
        outcomes.push(outcome)
        return promise
      })
      return next(inference)
    })
    await app.ready()
    const leaving = new AbortController()
    const answering = app.gateway.complete(ask, app.gateway.caller({ signal: leaving.signal }))
    await turn()
    leaving.abort()
    open()
    t.equal((await answering).stream, false)
    t.match(outcomes, [{ status: 'completed' }])
    t.equal(outcomes.length, 1)
  })

  t.test('runs every listener, in order, though one throws and one rejects', async t => {
    const lines: string[] = []
    const app = await host(t, { log: line => lines.push(line) })
    const ran: string[] = []
    app.gateway.intercept('budget', (inference, next) => {
      inference.onSettled(() => {
        ran.push('throws')
        throw new Error('a thrown one')
      })
      inference.onSettled(async () => {
        ran.push('rejects')
        throw new Error('a rejected one')
      })
      inference.onSettled(() => ran.push('works'))
      return next(inference)
    })
    await app.ready()
    t.ok(await app.gateway.complete(ask, app.gateway.caller()))
    t.strictSame(ran, ['throws', 'rejects', 'works'])
    t.match(lines, [/a thrown one/, /a rejected one/])
    nothingLeft(t, app)
  })

  t.test('runs a listener that came after the end, once', async t => {
    const app = await host(t)
    let late: Inference | undefined
    app.gateway.intercept('budget', (inference, next) => {
      late = inference
      return next(inference)
    })
    await app.ready()
    await app.gateway.complete(ask, app.gateway.caller())
    const outcomes: Outcome[] = []
    late?.onSettled(outcome => outcomes.push(outcome))
    await turn()
    t.match(outcomes, [{ status: 'completed' }])
    t.equal(outcomes.length, 1)
  })

  t.test('closes a stream that came after the end', async t => {
    const source = feed(chunkFrames([chunk('x')]))
    const { promise, open } = gate()
    const up = scripted('up', async attempt => {
      await promise
      return source.send(attempt)
    })
    const { app, gateway, outcomes } = await watched(t, { providers: [up] })
    const leaving = new AbortController()
    const answering = rejection(gateway.complete(askStream, gateway.caller({ signal: leaving.signal })))
    await turn()
    leaving.abort()
    t.type(await answering, Cancelled)
    open()
    await turn()
    t.equal(source.closed, 1)
    t.equal(outcomes.length, 1)
    nothingLeft(t, app, leaving.signal)
  })

  t.test('takes a failure to close a stream for nothing', async t => {
    const broken: AsyncIterator<Frames> = {
      next: async () => ({ done: false, value: chunkFrames([chunk('x')]) }),
      return: async () => Promise.reject(new Error('cannot close'))
    }
    const up = scripted('up', async () => ({ stream: true, frames: { [Symbol.asyncIterator]: () => broken } }))
    const { app, gateway, outcomes } = await watched(t, { providers: [up] })
    const frames = reader(await gateway.complete(askStream, gateway.caller()))
    await frames.next()
    t.match(await frames.return(), { done: true })
    t.match(outcomes, [{ status: 'cancelled' }])
    await turn()
    nothingLeft(t, app)
  })
})

t.test('the total deadline', async t => {
  const total = (milliseconds: number) => ({
    models: { test: { targets: [{ provider: 'up', model: 'm' }], timeouts: { total: milliseconds } } }
  })

  t.test('of the route ends a call that waits for its provider', async t => {
    const up = scripted('up', silent)
    const { app, gateway, outcomes } = await watched(t, { providers: [up], routing: total(5_000) })
    clock(t)
    const answering = rejection(gateway.complete(ask, gateway.caller()))
    mock.timers.tick(4_999)
    t.equal(gateway.running, 1)
    mock.timers.tick(1)
    const error = await answering
    t.type(error, UpstreamTimeout)
    t.match(error, { statusCode: 504, message: /longer than 5000 ms in all/ })
    t.ok(up.attempts[0]?.signal.aborted)
    t.match(outcomes, [{ status: 'failed', error: UpstreamTimeout }])
    nothingLeft(t, app)
  })

  t.test('of the route ends a stream that goes on', async t => {
    const source = feed(chunkFrames([chunk('x')]))
    const options = { providers: [scripted('up', source.send)], routing: total(5_000) }
    const { app, gateway, outcomes } = await watched(t, options)
    clock(t)
    const frames = reader(await gateway.complete(askStream, gateway.caller()))
    await frames.next()
    const reading = rejection(frames.next())
    mock.timers.tick(5_000)
    t.type(await reading, UpstreamTimeout)
    t.ok((await frames.next()).done)
    t.equal(source.closed, 1)
    t.match(outcomes, [{ status: 'failed' }])
    nothingLeft(t, app)
  })

  t.test('of the route ends a stream that nobody reads', async t => {
    const source = feed(chunkFrames([chunk('x')]))
    const options = { providers: [scripted('up', source.send)], routing: total(5_000) }
    const { app, gateway, outcomes } = await watched(t, options)
    clock(t)
    const answer = await gateway.complete(askStream, gateway.caller())
    mock.timers.tick(5_000)
    await turn()
    t.match(outcomes, [{ status: 'failed', error: UpstreamTimeout }])
    t.equal(source.closed, 1)
    nothingLeft(t, app)
    t.type(await rejection(reader(answer).next()), UpstreamTimeout)
  })

  t.test('of the caller counts when it is shorter', async t => {
    const options = { providers: [scripted('up', silent)], routing: total(5_000) }
    const { gateway } = await watched(t, options)
    clock(t)
    const answering = rejection(gateway.complete(ask, gateway.caller({ deadline: 200 })))
    mock.timers.tick(200)
    t.match(await answering, { statusCode: 504, message: /200 ms/ })
  })

  t.test('of the caller does not count when it is longer', async t => {
    const options = { providers: [scripted('up', silent)], routing: total(5_000) }
    const { gateway } = await watched(t, options)
    clock(t)
    const answering = rejection(gateway.complete(ask, gateway.caller({ deadline: 60_000 })))
    mock.timers.tick(5_000)
    t.match(await answering, { statusCode: 504, message: /5000 ms/ })
  })

  t.test('may be none', async t => {
    const options = { routing: total(Number.POSITIVE_INFINITY) }
    const { gateway } = await watched(t, options)
    const warnings: Error[] = []
    const listen = (warning: Error) => warnings.push(warning)
    process.on('warning', listen)
    t.teardown(() => process.off('warning', listen))
    const frames = reader(await gateway.complete(askStream, gateway.caller({ deadline: Number.POSITIVE_INFINITY })))
    await turn()
    t.notOk((await frames.next()).done)
    await frames.return()
    t.strictSame(warnings, [])
  })

  t.test('leaves no timer behind', async t => {
    const { gateway } = await watched(t, { providers: [scripted('up', says('x'), says('x'), fails(new Error('x')))] })
    const timers = () => process.getActiveResourcesInfo().filter(name => name === 'Timeout').length
    const before = timers()
    await gateway.complete(ask, gateway.caller())
    await textOf(await gateway.complete(askStream, gateway.caller()))
    await rejection(gateway.complete(ask, gateway.caller()))
    t.equal(timers(), before)
  })
})

t.test('onFrames', async t => {
  t.test('gets the frames of the provider in order, with the usage that the client does not get', async t => {
    const sent = [
      chunkFrames([role()]),
      chunkFrames([chunk('x')]),
      chunkFrames([finish()]),
      chunkFrames([usageChunk(tokens(3, 1))])
    ]
    const app = await host(t, { providers: [scripted('up', streams(...sent))] })
    const seen: Frames[] = []
    app.gateway.intercept('observe', (inference, next) => {
      inference.onFrames(frames => seen.push(frames))
      return next(inference)
    })
    await app.ready()
    const answer = await app.gateway.complete(askStream, app.gateway.caller())
    const got: Frames[] = []
    if (answer.stream) for await (const frames of answer.frames) got.push(frames)
    t.equal(seen.length, 4)
    t.ok(seen.every((frames, index) => frames === sent[index]))
    t.equal(got.length, 3)
    t.ok(got.every((frames, index) => frames === sent[index]))
  })

  t.test('is called before the client gets the frames', async t => {
    const app = await host(t)
    const order: string[] = []
    app.gateway.intercept('observe', (inference, next) => {
      inference.onFrames(() => order.push('listener'))
      return next(inference)
    })
    await app.ready()
    const answer = await app.gateway.complete(askStream, app.gateway.caller())
    if (answer.stream) for await (const _ of answer.frames) order.push('client')
    t.strictSame(order.slice(0, 4), ['listener', 'client', 'listener', 'client'])
  })

  t.test('that throws breaks nothing: it is logged once and hears no more', async t => {
    const lines: string[] = []
    const app = await host(t, { log: line => lines.push(line), providers: [scripted('up', says('one two three'))] })
    let heard = 0
    app.gateway.intercept('observe', (inference, next) => {
      inference.onFrames(() => {
        throw new Error('a clumsy listener')
      })
      inference.onFrames(() => heard++)
      return next(inference)
    })
    await app.ready()
    const answer = await app.gateway.complete(askStream, app.gateway.caller())
    t.equal(await textOf(answer), 'one two three')
    t.equal(heard, 5)
    t.match(lines, [/a clumsy listener/])
    t.equal(lines.length, 1)
    nothingLeft(t, app)
  })
})

t.test('usage', async t => {
  const usage = {
    ...tokens(10, 8),
    prompt_tokens_details: { cached_tokens: 4, audio_tokens: 1 },
    completion_tokens_details: { reasoning_tokens: 5 }
  }
  const buckets = { input: 5, cacheRead: 4, audioInput: 1, output: 3, reasoning: 5, source: 'reported' }

  async function measured(t: Parameters<typeof host>[0], ...frames: Frames[]) {
    const providers = [scripted('up', frames.length > 0 ? streams(...frames) : says('x', usage))]
    const app = await host(t, { providers })
    const seen: Inference['usage'][] = []
    app.gateway.intercept('observe', (inference, next) => {
      seen.push(inference.usage)
      inference.onSettled(() => seen.push(inference.usage))
      return next(inference)
    })
    await app.ready()
    const run = async (request = askStream) => {
      const answer = await app.gateway.complete(request, app.gateway.caller())
      const chunks = []
      if (answer.stream) for await (const frames of answer.frames) chunks.push(...frames)
      return chunks
    }
    return { seen, run }
  }

  t.test('of a whole answer is in buckets', async t => {
    const { seen, run } = await measured(t)
    await run(ask)
    t.match(seen, [{ input: 0, output: 0, source: 'estimated' }, buckets])
  })

  t.test('that nobody asked for is taken out of a stream and counted', async t => {
    const { seen, run } = await measured(t)
    const chunks = await run()
    t.ok(chunks.every(chunk => chunk.choices.length > 0 && !chunk.usage))
    t.match(seen, [{ source: 'estimated' }, buckets])
  })

  t.test('that was asked for stays in the stream', async t => {
    const { seen, run } = await measured(t)
    const chunks = await run({ ...askStream, stream_options: { include_usage: true } })
    t.strictSame(chunks.at(-1)?.usage, usage)
    t.match(seen[1], buckets)
  })

  for (const options of [null, {}, { include_usage: false }, { include_usage: null }]) {
    t.test(`is not asked for by stream_options ${JSON.stringify(options)}`, async t => {
      const { run } = await measured(t)
      t.notOk((await run({ ...askStream, stream_options: options })).some(chunk => chunk.usage))
    })
  }

  t.test('on a chunk with choices stays', async t => {
    const last = { ...finish(), usage }
    const { seen, run } = await measured(t, chunkFrames([chunk('x')]), chunkFrames([last]))
    t.strictSame((await run()).at(-1), last)
    t.match(seen[1], buckets)
  })

  t.test('counts as it was reported last', async t => {
    const running = { ...chunk('x'), usage: tokens(10, 1) }
    const { seen, run } = await measured(t, chunkFrames([running]), chunkFrames([finish(), usageChunk(tokens(10, 7))]))
    await run()
    t.match(seen[1], { input: 10, output: 7 })
  })

  t.test('in frames of its own in the middle does not end the stream', async t => {
    const { run } = await measured(
      t,
      chunkFrames([chunk('x')]),
      chunkFrames([usageChunk(usage)]),
      chunkFrames([usageChunk(usage)]),
      chunkFrames([finish()])
    )
    t.strictSame(await run(), [chunk('x'), finish()])
  })
})

t.test('a stream', async t => {
  t.test('that ends before any finish_reason is an error', async t => {
    const up = scripted('up', streams(chunkFrames([chunk('x')])))
    const { app, gateway, outcomes } = await watched(t, { providers: [up] })
    const frames = reader(await gateway.complete(askStream, gateway.caller()))
    await frames.next()
    const error = await rejection(frames.next())
    t.type(error, UpstreamError)
    t.match(error, { statusCode: 502, message: /ended before the answer was complete/ })
    t.match(outcomes, [{ status: 'failed' }])
    nothingLeft(t, app)
  })

  t.test('that ends before any finish_reason is an error for a layer that reads it, too', async t => {
    const app = await host(t, { providers: [scripted('up', streams(chunkFrames([chunk('x')])))] })
    let fault: unknown = null
    app.gateway.intercept('cache', async (inference, next) => {
      const answer = await next(inference)
      try {
        if (answer.stream) for await (const _ of answer.frames);
      } catch (error) {
        fault = error
      }
      return { stream: false, raw: null, body: completion('not stored') }
    })
    await app.ready()
    await app.gateway.complete(askStream, app.gateway.caller())
    t.type(fault, UpstreamError)
  })

  t.test('that ends after a finish_reason without more is complete', async t => {
    const up = scripted('up', streams(chunkFrames([chunk('x')]), chunkFrames([finish('length')])))
    const { gateway, outcomes } = await watched(t, { providers: [up] })
    t.equal(await textOf(await gateway.complete(askStream, gateway.caller())), 'x')
    t.match(outcomes, [{ status: 'completed' }])
  })

  t.test('is complete when its finish_reason came with the first token', async t => {
    const up = scripted('up', streams(chunkFrames([chunk('x'), finish()])))
    const { gateway, outcomes } = await watched(t, { providers: [up] })
    t.equal(await textOf(await gateway.complete(askStream, gateway.caller())), 'x')
    t.match(outcomes, [{ status: 'completed' }])
  })

  t.test('is read no faster than its reader asks', async t => {
    const source = feed(chunkFrames([chunk('1')]), chunkFrames([chunk('2')]), chunkFrames([chunk('3')]))
    const { gateway } = await watched(t, { providers: [scripted('up', source.send)] })
    const frames = reader(await gateway.complete(askStream, gateway.caller()))
    t.equal(source.reads, 1, 'only up to the first token')
    await frames.next()
    await turn()
    t.equal(source.reads, 1)
    await frames.next()
    await turn()
    t.equal(source.reads, 2)
    await frames.return()
  })

  t.test('that throws where it should reject fails the call', async t => {
    const frames: AsyncIterable<Frames> = {
      [Symbol.asyncIterator]: () => ({
        next() {
          throw new Error('at once')
        }
      })
    }
    const app = await host(t)
    app.gateway.intercept('cache', async () => ({ stream: true, frames }))
    await app.ready()
    const read = reader(await app.gateway.complete(askStream, app.gateway.caller()))
    t.match(await rejection(read.next()), { message: 'at once' })
    nothingLeft(t, app)
  })

  t.test('of frames that cannot be read fails the call', async t => {
    const broken: Frames = {
      ...chunkFrames([chunk('x')]),
      get hasUsage(): never {
        throw new Error('unreadable')
      }
    }
    const app = await host(t)
    app.gateway.intercept('cache', () => streams(broken)(undefined as never))
    await app.ready()
    const read = reader(await app.gateway.complete(askStream, app.gateway.caller()))
    t.match(await rejection(read.next()), { message: 'unreadable' })
    nothingLeft(t, app)
  })

  t.test('that cannot be iterated fails the call', async t => {
    const app = await host(t)
    app.gateway.intercept('cache', (async () => ({ stream: true, frames: {} })) as unknown as Layer)
    await app.ready()
    t.type(await rejection(app.gateway.complete(askStream, app.gateway.caller())), TypeError)
    nothingLeft(t, app)
  })
})

t.test('facts', async t => {
  t.test('of a whole answer name its target and its attempts', async t => {
    const { gateway } = await watched(t)
    const { facts } = await gateway.complete(ask, gateway.caller())
    t.match(facts, { attempts: 1, cache: 'off', cost: null, firstToken: null, target: { model: 'm', weight: 1 } })
    t.strictSame(facts.warnings, [])
    t.equal(facts.target?.provider.name, 'up')
  })

  t.test('of a stream have the time of the first token before it is read', async t => {
    const { gateway } = await watched(t)
    const answer = await gateway.complete(askStream, gateway.caller())
    const { firstToken } = answer.facts
    t.ok(typeof firstToken === 'number' && firstToken >= 0)
    await reader(answer).return()
  })
})

for (const [whose, signal] of [
  ['of the gateway itself', undefined],
  ['that they share', new AbortController().signal]
] as const) {
  t.test(`200 calls at once with a signal ${whose} cause no warning and leave nothing`, async t => {
    const up = scripted('up', attempt => feed(chunkFrames([chunk('x')])).send(attempt))
    const { app, gateway } = await watched(t, { providers: [up] })
    const warnings: Error[] = []
    const listen = (warning: Error) => warnings.push(warning)
    process.on('warning', listen)
    t.teardown(() => process.off('warning', listen))
    const { promise, open } = gate()
    const callers = Array.from({ length: 200 }, () => gateway.caller({ signal }))
    const answers = callers.map(async caller => {
      const answer = await gateway.complete(askStream, caller)
      await promise
      await reader(answer).return()
    })
    await turn()
    t.equal(gateway.running, 200)
    open()
    await Promise.all(answers)
    await turn()
    t.strictSame(warnings, [])
    t.ok(callers.every(caller => getEventListeners(caller.signal, 'abort').length === 0))
    nothingLeft(t, app)
  })
}

t.test('closing', async t => {
  t.test('refuses new work at once and waits for what runs', async t => {
    const { promise, open } = gate()
    const up = scripted('up', async attempt => {
      await promise
      return says('in time')(attempt)
    })
    const { app, gateway, outcomes } = await watched(t, { providers: [up] })
    const answering = gateway.complete(ask, gateway.caller())
    await turn()
    let closed = false
    const closing = app.close().then(() => (closed = true))
    await turn()
    t.ok(gateway.closing)
    t.match(await gateway.readiness(), { ok: false, checks: { gateway: { ok: false, running: 1 } } })
    const error = await rejection(gateway.complete(ask, gateway.caller()))
    t.type(error, ShuttingDown)
    t.match(error, { statusCode: 503, wire: 'shutting_down' })
    t.notOk(closed)
    open()
    t.equal(await textOf(await answering), 'in time')
    await closing
    t.match(outcomes, [{ status: 'completed' }])
  })

  t.test('lets a stream go on to its end', async t => {
    const source = feed(chunkFrames([chunk('x')]))
    const { app, gateway } = await watched(t, { providers: [scripted('up', source.send)] })
    const frames = reader(await gateway.complete(askStream, gateway.caller()))
    const closing = app.close()
    await turn()
    await frames.next()
    source.push(chunkFrames([finish()]))
    source.end()
    t.notOk((await frames.next()).done)
    t.ok((await frames.next()).done)
    await closing
    nothingLeft(t, app)
  })

  t.test('aborts what is left after the grace', async t => {
    const up = scripted('up', silent, feed(chunkFrames([chunk('x')])).send)
    const { app, gateway, outcomes } = await watched(t, { providers: [up], shutdownGrace: 3_000 })
    clock(t)
    const answering = rejection(gateway.complete(ask, gateway.caller()))
    const frames = reader(await gateway.complete(askStream, gateway.caller()))
    await frames.next()
    const reading = rejection(frames.next())
    const closing = app.close()
    await turn()
    mock.timers.tick(2_999)
    await turn()
    t.equal(gateway.running, 2)
    mock.timers.tick(1)
    t.type(await answering, ShuttingDown)
    t.type(await reading, ShuttingDown)
    await closing
    t.match(outcomes, [{ status: 'failed' }, { status: 'failed' }])
    t.equal(outcomes.length, 2)
    nothingLeft(t, app)
  })

  t.test('waits for the listeners of what it aborted', async t => {
    const { promise, open } = gate()
    const app = await host(t, { providers: [scripted('up', silent)], shutdownGrace: 1 })
    app.gateway.intercept('observe', (inference, next) => {
      inference.onSettled(() => promise)
      return next(inference)
    })
    await app.ready()
    clock(t)
    let told = false
    const answering = rejection(app.gateway.complete(ask, app.gateway.caller())).then(() => (told = true))
    let closed = false
    const closing = app.close().then(() => (closed = true))
    await turn()
    mock.timers.tick(1)
    await turn()
    t.notOk(closed || told)
    open()
    await Promise.all([answering, closing])
    nothingLeft(t, app)
  })

  t.test('begins for every kernel of a host at the same time', async t => {
    const { promise, open } = gate()
    const app = Fastify()
    t.teardown(() => app.close())
    const kernels: (typeof app.gateway)[] = []
    for (const name of ['one', 'two']) {
      app.register(async scope => {
        await scope.register(gateway)
        await scope.register(routing)
        scope.gateway.providers.register(
          scripted(name, async attempt => {
            await promise
            return says(`from ${name}`)(attempt)
          })
        )
        kernels.push(scope.gateway)
      })
    }
    await app.ready()
    const [one, two] = kernels
    const answers = [
      one!.complete({ ...ask, model: 'one/m' }, one!.caller()),
      two!.complete({ ...ask, model: 'two/m' }, two!.caller())
    ]
    const closing = app.close()
    await turn()
    t.ok(one!.closing && two!.closing)
    t.type(await rejection(two!.complete({ ...ask, model: 'two/m' }, two!.caller())), ShuttingDown)
    open()
    t.strictSame(await Promise.all(answers.map(async answer => textOf(await answer))), ['from one', 'from two'])
    await closing
  })

  t.test('may take longer than Fastify lets plugins take, and closes nothing meanwhile', async t => {
    const { promise, open } = gate()
    const app = Fastify({ pluginTimeout: 1_000 })
    t.teardown(() => app.close())
    await app.register(gateway, { shutdownGrace: 60_000 })
    await app.register(routing)
    const up = scripted('up', async attempt => {
      await promise
      return says('in time')(attempt)
    })
    app.gateway.providers.register(up)
    let closed = false
    app.addHook('onClose', async () => void (closed = true))
    await app.ready()
    clock(t)
    const answering = app.gateway.complete({ ...ask, model: 'up/m' }, app.gateway.caller())
    const closing = app.close()
    await turn()
    mock.timers.tick(59_999)
    await turn()
    t.notOk(closed)
    open()
    t.equal(await textOf(await answering), 'in time')
    await closing
    t.ok(closed)
  })

  t.test('is immediate when nothing runs', async t => {
    const { app } = await watched(t)
    await app.close()
    t.ok(app.gateway.closing)
  })
})

t.test('a layer of the stage seal gets what the client gets, and listeners what the provider sent', async t => {
  const up = scripted('up', says('one', tokens(3, 4)))
  const app = await host(t, { providers: [up] })
  const heard: unknown[] = []
  const usages: number[] = []
  app.gateway.intercept('observe', (inference, next) => {
    inference.onFrames(frames => heard.push(...frames))
    inference.onSettled((_, { usage }) => usages.push(usage.input, usage.output))
    return next(inference)
  })
  app.gateway.intercept('seal', async (inference, next) => {
    const answer = await next(inference)
    return answer.stream ? { stream: true, frames: sealed(answer.frames) } : answer
  })
  await app.ready()
  const given: unknown[] = []
  const answer = await app.gateway.complete(askStream, app.gateway.caller())
  if (answer.stream) for await (const frames of answer.frames) given.push(...frames)
  t.strictSame(heard, [role(), chunk('one'), finish(), usageChunk(tokens(3, 4))])
  t.strictSame(
    given,
    [role(), chunk('one'), finish()].map(chunk => ({ ...chunk, sealed: true })),
    'the usage that nobody asked for was never sealed'
  )
  t.strictSame(usages, [3, 4])
  nothingLeft(t, app)
})

async function* sealed(frames: AsyncIterable<Frames>): AsyncGenerator<Frames> {
  for await (const one of frames) yield chunkFrames([...one].map(chunk => ({ ...chunk, sealed: true })))
}
