/** What a column holds. 64-bit integers come back as bigint only where the query asks for it, see `bigints`. */
export type Value = string | number | bigint | Uint8Array | null
export type Row = Record<string, Value>

/**
 * SQL on SQLite or PostgreSQL, as the worker uses it. Placeholders are `?` in both; statements are prepared once per text.
 * Rejects with an error that `isGone` recognises while the database cannot be reached. Texts cannot hold NUL, which
 * PostgreSQL knows no way to store: it becomes U+FFFD in both.
 */
export interface Database {
  readonly kind: 'sqlite' | 'postgres'
  /** Integers as numbers; with `bigints` as bigint, sums too. */
  all(sql: string, values?: readonly Value[], bigints?: boolean): Promise<Row[]>
  /** How many rows changed. */
  run(sql: string, values?: readonly Value[]): Promise<number>
  /** The same INSERT for many rows, as fast as the database can; `columns` in the order of each row's values, as SQL names them. */
  insert(table: string, columns: readonly string[], rows: ReadonlyArray<readonly Value[]>): Promise<void>
  /**
   * One transaction: what throws inside undoes all of it. Not nested: inside, only the given database may be used.
   * When it rejects with what `isGone` recognises it may have been committed all the same.
   */
  transaction<T>(work: (database: Database) => Promise<T>): Promise<T>
  /** Reads at one moment, however long they take: neither held up by transactions nor holding them up. */
  snapshot<T>(work: (database: Database) => Promise<T>): Promise<T>
  /** The next `count` numbers for `inferences.seq`: the first of them. Inside a transaction, which others then wait for. */
  sequence(count: number): Promise<number>
  /** Rows of a query in pieces, without holding all of them: as of the moment of the first. */
  pieces(sql: string, values: readonly Value[], size: number): AsyncIterable<Row[]>
  /** What is committed now survives a power cut; before it, commits are in order but the last ones may be lost. */
  flush(): Promise<void>
  /** Several statements, without values: a migration. */
  script(sql: string): Promise<void>
  close(): Promise<void>
}

/** A database as the worker has it. */
export interface Driver extends Database {
  /** Whether the database can be used now; the listener hears of each change. */
  onState(listener: (state: { ok: boolean; reason: string | null }) => void): void
}

const mark: unique symbol = Symbol('gone')

interface Gone extends Error {
  readonly [mark]: true
}

/** An error that says: not now, perhaps later. The message names no secret. */
export function gone(reason: string, cause?: unknown): Gone {
  return Object.assign(new Error(reason, { cause }), { [mark]: true as const })
}

/** The database could not be reached, is full or busy: trying again later is useful. */
export function isGone(error: unknown): error is Gone {
  return error instanceof Error && mark in error
}
