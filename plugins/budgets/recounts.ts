import type { Log } from '../../schemas/gateway.ts'
import type { Store } from '../../schemas/store.ts'
import type { Account } from './account.ts'
import type { Books } from './books.ts'
import type { SharedEngine } from './redis/index.ts'

export interface RecountsOptions {
  readonly books: Books
  readonly redis: SharedEngine | null
  /** Where what is settled gets into; undefined: nowhere. */
  readonly store: () => Store | undefined
  readonly log: Log
}

/** Milliseconds until rows of calls that have ended can be counted, and until a failed count is tried again. */
const recountAfter = 100
const recountAgain = 5_000

/** What calls cost that began while their budget had another period. */
export function createRecounts({ books, redis, store: storeOf, log }: RecountsOptions) {
  /** Costs that the books are still to be made to contain, and when that is tried. */
  const recounts = new Map<Account, { owed: number; timer: NodeJS.Timeout }>()

  /** The budget has another period than when the call began: it counts there too. */
  function follow(account: Account, cost: number): void {
    const current = books.find(account.kind, account.id)
    if (current === undefined || current.period === account.period || cost === 0) return
    const store = storeOf()
    if (redis === null) current.spend(cost)
    else if (store === undefined) redis.book(current, cost)
    else redis.keep(current, cost)
    if (store === undefined || (redis === null && current.period === 'total')) return
    const known = recounts.get(current)
    if (known === undefined) recountLater(current, cost, recountAfter)
    else known.owed += cost
  }

  function recountLater(account: Account, owed: number, delay: number): void {
    const timer = setTimeout(() => void recount(account), delay).unref()
    recounts.set(account, { owed, timer })
  }

  /** A total contains what the ledger writes down; in other periods the rows have to be counted again. */
  async function recount(account: Account): Promise<void> {
    const owed = recounts.get(account)?.owed ?? 0
    recounts.delete(account)
    const { scope, period, periodKey, begins } = account
    try {
      if (period !== 'total') await storeOf()?.ledger.recount(scope, periodKey, begins)
      await redis?.refresh(account)
      redis?.keep(account, -owed)
    } catch (error) {
      log.error({ err: error, scope }, 'a budget whose period has changed cannot be counted again')
      const since = recounts.get(account)
      if (since === undefined) recountLater(account, owed, recountAgain)
      else since.owed += owed
    }
  }

  function close(): void {
    for (const { timer } of recounts.values()) clearTimeout(timer)
  }

  return { follow, close }
}
