import { buckets, inputOf, noUsage, outputOf, type Usage } from './usage.ts'

// What the books hold.

/** `open`: runs. `settled`: answered. `failed`: the caller got an error. `interrupted`: broken off, by its caller or with its gateway. */
export const recordStatuses = ['open', 'settled', 'interrupted', 'failed'] as const
export type RecordStatus = (typeof recordStatuses)[number]

/** One provider call. Money in nano-USD, durations in milliseconds. */
export interface AttemptRecord {
  readonly number: number
  readonly provider: string
  /** The provider's own name of the model. */
  readonly model: string
  readonly status: RecordStatus
  readonly errorCode: string | null
  readonly duration: number | null
  readonly firstToken: number | null
  /** Null: nobody knows the price. */
  readonly cost: number | null
  readonly priceVersion: string | null
  readonly usage: Usage
}

/** One inference: the sums of its attempts, and who asked for what. */
export interface LedgerRecord {
  readonly id: string
  /** Milliseconds since 1970, when it was opened. */
  readonly time: number
  readonly tenant: string
  readonly key: string | null
  /** What was asked for: the alias. */
  readonly model: string
  readonly stream: boolean
  readonly status: RecordStatus
  /** What the caller got; 499 for one that left; null while it runs and for what was cut off. */
  readonly httpStatus: number | null
  readonly errorCode: string | null
  readonly duration: number | null
  readonly firstToken: number | null
  readonly cost: number | null
  readonly usage: Usage
  readonly traceId: string | null
  /** The request's `user`. */
  readonly user: string | null
  /** The request's `metadata`. */
  readonly tags: Readonly<Record<string, unknown>> | null
  /** The configuration that it was routed by: the first characters of its hash; null where nobody computed one. */
  readonly config: string | null
  readonly attempts: readonly AttemptRecord[]
}

/** What attempts come to. */
export interface Sums {
  /** Nano-USD; null: nobody knows. */
  readonly cost: number | null
  readonly usage: Usage
}

/** What has no known price counts for nothing as long as something else is known. */
export function sumOf(attempts: readonly Sums[]): Sums {
  const [only] = attempts
  if (only !== undefined && attempts.length === 1) return only
  let cost = 0
  let unknown = attempts.length === 0
  let reported = false
  let estimated = false
  const sum = { ...noUsage }
  for (const { cost: own, usage } of attempts) {
    cost += own ?? 0
    unknown ||= own === null
    if (usage.source === 'reported') reported = true
    else estimated ||= inputOf(usage) + outputOf(usage) > 0
    for (const bucket of buckets) sum[bucket] += usage[bucket]
  }
  return {
    cost: cost === 0 && unknown ? null : cost,
    usage: { ...sum, source: reported && !estimated ? 'reported' : 'estimated' }
  }
}

/** Which rows; all of them must fit. Newest first. */
export interface RecordFilter {
  readonly tenant?: string
  readonly key?: string
  readonly model?: string
  readonly status?: RecordStatus
  /** Milliseconds since 1970: from <= time < to. */
  readonly from?: number
  readonly to?: number
}

/** Recent rows, kept in memory. */
export interface Ledger {
  /** The last 200 of a tenant, newest first, running ones too. */
  recent(tenant: string): readonly LedgerRecord[]
  /**
   * Everything since this gateway was first started; running calls count as requests. From memory: of other processes on
   * the same database only what they had written when this one started.
   */
  totals(): Totals
  /** The same of all processes, from the database. @throws StoreUnavailable */
  sums(): Promise<Totals>
  /** Calls that were refused before their first attempt, by error code; since the start of this process. */
  readonly refused: ReadonlyMap<string, number>
  /** Usage reports that contradicted themselves, since the start of this process. */
  readonly mismatches: number
}

export interface Totals {
  readonly requests: number
  readonly tokensIn: number
  readonly tokensOut: number
  readonly cost: number | bigint
}

/** What was spent in one scope (`gateway`, `tenant:acme`, `key:abc`) and period (see periods.ts). */
export interface Balance {
  readonly scope: string
  readonly period: string
  /** Nano-USD, adjustments included. */
  readonly spent: bigint
  readonly requests: number
  readonly tokensIn: bigint
  readonly tokensOut: bigint
  /** Grows with every change: of two balances of one scope and period the higher is the newer. */
  readonly version: number
}

/** What takes spend out of a balance without touching a row. */
export interface Adjustment {
  readonly scope: string
  readonly period: string
  /** Nano-USD to add; negative takes away. */
  readonly amount: bigint
  readonly reason: string
  readonly actor: string
}

declare module './gateway.ts' {
  interface Gateway {
    ledger?: Ledger
  }
}
