import pg from 'pg'
import { type Database, type Driver, gone, isGone, type Row, type Value } from './database.ts'
import { pieces } from './pieces.ts'
import { openSession, reasonOf } from './session.ts'
import { storable } from './text.ts'

export interface PostgresOptions {
  /** `postgres://user:password@host:port/database`, also with `?sslmode=` and what else pg knows. */
  readonly url: string
  /** Other processes use this database too; without it they are refused. */
  readonly shared: boolean
  /** Milliseconds to wait for a gateway that is just ending to give up its lock. */
  readonly lockWait: number
}

const connections = 4
const statementTimeout = 60_000
/** The server breaks a statement off first; this is for one that does not answer at all. */
const answerTimeout = 70_000
const noTimeout = 2_147_483_647

/**
 * Connection lost or refused, shut down, starting, too many connections, out of disk or memory, read-only since a
 * failover, broken off for its time, and collisions with other transactions.
 */
const passing = /^(?:08...|57P..|57014|53...|25006|40001|40P01|55P03)$/
const systemFaults = new Set(
  'ECONNREFUSED ECONNRESET ECONNABORTED EPIPE ETIMEDOUT ENOTFOUND EAI_AGAIN EHOSTUNREACH ENETUNREACH'.split(' ')
)
/** What pg says itself, without a code. */
const lostWords =
  /connection terminated|connection error|timeout|not queryable|client was closed|pool after calling end/i

/** PostgreSQL through a few connections. While it is away calls are refused at once, and it is asked until it is back. */
export async function openPostgres({ url, shared, lockWait }: PostgresOptions): Promise<Driver> {
  const common = {
    connectionString: url,
    application_name: 'fastify-model-gateway',
    connectionTimeoutMillis: 5_000,
    keepAlive: true
  }
  const session = await openSession({ config: common, shared, lockWait })
  const pool = new pg.Pool({
    ...common,
    max: connections,
    statement_timeout: statementTimeout,
    query_timeout: answerTimeout,
    types: numbers
  })
  // An idle connection that breaks: the pool forgets it, the session finds out why.
  pool.on('error', () => session.check())
  // While it is in use the pool does not listen; an end between two statements would be nobody's and end the worker.
  pool.on('connect', client => client.on('error', () => session.check()))

  const active = new Set<pg.PoolClient>()
  /** Of these nobody knows what state they are in. */
  const spoilt = new WeakSet<pg.PoolClient>()
  const texts = new Map<string, { name: string; text: string }>()
  const columnTypes = new Map<string, Map<string, string>>()
  let cursors = 0
  let closed = false
  let tell: (state: { ok: boolean; reason: string | null }) => void = () => {}
  session.onState(state => {
    // A server that hangs answers nobody: who waits for it learns it now.
    if (!state.ok) for (const client of active) destroy(client)
    tell(state)
  })

  /** A statement is prepared once for each connection, under one name for each text. */
  function textOf(sql: string): { name: string; text: string } {
    let known = texts.get(sql)
    if (known === undefined) {
      let count = 0
      known = { name: `gateway_${texts.size}`, text: sql.replaceAll('?', () => `$${++count}`) }
      texts.set(sql, known)
    }
    return known
  }

  async function connected<T>(work: (client: pg.PoolClient) => Promise<T>): Promise<T> {
    if (closed) throw gone('it is closed')
    if (!session.state.ok) throw gone(session.state.reason ?? 'it does not answer')
    const client = await pool.connect().catch(failing)
    active.add(client)
    try {
      return await work(client)
    } catch (error) {
      if (isGone(translated(error))) spoilt.add(client)
      return failing(error)
    } finally {
      active.delete(client)
      client.release(spoilt.has(client))
    }
  }

  function failing(error: unknown): never {
    const known = translated(error)
    if (isGone(known)) session.check()
    throw known
  }

  async function transaction<T>(begin: string, work: (database: Database) => Promise<T>): Promise<T> {
    return connected(async client => {
      await client.query(begin)
      let result: T
      try {
        result = await work(within(client, begin.includes('READ ONLY') ? noTimeout : answerTimeout))
      } catch (error) {
        await client.query('ROLLBACK').catch(() => spoilt.add(client))
        throw error
      }
      const { command } = await client.query('COMMIT')
      if (command !== 'COMMIT') throw new Error('The transaction was undone: one of its statements had failed.')
      return result
    })
  }

  /** A connection, in a transaction or not. */
  function within(client: pg.PoolClient, timeout: number): Database {
    const query = async (config: { name?: string; text: string }, values: readonly Value[], bigints: boolean) => {
      const given = {
        ...config,
        values: values.map(bound),
        types: bigints ? allBigints : numbers,
        query_timeout: timeout
      }
      try {
        return await client.query<Row>(given)
      } catch (error) {
        throw translated(error)
      }
    }
    const nested = async (): Promise<never> => {
      throw new Error('Transactions are not nested.')
    }
    const self: Database = {
      kind: 'postgres',
      all: async (sql, values = [], bigints = false) => (await query(textOf(sql), values, bigints)).rows,
      run: async (sql, values = []) => (await query(textOf(sql), values, false)).rowCount ?? 0,
      async insert(table, columns, rows) {
        if (rows.length === 0) return
        const types = columnTypes.get(table) ?? (await typesOf(self, table))
        columnTypes.set(table, types)
        const arrays = columns.map(column => `CAST(? AS ${types.get(column.replaceAll('"', ''))}[])`).join(', ')
        const { name, text } = textOf(`INSERT INTO ${table} (${columns.join(', ')}) SELECT * FROM unnest(${arrays})`)
        const values = columns.map((_, index) => rows.map(row => bound(row[index] ?? null)))
        await client.query({ name, text, values }).catch(error => Promise.reject(translated(error)))
      },
      transaction: nested,
      snapshot: work => work(self),
      async sequence(count) {
        await self.all(`SELECT pg_advisory_xact_lock(${sequenceKey})`)
        const sql = `SELECT setval('inferences_seq', nextval('inferences_seq') + ? - 1) AS last`
        const [row] = await self.all(sql, [count])
        return Number(row?.['last']) - count + 1
      },
      async *pieces(sql, values, size) {
        const cursor = `gateway_cursor_${++cursors}`
        await query({ text: `DECLARE ${cursor} NO SCROLL CURSOR FOR ${textOf(sql).text}` }, values, false)
        while (true) {
          const { rows } = await query({ text: `FETCH ${size} FROM ${cursor}` }, [], false)
          if (rows.length > 0) yield rows
          if (rows.length < size) break
        }
        await query({ text: `CLOSE ${cursor}` }, [], false)
      },
      flush: nested,
      async script(sql) {
        await client.query('SET LOCAL statement_timeout = 0')
        await client.query({ text: sql, query_timeout: noTimeout } as pg.QueryConfig)
      },
      close: nested
    }
    return self
  }

  const snapshot = <T>(work: (database: Database) => Promise<T>): Promise<T> =>
    transaction('BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL statement_timeout = 0', work)

  return {
    kind: 'postgres',
    all: (sql, values, bigints) => connected(client => within(client, answerTimeout).all(sql, values, bigints)),
    run: (sql, values) => connected(client => within(client, answerTimeout).run(sql, values)),
    insert: (table, columns, rows) => connected(client => within(client, answerTimeout).insert(table, columns, rows)),
    transaction: work => transaction('BEGIN', work),
    snapshot,
    sequence: async () => {
      throw new Error('Numbers are drawn inside a transaction.')
    },
    pieces: (sql, values, size) => pieces(snapshot, sql, values, size),
    script: sql => transaction('BEGIN', database => database.script(sql)),
    // A server that confirms a commit before it is on disk was told to do so.
    flush: async () => {},
    onState(listener) {
      tell = listener
    },
    async close() {
      if (closed) return
      closed = true
      await pool.end()
      await session.close()
    }
  }
}

/** Held to the end of the transaction: folds of several processes follow each other, and so do their numbers. */
const sequenceKey = "hashtextextended('fastify-model-gateway sequence ' || coalesce(current_schema(), ''), 0)"

async function typesOf(database: Database, table: string): Promise<Map<string, string>> {
  const rows = await database.all(
    `SELECT attname AS name, format_type(atttypid, NULL) AS type FROM pg_attribute
      WHERE attrelid = CAST(CAST(? AS text) AS regclass) AND attnum > 0 AND NOT attisdropped`,
    [table]
  )
  return new Map(rows.map(({ name, type }) => [String(name), String(type)]))
}

/** Ends a connection without asking the server. */
function destroy(client: pg.PoolClient): void {
  const { connection } = client as pg.PoolClient & { connection?: { stream?: { destroy(): void } } }
  connection?.stream?.destroy()
}

function bound(value: Value): Value {
  return typeof value === 'string' ? storable(value) : value
}

function translated(error: unknown): unknown {
  if (!(error instanceof Error) || isGone(error)) return error
  const code = 'code' in error && typeof error.code === 'string' ? error.code : ''
  const lost = error instanceof AggregateError || systemFaults.has(code) || passing.test(code)
  return lost || (code === '' && lostWords.test(error.message)) ? gone(reasonOf(error), error) : error
}

type Parser = (text: string) => unknown

/** int8, numeric (what sums are) and boolean as SQLite gives them. */
const numbers = parsers(
  new Map<number, Parser>([
    [20, integer],
    [1700, text => (/^-?\d+$/.test(text) ? integer(text) : Number(text))],
    [16, text => (text === 't' ? 1 : 0)]
  ])
)
const allBigints = parsers(
  new Map<number, Parser>([
    ...[20, 21, 23, 1700].map((oid): [number, Parser] => [oid, BigInt]),
    [16, text => (text === 't' ? 1n : 0n)]
  ])
)

function integer(text: string): number {
  const value = Number(text)
  if (!Number.isSafeInteger(value)) throw new RangeError(`${text} is more than a number holds exactly.`)
  return value
}

function parsers(own: Map<number, Parser>): pg.CustomTypesConfig {
  return {
    getTypeParser: (oid: number, format?: 'text' | 'binary') =>
      own.get(oid) ?? pg.types.getTypeParser(oid, format === 'binary' ? 'binary' : 'text')
  } as pg.CustomTypesConfig
}
