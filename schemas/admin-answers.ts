import { type Static, type TSchema, Type } from '@sinclair/typebox'
import { recordStatuses } from './ledger.ts'
import { periods } from './periods.ts'
import { closed, word } from './shape.ts'
import { scopes } from './tenants.ts'

// What the administrator is told. Money is a decimal number of USD, times are ISO 8601 in UTC.

const nullable = <S extends TSchema>(schema: S) => Type.Union([schema, Type.Null()])

const Text = Type.String()
const Count = Type.Integer({ minimum: 0 })
const Usd = Type.Number()
const Moment = Type.String({ pattern: '^\\d{4}-\\d\\d-\\d\\dT\\d\\d:\\d\\d:\\d\\d\\.\\d{3}Z$' })
const Milliseconds = nullable(Type.Number({ minimum: 0 }))

const shownLimits = {
  requests_per_minute: nullable(Count),
  tokens_per_minute: nullable(Count),
  concurrency: nullable(Count)
}

/** Of the running period of a budget. */
const spending = {
  spend_usd: Usd,
  /** Held by calls in flight. */
  reserved_usd: Usd,
  tokens_in: Count,
  tokens_out: Count,
  requests: Count,
  /** When the period ends; null: never. */
  resets_at: nullable(Moment)
}

/** Tokens of a call in buckets that do not overlap. */
export const UsageAnswer = closed({
  input: Count,
  cache_read: Count,
  cache_write_5m: Count,
  cache_write_1h: Count,
  audio_input: Count,
  output: Count,
  reasoning: Count,
  audio_output: Count
})
export type UsageAnswer = Static<typeof UsageAnswer>

const measured = {
  status: word(recordStatuses),
  error_code: nullable(Text),
  tokens_in: Count,
  tokens_out: Count,
  usage: UsageAnswer,
  usage_source: word(['reported', 'estimated']),
  /** Null: nobody knows the price, or it still runs. */
  cost_usd: nullable(Usd),
  duration_ms: Milliseconds,
  ttft_ms: Milliseconds
}

export const AttemptAnswer = closed({
  number: Count,
  provider: Text,
  upstream_model: Text,
  price_version: nullable(Text),
  ...measured
})
export type AttemptAnswer = Static<typeof AttemptAnswer>

/** One inference: the sums of its attempts. `provider` and `upstream_model` are the last attempt's. */
export const RecordAnswer = closed({
  id: Text,
  time: Moment,
  tenant: Text,
  key: nullable(Text),
  model: Text,
  stream: Type.Boolean(),
  http_status: nullable(Count),
  provider: nullable(Text),
  upstream_model: nullable(Text),
  ...measured,
  trace_id: nullable(Text),
  user: nullable(Text),
  tags: nullable(Type.Record(Type.String(), Type.Unknown())),
  /** The configuration that it was routed by: the beginning of its hash, as /health shows it. */
  config_hash: nullable(Text),
  attempts: Type.Array(AttemptAnswer)
})
export type RecordAnswer = Static<typeof RecordAnswer>

export const TenantAnswer = closed({
  id: Text,
  budget_usd: nullable(Usd),
  period: word(periods),
  ...spending,
  active: Type.Boolean(),
  open: Type.Boolean(),
  allow_models: nullable(Type.Array(Text)),
  max_output_tokens: Count,
  max_request_usd: nullable(Usd),
  ...shownLimits,
  metadata: Type.Record(Type.String(), Type.Unknown()),
  /** `config`: changed in the configuration file only. */
  source: word(['config', 'api']),
  /** Null for those of the configuration file. */
  created_at: nullable(Moment),
  /** The last 200, newest first; only where one tenant is asked for. */
  records: Type.Optional(Type.Array(RecordAnswer))
})
export type TenantAnswer = Static<typeof TenantAnswer>

/** A key without its secret. `budget_usd: null` with a `period` is one that is only counted. */
export const KeyAnswer = closed({
  id: Text,
  tenant: Text,
  name: nullable(Text),
  scopes: Type.Array(word(scopes)),
  /** It works now. */
  active: Type.Boolean(),
  budget_usd: nullable(Usd),
  period: nullable(word(periods)),
  ...spending,
  ...shownLimits,
  expires_at: nullable(Moment),
  created_at: Moment,
  last_used_at: nullable(Moment),
  revoked_at: nullable(Moment),
  rotated_to: nullable(Text),
  /** The secret: in the answers that make a key, and nowhere else. */
  key: Type.Optional(Text)
})
export type KeyAnswer = Static<typeof KeyAnswer>

/** GET /budget/stats. */
export const BudgetAnswer = closed({
  configured: Type.Boolean(),
  limit_usd: nullable(Usd),
  spend_usd: Usd,
  reserved_usd: Usd,
  /** What a new call may still hold; never below 0. */
  remaining_usd: nullable(Usd),
  period: nullable(word(periods)),
  resets_at: nullable(Moment),
  hard_stop: Type.Boolean(),
  warning_threshold: nullable(Type.Number()),
  warned: Type.Boolean()
})
export type BudgetAnswer = Static<typeof BudgetAnswer>

/**
 * One call as GET /api/traces shows it: also those that were refused and have no record. `provider` and `upstream_model` are
 * those of the target that answered, or was tried last.
 */
export const TraceAnswer = closed({
  id: Text,
  /** When it began. */
  time: Moment,
  tenant: Text,
  key: nullable(Text),
  caller: word(['anonymous', 'key', 'jwt', 'admin', 'process']),
  lane: word(['http', 'realtime', 'process']),
  model: Text,
  stream: Type.Boolean(),
  status: word(recordStatuses),
  http_status: nullable(Count),
  provider: nullable(Text),
  upstream_model: nullable(Text),
  error_code: nullable(Text),
  /** In words of the gateway: never those of a provider. */
  error_message: nullable(Text),
  tokens_in: Count,
  tokens_out: Count,
  usage_source: word(['reported', 'estimated']),
  /** Null: nobody knows the price, or it still runs. */
  cost_usd: nullable(Usd),
  duration_ms: Milliseconds,
  ttft_ms: Milliseconds,
  attempts: Count,
  retries: Count,
  fallbacks: Count,
  cache: word(['off', 'miss', 'hit']),
  trace_id: Text,
  config_hash: nullable(Text)
})
export type TraceAnswer = Static<typeof TraceAnswer>

/**
 * GET /api/stats. `requests`, tokens and cost: of all processes since the first start; the rest: of this process since its
 * start.
 */
export const StatsAnswer = closed({
  requests: Count,
  tokens_in: Count,
  tokens_out: Count,
  cost_total_usd: Usd,
  /** False: the database does not answer, so what other processes have done since the start of this one is missing. */
  complete: Type.Boolean(),
  running: Count,
  /** Calls refused before they were sent anywhere, by error code. */
  refused: Type.Record(Type.String(), Count),
  /** Answers dearer than what was held for them. */
  overrun: Count,
  /** Calls whose price nobody knew. */
  unpriced: Count,
  /** Reports of providers whose details are more than their totals. */
  usage_mismatches: Count,
  started_at: Moment,
  uptime_s: Count
})
export type StatsAnswer = Static<typeof StatsAnswer>

/** GET /api/health. Bytes, seconds and milliseconds. */
export const HealthAnswer = closed({
  ok: Type.Boolean(),
  time: Moment,
  config: nullable(Text),
  /** By the name of the dependency; `ms`: how long its answer took. What else each says is its own. */
  checks: Type.Record(Text, Type.Object({ ok: Type.Boolean(), ms: Type.Number({ minimum: 0 }) })),
  process: closed({
    pid: Count,
    node: Text,
    uptime_s: Count,
    rss_bytes: Count,
    heap_used_bytes: Count,
    heap_total_bytes: Count,
    external_bytes: Count,
    /** Of one core, all threads, since the last question: 100 is a whole core. */
    cpu_percent: Type.Number({ minimum: 0 }),
    /** How much of that time the event loop was busy. */
    event_loop_percent: Type.Number({ minimum: 0, maximum: 100 }),
    /** How long a turn of the event loop took just now. */
    event_loop_turn_ms: Type.Number({ minimum: 0 })
  })
})
export type HealthAnswer = Static<typeof HealthAnswer>

/** One change. `before` and `after`: null where there was or is nothing. */
export const AuditAnswer = closed({
  id: Type.Union([Type.Integer(), Text]),
  time: Moment,
  actor: Text,
  action: Text,
  subject: Text,
  before: nullable(Type.Record(Type.String(), Type.Unknown())),
  after: nullable(Type.Record(Type.String(), Type.Unknown()))
})
export type AuditAnswer = Static<typeof AuditAnswer>

const percentiles = closed({ p50: Milliseconds, p95: Milliseconds })

/** One target, since the start of this process. Percentiles are over its last 256 answers. */
export const TargetAnswer = closed({
  provider: Text,
  model: Text,
  /** `open`: it is left alone; `half-open`: the next call tries it. */
  state: word(['closed', 'open', 'half-open']),
  open_until: nullable(Moment),
  in_flight: Count,
  queued: Count,
  attempts: Count,
  failures: Count,
  success_rate: nullable(Type.Number({ minimum: 0, maximum: 1 })),
  latency_ms: percentiles,
  first_token_ms: percentiles,
  last_error: nullable(closed({ time: Moment, code: Text, message: Text })),
  /** By their place in the pool, from 1. `refused`: the vendor does not take it; `limited`: it has to wait. */
  keys: Type.Array(
    closed({
      key: Type.Integer({ minimum: 1 }),
      resting: nullable(word(['refused', 'limited'])),
      until: nullable(Moment)
    })
  )
})
export type TargetAnswer = Static<typeof TargetAnswer>

/** `changes`: what differs in the routing table. `restart`: what differs besides, and only counts after a restart. */
export const ReloadAnswer = closed({
  changes: Type.Array(
    closed({ path: Text, before: Type.Optional(Type.Unknown()), after: Type.Optional(Type.Unknown()) })
  ),
  restart: Type.Array(Text),
  hash: nullable(Text),
  applied: Type.Boolean()
})
export type ReloadAnswer = Static<typeof ReloadAnswer>

/** `next` goes into `after` for the next page; null: this was the last. */
export const ListAnswer = <Row extends TSchema>(row: Row) => closed({ data: Type.Array(row), next: nullable(Text) })
export interface List<Row> {
  readonly data: Row[]
  readonly next: string | null
}
