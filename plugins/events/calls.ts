import { codeOf } from '../../schemas/call-record.ts'
import { withoutKeys } from '../../schemas/errors.ts'
import type { AboutAttempt, AboutCall, EventBus, Taken } from '../../schemas/events.ts'
import type { Answer, Dispatch, Expense, Gateway, Inference, Outcome, Target } from '../../schemas/gateway.ts'
import { usdOf } from '../../schemas/money.ts'
import type { Attempt } from '../../schemas/provider.ts'
import { inputOf, outputOf, type Usage } from '../../schemas/usage.ts'

/** Characters of a name that comes from a caller. */
const longestName = 256

/** Tells the bus of each step of each call: its start, its attempts, its first token, and its end, once and last. */
export function tellOfCalls(gateway: Gateway): void {
  const { events } = gateway

  // One function for all calls, and nothing of a call in it.
  const settled = ({ record }: Outcome, inference: Inference) => {
    if (!events.heard) return
    const { status, httpStatus, error, usage, cost, duration, firstToken } = record
    events.emit('model.request.complete', {
      ...aboutCall(inference),
      stream: record.stream,
      provider: record.provider,
      target_model: record.target === null ? null : name(record.target),
      status,
      http_status: httpStatus,
      ...taken(error, usage, cost, duration, firstToken),
      tokens_cached: usage.cacheRead,
      tokens_reasoning: usage.reasoning,
      attempts: record.attempts,
      retries: record.retries,
      fallbacks: record.fallbacks,
      cache: record.cache
    })
  }

  const ended = (expense: Expense) => {
    if (!events.heard || expense.status === 'open') return
    const { inference, target, number, status, error, usage, cost, duration, firstToken } = expense
    events.emit('model.attempt.complete', {
      ...aboutAttempt(inference, target, number),
      status,
      ...taken(error === null ? null : codeOf(error), usage, cost, duration ?? 0, firstToken)
    })
  }

  gateway.intercept('observe', (inference, next) => {
    if (!events.heard) return next(inference)
    const stream = inference.request.stream === true
    events.emit('model.request.start', { ...aboutCall(inference), stream })
    inference.onSettled(settled)
    return stream ? streamed(events, inference, next) : next(inference)
  })

  gateway.interceptAttempt((attempt, next) => {
    if (events.heard) {
      begin(events, attempt)
      attempt.entry.onEnded(ended)
    }
    return next(attempt)
  })
}

/** Dispatch answers with a stream when its first token is there. A call that has ended meanwhile says nothing more. */
async function streamed(events: EventBus, inference: Inference, next: Dispatch): Promise<Answer> {
  const answer = await next(inference)
  if (answer.stream && !inference.signal.aborted && events.heard) {
    const { target, firstToken } = inference.facts
    events.emit('model.streaming.start', {
      ...aboutCall(inference),
      provider: target?.provider.name ?? null,
      target_model: target === null ? null : name(target.model),
      first_token_ms: rounded(firstToken)
    })
  }
  return answer
}

function begin(events: EventBus, { inference, target, number }: Attempt): void {
  const about = aboutAttempt(inference, target, number)
  const last = inference.expenses[number - 2]
  if (last !== undefined) {
    // Of two at a time the first one is not over yet.
    const reason = last.status === 'open' ? 'hedge' : codeOf(last.error)
    if (last.target === target) events.emit('model.retry', { ...about, reason })
    else {
      const [from, to] = [nameOf(last.target), nameOf(target)]
      events.emit('model.fallback', { ...aboutCall(inference), attempt: number, from, to, reason })
    }
  }
  events.emit('model.attempt.start', about)
}

function aboutCall({ id, principal, route, facts }: Inference): AboutCall {
  return {
    id,
    tenant: name(principal.tenant),
    key: principal.key,
    model: name(route.alias),
    trace_id: facts.traceId
  }
}

function aboutAttempt(inference: Inference, target: Target, attempt: number): AboutAttempt {
  return { ...aboutCall(inference), attempt, provider: target.provider.name, target_model: name(target.model) }
}

function taken(
  error: string | null,
  usage: Usage,
  cost: number | null,
  duration: number,
  firstToken: number | null
): Taken {
  return {
    error,
    tokens_in: inputOf(usage),
    tokens_out: outputOf(usage),
    usage_source: usage.source,
    usd: cost === null ? null : usdOf(cost),
    duration_ms: Math.round(duration * 100) / 100,
    first_token_ms: rounded(firstToken)
  }
}

function rounded(milliseconds: number | null): number | null {
  return milliseconds === null ? null : Math.round(milliseconds * 100) / 100
}

function nameOf({ provider, model }: Target): string {
  return `${provider.name}/${name(model)}`
}

/** Callers may write anything where a name belongs. */
function name(text: string): string {
  return withoutKeys(text.length > longestName ? text.slice(0, longestName) : text)
}
