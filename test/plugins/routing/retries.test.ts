import t from 'tap'
import { Cancelled, UpstreamError, UpstreamOverloaded, UpstreamTimeout } from '../../../schemas/errors.ts'
import { chunkFrames } from '../../../schemas/frames.ts'
import { seeded, turn } from '../../upstream.ts'
import { ask, askStream, fails, says, scripted, streams, textOf } from '../kernel.ts'
import { at, ends, keyed, keysOf, stage, status } from './kit.ts'

const broken = () => fails(new UpstreamError('broken'))

t.test('a repeat', async t => {
  t.test('comes twice on a target whose fault may pass', async t => {
    const up = scripted('up', broken(), broken(), says('at last'))
    const { run, expenses } = await stage(t, { providers: [up], models: { targets: at('up') } })
    const answer = await run()
    t.equal(await textOf(answer), 'at last')
    t.equal(answer.facts.attempts, 3)
    t.strictSame(ends(expenses), ['up failed', 'up failed', 'up settled'])
  })

  t.test('comes as often as is configured, and then the last fault is told', async t => {
    for (const retries of [0, 1, 5]) {
      const last = new UpstreamOverloaded()
      const up = scripted('up', ...Array.from({ length: retries }, broken), fails(last))
      const { fail, pauses } = await stage(t, {
        providers: [up],
        models: { targets: at('up'), retries },
        routing: { breaker: { failures: 100 } }
      })
      t.equal(await fail(), last)
      t.equal(up.attempts.length, retries + 1)
      t.equal(pauses.length, retries)
    }
  })

  t.test('waits a quarter of a second, then twice as long each time, up to four', async t => {
    const { fail, pauses } = await stage(t, {
      providers: [scripted('up', broken())],
      models: { targets: at('up'), retries: 7 },
      routing: { breaker: { failures: 100 } },
      random: () => 1 - 2 ** -53
    })
    await fail()
    t.strictSame(pauses.map(Math.round), [250, 500, 1_000, 2_000, 4_000, 4_000, 4_000])
  })

  t.test('waits between half of that and all of it', async t => {
    const random = seeded(9)
    const found: number[] = []
    for (let call = 0; call < 40; call++) {
      const { fail, pauses } = await stage(t, {
        providers: [scripted('up', broken())],
        models: { targets: at('up'), retries: 1 },
        random
      })
      await fail()
      found.push(...pauses)
    }
    t.ok(found.every(pause => pause >= 125 && pause <= 250))
    t.ok(Math.min(...found) < 150 && Math.max(...found) > 225, 'spread over it')
  })

  t.test('comes after every target was asked, and only on those whose fault may pass', async t => {
    const one = scripted('one', broken(), says('one'))
    const two = scripted('two', fails(status(404)))
    const three = scripted('three', fails(new UpstreamTimeout('too slow')))
    const { run, expenses, pauses } = await stage(t, {
      providers: [one, two, three],
      models: { strategy: 'priority', targets: at('one', 'two', 'three') }
    })
    t.equal(await textOf(await run()), 'one')
    t.strictSame(
      expenses.map(({ target }) => target.provider.name),
      ['one', 'two', 'three', 'one']
    )
    t.equal(pauses.length, 1)
  })

  const never: Record<string, Error> = {
    'a timeout': new UpstreamTimeout('nothing came'),
    'a 408': status(408),
    'a 404': status(404),
    'a refused key': status(401),
    'a redirect': status(302)
  }
  for (const [what, fault] of Object.entries(never)) {
    t.test(`does not come after ${what}`, async t => {
      const up = scripted('up', fails(fault))
      const { fail, pauses } = await stage(t, { providers: [up], models: { targets: at('up') } })
      t.equal(await fail(), fault)
      t.equal(up.attempts.length, 1)
      t.strictSame(pauses, [])
    })
  }

  for (const code of [500, 502, 503, 529, 429]) {
    t.test(`comes after a ${code}`, async t => {
      const up = scripted('up', fails(status(code)), says('x'))
      const { run } = await stage(t, { providers: [up], models: { targets: at('up') } })
      await run()
      t.equal(up.attempts.length, 2)
    })
  }

  t.test('comes after a stream that ended without a token', async t => {
    const up = scripted('up', streams(chunkFrames([])), says('x'))
    const { run } = await stage(t, { providers: [up], models: { targets: at('up') } })
    t.equal(await textOf(await run(askStream)), 'x')
  })

  t.test('does not come when its pause is longer than what is left of the time', async t => {
    for (const models of [{ timeouts: { total: 200 } }, {}]) {
      const up = scripted('up', broken())
      const { fail, pauses } = await stage(t, {
        providers: [up],
        models: { targets: at('up'), ...models },
        random: () => 0.9
      })
      const error = await fail(ask, 'timeouts' in models ? {} : { deadline: 200 })
      t.match(error, { wire: 'upstream_error' }, 'the fault itself, at once')
      t.strictSame(pauses, [])
      t.equal(up.attempts.length, 1)
    }
  })

  t.test('does not come on a target that was left alone meanwhile', async t => {
    const up = scripted('up', broken())
    const { fail, pauses } = await stage(t, {
      providers: [up],
      models: { targets: at('up') },
      routing: { breaker: { failures: 2 } }
    })
    await fail()
    t.equal(up.attempts.length, 2)
    t.equal(pauses.length, 1)
  })

  t.test('is given up at once, with the reason, by a client that leaves', async t => {
    const up = scripted('up', broken())
    const leaving = new AbortController()
    const { fail, gateway } = await stage(t, {
      providers: [up],
      models: { targets: at('up') },
      pause: (_, signal) => new Promise((_, reject) => signal.addEventListener('abort', () => reject(signal.reason)))
    })
    const failing = fail(ask, { signal: leaving.signal })
    await turn()
    leaving.abort()
    t.type(await failing, Cancelled)
    await turn()
    t.equal(up.attempts.length, 1)
    t.equal(gateway.running, 0)
  })

  t.test('is given up at once by the real clock too', async t => {
    const up = scripted('up', broken())
    const leaving = new AbortController()
    const { fail } = await stage(t, {
      providers: [up],
      models: { targets: at('up') },
      pause: undefined,
      random: () => 1
    })
    const started = performance.now()
    const failing = fail(ask, { signal: leaving.signal })
    await turn()
    leaving.abort()
    t.type(await failing, Cancelled)
    t.ok(performance.now() - started < 200)
  })
})

t.test('retry-after', async t => {
  t.test('is waited for before a repeat, on a limit', async t => {
    const up = scripted('up', fails(status(429, { 'retry-after': '3' })), says('x'))
    const { run, pauses } = await stage(t, { providers: [up], models: { targets: at('up') } })
    await run()
    t.strictSame(pauses, [3_001])
  })

  t.test('is waited for before a repeat, on an overload', async t => {
    const up = scripted('up', fails(status(503, { 'retry-after-ms': '1500' })), says('x'))
    const { run, pauses } = await stage(t, { providers: [up], models: { targets: at('up') } })
    await run()
    t.strictSame(pauses, [1_501])
  })

  t.test('does not make the pause shorter', async t => {
    const up = scripted('up', fails(status(429, { 'retry-after-ms': '10' })), says('x'))
    const { run, pauses } = await stage(t, { providers: [up], models: { targets: at('up') } })
    await run()
    t.strictSame(pauses, [125])
  })

  t.test('is waited for up to ten seconds; for more the client is told', async t => {
    const short = scripted('up', fails(status(429, { 'retry-after': '10' })), says('x'))
    await (await stage(t, { providers: [short], models: { targets: at('up') } })).run()
    t.equal(short.attempts.length, 2)
    const long = scripted('up', fails(status(429, { 'retry-after': '11' })))
    const { fail, pauses } = await stage(t, { providers: [long], models: { targets: at('up') } })
    t.match(await fail(), { statusCode: 429, headers: { 'retry-after': '11' } })
    t.strictSame(pauses, [])
  })

  t.test('is not waited for while another key is free', async t => {
    const up = keyed('up', 2, fails(status(429, { 'retry-after': '3' })), says('x'))
    const { run, pauses } = await stage(t, { providers: [up], models: { targets: at('up') } })
    await run()
    t.strictSame(keysOf(up), [0, 1])
    t.strictSame(pauses, [])
  })

  t.test('of several keys is that of the first that is free', async t => {
    let call = 0
    const up = keyed('up', 2, async attempt => {
      if (call++ < 2) throw status(429, { 'retry-after': attempt.key === 0 ? '5' : '2' })
      return says(`key ${attempt.key}`)(attempt)
    })
    const { run, pauses } = await stage(t, { providers: [up], models: { targets: at('up') } })
    t.equal(await textOf(await run()), 'key 1')
    t.strictSame(pauses, [2_001])
  })

  t.test('of one target does not hold up another one that may be asked sooner', async t => {
    const one = scripted('one', fails(status(429, { 'retry-after': '9' })))
    const two = scripted('two', fails(status(500)), says('from two'))
    const { run, pauses } = await stage(t, {
      providers: [one, two],
      models: { strategy: 'priority', targets: at('one', 'two') }
    })
    t.equal(await textOf(await run()), 'from two')
    t.equal(one.attempts.length, 1, 'and is honoured')
    t.ok(pauses[0]! < 251)
  })

  t.test('is not waited for while there is a fallback', async t => {
    const up = scripted('up', fails(status(429, { 'retry-after': '3' })))
    const { run, pauses } = await stage(t, {
      providers: [up, scripted('spare')],
      models: { test: { targets: at('up'), fallbacks: ['spare'] }, spare: { targets: at('spare') } }
    })
    t.equal(await textOf(await run()), 'spare says')
    t.strictSame(pauses, [])
  })

  t.test('that another call was told is waited for as well', async t => {
    const up = scripted('up', fails(status(429, { 'retry-after': '3' })), says('x'))
    const { run, pauses, expenses } = await stage(t, { providers: [up], models: { targets: at('up') } })
    await t.rejects(run(ask, { deadline: 100 }))
    await run()
    t.strictSame(pauses, [3_001])
    t.strictSame(ends(expenses), ['up failed', 'up settled'])
  })

  t.test('that another call was told is not waited for without repeats, nor while there is a fallback', async t => {
    const limit = fails(status(429, { 'retry-after': '3' }))
    const models = { test: { targets: at('up'), retries: 0 }, more: { targets: at('up'), fallbacks: ['spare'] } }
    const { run, fail, pauses, expenses } = await stage(t, {
      providers: [scripted('up', limit), scripted('spare')],
      models: { ...models, spare: { targets: at('spare') } }
    })
    await fail()
    t.match(await fail(), { statusCode: 429, headers: { 'retry-after': '3' } })
    t.equal(await textOf(await run({ ...ask, model: 'more' })), 'spare says')
    t.strictSame(pauses, [])
    t.strictSame(ends(expenses), ['up failed', 'spare settled'])
  })

  t.test('ends for those who wait for the same moment one after the other', async t => {
    const random = seeded(4)
    const found: number[] = []
    for (let call = 0; call < 30; call++) {
      const up = scripted('up', fails(status(429, { 'retry-after': '3' })), says('x'))
      const { run, pauses } = await stage(t, { providers: [up], models: { targets: at('up') }, random })
      await run()
      found.push(...pauses)
    }
    t.ok(found.every(pause => pause >= 3_000 && pause <= 3_251))
    t.ok(Math.max(...found) - Math.min(...found) > 150)
  })

  t.test('longer than what is left of the time is not waited for', async t => {
    const up = scripted('up', fails(status(429, { 'retry-after': '3' })))
    const { fail, pauses } = await stage(t, { providers: [up], models: { targets: at('up') } })
    t.match(await fail(ask, { deadline: 2_900 }), { statusCode: 429 })
    t.strictSame(pauses, [])
  })
})
