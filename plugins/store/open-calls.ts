import type { AttemptEnd, AttemptLine, AttemptOpen, OpenLine } from '../../schemas/journal.ts'
import type { AttemptRecord, LedgerRecord, RecordFilter } from '../../schemas/ledger.ts'
import { noUsage } from '../../schemas/usage.ts'
import type { OpenPlace, Place } from './cursor.ts'
import type { Database, Value } from './database.ts'

interface Condition {
  readonly sql: string
  readonly values: readonly Value[]
}

/** A running call; `id` as its table knows it. */
export interface Open {
  readonly time: number
  readonly id: string
  readonly record: LedgerRecord
}

/** Rows read at once where the key or the model has to be looked for in their lines. */
const batch = 500

/** Calls that run, newest first, of one moment the highest id first; at most `wanted`. */
export async function openCalls(
  database: Database,
  filter: RecordFilter,
  range: readonly Condition[],
  place: Place | OpenPlace | null,
  wanted: number
): Promise<Open[]> {
  if (filter.status !== undefined && filter.status !== 'open') return []
  const searched = filter.key !== undefined || filter.model !== undefined
  const found: Open[] = []
  const limit = searched ? Math.max(batch, wanted) : wanted
  let after = place
  while (true) {
    const conditions = [
      ...(filter.tenant === undefined ? [] : [{ sql: 'tenant = ?', values: [filter.tenant] }]),
      ...range,
      ...beyond(after)
    ]
    const where = conditions.length === 0 ? '' : `WHERE ${conditions.map(({ sql }) => sql).join(' AND ')}`
    const rows = await database.all(
      `SELECT id, time, lines FROM open_calls ${where} ORDER BY time DESC, id DESC LIMIT ?`,
      [...conditions.flatMap(({ values }) => values), limit]
    )
    for (const row of rows) {
      const record = openRecord(JSON.parse(String(row['lines'])))
      if (filter.key !== undefined && record.key !== filter.key) continue
      if (filter.model !== undefined && record.model !== filter.model) continue
      found.push({ time: Number(row['time']), id: String(row['id']), record })
      if (found.length === wanted) return found
    }
    const last = rows.at(-1)
    if (rows.length < limit || last === undefined) return found
    after = { time: Number(last['time']), seq: 0, id: String(last['id']) }
  }
}

/** Running calls stand before those of the same millisecond that have ended. */
function beyond(place: Place | OpenPlace | null): Condition[] {
  if (place === null) return []
  if (!('id' in place)) return [{ sql: 'time < ?', values: [place.time] }]
  return [{ sql: '(time, id) < (?, ?)', values: [place.time, place.id] }]
}

function openRecord([open, ...further]: [OpenLine, ...AttemptLine[]]): LedgerRecord {
  const ends = new Map(further.map(({ before }) => [before.number, before]))
  return {
    id: open.id,
    time: open.time,
    tenant: open.tenant,
    key: open.key,
    model: open.model,
    stream: open.stream,
    status: 'open',
    httpStatus: null,
    errorCode: null,
    duration: null,
    firstToken: null,
    cost: null,
    usage: noUsage,
    traceId: open.traceId,
    user: open.user,
    tags: open.tags,
    config: open.config ?? null,
    attempts: [open, ...further].map(({ attempt }) => attemptOf(attempt, ends.get(attempt.number)))
  }
}

function attemptOf({ number, provider, model, priceVersion }: AttemptOpen, end: AttemptEnd | undefined): AttemptRecord {
  return {
    number,
    provider,
    model,
    status: end?.status ?? 'open',
    errorCode: end?.errorCode ?? null,
    duration: end?.duration ?? null,
    firstToken: end?.firstToken ?? null,
    cost: end?.cost ?? null,
    priceVersion,
    usage: end?.usage ?? noUsage
  }
}
