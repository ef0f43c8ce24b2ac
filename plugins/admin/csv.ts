import type { LedgerRecord } from '../../schemas/ledger.ts'
import { usdText } from '../../schemas/money.ts'
import { inputOf, outputOf } from '../../schemas/usage.ts'
import { isoOf } from './time.ts'

type Cell = string | number | boolean | null

/** Columns by their names; texts and numbers are written differently. */
const columns: Readonly<Record<string, (record: LedgerRecord) => Cell>> = {
  id: record => record.id,
  time: record => isoOf(record.time),
  tenant: record => record.tenant,
  key: record => record.key,
  status: record => record.status,
  http_status: record => record.httpStatus,
  error_code: record => record.errorCode,
  model: record => record.model,
  provider: record => record.attempts.at(-1)?.provider ?? null,
  upstream_model: record => record.attempts.at(-1)?.model ?? null,
  attempts: record => record.attempts.length,
  stream: record => record.stream,
  tokens_in: record => inputOf(record.usage),
  tokens_out: record => outputOf(record.usage),
  input: record => record.usage.input,
  cache_read: record => record.usage.cacheRead,
  cache_write_5m: record => record.usage.cacheWrite5m,
  cache_write_1h: record => record.usage.cacheWrite1h,
  audio_input: record => record.usage.audioInput,
  output: record => record.usage.output,
  reasoning: record => record.usage.reasoning,
  audio_output: record => record.usage.audioOutput,
  usage_source: record => record.usage.source,
  cost_usd: record => (record.cost === null ? null : usdText(record.cost)),
  duration_ms: record => record.duration,
  ttft_ms: record => record.firstToken,
  trace_id: record => record.traceId,
  user: record => record.user,
  tags: record => (record.tags === null ? null : JSON.stringify(record.tags)),
  config_hash: record => record.config
}

const cells = Object.values(columns)

export const csvHead = `${Object.keys(columns).join(',')}\r\n`

/** One row of RFC 4180. */
export function csvLine(record: LedgerRecord): string {
  return `${cells.map(cell => csvCell(cell(record))).join(',')}\r\n`
}

/** What a spreadsheet would take for a formula, also after white space and in full width. */
const formula = /^\s*[=+\-@＝＋－＠]|^[\t\r\n]/

/** Texts that a spreadsheet would run get an apostrophe before them; numbers stay as they are. */
export function csvCell(value: Cell): string {
  if (value === null) return ''
  if (typeof value !== 'string') return String(value)
  const harmless = formula.test(value) ? `'${value}` : value
  return /[",;\t\r\n]/.test(harmless) ? `"${harmless.replaceAll('"', '""')}"` : harmless
}
