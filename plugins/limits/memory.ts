import type { Admission } from '../../schemas/gateway.ts'
import { type Counters, correct, createCounters, minute, roll } from './counters.ts'
import type { Demand, Limiter } from './limiter.ts'
import { addHeaders, hasRoom, refusalOf } from './standing.ts'

/** Limits counted in this process. */
export interface Memory extends Limiter {
  admit(demand: Demand, headers: string[]): Taken
  /** Counts a call that somebody else has admitted. */
  take(demand: Demand): Taken
  /** Calls in progress of a tenant or a key; 0 for one that is not known. */
  running(kind: Kind, id: string): number
  /** Tenants and keys that have calls in progress, as `tenant:<id>` and `key:<id>`. */
  busy(): string[]
  /** Tenants and keys that are remembered. */
  readonly size: number
}

export type Kind = 'tenant' | 'key'

/** A call's place in the counters. Its state hangs on the counters themselves, so it outlives a change of limits. */
export class Taken implements Admission {
  #clock: () => number
  #tenant: Counters | null
  #key: Counters | null
  #tokens: number
  #window: number
  #ended = false

  constructor(clock: () => number, tenant: Counters | null, key: Counters | null, tokens: number, window: number) {
    this.#clock = clock
    this.#tenant = tenant
    this.#key = key
    this.#tokens = tokens
    this.#window = window
  }

  end(tokens: number | null): void {
    if (this.#ended) return
    this.#ended = true
    const difference = tokens === null ? 0 : tokens - this.#tokens
    const window = difference === 0 ? 0 : windowAt(this.#clock())
    if (this.#tenant !== null) leave(this.#tenant, this.#window, window, difference)
    if (this.#key !== null) leave(this.#key, this.#window, window, difference)
  }
}

function leave(counters: Counters, taken: number, now: number, difference: number): void {
  counters.running--
  if (difference === 0) return
  roll(counters, now)
  correct(counters, taken, difference)
}

function windowAt(time: number): number {
  return Math.floor(time / minute)
}

/** @param now monotonic milliseconds */
export function createMemory(now: () => number): Memory {
  const tenants = createScopes()
  const keys = createScopes()

  function take(demand: Demand): Taken {
    const window = windowAt(now())
    const tenant = demand.tenantLimits === null ? null : tenants.at(demand.tenant, window)
    const key = demand.keyLimits === null ? null : keys.at(demand.key, window)
    return count(demand.tokens, tenant, key, window)
  }

  function count(tokens: number, tenant: Counters | null, key: Counters | null, window: number): Taken {
    if (tenant !== null) add(tenant, tokens)
    if (key !== null) add(key, tokens)
    return new Taken(now, tenant, key, tokens, window)
  }

  return {
    take,
    admit(demand, headers) {
      const { tenantLimits, keyLimits, tokens } = demand
      const time = now()
      const window = windowAt(time)
      const elapsed = time - window * minute
      const tenant = tenantLimits === null ? null : tenants.at(demand.tenant, window)
      const key = keyLimits === null ? null : keys.at(demand.key, window)
      if (
        (tenant !== null && tenantLimits !== null && !hasRoom(tenantLimits, tenant, elapsed, tokens)) ||
        (key !== null && keyLimits !== null && !hasRoom(keyLimits, key, elapsed, tokens))
      ) {
        throw refusalOf(demand, tenant, key, elapsed)
      }
      const taken = count(tokens, tenant, key, window)
      addHeaders(headers, demand, tenant, key, elapsed)
      return taken
    },
    running: (kind, id) => (kind === 'tenant' ? tenants : keys).running(id),
    busy: () => [...tenants.busy().map(id => `tenant:${id}`), ...keys.busy().map(id => `key:${id}`)],
    get size() {
      return tenants.size + keys.size
    }
  }
}

function add(counters: Counters, tokens: number): void {
  counters.requests++
  counters.tokens += tokens
  counters.running++
}

/**
 * Counters by id. Two generations, one for each minute that counts: what was in neither has nothing to remember, except
 * calls that still run. So memory is bounded by what was called within two minutes.
 */
function createScopes() {
  let young = new Map<string, Counters>()
  let old = new Map<string, Counters>()
  let current = 0

  function turn(window: number): void {
    const kept = window === current + 1 ? young : new Map<string, Counters>()
    for (const map of [young, old]) {
      for (const [id, counters] of map) if (counters.running > 0) kept.set(id, counters)
    }
    old = kept
    young = new Map()
    current = window
  }

  return {
    at(id: string, window: number): Counters {
      if (window > current) turn(window)
      let counters = young.get(id)
      if (counters === undefined) {
        counters = old.get(id) ?? createCounters(window)
        young.set(id, counters)
      }
      roll(counters, window)
      return counters
    },
    running: (id: string) => (young.get(id) ?? old.get(id))?.running ?? 0,
    busy: () => [...new Map([...old, ...young])].filter(([, { running }]) => running > 0).map(([id]) => id),
    get size() {
      let size = young.size
      for (const id of old.keys()) if (!young.has(id)) size++
      return size
    }
  }
}
