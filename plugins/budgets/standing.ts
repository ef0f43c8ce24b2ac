import type { BudgetState } from '../../schemas/budgets.ts'
import { endOf, periodKey } from '../../schemas/periods.ts'
import type { BudgetLimit } from '../../schemas/tenants.ts'
import type { Account, Kind } from './account.ts'
import type { Books } from './books.ts'
import type { SharedEngine } from './redis/index.ts'

export interface StandingOptions {
  readonly books: Books
  readonly redis: SharedEngine | null
  /** Milliseconds since 1970. */
  readonly clock: () => number
}

/** How budgets stand, for whoever asks. */
export interface Standing {
  /** The account of a scope as it is named: `tenant:acme`. Null: it runs with another period. @throws RangeError */
  accountOf(scope: string, limit: BudgetLimit): Promise<Account | null>
  /** Of any scope; reads the store for one that is not in memory. @throws RangeError */
  state(scope: string, limit: BudgetLimit): Promise<BudgetState>
  /** Of a scope that is in memory, without asking anybody; null for others. @throws RangeError */
  known(scope: string): BudgetState | null
}

export function createStanding({ books, redis, clock }: StandingOptions): Standing {
  async function accountOf(scope: string, limit: BudgetLimit): Promise<Account | null> {
    const { kind, id } = partsOf(scope)
    const known = books.find(kind, id)
    if (known !== undefined && known.period !== limit.period) return null
    const account = books.account(kind, id, limit, clock())
    if (account.loading === null) return account
    await account.loading
    return accountOf(scope, limit)
  }

  async function state(scope: string, limit: BudgetLimit): Promise<BudgetState> {
    const account = await accountOf(scope, limit)
    const time = clock()
    const ends = endOf(limit.period, time)
    const budget = { scope, period: limit.period, limit: limit.limit, resetsAt: Number.isFinite(ends) ? ends : null }
    if (account === null) {
      const key = periodKey(limit.period, time)
      const { spent } = await books.balance(scope, key)
      return { ...budget, periodKey: key, spent: smaller(spent), held: 0 }
    }
    await redis?.ask(account).catch(() => {})
    return { ...budget, periodKey: account.periodKey, ...standingOf(account) }
  }

  function standingOf(account: Account): Pick<BudgetState, 'spent' | 'held'> {
    const spent = redis === null ? account.total : account.seenSpent
    const held = redis === null ? account.held + account.heldElsewhere : account.seenHeld
    return { spent: smaller(spent), held }
  }

  function known(scope: string): BudgetState | null {
    const { kind, id } = partsOf(scope)
    const account = books.find(kind, id)
    if (account === undefined || account.loading !== null) return null
    const { period, limit } = account
    const time = clock()
    const isOver = time >= account.ends
    const ends = isOver ? endOf(period, time) : account.ends
    return {
      scope,
      period,
      limit,
      periodKey: isOver ? periodKey(period, time) : account.periodKey,
      resetsAt: Number.isFinite(ends) ? ends : null,
      // Nobody has called since the next period has begun.
      ...(isOver ? { spent: 0, held: 0 } : standingOf(account))
    }
  }

  return { accountOf, state, known }
}

/** @throws RangeError */
function partsOf(scope: string): { kind: Kind; id: string } {
  const colon = scope.indexOf(':')
  const kind = colon === -1 ? scope : scope.slice(0, colon)
  if (!isKind(kind)) throw new RangeError(`'${scope}' is no scope.`)
  return { kind, id: colon === -1 ? '' : scope.slice(colon + 1) }
}

function isKind(text: string): text is Kind {
  return text === 'key' || text === 'tenant' || text === 'gateway'
}

/** A number while it is exact. */
function smaller(amount: bigint): number | bigint {
  return amount <= Number.MAX_SAFE_INTEGER && amount >= Number.MIN_SAFE_INTEGER ? Number(amount) : amount
}
