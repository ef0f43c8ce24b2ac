import { codeOf } from '../../schemas/call-record.ts'
import { withoutKeys } from '../../schemas/errors.ts'
import type { Expense, Inference } from '../../schemas/gateway.ts'
import type { AttemptOpen } from '../../schemas/journal.ts'
import type { Pricing } from '../../schemas/pricing.ts'
import { noUsage } from '../../schemas/usage.ts'
import type { RecentAttempt } from './recents.ts'

/** Output that is likely where nobody has capped it, per choice. */
const likelyOutput = 1_000

/** What an attempt is likely to use, for the limits and for the case that nobody lives to say how it ended. */
export function attemptOf({ inference, target, number }: Expense, pricing: Pricing | undefined): AttemptOpen {
  const input = inference.size.estimate
  const output = (inference.maxOutputTokens ?? likelyOutput) * (inference.request.n ?? 1)
  return {
    number,
    provider: target.provider.name,
    model: withoutKeys(target.model),
    priceVersion: pricing?.of(target)?.version ?? null,
    input,
    output,
    cost: pricing?.estimate(target, input, output) ?? null
  }
}

/** An attempt that has begun, as it is kept in memory. */
export function recentOf({ number, provider, model, priceVersion }: AttemptOpen): RecentAttempt {
  return {
    number,
    provider,
    model,
    status: 'open',
    errorCode: null,
    duration: 0,
    firstToken: null,
    cost: null,
    priceVersion,
    usage: noUsage
  }
}

/** How the attempt before this one ended; `open` where it still runs. */
export function endOf({ expenses }: Inference, attempt: RecentAttempt | undefined, number: number): RecentAttempt {
  const expense = expenses[number - 2]
  if (attempt === undefined || expense === undefined) throw new Error('An attempt follows one that nobody opened.')
  fill(attempt, expense)
  return attempt
}

/** Notes how an attempt stands. */
export function fill(attempt: RecentAttempt, expense: Expense): void {
  attempt.status = expense.status
  attempt.errorCode = expense.error === null ? null : codeOf(expense.error)
  attempt.duration = expense.duration ?? 0
  attempt.firstToken = expense.firstToken
  attempt.cost = expense.cost
  attempt.usage = expense.usage
}
