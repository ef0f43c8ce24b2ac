import type { FastifyInstance } from 'fastify'
import fp from 'fastify-plugin'
import type { StatsAnswer } from '../schemas/admin-answers.ts'
import { usdOf } from '../schemas/money.ts'

export interface StatsOptions {
  /** Milliseconds that the database may take; then what this process knows is answered. Default 1,000. */
  patience?: number
}

/** GET /api/stats: what all calls come to, for the administrator. Without the plugin ledger nobody has counted. */
async function stats(app: FastifyInstance, options: StatsOptions): Promise<void> {
  const { gateway } = app
  const ledger = gateway.optional('ledger', 'stats')
  if (ledger === undefined) return
  if (gateway.authenticate === undefined) {
    gateway.log.warn({}, 'GET /api/stats is off: without the plugin auth anybody would be the administrator')
    return
  }
  const started = Date.now()
  const patience = options.patience ?? 1_000

  gateway.http.admin(app, scope => {
    scope.get('/api/stats', async (): Promise<StatsAnswer> => {
      const everywhere = await inTime(ledger.sums(), patience)
      const { requests, tokensIn, tokensOut, cost } = everywhere ?? ledger.totals()
      const { overrun = 0, unpriced = 0 } = gateway.budgets?.counters ?? {}
      return {
        requests,
        tokens_in: tokensIn,
        tokens_out: tokensOut,
        cost_total_usd: usdOf(cost),
        complete: everywhere !== null,
        running: gateway.running,
        refused: Object.fromEntries(ledger.refused),
        overrun,
        unpriced,
        usage_mismatches: ledger.mismatches,
        started_at: new Date(started).toISOString(),
        uptime_s: Math.round((Date.now() - started) / 1_000)
      }
    })
  })
}

/** Null for what fails or takes longer. */
async function inTime<Value>(asked: Promise<Value>, patience: number): Promise<Value | null> {
  const late = Promise.withResolvers<null>()
  const timer = setTimeout(late.resolve, patience, null)
  try {
    return await Promise.race([asked, late.promise])
  } catch {
    return null
  } finally {
    clearTimeout(timer)
  }
}

export default fp(stats, { fastify: '5.x', name: 'stats', dependencies: ['http'] })
