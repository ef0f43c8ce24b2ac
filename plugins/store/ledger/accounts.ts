import type { Adjustment, Balance } from '../../../schemas/ledger.ts'
import type { Audit } from '../../../schemas/store.ts'
import type { Database } from '../database.ts'
import { bigintIn, statementsFor, tokensIn, tokensOut } from './statements.ts'
import { balanceOf } from './tally.ts'

/** What is asked at once at most: statements are prepared for a few sizes only. */
const most = 64

/** Balances in the order of the question; what never spent has zeros and version 0. */
export async function readBalances(
  database: Database,
  of: ReadonlyArray<{ scope: string; period: string }>
): Promise<Balance[]> {
  const known = new Map<string, Balance>()
  for (let first = 0; first < of.length; first += most) {
    const part = of.slice(first, first + most)
    const size = 2 ** Math.ceil(Math.log2(part.length))
    const pairs = Array.from({ length: size }, (_, index) => part[index] ?? part[0]!)
    const rows = await database.all(
      `SELECT scope, period, spent, requests, tokens_in, tokens_out, version FROM balances
        WHERE ${pairs.map(() => '(scope = ? AND period = ?)').join(' OR ')}`,
      pairs.flatMap(({ scope, period }) => [scope, period]),
      true
    )
    for (const balance of rows.map(balanceOf)) known.set(nameOf(balance), balance)
  }
  return of.map(pair => known.get(nameOf(pair)) ?? emptyBalance(pair))
}

function nameOf({ scope, period }: { scope: string; period: string }): string {
  return `${scope}\n${period}`
}

function emptyBalance({ scope, period }: { scope: string; period: string }): Balance {
  return { scope, period, spent: 0n, requests: 0, tokensIn: 0n, tokensOut: 0n, version: 0 }
}

/** Takes spend out of a balance, or puts some in, and writes down who did. */
export async function adjust(database: Database, adjustment: Adjustment, audit: Audit): Promise<Balance> {
  const { scope, period, amount, reason, actor } = adjustment
  const sums = { spent: amount, requests: 0n, tokensIn: 0n, tokensOut: 0n }
  return database.transaction(async inside => {
    await addAdjustment(inside, 'adjustment', { scope, period, reason, actor }, sums)
    await inside.run('INSERT INTO audits (time, actor, action, subject, before, after) VALUES (?, ?, ?, ?, ?, ?)', [
      Date.now(),
      audit.actor,
      audit.action,
      audit.subject,
      audit.before === null ? null : JSON.stringify(audit.before),
      audit.after === null ? null : JSON.stringify(audit.after)
    ])
    return addToBalance(inside, scope, period, sums)
  })
}

/**
 * Makes a balance the sum of the rows of its scope since a moment: rows that were written before a budget had this period
 * do not name it. What the rows do not explain is written down as an adjustment, so that the books still prove the balance.
 */
export async function recount(database: Database, scope: string, period: string, from: number): Promise<Balance> {
  return database.transaction(async inside => {
    // Taken first, so that no fold changes it between the sum and the balance.
    const before = await addToBalance(inside, scope, period, { spent: 0n, requests: 0n, tokensIn: 0n, tokensOut: 0n })
    const colon = scope.indexOf(':')
    const column = { tenant: 'tenant', key: 'key' }[scope.slice(0, colon)]
    const of = column === undefined ? '' : `${column} = ? AND`
    const values = column === undefined ? [from] : [scope.slice(colon + 1), from]
    // One statement sees one moment: between two of them retention could move rows into an adjustment.
    const parts = await inside.all(
      `SELECT 0 AS part, CAST(COALESCE(SUM(cost), 0) AS BIGINT) AS spent, COUNT(*) AS requests,
          CAST(COALESCE(SUM(${tokensIn}), 0) AS BIGINT) AS tokens_in,
          CAST(COALESCE(SUM(${tokensOut}), 0) AS BIGINT) AS tokens_out
        FROM inferences WHERE ${of} time >= ?
        UNION ALL SELECT 1 AS part, ${sumColumns} FROM adjustments WHERE scope = ? AND period = ? AND kind <> 'recount'`,
      [...values, scope, period],
      true
    )
    const rows = parts.find(({ part }) => Number(part) === 0)
    const kept = parts.find(({ part }) => Number(part) === 1)
    if (rows === undefined || kept === undefined) throw new Error('A sum has no row.')
    const difference = {
      spent: bigintIn(rows, 'spent') + bigintIn(kept, 'spent') - before.spent,
      requests: bigintIn(rows, 'requests') + bigintIn(kept, 'requests') - BigInt(before.requests),
      tokensIn: bigintIn(rows, 'tokens_in') + bigintIn(kept, 'tokens_in') - before.tokensIn,
      tokensOut: bigintIn(rows, 'tokens_out') + bigintIn(kept, 'tokens_out') - before.tokensOut
    }
    if (Object.values(difference).every(value => value === 0n)) {
      // Nobody has spent anything in it: a period that was only looked at leaves no row.
      const { version } = before
      if (version === 1) await inside.run('DELETE FROM balances WHERE scope = ? AND period = ?', [scope, period])
      return before
    }
    await addAdjustment(inside, 'recount', { scope, period, reason: null, actor: null }, difference)
    return addToBalance(inside, scope, period, difference)
  })
}

/** Sums of exact numbers, in a table with the columns of balances. */
export const sumColumns = `CAST(COALESCE(SUM(spent), 0) AS BIGINT) AS spent,
  CAST(COALESCE(SUM(requests), 0) AS BIGINT) AS requests,
  CAST(COALESCE(SUM(tokens_in), 0) AS BIGINT) AS tokens_in,
  CAST(COALESCE(SUM(tokens_out), 0) AS BIGINT) AS tokens_out`

interface BigSums {
  readonly spent: bigint
  readonly requests: bigint
  readonly tokensIn: bigint
  readonly tokensOut: bigint
}

export async function addAdjustment(
  inside: Database,
  kind: 'adjustment' | 'retired' | 'recount',
  about: { scope: string; period: string; reason: string | null; actor: string | null },
  sums: BigSums
): Promise<void> {
  await inside.run(
    `INSERT INTO adjustments (time, kind, scope, period, spent, requests, tokens_in, tokens_out, reason, actor)
      VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
    [
      Date.now(),
      kind,
      about.scope,
      about.period,
      sums.spent,
      sums.requests,
      sums.tokensIn,
      sums.tokensOut,
      about.reason,
      about.actor
    ]
  )
}

async function addToBalance(inside: Database, scope: string, period: string, sums: BigSums): Promise<Balance> {
  const names = `"scope":${JSON.stringify(scope)},"period":${JSON.stringify(period)}`
  const counts = `"requests":${sums.requests},"tokens_in":${sums.tokensIn},"tokens_out":${sums.tokensOut}`
  const text = `[{${names},"spent":${sums.spent},${counts}}]`
  const [row] = await inside.all(statementsFor(inside).upsertBalances, [text], true)
  if (row === undefined) throw new Error('A balance has no row.')
  return balanceOf(row)
}
