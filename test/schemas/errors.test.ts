import { createError } from '@fastify/error'
import { Value } from '@sinclair/typebox/value'
import t from 'tap'
import * as errors from '../../schemas/errors.ts'
import { detail, ErrorBody, errorBody, isGatewayError } from '../../schemas/errors.ts'

// The table of design.md section 6, for what exists: status, type, code, and whether a client is told not to repeat.
const table: Array<[keyof typeof errors, number, string, string | null, 'false' | undefined]> = [
  ['InvalidRequest', 400, 'invalid_request_error', null, 'false'],
  ['InvalidApiKey', 401, 'invalid_request_error', 'invalid_api_key', 'false'],
  ['TenantMismatch', 403, 'permission_error', 'tenant_mismatch', 'false'],
  ['TenantNotFound', 404, 'invalid_request_error', 'tenant_not_found', 'false'],
  ['TenantDisabled', 403, 'permission_error', 'tenant_disabled', 'false'],
  ['TenantExists', 409, 'invalid_request_error', 'tenant_exists', 'false'],
  ['TenantReadOnly', 409, 'invalid_request_error', 'tenant_read_only', 'false'],
  ['KeyNotFound', 404, 'invalid_request_error', 'key_not_found', 'false'],
  ['MissingScope', 403, 'permission_error', 'missing_scope', 'false'],
  ['ModelNotAllowed', 403, 'permission_error', 'model_not_allowed', 'false'],
  ['ModelUnpriced', 403, 'permission_error', 'model_unpriced', 'false'],
  ['RequestCostExceeded', 403, 'permission_error', 'request_cost_exceeded', 'false'],
  ['InsufficientQuota', 429, 'insufficient_quota', 'insufficient_quota', 'false'],
  ['RateLimitExceeded', 429, 'rate_limit_error', 'rate_limit_exceeded', undefined],
  ['IdempotencyKeyReused', 422, 'invalid_request_error', 'idempotency_key_reused', 'false'],
  ['LedgerUnavailable', 503, 'server_error', 'ledger_unavailable', undefined],
  ['LimitsUnavailable', 503, 'server_error', 'limits_unavailable', undefined],
  ['StoreUnavailable', 503, 'server_error', 'store_unavailable', undefined],
  ['AuthUnavailable', 503, 'server_error', 'auth_unavailable', undefined],
  ['SharedUnavailable', 503, 'server_error', 'shared_unavailable', undefined],
  ['ModelNotFound', 404, 'invalid_request_error', 'model_not_found', 'false'],
  ['ResourceNotFound', 404, 'invalid_request_error', 'resource_not_found', 'false'],
  ['RequestTooLarge', 413, 'invalid_request_error', 'request_too_large', 'false'],
  ['UnsupportedMediaType', 415, 'invalid_request_error', 'unsupported_media_type', 'false'],
  ['UpstreamRejected', 400, 'invalid_request_error', null, 'false'],
  ['UpstreamRateLimited', 429, 'rate_limit_error', 'upstream_rate_limited', undefined],
  ['UpstreamError', 502, 'server_error', 'upstream_error', undefined],
  ['UpstreamOverloaded', 503, 'server_error', 'upstream_overloaded', undefined],
  ['UpstreamTimeout', 504, 'server_error', 'upstream_timeout', undefined],
  ['ShuttingDown', 503, 'server_error', 'shutting_down', undefined],
  ['Cancelled', 499, 'invalid_request_error', 'cancelled', 'false'],
  ['InternalError', 500, 'server_error', 'internal_error', undefined]
]

const faults = new Map(Object.entries(errors).filter(([name]) => /^[A-Z]/.test(name) && name !== 'ErrorBody'))

for (const [name, status, type, code, retry] of table) {
  t.test(`${name} is ${status} ${type} / ${code}, x-should-retry ${retry}`, async t => {
    const error = make(name)
    t.equal(error.statusCode, status)
    t.equal(error.headers['x-should-retry'], retry)
    t.match(errorBody(error), { error: { type, code, param: null, message: /\w/ } })
    t.notMatch(error.message, /%s|undefined/)
    t.match(error.code, /^GATEWAY_[A-Z_]+$/)
    t.ok(Value.Check(ErrorBody, errorBody(error)))
    t.ok(isGatewayError(error))
    t.type(error, Error)
  })
}

t.test('the table names every fault there is', async t => {
  t.strictSame([...faults.keys()].toSorted(), table.map(([name]) => name).toSorted())
})

t.test('no two faults have the same code on the wire', async t => {
  const codes = table.map(([, , , code]) => code).filter(code => code !== null)
  t.equal(new Set(codes).size, codes.length)
})

t.test('the words of a fault are filled in once: what they quote is never a pattern itself', async t => {
  t.match(new errors.ModelNotFound('%s %d').message, 'The model `%s %d` does not exist here.')
  t.equal(new errors.ResourceNotFound('GET', '/%s').message, 'Unknown path: GET /%s')
  t.equal(new errors.InvalidRequest('100 % %s sure').message, '100 % %s sure')
})

t.test('a cause is kept and never sent', async t => {
  const cause = new Error('secret')
  for (const error of [new errors.UpstreamError('words.', { cause }), new errors.InternalError({ cause })]) {
    t.equal(error.cause, cause)
    t.notMatch(JSON.stringify(errorBody(error)), /secret/)
  }
})

t.test('a detail belongs to one occurrence', async t => {
  const one = detail(new errors.UpstreamRejected('No.'), { statusCode: 422, param: 'tools', wire: 'bad_tool' })
  t.equal(one.statusCode, 422)
  t.strictSame(errorBody(one), {
    error: { message: 'No.', type: 'invalid_request_error', param: 'tools', code: 'bad_tool' }
  })
  t.match(new errors.UpstreamRejected('No.'), { statusCode: 400, param: null, wire: null })
})

t.test('the body of a fault has all four keys, whatever is unknown', async t => {
  t.strictSame(Object.keys(errorBody(new errors.InternalError()).error).toSorted(), [
    'code',
    'message',
    'param',
    'type'
  ])
})

t.test('other errors are not ours', async t => {
  const Foreign = createError('FST_ERR_TEST', 'text', 400)
  for (const other of [new Error('x'), new Foreign(), { statusCode: 400 }, 'text', null, undefined, 5]) {
    t.notOk(isGatewayError(other))
  }
})

t.test('faults of another copy of this package are ours', async t => {
  t.ok(isGatewayError(Object.assign(new Error('x'), { [Symbol.for('fastify-model-gateway.error')]: true })))
})

function make(name: keyof typeof errors): errors.GatewayError {
  const Fault = faults.get(name) as errors.Fault
  return new Fault('these words', 'and these')
}
