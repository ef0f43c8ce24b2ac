import {
  type Blame,
  detail,
  type GatewayError,
  UpstreamError,
  UpstreamOverloaded,
  UpstreamRateLimited,
  UpstreamRejected,
  UpstreamTimeout
} from '../schemas/errors.ts'
import type { Reply } from './upstream.ts'

/** What a provider said of its failure: OpenAI's shape, or what can be found of it. */
export interface VendorError {
  readonly message?: unknown
  readonly type?: unknown
  readonly param?: unknown
  readonly code?: unknown
}

/**
 * A provider's error as our caller gets it (design.md section 6): what the request itself caused keeps its words, what is
 * about our own account with the provider does not, because such messages quote keys.
 *
 * @param status the HTTP status, or what the error says of it; 0 when nothing does
 * @param redact takes secrets out of a vendor's words
 */
export function vendorFault(
  status: number,
  error: VendorError | string | null,
  headers: Reply['headers'],
  redact: Redact
): GatewayError {
  return detail(faultOf(status, error, headers, redact), { upstream: status || null })
}

function faultOf(
  status: number,
  error: VendorError | string | null,
  headers: Reply['headers'],
  redact: Redact
): GatewayError {
  const said = typeof error === 'string' ? { message: error } : (error ?? {})
  const clean = (text: string) => redact(text.slice(0, 4_000)).slice(0, 2_000)
  const words = typeof said.message === 'string' && said.message !== '' ? clean(said.message) : null
  const code = typeof said.code === 'string' || typeof said.code === 'number' ? clean(String(said.code)) : null
  const cause = new Error(`upstream answered ${status || 'an error'}: ${words ?? 'without a message'}`)
  if (status === 429) return withRetry(new UpstreamRateLimited({ cause }), headers)
  if (status === 503 || status === 529) return withRetry(new UpstreamOverloaded({ cause }), headers)
  if (status === 504) return new UpstreamTimeout('it gave up by itself.', { cause })
  if (status === 400 || status === 408 || status === 409 || status === 413 || status === 422) {
    const message = words ?? `The provider refused the request with status ${status}.`
    const rejected = detail(new UpstreamRejected(message, { cause }), {
      statusCode: status,
      param: typeof said.param === 'string' ? clean(said.param) : null,
      wire: code === String(status) ? null : code,
      quotes: words !== null
    })
    // SDKs repeat these two by themselves.
    if (status === 408 || status === 409) rejected.headers = {}
    if (status === 408) rejected.blame = 'time'
    return withRetry(rejected, headers)
  }
  if (status >= 401 && status <= 404) {
    const message = `it refused this gateway with status ${status}. The operator has to look at it.`
    return detail(new UpstreamError(message, { cause }), {
      headers: { 'x-should-retry': 'false' },
      blame: status === 404 ? 'target' : 'key'
    })
  }
  const plain = status >= 300 && status < 500 ? `it answered with status ${status}.` : (words ?? `status ${status}.`)
  const blame: Blame = (status >= 300 && status < 500) || status === 501 ? 'target' : 'provider'
  return detail(withRetry(new UpstreamError(plain, { cause }), headers), { blame, quotes: plain === words })
}

/** A stream was asked for and a whole answer came: that is how this server is, and it may have charged for it. */
export function notStreamed(): GatewayError {
  return detail(new UpstreamError('it answered a stream request with something else.'), { blame: 'target' })
}

/**
 * A 200 that cannot be read. What says that it is JSON was broken on its way, and may not be the next time; anything else
 * is the page of somebody in between, or of another kind of server.
 */
export function notJson(headers: Reply['headers']): GatewayError {
  const fault = new UpstreamError('its answer is not JSON.')
  const type = headers['content-type']
  return typeof type === 'string' && !/[/+]json\b/i.test(type) ? detail(fault, { blame: 'target' }) : fault
}

/** Hands on what the provider says of repeating the request. */
function withRetry(error: GatewayError, headers: Reply['headers']): GatewayError {
  const own: Record<string, string> = { ...error.headers }
  for (const name of ['retry-after', 'retry-after-ms', 'x-should-retry']) {
    const value = headers[name]
    if (typeof value === 'string' && /^[\x20-\x7e]{1,64}$/.test(value)) own[name] = value
  }
  return detail(error, { headers: own, retryAfter: waitOf(own) })
}

/** Milliseconds, from either header; the second is in seconds or a date. Null for what says neither. */
function waitOf(headers: Readonly<Record<string, string>>): number | null {
  const exact = Number(headers['retry-after-ms'] || Number.NaN)
  if (exact >= 0) return exact
  const after = headers['retry-after']
  if (after === undefined) return null
  const seconds = Number(after || Number.NaN)
  if (seconds >= 0) return seconds * 1_000
  const date = Date.parse(after)
  return Number.isNaN(date) ? null : Math.max(0, date - Date.now())
}

/** Takes secrets out of a vendor's words. */
export type Redact = (text: string) => string

/** Vendors quote keys in their messages: whole, shortened, or with stars in the middle. */
export function redacting(keys: readonly string[], headers: readonly string[]): Redact {
  const values = headers.map(value => value.slice(value.lastIndexOf(' ') + 1)).filter(value => value.length >= 8)
  const patterns = [
    ...keys.filter(key => key.length >= 12).map(key => `${escaped(key.slice(0, 6))}[^\\s"'\`,;<>()]*`),
    ...[...keys.filter(key => key.length >= 4), ...values].map(escaped),
    '[\\w-]{0,12}\\*{3,}[\\w*-]*'
  ]
  const secrets = new RegExp(patterns.join('|'), 'g')
  return text => text.replace(secrets, '[redacted]')
}

function escaped(text: string): string {
  return text.replace(/[^\w]/g, '\\$&')
}
