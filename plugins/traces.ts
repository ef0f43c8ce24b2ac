import type { FastifyInstance } from 'fastify'
import fp from 'fastify-plugin'
import { TracesQuery } from '../schemas/admin.ts'
import type { List, TraceAnswer } from '../schemas/admin-answers.ts'
import { type CallRecord, recordOf } from '../schemas/call-record.ts'
import type { Inference, Outcome } from '../schemas/gateway.ts'
import { usdOf } from '../schemas/money.ts'

/** Ended calls that are kept, whosever they are. */
const most = 200

/** GET /api/traces: the last calls of this process, for the administrator; refused ones and running ones too. */
async function traces(app: FastifyInstance): Promise<void> {
  const { gateway } = app
  if (gateway.authenticate === undefined) {
    gateway.log.warn({}, 'GET /api/traces is off: without the plugin auth anybody would be the administrator')
    return
  }
  const ended: CallRecord[] = []
  /** Where the next one goes. */
  let next = 0

  /** One for all calls. */
  function keep(outcome: Outcome): void {
    ended[next] = outcome.record
    next = (next + 1) % most
  }

  function shown(query: TracesQuery): TraceAnswer[] {
    const running = Array.from(gateway.calls(), runningShape)
    const past = [...ended.slice(next), ...ended.slice(0, next)].reverse().map(record => traceShape(record))
    return [...running, ...past]
      .filter(trace => fits(trace, query))
      .sort((one, other) => (one.time < other.time ? 1 : one.time > other.time ? -1 : 0))
      .slice(0, Number(query.limit ?? most))
  }

  gateway.intercept('observe', (inference, next) => {
    inference.onSettled(keep)
    return next(inference)
  })
  gateway.http.admin(app, scope => {
    scope.get<{ Querystring: TracesQuery }>(
      '/api/traces',
      { schema: { querystring: TracesQuery } },
      async (request): Promise<List<TraceAnswer>> => ({ data: shown(request.query), next: null })
    )
  })
}

/** What is known of a call that runs. */
function runningShape(inference: Inference): TraceAnswer {
  const duration = performance.now() - inference.started
  const record = recordOf(inference, { status: 'completed', error: null, duration, departed: false })
  return { ...traceShape(record), status: 'open', http_status: null, cost_usd: null, duration_ms: null }
}

function traceShape(record: CallRecord): TraceAnswer {
  return {
    id: record.id,
    time: new Date(record.time).toISOString(),
    tenant: record.tenant,
    key: record.key,
    caller: record.caller,
    lane: record.lane,
    model: record.model,
    stream: record.stream,
    status: record.status,
    http_status: record.httpStatus,
    provider: record.provider,
    upstream_model: record.target,
    error_code: record.error,
    error_message: record.message,
    tokens_in: record.tokensIn,
    tokens_out: record.tokensOut,
    usage_source: record.usage.source,
    cost_usd: record.cost === null ? null : usdOf(record.cost),
    duration_ms: rounded(record.duration),
    ttft_ms: record.firstToken === null ? null : rounded(record.firstToken),
    attempts: record.attempts,
    retries: record.retries,
    fallbacks: record.fallbacks,
    cache: record.cache,
    trace_id: record.traceId,
    config_hash: record.config
  }
}

/** As records have them: a millisecond has no more than three places that mean something. */
function rounded(milliseconds: number): number {
  return Math.round(milliseconds * 1_000) / 1_000
}

function fits(trace: TraceAnswer, { id, tenant, model, provider, status, trace_id }: TracesQuery): boolean {
  return (
    (id === undefined || trace.id === id) &&
    (tenant === undefined || trace.tenant === tenant) &&
    (model === undefined || trace.model === model) &&
    (provider === undefined || trace.provider === provider) &&
    (status === undefined || trace.status === status) &&
    (trace_id === undefined || trace.trace_id === trace_id)
  )
}

export default fp(traces, { fastify: '5.x', name: 'traces', dependencies: ['http'] })
