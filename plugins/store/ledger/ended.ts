import type { SettleLine } from '../../../schemas/journal.ts'
import { sumOf } from '../../../schemas/ledger.ts'
import type { Database, Value } from '../database.ts'
import { addAttemptRows, type Ending, inferenceRow, type OpenCall } from './rows.ts'
import { attemptColumns, inferenceColumns } from './statements.ts'
import type { Tallies, Tally } from './tally.ts'

/** Calls that have ended become rows, and are charged. Inside a transaction. */
export async function insertEnded(
  inside: Database,
  calls: ReadonlyArray<{ readonly call: OpenCall; readonly ending: Ending | SettleLine }>,
  tallies: Tallies,
  tally: Tally
): Promise<void> {
  if (calls.length === 0) return
  const inferences: Value[][] = []
  const attempts: Value[][] = []
  let seq = await inside.sequence(calls.length)
  for (const { call, ending } of calls) {
    const sums = sumOf(ending.attempts)
    const charge = tallies.of(call.open)
    inferences.push(inferenceRow(seq, call, ending, sums, charge.text))
    addAttemptRows(attempts, seq, call, ending.attempts)
    tally.add(charge, sums, 1)
    seq++
  }
  await inside.insert('inferences', inferenceColumns, inferences)
  await inside.insert('attempts', attemptColumns, attempts)
}
