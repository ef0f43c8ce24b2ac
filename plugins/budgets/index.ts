import type { FastifyInstance } from 'fastify'
import fp from 'fastify-plugin'
import type { BudgetState } from '../../schemas/budgets.ts'
import { namesOf } from '../../schemas/call-record.ts'
import {
  InvalidRequest,
  isGatewayError,
  LimitsUnavailable,
  ModelUnpriced,
  RequestCostExceeded,
  withoutKeys
} from '../../schemas/errors.ts'
import type { Inference, Outcome, Principal, Target } from '../../schemas/gateway.ts'
import { mostNano, nanoOf, usdOf, usdText } from '../../schemas/money.ts'
import { endOf, periodKey } from '../../schemas/periods.ts'
import type { Pricing } from '../../schemas/pricing.ts'
import type { Store } from '../../schemas/store.ts'
import type { BudgetLimit, Tenant } from '../../schemas/tenants.ts'
import type { Account, Kind } from './account.ts'
import { createBooks } from './books.ts'
import { type Bounds, BudgetHold, type Engine } from './hold.ts'
import { createMemory } from './memory.ts'
import { createRedis, type SharedEngine } from './redis.ts'
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
/** Milliseconds until rows of calls that have ended can be counted, and until a failed count is tried again. */
const recountAfter = 100
const recountAgain = 5_000

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
  let latest = 0
  let resetting: Promise<unknown> = Promise.resolve()
  /** Costs that the books are still to be made to contain, and when that is tried. */
  const recounts = new Map<Account, { owed: number; timer: NodeJS.Timeout }>()

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
    if (hold.key !== null) follow(hold.key, cost)
    if (hold.tenant !== null) follow(hold.tenant, cost)
    hold.end(cost)
    if (cost > hold.amount) {
      counters.overrun++
      log.warn({ ...namesOf(inference), cost, held: hold.amount }, 'a call cost more than could be foreseen')
    }
  }

  /** The budget has another period than when the call began: it counts there too. */
  function follow(account: Account, cost: number): void {
    const current = books.find(account.kind, account.id)
    if (current === undefined || current.period === account.period || cost === 0) return
    const store = bookkeeper()
    if (redis === null) current.spend(cost)
    else if (store === undefined) redis.book(current, cost)
    else redis.keep(current, cost)
    if (store === undefined || (redis === null && current.period === 'total')) return
    const known = recounts.get(current)
    if (known === undefined) recountLater(current, cost, recountAfter)
    else known.owed += cost
  }

  function recountLater(account: Account, owed: number, delay: number): void {
    const timer = setTimeout(() => void recount(account), delay).unref()
    recounts.set(account, { owed, timer })
  }

  /** A total contains what the ledger writes down; in other periods the rows have to be counted again. */
  async function recount(account: Account): Promise<void> {
    const owed = recounts.get(account)?.owed ?? 0
    recounts.delete(account)
    const { scope, period, periodKey, begins } = account
    try {
      if (period !== 'total') await bookkeeper()?.ledger.recount(scope, periodKey, begins)
      await redis?.refresh(account)
      redis?.keep(account, -owed)
    } catch (error) {
      log.error({ err: error, scope }, 'a budget whose period has changed cannot be counted again')
      const since = recounts.get(account)
      if (since === undefined) recountLater(account, owed, recountAgain)
      else since.owed += owed
    }
  }

  /** The bound at the dearest target that the call can reach. @throws ModelUnpriced, RequestCostExceeded */
  function dearest(inference: Inference, tenant: Tenant | undefined): number {
    const { targets, alias } = inference.route
    if (inference.maxOutputTokens === null) inference.limitOutput(defaultOutputTokens)
    const output = outputOf(inference)
    const input = inference.size.bound
    let most = 0
    let unknown = false
    for (const target of targets) {
      const bound = pricing.bound(target, input, output)
      if (bound === null) unknown = true
      else if (bound > most) most = bound
    }
    if (unknown) {
      // Which target answers is decided later: one without a price must not be reachable at all.
      if (unpriced === 'deny') throw new ModelUnpriced(alias)
      counters.unpriced++
    }
    const limit = tenant?.maxRequest ?? null
    if (limit !== null && most > limit) checkEstimate(inference, output, limit)
    return Math.min(most, Number.MAX_SAFE_INTEGER)
  }

  /** No estimate is higher than its bound, so it is only made where the bound is too high. */
  function checkEstimate(inference: Inference, output: number, limit: number): void {
    let likely = 0
    for (const target of inference.route.targets) {
      likely = Math.max(likely, pricing.estimate(target, inference.size.estimate, output) ?? 0)
    }
    if (likely > limit) throw new RequestCostExceeded(usdText(Math.min(likely, mostNano)), usdText(limit))
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

  function boundAt(inference: Inference, target: Target): number {
    const bound = pricing.bound(target, inference.size.bound, outputOf(inference))
    if (bound === null && unpriced === 'deny') throw new ModelUnpriced(inference.route.alias)
    return Math.min(bound ?? 0, Number.MAX_SAFE_INTEGER)
  }

  function outputOf({ maxOutputTokens, request }: Inference): number {
    const { n } = request
    const choices = typeof n === 'number' && n > 1 ? Math.ceil(n) : 1
    return (maxOutputTokens ?? defaultOutputTokens) * choices
  }

  /** The account of a scope as it is named: `tenant:acme`. Null: it runs with another period. */
  async function accountOf(scope: string, limit: BudgetLimit): Promise<Account | null> {
    const { kind, id } = partsOf(scope)
    const known = books.find(kind, id)
    if (known !== undefined && known.period !== limit.period) return null
    const account = books.account(kind, id, limit, clock())
    if (account.loading === null) return account
    await account.loading
    return accountOf(scope, limit)
  }

  async function stateOf(scope: string, limit: BudgetLimit): Promise<BudgetState> {
    const account = await accountOf(scope, limit)
    const time = clock()
    const ends = endOf(limit.period, time)
    const state = { scope, period: limit.period, limit: limit.limit, resetsAt: Number.isFinite(ends) ? ends : null }
    if (account === null) {
      const key = periodKey(limit.period, time)
      const { spent } = await books.balance(scope, key)
      return { ...state, periodKey: key, spent: smaller(spent), held: 0 }
    }
    await redis?.ask(account).catch(() => {})
    return { ...state, periodKey: account.periodKey, ...standingOf(account) }
  }

  function standingOf(account: Account): Pick<BudgetState, 'spent' | 'held'> {
    const spent = redis === null ? account.total : account.seenSpent
    const held = redis === null ? account.held + account.heldElsewhere : account.seenHeld
    return { spent: smaller(spent), held }
  }

  function known(scope: string): BudgetState | null {
    const { kind, id } = partsOf(scope)
    const account = books.find(kind, id)
    if (account === undefined || account.loading !== null) return null
    const { period, limit } = account
    const time = clock()
    const isOver = time >= account.ends
    const ends = isOver ? endOf(period, time) : account.ends
    return {
      scope,
      period,
      limit,
      periodKey: isOver ? periodKey(period, time) : account.periodKey,
      resetsAt: Number.isFinite(ends) ? ends : null,
      // Nobody has called since the next period has begun.
      ...(isOver ? { spent: 0, held: 0 } : standingOf(account))
    }
  }

  function noBudget(): never {
    throw new InvalidRequest('This gateway has no budget of its own: set budget.dailyLimitUsd.')
  }

  async function reset(actor: string): Promise<BudgetState> {
    if (wholeBudget === null) return noBudget()
    const account = await accountOf('gateway', wholeBudget)
    if (account === null) return noBudget()
    const { shared } = gateway
    if (redis !== null && shared !== undefined) {
      if (!(await shared.set('b:reset', shared.instance, 30_000, true))) {
        throw new LimitsUnavailable('another reset is being made.')
      }
      try {
        await redis.ask(account)
        // What a process has settled may count twice until it knows that the books contain it.
        await redis.refresh(account)
        await empty(account, bookkeeper() === undefined ? account.seenSpent : account.base, actor)
      } finally {
        await shared.delete('b:reset').catch(() => {})
      }
    } else await empty(account, account.total, actor)
    warning.forget(account)
    return stateOf('gateway', wholeBudget)
  }

  /** Takes out what is spent now; what is spent meanwhile stays. */
  async function empty(account: Account, spent: bigint, actor: string): Promise<void> {
    const { scope, periodKey: period } = account
    const store = bookkeeper()
    if (store === undefined) {
      if (redis === null) account.spend(-spent)
      else redis.rebase(account, { spent: account.seenBase - spent, version: Math.max(latest, account.version + 1) })
      return
    }
    await store.ledger.adjust(
      { scope, period, amount: -spent, reason: 'reset', actor },
      { actor, action: 'budget.reset', subject: scope, before: { period, spent_usd: usdOf(spent) }, after: null }
    )
    if (redis === null) account.spend(-spent)
    else await redis.refresh(account)
  }

  gateway.decorate('budgets', {
    state: stateOf,
    known,
    async gateway() {
      if (whole === undefined || wholeBudget === null) return null
      const state = await stateOf('gateway', wholeBudget)
      const { hardStop, warningThreshold } = whole
      return { ...state, hardStop, warningThreshold, warned: warning.given(state.periodKey) }
    },
    reset(actor) {
      const done = resetting.then(() => reset(actor))
      resetting = done.catch(() => {})
      return done
    },
    counters
  })

  /** Otherwise nobody learns of it before the first call is refused, and then it is the caller. */
  function warnOfUnpriced(): void {
    for (const { alias, targets } of gateway.models.routes()) {
      const unknown = targets.filter(target => pricing.bound(target, 1, 1) === null)
      if (unknown.length === 0) continue
      const names = unknown.map(({ provider, model }) => `${provider.name}/${model}`)
      log.warn({ model: alias, targets: names }, 'every call of this model is refused: give these targets a price')
    }
  }

  app.addHook('onReady', async () => {
    if (unpriced === 'deny') warnOfUnpriced()
    if (wholeBudget !== null) await books.account('gateway', '', wholeBudget, clock()).loading
  })
  app.addHook('onClose', async () => {
    for (const { timer } of recounts.values()) clearTimeout(timer)
    redis?.close()
  })
}

/** @throws RangeError */
function partsOf(scope: string): { kind: Kind; id: string } {
  const colon = scope.indexOf(':')
  const kind = colon === -1 ? scope : scope.slice(0, colon)
  if (!isKind(kind)) throw new RangeError(`'${scope}' is no scope.`)
  return { kind, id: colon === -1 ? '' : scope.slice(colon + 1) }
}

/** A key that was rotated spends on what its predecessor had. */
function accountOfKey({ key, apiKey }: Principal): string {
  return apiKey?.account ?? key ?? ''
}

function pricingOf(pricing: Pricing | undefined): Pricing {
  if (pricing === undefined) throw new Error('The plugin budgets needs prices: register the plugin pricing before it.')
  return pricing
}

function isKind(text: string): text is Kind {
  return text === 'key' || text === 'tenant' || text === 'gateway'
}

/** A number while it is exact. */
function smaller(amount: bigint): number | bigint {
  return amount <= Number.MAX_SAFE_INTEGER && amount >= Number.MIN_SAFE_INTEGER ? Number(amount) : amount
}

export default fp(budgetsPlugin, { fastify: '5.x', name: 'budgets', dependencies: ['gateway', 'pricing'] })
