import { appendFileSync, existsSync, readdirSync, statSync, truncateSync } from 'node:fs'
import { dirname } from 'node:path'
import type { Test } from 'tap'
import { type Database, gone } from '../../../plugins/store/database.ts'
import { openCallOf } from '../../../plugins/store/ledger/rows.ts'
import { records } from '../../../plugins/store/records.ts'
import { books, call, count, ends, type Kind, opens, proven, rows, scratch, spent, triesAgain } from './books.ts'

/** What the fold does, on any database. */
export function foldTests(t: Test, kind: Kind): void {
  t.test('a call becomes a row, an attempt and balances', async t => {
    const database = await kind(t)
    const { ledger, write, folded } = await books(t, database)
    write(call('r1', 1_234, { charges: [['tenant:acme', 'day:2026-11-21']] }))
    await ledger.folded()
    const charges = '[["gateway","total"],["tenant:acme","total"],["key:k1","total"],["tenant:acme","day:2026-11-21"]]'
    t.match(await rows(database), [{ id: 'r1', status: 'settled', http_status: 200, cost: 1_234, charges }])
    t.equal(await count(database, 'SELECT COUNT(*) FROM attempts'), 1)
    t.equal(await count(database, 'SELECT COUNT(*) FROM open_calls'), 0)
    t.strictSame(folded.map(({ scope, period }) => `${scope} ${period}`).sort(), [
      'gateway total',
      'key:k1 total',
      'tenant:acme day:2026-11-21',
      'tenant:acme total'
    ])
    t.strictSame(await ledger.balances([{ scope: 'key:k1', period: 'total' }]), [
      { scope: 'key:k1', period: 'total', spent: 1_234n, requests: 1, tokensIn: 10n, tokensOut: 5n, version: 1 }
    ])
    await proven(t, ledger)
  })

  t.test('a call that is open at the end of a batch is kept, and its later lines find it', async t => {
    const database = await kind(t)
    const { ledger, write } = await books(t, database)
    write(opens('r1'))
    await ledger.folded()
    t.equal(await count(database, 'SELECT COUNT(*) FROM open_calls'), 1)
    t.equal(await spent(ledger, 'gateway'), 0n, 'what is open is in no balance')
    write(triesAgain('r1', 3))
    await ledger.folded()
    write(ends('r1', [3, 40]))
    await ledger.folded()
    t.equal(await count(database, 'SELECT COUNT(*) FROM open_calls'), 0)
    t.match(await rows(database), [{ id: 'r1', cost: 43, input: 20, output: 10 }])
    t.equal(await count(database, 'SELECT COUNT(*) FROM attempts'), 2)
    await proven(t, ledger)
  })

  t.test('a row has the configuration of its call, and null from before it was written down', async t => {
    const database = await kind(t)
    const { ledger, write } = await books(t, database)
    const old = call('r1', 1, { config: 'not-written' }).replace(',"not-written"]\n', ']\n')
    write(old, call('r2', 2, { config: '0123456789ab' }), opens('r3', { config: 'ba9876543210' }), opens('r4'))
    await ledger.folded()
    // As an older gateway left it behind.
    await database.run(
      "UPDATE open_calls SET lines = REPLACE(lines, ',\"config\":null', '') WHERE id = 'r4' AND lines LIKE '%\"config\":null%'"
    )
    const shown = await records(database, {}, { limit: 10 })
    t.strictSame(Object.fromEntries(shown.rows.map(({ id, config }) => [id, config])), {
      r1: null,
      r2: '0123456789ab',
      r3: 'ba9876543210',
      r4: null
    })
    const { lines } = (await database.all("SELECT lines FROM open_calls WHERE id = 'r4'"))[0] ?? {}
    t.notMatch(lines, '"config":')
    t.strictSame(openCallOf('r4', String(lines)).open.config, null)
    write(ends('r3', 3))
    await ledger.folded()
    t.strictSame((await database.all("SELECT config FROM inferences WHERE id = 'r3'"))[0]?.['config'], 'ba9876543210')
    await proven(t, ledger)
  })

  t.test('an unknown price is null in the row and nothing in the balance', async t => {
    const database = await kind(t)
    const { ledger, write } = await books(t, database)
    write(opens('r1'), ends('r1', [null]))
    await ledger.folded()
    t.match(await rows(database), [{ cost: null }])
    t.equal(await spent(ledger, 'gateway'), 0n)
    await proven(t, ledger)
  })

  t.test('a torn last line waits for its end', async t => {
    const database = await kind(t)
    const { ledger, path, write } = await books(t, database)
    const line = ends('r1', 5)
    write(opens('r1'), line.slice(0, 20))
    await ledger.folded()
    t.equal((await rows(database)).length, 0)
    appendFileSync(path, line.slice(20))
    await ledger.folded()
    t.match(await rows(database), [{ id: 'r1', cost: 5 }])
  })

  t.test('damaged lines are left out and said', async t => {
    const database = await kind(t)
    const { ledger, write, log } = await books(t, database)
    write(opens('r1'), '\0\0\0garbage\n', '["s","r1"]\n', '\n', ends('r1', 5), call('r2', 6))
    await ledger.folded()
    t.match(await rows(database), [{ id: 'r1' }, { id: 'r2' }])
    t.match(log.join(), /damaged lines/)
  })

  t.test('what the database cannot take is put aside, the rest is folded', async t => {
    const database = await kind(t)
    let refused = 0
    const picky: Database = {
      ...database,
      transaction: work =>
        database.transaction(inside =>
          work({
            ...inside,
            async insert(table, columns, list) {
              if (table === 'inferences' && list.some(row => row[1] === 'r2')) {
                refused++
                throw new TypeError('not this one')
              }
              return inside.insert(table, columns, list)
            }
          })
        )
    }
    const { ledger, path, write } = await books(t, picky)
    write(call('r1', 1), call('r2', 2), call('r3', 3))
    await ledger.folded()
    t.match(
      (await rows(database)).map(row => row['id']),
      ['r1', 'r3']
    )
    t.equal(refused, 2)
    t.ok(existsSync(`${path}.rejected`))
    await proven(t, ledger)
  })

  t.test('a database that goes away loses nothing, and what was perhaps committed counts once', async t => {
    const database = await kind(t)
    let fail: 'before' | 'after' | null = null
    const flaky: Database = {
      ...database,
      async transaction(work) {
        if (fail === 'before') throw gone('it is away')
        const result = await database.transaction(work)
        if (fail === 'after') throw gone('nobody heard the answer')
        return result
      }
    }
    const { ledger, write, folded, states } = await books(t, flaky)
    for (const [index, when] of (['before', 'after', 'after', 'before'] as const).entries()) {
      write(call(`r${index}`, 10), opens(`o${index}`))
      fail = when
      await t.rejects(ledger.folded(), { message: /away|nobody/ })
      t.match(states.at(-1), { ok: false, reason: /away|nobody/ })
      fail = null
      await ledger.folded()
      t.match(states.at(-1), { ok: true, reason: null })
    }
    t.equal((await rows(database)).length, 4)
    t.equal(await count(database, 'SELECT COUNT(*) FROM open_calls'), 4)
    t.equal(await spent(ledger, 'gateway'), 40n)
    t.equal(folded.filter(({ scope }) => scope === 'gateway').at(-1)?.spent, 40n, 'the last word is the newest balance')
    await proven(t, ledger)
  })

  t.test('a restart goes on where the fold was, whatever was folded before', async t => {
    const database = await kind(t)
    const directory = scratch(t)
    const first = await books(t, database, { directory })
    first.write(call('r1', 1), opens('r2'))
    await first.ledger.folded()
    first.write(ends('r2', 2), call('r3', 3), opens('r4'), ends('r4', 4).slice(0, -1))
    const second = await books(t, database, { directory })
    t.match(
      (await rows(database)).map(({ id, status, cost }) => [id, status, cost]),
      [
        ['r1', 'settled', 1],
        ['r2', 'settled', 2],
        ['r3', 'settled', 3],
        ['r4', 'interrupted', 5_000]
      ]
    )
    await proven(t, second.ledger)
    const third = await books(t, database, { directory })
    t.equal((await rows(database)).length, 4)
    await proven(t, third.ledger)
  })

  t.test('a full file is followed by the next one and goes when it is folded', async t => {
    const database = await kind(t)
    const { ledger, path, write } = await books(t, database)
    write(opens('r1'))
    const { path: next } = await ledger.rotate()
    write(call('r2', 2))
    await ledger.folded()
    t.ok(existsSync(path), 'nobody knows yet whether more comes')
    appendFileSync(path, call('r3', 3))
    appendFileSync(next, ends('r1', 1))
    await ledger.folded()
    t.notOk(existsSync(path))
    t.match(
      (await rows(database)).map(row => row['id']),
      ['r2', 'r3', 'r1']
    )
    const { path: last } = await ledger.rotate()
    const { path: unused } = await ledger.rotate()
    appendFileSync(unused, call('r4', 4))
    await ledger.folded()
    t.notOk(existsSync(next))
    t.notOk(existsSync(last), 'one that was never written to goes too')
    t.equal(await spent(ledger, 'gateway'), 10n)
    t.equal(await count(database, 'SELECT COUNT(*) FROM journals'), 1)
  })

  t.test('a clean end leaves neither file nor row behind', async t => {
    const database = await kind(t)
    const { ledger, path, write } = await books(t, database)
    write(call('r1', 1))
    await ledger.close()
    t.equal((await rows(database)).length, 1)
    t.strictSame(readdirSync(dirname(path)), [])
    t.equal(await count(database, 'SELECT COUNT(*) FROM journals'), 0)
    t.equal(await count(database, 'SELECT COUNT(*) FROM instances'), 0)
  })

  t.test('journals of other books are left alone', async t => {
    const directory = scratch(t)
    const other = await kind(t)
    const { write, path } = await books(t, other, { directory })
    write(call('r1', 1))
    const database = await kind(t)
    const { ledger } = await books(t, database, { directory })
    t.equal((await rows(database)).length, 0)
    t.ok(statSync(path).size > 100)
    await proven(t, ledger)
  })

  t.test('a file that ends within its first line is no obstacle', async t => {
    const database = await kind(t)
    const directory = scratch(t)
    const { path } = await books(t, database, { directory })
    truncateSync(path, 5)
    const { ledger } = await books(t, database, { directory })
    await proven(t, ledger)
  })
}
