import t, { type Test } from 'tap'
import pricing from '../../../plugins/pricing/index.ts'
import type { ModelOptions } from '../../../plugins/routing/index.ts'
import { UpstreamError } from '../../../schemas/errors.ts'
import { gate, seeded, turn } from '../../upstream.ts'
import { ask, fails, says, scripted } from '../kernel.ts'
import { at, modelsOf, shares, stage } from './kit.ts'

type Targets = ModelOptions['targets']

/** Targets of one provider by the names of their models. */
function models(...targets: Array<string | Partial<Targets[number]>>): Targets {
  return targets.map(target => (typeof target === 'string' ? { provider: 'up', model: target } : { ...up, ...target }))
}
const up = { provider: 'up', model: 'm' }

t.test('weighted', async t => {
  t.test('keeps the weights within 2 % over 20,000 calls', async t => {
    const provider = scripted('up')
    const { run } = await stage(t, {
      providers: [provider],
      models: { targets: models({ model: 'a', weight: 5 }, { model: 'b', weight: 3 }, { model: 'c', weight: 2 }) },
      random: seeded(11)
    })
    for (let call = 0; call < 20_000; call++) await run()
    const found = shares(modelsOf(provider))
    for (const [model, share] of Object.entries({ a: 0.5, b: 0.3, c: 0.2 })) {
      t.ok(Math.abs((found[model] ?? 0) - share) < 0.02 * share, `${model}: ${found[model]} of ${share}`)
    }
  })

  t.test('draws the next one by weight as well', async t => {
    const provider = scripted('up', fails(new UpstreamError('broken')))
    const { fail } = await stage(t, {
      providers: [provider],
      models: { targets: models({ model: 'a', weight: 6 }, { model: 'b', weight: 3 }, { model: 'c' }), retries: 0 },
      routing: { breaker: { failures: 1e9 } },
      random: seeded(3)
    })
    for (let call = 0; call < 6_000; call++) await fail()
    const seconds = modelsOf(provider).filter((_, index) => index % 3 === 1)
    const firsts = modelsOf(provider).filter((_, index) => index % 3 === 0)
    const afterA = shares(seconds.filter((_, index) => firsts[index] === 'a'))
    t.ok(Math.abs((afterA['b'] ?? 0) - 0.75) < 0.03, `b after a: ${afterA['b']}`)
  })
})

t.test('priority', async t => {
  t.test('asks in the order of the configuration, whatever the weights', async t => {
    const provider = scripted('up', fails(new UpstreamError('broken')))
    const { fail } = await stage(t, {
      providers: [provider],
      models: { strategy: 'priority', targets: models({ model: 'a', weight: 0 }, 'b', 'c'), retries: 0 },
      random: () => 0.99
    })
    await fail()
    t.strictSame(modelsOf(provider), ['a', 'b', 'c'])
  })

  t.test('goes back to the first one when that is well again', async t => {
    const one = scripted('one', ...Array.from({ length: 5 }, () => fails(new UpstreamError('broken'))), says('x'))
    const two = scripted('two')
    const { run, clock } = await stage(t, {
      providers: [one, two],
      models: { strategy: 'priority', targets: at('one', 'two'), retries: 0 }
    })
    for (let call = 0; call < 8; call++) await run()
    t.strictSame([one.attempts.length, two.attempts.length], [5, 8])
    clock.advance(1_000)
    for (let call = 0; call < 3; call++) await run()
    t.strictSame([one.attempts.length, two.attempts.length], [8, 8])
  })
})

t.test('least-latency', async t => {
  /** Targets a and b, which took so long so far. */
  async function latencies(t: Test, known: Record<string, number>) {
    const provider = scripted('up')
    const found = await stage(t, {
      providers: [provider],
      models: { strategy: 'least-latency', targets: models('a', 'b') }
    })
    const took = (model: string, milliseconds: number) => {
      const state = found.state(`up/${model}`)
      state.answered(state.lanes[0]!, milliseconds, found.clock.time)
    }
    for (const [model, milliseconds] of Object.entries(known)) took(model, milliseconds)
    return { ...found, took, asked: () => modelsOf(provider) }
  }

  t.test('asks who answers soonest', async t => {
    const { run, asked } = await latencies(t, { a: 800, b: 200 })
    await run()
    t.strictSame(asked(), ['b'])
  })

  t.test('asks whom it does not know first', async t => {
    const { run, asked } = await latencies(t, { a: 1 })
    await run()
    t.strictSame(asked(), ['b'])
  })

  t.test('does not ask whom it does not know while that one has not answered', async t => {
    const { promise, open } = gate()
    const provider = scripted('up', async attempt => {
      await promise
      return says('x')(attempt)
    })
    const { run, state, clock } = await stage(t, {
      providers: [provider],
      models: { strategy: 'least-latency', targets: models('a', 'b') }
    })
    state('up/a').answered(state('up/a').lanes[0]!, 5_000, clock.time)
    const calls = Array.from({ length: 5 }, () => run())
    await turn()
    t.strictSame(modelsOf(provider), ['b', 'a', 'a', 'a', 'a'])
    open()
    await Promise.all(calls)
  })

  t.test('counts the calls that a target has already', async t => {
    const { run, asked, state } = await latencies(t, { a: 100, b: 250 })
    state('up/a').places.taken = 2
    await run()
    t.strictSame(asked(), ['b'], '100 ms for each of three is more than 250')
    state('up/a').places.taken = 0
  })

  t.test('follows a target that gets slower at once, and one that gets quicker slowly', async t => {
    const { clock, state, took } = await latencies(t, { a: 100 })
    const a = state('up/a')
    clock.advance(100)
    took('a', 1_000)
    t.equal(Math.round(a.load(clock.time)), 1_000)
    clock.advance(100)
    took('a', 100)
    t.ok(a.load(clock.time) > 900, String(a.load(clock.time)))
    clock.advance(10_000)
    took('a', 100)
    const later = a.load(clock.time)
    t.ok(later > 300 && later < 500, String(later))
  })

  t.test('tries one again that was slow once, when its latency has faded', async t => {
    const { run, asked, clock, took } = await latencies(t, { a: 100, b: 1_000 })
    for (let minute = 0; minute < 2; minute++) {
      clock.advance(60_000)
      took('a', 100)
      await run()
    }
    t.strictSame(asked(), ['a', 'a'])
    clock.advance(60_000)
    took('a', 100)
    await run()
    t.strictSame(asked(), ['a', 'a', 'b'], 'after three minutes a twentieth of it is left')
  })

  t.test('takes a target without weight last', async t => {
    const provider = scripted('up', fails(new UpstreamError('broken')))
    const { fail } = await stage(t, {
      providers: [provider],
      models: { strategy: 'least-latency', targets: models({ model: 'a', weight: 0 }, 'b', 'c'), retries: 0 }
    })
    await fail()
    t.equal(modelsOf(provider)[2], 'a')
  })
})

t.test('least-busy', async t => {
  /** Which models so many calls at the same time go to. */
  async function atOnce(t: Test, targets: Targets, calls: number): Promise<string[]> {
    const { promise, open } = gate()
    const provider = scripted('up', async attempt => {
      await promise
      return says('x')(attempt)
    })
    const { run } = await stage(t, {
      providers: [provider],
      models: { strategy: 'least-busy', targets },
      random: seeded(5)
    })
    const running = Array.from({ length: calls }, () => run())
    await turn()
    open()
    await Promise.all(running)
    return modelsOf(provider)
  }

  t.test('spreads what runs at the same time', async t => {
    const found = shares(await atOnce(t, models('a', 'b', 'c'), 30))
    for (const share of Object.values(found)) t.ok(Math.abs(share - 1 / 3) < 1e-9)
    t.equal(Object.keys(found).length, 3)
  })

  t.test('gives a target with more weight more of it', async t => {
    const asked = await atOnce(t, models({ model: 'a', weight: 3 }, 'b'), 40)
    t.equal(asked.filter(model => model === 'a').length, 30)
  })

  t.test('takes a target without weight last, and draws among equals', async t => {
    const asked = await atOnce(t, models({ model: 'a', weight: 0 }, 'b', 'c'), 20)
    t.notOk(asked.includes('a'))
    const firsts = new Set<string>()
    for (let seed = 0; seed < 10; seed++) {
      const provider = scripted('up')
      const { run } = await stage(t, {
        providers: [provider],
        models: { strategy: 'least-busy', targets: models('b', 'c') },
        random: seeded(seed)
      })
      await run()
      firsts.add(modelsOf(provider)[0]!)
    }
    t.equal(firsts.size, 2)
  })
})

t.test('least-cost', async t => {
  const price = (input: number, output: number) => ({ price: { input, output } })

  async function cheapest(t: Test, targets: Targets, request = ask, priced = true): Promise<string[]> {
    const provider = scripted('up', fails(new UpstreamError('broken')))
    const { fail } = await stage(t, {
      providers: [provider],
      models: { strategy: 'least-cost', targets, retries: 0 },
      before: app => (priced ? app.register(pricing, { table: false }) : undefined)
    })
    await fail(request)
    return modelsOf(provider)
  }

  t.test('asks the cheapest first', async t => {
    const targets = models(
      { model: 'a', ...price(3, 15) },
      { model: 'b', ...price(1, 5) },
      { model: 'c', ...price(2, 9) }
    )
    t.strictSame(await cheapest(t, targets), ['b', 'c', 'a'])
  })

  t.test('looks at what this call is likely to cost, not at one of the two prices', async t => {
    const targets = models({ model: 'in', ...price(0.1, 20) }, { model: 'out', ...price(10, 1) })
    t.strictSame(await cheapest(t, targets, { ...ask, max_tokens: 1 }), ['in', 'out'])
    t.strictSame(await cheapest(t, targets, { ...ask, max_tokens: 1_000 }), ['out', 'in'])
  })

  t.test('takes a target whose price nobody knows last, and one without weight after it', async t => {
    const targets = models(
      { model: 'a', weight: 0, ...price(0, 0) },
      { model: 'b' },
      { model: 'c', ...price(900, 900) }
    )
    t.strictSame(await cheapest(t, targets), ['c', 'b', 'a'])
  })

  t.test('draws where nobody knows prices at all', async t => {
    t.same((await cheapest(t, models('a', 'b'), ask, false)).length, 2)
  })
})
