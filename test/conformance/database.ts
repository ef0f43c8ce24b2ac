import type { Test } from 'tap'
import type { Database, Driver, Row } from '../../plugins/store/database.ts'
import { migrate } from '../../plugins/store/migrate.ts'

// What a driver promises to the worker, whatever its database.

/** Opens the driver on an empty database; closed after the test. */
export type OpenDriver = (t: Test) => Promise<Driver>

const balances = ['scope', 'period', 'spent', 'requests', 'tokens_in', 'tokens_out', 'version']

export function databaseConformance(t: Test, open: OpenDriver): void {
  const opened = async (t: Test): Promise<Driver> => {
    const driver = await open(t)
    await migrate(driver)
    return driver
  }
  const scopes = async (database: Database): Promise<string[]> =>
    (await database.all('SELECT scope FROM balances ORDER BY scope')).map(({ scope }) => String(scope))

  t.test('64 bits are exact, in columns and in sums', async t => {
    const driver = await opened(t)
    const large = 9_007_199_254_740_993n
    await driver.insert('balances', balances, [
      ['a', 'total', large, 1, 0, 0, 1],
      ['b', 'total', 3, 1, 0, 0, 1]
    ])
    await driver.run('UPDATE balances SET spent = spent + ? WHERE scope = ?', [4, 'a'])
    const [row] = await driver.all('SELECT sum(spent) AS spent, count(*) AS rows FROM balances', [], true)
    t.strictSame({ ...row }, { spent: large + 7n, rows: 2n })
    const [small] = await driver.all('SELECT sum(spent) AS spent FROM balances WHERE scope = ?', ['b'])
    t.equal(small?.['spent'], 3)
    await t.rejects(driver.all('SELECT spent FROM balances'), 'a number that would not be exact is no answer')
  })

  t.test('a transaction is all or nothing', async t => {
    const driver = await opened(t)
    await t.rejects(
      driver.transaction(async inside => {
        await inside.insert('balances', balances, [['a', 'total', 1, 1, 0, 0, 1]])
        throw new Error('stop')
      }),
      { message: 'stop' }
    )
    t.strictSame(await scopes(driver), [])
    const faulty = driver.transaction(async inside => {
      await inside.insert('balances', balances, [['a', 'total', 1, 1, 0, 0, 1]])
      await inside.insert('balances', balances, [['a', 'total', 1, 1, 0, 0, 1]])
    })
    await t.rejects(faulty)
    t.strictSame(await scopes(driver), [])
    t.equal(await driver.transaction(async inside => inside.kind), driver.kind)
  })

  t.test('nobody sees half of a transaction', async t => {
    const driver = await opened(t)
    const begun = Promise.withResolvers<void>()
    const goOn = Promise.withResolvers<void>()
    const writing = driver.transaction(async inside => {
      await inside.insert('balances', balances, [['a', 'total', 1, 1, 0, 0, 1]])
      begun.resolve()
      await goOn.promise
      await inside.insert('balances', balances, [['b', 'total', 1, 1, 0, 0, 1]])
    })
    await begun.promise
    const outside = scopes(driver)
    t.strictSame(await driver.snapshot(scopes), [], 'a snapshot does not wait')
    goOn.resolve()
    await writing
    t.not((await outside).length, 1)
    t.strictSame(await scopes(driver), ['a', 'b'])
  })

  t.test('a snapshot stays at its moment', async t => {
    const driver = await opened(t)
    await driver.snapshot(async inside => {
      t.strictSame(await scopes(inside), [])
      await driver.insert('balances', balances, [['a', 'total', 1, 1, 0, 0, 1]])
      t.strictSame(await scopes(inside), [])
    })
    const writing = driver.snapshot(inside => inside.run('DELETE FROM balances'))
    await t.rejects(writing, 'it only reads')
    t.strictSame(await scopes(driver), ['a'])
  })

  t.test('many rows are inserted at once, with every kind of value', async t => {
    const driver = await opened(t)
    const text = `it's "quoted", {braced}, \\ back\nslash, null, 😀`
    const columns = ['id', 'name', 'body']
    await driver.script('CREATE TABLE things (id BIGINT PRIMARY KEY, name TEXT, "user" TEXT, number DOUBLE PRECISION)')
    const rows = Array.from({ length: 3_000 }, (_, id) => [id, id % 2 ? text : null, 'nul\0 half \ud83d', id / 3])
    await driver.insert('things', ['id', 'name', '"user"', 'number'], rows)
    await driver.insert('things', columns.slice(0, 1), [])
    const [first, other] = await driver.all(
      'SELECT id, name, "user", number FROM things WHERE id IN (?, ?) ORDER BY id',
      [6, 7]
    )
    t.strictSame({ ...first }, { id: 6, name: null, user: 'nul\ufffd half \ufffd', number: 2 })
    t.equal(other?.['name'], text)
    t.equal(await driver.run('DELETE FROM things'), 3_000)
  })

  t.test('a query is read in pieces, and may be left', async t => {
    const driver = await opened(t)
    const rows = Array.from({ length: 250 }, (_, index) => [`s${index}`, 'total', index, 1, 0, 0, 1])
    await driver.insert('balances', balances, rows)
    const sql = 'SELECT spent FROM balances WHERE spent >= ? ORDER BY spent'
    const sizes: number[] = []
    for await (const piece of driver.pieces(sql, [50], 100)) {
      sizes.push(piece.length)
      await driver.run('DELETE FROM balances WHERE spent > ?', [100])
    }
    t.strictSame(sizes, [100, 100], 'as of the first of them')
    let left: Row[] = []
    for await (const piece of driver.pieces(sql, [0], 10)) {
      left = piece
      break
    }
    t.equal(left.length, 10)
    t.equal(await driver.run('DELETE FROM balances'), 101, 'nothing is held up')
    for await (const _ of driver.pieces(sql, [0], 10)) t.fail('no rows, no pieces')
    const broken = driver.pieces('SELECT nothing FROM nowhere', [], 10)
    await t.rejects(async () => {
      for await (const _ of broken) t.fail('no rows')
    })
  })

  t.test('numbers are drawn in blocks that never overlap', async t => {
    const driver = await opened(t)
    const blocks = await Promise.all([5, 1, 7].map(count => driver.transaction(inside => inside.sequence(count))))
    const drawn = blocks.flatMap((first, index) => Array.from({ length: [5, 1, 7][index]! }, (_, step) => first + step))
    t.equal(new Set(drawn).size, 13)
  })

  t.test('several at once bring a database up to date', async t => {
    const driver = await open(t)
    await Promise.all([migrate(driver), migrate(driver), migrate(driver)])
    await migrate(driver)
    t.equal((await driver.all('SELECT version FROM migrations WHERE version = 1')).length, 1)
  })
}
