import type { Gateway } from '../../schemas/gateway.ts'
import { usdOf, usdText } from '../../schemas/money.ts'
import type { Account } from './account.ts'

const kept = 3 * 86_400_000

/** Says once in a period that the gateway has spent a part of its budget; with Redis, one process says it for all. */
export function createWarning(threshold: number, gateway: Pick<Gateway, 'log' | 'shared' | 'events'>) {
  let given: string | null = null

  function say(account: Account, spent: number): void {
    const { scope, limit, periodKey: period } = account
    const { events } = gateway
    if (events.heard) {
      events.emit('model.budget.warning', { scope, period, spent_usd: usdOf(spent), limit_usd: usdOf(limit ?? 0) })
    }
    gateway.log.warn(
      { period, spentUsd: usdText(spent), limitUsd: usdText(limit ?? 0) },
      'the budget of this gateway is nearly used up'
    )
  }

  return {
    /** The account of the gateway has spent so much, in nano-USD. */
    look(account: Account, spent: number): void {
      if (account.limit === null || given === account.periodKey || spent < account.limit * threshold) return
      given = account.periodKey
      const { shared } = gateway
      if (shared === undefined) say(account, spent)
      else {
        shared.set(nameOf(account), shared.instance, kept, true).then(
          first => first && say(account, spent),
          () => say(account, spent)
        )
      }
    },
    given: (periodKey: string) => given === periodKey,
    forget(account: Account): void {
      given = null
      gateway.shared?.delete(nameOf(account)).catch(() => {})
    }
  }
}

function nameOf({ periodKey }: Account): string {
  return `b:warned:${periodKey}`
}
