import type { GatewayError } from '../../schemas/errors.ts'
import type { Provider } from '../../schemas/provider.ts'
import { Breaker, type BreakerOptions } from './breaker.ts'

/** A key that is refused rests as long, then twice, and so on. */
const restOfRefused: BreakerOptions = { failures: 1, openFor: 60_000, mostOpenFor: 600_000 }
/** 403 may be about what a caller said, so that one caller must not rest a key for all: only several in a row do. */
const restOfForbidden: BreakerOptions = { failures: 3, openFor: 30_000, mostOpenFor: 600_000 }
/** One that has to wait and is not told how long: at first, doubled each time; and the most, told or not. */
const restOfLimited = 1_000
const longestRestOfLimited = 3_600_000

/** One breaker for each key of a provider: a key that is refused is refused at all of its targets. */
export type KeyPool = readonly Breaker[]

export function keyPool(provider: Provider): KeyPool {
  return Array.from({ length: Math.max(1, provider.keys ?? 1) }, () => new Breaker(restOfRefused))
}

/** Why nobody may use a key, and until when, in milliseconds since 1970. */
export interface KeyRest {
  readonly why: 'refused' | 'limited'
  readonly until: number
}

/** One key at one target. A class, because it is asked several times a call. */
export class Lane {
  /** Counted from 0; the provider knows which key that is. */
  readonly key: number
  /** 401 and 402. */
  readonly #refused: Breaker
  /** 403: this model, or what was said to it. */
  readonly #forbidden = new Breaker(restOfForbidden)
  /** 429: vendors count by model. No breaker: once the time is over everybody may come. */
  #limitedUntil = 0
  #limits = 0

  constructor(key: number, refused: Breaker) {
    this.key = key
    this.#refused = refused
  }

  passes(now: number): boolean {
    return now >= this.#limitedUntil && this.#refused.passes(now) && this.#forbidden.passes(now)
  }

  enter(call: object): void {
    this.#refused.enter(call)
    this.#forbidden.enter(call)
  }

  release(call: object): void {
    this.#refused.release(call)
    this.#forbidden.release(call)
  }

  succeed(now: number): void {
    this.#refused.succeed(now)
    this.#forbidden.succeed(now)
    if (now >= this.#limitedUntil) this.#limits = 0
  }

  /** The provider refuses it. True: it rests from now on. */
  refuse(call: object, { upstream }: GatewayError, now: number): boolean {
    return (upstream === 403 ? this.#forbidden : this.#refused).fail(call, now)
  }

  /** The provider limits it. What comes without a time while it rests was on its way before. */
  limit({ retryAfter }: GatewayError, now: number): void {
    if (retryAfter === null && now < this.#limitedUntil) return
    const rest = retryAfter ?? restOfLimited * 2 ** Math.min(this.#limits++, 20)
    this.#limitedUntil = Math.max(this.#limitedUntil, now + Math.min(rest, longestRestOfLimited))
  }

  /** Null: it may be used. */
  rest(now: number): KeyRest | null {
    if (this.passes(now)) return null
    const refused = Math.max(this.#refused.openUntil, this.#forbidden.openUntil)
    const until = Math.max(refused, this.#limitedUntil)
    return { why: refused === until ? 'refused' : 'limited', until }
  }
}
