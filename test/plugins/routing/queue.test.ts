import { mock } from 'node:test'
import t, { type Test } from 'tap'
import { Places } from '../../../plugins/routing/places.ts'
import { Cancelled, InsufficientQuota, UpstreamError } from '../../../schemas/errors.ts'
import { chunkFrames } from '../../../schemas/frames.ts'
import type { Send } from '../../../schemas/provider.ts'
import { gate, seeded, turn } from '../../upstream.ts'
import { ask, askStream, chunk, fails, feed, patient, reader, says, scripted, silent, textOf } from '../kernel.ts'
import { at, keyed, type Stage, stage, status } from './kit.ts'

const here = new AbortController().signal

function places(concurrency: number, size = 100, timeout = 1_000): Places {
  const made = new Places()
  made.room = { concurrency, queue: { size, timeout } }
  return made
}

/** Waits in a queue and notes its name when it is let in, or why not. */
function waits(places: Places, name: string, heard: string[], signal = here): void {
  places.queue(signal).then(admitted => heard.push(admitted ? name : `not ${name}`))
}

t.test('places', async t => {
  t.test('are as many as there are', async t => {
    const two = places(2)
    t.strictSame([two.enter(), two.enter(), two.enter()], [true, true, false])
    two.leave()
    t.ok(two.enter())
    t.equal(two.taken, 2)
  })

  t.test('are without end where there is no limit', async t => {
    const many = new Places()
    for (let call = 0; call < 1_000; call++) t.ok(many.enter())
    t.ok(await many.queue(here))
  })

  t.test('are given to those who wait in their order', async t => {
    const one = places(1)
    const heard: string[] = []
    one.enter()
    for (const name of ['a', 'b', 'c']) waits(one, name, heard)
    for (let left = 0; left < 3; left++) {
      one.leave()
      await turn()
    }
    t.strictSame(heard, ['a', 'b', 'c'])
    t.equal(one.taken, 1)
  })

  t.test('are not waited for where the queue is full', async t => {
    const one = places(1, 1)
    one.enter()
    const first = one.queue(here)
    t.equal(await one.queue(here), false)
    one.leave()
    t.equal(await first, true)
    t.equal(await places(0, 0).queue(here), false)
  })

  t.test('are waited for no longer than the queue says', async t => {
    mock.timers.enable({ apis: ['setTimeout'] })
    t.teardown(() => mock.timers.reset())
    const one = places(1, 100, 1_000)
    const heard: string[] = []
    one.enter()
    waits(one, 'a', heard)
    mock.timers.tick(500)
    waits(one, 'b', heard)
    mock.timers.tick(500)
    await turn()
    t.strictSame(heard, ['not a'])
    one.leave()
    await turn()
    t.strictSame(heard, ['not a', 'b'])
    mock.timers.tick(10_000)
    t.strictSame([one.taken, one.waiting], [1, 0])
  })

  t.test('are not waited for by those who leave', async t => {
    const one = places(1)
    const heard: string[] = []
    one.enter()
    const leaving = new AbortController()
    waits(one, 'a', heard)
    waits(one, 'b', heard, leaving.signal)
    waits(one, 'c', heard)
    leaving.abort()
    one.leave()
    await turn()
    one.leave()
    await turn()
    t.strictSame(heard, ['not b', 'a', 'c'])
    t.equal(await one.queue(AbortSignal.abort()), false)
  })

  t.test('are taken by one who leaves in the moment in which it is let in, and has to give it back', async t => {
    const one = places(1)
    one.enter()
    const leaving = new AbortController()
    const waiting = one.queue(leaving.signal)
    one.leave()
    leaving.abort()
    t.equal(await waiting, true)
    t.equal(one.taken, 1)
    one.leave()
    t.equal(one.taken, 0)
  })

  t.test('that become fewer are not given again until enough have been given back', async t => {
    const four = places(4)
    const heard: string[] = []
    for (let call = 0; call < 4; call++) four.enter()
    waits(four, 'a', heard)
    four.room = { concurrency: 2, queue: { size: 100, timeout: 1_000 } }
    four.leave()
    four.leave()
    await turn()
    t.strictSame(heard, [])
    t.equal(four.taken, 2)
    four.leave()
    await turn()
    t.strictSame(heard, ['a'])
    t.equal(four.taken, 2)
  })

  t.test('that become more are given to those who wait at once', async t => {
    const one = places(1)
    const heard: string[] = []
    one.enter()
    for (const name of ['a', 'b', 'c']) waits(one, name, heard)
    one.room = { concurrency: 3, queue: { size: 100, timeout: 1_000 } }
    await turn()
    t.strictSame(heard, ['a', 'b'])
    one.room = null
    await turn()
    t.strictSame(heard, ['a', 'b', 'c'])
    t.equal(one.taken, 4)
  })
})

/** A target with so many places whose answers wait for a gate. */
async function busy(t: Test, concurrency: number, queue: { size: number; timeout: number }) {
  const { promise, open } = gate()
  const up = scripted('up', async attempt => {
    await promise
    return says('x')(attempt)
  })
  const target = { provider: 'up', model: 'm', concurrency, queue }
  const found = await stage(t, { providers: [up, scripted('two')], models: { targets: [target], retries: 0 } })
  return { ...found, up, open }
}

t.test('a target', async t => {
  t.test('has no more calls at a time than it may, and all are answered', async t => {
    const { run, up, open, state } = await busy(t, 3, { size: 100, timeout: 10_000 })
    const calls = Array.from({ length: 10 }, () => run())
    await turn()
    t.equal(up.attempts.length, 3)
    t.match(state('up/m').places, { taken: 3, waiting: 7 })
    open()
    for (const answer of await Promise.all(calls)) t.equal(await textOf(answer), 'x')
    t.match(state('up/m').places, { taken: 0, waiting: 0 })
  })

  t.test('whose queue is full is 503', async t => {
    const { run, fail, open } = await busy(t, 1, { size: 1, timeout: 10_000 })
    const calls = [run(), run()]
    await turn()
    t.match(await fail(), { statusCode: 503, wire: 'upstream_overloaded' })
    open()
    await Promise.all(calls)
  })

  t.test('that has no place in time is 503', async t => {
    const { run, fail, open, up } = await busy(t, 1, { size: 10, timeout: 5 })
    const first = run()
    await turn()
    t.match(await fail(), { statusCode: 503, wire: 'upstream_overloaded' })
    t.equal(up.attempts.length, 1)
    open()
    await first
  })

  t.test('is waited for until the client leaves', async t => {
    const { run, fail, open, state } = await busy(t, 1, { size: 10, timeout: 10_000 })
    const first = run()
    const leaving = new AbortController()
    const second = fail(ask, { signal: leaving.signal })
    await turn()
    leaving.abort()
    t.type(await second, Cancelled)
    await turn()
    t.match(state('up/m').places, { taken: 1, waiting: 0 })
    open()
    await first
  })

  t.test('without a free place is passed over for one that has one, and waited for only then', async t => {
    const { promise, open } = gate()
    const slow: Send = async attempt => {
      await promise
      return says('x')(attempt)
    }
    const one = scripted('one', slow)
    const two = scripted('two', slow)
    const target = (provider: string) => ({ provider, model: 'm', concurrency: 1 })
    const { run, state } = await stage(t, {
      providers: [one, two],
      models: { strategy: 'priority', targets: [target('one'), target('two')] }
    })
    const calls = [run(), run(), run()]
    await turn()
    t.strictSame([one.attempts.length, two.attempts.length], [1, 1])
    t.equal(state('one/m').places.waiting, 1)
    open()
    await Promise.all(calls)
  })

  t.test('that fails for good is not asked by those who wait for it', async t => {
    const { promise, open } = gate()
    const one = scripted('one', async () => {
      await promise
      throw new UpstreamError('broken')
    })
    const two = scripted('two')
    const { run, state } = await stage(t, {
      providers: [one, two],
      models: {
        test: { targets: [{ provider: 'one', model: 'm', concurrency: 2 }], retries: 0, fallbacks: ['spare'] },
        spare: { targets: at('two') }
      },
      routing: { breaker: { failures: 2 } }
    })
    const calls = Array.from({ length: 10 }, () => run())
    await turn()
    t.equal(state('one/m').places.waiting, 8)
    open()
    for (const answer of await Promise.all(calls)) t.equal(await textOf(answer), 'two says')
    t.equal(one.attempts.length, 2)
    t.match(state('one/m').places, { taken: 0, waiting: 0 })
  })

  t.test('gives the place back that a refused key had, and takes it for the next one', async t => {
    const up = keyed('up', 3, fails(status(401)), fails(status(401)), says('x'))
    const { run, state } = await stage(t, {
      providers: [up],
      models: { targets: [{ provider: 'up', model: 'm', concurrency: 1 }] }
    })
    t.equal(await textOf(await run()), 'x')
    t.equal(state('up/m').places.taken, 0)
  })

  t.test('has one number of places, the lowest that any alias says', async t => {
    const up = scripted('up')
    const target = { provider: 'up', model: 'm' }
    const { state } = await stage(t, {
      providers: [up],
      models: {
        test: { targets: [{ ...target, concurrency: 5 }] },
        narrow: { targets: [{ ...target, concurrency: 2 }] },
        open: { targets: [target] }
      }
    })
    t.equal(state('up/m').places.room?.concurrency, 2)
  })

  t.test('keeps its calls when the table lowers its places, and lets nobody in before enough have ended', async t => {
    const { run, up, open, gateway, state } = await busy(t, 3, { size: 10, timeout: 10_000 })
    const calls = Array.from({ length: 3 }, () => run())
    await turn()
    gateway.models.prepare({ models: { test: { targets: [{ provider: 'up', model: 'm', concurrency: 1 }] } } })()
    const late = run()
    await turn()
    t.equal(up.attempts.length, 3)
    t.equal(state('up/m').places.waiting, 1)
    open()
    await Promise.all([...calls, late])
    t.equal(up.attempts.length, 4)
    t.match(state('up/m').places, { taken: 0, waiting: 0 })
  })

  t.test('has its place taken for as long as its stream lasts', async t => {
    const source = feed(chunkFrames([chunk('x')]))
    const { run, state } = await stage(t, {
      providers: [scripted('up', source.send)],
      models: { targets: [{ provider: 'up', model: 'm', concurrency: 1 }] }
    })
    const frames = reader(await run(askStream))
    await frames.next()
    t.equal(state('up/m').places.taken, 1)
    await frames.return()
    t.equal(state('up/m').places.taken, 0)
  })
})

/** What providers do in the long test, drawn for each attempt. */
function anything(random: () => number): Send {
  const faults = [401, 403, 404, 408, 429, 429, 500, 500, 503, 503].map(code =>
    fails(status(code, { 'retry-after-ms': '1' }))
  )
  return async attempt => {
    for (let turns = Math.floor(random() * 4); turns > 0; turns--) await turn()
    const draw = random()
    if (draw < 0.5) return says('a few words')(attempt)
    if (draw < 0.8) return faults[Math.floor(random() * faults.length)]!(attempt)
    if (draw < 0.85) return patient(attempt)
    if (draw < 0.87) return silent(attempt)
    if (draw < 0.9) throw new TypeError('a bug')
    if (attempt.request.stream !== true) return says('x')(attempt)
    const source = feed(chunkFrames([chunk('x')]))
    if (draw < 0.95) source.fail(new UpstreamError('the connection broke.'))
    return source.send(attempt)
  }
}

/** Calls, and reads, drops or leaves. */
async function anyhow({ gateway }: Stage, random: () => number): Promise<void> {
  const leaving = new AbortController()
  const model = random() < 0.5 ? 'test' : 'hedged'
  const request = { ...(random() < 0.5 ? ask : askStream), model }
  const leaves = random() < 0.3 ? Math.floor(random() * 8) : null
  const draw = random()
  const calling = gateway.complete(request, gateway.caller({ signal: leaving.signal })).then(async answer => {
    if (!answer.stream) return
    const frames = reader(answer)
    if (draw < 0.3) await frames.return()
    else if (draw < 0.5) await frames.next().then(() => frames.return())
    else await textOf(answer)
  })
  calling.catch(() => {})
  if (leaves !== null) {
    for (let turns = 0; turns < leaves; turns++) await turn()
    leaving.abort()
  }
  await calling.catch(() => {})
}

t.test('after 2,000 calls that end in every way no place is taken, nobody waits and no probe is out', async t => {
  const random = seeded(20_26)
  const providers = ['one', 'two', 'three'].map(name => keyed(name, 2, anything(random)))
  const targets = ['one', 'two', 'three'].map(provider => ({
    provider,
    model: 'm',
    concurrency: 4,
    queue: { size: 5, timeout: 5 }
  }))
  const timeouts = { total: 20 }
  const found: Stage = await stage(t, {
    providers,
    random,
    models: {
      test: { targets, timeouts, fallbacks: ['spare'] },
      hedged: { targets, timeouts, hedge: { after: 1 }, fallbacks: ['spare'] },
      spare: { targets: [{ provider: 'one', model: 'spare', concurrency: 2, queue: { size: 2, timeout: 5 } }] }
    },
    async pause(milliseconds, signal) {
      await turn()
      found.clock.advance(milliseconds)
      signal.throwIfAborted()
    },
    before: app =>
      app.gateway.accountWith({
        async open() {
          if (random() < 0.5) await turn()
          if (random() < 0.1) throw new InsufficientQuota('Nothing is left.')
        }
      })
  })
  const { gateway, clock } = found
  for (let batch = 0; batch < 50; batch++) {
    await Promise.all(Array.from({ length: 40 }, () => anyhow(found, random)))
    clock.advance(batch % 2 === 0 ? 700_000 : 700)
  }
  for (let turns = 0; turns < 10; turns++) await turn()
  t.equal(gateway.running, 0)
  clock.advance(3_600_000)
  let attempts = 0
  for (const state of gateway.targets.states) {
    attempts += state.attempts
    t.equal(state.places.taken, 0, `${state.provider.name}/${state.model}: places`)
    t.equal(state.places.waiting, 0, 'waiting')
    t.equal(state.rest(clock.time), null, 'somebody may ask')
    for (const lane of state.lanes) t.ok(lane.passes(clock.time), 'with every key')
  }
  t.ok(attempts > 1_000, `${attempts} attempts`)
})
