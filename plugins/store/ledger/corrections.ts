import type { AttemptEnd, AttemptLine, SettleLine } from '../../../schemas/journal.ts'
import { type Sums, sumOf } from '../../../schemas/ledger.ts'
import type { Database, Row } from '../database.ts'
import { usageColumns, usageIn, usageValues } from '../usage.ts'
import { attemptRow, gatewayLost, lostAttempt, publicId } from './rows.ts'
import { attemptColumns, numberIn, statementsFor, textIn } from './statements.ts'
import type { Tallies, Tally } from './tally.ts'

const usageSet = usageColumns.map(column => `${column} = ?`).join(', ')

/**
 * A line of a call that was closed as lost: its process had only been silent, or its journal was found later. The row
 * becomes what the line says, the balances change by the difference. False: there is no such row.
 */
export async function correct(
  database: Database,
  line: AttemptLine | SettleLine,
  tallies: Tallies,
  tally: Tally
): Promise<boolean> {
  const [row] = await database.all(
    `SELECT seq, cost, ${usageColumns}, charges FROM inferences
      WHERE id = ? AND status = 'interrupted' AND error_code = '${gatewayLost}'
      ORDER BY seq LIMIT 1 ${statementsFor(database).forUpdate}`,
    [publicId(line.id)]
  )
  if (row === undefined) return false
  const seq = numberIn(row, 'seq')
  const charge = tallies.read(textIn(row, 'charges'))
  tally.subtract(charge, sumsIn(row))
  if (line.kind === 'settle') for (const end of line.attempts) await endAttempt(database, seq, end)
  else {
    if (line.before.status !== 'open') await endAttempt(database, seq, line.before)
    await database.insert('attempts', attemptColumns, [attemptRow(seq, line.attempt, lostAttempt(line.attempt))])
  }
  const sums = line.kind === 'settle' ? sumOf(line.attempts) : sumOf(await attemptsOf(database, seq))
  await database.run(`UPDATE inferences SET cost = ?, ${usageSet} WHERE seq = ?`, [
    sums.cost,
    ...usageValues(sums.usage),
    seq
  ])
  if (line.kind === 'settle') {
    await database.run(
      'UPDATE inferences SET status = ?, http_status = ?, error_code = ?, duration = ?, first_token = ? WHERE seq = ?',
      [line.status, line.httpStatus, line.errorCode, line.duration, line.firstToken, seq]
    )
  }
  tally.add(charge, sums, 0)
  return true
}

async function endAttempt(database: Database, seq: number, end: AttemptEnd): Promise<void> {
  await database.run(
    `UPDATE attempts SET status = ?, error_code = ?, duration = ?, first_token = ?, cost = ?, ${usageSet}
      WHERE inference = ? AND number = ?`,
    [end.status, end.errorCode, end.duration, end.firstToken, end.cost, ...usageValues(end.usage), seq, end.number]
  )
}

async function attemptsOf(database: Database, seq: number): Promise<Sums[]> {
  const rows = await database.all(`SELECT cost, ${usageColumns} FROM attempts WHERE inference = ?`, [seq])
  return rows.map(sumsIn)
}

function sumsIn(row: Row): Sums {
  return { cost: row['cost'] === null ? null : numberIn(row, 'cost'), usage: usageIn(row) }
}
