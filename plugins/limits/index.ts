import type { FastifyInstance } from 'fastify'
import fp from 'fastify-plugin'
import type { Admission, Answer, Dispatch, Inference, Outcome } from '../../schemas/gateway.ts'
import type { Limits } from '../../schemas/tenants.ts'
import { inputOf, outputOf } from '../../schemas/usage.ts'
import type { Demand } from './limiter.ts'
import { createMemory } from './memory.ts'
import { createRedis } from './redis.ts'

export interface LimitsOptions {
  /** Monotonic milliseconds. Given by tests; in Redis its own clock counts. */
  now?: () => number
}

/** Requests and tokens per minute and calls at once, per tenant and per key, on every lane. */
async function limits(app: FastifyInstance, options: LimitsOptions): Promise<void> {
  const { gateway } = app
  const shared = gateway.optional('shared', 'limits')
  const memory = createMemory(options.now ?? performance.now.bind(performance))
  const redis = shared === undefined ? null : createRedis(shared, memory)
  const limiter = redis ?? memory
  if (redis !== null) app.addHook('onClose', async () => redis.close())

  gateway.intercept('admit', (inference, next) => {
    const { tenant, apiKey } = inference.principal
    const tenantLimits = limiting(gateway.tenants?.get(tenant))
    const keyLimits = limiting(apiKey)
    // A layer that asks again is still one call.
    if ((tenantLimits === null && keyLimits === null) || inference.admission) return next(inference)
    const demand: Demand = {
      tenant,
      tenantLimits,
      key: apiKey?.account ?? apiKey?.id ?? '',
      keyLimits,
      tokens: tokensOf(inference, tenantLimits, keyLimits)
    }
    let admission: Admission | Promise<Admission>
    try {
      admission = limiter.admit(demand, inference.facts.headers)
    } catch (error) {
      return Promise.reject(error)
    }
    if (admission instanceof Promise) return enterLater(inference, admission, next)
    return enter(inference, admission, next)
  })
}

function enter(inference: Inference, admission: Admission, next: Dispatch): Promise<Answer> {
  inference.admission = admission
  // Told at once when the call has ended meanwhile.
  inference.onSettled(leave)
  return next(inference)
}

async function enterLater(inference: Inference, admission: Promise<Admission>, next: Dispatch): Promise<Answer> {
  return enter(inference, await admission, next)
}

function leave(outcome: Outcome, inference: Inference): void {
  let tokens: number | null = null
  try {
    tokens = usedBy(outcome, inference)
  } finally {
    inference.admission?.end(tokens)
  }
}

/** Null when nothing is limited: such a tenant or key is not counted at all. */
function limiting(limits: Limits | undefined): Limits | null {
  if (limits === undefined) return null
  const { requestsPerMinute, tokensPerMinute, concurrency } = limits
  return requestsPerMinute === null && tokensPerMinute === null && concurrency === null ? null : limits
}

/**
 * What a call counts for until it has ended: its input, and as much output as it may bring. Of a cap that the client has
 * not asked for, only so much counts as fits into a minute: otherwise a cap above the limit would refuse every call.
 */
function tokensOf(inference: Inference, one: Limits | null, other: Limits | null): number {
  const limit = Math.min(one?.tokensPerMinute ?? Infinity, other?.tokensPerMinute ?? Infinity)
  if (limit === Infinity) return 0
  const { request, size, maxOutputTokens } = inference
  const input = size.estimate
  if (maxOutputTokens === null) return input
  const output = maxOutputTokens * Math.max(1, request.n ?? 1)
  const asked = request.max_completion_tokens ?? request.max_tokens
  if (typeof asked === 'number' && asked <= maxOutputTokens) return input + output
  return input + Math.max(0, Math.min(output, limit - input))
}

/** All tokens of all provider calls, cached ones too; null where nobody counted them. */
function usedBy(outcome: Outcome, inference: Inference): number | null {
  const { expenses } = inference
  if (expenses.length === 0) return 0
  let tokens = 0
  for (const expense of expenses) {
    if (!expense.metered) {
      const { usage } = inference
      // Without books only the last report is known; an answer without one took what it was expected to take.
      if (usage.source === 'reported') return inputOf(usage) + outputOf(usage)
      return outcome.status === 'failed' ? 0 : null
    }
    tokens += inputOf(expense.usage) + outputOf(expense.usage)
  }
  return tokens
}

export default fp(limits, { fastify: '5.x', name: 'limits', dependencies: ['tenants'] })
