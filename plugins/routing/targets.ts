import type { Provider } from '../../schemas/provider.ts'
import type { BreakerOptions, BreakerState } from './breaker.ts'
import type { StateOf } from './compile.ts'
import { type KeyPool, type KeyRest, keyPool } from './lane.ts'
import type { Room } from './places.ts'
import { TargetState, type Told } from './target-state.ts'

/** What is known of the targets of this gateway. */
export interface Targets {
  list(): TargetReport[]
  /** Names of the table's targets by state, for /ready. Everybody may ask there: names from callers are left out. */
  readiness(): { up: string[]; down: string[] }
  /** How the table's targets are, of those that callers name only their keys: cheap enough to be asked all the time. */
  standing(): Standing
  /** For a table in the making: gives the state of each of its targets, one that is known or a new one. */
  draft(): StateOf
  /** The targets of the table, from now on; what is known of others is forgotten. */
  keep(rooms: ReadonlyMap<TargetState, Room | null>): void
  /** What is known of one that a caller has named. Some are kept, the oldest go first. */
  passing(provider: Provider, model: string): TargetState
  /** All of them. */
  readonly states: readonly TargetState[]
}

/** For the metrics. */
export interface Standing {
  readonly targets: ReadonlyArray<{
    readonly provider: string
    readonly model: string
    readonly state: BreakerState
    readonly running: number
    readonly queued: number
  }>
  /** How many keys of each provider rest at one of its targets at least, and why. */
  readonly resting: ReadonlyMap<string, Readonly<Record<KeyRest['why'], number>>>
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

export function createTargets(options: BreakerOptions, told: Told, now: () => number): Targets {
  const pools = new Map<Provider, KeyPool>()
  const passing = new Map<string, TargetState>()
  let table = new Map<string, TargetState>()

  function all(): TargetState[] {
    return [...table.values(), ...passing.values()]
  }

  function known(id: string): TargetState | undefined {
    return table.get(id) ?? passing.get(id)
  }

  function made(provider: Provider, model: string): TargetState {
    return new TargetState(provider, model, poolOf(provider), options, told)
  }

  function poolOf(provider: Provider): KeyPool {
    const known = pools.get(provider)
    if (known !== undefined) return known
    const pool = keyPool(provider)
    pools.set(provider, pool)
    return pool
  }

  return {
    get states() {
      return all()
    },
    draft() {
      const drafted = new Map<string, TargetState>()
      return (provider, model) => {
        const id = idOf({ provider, model })
        const state = drafted.get(id) ?? known(id) ?? made(provider, model)
        drafted.set(id, state)
        return state
      }
    },
    keep(rooms) {
      table = new Map([...rooms.keys()].map(state => [idOf(state), state]))
      for (const [state, room] of rooms) state.places.room = room
      for (const id of table.keys()) passing.delete(id)
    },
    passing(provider, model) {
      const id = idOf({ provider, model })
      const state = known(id) ?? made(provider, model)
      if (table.has(id) || passing.has(id)) return state
      if (passing.size >= mostPassing) for (const oldest of passing.keys()) if (passing.delete(oldest)) break
      passing.set(id, state)
      return state
    },
    list: () => all().map(state => reportOf(state, now())),
    standing() {
      const time = now()
      return { targets: [...table.values()].map(state => standingOf(state, time)), resting: restingOf(all(), time) }
    },
    readiness() {
      const time = now()
      const targets = [...table.values()]
      const isUp = (state: TargetState) => state.breaker.state(time) === 'closed' && state.rest(time) === null
      return { up: targets.filter(isUp).map(nameOf), down: targets.filter(state => !isUp(state)).map(nameOf) }
    }
  }
}

/** Neither part holds a space, so no two targets share it. */
function idOf({ provider, model }: Pick<TargetState, 'provider' | 'model'>): string {
  return `${provider.name} ${model}`
}

function nameOf({ provider, model }: TargetState): string {
  return `${provider.name}/${model}`
}

function reportOf(target: TargetState, now: number): TargetReport {
  const { breaker, places, attempts, failures, latency, firstToken, lastError } = target
  const ended = attempts - places.taken
  return {
    provider: target.provider.name,
    model: target.model,
    state: breaker.state(now),
    open_until: breaker.openUntil === 0 ? null : iso(breaker.openUntil),
    in_flight: places.taken,
    queued: places.waiting,
    attempts,
    failures,
    success_rate: ended > 0 ? Math.max(0, 1 - failures / ended) : null,
    latency_ms: { p50: latency.percentile(0.5), p95: latency.percentile(0.95) },
    first_token_ms: { p50: firstToken.percentile(0.5), p95: firstToken.percentile(0.95) },
    last_error: lastError === null ? null : { ...lastError, time: iso(lastError.time) },
    keys: target.lanes.map(lane => {
      const rest = lane.rest(now)
      if (rest === null || rest.until <= now) return { key: lane.key + 1, resting: null, until: null }
      return { key: lane.key + 1, resting: rest.why, until: iso(rest.until) }
    })
  }
}

function standingOf({ provider, model, breaker, places }: TargetState, now: number): Standing['targets'][number] {
  return {
    provider: provider.name,
    model,
    state: breaker.state(now),
    running: places.taken,
    queued: places.waiting
  }
}

function restingOf(targets: readonly TargetState[], now: number): Standing['resting'] {
  const keys = new Map<string, { refused: Set<number>; limited: Set<number> }>()
  for (const { provider, lanes } of targets) {
    const found = keys.get(provider.name) ?? { refused: new Set(), limited: new Set() }
    keys.set(provider.name, found)
    for (const lane of lanes) {
      const rest = lane.rest(now)
      if (rest !== null && rest.until > now) found[rest.why].add(lane.key)
    }
  }
  return new Map(
    [...keys].map(([name, { refused, limited }]) => [name, { refused: refused.size, limited: limited.size }])
  )
}

function iso(time: number): string {
  return new Date(time).toISOString()
}
