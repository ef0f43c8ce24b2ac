import type { Gateway } from '../../schemas/gateway.ts'
import { usdOf } from '../../schemas/money.ts'
import { endOf, periodKey } from '../../schemas/periods.ts'
import type { BudgetLimit } from '../../schemas/tenants.ts'
import { isoOrNull } from './time.ts'

/** What a scope has spent in the running period of its budget. */
export interface Spending {
  readonly spend_usd: number
  readonly reserved_usd: number
  readonly tokens_in: number
  readonly tokens_out: number
  readonly requests: number
  readonly resets_at: string | null
}

/** Of several scopes, in their order: one read of the store for all of them. */
export async function spendingOf(
  { budgets, store }: Gateway,
  scopes: ReadonlyArray<{ scope: string; limit: BudgetLimit }>
): Promise<Spending[]> {
  if (scopes.length === 0) return []
  const states = await Promise.all(scopes.map(({ scope, limit }) => budgets?.state(scope, limit)))
  const now = Date.now()
  const asked = scopes.map(({ scope, limit }, index) => ({
    scope,
    period: states[index]?.periodKey ?? periodKey(limit.period, now)
  }))
  const balances = new Map(
    (await store?.ledger.balances(asked))?.map(balance => [`${balance.scope} ${balance.period}`, balance])
  )
  return scopes.map(({ limit }, index) => {
    const state = states[index]
    const balance = balances.get(`${asked[index]!.scope} ${asked[index]!.period}`)
    return {
      spend_usd: usdOf(balance?.spent ?? state?.spent ?? 0),
      reserved_usd: usdOf(state?.held ?? 0),
      tokens_in: Number(balance?.tokensIn ?? 0),
      tokens_out: Number(balance?.tokensOut ?? 0),
      requests: balance?.requests ?? 0,
      resets_at: isoOrNull(state ? state.resetsAt : endsAt(limit, now))
    }
  })
}

/** Of a scope that was made a moment ago; costs no read that could fail. */
export function unspent(limit: BudgetLimit, now: number): Spending {
  const resets_at = isoOrNull(endsAt(limit, now))
  return { spend_usd: 0, reserved_usd: 0, tokens_in: 0, tokens_out: 0, requests: 0, resets_at }
}

function endsAt({ period }: BudgetLimit, now: number): number | null {
  return period === 'total' ? null : endOf(period, now)
}
