import type { Test } from 'tap'
import { books, call, count, type Kind, proven, rows, spent } from './books.ts'

const audit = { actor: 'admin', action: 'budget.reset', subject: 'gateway', before: null, after: { spent: 0 } }

/** Adjustments, recounts, retention and their proof, on any database. */
export function accountTests(t: Test, kind: Kind): void {
  t.test('an adjustment changes the balance, is audited, and the proof knows it', async t => {
    const database = await kind(t)
    const { ledger, write, folded } = await books(t, database)
    write(call('r1', 100))
    const adjustment = { scope: 'gateway', period: 'total', amount: -100n, reason: 'reset', actor: 'admin' }
    t.match(await ledger.adjust(adjustment, audit), { spent: 0n, requests: 1, version: 2 })
    t.match(folded.at(-1), { scope: 'gateway', spent: 0n })
    t.equal(await count(database, "SELECT COUNT(*) FROM audits WHERE action = 'budget.reset'"), 1)
    await proven(t, ledger)
  })

  t.test('a recount finds what rows did not name, once', async t => {
    const database = await kind(t)
    const { ledger, write } = await books(t, database)
    const time = Date.UTC(2026, 10, 21, 12)
    const period = 'day:2026-11-21'
    write(
      call('old', 7, { time: time - 86_400_000 }),
      call('r1', 100, { time }),
      call('r2', 20, { time, tenant: 'else' })
    )
    const from = Date.UTC(2026, 10, 21)
    t.match(await ledger.recount('tenant:acme', period, from), { spent: 100n, requests: 1 })
    t.match(await ledger.recount('gateway', period, from), { spent: 120n, requests: 2 })
    t.match(await ledger.recount('key:k1', period, from), { spent: 120n })
    await proven(t, ledger)
    write(call('r3', 5, { time, charges: [['tenant:acme', period]] }))
    t.equal(await spent(ledger, 'tenant:acme', period), 105n)
    await ledger.adjust({ scope: 'tenant:acme', period, amount: -105n, reason: 'reset', actor: 'admin' }, audit)
    t.match(await ledger.recount('tenant:acme', period, from), { spent: 0n }, 'a reset stays')
    await proven(t, ledger)
  })

  t.test('rows that have reached their age go, what they add up to stays', async t => {
    const database = await kind(t)
    const { ledger, write } = await books(t, database)
    const day = (time: number) => [['tenant:acme', `day:${new Date(time).toISOString().slice(0, 10)}`]] as const
    const from = Date.UTC(2026, 10, 1)
    for (let index = 0; index < 6_000; index++) {
      const time = from + index * 60_000
      write(call(`r${index}`, index, { time, charges: day(time), tenant: 'acme', key: index % 2 ? 'k1' : null }))
    }
    const before = await ledger.balances([
      { scope: 'gateway', period: 'total' },
      { scope: 'tenant:acme', period: 'day:2026-11-01' }
    ])
    t.equal(await ledger.retain(from + 5_500 * 60_000), 5_500)
    t.equal(await count(database, 'SELECT COUNT(*) FROM inferences'), 500)
    t.equal(await count(database, 'SELECT COUNT(*) FROM attempts'), 500)
    await proven(t, ledger)
    const adjustments = await count(database, 'SELECT COUNT(*) FROM adjustments')
    t.equal(await ledger.retain(from + 5_600 * 60_000), 100)
    t.equal(await count(database, 'SELECT COUNT(*) FROM adjustments'), adjustments, 'one row for a scope and a period')
    t.strictSame(
      await ledger.balances([
        { scope: 'gateway', period: 'total' },
        { scope: 'tenant:acme', period: 'day:2026-11-01' }
      ]),
      before
    )
    await proven(t, ledger)
  })

  t.test('a balance that the rows do not explain is found', async t => {
    const database = await kind(t)
    const { ledger, write } = await books(t, database)
    write(call('r1', 100), call('r2', 1, { tenant: 'else' }))
    await ledger.folded()
    await database.run("UPDATE balances SET spent = spent + 1 WHERE scope = 'tenant:acme'")
    await database.run("DELETE FROM balances WHERE scope = 'tenant:else'")
    const { differences, rows: read } = await ledger.verify()
    t.equal(read, 2)
    t.strictSame(differences, [
      { scope: 'tenant:acme', period: 'total', balance: 101n, ledger: 100n },
      { scope: 'tenant:else', period: 'total', balance: 0n, ledger: 1n }
    ])
  })

  t.test('sums beyond what a number holds are exact', async t => {
    const database = await kind(t)
    const { ledger, write } = await books(t, database)
    const much = 2 ** 52 - 1
    for (let index = 0; index < 9; index++) write(call(`r${index}`, much))
    t.equal(await spent(ledger, 'gateway'), 9n * BigInt(much))
    await proven(t, ledger)
    const amount = -9n * BigInt(much) + 1n
    t.match(await ledger.adjust({ scope: 'gateway', period: 'total', amount, reason: '', actor: 'a' }, audit), {
      spent: 1n
    })
    await proven(t, ledger)
  })

  t.test('many balances are answered in the order of the question', async t => {
    const database = await kind(t)
    const { ledger, write } = await books(t, database)
    for (let index = 0; index < 150; index++) write(call(`r${index}`, index, { tenant: `t${index}`, key: null }))
    const asked = Array.from({ length: 151 }, (_, index) => ({ scope: `tenant:t${150 - index}`, period: 'total' }))
    const balances = await ledger.balances(asked)
    t.strictSame(
      balances.map(({ spent }) => Number(spent)),
      asked.map((_, index) => (index === 0 ? 0 : 150 - index))
    )
    t.equal(balances[0]?.version, 0)
  })

  t.test('a call is charged to the period that its line names, however late it ends', async t => {
    const database = await kind(t)
    const { ledger, write } = await books(t, database)
    const time = Date.UTC(2026, 10, 21, 23, 59, 59)
    write(call('r1', 9, { time, charges: [['gateway', 'day:2026-11-21']] }))
    t.equal(await spent(ledger, 'gateway', 'day:2026-11-21'), 9n)
    t.equal(await spent(ledger, 'gateway', 'day:2026-11-22'), 0n)
    t.equal((await rows(database)).length, 1)
  })
}
