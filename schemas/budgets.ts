import type { Period } from './periods.ts'
import type { BudgetLimit } from './tenants.ts'

/** A budget as it stands; nano-USD. */
export interface BudgetState {
  readonly scope: string
  readonly period: Period
  /** As periods.ts names it. */
  readonly periodKey: string
  readonly limit: number | null
  readonly spent: number | bigint
  /** By calls in flight. */
  readonly held: number
  /** When the period ends, milliseconds since 1970; null: never. */
  readonly resetsAt: number | null
}

export interface Budgets {
  /** Of any scope; `limit` says what its budget is. Reads the store for one that is not in memory. */
  state(scope: string, limit: BudgetLimit): Promise<BudgetState>
  /** Of a scope that is in memory, as far as this process knows and without asking anybody; null for others. */
  known(scope: string): BudgetState | null
  /** The whole gateway's; null where none is configured. */
  gateway(): Promise<(BudgetState & { hardStop: boolean; warningThreshold: number; warned: boolean }) | null>
  /** Takes what was spent in the running period out of the gateway's balance, by an adjustment. */
  reset(actor: string): Promise<BudgetState>
  /** Counters since the start of this process: answers dearer than their hold, calls whose price nobody knew. */
  readonly counters: { readonly overrun: number; readonly unpriced: number; readonly refused: number }
}

declare module './gateway.ts' {
  interface Gateway {
    budgets?: Budgets
  }
}
