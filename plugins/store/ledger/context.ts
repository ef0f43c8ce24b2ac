import type { Log } from '../../../schemas/gateway.ts'
import type { Balance } from '../../../schemas/ledger.ts'
import type { StoreState } from '../../../schemas/store.ts'

/** What the ledger needs of the worker that it runs in. */
export interface LedgerContext {
  /** Names this process in leases and journals. */
  readonly instance: string
  readonly log: Log
  /** Called with each balance that a commit has changed. */
  folded(balances: readonly Balance[]): void
  /** Called when the database goes away for the fold, while it is away, and when it is back. */
  state(state: StoreState): void
  /** How long a fold rests; absent: the defaults below. */
  readonly pace?: Pace
}

/** Folding leaves the processor to the event loop: it rests `rest` times as long as it took, and at least `least` ms. */
export interface Pace {
  readonly rest: number
  readonly least: number
}

export const gentle: Pace = { rest: 19, least: 50 }
/** Where the database is another machine's work. */
export const eager: Pace = { rest: 0, least: 0 }

/** Somebody else has folded or closed what this fold was about to: what is in memory is read again. */
export class Conflict extends Error {}

/** SQLite: constraint, mismatch, too big, range. */
const dataFaults = new Set([18, 19, 20, 25])

/** True for an error that the data caused: it comes again however often one tries. */
export function isDataFault(error: unknown): boolean {
  if (error instanceof TypeError || error instanceof RangeError) return true
  if (!(error instanceof Error)) return false
  if ('errcode' in error && typeof error.errcode === 'number') return dataFaults.has(error.errcode & 0xff)
  return 'code' in error && typeof error.code === 'string' && /^(?:22|23|54)[0-9A-Z]{3}$/.test(error.code)
}
