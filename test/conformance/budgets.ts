import type { Test } from 'tap'
import { isGatewayError } from '../../schemas/errors.ts'
import { apiKey, inputBound, type Kit } from '../plugins/budgets/kit.ts'

/** A fresh gateway each time; null: it cannot run here. */
export type Setup = (t: Test, options?: { dailyLimitUsd?: number; now?: () => number }) => Promise<Kit | null>

/** What every way of keeping budgets does. */
export function budgetConformance(t: Test, setup: Setup): void {
  t.test('1,000 concurrent calls of random cost never pass the budget, and leave no hold', async t => {
    const kit = await setup(t)
    if (kit === null) return
    const limit = 60_000
    kit.budget('acme', limit)
    const key = apiKey('k1', 'acme', { limit: 40_000, period: 'day' })
    const spent = { key: 0, all: 0 }
    let refused = 0
    const calls = Array.from({ length: 1_000 }, async (_, index) => {
      const output = Math.floor(Math.random() * 500) + 1
      const bound = inputBound + output
      const cost = Math.floor(Math.random() * bound)
      const gate = new Promise(resolve => setTimeout(resolve, Math.random() * 50))
      const own = index % 2 === 0
      try {
        await kit.ask({ output, cost, gate, ...(own ? { key } : {}) })
        spent.all += cost
        if (own) spent.key += cost
      } catch (error) {
        refused++
        t.match(error, { wire: 'insufficient_quota', statusCode: 429, headers: { 'x-should-retry': 'false' } })
      }
    })
    await Promise.all(calls)
    t.ok(spent.all <= limit, `${spent.all} of ${limit}`)
    t.ok(spent.key <= 40_000, `${spent.key} of 40000`)
    t.ok(refused > 0 && refused < 1_000, `${refused} were refused`)
    t.match(await kit.state('tenant:acme'), { spent: spent.all, held: 0 })
    t.match(await kit.state('key:k1', key.budget!), { spent: spent.key, held: 0 })
    // What is left is all there for one more call, to the nano-dollar.
    const rest = limit - spent.all
    if (rest < inputBound + 2) return
    t.ok(await messageOf(kit.ask({ output: rest - inputBound + 1 })))
    await kit.ask({ output: rest - inputBound })
    t.match(await kit.state('tenant:acme'), { spent: limit, held: 0 })
  })

  t.test(
    'a call that does not fit says which budget, how much is left, what it may cost and when it resets',
    async t => {
      const kit = await setup(t, { now: () => Date.UTC(2026, 10, 21, 12) })
      if (kit === null) return
      kit.budget('acme', 250, 'day')
      const first = await kit.ask({})
      t.strictSame(first.headers, ['x-gateway-budget-remaining-usd', '0.00000015'])
      const gate = Promise.withResolvers<void>()
      const waiting = kit.ask({ gate: gate.promise })
      await kit.state('tenant:acme')
      const held = await messageOf(kit.ask({}))
      t.match(held, /^The daily budget of the tenant `acme` has \$0\.00000015 left of \$0\.00000025/)
      t.match(held, /calls in flight hold \$0\.0000001 of it.*this call may cost up to \$0\.0000001\b/)
      t.match(held, /It resets at 2026-11-22T00:00:00\.000Z/)
      gate.resolve()
      await waiting
      t.match(await messageOf(kit.ask({})), /has \$0\.00000005 left.*may cost up to \$0\.0000001\. It resets/)
      await kit.ask({ output: 33 })
      t.match(await messageOf(kit.ask({})), /is used up: \$0\.00000025 of \$0\.00000025 are spent/)
      t.equal(kit.app.gateway.budgets!.counters.refused, 3)
    }
  )

  t.test('what a call cost beyond its hold is booked, counted, logged, and blocks the next one', async t => {
    const kit = await setup(t)
    if (kit === null) return
    kit.budget('acme', 1_000)
    await kit.ask({ cost: 1_500 })
    t.match(await kit.state('tenant:acme'), { spent: 1_500, held: 0 })
    t.equal(kit.app.gateway.budgets!.counters.overrun, 1)
    t.match(kit.log.join(''), 'could be foreseen')
    t.match(await messageOf(kit.ask({ output: 1 })), 'is used up')
  })

  t.test('a period rolls over while 100 calls are open: each is charged to the period that it began in', async t => {
    let time = Date.UTC(2026, 10, 21, 23, 59, 59)
    const kit = await setup(t, { now: () => time })
    if (kit === null) return
    kit.budget('acme', 10_000, 'day')
    const gate = Promise.withResolvers<void>()
    const calls = Array.from({ length: 100 }, () => kit.ask({ gate: gate.promise, cost: 60 }))
    await until(async () => (await kit.state('tenant:acme')).held === 10_000)
    time += 2_000
    t.match(await kit.state('tenant:acme'), { periodKey: 'day:2026-11-22', spent: 0, held: 0 })
    await kit.ask({ output: 9_000 })
    gate.resolve()
    await Promise.all(calls)
    t.match(await kit.state('tenant:acme'), { spent: 9_017, held: 0 })
  })

  t.test('a clock that goes back by up to five minutes does not take a period up again', async t => {
    let time = Date.UTC(2026, 10, 21, 0, 4, 59)
    const kit = await setup(t, { now: () => time })
    if (kit === null) return
    kit.budget('acme', 150, 'day')
    await kit.ask({})
    time -= 300_000
    t.match(await kit.state('tenant:acme'), { periodKey: 'day:2026-11-21', spent: 100 })
    t.ok(await messageOf(kit.ask({})))
    t.equal(kit.log.join('').includes('the clock was set back'), false)
  })

  t.test('a clock that was wrong for a moment freezes no budget, and nothing that was spent is lost', async t => {
    let time = Date.UTC(2026, 10, 21, 12)
    const kit = await setup(t, { now: () => time })
    if (kit === null) return
    kit.budget('acme', 350, 'day')
    const gate = Promise.withResolvers<void>()
    const open = kit.ask({ gate: gate.promise })
    await kit.ask({})
    time = Date.UTC(2046, 0, 1)
    t.match(await kit.state('tenant:acme'), { periodKey: 'day:2046-01-01', spent: 0 })
    await kit.ask({})
    time = Date.UTC(2026, 10, 21, 13)
    await kit.ask({ output: 33 })
    t.match(await kit.state('tenant:acme'), { periodKey: 'day:2026-11-21', held: 100, spent: 250 })
    t.ok(await messageOf(kit.ask({ output: 1 })))
    gate.resolve()
    await open
    t.match(await kit.state('tenant:acme'), { spent: 350, held: 0 })
    t.ok(await messageOf(kit.ask({ output: 1 })))
    time = Date.UTC(2026, 10, 22, 12)
    t.match(await kit.state('tenant:acme'), { periodKey: 'day:2026-11-22', spent: 0, held: 0 })
    await kit.ask({ output: 333 })
    t.equal(kit.log.filter(line => line.includes('the clock was set back')).length, 1)
  })

  t.test('a budget whose period changes while calls are open does not let their money be spent again', async t => {
    const kit = await setup(t, { now: () => Date.UTC(2026, 10, 21, 12) })
    if (kit === null) return
    kit.budget('acme', 1_000)
    const gate = Promise.withResolvers<void>()
    const calls = Array.from({ length: 9 }, () => kit.ask({ gate: gate.promise }))
    await until(async () => (await kit.state('tenant:acme')).held === 900)
    kit.budget('acme', 1_000, 'day')
    await kit.ask({})
    t.match(await messageOf(kit.ask({})), 'calls in flight hold $0.0000009 of it')
    t.match(await kit.state('tenant:acme'), { periodKey: 'day:2026-11-21', spent: 100, held: 900 })
    kit.budget('acme', 1_000)
    t.match(await messageOf(kit.ask({})), 'calls in flight hold $0.0000009 of it')
    kit.budget('acme', 1_000, 'day')
    t.match(await messageOf(kit.ask({})), 'calls in flight hold $0.0000009 of it')
    gate.resolve()
    await Promise.all(calls)
    t.ok(await messageOf(kit.ask({ output: 1 })))
    await until(async () => (await kit.state('tenant:acme')).held === 0)
    t.match(await kit.state('tenant:acme'), { spent: 1_000 })
    kit.budget('acme', 1_000)
    t.ok(await messageOf(kit.ask({ output: 1 })))
  })

  t.test('a call that leaves before its answer gives back what it held', async t => {
    const kit = await setup(t)
    if (kit === null) return
    kit.budget('acme', 1_000)
    const leaving = new AbortController()
    const call = kit.ask({ gate: new Promise(() => {}), signal: leaving.signal })
    await until(async () => (await kit.state('tenant:acme')).held === 100)
    leaving.abort()
    await t.rejects(call)
    await until(async () => (await kit.state('tenant:acme')).held === 0)
  })

  t.test('the budget of the gateway is shared by all tenants, warns once and is reset under load', async t => {
    const kit = await setup(t, { dailyLimitUsd: 0.000001 })
    if (kit === null) return
    kit.budget('acme', null)
    kit.budget('other', null)
    const first = await kit.ask({ tenant: 'acme', output: 483 })
    t.strictSame(first.headers, [], 'what is left of it says what others spend')
    t.match(await kit.app.gateway.budgets!.gateway(), { spent: 500, warned: false, limit: 1_000, hardStop: true })
    await kit.ask({ tenant: 'other', output: 383 })
    await until(async () => (await kit.app.gateway.budgets!.gateway())?.warned === true)
    t.equal(kit.log.filter(line => line.includes('nearly used up')).length, 1)
    const told = await messageOf(kit.ask({ output: 184 }))
    t.match(told, /^The daily budget of this gateway is used up.* It resets at \d{4}-/)
    t.notMatch(told, '$', 'no amounts: they would say what others spend')
    const gate = Promise.withResolvers<void>()
    const open = kit.ask({ gate: gate.promise })
    await kit.app.gateway.budgets!.gateway()
    const inFlight = await messageOf(kit.ask({ output: 1 }))
    t.match(inFlight, /^The daily budget of this gateway is held by calls in flight.* It resets at \d{4}-/)
    t.notMatch(inFlight, '$')
    const reset = kit.app.gateway.budgets!.reset('admin')
    gate.resolve()
    await open
    await reset
    const state = await kit.app.gateway.budgets!.gateway()
    t.match(state, { held: 0 })
    t.ok(state!.spent === 100 || state!.spent === 0, `what was spent meanwhile stays: ${state!.spent}`)
    await kit.ask({ output: 483 })
  })
}

export async function messageOf(call: Promise<unknown>): Promise<string> {
  try {
    await call
  } catch (error) {
    if (isGatewayError(error) && error.wire === 'insufficient_quota') return error.message
    throw error
  }
  throw new Error('It was not refused.')
}

/** Asks until it is so: for what happens in other processes and programs. */
export async function until(check: () => boolean | Promise<boolean>, patience = 10_000): Promise<void> {
  const end = Date.now() + patience
  while (!(await check())) {
    if (Date.now() > end) throw new Error('It did not come to pass.')
    await new Promise(resolve => setTimeout(resolve, 10))
  }
}
