import { type GatewayError, InsufficientQuota } from '../../schemas/errors.ts'
import { usdText } from '../../schemas/money.ts'
import type { Account } from './account.ts'
import type { BudgetHold } from './hold.ts'

const adjectives = { total: 'The', hour: 'The hourly', day: 'The daily', week: 'The weekly', month: 'The monthly' }

/** The account that refuses a hold, and why: whoever listens is told, the caller gets the rest. */
export function refuse(hold: BudgetHold, account: Account, spent: bigint, held: number, bound: number): GatewayError {
  hold.refused(account, spent, held, bound)
  return refusal(account, spent, held, bound)
}

/**
 * Says which budget refuses, what is left of it, what the call may cost, and when there is more. Money in nano-USD. Of the
 * gateway's budget no amounts: they would tell each tenant what the others spend.
 */
function refusal(account: Account, spent: bigint, held: number, bound: number): GatewayError {
  const limit = BigInt(account.limit ?? 0)
  const left = limit - spent
  const name = `${adjectives[account.period]} budget of ${whose(account)}`
  const cost = `this call may cost up to $${usdText(bound)}`
  const resets = account.ends === Number.POSITIVE_INFINITY ? 'It does not reset' : `It resets at ${isoOf(account.ends)}`
  if (account.kind === 'gateway') {
    return new InsufficientQuota(
      BigInt(bound) > left
        ? `${name} is used up, or what is left of it is less than this call may cost. ${resets}.`
        : `${name} is held by calls in flight. What they do not use is free again when they end. ${resets}.`
    )
  }
  if (left <= 0n) {
    return new InsufficientQuota(
      `${name} is used up: $${usdText(spent)} of $${usdText(limit)} are spent, $0 is left, and ${cost}. ${resets}.`
    )
  }
  if (BigInt(bound) > left) {
    return new InsufficientQuota(
      `${name} has $${usdText(left)} left of $${usdText(limit)}, and ${cost}. ${resets}. Lower max_tokens or send less.`
    )
  }
  const free = left - BigInt(held)
  return new InsufficientQuota(
    `${name} has $${usdText(left)} left of $${usdText(limit)}, but calls in flight hold $${usdText(held)} of it, which leaves ` +
      `$${usdText(free > 0n ? free : 0n)}, and ${cost}. What they do not use is free again when they end. ${resets}.`
  )
}

function whose({ kind, id }: Account): string {
  return kind === 'gateway' ? 'this gateway' : `the ${kind} \`${id}\``
}

function isoOf(time: number): string {
  return new Date(time).toISOString()
}
