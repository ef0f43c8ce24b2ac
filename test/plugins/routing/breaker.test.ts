import t from 'tap'
import { Breaker } from '../../../plugins/routing/breaker.ts'
import { UpstreamError } from '../../../schemas/errors.ts'
import { chunkFrames } from '../../../schemas/frames.ts'
import type { Send } from '../../../schemas/provider.ts'
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
  silent,
  textOf
} from '../kernel.ts'
import { at, ends, keyed, stage, status } from './kit.ts'

const options = { failures: 3, openFor: 100, mostOpenFor: 350 }
const call = {}

/** Opens it at 0. */
function opened(): Breaker {
  const breaker = new Breaker(options)
  for (let failure = 0; failure < 3; failure++) breaker.fail(call, 0)
  return breaker
}

t.test('a breaker', async t => {
  t.test('opens with the last of so many failures one after another, and says so', async t => {
    const breaker = new Breaker(options)
    t.strictSame([breaker.fail(call, 0), breaker.fail(call, 0), breaker.fail(call, 0)], [false, false, true])
    t.equal(breaker.state(0), 'open')
    t.equal(breaker.openUntil, 100)
    t.notOk(breaker.passes(99))
  })

  t.test('counts anew after a success', async t => {
    const breaker = new Breaker(options)
    breaker.fail(call, 0)
    breaker.fail(call, 0)
    t.notOk(breaker.succeed(0), 'it was closed before')
    breaker.fail(call, 0)
    breaker.fail(call, 0)
    t.equal(breaker.state(0), 'closed')
  })

  t.test('does not open for failures in a row while somebody succeeds now and then', async t => {
    const breaker = new Breaker({ ...options, quiet: 50 })
    breaker.succeed(0)
    for (let time = 1; time < 50; time++) t.notOk(breaker.fail(call, time))
    t.ok(breaker.fail(call, 50), 'until it has been quiet for so long')
    const unheard = new Breaker({ ...options, quiet: 50 })
    unheard.fail(call, 0)
    unheard.fail(call, 0)
    t.ok(unheard.fail(call, 0), 'who has never succeeded is not waited for')
  })

  t.test('lets one call pass when its time is over, until that has ended', async t => {
    const breaker = opened()
    t.equal(breaker.state(100), 'half-open')
    t.ok(breaker.passes(100))
    const probe = {}
    breaker.enter(probe)
    t.notOk(breaker.passes(100))
    breaker.release({})
    t.notOk(breaker.passes(100), 'somebody else has ended')
    breaker.release(probe)
    t.ok(breaker.passes(100))
  })

  t.test('closes when its probe succeeds, and says so', async t => {
    const breaker = opened()
    breaker.enter(call)
    t.ok(breaker.succeed(100))
    t.equal(breaker.state(100), 'closed')
    breaker.fail(call, 100)
    breaker.fail(call, 100)
    breaker.fail(call, 100)
    t.equal(breaker.openUntil, 200, 'and is open for no longer than the first time')
  })

  t.test('stays open twice as long each time that its probe fails, up to the most', async t => {
    const breaker = opened()
    const times: number[] = []
    for (let probe = 0; probe < 4; probe++) {
      const now = breaker.openUntil
      breaker.enter(call)
      t.ok(breaker.fail(call, now))
      times.push(breaker.openUntil - now)
    }
    t.strictSame(times, [200, 350, 350, 350])
  })

  t.test('does not care for what was on its way when it opened', async t => {
    const breaker = opened()
    t.notOk(breaker.succeed(50))
    t.notOk(breaker.mend(50))
    t.notOk(breaker.fail({}, 50))
    t.equal(breaker.openUntil, 100)
    t.notOk(breaker.fail({}, 100), 'nor when it is half-open: the probe decides')
    t.equal(breaker.state(100), 'half-open')
  })

  t.test('keeps its probe while a late failure comes', async t => {
    const breaker = opened()
    breaker.enter(call)
    breaker.fail({}, 100)
    t.notOk(breaker.passes(100))
  })

  t.test('that closed on a sign of life opens again with the next failure, for longer', async t => {
    const breaker = opened()
    t.ok(breaker.mend(100))
    t.ok(breaker.passes(100))
    t.ok(breaker.fail({}, 110))
    t.equal(breaker.openUntil, 310)
  })

  t.test('that closed on a sign of life is as before once a call has ended well', async t => {
    const breaker = opened()
    breaker.mend(100)
    breaker.succeed(100)
    t.notOk(breaker.fail(call, 100))
    t.notOk(breaker.fail(call, 100))
    t.ok(breaker.fail(call, 100))
    t.equal(breaker.openUntil, 200)
  })

  t.test('takes a sign of life for nothing while it is closed', async t => {
    const breaker = new Breaker(options)
    breaker.fail(call, 0)
    breaker.fail(call, 0)
    t.notOk(breaker.mend(0))
    t.ok(breaker.fail(call, 0), 'the two failures still count')
  })

  t.test('opened for a time keeps a longer one that runs already', async t => {
    const breaker = new Breaker(options)
    breaker.open(0, 300)
    breaker.open(0, 100)
    t.equal(breaker.openUntil, 300)
    breaker.open(0, 10_000)
    t.equal(breaker.openUntil, 350, 'and not for more than the most')
  })
})

const broken = fails(new UpstreamError('broken'))

t.test('a target', async t => {
  t.test('is left alone after five failures, and asked once its time is over', async t => {
    const up = scripted('up', broken)
    const lines: string[] = []
    const { fail, clock, state } = await stage(t, {
      providers: [up],
      models: { targets: at('up'), retries: 0 },
      log: line => lines.push(line)
    })
    for (let call = 0; call < 5; call++) t.match(await fail(), { wire: 'upstream_error' })
    t.equal(state('up/m').breaker.state(clock.time), 'open')
    t.match(await fail(), { wire: 'upstream_overloaded', statusCode: 503, headers: { 'retry-after': '1' } })
    t.equal(up.attempts.length, 5)
    t.match(lines, [/"provider":"up","model":"m".*"code":"upstream_error".*a target is left alone/])
    clock.advance(1_000)
    await fail()
    t.equal(up.attempts.length, 6)
    t.equal(state('up/m').breaker.openUntil, clock.time + 2_000)
  })

  t.test('is left alone as it is configured', async t => {
    const up = scripted('up', broken)
    const { fail, clock, state } = await stage(t, {
      providers: [up],
      models: { targets: at('up'), retries: 0 },
      routing: { breaker: { failures: 1, openFor: 7_000 } }
    })
    await fail()
    t.equal(state('up/m').breaker.openUntil, clock.time + 7_000)
  })

  t.test('that is left alone is no reason to leave another one alone', async t => {
    const two = scripted('two')
    const { run, expenses } = await stage(t, {
      providers: [scripted('one', broken), two],
      models: { strategy: 'priority', targets: at('one', 'two'), retries: 0 }
    })
    for (let call = 0; call < 7; call++) await run()
    t.equal(expenses.length, 5 * 2 + 2)
    t.equal(two.attempts.length, 7)
  })

  for (const code of [400, 404, 408, 409, 413, 422, 429]) {
    t.test(`is not left alone for ten answers of ${code}`, async t => {
      const up = scripted('up', fails(status(code, { 'retry-after': '0' })))
      const { fail, state, clock } = await stage(t, { providers: [up], models: { targets: at('up'), retries: 0 } })
      for (let call = 0; call < 10; call++) await fail()
      t.equal(up.attempts.length, 10)
      t.equal(state('up/m').breaker.state(clock.time), 'closed')
    })
  }

  t.test('is not left alone for ten refused keys', async t => {
    const up = keyed('up', 20, fails(status(401)))
    const { fail, state, clock } = await stage(t, { providers: [up], models: { targets: at('up') } })
    await fail()
    t.equal(up.attempts.length, 20)
    t.equal(state('up/m').breaker.state(clock.time), 'closed')
  })

  t.test('whose time is over gets exactly one of many calls', async t => {
    const { promise, open } = gate()
    const one = scripted('one', broken, broken, broken, broken, broken, async attempt => {
      await promise
      return says('from one')(attempt)
    })
    const two = scripted('two')
    const { run, clock } = await stage(t, {
      providers: [one, two],
      models: { strategy: 'priority', targets: at('one', 'two'), retries: 0 }
    })
    for (let call = 0; call < 5; call++) await run()
    clock.advance(1_000)
    const calls = Array.from({ length: 20 }, () => run())
    await turn()
    t.equal(one.attempts.length, 6)
    open()
    await Promise.all(calls)
    t.equal(one.attempts.length, 6)
    await run()
    t.equal(one.attempts.length, 7, 'and is asked as before when that one went well')
  })

  t.test('whose probe is left by its client is probed by the next call', async t => {
    const up = scripted('up', broken, broken, broken, broken, broken, patient, says('again'))
    const { run, fail, clock } = await stage(t, { providers: [up], models: { targets: at('up'), retries: 0 } })
    for (let call = 0; call < 5; call++) await fail()
    clock.advance(1_000)
    const leaving = new AbortController()
    const probe = fail(ask, { signal: leaving.signal })
    await turn()
    t.match(await fail(), { wire: 'upstream_overloaded' }, 'meanwhile nobody else')
    leaving.abort()
    t.match(await probe, { wire: 'cancelled' })
    t.equal(await textOf(await run()), 'again')
  })

  t.test('whose probe is refused by the books is probed by the next call', async t => {
    const up = scripted('up', broken, broken, broken, broken, broken, says('again'))
    let refuses = false
    const { run, fail, clock, state } = await stage(t, {
      providers: [up],
      models: { targets: at('up'), retries: 0 },
      before: app =>
        app.gateway.accountWith({
          open() {
            if (refuses) throw new Error('no money left')
          }
        })
    })
    for (let call = 0; call < 5; call++) await fail()
    clock.advance(1_000)
    refuses = true
    t.match(await fail(), { message: 'no money left' })
    t.equal(state('up/m').attempts, 5, 'what was not sent is no attempt')
    refuses = false
    t.equal(await textOf(await run()), 'again')
  })

  t.test('is open again with the first token of its probe, not only with its end', async t => {
    const source = feed(chunkFrames([chunk('x')]))
    const up = scripted('up', broken, broken, broken, broken, broken, source.send, says('whole'))
    const { run, fail, clock } = await stage(t, { providers: [up], models: { targets: at('up'), retries: 0 } })
    for (let call = 0; call < 5; call++) await fail()
    clock.advance(1_000)
    const frames = reader(await run(askStream))
    t.equal(await textOf(await run()), 'whole')
    await frames.return()
  })

  t.test('whose streams break in the middle is left alone like any other that fails', async t => {
    const up = scripted('up', attempt => {
      const source = feed(chunkFrames([chunk('x')]))
      source.fail(new UpstreamError('the connection broke.'))
      return source.send(attempt)
    })
    const { run, state, clock } = await stage(t, { providers: [up], models: { targets: at('up'), retries: 0 } })
    for (let call = 0; call < 5; call++) await t.rejects(run(askStream).then(textOf))
    t.equal(state('up/m').breaker.state(clock.time), 'open')
  })

  t.test('whose streams end well is not left alone for one that breaks now and then', async t => {
    let call = 0
    const up = scripted('up', attempt => {
      const source = feed(chunkFrames([chunk('x')]))
      if (call++ % 2 === 0) source.fail(new UpstreamError('the connection broke.'))
      else {
        source.push(chunkFrames([finish()]))
        source.end()
      }
      return source.send(attempt)
    })
    const { run, state, clock } = await stage(t, { providers: [up], models: { targets: at('up'), retries: 0 } })
    for (let turns = 0; turns < 20; turns++)
      await run(askStream)
        .then(textOf)
        .catch(() => {})
    t.equal(state('up/m').breaker.state(clock.time), 'closed')
  })

  t.test('that is silent for the whole time of the call has failed', async t => {
    const { fail, state, clock, expenses } = await stage(t, {
      providers: [scripted('up', silent)],
      models: { targets: at('up'), retries: 0, timeouts: { total: 5 } }
    })
    for (let call = 0; call < 5; call++) t.match(await fail(), { wire: 'upstream_timeout' })
    t.equal(state('up/m').breaker.state(clock.time), 'open')
    t.equal(ends(expenses)[0], 'up interrupted')
    t.match(state('up/m').lastError, { code: 'upstream_timeout' })
  })

  t.test('that is silent for as long as the client waits may be well', async t => {
    const { fail, state, clock } = await stage(t, {
      providers: [scripted('up', silent)],
      models: { targets: at('up'), retries: 0 }
    })
    for (let call = 0; call < 10; call++) t.match(await fail(ask, { deadline: 2 }), { wire: 'upstream_timeout' })
    t.equal(state('up/m').breaker.state(clock.time), 'closed')
    t.equal(state('up/m').failures, 0)
  })

  t.test('that answers after its call has ended does not make up for it', async t => {
    const { promise, open } = gate()
    const late: Send = async attempt => {
      await promise
      return says('late')(attempt)
    }
    const { fail, state, clock } = await stage(t, {
      providers: [scripted('up', late, late, late, late, silent)],
      models: { targets: at('up'), retries: 0, timeouts: { total: 5 } }
    })
    for (let call = 0; call < 4; call++) await fail(askStream)
    open()
    await turn()
    t.equal(state('up/m').firstToken.size, 0)
    await fail(askStream)
    t.equal(state('up/m').breaker.state(clock.time), 'open')
  })

  t.test('that answered a moment ago is not left alone yet, and is after a second of nothing but failures', async t => {
    const up = scripted('up', says('x'), broken)
    const { run, fail, clock, state } = await stage(t, { providers: [up], models: { targets: at('up'), retries: 0 } })
    await run()
    for (let call = 0; call < 20; call++) {
      await fail()
      clock.advance(49)
    }
    t.equal(state('up/m').breaker.state(clock.time), 'closed')
    clock.advance(20)
    await fail()
    t.equal(state('up/m').breaker.state(clock.time), 'open')
    t.equal(up.attempts.length, 22)
  })

  t.test('is one, by whatever alias it is reached', async t => {
    const up = scripted('up', broken)
    const { fail } = await stage(t, {
      providers: [up],
      models: { test: { targets: at('up'), retries: 0 }, other: { targets: at('up'), retries: 0 } }
    })
    for (let call = 0; call < 5; call++) await fail()
    t.match(await fail({ ...ask, model: 'other' }), { wire: 'upstream_overloaded' })
    t.equal(up.attempts.length, 5)
  })

  t.test('is the same after a change of the table', async t => {
    const up = scripted('up', broken)
    const { fail, gateway, state } = await stage(t, { providers: [up], models: { targets: at('up'), retries: 0 } })
    for (let call = 0; call < 5; call++) await fail()
    const before = state('up/m')
    gateway.models.prepare({ models: { test: { targets: at('up'), retries: 1 }, other: { targets: at('up') } } })()
    t.equal(state('up/m'), before)
    t.match(await fail({ ...ask, model: 'other' }), { wire: 'upstream_overloaded' })
    t.equal(up.attempts.length, 5)
  })
})
