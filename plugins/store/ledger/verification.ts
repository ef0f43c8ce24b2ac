import type { OpenLine } from '../../../schemas/journal.ts'
import type { Verification } from '../../../schemas/store.ts'
import type { Database } from '../database.ts'
import { numberIn, textIn } from './statements.ts'

const rowsAtOnce = 1_000

/** What the books say that a balance should be. */
interface Proof {
  ledger: bigint
}

/** Compares every balance with the rows and adjustments that it should be the sum of, as of one moment. */
export function verify(database: Database): Promise<Verification> {
  return database.snapshot(async inside => {
    const proofs = new Map<string, Proof>()
    const rows = await sumRows(inside, proofs)
    for await (const piece of inside.pieces(
      'SELECT scope, period, CAST(SUM(spent) AS TEXT) AS spent FROM adjustments GROUP BY scope, period',
      [],
      rowsAtOnce
    )) {
      for (const row of piece) {
        proofFor(proofs, textIn(row, 'scope'), textIn(row, 'period')).ledger += BigInt(textIn(row, 'spent'))
      }
      await turn()
    }
    return { rows, ...(await compareBalances(inside, proofs)) }
  })
}

/** Row by row: a sum in SQL would hold this thread for as long as it takes. */
async function sumRows(inside: Database, proofs: Map<string, Proof>): Promise<number> {
  const charges = new Map<string, Proof[]>()
  let count = 0
  for await (const piece of inside.pieces(
    'SELECT COALESCE(cost, 0) AS cost, charges FROM inferences',
    [],
    rowsAtOnce
  )) {
    for (const row of piece) {
      const text = textIn(row, 'charges')
      let charged = charges.get(text)
      if (charged === undefined) {
        if (charges.size >= 10_000) charges.clear()
        charged = (JSON.parse(text) as OpenLine['charges']).map(([scope, period]) => proofFor(proofs, scope, period))
        charges.set(text, charged)
      }
      const cost = BigInt(numberIn(row, 'cost'))
      for (const proof of charged) proof.ledger += cost
    }
    count += piece.length
    await turn()
  }
  return count
}

async function compareBalances(inside: Database, proofs: Map<string, Proof>): Promise<Omit<Verification, 'rows'>> {
  const differences: Array<Verification['differences'][number]> = []
  let balances = 0
  for await (const piece of inside.pieces(
    'SELECT scope, period, CAST(spent AS TEXT) AS spent FROM balances',
    [],
    rowsAtOnce
  )) {
    for (const row of piece) {
      const [scope, period] = [textIn(row, 'scope'), textIn(row, 'period')]
      const balance = BigInt(textIn(row, 'spent'))
      const name = `${scope}\n${period}`
      const ledger = proofs.get(name)?.ledger ?? 0n
      proofs.delete(name)
      if (balance !== ledger) differences.push({ scope, period, balance, ledger })
    }
    balances += piece.length
    await turn()
  }
  // What rows are charged to has to have a balance.
  for (const [name, { ledger }] of proofs) {
    const end = name.lastIndexOf('\n')
    if (ledger !== 0n) differences.push({ scope: name.slice(0, end), period: name.slice(end + 1), balance: 0n, ledger })
  }
  return { balances, differences }
}

function proofFor(proofs: Map<string, Proof>, scope: string, period: string): Proof {
  const name = `${scope}\n${period}`
  let proof = proofs.get(name)
  if (proof === undefined) {
    proof = { ledger: 0n }
    proofs.set(name, proof)
  }
  return proof
}

/** Lets others of this thread have their turn. */
function turn(): Promise<void> {
  return new Promise(resolve => setImmediate(resolve))
}
