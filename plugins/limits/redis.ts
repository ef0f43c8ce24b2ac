import { LimitsUnavailable } from '../../schemas/errors.ts'
import type { Admission } from '../../schemas/gateway.ts'
import type { Shared } from '../../schemas/shared.ts'
import type { Limits } from '../../schemas/tenants.ts'
import type { Counters } from './counters.ts'
import type { Demand, Limiter } from './limiter.ts'
import type { Kind, Memory, Taken } from './memory.ts'
import { admitScript, countersPerScope } from './script.ts'
import { addHeaders, refusalOf } from './standing.ts'

/** A call that waits for Redis. */
interface Waiting {
  readonly demand: Demand
  readonly headers: string[]
  readonly resolve: (admission: Admission) => void
  readonly reject: (error: unknown) => void
}

/** Tokens that were counted wrongly for a call. */
interface Correction {
  readonly scope: string
  readonly window: number
  readonly difference: number
}

/** When Redis is told again what it may have missed, in milliseconds. */
const patience = 1_000
/** The minute of a call that Redis knows nothing of. */
const notThere = -1
/** The most calls and corrections of one script: Redis does nothing else meanwhile. */
const mostAtOnce = 250

/**
 * Limits counted in Redis for all processes. One script is under way at a time, what comes meanwhile goes with the next.
 * Calls in progress are sent as the number that this process has, never as a step up or down: a lost message, an emptied
 * Redis and a dead process correct themselves. `memory` counts along, for the time when Redis cannot be asked.
 */
export function createRedis(shared: Shared, memory: Memory): Limiter & { close(): void } {
  const waiting: Waiting[] = []
  const corrections: Correction[] = []
  /** Scopes whose number of calls Redis has not been told yet. */
  const untold = new Set<string>()
  let sending = false
  let again: NodeJS.Timeout | undefined

  // Whatever was counted may be gone with its data: the calls that run are told again.
  shared.onState(({ down }) => {
    if (down !== null) return
    for (const scope of memory.busy()) untold.add(scope)
    void send()
  })

  async function send(): Promise<void> {
    if (sending) return
    sending = true
    while (waiting.length > 0 || (shared.down === null && (corrections.length > 0 || untold.size > 0))) {
      const batch = batchOf()
      try {
        read(batch, await shared.run(admitScript, batch.keys, batch.args))
      } catch (error) {
        for (const scope of batch.scopes) untold.add(scope)
        for (const one of batch.waiting) withoutRedis(one, error)
        if (waiting.length > 0) continue
        // What nobody waits for goes with the next call, or is told again: other processes count calls that have ended.
        clearTimeout(again)
        again = setTimeout(() => void send(), patience).unref()
        break
      }
    }
    sending = false
  }

  function batchOf() {
    const asked = waiting.splice(0, mostAtOnce)
    const corrected = corrections.splice(0, mostAtOnce)
    const places = new Map<string, number>()
    const place = (scope: string) => {
      const known = places.get(scope) ?? places.size + 1
      places.set(scope, known)
      return known
    }
    const work: Array<string | number> = []
    for (const { demand } of asked) {
      const { tenantLimits, keyLimits } = demand
      work.push('a', demand.tokens)
      pushScope(work, tenantLimits === null ? 0 : place(`tenant:${demand.tenant}`), tenantLimits)
      pushScope(work, keyLimits === null ? 0 : place(`key:${demand.key}`), keyLimits)
    }
    for (const { scope, window, difference } of corrected) work.push('c', place(scope), window, difference)
    for (const scope of untold) {
      if (places.size >= 4 * mostAtOnce) break
      place(scope)
    }
    const scopes = [...places.keys()]
    for (const scope of scopes) untold.delete(scope)
    const others = shared.instances.filter(instance => instance !== shared.instance)
    const running = scopes.map(scope => runningIn(memory, scope))
    return {
      waiting: asked,
      scopes,
      keys: scopes.map(scope => `limits:${scope}`),
      args: [shared.instance, others.length, ...others, ...running, ...work]
    }
  }

  function read(batch: { waiting: readonly Waiting[] }, answer: unknown): void {
    const numbers = numbersOf(answer)
    const [window = 0, elapsed = 0] = numbers
    let at = 2
    for (const { demand, headers, resolve, reject } of batch.waiting) {
      const admitted = numbers[at] === 1
      const tenant = demand.tenantLimits === null ? null : countersAt(numbers, at + 1, window)
      const key = demand.keyLimits === null ? null : countersAt(numbers, at + 1 + countersPerScope, window)
      at += 1 + 2 * countersPerScope
      if (!admitted) {
        reject(refusalOf(demand, tenant, key, elapsed))
        continue
      }
      addHeaders(headers, demand, tenant, key, elapsed)
      resolve(new SharedTaken(memory.take(demand), demand, window, ended))
    }
  }

  function ended(demand: Demand, window: number, tokens: number | null): void {
    if (demand.tenantLimits !== null)
      leave(`tenant:${demand.tenant}`, demand.tenantLimits, window, demand.tokens, tokens)
    if (demand.keyLimits !== null) leave(`key:${demand.key}`, demand.keyLimits, window, demand.tokens, tokens)
    if (shared.down === null && (untold.size > 0 || corrections.length > 0)) void send()
  }

  function leave(scope: string, limits: Limits, window: number, counted: number, tokens: number | null): void {
    untold.add(scope)
    if (limits.tokensPerMinute === null || tokens === null || tokens === counted || window === notThere) return
    corrections.push({ scope, window, difference: tokens - counted })
  }

  function withoutRedis({ demand, headers, resolve, reject }: Waiting, error: unknown): void {
    // Without an answer nobody knows how many share.
    if (shared.onRedisDown === 'deny' || shared.generation === null) {
      reject(new LimitsUnavailable(shared.down ?? 'Redis did not answer in time.', { cause: error }))
      return
    }
    const own = partOf(demand, shared.processes)
    if (!headers.includes('x-gateway-degraded')) headers.push('x-gateway-degraded', 'redis')
    try {
      resolve(new SharedTaken(memory.admit(own, headers), demand, notThere, ended))
    } catch (refusal) {
      reject(refusal)
    }
  }

  return {
    admit(demand, headers) {
      return new Promise((resolve, reject) => {
        waiting.push({ demand, headers, resolve, reject })
        void send()
      })
    },
    close: () => clearTimeout(again)
  }
}

/** A call's place here and in Redis. */
class SharedTaken implements Admission {
  #local: Taken
  #demand: Demand
  #window: number
  #ended: ((demand: Demand, window: number, tokens: number | null) => void) | null

  constructor(
    local: Taken,
    demand: Demand,
    window: number,
    ended: (demand: Demand, window: number, tokens: number | null) => void
  ) {
    this.#local = local
    this.#demand = demand
    this.#window = window
    this.#ended = ended
  }

  end(tokens: number | null): void {
    this.#local.end(tokens)
    const ended = this.#ended
    this.#ended = null
    ended?.(this.#demand, this.#window, tokens)
  }
}

function pushScope(work: Array<string | number>, place: number, limits: Limits | null): void {
  work.push(place, limits?.requestsPerMinute ?? -1, limits?.tokensPerMinute ?? -1, limits?.concurrency ?? -1)
}

function runningIn(memory: Memory, scope: string): number {
  const kind: Kind = scope.startsWith('key:') ? 'key' : 'tenant'
  return memory.running(kind, scope.slice(kind.length + 1))
}

/** What one process may let in by itself. A call that would fit into the whole limit is not too large for its part. */
function partOf(demand: Demand, processes: number): Demand {
  const tenantLimits = part(demand.tenantLimits, processes)
  const keyLimits = part(demand.keyLimits, processes)
  const { tokens } = demand
  const most = Math.min(tenantLimits?.tokensPerMinute ?? Infinity, keyLimits?.tokensPerMinute ?? Infinity)
  const whole = Math.min(
    demand.tenantLimits?.tokensPerMinute ?? Infinity,
    demand.keyLimits?.tokensPerMinute ?? Infinity
  )
  return { ...demand, tenantLimits, keyLimits, tokens: tokens > whole ? tokens : Math.min(tokens, most) }
}

/** At least 1 of each, or nobody could call at all. */
function part(limits: Limits | null, processes: number): Limits | null {
  if (limits === null || processes <= 1) return limits
  const share = (limit: number | null) =>
    limit === null || limit === 0 ? limit : Math.max(1, Math.floor(limit / processes))
  return {
    requestsPerMinute: share(limits.requestsPerMinute),
    tokensPerMinute: share(limits.tokensPerMinute),
    concurrency: share(limits.concurrency)
  }
}

function countersAt(numbers: readonly number[], at: number, window: number): Counters {
  const [requests = 0, requestsBefore = 0, tokens = 0, tokensBefore = 0, running = 0] = numbers.slice(
    at,
    at + countersPerScope
  )
  return { window, requests, requestsBefore, tokens, tokensBefore, running }
}

function numbersOf(answer: unknown): number[] {
  if (!Array.isArray(answer)) throw new TypeError('The script of limits answered with something else.')
  return answer.map(Number)
}
