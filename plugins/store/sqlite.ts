import { mkdirSync } from 'node:fs'
import { dirname, resolve } from 'node:path'
import { DatabaseSync, type StatementSync } from 'node:sqlite'
import { type Database, type Driver, gone, isGone, type Row, type Value } from './database.ts'
import { lockFile, type Release, realFile } from './lock.ts'
import { pieces } from './pieces.ts'
import { storable } from './text.ts'

export interface SqliteOptions {
  /** `sqlite:FILE`; `sqlite::memory:` is gone with the process. */
  readonly url: string
  /** Milliseconds to wait for a gateway that is just ending to give up the file. */
  readonly lockWait: number
}

/** What the system or the disk refuses, and may allow later: busy, locked, memory, read-only, I/O, corrupt, full, cannot open, no database. */
const passing = new Set([5, 6, 7, 8, 10, 11, 13, 14, 26])
/** Statements kept for a connection; more texts than these are none of ours. */
const mostStatements = 500
const probeInterval = 1_000

/** One of a connection's own: everything happens at once, on this thread. */
interface Connection {
  all(sql: string, values: readonly Value[], bigints: boolean): Row[]
  run(sql: string, values: readonly Value[]): number
  insert(table: string, columns: readonly string[], rows: ReadonlyArray<readonly Value[]>): void
  iterate(sql: string, values: readonly Value[]): Iterator<unknown>
  exec(sql: string): void
  close(): void
}

/**
 * SQLite on this thread, locked against other processes. One connection writes; snapshots have their own, so that they
 * see no half of a transaction and none waits for them.
 * @throws Error with one line for the operator
 */
export function openSqlite({ url, lockWait }: SqliteOptions): Driver {
  const named = url.slice('sqlite:'.length).replace(/^\/\/(?=\/)/, '')
  const memory = named === ':memory:'
  let release: Release = () => {}
  if (!memory) {
    release = refused(named, () => {
      mkdirSync(dirname(resolve(named)), { recursive: true, mode: 0o700 })
      return lockFile(named, lockWait)
    })
  }
  const file = memory ? named : realFile(named)
  let writer: Connection
  try {
    writer = refused(file, () => connect(file, { readOnly: false }))
  } catch (error) {
    release()
    throw error
  }

  const readers: Connection[] = []
  let state = { ok: true, reason: null as string | null }
  let tell: (state: { ok: boolean; reason: string | null }) => void = () => {}
  let probe: NodeJS.Timeout | null = null
  let tail: Promise<unknown> = Promise.resolve()
  let nextSeq: number | null = null
  let closed = false

  /** One after another: a transaction has its connection to itself from begin to end. */
  function exclusive<T>(work: () => T | Promise<T>): Promise<T> {
    const result = tail.then(() => {
      if (closed) throw gone('it is closed')
      return work()
    })
    tail = result.catch(() => {})
    return result
  }

  function failing(error: unknown): never {
    if (isGone(error) && !closed) change({ ok: false, reason: error.message })
    throw error
  }

  function change(next: typeof state): void {
    if (next.ok === state.ok && next.reason === state.reason) return
    state = next
    tell(state)
    if (!state.ok) probe ??= setInterval(() => void exclusive(check).catch(() => {}), probeInterval).unref()
    else if (probe !== null) {
      clearInterval(probe)
      probe = null
    }
  }

  function mark(): void {
    writer.run("INSERT OR REPLACE INTO settings (name, value) VALUES ('store.written', ?)", [String(Date.now())])
  }

  /** Whether it can be written again. */
  function check(): void {
    mark()
    change({ ok: true, reason: null })
  }

  /** A commit with FULL brings the whole log to the disk; a checkpoint does not while a snapshot is in its way. */
  function flush(): void {
    writer.exec('PRAGMA synchronous = FULL')
    try {
      mark()
    } finally {
      writer.exec('PRAGMA synchronous = NORMAL')
    }
  }

  async function transaction<T>(work: (database: Database) => Promise<T>): Promise<T> {
    writer.exec('BEGIN IMMEDIATE')
    let result: T
    try {
      result = await work({ ...within(writer), sequence })
      writer.exec('COMMIT')
    } catch (error) {
      nextSeq = null
      try {
        writer.exec('ROLLBACK')
      } catch {
        // SQLite rolls back by itself after some faults.
      }
      throw error
    }
    return result
  }

  async function sequence(count: number): Promise<number> {
    nextSeq ??= Number(writer.all('SELECT max(seq) AS last FROM inferences', [], false)[0]?.['last'] ?? 0) + 1
    const first = nextSeq
    nextSeq += count
    return first
  }

  async function snapshot<T>(work: (database: Database) => Promise<T>): Promise<T> {
    // Nobody else can see a database in memory.
    if (memory) return exclusive(() => work(within(writer)))
    if (closed) throw gone('it is closed')
    const reader = readers.pop() ?? connect(file, { readOnly: true })
    try {
      reader.exec('BEGIN')
      return await work(within(reader))
    } finally {
      if (closed || readers.length > 1) reader.close()
      else {
        reader.exec('ROLLBACK')
        readers.push(reader)
      }
    }
  }

  return {
    kind: 'sqlite',
    all: (sql, values = [], bigints = false) => exclusive(() => writer.all(sql, values, bigints)).catch(failing),
    run: (sql, values = []) => exclusive(() => writer.run(sql, values)).catch(failing),
    insert: (table, columns, rows) =>
      exclusive(() => transaction(database => database.insert(table, columns, rows))).catch(failing),
    transaction: work => exclusive(() => transaction(work)).catch(failing),
    snapshot,
    sequence: count => exclusive(() => sequence(count)),
    pieces: (sql, values, size) =>
      memory
        ? slices(() => exclusive(() => writer.all(sql, values, false)), size)
        : pieces(snapshot, sql, values, size),
    script: sql => exclusive(() => writer.exec(sql)),
    flush: () => exclusive(flush).catch(failing),
    onState(listener) {
      tell = listener
    },
    async close() {
      if (closed) return
      await exclusive(() => {
        closed = true
        if (probe !== null) clearInterval(probe)
        for (const reader of readers.splice(0)) reader.close()
        writer.close()
        release()
      })
    }
  }
}

/** A connection inside a transaction or a snapshot. */
function within(connection: Connection): Database {
  const nested = async (): Promise<never> => {
    throw new Error('Transactions are not nested.')
  }
  const self: Database = {
    kind: 'sqlite',
    all: async (sql, values = [], bigints = false) => connection.all(sql, values, bigints),
    run: async (sql, values = []) => connection.run(sql, values),
    insert: async (table, columns, rows) => connection.insert(table, columns, rows),
    transaction: nested,
    snapshot: work => work(self),
    sequence: nested,
    async *pieces(sql, values, size) {
      const rows = connection.iterate(sql, values)
      try {
        while (true) {
          const piece = translated(() => take(rows, size))
          if (piece.length > 0) yield piece
          if (piece.length < size) return
        }
      } finally {
        rows.return?.()
      }
    },
    flush: nested,
    script: async sql => connection.exec(sql),
    close: nested
  }
  return self
}

/** Everything is in memory already. */
async function* slices(load: () => Promise<Row[]>, size: number): AsyncGenerator<Row[]> {
  const rows = await load()
  for (let at = 0; at < rows.length; at += size) yield rows.slice(at, at + size)
}

function take(rows: Iterator<unknown>, size: number): Row[] {
  const piece: Row[] = []
  while (piece.length < size) {
    const { done, value } = rows.next()
    if (done) break
    piece.push(value as Row)
  }
  return piece
}

function connect(file: string, { readOnly }: { readOnly: boolean }): Connection {
  const db = translated(() => new DatabaseSync(file, { readOnly, timeout: 5_000 }))
  const statements = new Map<string, StatementSync>()
  translated(() => {
    if (readOnly) db.exec('PRAGMA query_only = TRUE; PRAGMA cache_size = -8000')
    else {
      db.exec('PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA cache_size = -32000')
      db.exec('PRAGMA wal_autocheckpoint = 4000; PRAGMA journal_size_limit = 67108864')
    }
    db.exec('PRAGMA temp_store = MEMORY')
  })

  function prepare(sql: string, bigints: boolean): StatementSync {
    const name = bigints ? `n ${sql}` : sql
    let statement = statements.get(name)
    if (statement === undefined) {
      if (statements.size >= mostStatements) statements.clear()
      statement = db.prepare(sql)
      statement.setReadBigInts(bigints)
      statements.set(name, statement)
    }
    return statement
  }

  return {
    all: (sql, values, bigints) => translated(() => prepare(sql, bigints).all(...values.map(bound)) as Row[]),
    run: (sql, values) => translated(() => Number(prepare(sql, false).run(...values.map(bound)).changes)),
    insert: (table, columns, rows) =>
      translated(() => {
        const names = columns.join(', ')
        const statement = prepare(
          `INSERT INTO ${table} (${names}) VALUES (${columns.map(() => '?').join(', ')})`,
          false
        )
        for (const row of rows) statement.run(...row.map(bound))
      }),
    // Not a kept statement: another run of the same one would start it again under its reader.
    iterate: (sql, values) => translated(() => db.prepare(sql).iterate(...values.map(bound))),
    exec: sql => translated(() => db.exec(sql)),
    close: () => db.close()
  }
}

/** Node binds numbers as floating point, and sums of those are not exact: integers go as 64 bits. */
function bound(value: Value): Value {
  if (typeof value === 'string') return storable(value)
  return typeof value === 'number' && Number.isSafeInteger(value) ? BigInt(value) : value
}

function translated<T>(work: () => T): T {
  try {
    return work()
  } catch (error) {
    if (error instanceof Error && 'errcode' in error && passing.has(Number(error.errcode) & 0xff)) {
      throw gone(`SQLite says: ${error.message}`, error)
    }
    throw error
  }
}

/** A file that cannot be used stops the start with one line. */
function refused<T>(file: string, work: () => T): T {
  try {
    return work()
  } catch (error) {
    if (error instanceof Error && error.message.includes(' is in use by ')) throw error
    throw new Error(`The database ${file} cannot be opened: ${error instanceof Error ? error.message : error}`, {
      cause: error
    })
  }
}
