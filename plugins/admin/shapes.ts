import type { AttemptAnswer, KeyAnswer, RecordAnswer, TenantAnswer, UsageAnswer } from '../../schemas/admin-answers.ts'
import type { AttemptRecord, LedgerRecord } from '../../schemas/ledger.ts'
import { usdOf } from '../../schemas/money.ts'
import type { ApiKey, Tenant } from '../../schemas/tenants.ts'
import { inputOf, outputOf, type Usage } from '../../schemas/usage.ts'
import type { Spending } from './spending.ts'
import { isoOf, isoOrNull } from './time.ts'

// How the books look over HTTP: the schemas of schemas/admin-answers.ts.

export function usdOrNull(nano: number | bigint | null): number | null {
  return nano === null ? null : usdOf(nano)
}

export function tenantShape(tenant: Tenant, spending: Spending): TenantAnswer {
  return {
    id: tenant.id,
    budget_usd: usdOrNull(tenant.budget.limit),
    period: tenant.budget.period,
    ...spending,
    active: tenant.active,
    open: tenant.open,
    allow_models: tenant.allowModels === null ? null : [...tenant.allowModels],
    max_output_tokens: tenant.maxOutputTokens,
    max_request_usd: usdOrNull(tenant.maxRequest),
    requests_per_minute: tenant.requestsPerMinute,
    tokens_per_minute: tenant.tokensPerMinute,
    concurrency: tenant.concurrency,
    metadata: tenant.metadata,
    source: tenant.source,
    created_at: tenant.source === 'config' ? null : isoOf(tenant.createdAt)
  }
}

export function keyShape(key: ApiKey, spending: Spending, now: number): KeyAnswer {
  return {
    id: key.id,
    tenant: key.tenant,
    name: key.name,
    scopes: [...key.scopes],
    active: key.revokedAt === null && (key.expiresAt === null || key.expiresAt > now),
    budget_usd: usdOrNull(key.budget?.limit ?? null),
    period: key.budget?.period ?? null,
    ...spending,
    requests_per_minute: key.requestsPerMinute,
    tokens_per_minute: key.tokensPerMinute,
    concurrency: key.concurrency,
    expires_at: isoOrNull(key.expiresAt),
    created_at: isoOf(key.createdAt),
    last_used_at: isoOrNull(key.lastUsedAt),
    revoked_at: isoOrNull(key.revokedAt),
    rotated_to: key.rotatedTo
  }
}

export function recordShape(record: LedgerRecord): RecordAnswer {
  const answered = record.attempts.at(-1)
  return {
    id: record.id,
    time: isoOf(record.time),
    tenant: record.tenant,
    key: record.key,
    model: record.model,
    stream: record.stream,
    http_status: record.httpStatus,
    provider: answered?.provider ?? null,
    upstream_model: answered?.model ?? null,
    ...measures(record),
    trace_id: record.traceId,
    user: record.user,
    tags: record.tags,
    config_hash: record.config,
    attempts: record.attempts.map(attemptShape)
  }
}

function attemptShape(attempt: AttemptRecord): AttemptAnswer {
  return {
    number: attempt.number,
    provider: attempt.provider,
    upstream_model: attempt.model,
    price_version: attempt.priceVersion,
    ...measures(attempt)
  }
}

function measures(row: LedgerRecord | AttemptRecord) {
  return {
    status: row.status,
    error_code: row.errorCode,
    tokens_in: inputOf(row.usage),
    tokens_out: outputOf(row.usage),
    usage: usageShape(row.usage),
    usage_source: row.usage.source,
    cost_usd: usdOrNull(row.cost),
    duration_ms: row.duration,
    ttft_ms: row.firstToken
  }
}

function usageShape(usage: Usage): UsageAnswer {
  return {
    input: usage.input,
    cache_read: usage.cacheRead,
    cache_write_5m: usage.cacheWrite5m,
    cache_write_1h: usage.cacheWrite1h,
    audio_input: usage.audioInput,
    output: usage.output,
    reasoning: usage.reasoning,
    audio_output: usage.audioOutput
  }
}
