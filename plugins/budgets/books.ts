import { isGatewayError, LimitsUnavailable } from '../../schemas/errors.ts'
import type { Log } from '../../schemas/gateway.ts'
import type { Balance } from '../../schemas/ledger.ts'
import { periodKey } from '../../schemas/periods.ts'
import type { Store } from '../../schemas/store.ts'
import type { BudgetLimit } from '../../schemas/tenants.ts'
import { Account, type Kind } from './account.ts'

export interface BooksOptions {
  /** Where what is settled gets into; undefined: nowhere, and what is in memory is all that is known. */
  readonly store: () => Store | undefined
  readonly log: Log
  /** The gateway's budget refuses calls. */
  readonly hardStop: boolean
  /** Accounts kept of keys and of tenants, each, unless calls need more. */
  readonly most: number
  /** What is spent in an account, as far as this process knows. */
  spentIn(account: Account): bigint
  /** A new account knows what was spent before, or begins with nothing. */
  started(account: Account): void
}

/** The accounts in memory, by scope: the ones of the running periods. */
export interface Books {
  /** Of the period in which a moment lies. While its `loading` is no null it is not to be used. */
  account(kind: Kind, id: string, budget: BudgetLimit, time: number): Account
  /** One that is in memory already. */
  find(kind: Kind, id: string): Account | undefined
  /** What is spent in a scope and period, from the store; zeros without one. @throws LimitsUnavailable */
  balance(scope: string, period: string): Promise<Balance>
  balances(of: ReadonlyArray<{ scope: string; period: string }>): Promise<Balance[]>
  all(): Iterable<Account>
}

/** How many are looked at for each that is added to a full map. */
const looks = 100

export function createBooks({ store: storeOf, log, hardStop, most, spentIn, started }: BooksOptions): Books {
  const maps = {
    key: new Map<string, Account>(),
    tenant: new Map<string, Account>(),
    gateway: new Map<string, Account>()
  }
  /** The latest time that anybody asked for: later than now after the clock was wrong. */
  let furthest = 0
  type Question = { scope: string; period: string; answer: (balance: Balance) => void; fail: (error: unknown) => void }
  let questions: Question[] = []

  function account(kind: Kind, id: string, budget: BudgetLimit, time: number): Account {
    const known = maps[kind].get(id)
    const before = furthest
    if (time > furthest) furthest = time
    if (known === undefined) return open(kind, id, budget, time)
    if (known.elder !== null && storeOf() !== undefined) prune(known)
    if (known.period !== budget.period || time < known.begins) return change(known, budget, time)
    if (time >= known.ends && known.loading === null) {
      return time < before ? change(known, budget, time) : next(known, budget, time)
    }
    if (known.budget !== budget) known.limitTo(budget)
    known.used = true
    return known
  }

  /** The next period begins with nothing: nobody can have spent in it. Who holds something in the last one keeps that. */
  function next(last: Account, budget: BudgetLimit, time: number): Account {
    const account = new Account(last.kind, last.id, budget, time, last.enforced)
    account.elder = last
    prune(account)
    maps[last.kind].set(last.id, account)
    started(account)
    return account
  }

  /** Another period than the last one: the budget was changed, or the clock set back. What is held stays where it is. */
  function change(last: Account, budget: BudgetLimit, time: number): Account {
    const found = unlink(last, periodKey(budget.period, time))
    const account = found ?? new Account(last.kind, last.id, budget, time, last.enforced)
    account.limitTo(budget)
    account.used = true
    account.elder = last
    maps[last.kind].set(last.id, account)
    const store = storeOf()
    // What was spent under the last one counts, unless this one simply follows it.
    const counts = time < last.ends || account.period !== last.period
    if (store === undefined) {
      if (counts) takeOver(last, account, found === null)
      started(account)
    } else begin(account, store, last, counts)
    prune(account)
    return account
  }

  /** Without books. Where the clock was wrong, what was spent meanwhile moves; a changed budget keeps what was spent. */
  function takeOver(from: Account, to: Account, isNew: boolean): void {
    const { total, unfolded } = from
    if (isNew) {
      to.start({ spent: spentIn(from), version: 0 })
      return
    }
    if (from.period !== to.period) {
      if (total > to.total) to.spend(total - to.total)
      return
    }
    from.spend(-total)
    to.spend(total)
    from.unfolded -= unfolded
    to.unfolded += unfolded
  }

  function unlink(last: Account, key: string): Account | null {
    for (let younger = last; younger.elder !== null; younger = younger.elder) {
      const { elder } = younger
      if (elder.periodKey !== key) continue
      younger.elder = elder.elder
      elder.elder = null
      return elder
    }
    return null
  }

  /** Without books the last account of each period is all that is known of it. */
  function prune(account: Account): void {
    const kept = storeOf() === undefined
    const younger = new Set([account.period])
    let at = account
    while (at.elder !== null) {
      const { elder } = at
      if (elder.idle && !(kept && (elder.period === account.period || !younger.has(elder.period)))) {
        elder.gone = true
        at.elder = elder.elder
        elder.elder = null
      } else at = elder
      younger.add(elder.period)
    }
  }

  function open(kind: Kind, id: string, budget: BudgetLimit, time: number): Account {
    const map = maps[kind]
    const store = storeOf()
    if (map.size >= most) forget(map)
    const account = new Account(kind, id, budget, time, kind !== 'gateway' || hardStop)
    map.set(id, account)
    if (store === undefined) started(account)
    else begin(account, store, null, false)
    return account
  }

  /** @param counts whether the rows of its period are to be counted, whatever they were charged to */
  function begin(account: Account, store: Store, before: Account | null, counts: boolean): void {
    account.loading = load(account, store, before, counts)
    // Whoever needs it waits for it; nobody may.
    account.loading.catch(() => {})
  }

  async function load(account: Account, store: Store, before: Account | null, counts: boolean): Promise<void> {
    const { scope, period, periodKey, begins } = account
    try {
      for (let again = 3; ; again--) {
        // The last call that the other period was charged with may have been written down in this very turn.
        if (before !== null) await new Promise(resolve => setTimeout(resolve, 20))
        const { settled, total: spent } = account
        const [own, total] = await Promise.all([balance(scope, periodKey), balance(scope, 'total')])
        const rows = period !== 'total' && (before === null ? own.version === 0 && total.version > 0 : counts)
        const balanced = rows ? await store.ledger.recount(scope, periodKey, begins) : own
        // Calls have ended meanwhile: who knows whether they are in it. At the last they rather count twice.
        const late = account.total - spent
        if (late !== 0n && again > 0) continue
        account.contain(settled)
        account.start(balanced)
        account.spend(late)
        break
      }
      account.loading = null
      started(account)
    } catch (error) {
      account.loading = null
      const map = maps[account.kind]
      if (map.get(account.id) === account) {
        if (before === null) map.delete(account.id)
        else {
          // The next call tries again.
          map.set(account.id, before)
          account.elder = before.elder
          before.elder = account
        }
      }
      throw unreadable(error)
    }
  }

  /** Forgets some that have not been used lately. They are read again when somebody comes back. */
  function forget(map: Map<string, Account>): void {
    if (storeOf() === undefined) return
    let looked = 0
    for (const [id, account] of map) {
      if (looked++ === looks) return
      map.delete(id)
      if (account.elder !== null) prune(account)
      if (!account.used && account.idle && account.elder === null) {
        account.gone = true
        continue
      }
      account.used = false
      map.set(id, account)
    }
  }

  /** All that is asked in one turn is asked at once. */
  function balance(scope: string, period: string): Promise<Balance> {
    return new Promise((answer, fail) => {
      questions.push({ scope, period, answer, fail })
      if (questions.length === 1) queueMicrotask(askAll)
    })
  }

  async function askAll(): Promise<void> {
    const asked = questions
    questions = []
    try {
      const found = await balances(asked.map(({ scope, period }) => ({ scope, period })))
      asked.forEach(({ answer, scope, period }, index) => {
        answer(found[index] ?? nothing(scope, period))
      })
    } catch (error) {
      for (const { fail } of asked) fail(error)
    }
  }

  async function balances(of: ReadonlyArray<{ scope: string; period: string }>): Promise<Balance[]> {
    const store = storeOf()
    if (store === undefined) return of.map(({ scope, period }) => nothing(scope, period))
    try {
      return await store.ledger.balances(of)
    } catch (error) {
      throw unreadable(error)
    }
  }

  function unreadable(error: unknown): unknown {
    if (isGatewayError(error) && error.wire === 'limits_unavailable') return error
    if (!isGatewayError(error)) log.error({ err: error }, 'what budgets have spent cannot be read')
    const reason = isGatewayError(error) ? error.message : 'the database failed.'
    return new LimitsUnavailable(`what was spent before cannot be read. ${reason}`, { cause: error })
  }

  return {
    account,
    find: (kind, id) => maps[kind].get(id),
    balance,
    balances,
    *all() {
      yield* maps.key.values()
      yield* maps.tenant.values()
      yield* maps.gateway.values()
    }
  }
}

function nothing(scope: string, period: string): Balance {
  return { scope, period, spent: 0n, requests: 0, tokensIn: 0n, tokensOut: 0n, version: 0 }
}
