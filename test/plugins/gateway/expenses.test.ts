import { mock } from 'node:test'
import t, { type Test } from 'tap'
import { UpstreamError, UpstreamRateLimited } from '../../../schemas/errors.ts'
import { chunkFrames } from '../../../schemas/frames.ts'
import type { Expense, Hold, Inference, Outcome } from '../../../schemas/gateway.ts'
import { gate, turn } from '../../upstream.ts'
import {
  ask,
  askStream,
  chunk,
  completion,
  fails,
  feed,
  finish,
  type HostOptions,
  host,
  patient,
  reader,
  rejection,
  role,
  says,
  scripted,
  textOf,
  tokens
} from '../kernel.ts'

// What the kernel knows of a call's money: its provider calls, its hold, its cap on output, its end without a caller.

/** A gateway that prices tokens at one nano-USD each and shows what became of its calls. */
async function priced(t: Test, options: HostOptions = {}) {
  const app = await host(t, options)
  const ended: Array<{ outcome: Outcome; expenses: readonly Expense[]; cost: number | null }> = []
  app.gateway.accountWith({ cost: (_target, usage) => usage.input + usage.output })
  app.gateway.intercept('observe', (inference, next) => {
    inference.onSettled((outcome, { expenses, facts }) => void ended.push({ outcome, expenses, cost: facts.cost }))
    return next(inference)
  })
  return { app, ended, gateway: app.gateway }
}

const twoTargets = {
  models: {
    test: {
      targets: [
        { provider: 'one', model: 'm', weight: 1 },
        { provider: 'two', model: 'm', weight: 0 }
      ]
    }
  }
}

t.test('the cost of a call', async t => {
  t.test('is the sum of its provider calls, known when it has settled', async t => {
    const one = feed(chunkFrames([{ ...chunk(''), choices: [], usage: tokens(4, 0) }]))
    one.fail(new UpstreamError('broken'))
    const { app, ended } = await priced(t, {
      providers: [scripted('one', one.send), scripted('two', says('x', tokens(3, 2)))],
      routing: twoTargets
    })
    await app.ready()
    const answer = await app.gateway.complete(askStream, app.gateway.caller())
    t.equal(answer.facts.cost, null)
    await textOf(answer)
    t.equal(answer.facts.cost, 9)
    t.match(ended, [
      {
        cost: 9,
        expenses: [
          { number: 1, status: 'failed', cost: 4, usage: { source: 'reported' } },
          { number: 2, status: 'settled', cost: 5 }
        ]
      }
    ])
  })

  t.test('is unknown where the price of one provider call is', async t => {
    const app = await host(t)
    app.gateway.accountWith({ cost: () => null })
    await app.ready()
    t.equal((await app.gateway.complete(ask, app.gateway.caller())).facts.cost, null)
  })

  t.test('is nothing for a provider call that failed before any output without saying what it used', async t => {
    const { app, ended } = await priced(t, { providers: [scripted('up', fails(new UpstreamError('broken')))] })
    await app.ready()
    await rejection(app.gateway.complete(ask, app.gateway.caller()))
    t.match(ended, [{ cost: 0, expenses: [{ status: 'failed', usage: { input: 0, output: 0 } }] }])
  })

  t.test('is estimated for an answer without usage, from what was asked and what was said', async t => {
    const { app, ended } = await priced(t, { providers: [scripted('up', says('one two three four five six'))] })
    await app.ready()
    await app.gateway.complete(ask, app.gateway.caller())
    await textOf(await app.gateway.complete(askStream, app.gateway.caller()))
    for (const { expenses } of ended) t.match(expenses, [{ usage: { source: 'estimated' } }])
    t.ok(ended[0]!.expenses[0]!.usage.input > 0)
    t.equal(ended[0]!.expenses[0]!.usage.output, 7, 'a token for four bytes')
    t.equal(ended[1]!.expenses[0]!.usage.output, 6, 'a token a chunk')
  })

  t.test('of a stream whose reader leaves is that of what was delivered', async t => {
    const words = Array.from({ length: 10 }, (_, index) => chunkFrames([chunk(` w${index}`)]))
    const source = feed(chunkFrames([role()]), ...words)
    const { app, ended } = await priced(t, { providers: [scripted('up', source.send)] })
    await app.ready()
    const frames = reader(await app.gateway.complete(askStream, app.gateway.caller()))
    for (let read = 0; read < 8; read++) await frames.next()
    await frames.return()
    t.match(ended, [{ outcome: { status: 'cancelled', departed: true } }])
    const [{ status, usage, cost } = t.fail() as never] = ended[0]!.expenses
    t.match(
      { status, source: usage.source, output: usage.output },
      { status: 'interrupted', source: 'estimated', output: 7 }
    )
    t.equal(cost, usage.input + 7)
  })

  t.test('of a caller who leaves before the answer is that of what was read', async t => {
    const { app, ended } = await priced(t, { providers: [scripted('up', () => new Promise(() => {}))] })
    await app.ready()
    const leaving = new AbortController()
    const answering = rejection(app.gateway.complete(ask, app.gateway.caller({ signal: leaving.signal })))
    await turn()
    leaving.abort()
    await answering
    t.match(ended[0]?.expenses, [{ status: 'interrupted', usage: { source: 'estimated', output: 0 } }])
    t.ok(ended[0]!.cost! > 0)
  })

  t.test('is nothing when the caller leaves while the call is written down: nothing was sent', async t => {
    const up = scripted('up')
    const { app, ended } = await priced(t, { providers: [up] })
    const { promise, open } = gate()
    app.gateway.accountWith({ open: () => promise })
    await app.ready()
    const leaving = new AbortController()
    const answering = rejection(app.gateway.complete(ask, app.gateway.caller({ signal: leaving.signal })))
    await turn()
    leaving.abort()
    await answering
    open()
    await turn()
    t.equal(up.attempts.length, 0)
    t.match(ended, [{ cost: 0, expenses: [{ status: 'interrupted', usage: { input: 0, output: 0 } }] }])
  })

  t.test('is zero for a call that was refused, with no provider call to its name', async t => {
    const { app, ended } = await priced(t)
    app.gateway.accountWith({
      open() {
        throw new UpstreamRateLimited()
      }
    })
    await app.ready()
    await rejection(app.gateway.complete(ask, app.gateway.caller()))
    t.strictSame(ended[0]?.expenses, [])
    t.equal(ended[0]?.cost, 0)
  })
})

t.test('who breaks a call off, and what that costs', async t => {
  t.test("a caller's own time limit does not make the input free that was read", async t => {
    const { app, ended } = await priced(t, { providers: [scripted('up', patient)] })
    await app.ready()
    t.match(await rejection(app.gateway.complete(ask, app.gateway.caller({ deadline: 5 }))), {
      wire: 'upstream_timeout'
    })
    t.match(ended, [{ outcome: { status: 'failed' }, expenses: [{ status: 'interrupted' }] }])
    t.ok(ended[0]!.cost! > 0)
  })

  t.test('a reader who leaves between the end of the answer and its usage pays what it used', async t => {
    const source = feed(chunkFrames([chunk('all')]), chunkFrames([finish()]))
    const { app, ended } = await priced(t, { providers: [scripted('up', source.send)] })
    await app.ready()
    const frames = reader(await app.gateway.complete(askStream, app.gateway.caller()))
    await frames.next()
    await frames.next()
    await frames.return()
    t.strictSame(ended, [], 'it is waited for')
    source.push(chunkFrames([{ ...chunk(''), choices: [], usage: tokens(3, 20_000) }]))
    source.end()
    await turn()
    t.match(ended, [{ outcome: { departed: true }, cost: 20_003, expenses: [{ usage: { source: 'reported' } }] }])
  })

  t.test('a provider that never says what a finished answer used is not waited for long', async t => {
    const source = feed(chunkFrames([chunk('all')]), chunkFrames([finish()]))
    const { app, ended } = await priced(t, { providers: [scripted('up', source.send)] })
    await app.ready()
    mock.timers.enable({ apis: ['setTimeout'] })
    const frames = reader(await app.gateway.complete(askStream, app.gateway.caller()))
    await frames.next()
    await frames.next()
    await frames.return()
    mock.timers.tick(2_000)
    mock.timers.reset()
    await turn()
    t.match(ended, [{ outcome: { status: 'cancelled' }, expenses: [{ usage: { source: 'estimated' } }] }])
  })

  t.test('a stream that a layer drops is ended at its provider, the first attempt too', async t => {
    const source = feed(chunkFrames([chunk('x')]))
    const up = scripted('up', source.send)
    const { app } = await priced(t, { providers: [up] })
    app.gateway.intercept('shape', async (inference, next) => {
      await next(inference)
      return { stream: false, raw: null, body: completion('instead') }
    })
    await app.ready()
    await app.gateway.complete(askStream, app.gateway.caller())
    t.ok(up.attempts[0]?.signal.aborted)
  })

  t.test('a layer that goes on after the end of a call opens nothing', async t => {
    const up = scripted('up')
    const { app } = await priced(t, { providers: [up] })
    let late: Promise<unknown> | undefined
    app.gateway.intercept('cache', async (inference, next) => {
      late = turn().then(() => next(inference))
      return { stream: false, raw: null, body: completion('stale') }
    })
    await app.ready()
    await app.gateway.complete(ask, app.gateway.caller())
    t.match(await rejection(late!), { wire: 'cancelled' })
    t.equal(up.attempts.length, 0)
  })
})

t.test('a hold', async t => {
  t.test('is extended for every provider call after the first, before it is written down', async t => {
    const order: string[] = []
    const { app } = await priced(t, {
      providers: [scripted('one', fails(new UpstreamRateLimited())), scripted('two')],
      routing: twoTargets
    })
    app.gateway.intercept('budget', (inference, next) => {
      inference.hold = {
        request: inference.request,
        charges: '[]',
        extend: async target => void order.push(`hold ${target.provider.name}`)
      }
      return next(inference)
    })
    app.gateway.accountWith({ open: ({ target }) => void order.push(`line ${target.provider.name}`) })
    await app.ready()
    await app.gateway.complete(ask, app.gateway.caller())
    t.strictSame(order, ['line one', 'hold two', 'line two'])
  })

  t.test('is extended for the first one too, where a layer has replaced the request meanwhile', async t => {
    const order: string[] = []
    const { app } = await priced(t)
    app.gateway.intercept('budget', (inference, next) => {
      inference.hold = { request: inference.request, charges: '[]', extend: () => void order.push('extended') }
      return next(inference)
    })
    app.gateway.intercept('shape', (inference, next) => {
      inference.request = { ...inference.request, max_tokens: 100_000 }
      return next(inference)
    })
    await app.ready()
    await app.gateway.complete(ask, app.gateway.caller())
    t.strictSame(order, ['extended'])
  })

  t.test('that is not extended ends the call with the error of the provider before', async t => {
    const fault = new UpstreamError('broken')
    const two = scripted('two')
    const { app, ended } = await priced(t, { providers: [scripted('one', fails(fault)), two], routing: twoTargets })
    app.gateway.intercept('budget', (inference, next) => {
      const hold: Hold = {
        request: inference.request,
        charges: '[]',
        extend() {
          throw new UpstreamRateLimited()
        }
      }
      inference.hold = hold
      return next(inference)
    })
    await app.ready()
    t.equal(await rejection(app.gateway.complete(ask, app.gateway.caller())), fault)
    t.equal(two.attempts.length, 0)
    t.equal(ended[0]?.expenses.length, 1)
  })

  t.test('that is extended only after its call has ended opens nothing', async t => {
    const lines: number[] = []
    const { promise, open } = gate()
    const { app } = await priced(t, {
      providers: [scripted('one', fails(new UpstreamRateLimited())), scripted('two')],
      routing: twoTargets
    })
    app.gateway.intercept('budget', (inference, next) => {
      inference.hold = { request: inference.request, charges: '[]', extend: () => promise }
      return next(inference)
    })
    app.gateway.accountWith({ open: ({ number }) => void lines.push(number) })
    await app.ready()
    const leaving = new AbortController()
    const answering = rejection(app.gateway.complete(ask, app.gateway.caller({ signal: leaving.signal })))
    await turn()
    leaving.abort()
    await answering
    open()
    await turn()
    t.strictSame(lines, [1])
  })
})

t.test('the cap on output', async t => {
  /** What goes upstream for a request, under a route's cap of 100 and a layer's. */
  async function asked(t: Test, request: object, layer: number | null, route: number | null = 100) {
    const up = scripted('up')
    const app = await host(t, {
      providers: [up],
      routing: { models: { test: { targets: [{ provider: 'up', model: 'm' }], maxOutputTokens: route ?? undefined } } }
    })
    let seen: Inference | undefined
    app.gateway.intercept('admit', (inference, next) => {
      if (layer !== null) inference.limitOutput(layer)
      seen = inference
      return next(inference)
    })
    await app.ready()
    await app.gateway.complete({ ...ask, ...request }, app.gateway.caller())
    const { max_tokens: older, max_completion_tokens: newer } = up.attempts[0]!.request
    return [older, newer, seen?.maxOutputTokens]
  }

  t.test('is the lowest of request, route and layers', async t => {
    t.strictSame(await asked(t, {}, null), [undefined, 100, 100])
    t.strictSame(await asked(t, {}, 50), [undefined, 50, 50])
    t.strictSame(await asked(t, { max_tokens: 20 }, 50), [20, undefined, 20])
    t.strictSame(await asked(t, { max_tokens: 70 }, 50), [undefined, 50, 50])
    t.strictSame(await asked(t, { max_completion_tokens: 70 }, 500), [undefined, 70, 70])
    t.strictSame(await asked(t, {}, 500), [undefined, 100, 100])
    t.strictSame(await asked(t, {}, 50, null), [undefined, 50, 50])
    t.strictSame(await asked(t, {}, null, null), [undefined, undefined, null])
  })

  t.test('cannot be raised by a later layer', async t => {
    const up = scripted('up')
    const app = await host(t, { providers: [up] })
    app.gateway.intercept('admit', (inference, next) => {
      inference.limitOutput(10)
      inference.limitOutput(1_000)
      return next(inference)
    })
    await app.ready()
    await app.gateway.complete(ask, app.gateway.caller())
    t.equal(up.attempts[0]?.request.max_completion_tokens, 10)
  })
})

t.test('a call that outlives its caller', async t => {
  async function outliving(t: Test, options: HostOptions) {
    const made = await priced(t, options)
    made.app.gateway.intercept('admit', (inference, next) => {
      inference.outlive()
      return next(inference)
    })
    const heard: string[] = []
    made.app.gateway.intercept('observe', (inference, next) => {
      inference.onFrames(frames => {
        for (const { choices } of frames) heard.push(choices[0]?.delta.content ?? '')
      })
      return next(inference)
    })
    await made.app.ready()
    return { ...made, heard }
  }

  t.test('brings a whole answer to its end and its true cost', async t => {
    const { promise, open } = gate()
    const up = scripted('up', async attempt => {
      await promise
      return says('x', tokens(3, 2))(attempt)
    })
    const { app, ended } = await outliving(t, { providers: [up] })
    const leaving = new AbortController()
    const answering = rejection(app.gateway.complete(ask, app.gateway.caller({ signal: leaving.signal })))
    await turn()
    leaving.abort()
    t.match(await answering, { wire: 'cancelled' })
    t.equal(ended.length, 0)
    t.notOk(up.attempts[0]?.signal.aborted)
    open()
    await turn()
    t.match(ended, [{ outcome: { status: 'completed', departed: true }, cost: 5 }])
    t.equal(app.gateway.running, 0)
  })

  for (const reading of [true, false]) {
    t.test(`reads a stream to its end, whether its caller was reading or not: ${reading}`, async t => {
      const source = feed(chunkFrames([chunk('a')]))
      const { app, ended, heard } = await outliving(t, { providers: [scripted('up', source.send)] })
      const leaving = new AbortController()
      const frames = reader(await app.gateway.complete(askStream, app.gateway.caller({ signal: leaving.signal })))
      await frames.next()
      const pending = reading ? rejection(frames.next()) : null
      leaving.abort()
      source.push(chunkFrames([chunk('b')]))
      if (pending) t.match(await pending, { wire: 'cancelled' })
      source.push(chunkFrames([finish(), { ...chunk(''), choices: [], usage: tokens(3, 2) }]))
      source.end()
      await turn()
      t.match(ended, [{ outcome: { status: 'completed', departed: true }, cost: 5 }])
      t.strictSame(heard.slice(0, 2), ['a', 'b'])
      t.match(await rejection(frames.next()), { wire: 'cancelled' }, 'whoever left gets no more of it')
    })
  }

  t.test('reads a stream that came after its caller had left', async t => {
    const { promise, open } = gate()
    const up = scripted('up', async attempt => {
      await promise
      return says('late words', tokens(3, 2))(attempt)
    })
    const { app, ended } = await outliving(t, { providers: [up] })
    const leaving = new AbortController()
    const answering = rejection(app.gateway.complete(askStream, app.gateway.caller({ signal: leaving.signal })))
    await turn()
    leaving.abort()
    await answering
    open()
    await turn()
    t.match(ended, [{ outcome: { status: 'completed', departed: true }, cost: 5 }])
  })

  t.test('still ends with the gateway', async t => {
    const source = feed(chunkFrames([chunk('a')]))
    const { app, ended } = await outliving(t, { providers: [scripted('up', source.send)], shutdownGrace: 1 })
    const frames = reader(await app.gateway.complete(askStream, app.gateway.caller()))
    await frames.next()
    await frames.return()
    await app.close()
    t.match(ended, [{ outcome: { status: 'failed', error: { wire: 'shutting_down' } } }])
  })
})

t.test('listeners to the end of a call are given the call, in order, and a promise is waited for', async t => {
  const app = await host(t)
  const { promise, open } = gate()
  const order: string[] = []
  app.gateway.intercept('observe', (inference, next) => {
    inference.onSettled(async (_outcome, same) => {
      t.equal(same, inference)
      await promise
      order.push('first')
    })
    inference.onSettled(() => {
      order.push('second')
      throw new Error('a listener that fails is logged')
    })
    inference.onSettled(() => void order.push('third'))
    return next(inference)
  })
  await app.ready()
  const answering = app.gateway.complete(ask, app.gateway.caller())
  await turn()
  t.strictSame(order, [])
  t.equal(app.gateway.running, 1)
  open()
  await answering
  t.strictSame(order, ['first', 'second', 'third'])
  t.equal(app.gateway.running, 0)
})
