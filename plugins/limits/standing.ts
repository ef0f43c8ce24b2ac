import { detail, type GatewayError, RateLimitExceeded } from '../../schemas/errors.ts'
import type { Limits } from '../../schemas/tenants.ts'
import { type Counters, fits, minute, resetIn, usedOf, waitFor } from './counters.ts'
import type { Demand } from './limiter.ts'

// How a call stands to its limits: what clients are told of it, in OpenAI's words.

/** Whether one tenant or key has room for a call. */
export function hasRoom(limits: Limits, counters: Counters, elapsed: number, tokens: number): boolean {
  return (
    fits(limits.requestsPerMinute, counters.requests, counters.requestsBefore, elapsed, 1) &&
    fits(limits.tokensPerMinute, counters.tokens, counters.tokensBefore, elapsed, tokens) &&
    (limits.concurrency === null || counters.running < limits.concurrency)
  )
}

/** Adds the headers of the tightest limit of each kind. Counters are there wherever limits are. */
export function addHeaders(
  headers: string[],
  { tenantLimits, keyLimits }: Demand,
  tenant: Counters | null,
  key: Counters | null,
  elapsed: number
): void {
  addRequests(headers, tenant && tenantLimits, tenant, key && keyLimits, key, elapsed)
  addTokens(headers, tenant && tenantLimits, tenant, key && keyLimits, key, elapsed)
}

function addRequests(
  headers: string[],
  oneLimits: Limits | null,
  one: Counters | null,
  otherLimits: Limits | null,
  other: Counters | null,
  elapsed: number
): void {
  const oneLimit = oneLimits === null ? null : oneLimits.requestsPerMinute
  const otherLimit = otherLimits === null ? null : otherLimits.requestsPerMinute
  const oneLeft =
    oneLimit === null || one === null ? Infinity : oneLimit - usedOf(one.requests, one.requestsBefore, elapsed)
  const otherLeft =
    otherLimit === null || other === null
      ? Infinity
      : otherLimit - usedOf(other.requests, other.requestsBefore, elapsed)
  const tightest = otherLeft < oneLeft ? other : one
  const limit = otherLeft < oneLeft ? otherLimit : oneLimit
  if (tightest === null || limit === null) return
  headers.push(
    'x-ratelimit-limit-requests',
    String(limit),
    'x-ratelimit-remaining-requests',
    String(wholeLeft(Math.min(oneLeft, otherLeft))),
    'x-ratelimit-reset-requests',
    durationText(resetIn(tightest.requests, tightest.requestsBefore, elapsed))
  )
}

function addTokens(
  headers: string[],
  oneLimits: Limits | null,
  one: Counters | null,
  otherLimits: Limits | null,
  other: Counters | null,
  elapsed: number
): void {
  const oneLimit = oneLimits === null ? null : oneLimits.tokensPerMinute
  const otherLimit = otherLimits === null ? null : otherLimits.tokensPerMinute
  const oneLeft =
    oneLimit === null || one === null ? Infinity : oneLimit - usedOf(one.tokens, one.tokensBefore, elapsed)
  const otherLeft =
    otherLimit === null || other === null ? Infinity : otherLimit - usedOf(other.tokens, other.tokensBefore, elapsed)
  const tightest = otherLeft < oneLeft ? other : one
  const limit = otherLeft < oneLeft ? otherLimit : oneLimit
  if (tightest === null || limit === null) return
  headers.push(
    'x-ratelimit-limit-tokens',
    String(limit),
    'x-ratelimit-remaining-tokens',
    String(wholeLeft(Math.min(oneLeft, otherLeft))),
    'x-ratelimit-reset-tokens',
    durationText(resetIn(tightest.tokens, tightest.tokensBefore, elapsed))
  )
}

function wholeLeft(left: number): number {
  return left <= 0 ? 0 : Math.floor(left)
}

/** Texts of whole seconds, each made once: nearly every answer needs two. */
const seconds: string[] = []

/** As OpenAI writes it: `120ms`, `1s`, `6m0s`. */
export function durationText(milliseconds: number): string {
  if (milliseconds > 0 && milliseconds < 1_000) return `${Math.ceil(milliseconds)}ms`
  const whole = Math.ceil(milliseconds / 1_000)
  const known = seconds[whole]
  if (known !== undefined) return known
  const text = whole < 60 ? `${whole}s` : `${Math.floor(whole / 60)}m${whole % 60}s`
  if (whole === seconds.length) seconds.push(text)
  return text
}
for (let whole = 0; whole <= (2 * minute) / 1_000; whole++) durationText(whole * 1_000)

/** One limit that a call does not fit into. */
interface Excess {
  /** Milliseconds until it fits. */
  readonly wait: number
  readonly message: string
}

/** The fault for a call that does not fit: of the limit that makes it wait longest. */
export function refusalOf(
  demand: Demand,
  tenant: Counters | null,
  key: Counters | null,
  elapsed: number
): GatewayError {
  const all = [
    ...(demand.tenantLimits && tenant ? excessOf('tenant', demand, demand.tenantLimits, tenant, elapsed) : []),
    ...(demand.keyLimits && key ? excessOf('key', demand, demand.keyLimits, key, elapsed) : [])
  ]
  const worst = all.reduce((one, other) => (other.wait > one.wait ? other : one), all[0] ?? nothing)
  const list: string[] = []
  addHeaders(list, demand, tenant, key, elapsed)
  const headers: Record<string, string> = {}
  for (let index = 0; index < list.length; index += 2) headers[list[index]!] = list[index + 1]!
  if (worst.wait === Infinity) headers['x-should-retry'] = 'false'
  else {
    headers['retry-after'] = String(Math.max(1, Math.ceil(worst.wait / 1_000)))
    headers['retry-after-ms'] = String(Math.max(1, Math.ceil(worst.wait)))
  }
  return detail(new RateLimitExceeded(worst.message), { headers })
}

const nothing: Excess = { wait: 0, message: 'Rate limit reached.' }

function excessOf(
  who: 'tenant' | 'key',
  { tenant, key, tokens }: Demand,
  limits: Limits,
  counters: Counters,
  elapsed: number
): Excess[] {
  const name = `${who} \`${who === 'tenant' ? tenant : key}\``
  const found: Excess[] = []
  const { requestsPerMinute, tokensPerMinute, concurrency } = limits
  if (requestsPerMinute !== null && !fits(requestsPerMinute, counters.requests, counters.requestsBefore, elapsed, 1)) {
    const wait = waitFor(requestsPerMinute, counters.requests, counters.requestsBefore, elapsed, 1)
    const message = `Rate limit reached: the ${name} may make ${count(requestsPerMinute, 'request')} per minute.`
    found.push({ wait, message: message + again(wait) })
  }
  if (tokensPerMinute !== null && !fits(tokensPerMinute, counters.tokens, counters.tokensBefore, elapsed, tokens)) {
    const wait = waitFor(tokensPerMinute, counters.tokens, counters.tokensBefore, elapsed, tokens)
    const message =
      tokens > tokensPerMinute
        ? `This request counts for ${count(tokens, 'token')}, more than the ${name} may use in a minute: ${tokensPerMinute}. Send less or lower max_tokens.`
        : `Rate limit reached: the ${name} may use ${count(tokensPerMinute, 'token')} per minute, and this request counts for ${tokens}.${again(wait)}`
    found.push({ wait, message })
  }
  if (concurrency !== null && counters.running >= concurrency) {
    const message = `Concurrency limit reached: the ${name} may have ${count(concurrency, 'call')} running at the same time.`
    found.push({ wait: concurrency > 0 ? 1_000 : Infinity, message: message + (concurrency > 0 ? again(1_000) : '') })
  }
  return found
}

function again(wait: number): string {
  return wait === Infinity ? '' : ` Try again in ${durationText(wait)}.`
}

function count(number: number, what: string): string {
  return `${number} ${what}${number === 1 ? '' : 's'}`
}
