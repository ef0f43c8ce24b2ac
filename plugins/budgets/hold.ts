import type { ChatRequest } from '../../schemas/chat.ts'
import type { Hold, Inference, Target } from '../../schemas/gateway.ts'
import type { Account } from './account.ts'

/** What takes and ends holds: memory in one process, Redis for several. */
export interface Engine {
  /** Holds an amount in all accounts of a hold, or in none. @throws InsufficientQuota, LimitsUnavailable */
  acquire(hold: BudgetHold, amount: number): void | Promise<void>
  /** Ends a hold and books what the call cost. */
  settle(hold: BudgetHold, cost: number): void
  /** Gives part of a hold back. */
  release(hold: BudgetHold, amount: number): void
  /** What is left in an account after everything spent and held; Infinity without a limit. */
  remaining(account: Account): number
}

/** What a hold needs to be extended. */
export interface Bounds {
  /** The most that the request, as it is now, can cost at a target. @throws ModelUnpriced */
  boundAt(inference: Inference, target: Target): number
  /** An account has too little left for a call that may cost `bound`. */
  refused(inference: Inference, account: Account, spent: bigint, held: number, bound: number): void
}

/** Where nothing has a limit, more than this need not be held: sums stay exact. */
const mostUnlimited = 2 ** 43

/** Money held for one call. */
export class BudgetHold implements Hold {
  readonly key: Account | null
  readonly tenant: Account | null
  readonly gateway: Account | null
  amount = 0
  ended = false
  /** Granted without Redis. */
  degraded = false
  readonly inference: Inference
  readonly request: ChatRequest
  #engine: Engine
  #bounds: Bounds

  constructor(
    engine: Engine,
    bounds: Bounds,
    inference: Inference,
    key: Account | null,
    tenant: Account | null,
    gateway: Account | null
  ) {
    this.#engine = engine
    this.#bounds = bounds
    this.inference = inference
    this.request = inference.request
    this.key = key
    this.tenant = tenant
    this.gateway = gateway
    if (key !== null) key.calls++
    if (tenant !== null) tenant.calls++
    if (gateway !== null) gateway.calls++
  }

  extend(target: Target): void | Promise<void> {
    return this.take(this.#bounds.boundAt(this.inference, target))
  }

  take(amount: number): void | Promise<void> {
    const { key, tenant, gateway } = this
    const limited = isLimited(key) || isLimited(tenant) || isLimited(gateway)
    return this.#engine.acquire(this, limited ? amount : Math.min(amount, mostUnlimited))
  }

  /** An amount was granted. One that comes too late goes back at once. */
  granted(amount: number): void {
    if (this.ended) this.#engine.release(this, amount)
    else this.amount += amount
  }

  refused(account: Account, spent: bigint, held: number, bound: number): void {
    this.#bounds.refused(this.inference, account, spent, held, bound)
  }

  /** Ends it with what the call cost; only the first time counts. False: it had ended. */
  end(cost: number): boolean {
    if (this.ended) return false
    this.ended = true
    this.#engine.settle(this, cost)
    if (this.key !== null) this.key.calls--
    if (this.tenant !== null) this.tenant.calls--
    if (this.gateway !== null) this.gateway.calls--
    return true
  }

  /** What is left in the tighter of the caller's own accounts; Infinity where none has a limit. */
  get remaining(): number {
    let least = Number.POSITIVE_INFINITY
    if (this.key !== null) least = Math.min(least, this.#engine.remaining(this.key))
    if (this.tenant !== null) least = Math.min(least, this.#engine.remaining(this.tenant))
    return least
  }

  get charges(): string {
    const { key, tenant, gateway } = this
    const first = key ?? tenant ?? gateway
    if (first === null) return '[]'
    // The ledger charges the totals of the key that was shown, not of the one whose budget it has.
    if (key !== null && key.id !== this.inference.principal.key) return JSON.stringify(this.#charged(key))
    if (first.charges === null || first.chargedTenant !== tenant || first.chargedGateway !== gateway) {
      first.chargedTenant = tenant
      first.chargedGateway = gateway
      first.charges = JSON.stringify(this.#charged(null))
    }
    return first.charges
  }

  /** Without the totals that the ledger knows of by itself. */
  #charged(foreign: Account | null): Array<[scope: string, period: string]> {
    return accountsOf(this)
      .filter(account => account.period !== 'total' || account === foreign)
      .map(({ scope, periodKey }) => [scope, periodKey])
  }
}

function isLimited(account: Account | null): boolean {
  return account !== null && account.cap !== Number.POSITIVE_INFINITY
}

export function accountsOf({ key, tenant, gateway }: BudgetHold): Account[] {
  const all: Account[] = []
  if (key !== null) all.push(key)
  if (tenant !== null) all.push(tenant)
  if (gateway !== null) all.push(gateway)
  return all
}
