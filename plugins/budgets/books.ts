import { isGatewayError, LimitsUnavailable } from '../../schemas/errors.ts'
import type { Log } from '../../schemas/gateway.ts'
import type { Balance } from '../../schemas/ledger.ts'
import { startOf } from '../../schemas/periods.ts'
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

export function createBooks({ store: storeOf, log, hardStop, most, started }: BooksOptions): Books {
  const maps = {
    key: new Map<string, Account>(),
    tenant: new Map<string, Account>(),
    gateway: new Map<string, Account>()
  }
  type Question = { scope: string; period: string; answer: (balance: Balance) => void; fail: (error: unknown) => void }
  let questions: Question[] = []

  function account(kind: Kind, id: string, budget: BudgetLimit, time: number): Account {
    const known = maps[kind].get(id)
    if (known === undefined || known.period !== budget.period) return open(kind, id, budget, time, known)
    if (time >= known.ends && known.loading === null) return next(known, budget, time)
    if (known.budget !== budget) known.limitTo(budget)
    known.used = true
    return known
  }

  /** The next period begins with nothing: nobody can have spent in it. Who holds something in the last one keeps that. */
  function next(last: Account, budget: BudgetLimit, time: number): Account {
    const account = new Account(last.kind, last.id, budget, time, last.enforced)
    maps[last.kind].set(last.id, account)
    started(account)
    return account
  }

  function open(kind: Kind, id: string, budget: BudgetLimit, time: number, before: Account | undefined): Account {
    const map = maps[kind]
    const store = storeOf()
    if (before === undefined && map.size >= most) forget(map)
    const account = new Account(kind, id, budget, time, kind !== 'gateway' || hardStop)
    map.set(id, account)
    if (store === undefined) {
      if (before !== undefined) account.start({ spent: before.total, version: 0 })
      started(account)
      return account
    }
    account.loading = load(account, store, before, time)
    // Whoever needs it waits for it; nobody may.
    account.loading.catch(() => {})
    return account
  }

  async function load(account: Account, store: Store, before: Account | undefined, time: number): Promise<void> {
    const { scope, period, periodKey } = account
    try {
      // The last call that the other period was charged with may have been written down in this very turn.
      if (before !== undefined) await new Promise(resolve => setTimeout(resolve, 20))
      const [own, total] = await Promise.all([balance(scope, periodKey), balance(scope, 'total')])
      const rows = period !== 'total' && (before !== undefined || (own.version === 0 && total.version > 0))
      account.start(rows ? await store.ledger.recount(scope, periodKey, startOf(period, time)) : own)
      account.loading = null
      started(account)
    } catch (error) {
      if (maps[account.kind].get(account.id) === account) maps[account.kind].delete(account.id)
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
      const idle = !account.used && account.calls === 0 && account.unfolded === 0 && account.loading === null
      if (idle) continue
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
