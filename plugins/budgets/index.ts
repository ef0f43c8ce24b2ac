import type { FastifyInstance } from 'fastify'
import fp from 'fastify-plugin'
import { namesOf } from '../../schemas/call-record.ts'
import { isGatewayError, withoutKeys } from '../../schemas/errors.ts'
import type { Inference, Outcome, Principal } from '../../schemas/gateway.ts'
import { nanoOf, usdOf, usdText } from '../../schemas/money.ts'
import type { Pricing } from '../../schemas/pricing.ts'
import type { Store } from '../../schemas/store.ts'
import type { BudgetLimit, Tenant } from '../../schemas/tenants.ts'
import type { Account } from './account.ts'
import { createBooks } from './books.ts'
import { createBound } from './bound.ts'
import { type Bounds, BudgetHold, type Engine } from './hold.ts'
import { createMemory } from './memory.ts'
import { createRecounts } from './recounts.ts'
import { createRedis, type SharedEngine } from './redis/index.ts'
import { createReset } from './reset.ts'
import { createStanding } from './standing.ts'
import { createWarning } from './warning.ts'

export interface BudgetsOptions {
  /** What happens to a call that may reach a target without a known price. `allow`: it is counted and held as free. */
  unpriced?: 'deny' | 'allow'
  /** Of the whole gateway, a day in UTC. Without `hardStop` it is only counted, and warned of. */
  gateway?: { dailyLimitUsd: number; hardStop: boolean; warningThreshold: number }
  /** Output tokens of a call that nobody has limited: forced upstream, so that its bound is true. Default 4096. */
  defaultOutputTokens?: number
  /** Accounts of tenants and of keys that are kept in memory, each. Default 50,000. */
  accounts?: number
  /** Milliseconds since 1970. Default Date.now; tests bring their own. */
  now?: () => number
}

/** Milliseconds that the clock may go back while the periods stay. */
const mostBack = 5 * 60_000

/** Holds the worst case of each call before it is sent, and books the truth when it has ended. */
async function budgetsPlugin(app: FastifyInstance, options: BudgetsOptions): Promise<void> {
  const { gateway } = app
  gateway.optional('store', 'budgets')
  gateway.optional('shared', 'budgets')
  const { log } = gateway
  const pricing = pricingOf(gateway.pricing)
  const { now = Date.now, defaultOutputTokens = 4_096, unpriced = 'deny' } = options
  const counters = { overrun: 0, unpriced: 0, refused: 0 }
  const whole = options.gateway
  const wholeBudget: BudgetLimit | null = whole ? { limit: nanoOf(whole.dailyLimitUsd), period: 'day' } : null
  const warning = createWarning(whole?.warningThreshold ?? 1, gateway)
  const { dearest, boundAt, warnOfUnpriced } = createBound({ pricing, unpriced, defaultOutputTokens, counters })
  const bounds: Bounds = { boundAt, refused: tellRefused }
  const books = createBooks({
    store: bookkeeper,
    log,
    hardStop: whole?.hardStop ?? true,
    most: options.accounts ?? 50_000,
    spentIn: account => (redis === null ? account.total : account.seenSpent),
    started: account => redis?.started(account)
  })
  const redis: SharedEngine | null = gateway.shared
    ? createRedis({
        shared: gateway.shared,
        store: bookkeeper,
        log,
        books,
        now: clock,
        seen: account => {
          if (account.kind === 'gateway') warning.look(account, Number(account.seenSpent))
        }
      })
    : null
  const engine: Engine = redis ?? createMemory(account => warning.look(account, account.spent + Number(account.carry)))
  const recounts = createRecounts({ books, redis, store: bookkeeper, log })
  const standing = createStanding({ books, redis, clock })
  let latest = 0

  /** The ledger is registered later. Without one nothing that is settled ever gets into the store's balances. */
  function bookkeeper(): Store | undefined {
    return gateway.ledger === undefined ? undefined : gateway.store
  }

  /** Does not follow small steps back: what has begun is not taken up again. After a large one it was wrong before. */
  function clock(): number {
    const time = now()
    if (latest - time > mostBack) {
      log.warn({ from: latest, to: time }, 'the clock was set back: budgets go back to the periods of the new time')
      latest = time
    } else if (time > latest) latest = time
    return latest
  }

  gateway.intercept('budget', (inference, next) => {
    try {
      const held = hold(inference)
      return held instanceof Promise ? held.then(() => next(inference), refused) : next(inference)
    } catch (error) {
      return refused(error)
    }
  })

  function refused(error: unknown): Promise<never> {
    if (isGatewayError(error) && error.statusCode < 500) counters.refused++
    return Promise.reject(error)
  }

  function hold(inference: Inference): void | Promise<void> {
    const { principal } = inference
    const tenant = gateway.tenants?.get(principal.tenant)
    if (tenant === undefined && gateway.tenants !== undefined) return holdUnknown(inference, principal.tenant)
    return holdFor(inference, tenant)
  }

  /** The tenant has left the memory since it was admitted. */
  async function holdUnknown(inference: Inference, id: string): Promise<void> {
    await holdFor(inference, await gateway.tenants?.find(id))
  }

  function holdFor(inference: Inference, tenant: Tenant | undefined): void | Promise<void> {
    const { principal } = inference
    const time = clock()
    const budget = principal.apiKey?.budget ?? null
    const key = budget === null ? null : books.account('key', accountOfKey(principal), budget, time)
    const ofTenant = tenant === undefined ? null : books.account('tenant', tenant.id, tenant.budget, time)
    const ofAll = wholeBudget === null ? null : books.account('gateway', '', wholeBudget, time)
    const loading = key?.loading ?? ofTenant?.loading ?? ofAll?.loading ?? null
    if (loading !== null) return holdLater(inference, tenant, loading)
    const bound = dearest(inference, tenant)
    const known = inference.hold
    const hold = known instanceof BudgetHold ? known : new BudgetHold(engine, bounds, inference, key, ofTenant, ofAll)
    const taken = take(hold, bound)
    if (taken instanceof Promise)
      return taken.then(
        () => begin(inference, hold),
        error => giveUp(hold, error)
      )
    begin(inference, hold)
  }

  async function holdLater(inference: Inference, tenant: Tenant | undefined, loading: Promise<void>): Promise<void> {
    await loading
    await holdFor(inference, tenant)
  }

  function take(hold: BudgetHold, bound: number): void | Promise<void> {
    try {
      return hold.take(bound)
    } catch (error) {
      return giveUp(hold, error)
    }
  }

  /** A hold that was refused has taken nothing; a call that had one already keeps it. */
  function giveUp(hold: BudgetHold, error: unknown): never {
    if (hold.inference.hold !== hold) hold.end(0)
    throw error
  }

  function begin(inference: Inference, hold: BudgetHold): void {
    if (inference.hold !== hold) {
      inference.hold = hold
      inference.onSettled(settle)
    }
    const { remaining, degraded } = hold
    const { headers, warnings } = inference.facts
    if (remaining !== Number.POSITIVE_INFINITY) headers.push('x-gateway-budget-remaining-usd', usdText(remaining))
    if (!degraded) return
    headers.push('x-gateway-degraded', 'redis')
    warnings.push('Redis cannot be asked: budgets are checked against the share of this process.')
  }

  /** One for all calls. */
  function settle(_: Outcome, inference: Inference): void {
    const { hold } = inference
    if (!(hold instanceof BudgetHold)) return
    let cost = 0
    for (const expense of inference.expenses) cost += expense.cost ?? 0
    if (hold.ended) return
    if (hold.key !== null) recounts.follow(hold.key, cost)
    if (hold.tenant !== null) recounts.follow(hold.tenant, cost)
    hold.end(cost)
    if (cost > hold.amount) {
      counters.overrun++
      log.warn({ ...namesOf(inference), cost, held: hold.amount }, 'a call cost more than could be foreseen')
    }
  }

  function tellRefused(inference: Inference, account: Account, spent: bigint, held: number, bound: number): void {
    const { events } = gateway
    if (!events.heard) return
    const { id, principal, route, facts } = inference
    events.emit('model.budget.exceeded', {
      id,
      tenant: principal.tenant,
      key: principal.key,
      model: withoutKeys(route.alias),
      trace_id: facts.traceId,
      scope: account.scope,
      period: account.periodKey,
      spent_usd: usdOf(spent),
      reserved_usd: usdOf(held),
      limit_usd: usdOf(account.limit ?? 0),
      bound_usd: usdOf(bound)
    })
  }

  gateway.decorate('budgets', {
    state: standing.state,
    known: standing.known,
    async gateway() {
      if (whole === undefined || wholeBudget === null) return null
      const state = await standing.state('gateway', wholeBudget)
      const { hardStop, warningThreshold } = whole
      return { ...state, hardStop, warningThreshold, warned: warning.given(state.periodKey) }
    },
    reset: createReset({
      gateway,
      budget: wholeBudget,
      standing,
      redis,
      store: bookkeeper,
      warning,
      latest: () => latest
    }),
    counters
  })

  app.addHook('onReady', async () => {
    if (unpriced === 'deny') warnOfUnpriced(gateway)
    if (wholeBudget !== null) await books.account('gateway', '', wholeBudget, clock()).loading
  })
  app.addHook('onClose', async () => {
    recounts.close()
    redis?.close()
  })
}

/** A key that was rotated spends on what its predecessor had. */
function accountOfKey({ key, apiKey }: Principal): string {
  return apiKey?.account ?? key ?? ''
}

function pricingOf(pricing: Pricing | undefined): Pricing {
  if (pricing === undefined) throw new Error('The plugin budgets needs prices: register the plugin pricing before it.')
  return pricing
}

export default fp(budgetsPlugin, { fastify: '5.x', name: 'budgets', dependencies: ['gateway', 'pricing'] })
