import type { OpenLine } from '../../../schemas/journal.ts'
import type { Database } from '../database.ts'
import { addAdjustment } from './accounts.ts'
import { bigintIn, numberIn, statementsFor, textIn, tokensIn, tokensOut } from './statements.ts'

const rowsAtOnce = 5_000

interface Retired {
  readonly scope: string
  readonly period: string
  spent: bigint
  requests: bigint
  tokensIn: bigint
  tokensOut: bigint
}

/**
 * Deletes rows that are older, some at a time. What they add up to is kept as one adjustment for each scope and period, in
 * the same transaction: the balances stay what they are, and what they should be the sum of.
 */
export async function retire(database: Database, before: number): Promise<number> {
  let deleted = 0
  for (;;) {
    const count = await database.transaction(inside => retireSome(inside, before))
    deleted += count
    if (count < rowsAtOnce) return deleted
    // Between two of them others get their turn.
    await new Promise(resolve => setImmediate(resolve))
  }
}

async function retireSome(inside: Database, before: number): Promise<number> {
  const sql = statementsFor(inside)
  const rows = await inside.all(
    `DELETE FROM inferences
      WHERE seq IN (SELECT seq FROM inferences WHERE time < ? ORDER BY time LIMIT ${rowsAtOnce} ${sql.skipLocked})
      RETURNING seq, cost, ${tokensIn} AS tokens_in, ${tokensOut} AS tokens_out, charges`,
    [before],
    true
  )
  if (rows.length === 0) return 0
  const seqs = JSON.stringify(rows.map(row => numberIn(row, 'seq')))
  await inside.run(`DELETE FROM attempts WHERE inference IN ${sql.numbers}`, [seqs])
  const charges = new Map<string, Retired[]>()
  const sums = new Map<string, Retired>()
  for (const row of rows) {
    for (const retired of chargesOf(textIn(row, 'charges'), charges, sums)) {
      retired.spent += row['cost'] === null ? 0n : bigintIn(row, 'cost')
      retired.requests += 1n
      retired.tokensIn += bigintIn(row, 'tokens_in')
      retired.tokensOut += bigintIn(row, 'tokens_out')
    }
  }
  for (const name of [...sums.keys()].sort()) await keep(inside, sums.get(name)!)
  return rows.length
}

function chargesOf(text: string, charges: Map<string, Retired[]>, sums: Map<string, Retired>): Retired[] {
  const known = charges.get(text)
  if (known !== undefined) return known
  const pairs = JSON.parse(text) as OpenLine['charges']
  const list = pairs.map(([scope, period]) => {
    const name = `${scope}\n${period}`
    const retired = sums.get(name) ?? { scope, period, spent: 0n, requests: 0n, tokensIn: 0n, tokensOut: 0n }
    sums.set(name, retired)
    return retired
  })
  charges.set(text, list)
  return list
}

/** One row for each scope and period, however often retention runs. */
async function keep(inside: Database, retired: Retired): Promise<void> {
  const { scope, period, spent, requests, tokensIn, tokensOut } = retired
  const [row] = await inside.all(
    "SELECT id FROM adjustments WHERE scope = ? AND period = ? AND kind = 'retired' ORDER BY id LIMIT 1",
    [scope, period]
  )
  if (row === undefined) {
    await addAdjustment(inside, 'retired', { scope, period, reason: 'retention', actor: null }, retired)
    return
  }
  await inside.run(
    `UPDATE adjustments SET time = ?, spent = spent + ?, requests = requests + ?, tokens_in = tokens_in + ?,
      tokens_out = tokens_out + ? WHERE id = ?`,
    [Date.now(), spent, requests, tokensIn, tokensOut, numberIn(row, 'id')]
  )
}
