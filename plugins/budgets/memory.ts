import type { Account } from './account.ts'
import type { BudgetHold, Engine } from './hold.ts'
import { refuse } from './refusal.ts'

/** Holds in one process: everything happens at once, and nothing is allocated. */
export function createMemory(spentOf: (account: Account) => void): Engine {
  function take(account: Account | null, amount: number): void {
    if (account !== null) account.held += amount
  }

  function book(account: Account | null, amount: number, cost: number): void {
    if (account === null) return
    account.held -= amount
    account.spend(cost)
    if (account.kind === 'gateway') spentOf(account)
  }

  return {
    acquire(hold, amount) {
      const { key, tenant, gateway } = hold
      if (key !== null && lacks(key, amount)) throw refuse(hold, key, key.total, heldFor(key), amount)
      if (tenant !== null && lacks(tenant, amount)) throw refuse(hold, tenant, tenant.total, heldFor(tenant), amount)
      if (gateway !== null && lacks(gateway, amount)) throw refuse(hold, gateway, gateway.total, gateway.held, amount)
      take(key, amount)
      take(tenant, amount)
      take(gateway, amount)
      hold.granted(amount)
    },
    settle({ key, tenant, gateway, amount }, cost) {
      book(key, amount, cost)
      book(tenant, amount, cost)
      book(gateway, amount, cost)
    },
    release({ key, tenant, gateway }: BudgetHold, amount) {
      take(key, -amount)
      take(tenant, -amount)
      take(gateway, -amount)
    },
    remaining: account => account.cap - account.spent - heldFor(account)
  }
}

function lacks(account: Account, amount: number): boolean {
  return account.spent + heldFor(account) + amount > account.cap
}

function heldFor(account: Account): number {
  return account.elder === null ? account.held : account.held + account.heldElsewhere
}
