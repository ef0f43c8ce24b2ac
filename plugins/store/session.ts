import pg from 'pg'

export interface SessionOptions {
  readonly config: pg.ClientConfig
  /** Shared: other processes use this database too. */
  readonly shared: boolean
  /** Milliseconds to wait for a gateway that is just ending to give up its lock. */
  readonly lockWait: number
}

export interface SessionState {
  readonly ok: boolean
  readonly reason: string | null
}

/** One connection that holds the lock on the database, and by which we notice that it went away and came back. */
export interface Session {
  readonly state: SessionState
  onState(listener: (state: SessionState) => void): void
  /** Looks now: somebody has seen a broken connection. */
  check(): void
  close(): Promise<void>
}

const beatInterval = 2_000
const retryInterval = 300
const answerTimeout = 5_000
/** A lock of this database and schema; a PostgreSQL may hold several gateways in several schemas. */
const lockKey = "hashtextextended('fastify-model-gateway ' || coalesce(current_schema(), ''), 0)"

/** @throws Error with one line for the operator */
export async function openSession({ config, shared, lockWait }: SessionOptions): Promise<Session> {
  const what = describe(config)
  const settings = { ...config, query_timeout: answerTimeout }
  let state: SessionState = { ok: false, reason: 'it has not been asked yet' }
  let tell: (state: SessionState) => void = () => {}
  let client: pg.Client | null = null
  let timer: NodeJS.Timeout | null = null
  let beating: Promise<void> | null = null
  let again = false
  let closed = false

  /** A new connection that holds the lock; null while another gateway has it. */
  async function connect(): Promise<pg.Client | null> {
    const made = new pg.Client(settings)
    try {
      made.on('error', () => {})
      await made.connect()
      const { rows } = await made.query(`SELECT pg_try_advisory_lock${shared ? '_shared' : ''}(${lockKey}) AS locked`)
      if (rows[0].locked) {
        made.on('end', () => lost(made))
        return made
      }
    } catch (error) {
      made.end().catch(() => {})
      throw error
    }
    await made.end()
    return null
  }

  function lost(which: pg.Client): void {
    if (client !== which) return
    client = null
    // Until it has the lock again, nobody may write.
    change({ ok: false, reason: 'its connection was lost' })
    check()
  }

  function change(next: SessionState): void {
    if (closed || (next.ok === state.ok && next.reason === state.reason)) return
    state = next
    tell(state)
  }

  async function beat(): Promise<void> {
    try {
      client ??= await connect()
      if (client === null) change({ ok: false, reason: inUse(what, shared) })
      else {
        await client.query('SELECT 1')
        change({ ok: true, reason: null })
      }
    } catch (error) {
      client?.end().catch(() => {})
      client = null
      change({ ok: false, reason: reasonOf(error) })
    }
  }

  function check(): void {
    if (closed) return
    if (beating !== null) {
      again = true
      return
    }
    if (timer !== null) clearTimeout(timer)
    timer = null
    beating = beat().finally(() => {
      beating = null
      if (again) {
        again = false
        check()
      } else if (!closed) timer = setTimeout(check, state.ok ? beatInterval : retryInterval)
    })
  }

  const until = performance.now() + lockWait
  try {
    while ((client = await connect()) === null && performance.now() < until) {
      await new Promise(resolve => setTimeout(resolve, retryInterval))
    }
  } catch (error) {
    throw new Error(`The database ${what} cannot be used: ${reasonOf(error)}.`)
  }
  if (client === null) throw new Error(inUse(`The database ${what}`, shared))
  state = { ok: true, reason: null }
  timer = setTimeout(check, beatInterval)

  return {
    get state() {
      return state
    },
    onState(listener) {
      tell = listener
    },
    check,
    async close() {
      closed = true
      if (timer !== null) clearTimeout(timer)
      await beating
      const last = client
      client = null
      await last?.end().catch(() => {})
    }
  }
}

function inUse(what: string, shared: boolean): string {
  return shared
    ? `${what} is in use by a gateway that was started without Redis. Give that one REDIS_URL too.`
    : `${what} is in use by another gateway. Several gateways on one database need Redis: set REDIS_URL.`
}

/** Names a database without its password. */
function describe(config: pg.ClientConfig): string {
  try {
    const { host, port, database } = new pg.Client(config)
    return `${database} at ${host}:${port}`
  } catch {
    // What pg says of it would show the password.
    throw new Error('DATABASE_URL is not a URL that can be read: postgres://user:password@host:port/database.')
  }
}

/** What went wrong, without secrets: what pg and the system say names hosts and users only. */
export function reasonOf(error: unknown): string {
  if (error instanceof AggregateError && error.errors.length > 0) return reasonOf(error.errors[0])
  return error instanceof Error && error.message !== '' ? error.message : 'it does not answer'
}
