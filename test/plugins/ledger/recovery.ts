import { appendFileSync, existsSync } from 'node:fs'
import type { Test } from 'tap'
import type { Database } from '../../../plugins/store/database.ts'
import { books, call, count, ends, type Kind, opens, proven, rows, scratch, spent, triesAgain } from './books.ts'

/** A process that has been silent for longer than any lease. */
async function silence(database: Database, instance: string): Promise<void> {
  await database.run('UPDATE instances SET seen_at = 0 WHERE id = ?', [instance])
}

/** What becomes of the calls of processes that are gone, on any database. */
export function recoveryTests(t: Test, kind: Kind): void {
  t.test('alone: whatever others left behind is folded and closed at the start', async t => {
    const database = await kind(t)
    const directory = scratch(t)
    const dead = await books(t, database, { directory, instance: 'dead' })
    dead.write(opens('r1'), opens('r2'), opens('r3'))
    await dead.ledger.folded()
    dead.write(triesAgain('r2', 40), ends('r3', 3), opens('r4'))
    const { ledger } = await books(t, database, { directory })
    t.match(
      (await rows(database)).map(row => [
        row['id'],
        row['status'],
        row['error_code'],
        row['cost'],
        row['usage_source']
      ]),
      [
        ['r3', 'settled', null, 3, 'reported'],
        ['r1', 'interrupted', 'gateway_lost', 5_000, 'estimated'],
        ['r2', 'interrupted', 'gateway_lost', 7_040, 'estimated'],
        ['r4', 'interrupted', 'gateway_lost', 5_000, 'estimated']
      ]
    )
    t.match(await database.all("SELECT input, output, http_status FROM inferences WHERE id = 'r1'"), [
      { input: 100, output: 1_000, http_status: null }
    ])
    t.equal(await count(database, 'SELECT COUNT(*) FROM open_calls'), 0)
    t.equal(await count(database, 'SELECT COUNT(*) FROM instances'), 1)
    t.equal(await spent(ledger, 'gateway'), 17_043n)
    await proven(t, ledger)
  })

  t.test('alone: open calls without a journal are closed too', async t => {
    const database = await kind(t)
    const dead = await books(t, database, { directory: scratch(t) })
    dead.write(opens('r1'))
    await dead.ledger.folded()
    await database.run('DELETE FROM instances')
    await books(t, database, { directory: scratch(t) })
    t.match(await rows(database), [{ id: 'r1', status: 'interrupted' }])
  })

  t.test('of three processes the dead one is closed once, a live one never', async t => {
    const database = await kind(t)
    const directory = scratch(t)
    const shared = { exclusive: false, lease: 150, directory }
    const dead = await books(t, database, { ...shared, directory: scratch(t), instance: 'dead', lease: 3_600_000 })
    const first = await books(t, database, { ...shared, instance: 'first' })
    const second = await books(t, database, { ...shared, instance: 'second' })
    for (const [name, process] of Object.entries({ dead, first, second })) {
      process.write(call(`${name}-done`, 1), opens(`${name}-open`))
      await process.ledger.folded()
    }
    await silence(database, 'dead')
    while ((await count(database, "SELECT COUNT(*) FROM instances WHERE id = 'dead'")) > 0) await turn()
    const interrupted = (await rows(database)).filter(row => row['status'] === 'interrupted')
    t.strictSame(
      interrupted.map(row => row['id']),
      ['dead-open']
    )
    t.equal(await count(database, 'SELECT COUNT(*) FROM open_calls'), 2)
    first.write(ends('first-open', 2))
    second.write(ends('second-open', 2))
    await first.ledger.folded()
    await second.ledger.folded()
    t.equal(await spent(second.ledger, 'gateway'), 5_007n)
    await proven(t, first.ledger)
  })

  t.test('what a dead process left in a directory here is folded before its calls are closed', async t => {
    const database = await kind(t)
    const directory = scratch(t)
    const dead = await books(t, database, { directory, instance: 'dead', exclusive: false })
    dead.write(opens('r1'))
    await dead.ledger.folded()
    dead.write(ends('r1', 3), call('r2', 4), opens('r3'))
    await silence(database, 'dead')
    const [one, other] = await Promise.all([
      books(t, database, { directory, exclusive: false, lease: 1_000 }),
      books(t, database, { directory, exclusive: false, lease: 1_000 })
    ])
    while ((await count(database, "SELECT COUNT(*) FROM instances WHERE id = 'dead'")) > 0) await turn()
    t.strictSame((await rows(database)).map(row => [row['id'], row['status']]).sort(), [
      ['r1', 'settled'],
      ['r2', 'settled'],
      ['r3', 'interrupted']
    ])
    await proven(t, one.ledger)
    await proven(t, other.ledger)
  })

  t.test('a process that was only stalled comes back, and its calls become what they were', async t => {
    const database = await kind(t)
    const directory = scratch(t)
    const stalled = await books(t, database, { directory, instance: 'stalled', exclusive: false })
    stalled.write(opens('r1'), opens('r2'), opens('r3'), opens('r4'))
    await stalled.ledger.folded()
    stalled.write(opens('r5'))
    await silence(database, 'stalled')
    const other = await books(t, database, { directory, exclusive: false, lease: 1_000 })
    t.equal((await rows(database)).filter(row => row['error_code'] === 'gateway_lost').length, 5)
    await proven(t, other.ledger)

    stalled.write(ends('r1', 1), ends('r2', 2, 'interrupted'), triesAgain('r3', 10), ends('r5', 5), call('r6', 6))
    await stalled.ledger.folded()
    t.ok(existsSync(stalled.path), 'its file was left to it')
    t.equal(await count(database, "SELECT COUNT(*) FROM instances WHERE id = 'stalled'"), 1, 'it is registered again')
    t.strictSame((await rows(database)).map(row => [row['id'], row['status'], row['error_code'], row['cost']]).sort(), [
      ['r1', 'settled', null, 1],
      ['r2', 'interrupted', 'cancelled', 2],
      ['r3', 'interrupted', 'gateway_lost', 7_010],
      ['r4', 'interrupted', 'gateway_lost', 5_000],
      ['r5', 'settled', null, 5],
      ['r6', 'settled', null, 6]
    ])
    t.equal(await spent(stalled.ledger, 'tenant:acme'), 12_024n)
    t.match(await stalled.ledger.balances([{ scope: 'gateway', period: 'total' }]), [{ requests: 6 }])
    await proven(t, stalled.ledger)

    stalled.write(ends('r3', [10, 20]), ends('r1', 999))
    await stalled.ledger.folded()
    t.strictSame(
      (await rows(database))
        .filter(row => row['id'] === 'r3' || row['id'] === 'r1')
        .map(row => [row['status'], row['cost']]),
      [
        ['settled', 1],
        ['settled', 30]
      ],
      'once'
    )
    t.strictSame(
      (
        await database.all(
          "SELECT status, cost FROM attempts WHERE inference = (SELECT seq FROM inferences WHERE id = 'r3') ORDER BY number"
        )
      ).map(row => [row['status'], row['cost']]),
      [
        ['failed', 10],
        ['settled', 20]
      ]
    )
    await proven(t, stalled.ledger)
  })

  t.test('a journal that is found later corrects what was estimated', async t => {
    const database = await kind(t)
    const away = scratch(t)
    const dead = await books(t, database, { directory: away, instance: 'dead', exclusive: false })
    dead.write(opens('r1'))
    await dead.ledger.folded()
    dead.write(ends('r1', 3), call('r2', 4), opens('r3'))
    await silence(database, 'dead')
    const other = await books(t, database, { directory: scratch(t), exclusive: false, lease: 1_000 })
    t.match(await rows(database), [{ id: 'r1', status: 'interrupted', cost: 5_000 }])
    t.equal(await spent(other.ledger, 'gateway'), 5_000n)

    const back = await books(t, database, { directory: away, exclusive: false, lease: 1_000 })
    t.strictSame(
      (await rows(database)).map(row => [row['id'], row['status'], row['cost']]),
      [
        ['r1', 'settled', 3],
        ['r2', 'settled', 4],
        ['r3', 'interrupted', 5_000]
      ]
    )
    await proven(t, back.ledger)
    appendFileSync(dead.path, ends('r3', 1))
    const again = await books(t, database, { directory: away, exclusive: false, lease: 1_000 })
    t.equal(await spent(again.ledger, 'gateway'), 8n)
    await proven(t, again.ledger)
  })

  t.test('the id of a call of one in-process caller is the caller’s, however many it makes', async t => {
    const database = await kind(t)
    const { ledger, write } = await books(t, database)
    write(opens('r1~i.1'), opens('r1~i.2'))
    await ledger.folded()
    write(ends('r1~i.2', 2), ends('r1~i.1', 1))
    await ledger.folded()
    t.strictSame(
      (await rows(database)).map(row => [row['id'], row['cost']]),
      [
        ['r1', 2],
        ['r1', 1]
      ]
    )
    await proven(t, ledger)
  })
}

function turn(): Promise<void> {
  return new Promise(resolve => setTimeout(resolve, 20))
}
