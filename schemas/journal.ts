import { type RecordStatus, recordStatuses } from './ledger.ts'
import { buckets, noUsage, type Usage } from './usage.ts'

// The journal: lines that the event loop appends and the store's worker folds. One JSON array a line, its first entry
// says what it is. A line without its line end was cut off and does not count.

/** A call opens with its first attempt. */
export interface OpenLine {
  readonly kind: 'open'
  readonly id: string
  /** Milliseconds since 1970. */
  readonly time: number
  readonly tenant: string
  readonly key: string | null
  readonly model: string
  readonly stream: boolean
  readonly user: string | null
  readonly tags: Readonly<Record<string, unknown>> | null
  readonly traceId: string | null
  /** What the call is charged to: scope and period, without the `total` of key, tenant and gateway, which all are. */
  readonly charges: ReadonlyArray<readonly [scope: string, period: string]>
  readonly attempt: AttemptOpen
  /** The configuration that the call was routed by; null in lines from before it was written down. */
  readonly config: string | null
}

/** A further attempt, and how the one before it ended. */
export interface AttemptLine {
  readonly kind: 'attempt'
  readonly id: string
  readonly before: AttemptEnd
  readonly attempt: AttemptOpen
}

/** A call ends. */
export interface SettleLine {
  readonly kind: 'settle'
  readonly id: string
  readonly status: RecordStatus
  readonly httpStatus: number | null
  readonly errorCode: string | null
  readonly duration: number
  readonly firstToken: number | null
  readonly attempts: readonly AttemptEnd[]
}

export type JournalLine = OpenLine | AttemptLine | SettleLine

/** An attempt as it begins, with what it is charged should nobody live to say how it ended. */
export interface AttemptOpen {
  readonly number: number
  readonly provider: string
  readonly model: string
  readonly priceVersion: string | null
  /** Tokens that the request is likely to have, and those reserved for its answer. */
  readonly input: number
  readonly output: number
  /** Nano-USD of these; null: unknown price. */
  readonly cost: number | null
}

/** An attempt as it ended. */
export interface AttemptEnd {
  readonly number: number
  readonly status: RecordStatus
  readonly errorCode: string | null
  readonly duration: number
  readonly firstToken: number | null
  readonly cost: number | null
  readonly usage: Usage
}

/** What an open line is made of; texts that are JSON already go into it as they are. */
export interface OpenText extends Omit<OpenLine, 'kind' | 'tags' | 'charges' | 'attempt'> {
  /** JSON, or null. */
  readonly tags: string | null
  /** JSON. */
  readonly charges: string
  readonly attempt: AttemptOpen
}

/** The most that a line says of one call; what is more comes from a broken price or a provider that lies. */
const mostTokens = 10_000_000_000
const mostCost = 2 ** 52
/** Names longer than this are cut: they come from outside, and an index has to hold them. */
const longestName = 256

/** Lines for the journal, with their line end. */
export function encodeOpen(line: OpenText): string {
  const { id, time, tenant, key, model, stream, user, tags, traceId, charges, attempt, config } = line
  const caller = `${quoted(tenant)},${quoted(key)},${quoted(model)},${stream ? 1 : 0}`
  return `["o",${JSON.stringify(id)},${time},${caller},${user === null ? null : JSON.stringify(user)},${tags},${quotedOnce(traceId)},${charges},${attemptText(attempt)},${quoted(config)}]\n`
}

export function encodeAttempt(line: Omit<AttemptLine, 'kind'>): string {
  return `["a",${JSON.stringify(line.id)},${endText(line.before)},${attemptText(line.attempt)}]\n`
}

export function encodeSettle(line: Omit<SettleLine, 'kind'>): string {
  const { attempts } = line
  let ends = endText(attempts[0])
  for (let index = 1; index < attempts.length; index++) ends += `,${endText(attempts[index])}`
  const head = `["s",${JSON.stringify(line.id)},${statusNumber(line.status)},${line.httpStatus},${quoted(line.errorCode)}`
  return `${head},${micro(line.duration)},${micro(line.firstToken)},[${ends}]]\n`
}

function attemptText(attempt: AttemptOpen): string {
  const { number, provider, model, priceVersion, input, output, cost } = attempt
  const target = `${quoted(provider)},${quoted(model)},${quoted(priceVersion)}`
  return `[${number},${target},${whole(input, mostTokens)},${whole(output, mostTokens)},${money(cost)}]`
}

function endText(end: AttemptEnd | undefined): string {
  if (end === undefined) return ''
  const times = `${micro(end.duration)},${micro(end.firstToken)}`
  return `[${end.number},${statusNumber(end.status)},${quoted(end.errorCode)},${times},${money(end.cost)},${usageText(end.usage)}]`
}

/** Most answers have plain input and output only. */
function usageText(usage: Usage): string {
  const { input, cacheRead, cacheWrite5m, cacheWrite1h, audioInput, output, reasoning, audioOutput, charge } = usage
  const reported = usage.source === 'reported' ? 1 : 0
  const rare = cacheRead + cacheWrite5m + cacheWrite1h + audioInput + reasoning + audioOutput
  if (rare === 0 && charge === null && !usage.mismatch) {
    return `[${whole(input, mostTokens)},${whole(output, mostTokens)},${reported}]`
  }
  const counts = buckets.map(bucket => whole(usage[bucket], mostTokens)).join(',')
  return `[${counts},${reported},${money(charge)},${usage.mismatch ? 1 : 0}]`
}

function statusNumber(status: RecordStatus): number {
  return recordStatuses.indexOf(status)
}

/** A whole number of at least 0, whatever came. */
function whole(value: number, most: number): number {
  if (!(value > 0)) return 0
  return value < most ? Math.ceil(value) : most
}

function money(value: number | null): number | null {
  return value === null ? null : whole(value, mostCost)
}

/** Milliseconds as whole microseconds: shorter, and cheaper to write. */
function micro(milliseconds: number | null): number | null {
  return milliseconds === null ? null : whole(Math.round(milliseconds * 1_000), mostCost)
}

const quotedTexts = new Map<string, string>()
const mostQuoted = 4_096

/** A name as JSON. Few names stand in most lines. */
function quoted(value: string | null): string {
  if (value === null) return 'null'
  const known = quotedTexts.get(value)
  if (known !== undefined) return known
  if (quotedTexts.size >= mostQuoted) quotedTexts.clear()
  const text = quotedOnce(value)
  if (value.length <= longestName) quotedTexts.set(value, text)
  return text
}

function quotedOnce(value: string | null): string {
  return value === null ? 'null' : JSON.stringify(value.length > longestName ? value.slice(0, longestName) : value)
}

/** Reads a line, with or without its line end; null for one that is damaged. */
export function decode(line: string): JournalLine | null {
  try {
    return decoded(JSON.parse(line))
  } catch {
    return null
  }
}

/** A line that is parsed already; null for one that is damaged. */
export function decoded(line: unknown): JournalLine | null {
  if (!Array.isArray(line) || !isText(line[1])) return null
  switch (line[0]) {
    case 'o':
      return openOf(line)
    case 'a': {
      const before = endOf(line[2])
      const attempt = attemptOf(line[3])
      return before && attempt && { kind: 'attempt', id: line[1], before, attempt }
    }
    case 's':
      return settleOf(line)
    default:
      return null
  }
}

function openOf(line: readonly unknown[]): OpenLine | null {
  const [, id, time, tenant, key, model, stream, user, tags, traceId, charges, attemptLine, config = null] = line
  const attempt = attemptOf(attemptLine)
  if (attempt === null || !isText(id) || !isCount(time) || !isText(tenant) || !isText(model)) return null
  if (!isTextOrNull(key) || !isTextOrNull(user) || !isTextOrNull(traceId) || !isTextOrNull(config)) return null
  if (!isRecordOrNull(tags) || !isCharges(charges)) return null
  const caller = { tenant, key, model, stream: stream === 1, user, tags, traceId }
  return { kind: 'open', id, time, ...caller, charges, attempt, config }
}

function settleOf(line: readonly unknown[]): SettleLine | null {
  const [, id, statusCode, httpStatus, errorCode, duration, firstToken, ends] = line
  const status = statusOf(statusCode)
  if (!isText(id) || status === undefined || !isCountOrNull(httpStatus) || !isTextOrNull(errorCode)) return null
  if (!isCount(duration) || !isCountOrNull(firstToken) || !Array.isArray(ends)) return null
  const attempts: AttemptEnd[] = []
  for (const written of ends) {
    const end = endOf(written)
    if (end === null) return null
    attempts.push(end)
  }
  const times = { duration: duration / 1_000, firstToken: milliseconds(firstToken) }
  return { kind: 'settle', id, status, httpStatus, errorCode, ...times, attempts }
}

function attemptOf(written: unknown): AttemptOpen | null {
  if (!Array.isArray(written)) return null
  const [number, provider, model, priceVersion, input, output, cost] = written as readonly unknown[]
  if (!isCount(number) || !isText(provider) || !isText(model) || !isTextOrNull(priceVersion)) return null
  if (!isCount(input) || !isCount(output) || !isCountOrNull(cost)) return null
  return { number, provider, model, priceVersion, input, output, cost }
}

function endOf(written: unknown): AttemptEnd | null {
  if (!Array.isArray(written)) return null
  const [number, statusCode, errorCode, duration, firstToken, cost, counts] = written as readonly unknown[]
  const status = statusOf(statusCode)
  const usage = writtenUsage(counts)
  if (usage === null || status === undefined || !isCount(number) || !isTextOrNull(errorCode)) return null
  if (!isCount(duration) || !isCountOrNull(firstToken) || !isCountOrNull(cost)) return null
  return {
    number,
    status,
    errorCode,
    duration: duration / 1_000,
    firstToken: milliseconds(firstToken),
    cost,
    usage
  }
}

function writtenUsage(counts: unknown): Usage | null {
  if (!Array.isArray(counts)) return null
  if (counts.length === 3) {
    const [input, output, reported] = counts as readonly unknown[]
    if (!isCount(input) || !isCount(output)) return null
    return { ...noUsage, input, output, source: reported === 1 ? 'reported' : 'estimated' }
  }
  const usage = { ...noUsage }
  for (const [index, bucket] of buckets.entries()) {
    const tokens: unknown = counts[index]
    if (!isCount(tokens)) return null
    usage[bucket] = tokens
  }
  const [reported, charge, mismatch] = counts.slice(buckets.length) as readonly unknown[]
  if (!isCountOrNull(charge)) return null
  return { ...usage, source: reported === 1 ? 'reported' : 'estimated', charge, mismatch: mismatch === 1 }
}

function statusOf(written: unknown): RecordStatus | undefined {
  return typeof written === 'number' ? recordStatuses[written] : undefined
}

function milliseconds(written: number | null): number | null {
  return written === null ? null : written / 1_000
}

function isText(value: unknown): value is string {
  return typeof value === 'string'
}

function isTextOrNull(value: unknown): value is string | null {
  return value === null || typeof value === 'string'
}

function isCount(value: unknown): value is number {
  return typeof value === 'number' && value >= 0 && Number.isSafeInteger(value)
}

function isCountOrNull(value: unknown): value is number | null {
  return value === null || isCount(value)
}

function isRecordOrNull(value: unknown): value is Record<string, unknown> | null {
  return value === null || (typeof value === 'object' && !Array.isArray(value))
}

function isCharges(value: unknown): value is OpenLine['charges'] {
  if (!Array.isArray(value)) return false
  for (const pair of value) {
    if (!Array.isArray(pair) || pair.length !== 2 || !isText(pair[0]) || !isText(pair[1])) return false
  }
  return true
}
