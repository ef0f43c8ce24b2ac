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

/** One of the two things that are counted by the minute: where it stands, and what OpenAI calls it. */
interface Kind {
  readonly limit: 'requestsPerMinute' | 'tokensPerMinute'
  readonly current: 'requests' | 'tokens'
  readonly before: 'requestsBefore' | 'tokensBefore'
  readonly headers: readonly [limit: string, remaining: string, reset: string]
}

const requests: Kind = {
  limit: 'requestsPerMinute',
  current: 'requests',
  before: 'requestsBefore',
  headers: ['x-ratelimit-limit-requests', 'x-ratelimit-remaining-requests', 'x-ratelimit-reset-requests']
}
const tokens: Kind = {
  limit: 'tokensPerMinute',
  current: 'tokens',
  before: 'tokensBefore',
  headers: ['x-ratelimit-limit-tokens', 'x-ratelimit-remaining-tokens', 'x-ratelimit-reset-tokens']
}

/** Adds the headers of the tightest limit of each kind. */
export function addHeaders(
  headers: string[],
  demand: Demand,
  tenant: Counters | null,
  key: Counters | null,
  elapsed: number
): void {
  addTightest(headers, requests, demand, tenant, key, elapsed)
  addTightest(headers, tokens, demand, tenant, key, elapsed)
}

function addTightest(
  headers: string[],
  kind: Kind,
  { tenantLimits, keyLimits }: Demand,
  tenant: Counters | null,
  key: Counters | null,
  elapsed: number
): void {
  const ofTenant = leftOf(kind, tenantLimits, tenant, elapsed)
  const ofKey = leftOf(kind, keyLimits, key, elapsed)
  const counters = ofKey < ofTenant ? key : tenant
  const limit = (ofKey < ofTenant ? keyLimits : tenantLimits)?.[kind.limit] ?? null
  if (counters === null || limit === null) return
  headers.push(
    kind.headers[0],
    String(limit),
    kind.headers[1],
    String(wholeLeft(Math.min(ofTenant, ofKey))),
    kind.headers[2],
    durationText(resetIn(counters[kind.current], counters[kind.before], elapsed))
  )
}

/** Infinity without a limit, or without counters for it. */
function leftOf(kind: Kind, limits: Limits | null, counters: Counters | null, elapsed: number): number {
  const limit = limits === null ? null : limits[kind.limit]
  if (limit === null || counters === null) return Infinity
  return limit - usedOf(counters[kind.current], counters[kind.before], elapsed)
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
