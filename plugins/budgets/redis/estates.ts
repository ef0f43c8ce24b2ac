import type { Store } from '../../../schemas/store.ts'
import type { Account } from '../account.ts'

/** What dead processes have settled and nobody has brought into the books yet. */
export interface Estates {
  /** A process has died that had settled something in an account. */
  add(account: Account, instance: string): void
  /** Ends those whose journals are folded. */
  settle(store: Store): Promise<void>
}

/**
 * What a dead process has settled counts until the books contain it, or nobody can bring it there any more.
 * @param contained takes over a balance that contains it, and tells Redis
 */
export function createEstates(contained: (account: Account, instance: string) => Promise<void>): Estates {
  let leftovers: Array<{ account: Account; instance: string }> = []

  function add(account: Account, instance: string): void {
    if (leftovers.some(other => other.account === account && other.instance === instance)) return
    leftovers.push({ account, instance })
  }

  async function settle(store: Store): Promise<void> {
    const open = leftovers
    leftovers = []
    const closed = new Map<string, boolean>()
    for (const { account, instance } of open) {
      try {
        if (!closed.has(instance)) closed.set(instance, (await store.ledger.closed?.(instance)) ?? false)
        if (closed.get(instance) === true) {
          await contained(account, instance)
          continue
        }
      } catch {
        // The next time.
      }
      add(account, instance)
    }
  }

  return { add, settle }
}
