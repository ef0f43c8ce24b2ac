import { appendFileSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Test } from 'tap'
import type { Database, Driver, Row, Value } from '../../../plugins/store/database.ts'
import { createLedger, type StoreLedger } from '../../../plugins/store/ledger/index.ts'
import { migrate } from '../../../plugins/store/migrate.ts'
import { openPostgres } from '../../../plugins/store/postgres.ts'
import { openSqlite } from '../../../plugins/store/sqlite.ts'
import { encodeAttempt, encodeOpen, encodeSettle } from '../../../schemas/journal.ts'
import type { Balance, RecordStatus } from '../../../schemas/ledger.ts'
import type { StoreState } from '../../../schemas/store.ts'
import { noUsage } from '../../../schemas/usage.ts'

// The worker's side of the ledger on a real database, without the worker and without a kernel: tests write the journal.

/** Makes an empty database for a test; null where there is none of this kind. */
export type Kind = (t: Test) => Promise<Driver>

export const sqlite: Kind = async t => {
  const driver = openSqlite({ url: `sqlite:${join(scratch(t), 'gateway.db')}`, lockWait: 100 })
  t.teardown(() => driver.close())
  await migrate(driver)
  return driver
}

export function postgres(database: () => Promise<string>): Kind {
  return async t => {
    const driver = await openPostgres({ url: await database(), shared: true, lockWait: 100 })
    t.teardown(() => driver.close())
    await migrate(driver)
    return driver
  }
}

export function scratch(t: Test): string {
  const directory = mkdtempSync(join(tmpdir(), 'gateway-ledger-'))
  t.teardown(() => rmSync(directory, { recursive: true, force: true }))
  return directory
}

export interface Books {
  readonly ledger: StoreLedger
  readonly path: string
  readonly folded: Balance[]
  readonly states: StoreState[]
  readonly log: string[]
  /** Appends to the journal, as the event loop does. */
  write(...lines: string[]): void
}

let started = 0

export interface BooksOptions {
  instance?: string
  directory?: string
  lease?: number
  exclusive?: boolean
}

/** A process that has opened its ledger. It is not closed by itself: most of them die. */
export async function books(t: Test, database: Database, options: BooksOptions = {}): Promise<Books> {
  const folded: Balance[] = []
  const states: StoreState[] = []
  const log: string[] = []
  const note = (_: object, message: string) => void log.push(message)
  const ledger = createLedger(database, {
    instance: options.instance ?? `i${++started}`,
    log: { error: note, warn: note, info: note, debug: note },
    folded: balances => void folded.push(...balances),
    state: state => void states.push(state),
    // Tests say when.
    pace: { rest: 0, least: 3_600_000 }
  })
  t.teardown(() => ledger.close())
  const { path } = await ledger.open({
    directory: options.directory ?? scratch(t),
    lease: options.lease ?? 3_600_000,
    exclusive: options.exclusive ?? true
  })
  return { ledger, path, folded, states, log, write: (...lines) => appendFileSync(path, lines.join('')) }
}

export interface CallOptions {
  tenant?: string
  key?: string | null
  time?: number
  charges?: ReadonlyArray<readonly [string, string]>
  user?: string | null
  config?: string | null
  /** Of the open line: what it is charged if nobody ends it. */
  estimate?: { input: number; output: number; cost: number | null }
}

const priced = { provider: 'up', model: 'm', priceVersion: 'config' }

export function opens(id: string, options: CallOptions = {}): string {
  const { tenant = 'acme', key = 'k1', time = 1_795_000_000_000, charges = [], user = null, config = null } = options
  const estimate = options.estimate ?? { input: 100, output: 1_000, cost: 5_000 }
  return encodeOpen({
    id,
    time,
    tenant,
    key,
    model: 'test',
    stream: false,
    user,
    tags: null,
    traceId: null,
    charges: JSON.stringify(charges),
    attempt: { number: 1, ...priced, ...estimate },
    config
  })
}

/** The first attempt failed and cost `cost`; a second one begins, likely to cost 7,000. */
export function triesAgain(id: string, cost = 0): string {
  const before = ended(1, 'failed', cost)
  return encodeAttempt({ id, before, attempt: { number: 2, ...priced, input: 100, output: 1_000, cost: 7_000 } })
}

/** Ends with one attempt for each cost. */
export function ends(id: string, costs: number | Array<number | null>, status: RecordStatus = 'settled'): string {
  const list = Array.isArray(costs) ? costs : [costs]
  const attempts = list.map((cost, index) => ended(index + 1, index === list.length - 1 ? status : 'failed', cost))
  const interrupted = status === 'interrupted'
  return encodeSettle({
    id,
    status,
    httpStatus: interrupted ? 499 : 200,
    errorCode: interrupted ? 'cancelled' : null,
    duration: 10,
    firstToken: null,
    attempts
  })
}

function ended(number: number, status: RecordStatus, cost: number | null) {
  const usage = { ...noUsage, input: 10, output: 5, source: 'reported' as const }
  return { number, status, errorCode: null, duration: 9, firstToken: null, cost, usage }
}

/** A whole call. */
export function call(id: string, cost: number, options: CallOptions = {}): string {
  return opens(id, options) + ends(id, cost)
}

export function rows(database: Database): Promise<Row[]> {
  return database.all(
    'SELECT id, tenant, status, http_status, error_code, cost, usage_source, input, output, charges FROM inferences ORDER BY seq'
  )
}

/** One number. */
export async function count(database: Database, sql: string, values: Value[] = []): Promise<number> {
  const [row] = await database.all(sql, values)
  return Number(Object.values(row ?? {})[0])
}

export async function spent(ledger: StoreLedger, scope: string, period = 'total'): Promise<bigint | undefined> {
  return (await ledger.balances([{ scope, period }]))[0]?.spent
}

/** The books prove every balance. */
export async function proven(t: Test, ledger: StoreLedger): Promise<void> {
  t.strictSame((await ledger.verify()).differences, [], 'every balance is the sum of its rows')
}
