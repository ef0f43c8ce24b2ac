import { InvalidRequest } from '../../schemas/errors.ts'
import {
  type AttemptRecord,
  type LedgerRecord,
  type RecordFilter,
  type RecordStatus,
  recordStatuses
} from '../../schemas/ledger.ts'
import type { Rows } from '../../schemas/store.ts'
import { cursorOf, type OpenPlace, type Place, parseCursor } from './cursor.ts'
import type { Database, Row, Value } from './database.ts'
import { type Open, openCalls } from './open-calls.ts'
import { isStorable } from './text.ts'
import { usageColumns, usageIn } from './usage.ts'

interface Condition {
  readonly sql: string
  readonly values: readonly Value[]
}

/** An index, what it is searched for, and what it does not know of. */
interface Plan {
  readonly index: string
  readonly found: readonly Condition[]
  readonly rest: readonly Condition[]
}

const largestPage = 1_000
/** A search that an index answers only in part looks at so many rows at once, then at twice as many, … */
const firstSlice = 2_000
const largestSlice = 10_000
/** … and ends after so many milliseconds with what it has: the next page goes on where it stopped. */
const longestSearch = 20

const columns = `seq, id, time, tenant, key, model, stream, status, http_status, error_code, duration, first_token, cost,
  ${usageColumns}, trace_id, "user", tags, config`

/**
 * A page of the ledger, newest first, running calls before those that ended and began in the same millisecond. It may
 * hold less than was asked for, even nothing, while `next` says that there is more.
 *
 * A cursor is a place between rows, not a number of rows, so that new ones move nothing. Of a page that ended between
 * running calls it also keeps the last seq of that moment: what is folded later was shown as running.
 */
export async function records(
  database: Database,
  filter: RecordFilter,
  { after, limit }: { after?: string; limit: number }
): Promise<Rows<LedgerRecord>> {
  const wanted = Math.max(1, Math.min(largestPage, Math.floor(limit) || 1))
  const place = after === undefined ? null : parseCursor(after)
  const range = rangeOf(filter)
  if ([filter.tenant, filter.key, filter.model].some(text => text !== undefined && !isStorable(text))) {
    return { rows: [], next: null }
  }
  return database.snapshot(async snapshot => {
    // One more than asked for tells whether there is more.
    const open = await openCalls(snapshot, filter, range, place, wanted + 1)
    const ended = await endedCalls(snapshot, filter, range, place, wanted + 1)
    const { stopped } = ended
    const merged = merge(
      stopped === null ? open : open.filter(({ time }) => time >= stopped.time),
      ended.rows.map(row => ({ time: Number(row['time']), row }))
    )
    const page = merged.slice(0, wanted)
    const last = page.at(-1)
    let next: string | null = null
    if (merged.length > wanted && last !== undefined) {
      next =
        'row' in last ? cursorOf({ time: last.time, seq: Number(last.row['seq']) }) : await openCursor(snapshot, last)
    } else if (stopped !== null) next = cursorOf(stopped)
    return { rows: await withAttempts(snapshot, page), next }
  })
}

type Ended = { readonly time: number; readonly row: Row }

function merge(open: readonly Open[], ended: readonly Ended[]): Array<Open | Ended> {
  const merged: Array<Open | Ended> = []
  let next = 0
  for (const row of ended) {
    while (next < open.length && open[next]!.time >= row.time) merged.push(open[next++]!)
    merged.push(row)
  }
  return merged.concat(open.slice(next))
}

async function openCursor(database: Database, { time, id }: Open): Promise<string> {
  const [row] = await database.all('SELECT max(seq) AS last FROM inferences')
  return cursorOf({ time, seq: Number(row?.['last'] ?? 0), id } satisfies OpenPlace)
}

async function endedCalls(
  database: Database,
  filter: RecordFilter,
  range: readonly Condition[],
  place: Place | OpenPlace | null,
  wanted: number
): Promise<{ rows: Row[]; stopped: Place | null }> {
  if (filter.status === 'open') return { rows: [], stopped: null }
  const plan = await shortest(database, plansFor(filter, database.kind), [...range, ...beyond(place)])
  const { found, rest } = plan
  const from = fromOf(plan, database.kind)
  const order = 'ORDER BY time DESC, seq DESC'
  const select = (what: string, conditions: readonly Condition[], tail: string, values: readonly Value[]) =>
    database.all(`SELECT ${what} ${from} ${where(conditions)} ${order} ${tail}`, [
      ...conditions.flatMap(condition => condition.values),
      ...values
    ])

  let upper = [...found, ...range, ...beyond(place)]
  if (rest.length === 0) return { rows: await select(columns, upper, 'LIMIT ?', [wanted]), stopped: null }

  const started = performance.now()
  const rows: Row[] = []
  let size = Math.max(firstSlice, wanted)
  while (true) {
    const [edge] = await select('time, seq', upper, 'LIMIT 1 OFFSET ?', [size - 1])
    const stopped = edge === undefined ? null : { time: Number(edge['time']), seq: Number(edge['seq']) }
    const lower = stopped === null ? [] : [{ sql: '(time, seq) >= (?, ?)', values: [stopped.time, stopped.seq] }]
    rows.push(...(await select(columns, [...upper, ...lower, ...rest], 'LIMIT ?', [wanted - rows.length])))
    if (stopped === null || rows.length >= wanted) return { rows, stopped: null }
    if (performance.now() - started > longestSearch) return { rows, stopped }
    upper = [...found, ...range, ...beyond(stopped)]
    size = Math.min(size * 2, largestSlice)
  }
}

/** Of several indexes one that leads to few rows, else the first: counted up to a slice. */
async function shortest(database: Database, plans: readonly Plan[], range: readonly Condition[]): Promise<Plan> {
  const [first] = plans
  if (first === undefined) throw new Error('There is no plan.')
  if (plans.length === 1) return first
  for (const plan of plans) {
    const conditions = [...plan.found, ...range]
    const inner = `SELECT 1 AS one ${fromOf(plan, database.kind)} ${where(conditions)} LIMIT ${firstSlice}`
    const values = conditions.flatMap(condition => condition.values)
    const [row] = await database.all(`SELECT count(*) AS count FROM (${inner}) AS counted`, values)
    if (Number(row?.['count']) < firstSlice) return plan
  }
  return first
}

/** PostgreSQL chooses by itself, from what it is asked for. */
function fromOf({ index }: Plan, kind: Database['kind']): string {
  return kind === 'sqlite' ? `FROM inferences INDEXED BY ${index}` : 'FROM inferences'
}

/** What lies after a place, ended calls only; those have their ids without the mark that running ones may carry. */
function beyond(place: Place | OpenPlace | null): Condition[] {
  if (place === null) return []
  const { time, seq } = place
  if (!('id' in place)) return [{ sql: '(time, seq) < (?, ?)', values: [time, seq] }]
  return [
    { sql: 'time <= ?', values: [time] },
    { sql: 'NOT (time = ? AND seq > ? AND id >= ?)', values: [time, seq, place.id.split('~', 1)[0] ?? ''] }
  ]
}

/**
 * The indexes that may find the fewest rows in their order. One on what is not settled is only used for a status that
 * stands in the statement itself, so it does; it is one of four words.
 */
function plansFor({ tenant, key, model, status }: RecordFilter, kind: Database['kind']): Plan[] {
  const is = {
    tenant: tenant === undefined ? null : { sql: 'tenant = ?', values: [tenant] },
    key: key === undefined ? null : { sql: 'key = ?', values: [key] },
    model: model === undefined ? null : modelIs(model, kind),
    status: status === undefined ? null : { sql: statusIs(status), values: [] }
  }
  const unsettled = status === 'failed' || status === 'interrupted'
  const plan = (...names: Array<keyof typeof is>): Plan => {
    const parts = names.map(name => (name === 'status' ? 'unsettled' : name))
    const pick = (inside: boolean) =>
      Object.entries(is).flatMap(([name, condition]) =>
        condition !== null && names.some(used => used === name) === inside ? [condition] : []
      )
    return { index: `inferences_${parts.join('_') || 'time'}`, found: pick(true), rest: pick(false) }
  }
  const rare = unsettled ? (['status'] as const) : []
  const plans: Plan[] = []
  if (is.key) plans.push(plan('key', ...rare))
  if (is.tenant) plans.push(is.model ? plan('tenant', 'model', ...rare) : plan('tenant', ...rare))
  else if (is.model) plans.push(plan('model'))
  if (plans.length === 0 || (unsettled && !is.key && !is.tenant)) plans.push(plan(...rare))
  return plans
}

/** PostgreSQL's index holds the beginning of a name only. */
function modelIs(model: string, kind: Database['kind']): Condition {
  if (kind === 'sqlite') return { sql: 'model = ?', values: [model] }
  return { sql: 'left(model, 200) = left(CAST(? AS TEXT), 200) AND model = ?', values: [model, model] }
}

function statusIs(status: RecordStatus): string {
  if (!recordStatuses.includes(status)) {
    throw new InvalidRequest(`A status is one of ${recordStatuses.join(', ')}.`)
  }
  return status === 'settled' ? "status = 'settled'" : `status = '${status}' AND status <> 'settled'`
}

/** @throws InvalidRequest for what is no moment */
function rangeOf({ from, to }: RecordFilter): Condition[] {
  const moment = (time: number): number => {
    if (Number.isNaN(time)) throw new InvalidRequest('from and to are moments.')
    return Math.max(Number.MIN_SAFE_INTEGER, Math.min(Number.MAX_SAFE_INTEGER, Math.ceil(time)))
  }
  return [
    ...(from === undefined ? [] : [{ sql: 'time >= ?', values: [moment(from)] }]),
    ...(to === undefined ? [] : [{ sql: 'time < ?', values: [moment(to)] }])
  ]
}

function where(conditions: readonly Condition[]): string {
  return conditions.length === 0 ? '' : `WHERE ${conditions.map(({ sql }) => sql).join(' AND ')}`
}

/** The attempts of a whole page in one query. */
async function withAttempts(database: Database, page: ReadonlyArray<Open | Ended>): Promise<LedgerRecord[]> {
  const attempts = new Map<number, AttemptRecord[]>()
  for (const one of page) if ('row' in one) attempts.set(Number(one.row['seq']), [])
  const seqs = [...attempts.keys()]
  const sqlite = database.kind === 'sqlite'
  const list = sqlite ? 'IN (SELECT value FROM json_each(?))' : '= ANY(CAST(? AS BIGINT[]))'
  const rows =
    seqs.length === 0
      ? []
      : await database.all(
          `SELECT inference, number, provider, model, status, error_code, duration, first_token, cost, price_version,
            ${usageColumns} FROM attempts WHERE inference ${list} ORDER BY inference, number`,
          [sqlite ? `[${seqs}]` : `{${seqs}}`]
        )
  for (const row of rows) attempts.get(Number(row['inference']))?.push(attemptOf(row))
  return page.map(one => ('row' in one ? recordOf(one.row, attempts.get(Number(one.row['seq'])) ?? []) : one.record))
}

function recordOf(row: Row, attempts: readonly AttemptRecord[]): LedgerRecord {
  const tags = text(row['tags'])
  return {
    id: String(row['id']),
    time: Number(row['time']),
    tenant: String(row['tenant']),
    key: text(row['key']),
    model: String(row['model']),
    stream: row['stream'] === 1,
    status: statusOf(row),
    httpStatus: number(row['http_status']),
    errorCode: text(row['error_code']),
    duration: number(row['duration']),
    firstToken: number(row['first_token']),
    cost: number(row['cost']),
    usage: usageIn(row),
    traceId: text(row['trace_id']),
    user: text(row['user']),
    tags: tags === null ? null : JSON.parse(tags),
    config: text(row['config']),
    attempts
  }
}

function attemptOf(row: Row): AttemptRecord {
  return {
    number: Number(row['number']),
    provider: String(row['provider']),
    model: String(row['model']),
    status: statusOf(row),
    errorCode: text(row['error_code']),
    duration: number(row['duration']),
    firstToken: number(row['first_token']),
    cost: number(row['cost']),
    priceVersion: text(row['price_version']),
    usage: usageIn(row)
  }
}

function statusOf(row: Row): RecordStatus {
  return recordStatuses.find(status => status === row['status']) ?? 'failed'
}

function text(value: Value | undefined): string | null {
  return typeof value === 'string' ? value : null
}

function number(value: Value | undefined): number | null {
  return typeof value === 'number' ? value : null
}
