import { codeOf } from '../../schemas/call-record.ts'
import { isGatewayError } from '../../schemas/errors.ts'
import type { Expense, Gateway, Inference, Outcome } from '../../schemas/gateway.ts'
import { buckets, inputOf, outputOf } from '../../schemas/usage.ts'
import { type Count, type Families, seconds } from './families.ts'
import { createTitan } from './legacy.ts'
import { createTable } from './table.ts'

/** Bounds for output tokens per second. */
const speeds = [1, 2, 5, 10, 20, 35, 50, 75, 100, 150, 200, 300, 500, 1_000]
/** Error codes that become labels. Ours are fewer; a host's layers may bring their own. */
const mostCodes = 64

export interface CallsOptions {
  /** Models and tenants that become labels. */
  maxModels: number
  maxTenants: number
  /** The names of the predecessor as well. */
  titan: boolean
}

/** Counts calls, by what became of them. */
export interface Calls {
  /** One listener for all calls. */
  settled(outcome: Outcome, inference: Inference): void
  /** A call was turned away before it began. */
  turnedAway(error: unknown): void
  /** Keeps labels for the aliases of the routing table, before any other name takes them. */
  reserve(): void
  /** Tenants that are labels. */
  tenants(): string[]
  /** Calls that a limit of their tenant or key has refused. */
  readonly rateLimited: number
}

export function createCalls(gateway: Gateway, families: Families, options: CallsOptions): Calls {
  const { counter, spend, histogram } = families
  const requests = counter('gateway_requests_total', 'Calls that have ended.', ['model', 'outcome', 'stream'])
  const duration = histogram('gateway_request_duration_seconds', 'Of calls, until everything is settled.', seconds, [
    'model',
    'stream'
  ])
  const firstToken = histogram(
    'gateway_first_token_seconds',
    'From the start of a stream to its first token.',
    seconds,
    ['model']
  )
  const speed = histogram(
    'gateway_output_tokens_per_second',
    'Of answered calls: for streams from the first token on, else over the whole call.',
    speeds,
    ['model']
  )
  const tokens = counter('gateway_tokens_total', 'Tokens by kind; the kinds are disjoint.', ['model', 'bucket'])
  const cost = spend('gateway_cost_usd_total', 'What calls have cost, by model.', ['model'])
  const retries = counter('gateway_retries_total', 'Provider calls that repeated the last target.', ['model'])
  const fallbacks = counter('gateway_fallbacks_total', 'Provider calls that moved on to another target.', ['model'])
  const unpriced = counter('gateway_unpriced_calls_total', 'Calls whose cost nobody knows.', ['model'])
  const cached = counter('gateway_cache_total', 'Calls by what a cache had for them.', ['cache'])
  const errors = counter('gateway_errors_total', 'Calls that failed after a provider was asked, by code.', ['code'])
  const refused = counter('gateway_refused_total', 'Calls that ended before a provider was asked, by code.', ['code'])
  const exceeded = counter('llm_budget_exceeded_total', 'Calls that a budget refused.')({})
  const tenantRequests = counter('gateway_tenant_requests_total', 'Calls that have ended, by tenant.', [
    'tenant',
    'outcome'
  ])
  const tenantCost = spend('llm_cost_total', 'What calls have cost, in USD.', ['tenant'])
  const tenantTokens = counter('llm_tokens_total', 'Tokens in and out.', ['model', 'tenant', 'type'])
  const attempts = counter('gateway_attempts_total', 'Provider calls by what became of them.', ['provider', 'outcome'])
  const attemptDuration = histogram('gateway_attempt_duration_seconds', 'Of provider calls.', seconds, ['provider'])
  const providerCost = spend('gateway_provider_cost_usd_total', 'What calls have cost, by provider.', ['provider'])
  const usages = counter(
    'gateway_usage_total',
    'Provider calls with tokens, by who counted them: the provider, or this gateway.',
    ['provider', 'source']
  )
  const mismatches = counter('gateway_usage_mismatches_total', 'Usage reports that contradict themselves.', [
    'provider'
  ])

  const titan = options.titan ? createTitan(families) : null

  const models = createTable(options.maxModels, modelSeries)
  const tenants = createTable(options.maxTenants, tenantSeries)
  const errorCodes = createTable(mostCodes, code => errors({ code }))
  const refusalCodes = createTable(mostCodes, code => refused({ code }))
  const caches = createTable(3, cache => cached({ cache }))
  /** Their names stand in the configuration. */
  const providers = new Map<string, ReturnType<typeof providerSeries>>()
  let rateLimited = 0

  function modelSeries(model: string) {
    const labels = { model }
    return {
      model,
      whole: kindSeries(model, false),
      streamed: kindSeries(model, true),
      firstToken: firstToken(labels),
      speed: speed(labels),
      tokens: createSeries(bucket => tokens({ model, bucket })),
      cost: cost(labels),
      retries: retries(labels),
      fallbacks: fallbacks(labels),
      unpriced: unpriced(labels),
      titan: titan === null ? null : titan.model(model),
      /** By tenant. */
      pairs: new Map<object, { input: Count; output: Count }>()
    }
  }

  function kindSeries(model: string, isStream: boolean) {
    const stream = String(isStream)
    return {
      requests: createSeries(outcome => requests({ model, outcome, stream })),
      duration: duration({ model, stream })
    }
  }

  function tenantSeries(tenant: string) {
    return {
      tenant,
      requests: createSeries(outcome => tenantRequests({ tenant, outcome })),
      cost: tenantCost({ tenant })
    }
  }

  function providerSeries(provider: string) {
    return {
      attempts: createSeries(outcome => attempts({ provider, outcome })),
      duration: attemptDuration({ provider }),
      cost: providerCost({ provider }),
      reported: usages({ provider, source: 'reported' }),
      estimated: usages({ provider, source: 'estimated' }),
      mismatches: mismatches({ provider })
    }
  }

  function modelOf({ status, model }: Outcome['record']) {
    // What only callers say is no label before it has been answered.
    return models.get(model) ?? (status === 'settled' ? models.admit(model) : models.rest)
  }

  function tenantOf({ status, attempts, tenant }: Outcome['record']) {
    const known = tenants.get(tenant)
    if (known !== undefined) return known
    const exists = attempts > 0 || status === 'settled' || gateway.tenants?.get(tenant) !== undefined
    return exists ? tenants.admit(tenant) : tenants.rest
  }

  function settled(outcome: Outcome, { expenses }: Inference): void {
    const { record, error } = outcome
    const { status, usage, duration, firstToken, tokensIn, tokensOut } = record
    const isRefused = record.attempts === 0 && status !== 'settled'
    const ending = isRefused && status === 'failed' ? 'refused' : status
    const model = modelOf(record)
    const tenant = tenantOf(record)
    const kind = record.stream ? model.streamed : model.whole
    kind.requests(ending).value++
    tenant.requests(ending).value++
    caches.admit(record.cache).value++
    if (model.titan !== null) model.titan.requests.value++
    if (isRefused) turnAway(record.error, error)
    else kind.duration.observe(duration / 1_000)
    if (record.attempts === 0) return

    let cost = 0
    for (const expense of expenses) cost += attempted(expense)
    model.cost.add(cost)
    tenant.cost.add(cost)
    titan?.cost.add(cost)
    model.titan?.latency.observe(duration / 1_000)
    model.retries.value += record.retries
    model.fallbacks.value += record.fallbacks
    if (record.cost === null && gateway.pricing !== undefined) model.unpriced.value++
    if (firstToken !== null) model.firstToken.observe(firstToken / 1_000)
    if (tokensIn + tokensOut > 0) {
      for (const bucket of buckets) if (usage[bucket] > 0) model.tokens(bucket).value += usage[bucket]
      const pair = pairOf(model, tenant)
      pair.input.value += tokensIn
      pair.output.value += tokensOut
    }
    if (status === 'failed') errorCodes.admit(labelOf(record.error, error)).value++
    if (status === 'settled') pace(model, record)
  }

  /** @returns what it cost, nano-USD */
  function attempted({ target, status, error, duration, usage, cost }: Expense): number {
    const { name } = target.provider
    let provider = providers.get(name)
    if (provider === undefined) providers.set(name, (provider = providerSeries(name)))
    provider.attempts(status === 'failed' ? blameOf(error) : status).value++
    provider.duration.observe((duration ?? 0) / 1_000)
    if (cost !== null) provider.cost.add(cost)
    if (usage.mismatch) provider.mismatches.value++
    if (inputOf(usage) + outputOf(usage) > 0) provider[usage.source].value++
    return cost ?? 0
  }

  function pairOf(model: ReturnType<typeof modelSeries>, tenant: ReturnType<typeof tenantSeries>) {
    let pair = model.pairs.get(tenant)
    if (pair === undefined) {
      const labels = { model: model.model, tenant: tenant.tenant }
      pair = {
        input: tenantTokens({ ...labels, type: 'input' }),
        output: tenantTokens({ ...labels, type: 'output' })
      }
      model.pairs.set(tenant, pair)
    }
    return pair
  }

  function pace(model: ReturnType<typeof modelSeries>, { tokensOut, duration, firstToken }: Outcome['record']): void {
    // The first token of a stream is there before its time begins.
    const made = firstToken === null ? tokensOut : tokensOut - 1
    const time = duration - (firstToken ?? 0)
    if (made > 0 && time > 0) model.speed.observe((made * 1_000) / time)
  }

  function turnAway(code: string | null, error: unknown): void {
    const label = labelOf(code, error)
    refusalCodes.admit(label).value++
    if (label === 'rate_limit_exceeded') rateLimited++
    if (label !== 'insufficient_quota') return
    exceeded.value++
    if (titan !== null) titan.exceeded.value++
  }

  return {
    settled,
    turnedAway(error) {
      const model = models.rest
      model.whole.requests('refused').value++
      if (model.titan !== null) model.titan.requests.value++
      turnAway(codeOf(error), error)
    },
    reserve() {
      for (const { alias } of gateway.models.routes()) models.reserve(alias)
    },
    tenants: tenants.names,
    get rateLimited() {
      return rateLimited
    }
  }
}

/** Series by a label of which there are a few. */
function createSeries(make: (label: string) => Count): (label: string) => Count {
  const made = new Map<string, Count>()
  return label => {
    let count = made.get(label)
    if (count === undefined) made.set(label, (count = make(label)))
    return count
  }
}

/** Whom a failed provider call is blamed on. */
function blameOf(error: unknown): string {
  return (isGatewayError(error) ? error.blame : null) ?? 'error'
}

/** A vendor's own code is no label: it is whatever the vendor writes. */
function labelOf(code: string | null, error: unknown): string {
  const isRejected = isGatewayError(error) && (error.blame === 'request' || error.code === 'GATEWAY_UPSTREAM_REJECTED')
  return isRejected ? 'upstream_rejected' : (code ?? 'none')
}
