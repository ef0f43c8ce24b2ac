import type { BudgetState } from '../../schemas/budgets.ts'
import { InvalidRequest, LimitsUnavailable } from '../../schemas/errors.ts'
import type { Gateway } from '../../schemas/gateway.ts'
import { usdOf } from '../../schemas/money.ts'
import type { Store } from '../../schemas/store.ts'
import type { BudgetLimit } from '../../schemas/tenants.ts'
import type { Account } from './account.ts'
import type { SharedEngine } from './redis/index.ts'
import type { Standing } from './standing.ts'

export interface ResetOptions {
  readonly gateway: Pick<Gateway, 'shared'>
  /** The whole gateway's; null: there is nothing to reset. */
  readonly budget: BudgetLimit | null
  readonly standing: Standing
  readonly redis: SharedEngine | null
  /** Where what is settled gets into; undefined: nowhere. */
  readonly store: () => Store | undefined
  readonly warning: { forget(account: Account): void }
  /** The time when somebody last asked for it, milliseconds since 1970. */
  readonly latest: () => number
}

/** Takes what was spent in the running period out of the gateway's balance; one reset after the other. */
export function createReset(options: ResetOptions): (actor: string) => Promise<BudgetState> {
  const { gateway, budget, standing, redis, store: storeOf, warning, latest } = options
  let resetting: Promise<unknown> = Promise.resolve()

  async function reset(actor: string): Promise<BudgetState> {
    if (budget === null) return noBudget()
    const account = await standing.accountOf('gateway', budget)
    if (account === null) return noBudget()
    const { shared } = gateway
    if (redis !== null && shared !== undefined) {
      if (!(await shared.set('b:reset', shared.instance, 30_000, true))) {
        throw new LimitsUnavailable('another reset is being made.')
      }
      try {
        await redis.ask(account)
        // What a process has settled may count twice until it knows that the books contain it.
        await redis.refresh(account)
        await empty(account, storeOf() === undefined ? account.seenSpent : account.base, actor)
      } finally {
        await shared.delete('b:reset').catch(() => {})
      }
    } else await empty(account, account.total, actor)
    warning.forget(account)
    return standing.state('gateway', budget)
  }

  /** Takes out what is spent now; what is spent meanwhile stays. */
  async function empty(account: Account, spent: bigint, actor: string): Promise<void> {
    const { scope, periodKey: period } = account
    const store = storeOf()
    if (store === undefined) {
      if (redis === null) account.spend(-spent)
      else redis.rebase(account, { spent: account.seenBase - spent, version: Math.max(latest(), account.version + 1) })
      return
    }
    await store.ledger.adjust(
      { scope, period, amount: -spent, reason: 'reset', actor },
      { actor, action: 'budget.reset', subject: scope, before: { period, spent_usd: usdOf(spent) }, after: null }
    )
    if (redis === null) account.spend(-spent)
    else await redis.refresh(account)
  }

  return actor => {
    const done = resetting.then(() => reset(actor))
    resetting = done.catch(() => {})
    return done
  }
}

function noBudget(): never {
  throw new InvalidRequest('This gateway has no budget of its own: set budget.dailyLimitUsd.')
}
