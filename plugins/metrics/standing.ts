import type { BudgetState } from '../../schemas/budgets.ts'
import type { Gateway } from '../../schemas/gateway.ts'
import { usdOf } from '../../schemas/money.ts'
import type { Calls } from './calls.ts'
import type { Families, Labels, Reading } from './families.ts'

const none: Labels = {}
const breakerStates = { closed: 0, 'half-open': 1, open: 2 }

/**
 * What other plugins know, read when somebody asks: all of it is in memory, nobody waits for Redis or the database.
 * Only what is there is shown. Once everything is loaded.
 */
export function readStanding(gateway: Gateway, { gauge, counter }: Readers, calls: Calls): void {
  const { targets, rateLimit, budgets, store, shared, ledger, tracing, eventStream } = gateway

  gauge('gateway_in_flight', 'Calls in progress.', [], () => [[none, gateway.running]])

  gauge('gateway_target_in_flight', 'Provider calls in progress, by target.', ['provider', 'model'], () =>
    targets.standing().targets.map(({ provider, model, running }) => [{ provider, model }, running])
  )
  gauge('gateway_target_queued', 'Calls that wait for a place at a target.', ['provider', 'model'], () =>
    targets.standing().targets.map(({ provider, model, queued }) => [{ provider, model }, queued])
  )
  gauge('gateway_breaker_state', '0: closed, 1: half-open, 2: open.', ['provider', 'model'], () =>
    targets.standing().targets.map(({ provider, model, state }) => [{ provider, model }, breakerStates[state]])
  )
  gauge('gateway_keys_cooling', 'Keys of a provider that rest, by why.', ['provider', 'reason'], () =>
    [...targets.standing().resting].flatMap(([provider, { refused, limited }]): Reading[] => [
      [{ provider, reason: 'refused' }, refused],
      [{ provider, reason: 'limited' }, limited]
    ])
  )

  counter('gateway_rate_limited_total', 'Requests that a limit refused.', ['by'], () => [
    [{ by: 'limits' }, calls.rateLimited],
    ...Object.entries(rateLimit?.refused ?? {}).map(([by, refused]): Reading => [{ by }, refused])
  ])

  if (budgets !== undefined) {
    const amount = (of: (state: BudgetState) => number | bigint | null) => () => budgetsOf(gateway, calls.tenants(), of)
    const labels = ['scope', 'tenant']
    gauge(
      'gateway_budget_limit_usd',
      'Budgets that have a limit.',
      labels,
      amount(({ limit }) => limit)
    )
    gauge(
      'gateway_budget_spent_usd',
      'Spent in the running period.',
      labels,
      amount(({ spent }) => spent)
    )
    gauge(
      'gateway_budget_reserved_usd',
      'Held by calls in flight.',
      labels,
      amount(({ held }) => held)
    )
    gauge('gateway_budget_remaining_usd', 'What is neither spent nor held.', labels, amount(remaining))
    counter('gateway_budget_overrun_total', 'Calls that cost more than could be foreseen.', [], () => [
      [none, budgets.counters.overrun]
    ])
  }

  if (store !== undefined) {
    gauge('gateway_store_up', '1 while the database can be reached and takes the ledger.', [], () => [
      [none, store.state.ok ? 1 : 0]
    ])
  }
  if (store !== undefined && ledger !== undefined) {
    gauge(
      'gateway_ledger_backlog_bytes',
      'Of the journal that the database does not have yet, to the megabyte.',
      [],
      () => [[none, store.state.backlog]]
    )
  }
  if (shared !== undefined) {
    gauge('gateway_redis_up', '1 while Redis answers in time.', [], () => [[none, shared.down === null ? 1 : 0]])
    gauge('gateway_processes', 'Processes that share a Redis with this one, itself included.', [], () => [
      [none, shared.processes]
    ])
  }

  if (tracing !== undefined) {
    counter('gateway_spans_dropped_total', 'Spans that never reached the collector.', ['reason'], () => [
      [{ reason: 'queue' }, tracing.dropped],
      [{ reason: 'collector' }, tracing.failed]
    ])
  }
  if (eventStream !== undefined) {
    counter('gateway_events_dropped_total', 'Events that Redis has not got.', [], () => [[none, eventStream.dropped]])
    counter('gateway_event_subscribers_dropped_total', 'Subscribers let go because they did not read.', [], () => [
      [none, eventStream.slow]
    ])
    gauge('gateway_event_subscribers', 'Of GET /events.', [], () => [[none, eventStream.subscribers]])
  }
}

type Reader = (name: string, help: string, labels: readonly string[], read: () => Reading[]) => void

interface Readers {
  readonly gauge: Reader
  readonly counter: Reader
}

export function readersOf({ read }: Families): Readers {
  return {
    gauge: (name, help, labels, values) => read('gauge', name, help, labels, values),
    counter: (name, help, labels, values) => read('counter', name, help, labels, values)
  }
}

/** Those of the gateway and of the tenants that are labels, where there is such an amount. */
function budgetsOf(
  { budgets }: Gateway,
  tenants: readonly string[],
  of: (state: BudgetState) => number | bigint | null
): Reading[] {
  const scopes: Array<[scope: string, labels: Labels]> = [
    ['gateway', { scope: 'gateway' }],
    ...tenants.map((tenant): [string, Labels] => [`tenant:${tenant}`, { scope: 'tenant', tenant }])
  ]
  return scopes.flatMap(([scope, labels]) => {
    const state = budgets?.known(scope) ?? null
    const amount = state === null ? null : of(state)
    return amount === null ? [] : [[labels, usdOf(amount)]]
  })
}

function remaining({ limit, spent, held }: BudgetState): number | bigint | null {
  if (limit === null) return null
  const rest = BigInt(limit) - BigInt(spent) - BigInt(held)
  return rest < 0n ? 0n : rest
}
