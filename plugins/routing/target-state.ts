import type { GatewayError } from '../../schemas/errors.ts'
import type { Log } from '../../schemas/gateway.ts'
import type { Provider } from '../../schemas/provider.ts'
import { Breaker, type BreakerOptions } from './breaker.ts'
import { Window } from './window.ts'

/** Milliseconds after which news weighs as much as what was known before. */
const memory = 10_000
/** Milliseconds without news after which a third of the latency is left. */
const fading = 60_000
/** A key that is refused without a further word rests as long, then twice, and so on. */
const restOfKey: BreakerOptions = { failures: 1, openFor: 60_000, mostOpenFor: 600_000 }
/** One that has to wait and is not told how long. */
const restOfLimit: BreakerOptions = { failures: 1, openFor: 1_000, mostOpenFor: 3_600_000 }
/** 403 may be about what a caller said, so that one caller must not rest a key for all: only several in a row do. */
const restOfForbidden: BreakerOptions = { failures: 3, openFor: 30_000, mostOpenFor: 600_000 }

/** One key at one target. */
export interface Lane {
  /** Counted from 0; the provider knows which key that is. */
  readonly key: number
  /** The vendor limits it here. */
  readonly limit: Breaker
  /** The vendor refuses it here: 403. */
  readonly forbidden: Breaker
  /** The vendor refuses it everywhere: 401 and 402. Shared by the targets of one provider. */
  readonly refused: Breaker
}

/** One key, for all targets of its provider. */
export type KeyBreakers = readonly Breaker[]

export function keyBreakers(provider: Provider): KeyBreakers {
  return Array.from({ length: Math.max(1, provider.keys ?? 1) }, () => new Breaker(restOfKey))
}

/** Why nobody is let in. */
export type Rest = 'breaker' | 'key' | 'limit'

/** A call that waits for a place. */
interface Waiter {
  readonly admit: () => void
}

export interface Room {
  /** The most calls at a time. */
  readonly concurrency: number
  /** How many may wait for a place, and for how many milliseconds. */
  readonly queue: { readonly size: number; readonly timeout: number }
}

/**
 * What is known of one model of one provider, by whatever alias it is reached, and who may ask it now. It outlives a
 * change of the routing table. A class: it is asked several times a call.
 */
export class TargetState {
  readonly provider: Provider
  readonly model: string
  readonly breaker: Breaker
  readonly lanes: readonly Lane[]
  inFlight = 0
  attempts = 0
  failures = 0
  /** Milliseconds since 1970 of the last fault, and its words. */
  lastError: { time: number; code: string; message: string } | null = null
  /** Milliseconds of whole answers and streams to their end, and of streams to their first token. */
  readonly latency = new Window()
  readonly firstToken = new Window()
  room: Room | null = null
  #log: Log
  #waiting: Waiter[] = []
  #turn = 0
  #latency = 0
  #heardAt = 0

  constructor(provider: Provider, model: string, keys: KeyBreakers, options: BreakerOptions, log: Log) {
    this.provider = provider
    this.model = model
    this.breaker = new Breaker(options)
    this.lanes = keys.map((refused, key) => ({
      key,
      refused,
      limit: new Breaker(restOfLimit),
      forbidden: new Breaker(restOfForbidden)
    }))
    this.#log = log
  }

  get queued(): number {
    return this.#waiting.length
  }

  /**
   * Peak EWMA: milliseconds that a further call would probably wait for its answer (its first token, for a stream). Quick to
   * rise and slow to fall; without news it fades, so that a target that was slow once is tried again. 0: unknown.
   */
  load(now: number): number {
    return this.#latency * Math.exp((this.#heardAt - now) / fading) * (this.inFlight + 1)
  }

  /** A lane that may be used, beginning with the preferred one or else in turn; null: all of them rest. */
  lane(now: number, preferred: number | null): Lane | null {
    const { lanes } = this
    if (lanes.length === 1) return passes(lanes[0]!, now) ? lanes[0]! : null
    const start = preferred ?? this.#turn++
    for (let index = 0; index < lanes.length; index++) {
      const lane = lanes[(start + index) % lanes.length]!
      if (passes(lane, now)) return lane
    }
    return null
  }

  /** Why nobody may ask, and until when, in milliseconds since 1970; null: somebody may. */
  rest(now: number): { why: Rest; until: number } | null {
    if (!this.breaker.passes(now)) return { why: 'breaker', until: this.breaker.openUntil }
    if (this.lanes.some(lane => passes(lane, now))) return null
    const until = Math.min(...this.lanes.map(openUntil))
    const limited = this.lanes.some(({ limit }) => !limit.passes(now))
    return { why: limited ? 'limit' : 'key', until }
  }

  /** Takes a place, if there is one. */
  enter(): boolean {
    const { room } = this
    if (room !== null && this.inFlight >= room.concurrency) return false
    this.inFlight++
    return true
  }

  /** Waits for a place: whether one was taken in time. */
  queue(signal: AbortSignal): Promise<boolean> {
    const { room } = this
    if (this.enter()) return Promise.resolve(true)
    if (room === null || this.#waiting.length >= room.queue.size || signal.aborted) return Promise.resolve(false)
    return new Promise(resolve => {
      const leave = () => {
        this.#waiting.splice(this.#waiting.indexOf(waiter), 1)
        done(false)
      }
      const done = (admitted: boolean) => {
        clearTimeout(timer)
        signal.removeEventListener('abort', leave)
        resolve(admitted)
      }
      const waiter: Waiter = { admit: () => done(true) }
      const timer = setTimeout(leave, room.queue.timeout)
      signal.addEventListener('abort', leave)
      this.#waiting.push(waiter)
    })
  }

  /** Gives a place back: to the one who has waited longest, if it is still wanted. */
  leave(): void {
    const next = this.room === null || this.inFlight <= this.room.concurrency ? this.#waiting.shift() : undefined
    if (next === undefined) this.inFlight--
    else next.admit()
  }

  /** It has answered. `milliseconds`: to the first token, or to the whole answer. */
  succeeded(lane: Lane, milliseconds: number, now: number): void {
    if (this.breaker.succeed(now)) this.#log.info(this.#named(), 'a target answers again')
    lane.refused.succeed(now)
    lane.forbidden.succeed(now)
    lane.limit.succeed(now)
    const past = Math.exp((this.#heardAt - now) / memory)
    this.#latency = Math.max(milliseconds, this.#latency * past + milliseconds * (1 - past))
    this.#heardAt = now
  }

  /** It has failed. `counts`: in a way that says something of its health. */
  failed(lane: Lane, error: GatewayError, counts: boolean, now: number): void {
    this.failures++
    this.lastError = { time: now, code: error.wire ?? error.code, message: error.message }
    if (counts) {
      if (!this.breaker.fail(now)) return
      this.#log.warn({ ...this.#named(), ...this.lastError }, 'a target is left alone for a while')
      return
    }
    this.breaker.release()
    if (error.blame === 'limit') this.#restLimited(lane, error.retryAfter, now)
    if (error.blame === 'key') this.#restKey(lane, error, now)
    // It refuses the request, so it is there.
    if (error.blame === 'request') this.breaker.succeed(now)
  }

  #restLimited({ limit, key }: Lane, retryAfter: number | null, now: number): void {
    if (retryAfter === null) limit.fail(now)
    else if (retryAfter > 0) limit.open(now, retryAfter)
    this.#log.debug({ ...this.#named(), key, retryAfter }, 'a key is limited')
  }

  #restKey({ refused, forbidden, key }: Lane, error: GatewayError, now: number): void {
    const breaker = error.upstream === 403 ? forbidden : refused
    if (!breaker.fail(now)) return
    this.#log.error({ ...this.#named(), key, reason: error.message }, 'a key is refused and rests')
  }

  #named() {
    return { provider: this.provider.name, model: this.model }
  }
}

function passes({ refused, limit, forbidden }: Lane, now: number): boolean {
  return refused.passes(now) && limit.passes(now) && forbidden.passes(now)
}

function openUntil({ refused, limit, forbidden }: Lane): number {
  return Math.max(refused.openUntil, limit.openUntil, forbidden.openUntil)
}
