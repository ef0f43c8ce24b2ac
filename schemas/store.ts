import type { Adjustment, Balance, LedgerRecord, RecordFilter } from './ledger.ts'
import type { ApiKey, Tenant } from './tenants.ts'

// The contract of the store. Everything in it runs in a worker thread; the event loop only sends and receives messages.
// Every method rejects with StoreUnavailable while the database cannot be reached.

export type StoredTenant = Tenant & { readonly source: 'api' }

/** Part of a list in the order of its ids: those after `after`. */
export interface Page {
  readonly after?: string
  readonly limit: number
}

/** Who changed what. `before` and `after` hold no secrets; null: did not exist, does not exist any more. */
export interface Audit {
  readonly actor: string
  /** `tenant.create`, `key.rotate`, `budget.reset`, … */
  readonly action: string
  readonly subject: string
  readonly before: object | null
  readonly after: object | null
}

export interface AuditRecord extends Audit {
  readonly id: number
  /** Milliseconds since 1970. */
  readonly time: number
}

/** Rows newest first; `next` is what to give as `after` for the rest, null at the end. */
export interface Rows<Row> {
  readonly rows: Row[]
  readonly next: string | null
}

/** The database, in SQLite or PostgreSQL. */
export interface Store {
  readonly kind: 'sqlite' | 'postgres'
  /** Names this process in leases and journals; new with every start. */
  readonly instance: string

  /** The value of a setting, which is stored if there is none yet: for secrets that all processes share. */
  setting(name: string, value: string): Promise<string>

  readonly tenants: {
    get(id: string): Promise<StoredTenant | null>
    list(page: Page): Promise<StoredTenant[]>
    /** False: there is one already. */
    insert(tenant: StoredTenant, audit: Audit): Promise<boolean>
    /** False: there is none, or it is not `expected` any more: somebody else has changed it meanwhile. */
    update(tenant: StoredTenant, audit: Audit, expected?: StoredTenant): Promise<boolean>
    /** With its keys; false: there is none. */
    remove(id: string, audit: Audit): Promise<boolean>
  }

  readonly keys: {
    get(id: string): Promise<ApiKey | null>
    list(tenant: string, page: Page): Promise<ApiKey[]>
    insert(key: ApiKey, audit: Audit): Promise<void>
    /**
     * Several at once, in one transaction: the rotated one and its successor. Inserts those that are not there. False,
     * and nothing done: the key `expected` (of the same id) has been changed meanwhile or is gone; `lastUsedAt` may differ.
     */
    update(keys: readonly ApiKey[], audit: Audit, expected?: ApiKey): Promise<boolean>
    /** Notes when keys were last used (milliseconds since 1970), never earlier than what stands there. Not audited. */
    touch(uses: ReadonlyArray<{ id: string; at: number }>): Promise<void>
    /** Whether any tenant has a key. */
    any(): Promise<boolean>
  }

  readonly ledger: {
    /**
     * Takes over what earlier processes left behind, then follows the journal in `directory` that this process writes.
     * Resolves when every line that can be folded is. `path` is the file to append to from now on.
     * @param lease milliseconds after which a silent process counts as dead
     */
    open(options: { directory: string; lease: number; exclusive: boolean }): Promise<{ path: string }>
    /** Tells the worker that the journal has grown; not awaited, cheap enough for once per turn of the event loop. */
    grown(): void
    /** Resolves once everything that stands in the journal now is folded and committed. */
    folded(): Promise<void>
    /** True once nothing of another process is open any more: its calls are closed and what was found of its journals is folded. */
    closed?(instance: string): Promise<boolean>
    /** Starts a new file; the old one is deleted when it is folded. */
    rotate(): Promise<{ path: string }>
    /**
     * Rows, running ones included. `after` is the `next` of the page before. A page may be short, even empty, while `next`
     * is not null: a search for what hardly any row has ends after a while and goes on with the next page.
     */
    records(filter: RecordFilter, page: { after?: string; limit: number }): Promise<Rows<LedgerRecord>>
    /** All rows, in pieces of up to 1,000; the database is read as fast as they are taken. */
    export(filter: RecordFilter): AsyncIterable<LedgerRecord[]>
    /** Balances as of everything in the journal up to now; a scope that never spent has zeros and version 0. */
    balances(of: ReadonlyArray<{ scope: string; period: string }>): Promise<Balance[]>
    /** The sum of the rows of a scope since a moment: for a budget whose period has been changed. Stores it as balance. */
    recount(scope: string, period: string, from: number): Promise<Balance>
    adjust(adjustment: Adjustment, audit: Audit): Promise<Balance>
    /** Deletes rows that are older; what they add up to stays in the balances. Resolves with how many went. */
    retain(before: number): Promise<number>
    /** Compares every balance with the rows, adjustments and deleted sums that it should be the sum of. */
    verify(): Promise<Verification>
  }

  readonly audits: {
    list(filter: { subject?: string }, page: { after?: string; limit: number }): Promise<Rows<AuditRecord>>
    add(audit: Audit): Promise<void>
  }

  /** Answers kept for `Idempotency-Key`, by a hash of who asked and the key. */
  readonly answers: {
    get(id: string): Promise<StoredAnswer | null>
    put(answer: StoredAnswer): Promise<void>
    /** The ids of those that are still valid, newest first, at most `limit`. */
    ids(limit: number): Promise<string[]>
    /** Deletes those that have ended. */
    purge(now: number): Promise<void>
  }

  /** Called with each balance that a fold has changed, after its commit. */
  onFolded(listener: (balances: readonly Balance[]) => void): void
  /** Called when the database goes away and when it is back. */
  onState(listener: (state: StoreState) => void): void
  readonly state: StoreState
}

export interface StoreState {
  readonly ok: boolean
  /** Without secrets. */
  readonly reason: string | null
  /** Bytes of the journal that are not folded yet. */
  readonly backlog: number
}

export interface StoredAnswer {
  readonly id: string
  /** Of the request, so that a key used for another one is found out. */
  readonly fingerprint: string
  readonly stream: boolean
  readonly body: Uint8Array
  /** Milliseconds since 1970. */
  readonly expiresAt: number
}

export interface Verification {
  readonly rows: number
  readonly balances: number
  /** What differs; empty: the books are right. Nano-USD. */
  readonly differences: ReadonlyArray<{ scope: string; period: string; balance: bigint; ledger: bigint }>
}

declare module './gateway.ts' {
  interface Gateway {
    /** Absent without the plugin. */
    store?: Store
  }
}
