import { fork } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'
import { Redis } from 'ioredis'
import t, { type Test } from 'tap'
import { UpstreamError } from '../../schemas/errors.ts'
import type { Inference } from '../../schemas/gateway.ts'
import type { Provider } from '../../schemas/provider.ts'
import type { Shared } from '../../schemas/shared.ts'
import type { BudgetLimit } from '../../schemas/tenants.ts'
import { budgetConformance, messageOf, until } from '../conformance/budgets.ts'
import { startRedis } from '../services/index.ts'
import { apiKey, FakeBooks, type KitOptions, kit } from './budgets/kit.ts'
import { slowProxy } from './budgets/proxy.ts'
import { rejection } from './kernel.ts'

/** Nobody listens there. */
const nowhere = 'redis://127.0.0.1:1'
const day = Date.UTC(2026, 10, 21, 12)
const whole = (dailyLimitUsd: number | undefined) =>
  dailyLimitUsd === undefined ? undefined : { dailyLimitUsd, hardStop: true, warningThreshold: 0.8 }

t.test('in memory', async t => {
  budgetConformance(t, (t, { dailyLimitUsd, now } = {}) => kit(t, { budgets: { now, gateway: whole(dailyLimitUsd) } }))
})

t.test('in memory, from a store', async t => {
  budgetConformance(t, (t, { dailyLimitUsd, now } = {}) => {
    const books = new FakeBooks()
    return kit(t, {
      store: books.store('one'),
      book: books.book('one'),
      budgets: { now, gateway: whole(dailyLimitUsd) }
    })
  })
})

t.test('prices and sizes', async t => {
  t.test('a call that may reach a target without a price is refused', async t => {
    const { ask, budget, app } = await kit(t)
    budget('acme', 1_000)
    t.match(await rejection(ask({ model: 'secret' })), { wire: 'model_unpriced', statusCode: 403 })
    t.equal(app.gateway.budgets?.counters.unpriced, 0)
  })

  t.test('a model that is always refused for its price was not named at the start', async t => {
    const { log } = await kit(t)
    t.match(
      log.map(line => JSON.parse(line)),
      [{ level: 40, model: 'secret', targets: ['up/unpriced'] }]
    )
    const allowing = await kit(t, { budgets: { unpriced: 'allow' } })
    t.strictSame(allowing.log, [])
  })

  t.test('or counted, where that is allowed', async t => {
    const { ask, budget, state, app } = await kit(t, { budgets: { unpriced: 'allow' } })
    budget('acme', 1_000)
    await ask({ model: 'secret' })
    t.equal(app.gateway.budgets?.counters.unpriced, 1)
    t.match(await state('tenant:acme'), { spent: 0, held: 0 })
  })

  t.test('the dearest target and every choice are held', async t => {
    const { ask, budget } = await kit(t)
    budget('acme', 3_000)
    t.match(await messageOf(ask({ model: 'dear', n: 4 })), 'may cost up to $0.00000349')
  })

  t.test('a request that is likely to cost more than a tenant allows is refused before anything is held', async t => {
    const { ask, budget, state } = await kit(t)
    budget('acme', null, 'total', { maxRequest: 87 })
    const error = await rejection(ask({}))
    t.match(error, { wire: 'request_cost_exceeded', statusCode: 403 })
    t.match(error.message, '$0.000000088; one request of this tenant may cost $0.000000087')
    t.match(await state('tenant:acme'), { spent: 0, held: 0 })
    await ask({ output: 82 })
  })

  t.test('a call without any cap gets one', async t => {
    const { app, budget, state, tenants } = await kit(t, { budgets: { defaultOutputTokens: 40 } })
    budget('public', 1_000)
    const { facts } = await app.gateway.complete(
      { model: 'test', messages: [{ role: 'user', content: 'x' }] },
      app.gateway.caller()
    )
    t.match(facts.headers, ['x-gateway-budget-remaining-usd', '0.000000943'])
    t.match(await state('tenant:public'), { spent: 57, held: 0 })
    t.equal(tenants.size, 1)
  })

  t.test('each attempt after the first holds as much again, and a hold that cannot grow ends the call', async t => {
    let sends = 0
    const failing: Provider = {
      name: 'up',
      capabilities: { dialects: [] },
      async send() {
        sends++
        throw new UpstreamError('it broke.')
      }
    }
    const { ask, budget, state } = await kit(t, { providers: [failing] })
    budget('acme', 1_500)
    t.match(await rejection(ask({ model: 'dear' })), { wire: 'upstream_error' })
    t.equal(sends, 1)
    t.match(await state('tenant:acme'), { spent: 0, held: 0 })
    budget('acme', 2_500)
    t.match(await rejection(ask({ model: 'dear' })), { wire: 'upstream_error' })
    t.equal(sends, 3)
    t.match(await state('tenant:acme'), { spent: 0, held: 0 })
  })

  t.test('an extension that comes after the end of its call is given back', async t => {
    const inferences: Inference[] = []
    const { ask, budget, state } = await kit(t, { seen: inference => void inferences.push(inference) })
    budget('acme', 1_000)
    await ask({ cost: 0 })
    const [inference] = inferences
    inference!.hold!.extend(inference!.route.targets[0]!)
    t.match(await state('tenant:acme'), { spent: 0, held: 0 })
  })

  t.test('sums beyond 2^53 stay exact', async t => {
    const { ask, budget, state } = await kit(t)
    budget('acme', null)
    const cost = 1_000_000_000_000
    for (let index = 0; index < 10_000; index++) await ask({ cost })
    t.match(await state('tenant:acme'), { spent: 10_000n * BigInt(cost), held: 0 })
  })
})

t.test('starting from a store', async t => {
  t.test('what was spent before counts, and is read once for everybody who waits', async t => {
    const books = new FakeBooks()
    books.add('tenant:acme', 'total', 850n)
    const { ask, budget, state } = await kit(t, { store: books.store('one'), book: books.book('one') })
    budget('acme', 1_000)
    const calls = await Promise.allSettled(Array.from({ length: 5 }, () => ask({})))
    t.equal(calls.filter(({ status }) => status === 'fulfilled').length, 1)
    t.match(await state('tenant:acme'), { spent: 950 })
    t.equal(books.reads, 1)
  })

  t.test('a store that is away refuses calls of scopes that are not known, and lets the others go on', async t => {
    const books = new FakeBooks()
    const { ask, budget } = await kit(t, { store: books.store('one'), book: books.book('one') })
    budget('acme', 1_000)
    budget('late', 1_000)
    await ask({})
    books.down = true
    await ask({})
    t.match(await rejection(ask({ tenant: 'late' })), { wire: 'limits_unavailable', statusCode: 503 })
    books.down = false
    await ask({ tenant: 'late' })
  })

  t.test('a budget with another period is counted again', async t => {
    const books = new FakeBooks()
    const { ask, budget, state } = await kit(t, {
      store: books.store('one'),
      book: books.book('one'),
      budgets: { now: () => day }
    })
    budget('acme', 1_000)
    await ask({})
    budget('acme', 1_000, 'day')
    await ask({ output: 33 })
    t.match(await state('tenant:acme'), { spent: 150, periodKey: 'day:2026-11-21' })
    t.strictSame(books.recounts, ['tenant:acme day:2026-11-21'])
  })

  t.test('what is known of a scope is told at once, and asks nobody', async t => {
    const books = new FakeBooks()
    let now = day
    const { app, ask, budget } = await kit(t, {
      store: books.store('one'),
      book: books.book('one'),
      budgets: { now: () => now, gateway: whole(1) }
    })
    budget('acme', 1_000, 'day')
    const known = (scope: string) => app.gateway.budgets?.known(scope)
    t.equal(known('tenant:acme'), null, 'nobody has called yet')
    t.match(known('gateway'), { scope: 'gateway', limit: 1_000_000_000, spent: 0, held: 0 })
    const { promise, resolve } = Promise.withResolvers<void>()
    const running = ask({ gate: promise, cost: 30, output: 33 })
    while (known('tenant:acme') === null) await new Promise(setImmediate)
    t.match(known('tenant:acme'), { spent: 0, held: 50, periodKey: 'day:2026-11-21' })
    resolve()
    await running
    books.down = true
    const today = { scope: 'tenant:acme', period: 'day', limit: 1_000, spent: 30, held: 0 }
    t.strictSame(known('tenant:acme'), {
      ...today,
      periodKey: 'day:2026-11-21',
      resetsAt: Date.UTC(2026, 10, 22)
    })
    now += 86_400_000
    t.strictSame(
      known('tenant:acme'),
      { ...today, spent: 0, periodKey: 'day:2026-11-22', resetsAt: Date.UTC(2026, 10, 23) },
      'nobody has called since'
    )
    t.throws(() => known('elsewhere'), RangeError)
  })

  t.test('scopes that nobody uses are forgotten and read again', async t => {
    const books = new FakeBooks()
    const { ask, budget, state } = await kit(t, {
      store: books.store('one'),
      book: books.book('one'),
      budgets: { accounts: 10 }
    })
    for (let index = 0; index < 50; index++) budget(`t${index}`, 1_000)
    for (let index = 0; index < 50; index++) await ask({ tenant: `t${index}` })
    const before = books.reads
    t.match(await state('tenant:t0'), { spent: 100, held: 0 })
    t.equal(books.reads, before + 1)
  })

  t.test('without a ledger the books of a store are left alone, and no scope is forgotten', async t => {
    const books = new FakeBooks()
    const { ask, app, budget, state } = await kit(t, {
      store: books.store('one'),
      budgets: { accounts: 10, now: () => day, gateway: whole(1) }
    })
    for (let index = 0; index < 300; index++) budget(`t${index}`, 1_000)
    for (let round = 0; round < 2; round++) {
      for (let index = 0; index < 300; index++) await ask({ tenant: `t${index}` })
    }
    t.match(await state('tenant:t0'), { spent: 200, held: 0 })
    t.match(await app.gateway.budgets?.reset('root'), { spent: 0 })
    await new Promise(resolve => setTimeout(resolve, 10))
    budget('t0', 1_000, 'day')
    await ask({ tenant: 't0' })
    t.strictSame([books.adjustments, books.recounts, books.reads], [[], [], 0])
  })

  t.test('charges name the periods that are no totals', async t => {
    const books = new FakeBooks()
    const { ask, budget } = await kit(t, {
      store: books.store('one'),
      book: books.book('one'),
      budgets: { now: () => day, gateway: whole(1) }
    })
    budget('acme', 1_000)
    await ask({ key: apiKey('k', 'acme', { limit: 1_000, period: 'hour' }) })
    t.strictSame(
      books.journals.get('one')?.map(([scope, period]) => `${scope} ${period}`),
      ['gateway total', 'tenant:acme total', 'key:k hour:2026-11-21T12', 'gateway day:2026-11-21', 'key:k total']
    )
  })

  t.test('a reset is an adjustment, and is audited', async t => {
    const books = new FakeBooks()
    const { ask, app } = await kit(t, {
      store: books.store('one'),
      book: books.book('one'),
      budgets: { now: () => day, gateway: whole(1) }
    })
    await ask({})
    t.match(await app.gateway.budgets?.reset('root'), { spent: 0 })
    t.strictSame(books.adjustments, [{ amount: -100n, actor: 'root' }])
    t.equal(books.read('gateway', 'day:2026-11-21').spent, 0n)
  })
})

t.test('a process that starts while Redis is away has no share of any budget', async t => {
  const books = new FakeBooks()
  const shared = { url: nowhere, onRedisDown: 'local-share' as const }
  const { ask, budget } = await kit(t, { store: books.store('one'), book: books.book('one'), shared })
  budget('acme', 1_000)
  budget('free', null)
  t.match(await rejection(ask({})), { wire: 'limits_unavailable', statusCode: 503 })
  await ask({ tenant: 'free' })
})

t.test('a gateway that is closed while Redis fails asks it no more, and lets its process end', async t => {
  let asked = 0
  const fake: Shared = {
    instance: 'one',
    prefix: '',
    onRedisDown: 'deny',
    // Its breaker is closed: one failure is none yet.
    down: null,
    processes: 1,
    instances: ['one'],
    generation: 'g',
    async run() {
      asked++
      throw new Error('there was no answer')
    },
    get: async () => null,
    set: async () => true,
    async delete() {},
    publish() {},
    subscribe() {},
    onState() {},
    onDeath() {}
  }
  const { app, ask, budget } = await kit(t, { fake })
  budget('acme', 1_000)
  t.match(await rejection(ask({})), { wire: 'limits_unavailable' })
  const before = asked
  await new Promise(resolve => setTimeout(resolve, 60))
  t.ok(asked > before, 'it goes on telling what it holds')
  await app.close()
  const closed = asked
  await new Promise(resolve => setTimeout(resolve, 60))
  t.ok(asked <= closed + 1, `${asked - closed} more`)
})

t.test('on Redis', async t => {
  const redis = await startRedis(t)
  if (redis === null) return
  let count = 0

  function one(t: Test, books: FakeBooks, instance: string, options: KitOptions = {}) {
    return kit(t, {
      store: books.store(instance),
      book: books.book(instance),
      ...options,
      shared: { url: redis!.url, prefix: `t${count}:`, timeout: 1_000, lease: 600, ...options.shared }
    })
  }

  t.test('alone', async t => {
    budgetConformance(t, (t, { dailyLimitUsd, now } = {}) => {
      const books = new FakeBooks()
      return one(t, books, `i${count++}`, { budgets: { now, gateway: whole(dailyLimitUsd) } })
    })
  })

  t.test('three processes never pass a budget together', async t => {
    const prefix = `processes${count++}:`
    const children = await Promise.all([1, 2, 3].map(() => child(t, redis.url, prefix)))
    const results = await Promise.all(children.map(({ tell }) => tell({ calls: 334 })))
    let spent = 0
    let refused = 0
    for (const result of results) {
      spent += Number(result['spent'])
      refused += Number(result['refused'])
      t.equal(result['other'], 0)
    }
    t.ok(spent <= 100_000, `${spent} of 100000`)
    t.ok(refused > 0)
    // What a process gives back reaches Redis a moment after the caller has its answer.
    for (const { tell } of children) await until(async () => (await tell({ state: true }))['held'] === 0)
    for (const { tell } of children) t.match(await tell({ state: true }), { spent, held: 0 })
  })

  t.test('what a killed process held is free after its lease, what it spent stays spent', async t => {
    const prefix = `processes${count++}:`
    const [first, second] = [await child(t, redis.url, prefix, 600), await child(t, redis.url, prefix, 600)]
    await first.tell({ calls: 10 })
    const { spent } = await first.tell({ state: true })
    await first.tell({ hold: true })
    await until(async () => (await second.tell({ state: true }))['held'] === 1_000)
    first.kill()
    await until(async () => (await second.tell({ state: true }))['held'] === 0)
    t.match(await second.tell({ state: true }), { spent, held: 0 })
  })

  t.test('spending moves from the process to the books without a moment of less', async t => {
    count++
    const books = new FakeBooks()
    const a = await one(t, books, 'a')
    const b = await one(t, books, 'b')
    a.budget('acme', 1_000)
    b.budget('acme', 1_000)
    for (let index = 0; index < 3; index++) {
      await a.ask({})
      await b.ask({})
    }
    const client = new Redis(redis.url)
    t.teardown(() => client.disconnect())
    const key = `t${count}:b:tenant:acme:total`
    await until(async () => {
      const { spent } = await a.state('tenant:acme')
      t.ok(Number(spent) >= 600)
      const hash = await client.hgetall(key)
      return hash['b'] === '600' && hash['u:a'] === '0' && hash['u:b'] === '0'
    })
    t.match(await b.state('tenant:acme'), { spent: 600, held: 0 })
  })

  t.test('two reads of the books at once take off what was settled only once', async t => {
    count++
    const books = new FakeBooks()
    const a = await one(t, books, 'a')
    a.budget('acme', 10_000)
    const client = new Redis(redis.url)
    t.teardown(() => client.disconnect())
    await until(() => spends(a.ask({})))
    for (let round = 1; round <= 3; round++) {
      await a.ask({})
      // What an evicting Redis does: each of the next calls reads the books again.
      await client.del(`t${count}:b:tenant:acme:total`)
      const calls = [a.ask({ cost: 0 })]
      await new Promise(resolve => setTimeout(resolve, 20))
      calls.push(a.ask({ cost: 0 }))
      await Promise.all(calls)
      t.match(await a.state('tenant:acme'), { spent: 100 + round * 100, held: 0 })
    }
  })

  t.test('a budget whose period changes counts what other processes hold in the old one', async t => {
    count++
    const books = new FakeBooks()
    const a = await one(t, books, 'a', { budgets: { now: () => day } })
    const b = await one(t, books, 'b', { budgets: { now: () => day } })
    a.budget('acme', 1_000)
    const gate = Promise.withResolvers<void>()
    await until(() => spends(a.ask({ cost: 0 })))
    const calls = Array.from({ length: 9 }, () => a.ask({ gate: gate.promise }))
    await until(async () => (await a.state('tenant:acme')).held === 900)
    for (const { budget } of [a, b]) budget('acme', 1_000, 'day')
    t.match(await messageOf(b.ask({ output: 84 })), 'calls in flight hold $0.0000009 of it')
    await b.ask({})
    t.match(await messageOf(a.ask({})), 'calls in flight hold $0.0000009 of it')
    gate.resolve()
    await Promise.all(calls)
    t.ok(await messageOf(b.ask({ output: 1 })))
    await until(async () => (await b.state('tenant:acme')).spent === 1_000)
    await until(async () => (await b.state('tenant:acme')).held === 0)
    t.ok(await messageOf(b.ask({ output: 1 })))
  })

  t.test('a reset takes out what the books contain, not what is counted twice for a moment', async t => {
    count++
    const books = new FakeBooks()
    const budgets = { now: () => day, gateway: whole(1) }
    const a = await one(t, books, 'a', { budgets })
    const b = await one(t, books, 'b', { budgets })
    await until(() => spends(a.ask({ cost: 0 })))
    await b.ask({})
    books.fold('b')
    await b.app.close()
    await a.ask({})
    const spent = async () => (await a.app.gateway.budgets!.gateway())?.spent
    await until(async () => (await spent()) === 300)
    t.match(await a.app.gateway.budgets!.reset('x'), { spent: 100 })
    t.equal(books.read('gateway', 'day:2026-11-21').spent, 0n)
    books.closed.add('b')
    await until(async () => (await spent()) === 0)
  })

  t.test('what a dead process has spent counts twice until its books are closed, and never less than once', async t => {
    count++
    const books = new FakeBooks()
    const dead = await one(t, books, 'dead')
    const b = await one(t, books, 'b')
    dead.budget('acme', 1_000)
    b.budget('acme', 1_000)
    books.store('dead')
    await dead.ask({})
    // It goes without a word: its journal is only folded by others.
    const [line] = [...(books.journals.get('dead') ?? [])]
    t.ok(line)
    books.journals.set('dead', [])
    await dead.app.close()
    t.match(await b.state('tenant:acme'), { spent: 100 })
    await new Promise(resolve => setTimeout(resolve, 700))
    t.match(await b.state('tenant:acme'), { spent: 100 })
    books.add('tenant:acme', 'total', 100n)
    books.closed.add('dead')
    await until(async () => {
      const { spent } = await b.state('tenant:acme')
      t.ok(Number(spent) >= 100)
      const client = new Redis(redis.url)
      const hash = await client.hgetall(`t${count}:b:tenant:acme:total`)
      client.disconnect()
      return hash['u:dead'] === undefined
    })
    t.match(await b.state('tenant:acme'), { spent: 100, held: 0 })
  })

  t.test('Redis flushed: nobody is let in until everybody has told what they hold and have spent', async t => {
    count++
    const books = new FakeBooks()
    const a = await one(t, books, 'a')
    const b = await one(t, books, 'b')
    a.budget('acme', 1_000)
    b.budget('acme', 1_000)
    await a.ask({ output: 283 })
    const gate = Promise.withResolvers<void>()
    const open = a.ask({ output: 383, gate: gate.promise })
    await until(async () => (await b.state('tenant:acme')).held === 400)
    const client = new Redis(redis.url)
    await client.flushall()
    client.disconnect()
    const refused = await rejection(b.ask({ output: 383 }))
    t.match(refused, { wire: 'limits_unavailable', statusCode: 503 })
    t.match(refused.message, 'was lost and is being rebuilt')
    await until(async () => (await rejection(b.ask({ output: 383 })))['wire'] === 'insufficient_quota')
    t.match(await b.state('tenant:acme'), { spent: 300, held: 400 })
    gate.resolve()
    await open
    await until(async () => (await b.state('tenant:acme')).held === 0)
    t.match(await b.state('tenant:acme'), { spent: 700 })
    await b.ask({ output: 283 })
  })

  t.test(
    'Redis stopped: refused with a reason, while what runs is settled, and right again when it is back',
    async t => {
      count++
      const books = new FakeBooks()
      const a = await one(t, books, 'a', {
        shared: { url: redis.url, prefix: `stop${count}:`, timeout: 1_000, lease: 600 }
      })
      a.budget('acme', 1_000)
      const gate = Promise.withResolvers<void>()
      const open = a.ask({ gate: gate.promise })
      await until(async () => (await a.state('tenant:acme')).held === 100)
      await redis.stop()
      const refused = await rejection(a.ask({}))
      t.match(refused, { wire: 'limits_unavailable', statusCode: 503 })
      t.match(refused.message, 'Redis cannot be asked')
      gate.resolve()
      await open
      await redis.start()
      await until(async () => {
        try {
          await a.ask({})
          return true
        } catch {
          return false
        }
      })
      await until(async () => (await a.state('tenant:acme')).spent === 200)
      t.match(await a.state('tenant:acme'), { spent: 200, held: 0 })
    }
  )

  t.test('Redis slow: refused within the deadline, and what was done late is taken back', async t => {
    count++
    const proxy = await slowProxy(t, redis.port)
    const books = new FakeBooks()
    const shared = { url: `redis://127.0.0.1:${proxy.port}`, prefix: `slow${count}:`, timeout: 100, lease: 600 }
    const a = await one(t, books, 'a', { shared })
    a.budget('acme', 1_000)
    await until(() =>
      a.ask({}).then(
        () => true,
        () => false
      )
    )
    proxy.delay = 500
    const before = performance.now()
    const refused = await Promise.all([rejection(a.ask({})), rejection(a.ask({})), rejection(a.ask({}))])
    t.ok(performance.now() - before < 450)
    for (const error of refused) t.match(error, { wire: 'limits_unavailable' })
    proxy.delay = 0
    await until(async () => {
      const { spent, held } = await a.state('tenant:acme')
      return a.app.gateway.shared?.down === null && spent === 100 && held === 0
    })
    await a.ask({ output: 883 })
  })

  t.test('a share of what was left is spent while Redis is away, where that is allowed', async t => {
    count++
    const books = new FakeBooks()
    const shared = {
      url: redis.url,
      prefix: `share${count}:`,
      timeout: 1_000,
      lease: 2_000,
      onRedisDown: 'local-share' as const
    }
    const a = await one(t, books, 'a', { shared })
    const b = await one(t, books, 'b', { shared })
    const budget: BudgetLimit = { limit: 1_000, period: 'total' }
    a.budget('acme', 1_000)
    b.budget('acme', 1_000)
    await a.ask({})
    await b.ask({})
    await a.state('tenant:acme')
    await b.state('tenant:acme')
    await until(() => a.app.gateway.shared?.processes === 2 && b.app.gateway.shared?.processes === 2)
    await redis.stop()
    await until(() => a.app.gateway.shared?.down !== null && b.app.gateway.shared?.down !== null)
    let passed = 0
    for (const { ask } of [a, b]) {
      for (let index = 0; index < 6; index++) {
        const facts = await ask({}).catch(() => null)
        if (facts === null) continue
        passed++
        t.match(facts.headers, ['x-gateway-budget-remaining-usd', /./, 'x-gateway-degraded', 'redis'])
        t.equal(facts.warnings.length, 1)
      }
    }
    t.equal(passed, 8, 'four each of the eight that were left')
    await redis.start()
    await until(async () => {
      const { spent } = await a.state('tenant:acme', budget)
      return a.app.gateway.shared?.down === null && spent === 1_000
    })
  })
})

async function spends(call: Promise<unknown>): Promise<boolean> {
  return call.then(
    () => true,
    () => false
  )
}

async function child(t: Test, url: string, prefix: string, lease = 3_000) {
  const process = fork(join(import.meta.dirname, 'budgets/process.ts'), [url, prefix, String(lease)])
  t.teardown(() => process.kill('SIGKILL'))
  const [ready] = await once(process, 'message')
  t.equal(ready, 'ready')
  return {
    async tell(order: object): Promise<Record<string, unknown>> {
      process.send(order)
      const [answer] = await once(process, 'message')
      return answer
    },
    kill: () => process.kill('SIGKILL')
  }
}
