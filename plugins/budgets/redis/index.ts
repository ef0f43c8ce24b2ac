import { LimitsUnavailable } from '../../../schemas/errors.ts'
import type { Log } from '../../../schemas/gateway.ts'
import type { Balance } from '../../../schemas/ledger.ts'
import type { Shared } from '../../../schemas/shared.ts'
import type { Store } from '../../../schemas/store.ts'
import type { Account } from '../account.ts'
import type { Books } from '../books.ts'
import { accountsOf, type Engine } from '../hold.ts'
import { refuse } from '../refusal.ts'
import { callOf, type Request } from './call.ts'
import { createEstates } from './estates.ts'
import { hold as holdScript } from './script.ts'
import { rebuilding, roomIn, shareLeft, takeShare, unavailable } from './share.ts'

export interface RedisOptions {
  readonly shared: Shared
  /** Where what is settled gets into; undefined: nowhere. */
  readonly store: () => Store | undefined
  readonly log: Log
  readonly books: Books
  readonly now: () => number
  /** Redis has told what all processes have spent. */
  seen(account: Account): void
}

/** Holds over several processes. */
export interface SharedEngine extends Engine {
  /** A new account: its base was read, or its period has just begun. */
  started(account: Account): void
  /** Asks Redis for the numbers of an account. @throws LimitsUnavailable */
  ask(account: Account): Promise<void>
  /** Reads the store's balance again. */
  refresh(account: Account): Promise<void>
  /** Holds an amount for a cost until the books contain it; the same amount, negative, ends that. */
  keep(account: Account, amount: number): void
  /** Books a cost without a hold. */
  book(account: Account, cost: number): void
  /** Takes over a newer balance. */
  rebase(account: Account, balance: { spent: bigint; version: number }): void
  close(): void
}

const mostRequests = 500
const mostScopes = 1_000
const syncInterval = 500
/** Lines of the journal are written within a turn of the event loop; a read of the store after this contains them. */
const written = 50
const mostReads = 3

/**
 * One script call at a time decides everything that waits. It carries this process's absolute numbers of every scope that it
 * touches, so that a call that was lost, or done without an answer, is put right by the next one.
 *
 * What all have spent is `base`, the store's balance, and what each process has settled that is not in it yet. The two
 * change together: a process takes its own settled amounts off only in the call that carries a balance which was read after
 * they were written down, and a balance is only ever replaced by a newer one.
 */
export function createRedis({ shared, store: storeOf, log, books, now, seen }: RedisOptions): SharedEngine {
  let waiting: Request[] = []
  let dirty: Account[] = []
  const stale: Account[] = []
  let known: Account[] = []
  let pruneAt = 1_000
  let sequence = 0
  let batch = 0
  let epoch = 0
  let sending = false
  /** Closed: what can still be told is told, and nothing is tried again. */
  let over = false
  let scheduled = false
  let syncing = false
  /** Why the last call failed, to say it once. */
  let failed: string | null = null
  const timer = setInterval(() => void sync(), syncInterval).unref()
  let deaths: NodeJS.Timeout[] = []
  const estates = createEstates(async (account, instance) => {
    await refresh([account])
    account.buried.push(instance)
    announce(account)
  })

  shared.onState(({ down, lost }) => {
    epoch++
    if (lost) log.warn({}, 'budgets announce to Redis again what this process holds and has spent')
    if (down === null) {
      for (const account of known) announce(account)
      schedule()
    }
  })

  // What the store closes for a dead process reaches the balances without passing through Redis.
  shared.onDeath(() => {
    for (const delay of [1, 3, 8]) {
      const death = setTimeout(() => {
        deaths = deaths.filter(other => other !== death)
        for (const account of books.all()) expire(account)
      }, delay * 2_000).unref()
      deaths.push(death)
    }
  })

  let listening = false
  /** The ledger may be registered later than the budgets. */
  function bookkeeper(): Store | undefined {
    const store = storeOf()
    if (store === undefined || listening) return store
    listening = true
    store.onFolded(folded)
    return store
  }

  function folded(balances: readonly Balance[]): void {
    for (const { scope, period, version } of balances) {
      const colon = scope.indexOf(':')
      const kind = colon === -1 ? scope : scope.slice(0, colon)
      if (kind !== 'key' && kind !== 'tenant' && kind !== 'gateway') continue
      const account = books.find(kind, scope.slice(colon + 1))
      if (account?.periodKey === period && version > account.version) expire(account)
    }
  }

  function announce(account: Account): void {
    if (account.dirty || account.gone) return
    account.dirty = true
    dirty.push(account)
  }

  function expire(account: Account): void {
    if (account.stale || account.loading !== null) return
    account.stale = true
    stale.push(account)
  }

  function schedule(): void {
    if (scheduled || sending || isDone() || shared.down !== null) return
    scheduled = true
    queueMicrotask(send)
  }

  async function send(): Promise<void> {
    scheduled = false
    if (sending) return
    sending = true
    while (!isDone() && shared.down === null && (waiting.length > 0 || dirty.length > 0)) await once()
    sending = false
    if (shared.down !== null) giveUp(waiting.splice(0), shared.down)
    else if (isDone()) giveUp(waiting.splice(0), 'this gateway is closing')
  }

  function isDone(): boolean {
    return over && failed !== null
  }

  async function once(): Promise<void> {
    const { requests, scopes } = gather()
    const { instance, generation } = shared
    const kept = bookkeeper() !== undefined
    const { keys, args } = callOf(requests, scopes, {
      instance,
      generation,
      sequence: ++sequence,
      epoch,
      kept,
      time: now()
    })
    const held = scopes.map(account => account.held)
    const since = scopes.map(account => account.settledSince)
    for (const account of scopes) account.fresh = -1
    let reason = 'its answer made no sense'
    try {
      const answer = await shared.run(holdScript, keys, args)
      if (Array.isArray(answer) && answer[0] === 'ok') {
        scopes.forEach((account, index) => {
          account.ownHeld = held[index] ?? 0
          account.settledSince -= since[index] ?? 0
        })
        failed = null
        read(answer, requests, scopes)
        return
      }
      if (Array.isArray(answer) && answer[0] === 'lost') reason = rebuilding
    } catch (error) {
      reason = error instanceof Error ? error.message : reason
    }
    if (reason !== failed) log.warn({ reason }, 'budgets cannot be shared')
    failed = reason
    for (const account of scopes) announce(account)
    giveUp(requests, reason)
    // Not at once again: the connection's breaker counts, or the heartbeat finds out what was lost.
    if (!isDone() && shared.down === null) await new Promise(resolve => setTimeout(resolve, 20))
  }

  /** What goes into the next call: requests in order, then accounts of which Redis has old numbers. */
  function gather(): { requests: Request[]; scopes: Account[] } {
    batch++
    const scopes: Account[] = []
    const requests: Request[] = []
    for (const request of waiting) {
      if (requests.length === mostRequests || scopes.length >= mostScopes) break
      requests.push(request)
      for (const account of request.accounts) place(account, scopes)
    }
    waiting = waiting.slice(requests.length)
    const rest: Account[] = []
    for (const account of dirty) {
      if (account.batch !== batch && scopes.length >= mostScopes) rest.push(account)
      else {
        account.dirty = false
        place(account, scopes)
      }
    }
    dirty = rest
    return { requests, scopes }
  }

  function place(account: Account, scopes: Account[]): void {
    if (account.batch === batch) return
    account.batch = batch
    scopes.push(account)
    account.place = scopes.length
    if (account.known) return
    account.known = true
    known.push(account)
    if (known.length < pruneAt) return
    for (const other of known) other.known = isOpen(other) || other.batch === batch
    known = known.filter(other => other.known)
    pruneAt = Math.max(1_000, known.length * 2)
  }

  function read(answer: readonly unknown[], requests: readonly Request[], scopes: readonly Account[]): void {
    let at = 1
    const missing: Account[] = []
    for (const account of scopes) {
      account.seenBase = BigInt(String(answer[at]))
      account.seenSpent = account.seenBase + BigInt(String(answer[at + 1]))
      account.seenHeld = Number(answer[at + 2])
      account.probed = true
      if (answer[at + 3] !== '1') missing.push(account)
      const dead = String(answer[at + 4])
      if (dead !== '') for (const instance of dead.split(' ')) estates.add(account, instance)
      at += 5
    }
    const again: Request[] = []
    requests.forEach((request, index) => {
      decide(request, Number(answer[at + index]), scopes, again)
    })
    if (again.length > 0) void readAgain(missing, again)
    for (const account of scopes) seen(account)
  }

  function decide(request: Request, verdict: number, scopes: readonly Account[], again: Request[]): void {
    const { hold, accounts, amount } = request
    if (hold === null) request.resolve()
    else if (verdict === 0) {
      for (const account of accounts) {
        account.held += amount
        account.ownHeld += amount
      }
      hold.granted(amount)
      request.resolve()
    } else if (verdict > 0) {
      const account = scopes[verdict - 1]!
      request.reject(refuse(hold, account, account.seenSpent, account.seenHeld, amount))
    } else if (verdict === -1) request.reject(new LimitsUnavailable(rebuilding))
    else if (request.reads++ < mostReads) again.push(request)
    else request.reject(new LimitsUnavailable('Redis does not keep what it is told.'))
  }

  /** Redis knows nothing of these accounts: neither does it know what others have spent. */
  async function readAgain(accounts: readonly Account[], requests: readonly Request[]): Promise<void> {
    try {
      await refresh(accounts)
      waiting.push(...requests)
      schedule()
    } catch (error) {
      for (const request of requests) request.reject(error)
    }
  }

  /** Takes over the store's balances, which contain what was settled here before. */
  async function refresh(accounts: readonly Account[]): Promise<void> {
    const began = epoch
    const store = bookkeeper()
    if (store === undefined) {
      for (const account of accounts) account.fresh = began
      return
    }
    // Several of these can be under way at once: each takes off what it knows to be contained, and nothing twice.
    const settled = accounts.map(account => account.settled)
    if (accounts.some(({ unfolded }) => unfolded !== 0)) await new Promise(resolve => setTimeout(resolve, written))
    const balances = await books.balances(accounts.map(({ scope, periodKey }) => ({ scope, period: periodKey })))
    accounts.forEach((account, index) => {
      const balance = balances[index]
      if (balance === undefined) return
      account.contain(settled[index] ?? 0n)
      // A newer one contains all that this one does.
      if (balance.version >= account.version) {
        account.base = balance.spent
        account.version = balance.version
      }
      account.fresh = began
      announce(account)
    })
    schedule()
  }

  async function sync(): Promise<void> {
    const store = bookkeeper()
    if (syncing || store === undefined || shared.down !== null || !store.state.ok) return
    syncing = true
    const accounts = stale.splice(0, 5_000)
    for (const account of accounts) account.stale = false
    try {
      if (accounts.length > 0) await refresh(accounts)
      await estates.settle(store)
      schedule()
    } catch {
      // The store says why, once; what is settled stays counted.
      for (const account of accounts) expire(account)
    } finally {
      syncing = false
    }
  }

  /** Without an answer from Redis. */
  function giveUp(requests: readonly Request[], reason: string): void {
    for (const request of requests) {
      try {
        if (request.hold === null || shared.onRedisDown === 'deny' || reason === rebuilding) {
          throw unavailable(reason)
        }
        takeShare(request.hold, request.accounts, request.amount, shared)
        for (const account of request.accounts) announce(account)
        request.resolve()
      } catch (error) {
        request.reject(error)
      }
    }
  }

  function isOpen({ held, unfolded, dirty }: Account): boolean {
    return held !== 0 || unfolded !== 0 || dirty
  }

  return {
    acquire(hold, amount) {
      const accounts = accountsOf(hold)
      if (accounts.length === 0) {
        hold.granted(amount)
        return
      }
      // Not to be forgotten meanwhile, even if the call leaves.
      for (const account of accounts) account.calls++
      const decided = () => {
        for (const account of accounts) account.calls--
      }
      const decision = new Promise<void>((resolve, reject) => {
        const request = { hold, accounts, amount, resolve, reject, reads: 0 }
        if (shared.down !== null) {
          giveUp([request], shared.down)
          return
        }
        waiting.push(request)
        schedule()
      })
      decision.then(decided, decided)
      return decision
    },
    settle(hold, cost) {
      if (hold.amount === 0 && cost === 0) return
      for (const account of accountsOf(hold)) {
        account.held -= hold.amount
        account.unfolded += cost
        account.settledSince += cost
        announce(account)
        if (cost !== 0) expire(account)
      }
      schedule()
    },
    release(hold, amount) {
      for (const account of accountsOf(hold)) {
        account.held -= amount
        announce(account)
      }
      schedule()
    },
    remaining(account) {
      if (account.cap === Number.POSITIVE_INFINITY) return account.cap
      return shared.down === null ? roomIn(account) : Math.max(0, shareLeft(account, shared.processes))
    },
    started(account) {
      account.fresh = epoch
    },
    ask(account) {
      return new Promise((resolve, reject) => {
        if (shared.down !== null) {
          reject(unavailable(shared.down))
          return
        }
        waiting.push({ hold: null, accounts: [account], amount: 0, resolve, reject, reads: 0 })
        schedule()
      })
    },
    refresh: account => refresh([account]),
    keep(account, amount) {
      account.held += amount
      announce(account)
      schedule()
    },
    book(account, cost) {
      account.unfolded += cost
      account.settledSince += cost
      announce(account)
      schedule()
    },
    rebase(account, { spent, version }) {
      if (version < account.version) return
      account.base = spent
      account.version = version
      announce(account)
      schedule()
    },
    close() {
      over = true
      clearInterval(timer)
      for (const death of deaths) clearTimeout(death)
    }
  }
}
