import { LimitsUnavailable } from '../../../schemas/errors.ts'
import type { Shared } from '../../../schemas/shared.ts'
import type { Account } from '../account.ts'
import type { BudgetHold } from '../hold.ts'
import { refuse } from '../refusal.ts'

/** Over all processes there was so much left when Redis last answered. */
export function roomIn({ limit, seenSpent, seenHeld }: Account): number {
  return Number(BigInt(limit ?? 0) - seenSpent) - seenHeld
}

/** This process's part of the room that there was when Redis last answered. */
export function shareLeft(account: Account, processes: number): number {
  const share = Math.floor(Math.max(0, roomIn(account)) / Math.max(1, processes))
  return share - (account.held - account.ownHeld) - account.settledSince
}

/**
 * Holds an amount without Redis, in all accounts or in none.
 * @throws InsufficientQuota, or LimitsUnavailable while nobody knows how many share
 */
export function takeShare(hold: BudgetHold, accounts: readonly Account[], amount: number, shared: Shared): void {
  for (const account of accounts) {
    if (account.cap === Number.POSITIVE_INFINITY) continue
    // Without an answer nobody knows how many share, nor what they have spent.
    if (shared.generation === null) throw unavailable(shared.down ?? 'it has not answered yet')
    if (amount > shareLeft(account, shared.processes)) {
      throw refuse(hold, account, account.seenSpent + BigInt(account.settledSince), account.seenHeld, amount)
    }
  }
  for (const account of accounts) account.held += amount
  hold.degraded = true
  hold.granted(amount)
}

export const rebuilding = 'what gateways share in Redis was lost and is being rebuilt. Try again in a few seconds.'

export function unavailable(reason: string): Error {
  const known = reason === rebuilding || reason.startsWith('Redis ')
  return new LimitsUnavailable(known ? reason : `Redis cannot be asked: ${reason}.`)
}
