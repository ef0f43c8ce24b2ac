import type { Balance, Totals } from '../../schemas/ledger.ts'

/** Of the whole gateway, as the balances name it. */
export const everything = [{ scope: 'gateway', period: 'total' }]
export const nothing = { requests: 0, running: 0, tokensIn: 0, tokensOut: 0, cost: 0 }

/** What the database says, and what has to be added to it. */
export function totalsOf(balance: Balance | undefined, counts: typeof nothing): Totals {
  const cost = BigInt(counts.cost) + (balance?.spent ?? 0n)
  return {
    requests: (balance?.requests ?? 0) + counts.requests + counts.running,
    tokensIn: Number(balance?.tokensIn ?? 0n) + counts.tokensIn,
    tokensOut: Number(balance?.tokensOut ?? 0n) + counts.tokensOut,
    cost: cost <= Number.MAX_SAFE_INTEGER ? Number(cost) : cost
  }
}
