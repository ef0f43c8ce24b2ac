import type { FastifyInstance } from 'fastify'
import type { Test } from 'tap'
import { usdOf } from '../../../schemas/money.ts'
import { scrape } from './exposition.ts'

/**
 * Holds the counters to the books: tokens, money to the nano-USD, calls, refusals.
 *
 * @param repeats calls that got an answer which was kept, and stand in no book
 */
export async function equalsLedger(
  t: Test,
  app: FastifyInstance,
  tenants: readonly string[],
  repeats = 0
): Promise<void> {
  const { store, ledger } = app.gateway
  if (store === undefined || ledger === undefined) throw new Error('There are no books.')
  const { value } = await scrape(app)
  const totals = ledger.totals()
  t.equal(value('llm_tokens_total', { type: 'input' }), totals.tokensIn, 'input tokens')
  t.equal(value('llm_tokens_total', { type: 'output' }), totals.tokensOut, 'output tokens')
  t.equal(value('gateway_tokens_total'), totals.tokensIn + totals.tokensOut, 'tokens by kind')
  t.equal(value('gateway_request_duration_seconds_count'), totals.requests + repeats, 'calls')
  for (const name of ['gateway_cost_usd_total', 'titan_cost_usd_total']) {
    t.equal(value(name), usdOf(totals.cost), `${name} is the ledger's, to the nano-USD`)
  }
  t.equal(value('gateway_provider_cost_usd_total')?.toFixed(9), usdOf(totals.cost).toFixed(9), 'cost by provider')
  const balances = await store.ledger.balances(tenants.map(tenant => ({ scope: `tenant:${tenant}`, period: 'total' })))
  for (const [index, tenant] of tenants.entries()) {
    const balance = balances[index]
    t.equal(value('llm_cost_total', { tenant }), usdOf(balance?.spent ?? -1n), `what ${tenant} has spent`)
    const input = value('llm_tokens_total', { tenant, type: 'input' })
    t.equal(BigInt(input ?? -1), balance?.tokensIn, `input tokens of ${tenant}`)
  }
  for (const [code, refused] of ledger.refused) t.equal(value('gateway_refused_total', { code }), refused, code)
  t.equal(value('gateway_usage_mismatches_total'), ledger.mismatches, 'mismatches')
  t.equal(value('gateway_in_flight'), 0)
}
