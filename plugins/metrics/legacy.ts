import { type Families, seconds } from './families.ts'

/** What dashboards of a predecessor ask for: the same calls once more, under its names. */
export function createTitan({ counter, spend, histogram }: Families) {
  const requests = counter('titan_model_requests_total', 'Calls that have ended.', ['model'])
  const latency = histogram('titan_model_latency_seconds', 'Of calls that asked a provider.', seconds, ['model'])
  return {
    model: (model: string) => ({ requests: requests({ model }), latency: latency({ model }) }),
    cost: spend('titan_cost_usd_total', 'What calls have cost, in USD.')({}),
    exceeded: counter('titan_budget_exceeded_total', 'Calls that a budget refused.')({})
  }
}
