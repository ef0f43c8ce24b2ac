import type { Log } from '../../schemas/gateway.ts'
import type { Provider } from '../../schemas/provider.ts'
import type { BreakerOptions } from './breaker.ts'
import { type KeyBreakers, keyBreakers, TargetState } from './target-state.ts'

/** What is known of the targets of this gateway. */
export interface Targets {
  list(): TargetReport[]
  /** Names of the table's targets by state, for /ready. Everybody may ask there: names from callers are left out. */
  readiness(): { up: string[]; down: string[] }
  /** What is known of one of the table; made on first touch. */
  state(provider: Provider, model: string): TargetState
  /** What is known of one that a caller has named. Some are kept, the oldest go first. */
  passing(provider: Provider, model: string): TargetState
  /** Those that the table holds; what is known of others is forgotten. */
  keep(states: ReadonlySet<TargetState>): void
  /** All of them. */
  readonly states: Iterable<TargetState>
}

/** One target as the administrator sees it. Times in milliseconds; percentiles over the last 256 calls, null without any. */
export interface TargetReport {
  readonly provider: string
  readonly model: string
  readonly state: 'closed' | 'open' | 'half-open'
  /** When it is tried again, ISO 8601; null while it is not left alone. */
  readonly open_until: string | null
  readonly in_flight: number
  readonly queued: number
  readonly attempts: number
  readonly failures: number
  /** Of all attempts since the start; null before the first. */
  readonly success_rate: number | null
  readonly latency_ms: { readonly p50: number | null; readonly p95: number | null }
  readonly first_token_ms: { readonly p50: number | null; readonly p95: number | null }
  readonly last_error: { readonly time: string; readonly code: string; readonly message: string } | null
  /** Keys by their place in the pool, counted from 1; those that rest say why and until when. */
  readonly keys: ReadonlyArray<{
    readonly key: number
    readonly resting: 'refused' | 'limited' | null
    readonly until: string | null
  }>
}

/** Targets outside the table that are remembered: their names come from callers. */
const mostPassing = 1_000

export function createTargets(options: BreakerOptions, log: Log, now: () => number): Targets {
  const pools = new Map<Provider, KeyBreakers>()
  const passing = new Map<string, TargetState>()
  let states = new Map<string, TargetState>()

  function all(): TargetState[] {
    return [...states.values(), ...passing.values()]
  }

  function made(provider: Provider, model: string): TargetState {
    return new TargetState(provider, model, poolOf(provider), options, log)
  }

  function poolOf(provider: Provider): KeyBreakers {
    const known = pools.get(provider)
    if (known !== undefined) return known
    const pool = keyBreakers(provider)
    pools.set(provider, pool)
    return pool
  }

  return {
    get states() {
      return all()
    },
    state(provider, model) {
      const name = nameOf({ provider, model })
      const known = states.get(name) ?? passing.get(name) ?? made(provider, model)
      states.set(name, known)
      passing.delete(name)
      return known
    },
    passing(provider, model) {
      const name = nameOf({ provider, model })
      const known = states.get(name) ?? passing.get(name)
      if (known !== undefined) return known
      if (passing.size >= mostPassing) for (const oldest of passing.keys()) if (passing.delete(oldest)) break
      const state = made(provider, model)
      passing.set(name, state)
      return state
    },
    keep(kept) {
      states = new Map([...kept].map(state => [nameOf(state), state]))
    },
    list: () => all().map(state => reportOf(state, now())),
    readiness() {
      const time = now()
      const targets = [...states.values()]
      const isUp = (state: TargetState) => state.breaker.state(time) === 'closed' && state.rest(time) === null
      return { up: targets.filter(isUp).map(nameOf), down: targets.filter(state => !isUp(state)).map(nameOf) }
    }
  }
}

function nameOf({ provider, model }: Pick<TargetState, 'provider' | 'model'>): string {
  return `${provider.name}/${model}`
}

function reportOf(target: TargetState, now: number): TargetReport {
  const { breaker, attempts, failures, inFlight, latency, firstToken, lastError } = target
  const ended = attempts - inFlight
  return {
    provider: target.provider.name,
    model: target.model,
    state: breaker.state(now),
    open_until: breaker.openUntil === 0 ? null : iso(breaker.openUntil),
    in_flight: inFlight,
    queued: target.queued,
    attempts,
    failures,
    success_rate: ended > 0 ? Math.max(0, 1 - failures / ended) : null,
    latency_ms: { p50: latency.percentile(0.5), p95: latency.percentile(0.95) },
    first_token_ms: { p50: firstToken.percentile(0.5), p95: firstToken.percentile(0.95) },
    last_error: lastError === null ? null : { ...lastError, time: iso(lastError.time) },
    keys: target.lanes.map(({ key, refused, limit, forbidden }) => {
      const refusedUntil = Math.max(refused.openUntil, forbidden.openUntil)
      const until = Math.max(refusedUntil, limit.openUntil)
      if (until <= now) return { key: key + 1, resting: null, until: null }
      return { key: key + 1, resting: refusedUntil > now ? 'refused' : 'limited', until: iso(until) }
    })
  }
}

function iso(time: number): string {
  return new Date(time).toISOString()
}
