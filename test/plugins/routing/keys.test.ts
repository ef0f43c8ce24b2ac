import t from 'tap'
import { UpstreamError } from '../../../schemas/errors.ts'
import type { Provider, Send } from '../../../schemas/provider.ts'
import { gate, turn } from '../../upstream.ts'
import { ask, fails, patient, says, scripted, textOf } from '../kernel.ts'
import { at, ends, keyed, keysOf, stage, status } from './kit.ts'

/** Refuses these keys with these statuses; answers with the others. */
function refusing(refused: Record<number, number>, headers: Record<string, string> = {}): Send {
  return async attempt => {
    const code = refused[attempt.key]
    if (code !== undefined) throw status(code, headers)
    return says(`key ${attempt.key}`)(attempt)
  }
}

const minute = 60_000

t.test('keys', async t => {
  t.test('are used in turn', async t => {
    const up = keyed('up', 3)
    const { run } = await stage(t, { providers: [up], models: { targets: at('up') } })
    for (let call = 0; call < 7; call++) await run()
    t.strictSame(keysOf(up), [0, 1, 2, 0, 1, 2, 0])
  })

  t.test('are none where the provider says nothing of them', async t => {
    const up = scripted('up')
    const { run } = await stage(t, { providers: [up], models: { targets: at('up') } })
    await run()
    await run()
    t.strictSame(keysOf(up), [0, 0])
  })

  for (const code of [401, 402, 403, 429]) {
    t.test(
      `are tried one after the other within a call after a ${code}, each with its own line in the books`,
      async t => {
        const up = keyed('up', 3, refusing({ 0: code, 1: code }))
        const { run, expenses, pauses } = await stage(t, { providers: [up], models: { targets: at('up') } })
        const answer = await run()
        t.equal(await textOf(answer), 'key 2')
        t.strictSame(keysOf(up), [0, 1, 2])
        t.strictSame(ends(expenses), ['up failed', 'up failed', 'up settled'])
        t.strictSame(
          expenses.map(({ number }) => number),
          [1, 2, 3]
        )
        t.equal(answer.facts.attempts, 3)
        t.strictSame(pauses, [], 'without a pause')
      }
    )
  }

  t.test('are not tried one after the other when it is not the key that failed', async t => {
    const up = keyed('up', 3, fails(new UpstreamError('broken')))
    const { fail } = await stage(t, { providers: [up], models: { targets: at('up'), retries: 0 } })
    await fail()
    t.strictSame(keysOf(up), [0])
  })

  t.test('are each tried once by a call, also by one that prefers a key', async t => {
    const up = keyed('up', 3, fails(status(403)))
    const { fail, state, clock } = await stage(t, { providers: [up], models: { targets: at('up'), retries: 0 } })
    await fail({ ...ask, prompt_cache_key: 'k' })
    t.strictSame(keysOf(up).sort(), [0, 1, 2])
    for (const lane of state('up/m').lanes) t.equal(lane.rest(clock.time), null, 'one caller rests none of them')
  })

  t.test('that are refused never stop the others', async t => {
    const up = keyed('up', 3, refusing({ 1: 401 }))
    const lines: string[] = []
    const { run } = await stage(t, { providers: [up], models: { targets: at('up') }, log: line => lines.push(line) })
    for (let call = 0; call < 30; call++) await run()
    t.equal(keysOf(up).filter(key => key === 1).length, 1)
    t.equal(up.attempts.length, 31)
    t.match(lines, [/"provider":"up","model":"m","key":2,.*a key is refused and rests/])
  })

  t.test('that are refused once rest for a minute, then for two, at most for ten', async t => {
    const up = keyed('up', 2, refusing({ 0: 401 }))
    const { run, clock, state } = await stage(t, { providers: [up], models: { targets: at('up') } })
    await run()
    const rests: number[] = []
    for (let round = 0; round < 6; round++) {
      const { until = 0 } = state('up/m').lanes[0]!.rest(clock.time) ?? {}
      rests.push((until - clock.time) / minute)
      clock.advance(until - clock.time - 1)
      await run()
      await run()
      t.equal(keysOf(up).filter(key => key === 0).length, round + 1, 'it is not asked meanwhile')
      clock.advance(1)
      await run()
      await run()
    }
    t.strictSame(rests, [1, 2, 4, 8, 10, 10])
  })

  t.test('whose rest is over are tried by one call only', async t => {
    const { promise, open } = gate()
    let waits = false
    const up = keyed('up', 2, async attempt => {
      if (attempt.key === 0 && !waits) throw status(401)
      if (attempt.key === 0) await promise
      return says(`key ${attempt.key}`)(attempt)
    })
    const { run, clock } = await stage(t, { providers: [up], models: { targets: at('up') } })
    await run()
    clock.advance(minute)
    waits = true
    const calls = Array.from({ length: 10 }, () => run())
    await turn()
    t.equal(keysOf(up).filter(key => key === 0).length, 2)
    open()
    await Promise.all(calls)
    for (let call = 0; call < 4; call++) await run()
    t.equal(keysOf(up).filter(key => key === 0).length, 4, 'and are used as before when they are well')
  })

  for (const [code, refusals, rest] of [
    [401, 1, minute],
    [403, 3, minute / 2]
  ] as const) {
    t.test(`whose probe after a ${code} is left by its client are probed by the next call`, async t => {
      const up = keyed('up', 1, ...Array.from({ length: refusals }, () => fails(status(code))), patient, says('x'))
      const { run, fail, clock } = await stage(t, { providers: [up], models: { targets: at('up') } })
      for (let call = 0; call < refusals; call++) await fail()
      clock.advance(rest)
      const leaving = new AbortController()
      const probe = fail(ask, { signal: leaving.signal })
      await turn()
      t.match(await fail(), { statusCode: 502 }, 'meanwhile nobody else')
      leaving.abort()
      await probe
      t.equal(await textOf(await run()), 'x')
    })
  }

  t.test('that are refused at one model rest for all of their provider', async t => {
    const up = keyed('up', 2, refusing({ 0: 402 }))
    const { run } = await stage(t, {
      providers: [up],
      models: { test: { targets: at('up') }, other: { targets: [{ provider: 'up', model: 'other' }] } }
    })
    await run()
    for (let call = 0; call < 4; call++) await run({ ...ask, model: 'other' })
    t.equal(keysOf(up).filter(key => key === 0).length, 1)
  })

  t.test('that are limited or forbidden at one model are used for the others', async t => {
    for (const code of [429, 403]) {
      const up = keyed('up', 2, async attempt => {
        if (attempt.key === 0 && attempt.request.model === 'm') throw status(code)
        return says('x')(attempt)
      })
      const { run } = await stage(t, {
        providers: [up],
        models: { test: { targets: at('up') }, other: { targets: [{ provider: 'up', model: 'other' }] } }
      })
      for (let call = 0; call < 6; call++) await run()
      up.attempts.length = 0
      for (let call = 0; call < 4; call++) await run({ ...ask, model: 'other' })
      t.strictSame(keysOf(up), [0, 1, 0, 1])
    }
  })

  t.test('that are forbidden rest after three times in a row, for half a minute', async t => {
    const up = keyed('up', 2, refusing({ 0: 403 }))
    const { run, clock, state } = await stage(t, { providers: [up], models: { targets: at('up') } })
    const asked = () => keysOf(up).filter(key => key === 0).length
    for (let call = 0; call < 20; call++) await run()
    t.equal(asked(), 3)
    t.equal(state('up/m').lanes[0]?.rest(clock.time)?.until, clock.time + 30_000)
  })

  t.test('that are forbidden now and then do not rest', async t => {
    let calls = 0
    const up = keyed('up', 2, async attempt => {
      if (attempt.key === 0 && calls++ % 3 < 2) throw status(403)
      return says('x')(attempt)
    })
    const { run, clock, state } = await stage(t, { providers: [up], models: { targets: at('up') } })
    for (let call = 0; call < 30; call++) await run()
    t.equal(state('up/m').lanes[0]?.rest(clock.time), null)
  })

  t.test('that are limited rest for as long as the vendor says', async t => {
    const up = keyed('up', 2, refusing({ 0: 429 }, { 'retry-after': '7' }))
    const { run, clock, state } = await stage(t, { providers: [up], models: { targets: at('up') } })
    await run()
    t.strictSame(state('up/m').lanes[0]?.rest(clock.time), { why: 'limited', until: clock.time + 7_000 })
    clock.advance(6_999)
    await run()
    await run()
    t.strictSame(keysOf(up), [0, 1, 1, 1])
    clock.advance(1)
    await run()
    await run()
    t.equal(keysOf(up).filter(key => key === 0).length, 2)
  })

  t.test('that are limited without a word rest for a second, then for two, and anew after a success', async t => {
    let limits = true
    const up = keyed('up', 2, async attempt => {
      if (attempt.key === 0 && limits) throw status(429)
      return says('x')(attempt)
    })
    const { run, clock, state } = await stage(t, { providers: [up], models: { targets: at('up') } })
    const rest = async () => {
      await run()
      await run()
      const until = state('up/m').lanes[0]?.rest(clock.time)?.until
      if (until === undefined) return null
      const rest = until - clock.time
      clock.advance(rest)
      return rest
    }
    t.strictSame([await rest(), await rest(), await rest()], [1_000, 2_000, 4_000])
    limits = false
    t.equal(await rest(), null)
    limits = true
    t.equal(await rest(), 1_000)
  })

  t.test('that were limited may be used by everybody once their time is over', async t => {
    let limits = true
    const { promise, open } = gate()
    const up = keyed('up', 1, async attempt => {
      if (limits) throw status(429, { 'retry-after': '20' })
      await promise
      return says('x')(attempt)
    })
    const { run, fail, clock } = await stage(t, { providers: [up], models: { targets: at('up') } })
    await fail()
    limits = false
    clock.advance(20_000)
    const calls = Array.from({ length: 5 }, () => run())
    await turn()
    t.equal(up.attempts.length, 6)
    open()
    await Promise.all(calls)
  })

  t.test('that are told to wait for nothing do not rest', async t => {
    const up = keyed('up', 2, refusing({ 0: 429 }, { 'retry-after': '0' }))
    const { run, clock, state } = await stage(t, { providers: [up], models: { targets: at('up') } })
    await run()
    t.equal(state('up/m').lanes[0]?.rest(clock.time), null)
  })
})

t.test('when all keys', async t => {
  async function resting(code: number, headers: Record<string, string> = {}) {
    const providers: Provider[] = [keyed('up', 2, fails(status(code, headers)))]
    const found = await stage(t, { providers, models: { targets: at('up'), retries: 0 } })
    return { ...found, first: await found.fail(), later: await found.fail() }
  }

  t.test('are refused the answer is 502, and a repeat is useless', async t => {
    const { first, later, expenses } = await resting(401)
    t.match(first, { statusCode: 502, wire: 'upstream_error' })
    t.match(later, { statusCode: 502, wire: 'upstream_error', headers: { 'x-should-retry': 'false' } })
    t.match(later.message, /refuses every key/)
    t.equal(expenses.length, 2, 'nobody is asked for it')
  })

  t.test('are limited the answer is 429 with the time of the first that is free', async t => {
    const { later, expenses } = await resting(429, { 'retry-after': '12' })
    t.match(later, { statusCode: 429, wire: 'upstream_rate_limited', headers: { 'retry-after': '12' } })
    t.equal(expenses.length, 2)
  })

  t.test('rest, some refused and some limited, the limited ones say when', async t => {
    const up = keyed('up', 2, async ({ key }) => {
      throw key === 0 ? status(401) : status(429, { 'retry-after': '5' })
    })
    const { fail } = await stage(t, { providers: [up], models: { targets: at('up'), retries: 0 } })
    await fail()
    t.match(await fail(), { statusCode: 429, headers: { 'retry-after': '5' } })
  })

  t.test('of one target are refused and another target is left alone, the answer is 503', async t => {
    const providers = [keyed('one', 1, fails(status(401))), scripted('two', fails(new UpstreamError('broken')))]
    const { fail } = await stage(t, {
      providers,
      models: { targets: at('one', 'two'), retries: 0 },
      routing: { breaker: { failures: 1, openFor: 3_000 } }
    })
    await fail()
    t.match(await fail(), { statusCode: 503, wire: 'upstream_overloaded', headers: { 'retry-after': '3' } })
  })

  t.test('of one target are refused and another has no place free, no key is blamed', async t => {
    const { promise, open } = gate()
    const two = scripted('two', async attempt => {
      await promise
      return says('x')(attempt)
    })
    const { run, fail } = await stage(t, {
      providers: [keyed('one', 1, fails(status(401))), two],
      models: {
        strategy: 'priority',
        targets: [
          { provider: 'one', model: 'm' },
          { provider: 'two', model: 'm', concurrency: 1, queue: { size: 0, timeout: 1 } }
        ],
        retries: 0
      }
    })
    const running = run()
    await turn()
    t.match(await fail(), { statusCode: 503, wire: 'upstream_overloaded' })
    open()
    await running
  })
})
