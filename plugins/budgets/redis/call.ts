import { periodKey, periods } from '../../../schemas/periods.ts'
import type { Account } from '../account.ts'
import type { BudgetHold } from '../hold.ts'

/** One hold that waits to be decided, or a question without an amount. */
export interface Request {
  readonly hold: BudgetHold | null
  readonly accounts: readonly Account[]
  readonly amount: number
  readonly resolve: () => void
  readonly reject: (error: unknown) => void
  /** How often the store was read for it. */
  reads: number
}

/** What a call to the script says besides its requests and accounts. */
interface Circumstances {
  readonly instance: string
  readonly generation: string | null
  /** Each call of this process has a higher one. */
  readonly sequence: number
  /** The state of Redis: balances that were read in another one are not sent. */
  readonly epoch: number
  /** What is settled gets into a store. */
  readonly kept: boolean
  /** Milliseconds since 1970. */
  readonly time: number
}

const keptAfterEnd = 2 * 86_400_000
const keptTotal = 7 * 86_400_000

/** KEYS and ARGV of script.ts. What is buried with an account has been told then. */
export function callOf(
  requests: readonly Request[],
  scopes: readonly Account[],
  { instance, generation, sequence, epoch, kept, time }: Circumstances
): { keys: string[]; args: Array<string | number> } {
  const keys = ['generation', 'instances', `b:seq:${instance}`]
  const args: Array<string | number> = [generation ?? '', instance, sequence, kept ? 1 : 0, scopes.length]
  for (const account of scopes) {
    keys.push(`b:${account.scope}:${account.periodKey}`)
    const forever = kept ? keptTotal : 0
    const ttl = account.ends === Number.POSITIVE_INFINITY ? forever : Math.max(0, account.ends - time) + keptAfterEnd
    args.push(
      account.cap === Number.POSITIVE_INFINITY ? '' : (account.limit ?? ''),
      String(account.base),
      account.version,
      account.held,
      account.unfolded,
      account.fresh === epoch ? 1 : 0,
      Math.ceil(ttl),
      account.buried.length,
      ...account.buried
    )
    const others = othersOf(account, time)
    args.push(account.periodKey, others.length, ...others)
    // Should this call be lost, the next answer names them again.
    account.buried = []
  }
  args.push(requests.length)
  for (const { amount, hold, accounts } of requests) {
    args.push(amount, hold === null ? 0 : accounts.length)
    if (hold !== null) for (const account of accounts) args.push(account.place)
  }
  return { keys, args }
}

/** Other periods in which calls of the same scope may hold something: where the period was changed. */
function othersOf(account: Account, time: number): string[] {
  const others: string[] = []
  if (!account.probed) {
    for (const period of periods) if (period !== account.period) others.push(periodKey(period, time))
  }
  for (let { elder } = account; elder !== null; elder = elder.elder) {
    if (elder.period !== account.period && !others.includes(elder.periodKey)) others.push(elder.periodKey)
  }
  return others
}
