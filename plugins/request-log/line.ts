import type { CallRecord } from '../../schemas/call-record.ts'
import type { CallLevel } from '../../schemas/gateway.ts'
import { usdOf, usdText } from '../../schemas/money.ts'

// The line of a call in its three forms: the details that any logger takes, JSON text, and words for a person. The text is
// put together by hand, in a quarter of the time that a logger takes for the same details.

const levels = { info: 30, warn: 40, error: 50 } as const satisfies Record<CallLevel, number>
const messages = { settled: 'a call was answered', interrupted: 'a call was broken off', failed: 'a call failed' }
/** Some names are the caller's own. */
const longestName = 256

/** What the line says in words. */
export function callMessage({ status, attempts }: CallRecord): string {
  return status === 'failed' && attempts === 0 ? 'a call was refused' : messages[status]
}

/** What the line says, as an object. Money in USD, times in milliseconds. */
export function callDetails(record: CallRecord) {
  return {
    requestId: record.id,
    traceId: record.traceId,
    tenant: short(record.tenant),
    key: record.key,
    caller: record.caller,
    lane: record.lane,
    model: short(record.model),
    stream: record.stream,
    provider: record.provider,
    upstreamModel: record.target === null ? null : short(record.target),
    status: record.status,
    httpStatus: record.httpStatus,
    errorCode: record.error,
    errorMessage: record.message,
    tokensIn: record.tokensIn,
    tokensOut: record.tokensOut,
    usageSource: record.usage.source,
    costUsd: record.cost === null ? null : usdOf(record.cost),
    durationMs: tenths(record.duration),
    firstTokenMs: record.firstToken === null ? null : tenths(record.firstToken),
    attempts: record.attempts,
    retries: record.retries,
    fallbacks: record.fallbacks,
    cache: record.cache,
    config: record.config
  }
}

/** The whole line as pino writes it. @param bindings what every line begins with, `,"pid":1,"hostname":"h"` */
export function callLine(level: CallLevel, record: CallRecord, bindings: string): string {
  const { traceId, caller, lane, provider, target, status, httpStatus, error, message, cost, firstToken } = record
  const who = `"tenant":${quoted(record.tenant)},"key":${quotedOrNull(record.key)},"caller":"${caller}","lane":"${lane}"`
  const what = `"model":${quoted(record.model)},"stream":${record.stream},"provider":${quotedOrNull(provider)},"upstreamModel":${quotedOrNull(target)}`
  const end = `"status":"${status}","httpStatus":${httpStatus},"errorCode":${quotedOrNull(error)},"errorMessage":${message === null ? null : JSON.stringify(message)}`
  const tokens = `"tokensIn":${record.tokensIn},"tokensOut":${record.tokensOut},"usageSource":"${record.usage.source}"`
  const times = `"durationMs":${tenths(record.duration)},"firstTokenMs":${firstToken === null ? null : tenths(firstToken)}`
  const moves = `"attempts":${record.attempts},"retries":${record.retries},"fallbacks":${record.fallbacks}`
  const rest = `"cache":"${record.cache}","config":${quotedOrNull(record.config)},"msg":"${callMessage(record)}"`
  return `{"level":${levels[level]},"time":${Date.now()}${bindings},"requestId":${quoted(record.id)},"traceId":"${traceId}",${who},${what},${end},${tokens},"costUsd":${cost === null ? null : usdText(cost)},${times},${moves},${rest}}\n`
}

/** One line for a person: `acme: chat → claude/claude-sonnet-4-5, 200 in 812.5 ms, 20 + 30 tokens, $0.00045`. */
export function callSummary(record: CallRecord): string {
  const { provider, target, firstToken, attempts, cost } = record
  const where = provider === null ? '' : ` → ${provider}/${target}`
  const first = firstToken === null ? '' : `, first token after ${tenths(firstToken)} ms`
  const tried = attempts > 1 ? `, ${attempts} attempts` : ''
  const used = attempts === 0 ? '' : `, ${record.tokensIn} + ${record.tokensOut} tokens`
  const paid = cost === null || cost === 0 ? '' : `, $${usdText(cost)}`
  const fault = record.error === null ? '' : `, ${record.error}: ${record.message ?? ''}`
  const took = `${record.httpStatus} in ${tenths(record.duration)} ms`
  return printable(`${record.tenant}: ${record.model}${where}, ${took}${first}${tried}${used}${paid}${fault}`)
}

function short(name: string): string {
  return name.length > longestName ? name.slice(0, longestName) : name
}

function tenths(milliseconds: number): number {
  return Math.round(milliseconds * 10) / 10
}

function quotedOrNull(name: string | null): string | null {
  return name === null ? null : quoted(name)
}

/** Nearly all names need no escape, and looking at them is faster than JSON.stringify. */
function quoted(name: string): string {
  const length = name.length > longestName ? longestName : name.length
  for (let index = 0; index < length; index++) {
    const code = name.charCodeAt(index)
    if (code < 0x20 || code > 0x7e || code === 0x22 || code === 0x5c) return JSON.stringify(short(name))
  }
  return `"${short(name)}"`
}

/** A terminal does what control characters say, and callers choose some of the names. */
function printable(text: string): string {
  return text.replace(/[\p{Cc}\p{Cf}]/gu, '?')
}
