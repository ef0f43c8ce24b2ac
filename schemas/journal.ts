import type { RecordStatus } from './ledger.ts'
import type { Usage } from './usage.ts'

// The journal: lines that the event loop appends and the store's worker folds. One JSON array a line, its first entry
// says what it is. A line without its line end was cut off and does not count.

/** A call opens with its first attempt. */
export interface OpenLine {
  readonly kind: 'open'
  readonly id: string
  /** Milliseconds since 1970. */
  readonly time: number
  readonly tenant: string
  readonly key: string | null
  readonly model: string
  readonly stream: boolean
  readonly user: string | null
  readonly tags: Readonly<Record<string, unknown>> | null
  readonly traceId: string | null
  /** What the call is charged to: scope and period, without the `total` of key, tenant and gateway, which all are. */
  readonly charges: ReadonlyArray<readonly [scope: string, period: string]>
  readonly attempt: AttemptOpen
}

/** A further attempt, and how the one before it ended. */
export interface AttemptLine {
  readonly kind: 'attempt'
  readonly id: string
  readonly before: AttemptEnd
  readonly attempt: AttemptOpen
}

/** A call ends. */
export interface SettleLine {
  readonly kind: 'settle'
  readonly id: string
  readonly status: RecordStatus
  readonly httpStatus: number | null
  readonly errorCode: string | null
  readonly duration: number
  readonly firstToken: number | null
  readonly attempts: readonly AttemptEnd[]
}

export type JournalLine = OpenLine | AttemptLine | SettleLine

/** An attempt as it begins, with what it is charged should nobody live to say how it ended. */
export interface AttemptOpen {
  readonly number: number
  readonly provider: string
  readonly model: string
  readonly priceVersion: string | null
  /** Tokens that the request is likely to have, and those reserved for its answer. */
  readonly input: number
  readonly output: number
  /** Nano-USD of these; null: unknown price. */
  readonly cost: number | null
}

/** An attempt as it ended. */
export interface AttemptEnd {
  readonly number: number
  readonly status: RecordStatus
  readonly errorCode: string | null
  readonly duration: number
  readonly firstToken: number | null
  readonly cost: number | null
  readonly usage: Usage
}
