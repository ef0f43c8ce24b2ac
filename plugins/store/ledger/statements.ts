import type { Database, Row, Value } from '../database.ts'
import { usageColumns } from '../usage.ts'

// SQL that differs between the two databases, and reading of what comes back.

export const inferenceColumns = [
  'seq',
  'id',
  'time',
  'tenant',
  'key',
  'model',
  'stream',
  'status',
  'http_status',
  'error_code',
  'duration',
  'first_token',
  'cost',
  ...usageColumns,
  'trace_id',
  '"user"',
  'tags',
  'charges',
  'config'
] as const

export const attemptColumns = [
  'inference',
  'number',
  'provider',
  'model',
  'status',
  'error_code',
  'duration',
  'first_token',
  'cost',
  'price_version',
  ...usageColumns
] as const

/** Tokens in and out, as balances count them. */
export const tokensIn = 'input + cache_read + cache_write_5m + cache_write_1h + audio_input'
export const tokensOut = 'output + reasoning + audio_output'

export interface Statements {
  /** Milliseconds since 1970 by the database's clock. */
  readonly now: string
  /** What locks the rows of a SELECT until the end of the transaction. */
  readonly forUpdate: string
  /** The same, leaving out those that somebody else has locked. */
  readonly skipLocked: string
  /** A JSON array of ids, or of numbers, as a subquery. */
  readonly ids: string
  readonly numbers: string
  /** Of one parameter: a JSON array of objects with the names of the columns. */
  readonly upsertOpenCalls: string
  readonly upsertBalances: string
}

const onOpenCall = 'ON CONFLICT (id) DO UPDATE SET lines = excluded.lines'
const onBalance = `ON CONFLICT (scope, period) DO UPDATE SET
  spent = balances.spent + excluded.spent, requests = balances.requests + excluded.requests,
  tokens_in = balances.tokens_in + excluded.tokens_in, tokens_out = balances.tokens_out + excluded.tokens_out,
  version = balances.version + 1
  RETURNING scope, period, spent, requests, tokens_in, tokens_out, version`

const sqlite: Statements = {
  now: "CAST(unixepoch('subsec') * 1000 AS INTEGER)",
  forUpdate: '',
  skipLocked: '',
  ids: '(SELECT value FROM json_each(?))',
  numbers: '(SELECT value FROM json_each(?))',
  upsertOpenCalls: `INSERT INTO open_calls (id, instance, time, tenant, lines)
    SELECT value ->> 'id', value ->> 'instance', value ->> 'time', value ->> 'tenant', value ->> 'lines'
    FROM json_each(?) WHERE true ${onOpenCall}`,
  upsertBalances: `INSERT INTO balances (scope, period, spent, requests, tokens_in, tokens_out, version)
    SELECT value ->> 'scope', value ->> 'period', value ->> 'spent', value ->> 'requests', value ->> 'tokens_in',
      value ->> 'tokens_out', 1
    FROM json_each(?) WHERE true ${onBalance}`
}

const postgres: Statements = {
  now: 'CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)',
  forUpdate: 'FOR UPDATE',
  skipLocked: 'FOR UPDATE SKIP LOCKED',
  ids: '(SELECT json_array_elements_text(CAST(? AS JSON)))',
  numbers: '(SELECT CAST(json_array_elements_text(CAST(? AS JSON)) AS BIGINT))',
  upsertOpenCalls: `INSERT INTO open_calls (id, instance, time, tenant, lines)
    SELECT id, instance, time, tenant, lines
    FROM json_to_recordset(CAST(? AS JSON)) AS x(id TEXT, instance TEXT, time BIGINT, tenant TEXT, lines TEXT)
    ${onOpenCall}`,
  upsertBalances: `INSERT INTO balances (scope, period, spent, requests, tokens_in, tokens_out, version)
    SELECT scope, period, spent, requests, tokens_in, tokens_out, 1
    FROM json_to_recordset(CAST(? AS JSON))
      AS x(scope TEXT, period TEXT, spent BIGINT, requests BIGINT, tokens_in BIGINT, tokens_out BIGINT)
    ${onBalance}`
}

export function statementsFor(database: Database): Statements {
  return database.kind === 'sqlite' ? sqlite : postgres
}

export function textIn(row: Row, column: string): string {
  const value: Value | undefined = row[column]
  if (typeof value !== 'string') throw new TypeError(`The column ${column} holds no text.`)
  return value
}

export function numberIn(row: Row, column: string): number {
  const value: Value | undefined = row[column]
  if (typeof value === 'number' || typeof value === 'bigint') return Number(value)
  throw new TypeError(`The column ${column} holds no number.`)
}

/** Of rows that were asked for with `bigints`. */
export function bigintIn(row: Row, column: string): bigint {
  const value: Value | undefined = row[column]
  if (typeof value === 'number' || typeof value === 'bigint') return BigInt(value)
  throw new TypeError(`The column ${column} holds no number.`)
}
