import { createError } from '@fastify/error'
import { type Static, Type } from '@sinclair/typebox'

/** Every fault as it leaves: OpenAI's error body. All four keys are always present, unknown ones are null. */
export const ErrorBody = Type.Object({
  error: Type.Object({
    message: Type.String(),
    type: Type.String(),
    param: Type.Union([Type.String(), Type.Null()]),
    code: Type.Union([Type.String(), Type.Null()])
  })
})
export type ErrorBody = Static<typeof ErrorBody>

/** A fault of ours: `code` is stable and prefixed, `wire` is what OpenAI's body carries as `code`. */
export interface GatewayError extends Error {
  code: string
  wire: string | null
  type: string
  param: string | null
  statusCode: number
  /** Headers that the answer carries besides the body: `retry-after`, `x-should-retry`. */
  headers: Readonly<Record<string, string>>
  /** For a fault of a provider call: what a further attempt would have to do without. Null for all others. */
  blame: Blame | null
  /** Milliseconds that the provider asks to wait; null where it asks for nothing. */
  retryAfter: number | null
  /** The status that the provider answered with; null where there was none. */
  upstream: number | null
  /** Which target it was, `provider/model`, for the log; null where none was asked. */
  target: string | null
  /** Its message holds words of the provider, which may quote what it was sent. */
  quotes: boolean
}

/**
 * What made a provider call fail, which decides what is tried next (docs/routing.md). `request`: it fails everywhere.
 * `key`: the credential is refused. `limit`: the credential has to wait. `target`: it cannot answer as it is set up,
 * however often it is asked. `time`: it was too slow. `provider`: it failed, and may not do so again.
 */
export type Blame = 'request' | 'key' | 'limit' | 'target' | 'time' | 'provider'

/** A constructor of one fault; the arguments fill the `%s` of its message, `{ cause }` may follow them. */
export type Fault = new (...args: Array<string | number | { cause: unknown }>) => GatewayError

const brand = Symbol.for('fastify-model-gateway.error')
const useless = { 'x-should-retry': 'false' }

/** True for every fault made here, also by another copy of this package. */
export function isGatewayError(error: unknown): error is GatewayError {
  return typeof error === 'object' && error !== null && brand in error
}

/** Gives one fault what only this occurrence knows: another status, the vendor's own code, headers. */
export function detail(error: GatewayError, own: Partial<Omit<GatewayError, 'name' | 'stack'>>): GatewayError {
  return Object.assign(error, own)
}

/** The body of a fault of ours, ready to be sent. */
export function errorBody(error: GatewayError): ErrorBody {
  const param = error.param === null ? null : withoutKeys(error.param)
  return { error: { message: withoutKeys(error.message), type: error.type, param, code: error.wire } }
}

/** A key of ours that somebody has put where a name belongs is not repeated. */
export function withoutKeys(text: string): string {
  return text.includes('gw_') ? text.replace(/gw_\w{4,}[\w-]*/g, 'gw_…') : text
}

// The table of design.md section 6. A new fault is a new line here and a line in docs/errors.md.
export const InvalidRequest = fault(null, 400, 'invalid_request_error', '%s')
export const InvalidApiKey = fault('invalid_api_key', 401, 'invalid_request_error', '%s')
export const KeyNotFound = fault('key_not_found', 404, 'invalid_request_error', 'The key `%s` does not exist.')
export const TenantDisabled = fault('tenant_disabled', 403, 'permission_error', 'The tenant `%s` is switched off.')
export const TenantExists = fault('tenant_exists', 409, 'invalid_request_error', 'The tenant `%s` exists already.')
export const TenantReadOnly = fault(
  'tenant_read_only',
  409,
  'invalid_request_error',
  'The tenant `%s` stands in the configuration file and is changed there.'
)
export const MissingScope = fault('missing_scope', 403, 'permission_error', 'This credential lacks the scope `%s`.')
export const ModelNotAllowed = fault(
  'model_not_allowed',
  403,
  'permission_error',
  'The tenant `%s` may not use the model `%s`.'
)
export const ModelUnpriced = fault(
  'model_unpriced',
  403,
  'permission_error',
  'Nobody knows what the model `%s` costs: set a price for its targets, or plugins.budgets.unpriced to allow.'
)
export const RequestCostExceeded = fault(
  'request_cost_exceeded',
  403,
  'permission_error',
  'This request would cost about $%s; one request of this tenant may cost $%s. Lower max_tokens or send less.'
)
export const InsufficientQuota = detailed(fault('insufficient_quota', 429, 'insufficient_quota', '%s'), {
  'x-should-retry': 'false'
})
export const RateLimitExceeded = fault('rate_limit_exceeded', 429, 'rate_limit_error', '%s')
export const LedgerUnavailable = fault(
  'ledger_unavailable',
  503,
  'server_error',
  'This call cannot be written down, so it is not made: %s'
)
export const LimitsUnavailable = fault(
  'limits_unavailable',
  503,
  'server_error',
  'Limits and budgets cannot be checked, so the call is not made: %s'
)
export const StoreUnavailable = fault(
  'store_unavailable',
  503,
  'server_error',
  'The database of this gateway cannot be reached: %s'
)
export const AuthUnavailable = fault(
  'auth_unavailable',
  503,
  'server_error',
  'This token cannot be checked now: the keys of its issuer cannot be read.'
)
export const SharedUnavailable = fault('shared_unavailable', 503, 'server_error', 'Redis cannot be asked: %s')
export const IdempotencyKeyReused = fault(
  'idempotency_key_reused',
  422,
  'invalid_request_error',
  'This Idempotency-Key was used for another request. Use a new key for each request.'
)
export const TenantMismatch = fault(
  'tenant_mismatch',
  403,
  'permission_error',
  'This caller may not act for the tenant `%s`.'
)
export const TenantNotFound = fault('tenant_not_found', 404, 'invalid_request_error', 'The tenant `%s` does not exist.')
export const ModelNotFound = fault(
  'model_not_found',
  404,
  'invalid_request_error',
  'The model `%s` does not exist here. GET /v1/models lists the models of this gateway.'
)
export const ResourceNotFound = fault('resource_not_found', 404, 'invalid_request_error', 'Unknown path: %s %s')
export const RequestTooLarge = fault(
  'request_too_large',
  413,
  'invalid_request_error',
  'The request body is larger than the limit of %s bytes.'
)
export const UnsupportedMediaType = fault(
  'unsupported_media_type',
  415,
  'invalid_request_error',
  'Send the request as application/json.'
)
export const UpstreamRejected = blaming('request', fault(null, 400, 'invalid_request_error', '%s', 'upstream_rejected'))
export const UpstreamRateLimited = blaming(
  'limit',
  fault(
    'upstream_rate_limited',
    429,
    'rate_limit_error',
    'The provider of this model is limiting requests. Try again later.'
  )
)
export const UpstreamError = blaming(
  'provider',
  fault('upstream_error', 502, 'server_error', 'The provider of this model failed: %s')
)
export const UpstreamOverloaded = blaming(
  'provider',
  fault('upstream_overloaded', 503, 'server_error', 'The provider of this model is overloaded. Try again later.')
)
export const UpstreamTimeout = blaming(
  'time',
  fault('upstream_timeout', 504, 'server_error', 'The provider of this model did not answer in time: %s')
)
export const ShuttingDown = fault('shutting_down', 503, 'server_error', 'This gateway is shutting down. Try again.')
export const Cancelled = fault(
  'cancelled',
  499,
  'invalid_request_error',
  'The caller left before the answer was complete.'
)
export const InternalError = fault('internal_error', 500, 'server_error', 'The gateway failed to handle this request.')

/** The same fault of a provider call. */
function blaming(blame: Blame, Made: Fault): Fault {
  Object.assign(Made.prototype, { blame })
  return Made
}

/** The same fault with headers of its own. */
function detailed(Made: Fault, headers: Readonly<Record<string, string>>): Fault {
  Object.assign(Made.prototype, { headers })
  return Made
}

function fault(wire: string | null, statusCode: number, type: string, message: string, own = 'invalid_request'): Fault {
  const name = wire ?? own
  const Made = createError(`GATEWAY_${name.toUpperCase()}`, message, statusCode, Error, statusCode === 500)
  // Statuses that the OpenAI SDK repeats by itself stay silent; for the rest a repeat is useless and we say so.
  const headers = statusCode < 500 && statusCode !== 429 ? useless : {}
  Object.assign(Made.prototype, {
    [brand]: true,
    wire,
    type,
    param: null,
    headers,
    blame: null,
    retryAfter: null,
    upstream: null,
    target: null,
    quotes: false
  })
  return Made as unknown as Fault
}
