import t, { type Test } from 'tap'
import budgets from '../../../plugins/budgets/index.ts'
import pricing from '../../../plugins/pricing/index.ts'
import type { ModelOptions } from '../../../plugins/routing/index.ts'
import { Cancelled, InsufficientQuota, UpstreamError } from '../../../schemas/errors.ts'
import { chunkFrames } from '../../../schemas/frames.ts'
import type { Provider, Send } from '../../../schemas/provider.ts'
import { gate, turn } from '../../upstream.ts'
import {
  ask,
  askStream,
  chunk,
  fails,
  feed,
  finish,
  patient,
  reader,
  says,
  scripted,
  textOf,
  tokens,
  usageChunk
} from '../kernel.ts'
import { at, ends, keyed, keysOf, type StageOptions, stage, status } from './kit.ts'

/** An alias that asks its targets in their order, and a second one when `late` is called. */
async function hedged(
  t: Test,
  providers: Provider[],
  rest: Partial<StageOptions> & { model?: Partial<ModelOptions> } = {}
) {
  const { model, ...options } = rest
  const delays: number[] = []
  const waiting: Array<() => void> = []
  const found = await stage(t, {
    providers,
    models: {
      strategy: 'priority',
      targets: at(...providers.map(({ name }) => name)),
      hedge: { after: 300 },
      retries: 0,
      ...model
    },
    pause: (milliseconds, signal) =>
      new Promise((resolve, reject) => {
        delays.push(milliseconds)
        waiting.push(resolve)
        signal.addEventListener('abort', () => reject(signal.reason))
      }),
    ...options
  })
  return {
    ...found,
    delays,
    /** The time is over that the first one had. */
    async late() {
      await turn()
      waiting.shift()?.()
      await turn()
    }
  }
}

t.test('a second attempt', async t => {
  t.test('is not made unless it is configured', async t => {
    const { promise, open } = gate()
    const one = scripted('one', async attempt => {
      await promise
      return says('from one')(attempt)
    })
    const { run, late, delays } = await hedged(t, [one, scripted('two')], { model: { hedge: false } })
    const running = run()
    await late()
    t.strictSame(delays, [])
    open()
    t.equal(await textOf(await running), 'from one')
  })

  t.test('is not made while the first one is in time', async t => {
    const two = scripted('two')
    const { run, delays } = await hedged(t, [scripted('one'), two])
    t.equal(await textOf(await run()), 'one says')
    t.strictSame(delays, [300])
    t.equal(two.attempts.length, 0)
  })

  for (const request of [ask, askStream]) {
    t.test(`answers when the first one is silent, which is broken off, stream: ${request.stream}`, async t => {
      const one = scripted('one', patient)
      const { run, late, expenses, state } = await hedged(t, [one, scripted('two')])
      const running = run(request)
      await late()
      const answer = await running
      t.equal(await textOf(answer), 'two says')
      t.match(answer.facts, { attempts: 2, target: { provider: { name: 'two' } } })
      t.ok(one.attempts[0]?.signal.aborted)
      t.type(one.attempts[0]?.signal.reason, Cancelled)
      t.strictSame(ends(expenses), ['one interrupted', 'two settled'])
      t.strictSame([state('one/m').places.taken, state('two/m').places.taken], [0, 0])
      t.equal(state('one/m').failures, 0, 'being slower is no failure')
    })

    t.test(`loses when the first one answers after all, stream: ${request.stream}`, async t => {
      const { promise, open } = gate()
      const one = scripted('one', async attempt => {
        await promise
        return says('from one')(attempt)
      })
      const two = scripted('two', patient)
      const { run, late, expenses } = await hedged(t, [one, two])
      const running = run(request)
      await late()
      t.equal(two.attempts.length, 1)
      open()
      const answer = await running
      t.equal(await textOf(answer), 'from one')
      t.match(answer.facts, { target: { provider: { name: 'one' } } })
      t.strictSame(ends(expenses), ['one settled', 'two interrupted'])
    })
  }

  t.test('that is broken off is interrupted, whatever its provider makes of that', async t => {
    const rude: Send = ({ signal }) =>
      new Promise((_, reject) => signal.addEventListener('abort', () => reject(new UpstreamError('the socket broke.'))))
    const { run, late, expenses, state } = await hedged(t, [scripted('one', rude), scripted('two')])
    const running = run()
    await late()
    await running
    await turn()
    t.strictSame(ends(expenses), ['one interrupted', 'two settled'])
    t.equal(state('one/m').failures, 0)
  })

  t.test('costs what it costs: both are paid for', async t => {
    const { run, late, expenses } = await hedged(
      t,
      [scripted('one', patient), scripted('two', says('x', tokens(7, 3)))],
      {
        before: app =>
          app.gateway.accountWith({
            open() {},
            cost: (_, usage) => usage.input + 10 * (usage.output + usage.reasoning)
          })
      }
    )
    const running = run()
    await late()
    const { facts } = await running
    const [lost, won] = expenses
    t.equal(won?.cost, 37)
    t.ok((lost?.cost ?? 0) > 0, 'the input was read')
    t.equal(facts.cost, 37 + (lost?.cost ?? 0))
  })

  t.test('is held by the budget as well, and both are settled', async t => {
    const price = { input: 1_000, output: 1_000 }
    const targets = at('one', 'two').map(target => ({ ...target, price }))
    let one: number | bigint = 0
    let two: number | bigint = 0
    const { run, late, gateway } = await hedged(
      t,
      [scripted('one', patient), scripted('two', says('x', tokens(7, 3)))],
      {
        model: { targets },
        async before(app) {
          await app.register(pricing, { table: false })
          await app.register(budgets, { gateway: { dailyLimitUsd: 10, hardStop: true, warningThreshold: 1 } })
          app.gateway.interceptAttempt(async (attempt, next) => {
            const held = (await app.gateway.budgets?.gateway())?.held ?? 0
            if (attempt.number === 1) one = held
            else two = held
            return next(attempt)
          })
        }
      }
    )
    const running = run({ ...ask, max_tokens: 100 })
    await turn()
    await late()
    const { facts } = await running
    t.ok(one > 0)
    t.equal(Number(two), 2 * Number(one))
    const state = await gateway.budgets?.gateway()
    t.equal(state?.held, 0)
    t.equal(state?.spent, facts.cost)
  })

  t.test('that the budget refuses leaves the first one alone', async t => {
    const { promise, open } = gate()
    const one = scripted('one', async attempt => {
      await promise
      return says('from one')(attempt)
    })
    const two = scripted('two')
    let opened = 0
    const { run, late, state } = await hedged(t, [one, two], {
      before: app =>
        app.gateway.accountWith({
          open() {
            if (++opened > 1) throw new InsufficientQuota('Nothing is left.')
          }
        })
    })
    const running = run()
    await late()
    t.equal(opened, 2)
    open()
    t.equal(await textOf(await running), 'from one')
    t.equal(two.attempts.length, 0)
    t.equal(state('two/m').places.taken, 0)
  })

  t.test('that the budget refuses is not what the client hears of when the first one fails', async t => {
    const { promise, open } = gate()
    const fault = new UpstreamError('broken')
    const one = scripted('one', async () => {
      await promise
      throw fault
    })
    let opened = 0
    const { fail, late } = await hedged(t, [one, scripted('two')], {
      before: app =>
        app.gateway.accountWith({
          open() {
            if (++opened > 1) throw new InsufficientQuota('Nothing is left.')
          }
        })
    })
    const failing = fail()
    await late()
    open()
    t.equal(await failing, fault)
  })

  t.test('is not made when the first one has failed already', async t => {
    const { run, late, expenses } = await hedged(t, [
      scripted('one', fails(new UpstreamError('broken'))),
      scripted('two')
    ])
    const answer = await run()
    await late()
    t.equal(await textOf(answer), 'two says')
    t.strictSame(ends(expenses), ['one failed', 'two settled'])
  })

  t.test('that fails as the first one did is followed by the next target', async t => {
    const { promise, open } = gate()
    const bad: Send = async () => {
      await promise
      throw new UpstreamError('broken')
    }
    const { run, late, expenses } = await hedged(t, [scripted('one', bad), scripted('two', bad), scripted('three')])
    const running = run()
    await late()
    open()
    t.equal(await textOf(await running), 'three says')
    t.strictSame(ends(expenses), ['one failed', 'two failed', 'three settled'])
  })

  t.test('that fails leaves the first one its time', async t => {
    const { promise, open } = gate()
    const one = scripted('one', async attempt => {
      await promise
      return says('from one')(attempt)
    })
    const { run, late, expenses } = await hedged(t, [one, scripted('two', fails(new UpstreamError('broken')))])
    const running = run()
    await late()
    open()
    t.equal(await textOf(await running), 'from one')
    t.strictSame(ends(expenses).sort(), ['one settled', 'two failed'])
  })

  t.test('whose request is refused ends the call once the first one has failed', async t => {
    const { promise, open } = gate()
    const refused = status(400)
    const one = scripted('one', async () => {
      await promise
      throw new UpstreamError('broken')
    })
    const three = scripted('three')
    const { fail, late } = await hedged(t, [one, scripted('two', fails(refused)), three])
    const failing = fail()
    await late()
    open()
    t.equal(await failing, refused)
    t.equal(three.attempts.length, 0)
  })

  t.test('with a key that is refused leaves the other keys of its target for later', async t => {
    const { promise, open } = gate()
    const one = scripted('one', async () => {
      await promise
      throw new UpstreamError('broken')
    })
    const two = keyed('two', 2, fails(status(401)), says('from two'))
    const { run, late } = await hedged(t, [one, two])
    const running = run()
    await late()
    open()
    t.equal(await textOf(await running), 'from two')
    t.strictSame(keysOf(two), [0, 1])
  })

  t.test('does not make another key of the first target be tried when that one did not fail by its key', async t => {
    const { promise, open } = gate()
    const one = keyed('one', 3, async () => {
      await promise
      throw new UpstreamError('broken')
    })
    const { fail, late } = await hedged(t, [one, scripted('two', fails(status(429)))])
    const failing = fail()
    await late()
    open()
    await failing
    t.equal(one.attempts.length, 1)
  })

  for (const request of [ask, askStream]) {
    t.test(`that answers in the same moment is closed, and the winner is told, stream: ${request.stream}`, async t => {
      const { promise, open } = gate()
      const sources = ['one', 'two'].map(name => feed(chunkFrames([chunk(`from ${name}`)]), chunkFrames([finish()])))
      const both =
        (index: number): Send =>
        async attempt => {
          await promise
          return request.stream ? sources[index]!.send(attempt) : says(index === 0 ? 'from one' : 'from two')(attempt)
        }
      for (const source of sources) source.end()
      const { run, late, expenses, state } = await hedged(t, [scripted('one', both(0)), scripted('two', both(1))])
      const running = run(request)
      await late()
      open()
      const answer = await running
      const text = await textOf(answer)
      await turn()
      t.equal(answer.facts.target?.provider.name, text.slice('from '.length))
      t.strictSame([state('one/m').places.taken, state('two/m').places.taken], [0, 0])
      t.equal(expenses.filter(({ status }) => status === 'open').length, 0)
      if (request.stream) t.strictSame(sources.map(({ closed }) => closed).sort(), [0, 1])
    })

    t.test(`ends with the first one when the caller leaves, stream: ${request.stream}`, async t => {
      const one = scripted('one', patient)
      const two = scripted('two', patient)
      const { fail, late, expenses, gateway, state } = await hedged(t, [one, two])
      const leaving = new AbortController()
      const failing = fail(request, { signal: leaving.signal })
      await late()
      leaving.abort()
      t.type(await failing, Cancelled)
      await turn()
      t.ok(one.attempts[0]?.signal.aborted && two.attempts[0]?.signal.aborted)
      t.strictSame(ends(expenses), ['one interrupted', 'two interrupted'])
      t.strictSame([state('one/m').places.taken, state('two/m').places.taken], [0, 0])
      t.equal(gateway.running, 0)
    })
  }

  t.test('that won ends with its call', async t => {
    const source = feed(chunkFrames([chunk('x')]))
    const two = scripted('two', source.send)
    const { run, late, expenses } = await hedged(t, [scripted('one', patient), two])
    const leaving = new AbortController()
    const running = run(askStream, { signal: leaving.signal })
    await late()
    const frames = reader(await running)
    await frames.next()
    t.notOk(two.attempts[0]?.signal.aborted)
    leaving.abort()
    await t.rejects(frames.next())
    t.ok(two.attempts[0]?.signal.aborted)
    t.strictSame(ends(expenses), ['one interrupted', 'two interrupted'])
  })

  t.test(
    'regression: a client that left before the usage of the first one was not given what had been used',
    async t => {
      const { promise, open } = gate()
      const source = feed(chunkFrames([chunk('x'), finish()]))
      const one = scripted('one', async attempt => {
        await promise
        return source.send(attempt)
      })
      const { run, late, expenses } = await hedged(t, [one, scripted('two', patient)], {
        before: app => app.gateway.accountWith({ open() {} })
      })
      const leaving = new AbortController()
      const running = run(askStream, { signal: leaving.signal })
      await late()
      open()
      const frames = reader(await running)
      await frames.next()
      leaving.abort()
      source.push(chunkFrames([usageChunk(tokens(7, 3))]))
      source.end()
      await turn()
      t.strictSame(ends(expenses), ['one settled', 'two interrupted'])
      t.match(expenses[0]?.usage, { source: 'reported', input: 7, output: 3 })
    }
  )

  t.test('goes to nobody who is left alone, rests or has no place free', async t => {
    const { promise, open } = gate()
    const slow: Send = async attempt => {
      await promise
      return says('x')(attempt)
    }
    const four = scripted('four', slow)
    const { run, late, state, clock } = await hedged(
      t,
      [scripted('one', slow), scripted('two'), scripted('three'), four],
      {
        model: { targets: at('one', 'two', 'three', 'four').map(target => ({ ...target, concurrency: 1 })) }
      }
    )
    state('two/m').breaker.open(clock.time, 1_000)
    state('three/m').places.enter()
    const running = run()
    await late()
    t.equal(four.attempts.length, 1)
    open()
    await running
    state('three/m').places.leave()
  })

  t.test('is not made where there is nobody else to ask', async t => {
    const { promise, open } = gate()
    const one = scripted('one', async attempt => {
      await promise
      return says('x')(attempt)
    })
    const { run, late, delays } = await hedged(t, [one])
    const running = run()
    await late()
    t.strictSame(delays, [])
    open()
    await running
    t.equal(one.attempts.length, 1)
  })

  t.test('takes the keys of its target in turn', async t => {
    const one = scripted('one', patient)
    const two = keyed('two', 2)
    const { run, late } = await hedged(t, [one, two])
    for (let call = 0; call < 4; call++) {
      const running = run()
      await late()
      await running
    }
    t.strictSame(keysOf(two), [0, 1, 0, 1])
  })
})

t.test('two attempts that are written down at the same time have numbers of their own', async t => {
  const { promise, open } = gate()
  let extended = 0
  const numbers: number[] = []
  const { run } = await stage(t, {
    providers: [scripted('up')],
    models: { targets: at('up') },
    before: app =>
      app.gateway.intercept('shape', async (inference, next) => {
        const answer = await next(inference)
        inference.hold = {
          request: inference.request,
          charges: '[]',
          async extend() {
            extended++
            await promise
          }
        }
        const target = inference.route.targets[0]!
        const both = Promise.all([app.gateway.open(inference, target), app.gateway.open(inference, target)])
        open()
        for (const { number } of await both) numbers.push(number)
        return answer
      })
  })
  await run()
  t.strictSame(numbers, [2, 3])
  t.equal(extended, 2)
})

t.test('without a time of its own a second attempt', async t => {
  for (const request of [ask, askStream]) {
    t.test(`waits for longer than 19 of 20 calls took, once there were 20, stream: ${request.stream}`, async t => {
      const { run, delays, state } = await hedged(t, [scripted('one'), scripted('two')], { model: { hedge: {} } })
      const one = state('one/m')
      const measure = request.stream ? one.firstToken : one.latency
      for (let call = 1; call <= 19; call++) measure.add(call * 10)
      t.equal(measure.usual, null)
      await textOf(await run(request))
      t.strictSame(delays, [], 'with 19 nobody knows what is usual')
      await textOf(await run(request))
      t.equal(delays.length, 1)
      t.ok(delays[0]! >= 170 && delays[0]! <= 190, String(delays))
    })
  }
})
