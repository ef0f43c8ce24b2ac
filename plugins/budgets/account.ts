import type { Balance } from '../../schemas/ledger.ts'
import { endOf, type Period, periodKey, startOf } from '../../schemas/periods.ts'
import type { BudgetLimit } from '../../schemas/tenants.ts'

export type Kind = 'key' | 'tenant' | 'gateway'

/** From here on what was spent is carried into a bigint, long before numbers stop being exact. */
const carryFrom = 2 ** 52

/**
 * What one scope has spent and holds in one period, in nano-USD. A class, and flat, because every call reads and changes
 * three of them. Whoever holds something keeps the account that it holds it in, also when the next period has begun.
 */
export class Account {
  readonly kind: Kind
  readonly id: string
  /** As the books name it: `tenant:acme`. */
  readonly scope: string
  readonly period: Period
  readonly periodKey: string
  /** Milliseconds since 1970. */
  readonly begins: number
  /** Milliseconds since 1970; Infinity for `total`. */
  readonly ends: number
  budget: BudgetLimit
  /** False: counted, and never a reason to refuse. */
  readonly enforced: boolean
  /** What `spent` and `held` may come to; Infinity without a limit. */
  cap = Number.POSITIVE_INFINITY
  spent = 0
  carry = 0n
  held = 0
  /** Holds that are open. */
  calls = 0
  /** Since somebody last looked for what can be forgotten. */
  used = true
  /** An account of the same scope that came before, while it is still of use; it may have another in turn. */
  elder: Account | null = null
  /** Forgotten: if its scope and period come back, another one stands for them. */
  gone = false
  /** Until it is known what was spent before. */
  loading: Promise<void> | null = null
  /** Texts for the ledger, kept with what they were made of. */
  charges: string | null = null
  chargedTenant: Account | null = null
  chargedGateway: Account | null = null

  // What follows is for several processes: `spent` and `carry` are not used then.

  /** The store's balance, as this process knows it. */
  base = 0n
  version = 0
  /** Settled by this process, and not contained in `base`. */
  unfolded = 0
  /** Settled by this process, and contained in `base`. */
  contained = 0n
  /** In which state of Redis `base` was read and not sent yet; -1: it was sent. */
  fresh = -1
  /** Over all processes, when Redis last answered: and what of it this process held, and what it has settled since. */
  seenSpent = 0n
  seenBase = 0n
  seenHeld = 0
  ownHeld = 0
  settledSince = 0
  /** Redis may have other numbers of this process than these. */
  dirty = false
  /** To be read from the store again. */
  stale = false
  /** Among those whose numbers Redis has. */
  known = false
  /** Redis was asked for what is held in other periods. */
  probed = false
  /** Dead processes whose spending `base` contains. */
  buried: string[] = []
  /** Place in the call to Redis that is being made. */
  batch = 0
  place = 0

  constructor(kind: Kind, id: string, budget: BudgetLimit, time: number, enforced: boolean) {
    this.kind = kind
    this.id = id
    this.scope = kind === 'gateway' ? kind : `${kind}:${id}`
    this.period = budget.period
    this.periodKey = periodKey(budget.period, time)
    this.begins = startOf(budget.period, time)
    this.ends = endOf(budget.period, time)
    this.enforced = enforced
    this.budget = budget
    this.limitTo(budget)
  }

  limitTo(budget: BudgetLimit): void {
    this.budget = budget
    this.cap = budget.limit === null || !this.enforced ? Number.POSITIVE_INFINITY : budget.limit - Number(this.carry)
  }

  /** Begins with what the books say. */
  start({ spent, version }: Pick<Balance, 'spent' | 'version'>): void {
    this.base = spent
    this.version = version
    this.seenSpent = spent
    this.carry = 0n
    this.spent = 0
    this.spend(spent)
  }

  /** Books an amount; negative takes away. */
  spend(amount: number | bigint): void {
    if (typeof amount === 'number') this.spent += amount
    else this.carry += amount
    if (typeof amount === 'number' && this.spent < carryFrom) return
    const sum = this.carry + BigInt(this.spent)
    const small = sum < BigInt(carryFrom) && sum > -BigInt(carryFrom)
    this.carry = small ? 0n : sum
    this.spent = small ? Number(sum) : 0
    this.limitTo(this.budget)
  }

  /** Held in budgets of other periods: what those calls cost will count here. */
  get heldElsewhere(): number {
    let sum = 0
    for (let { elder } = this; elder !== null; elder = elder.elder) if (elder.period !== this.period) sum += elder.held
    return sum
  }

  /** Nothing is lost when it is forgotten, as long as the books are kept. */
  get idle(): boolean {
    const { calls, held, unfolded, loading, dirty } = this
    return calls === 0 && held === 0 && unfolded === 0 && loading === null && !dirty
  }

  /** Everything that this process has settled. */
  get settled(): bigint {
    return this.contained + BigInt(this.unfolded)
  }

  /** The books contain everything that had been settled when it was `settled`: told in any order, and as often as one likes. */
  contain(settled: bigint): void {
    if (settled <= this.contained) return
    this.unfolded -= Number(settled - this.contained)
    this.contained = settled
  }

  get total(): bigint {
    return this.carry + BigInt(this.spent)
  }

  get limit(): number | null {
    return this.budget.limit
  }
}
