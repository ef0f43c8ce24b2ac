import type { FastifyInstance } from 'fastify'
import type { BudgetAnswer } from '../../schemas/admin-answers.ts'
import type { Budgets } from '../../schemas/budgets.ts'
import { detail, InvalidRequest } from '../../schemas/errors.ts'
import { usdOf } from '../../schemas/money.ts'
import type { Admin } from './index.ts'
import { usdOrNull } from './shapes.ts'
import { isoOrNull } from './time.ts'

const unlimited: BudgetAnswer = {
  configured: false,
  limit_usd: null,
  spend_usd: 0,
  reserved_usd: 0,
  remaining_usd: null,
  period: null,
  resets_at: null,
  hard_stop: false,
  warning_threshold: null,
  warned: false
}

/** GET /budget/stats, POST /budget/reset. */
export function budgetRoutes(scope: FastifyInstance, { gateway, actor }: Admin): void {
  const { budgets } = gateway

  if (budgets !== undefined) {
    scope.get('/budget/stats', async () => statsOf(budgets))
    scope.post('/budget/reset', async request => {
      if ((await budgets.gateway()) === null) {
        throw detail(
          new InvalidRequest(
            'The gateway has no budget of its own to reset: set budget.dailyLimitUsd in the configuration.'
          ),
          { statusCode: 409 }
        )
      }
      await budgets.reset(actor(request))
      return statsOf(budgets)
    })
  }
}

async function statsOf(budgets: Budgets): Promise<BudgetAnswer> {
  const state = await budgets.gateway()
  if (state === null) return unlimited
  const used = BigInt(state.spent) + BigInt(state.held)
  const rest = state.limit === null ? null : BigInt(state.limit) - used
  return {
    configured: true,
    limit_usd: usdOrNull(state.limit),
    spend_usd: usdOf(state.spent),
    reserved_usd: usdOf(state.held),
    remaining_usd: usdOrNull(rest !== null && rest < 0n ? 0 : rest),
    period: state.period,
    resets_at: isoOrNull(state.resetsAt),
    hard_stop: state.hardStop,
    warning_threshold: state.warningThreshold,
    warned: state.warned
  }
}
