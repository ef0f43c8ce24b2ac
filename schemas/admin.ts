import { type Static, Type } from '@sinclair/typebox'
import { modelName, tenantName } from './atoms.ts'
import { recordStatuses } from './ledger.ts'
import { periods } from './periods.ts'
import { closed, text, word } from './shape.ts'
import { scopes } from './tenants.ts'

// What the administrator sends. Money is a decimal number of USD, times are ISO 8601 in UTC. Requests are checked tightly
// and unknown fields are refused; `allowed` is what a fault says of a value that does not fit.

// For the package, which exports both as one.
export * from './admin-answers.ts'

const Amount = Type.Unsafe<number | null>({
  type: ['number', 'null'],
  minimum: 0,
  maximum: 9_000_000,
  allowed: 'an amount in USD from 0 to 9000000, or null for none'
})
const Rate = Type.Unsafe<number | null>({
  type: ['integer', 'null'],
  minimum: 1,
  maximum: 1_000_000_000,
  allowed: 'a whole number from 1 to 1000000000, or null for none'
})
const Flag = Type.Boolean({ allowed: 'true or false' })
const Label = text('^[^\\x00-\\x1f\\x7f]{1,256}$', 'a text of 1 to 256 characters without control characters')
const Id = text(tenantName, 'letters, digits, ".", "_", ":", "@" and "-", at most 128')

const limits = {
  requests_per_minute: Type.Optional(Rate),
  tokens_per_minute: Type.Optional(Rate),
  concurrency: Type.Optional(Rate)
}

const tenantFields = {
  period: Type.Optional(word(periods)),
  /** What one request may be likely to cost. */
  max_request_usd: Type.Optional(Amount),
  max_output_tokens: Type.Optional(
    Type.Integer({ minimum: 1, maximum: 100_000_000, allowed: 'a whole number from 1 to 100000000' })
  ),
  ...limits,
  /** Names of models, `*` stands for any characters; null: every model. */
  allow_models: Type.Optional(
    Type.Unsafe<string[] | null>({
      type: ['array', 'null'],
      maxItems: 1_000,
      items: text(modelName, 'the name of a model, or a pattern with "*"'),
      allowed: 'a list of at most 1000 names of models, or null for every model'
    })
  ),
  active: Type.Optional(Flag),
  /** Callers without a key may name it. */
  open: Type.Optional(Flag),
  /** Yours; at most 16 KiB of JSON. Replaced as a whole. */
  metadata: Type.Optional(Type.Record(Type.String(), Type.Unknown(), { allowed: 'an object' }))
}

/** POST /api/tenants. */
export const TenantCreation = closed({ id: Id, budget_usd: Amount, ...tenantFields })
export type TenantCreation = Static<typeof TenantCreation>

/** PUT /api/tenants/:id; what is absent stays. */
export const TenantChange = closed({ budget_usd: Type.Optional(Amount), ...tenantFields })
export type TenantChange = Static<typeof TenantChange>

/** POST /api/tenants/:id/keys. Without `budget_usd` the key has no budget of its own. */
export const KeyCreation = closed({
  name: Type.Optional(
    Type.Unsafe<string | null>({
      type: ['string', 'null'],
      pattern: Label.pattern,
      allowed: `${Label['allowed']}, or null`
    })
  ),
  scopes: Type.Optional(
    Type.Array(word(scopes), { minItems: 1, uniqueItems: true, allowed: `a list of ${scopes.join(', ')}` })
  ),
  budget_usd: Type.Optional(Amount),
  period: Type.Optional(word(periods)),
  ...limits,
  expires_at: Type.Optional(
    Type.Unsafe<string | number | null>({
      type: ['string', 'integer', 'null'],
      allowed: 'a time as ISO 8601 or in milliseconds since 1970, or null for never'
    })
  )
})
export type KeyCreation = Static<typeof KeyCreation>

/** POST /api/tenants/:id/keys/:keyId/rotate. */
export const KeyRotation = closed({
  /** How long the old key goes on working. Default: a day. */
  overlap_seconds: Type.Optional(
    Type.Integer({ minimum: 0, maximum: 2_592_000, allowed: 'a whole number from 0 to 2592000 (30 days)' })
  )
})
export type KeyRotation = Static<typeof KeyRotation>

const page = {
  /** Default 100. */
  limit: Type.Optional(text('^([1-9]\\d{0,2}|1000)$', 'a whole number from 1 to 1000')),
  after: Type.Optional(text('^[A-Za-z0-9][A-Za-z0-9._:@-]{0,127}$', 'the `next` of the page before'))
}

/** GET /api/tenants, GET /api/tenants/:id/keys. */
export const PageQuery = closed(page)
export type PageQuery = Static<typeof PageQuery>

const moment = Type.Optional(Type.String({ allowed: 'a time as ISO 8601 or in milliseconds since 1970' }))
const recordFields = {
  ...page,
  /** From this moment on. */
  from: moment,
  /** Before this moment. */
  to: moment,
  model: Type.Optional(Label),
  key: Type.Optional(Label),
  status: Type.Optional(word(recordStatuses)),
  /** `jsonl` and `csv` are every row that fits, as a download. */
  format: Type.Optional(word(['json', 'jsonl', 'csv']))
}

/** GET /api/tenants/:id/records. */
export const TenantRecordsQuery = closed(recordFields)
/** GET /api/records. */
export const RecordsQuery = closed({ ...recordFields, tenant: Type.Optional(Id) })
export type RecordsQuery = Static<typeof RecordsQuery>

/** GET /api/traces. */
export const TracesQuery = closed({
  /** Default 200. */
  limit: Type.Optional(text('^([1-9]\\d?|1\\d\\d|200)$', 'a whole number from 1 to 200')),
  /** The `x-request-id` of the answer. */
  id: Type.Optional(Label),
  tenant: Type.Optional(Id),
  model: Type.Optional(Label),
  provider: Type.Optional(Label),
  status: Type.Optional(word(recordStatuses)),
  /** The `x-trace-id` of the answer. */
  trace_id: Type.Optional(text('^[0-9a-f]{32}$', '32 hex digits'))
})
export type TracesQuery = Static<typeof TracesQuery>

/** GET /api/audit. */
export const AuditQuery = closed({ ...page, subject: Type.Optional(Label) })
export type AuditQuery = Static<typeof AuditQuery>

/** GET /api/targets. */
export const TargetsQuery = closed({ provider: Type.Optional(Label), model: Type.Optional(Label) })
export type TargetsQuery = Static<typeof TargetsQuery>

/** POST /api/routing/reload. */
export const ReloadQuery = closed({ dryRun: Type.Optional(word(['true', 'false'])) })
export type ReloadQuery = Static<typeof ReloadQuery>
