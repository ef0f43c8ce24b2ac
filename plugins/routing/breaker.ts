/** How a breaker is set. */
export interface BreakerOptions {
  /** Failures one after another that open it. */
  readonly failures: number
  /**
   * Milliseconds for which nobody has succeeded by then. Default 0. Where one call in four fails and there are many, five fail
   * in a row every second or so, on all targets: without this they would all be left alone, though most calls succeed.
   */
  readonly quiet?: number
  /** Milliseconds that it stays open at first; doubled each time its probe fails. */
  readonly openFor: number
  /** The most milliseconds that it stays open. */
  readonly mostOpenFor: number
}

export type BreakerState = 'closed' | 'open' | 'half-open'

/**
 * Keeps calls from what does not answer. Closed: everybody passes. Open: nobody, until its time is over. Half-open: one
 * call passes, the probe, whose end decides; every call is known by an object of its own. A class, because there is one
 * for each target and three for each of its keys.
 */
export class Breaker {
  /** Milliseconds since 1970 until which it is open; 0 while it is closed. */
  openUntil = 0
  #options: BreakerOptions
  #failures = 0
  #succeededAt = Number.NEGATIVE_INFINITY
  /** How often it has opened since somebody succeeded. */
  #opened = 0
  #probe: object | null = null

  constructor(options: BreakerOptions) {
    this.#options = options
  }

  state(now: number): BreakerState {
    if (this.openUntil === 0) return 'closed'
    return now < this.openUntil ? 'open' : 'half-open'
  }

  /** Whether a call may pass. */
  passes(now: number): boolean {
    return this.openUntil === 0 || (now >= this.openUntil && this.#probe === null)
  }

  /** A call that may pass begins. If it is the probe it has to be told how it ends, or released. */
  enter(call: object): void {
    if (this.openUntil !== 0) this.#probe = call
  }

  /** It has ended, and if it was the probe and nobody has said how, the next call is. */
  release(call: object): void {
    if (this.#probe === call) this.#probe = null
  }

  /** A call has ended well. While it is open this is old news, and its time goes on. True: this closed it. */
  succeed(now: number): boolean {
    if (now < this.openUntil) return false
    this.#failures = 0
    this.#succeededAt = now
    this.#opened = 0
    return this.#close()
  }

  /**
   * There is a sign of life, which is not yet a call that ended well: it closes on trial, and the next failure opens it for
   * longer than before. True: this closed it.
   */
  mend(now: number): boolean {
    if (this.openUntil === 0 || now < this.openUntil) return false
    this.#failures = this.#options.failures - 1
    return this.#close()
  }

  /** True: this opened it. What fails while it is not closed was on its way before, unless it is the probe. */
  fail(call: object, now: number): boolean {
    if (now < this.openUntil) return false
    if (this.openUntil !== 0 && this.#probe !== call) return false
    const { failures, quiet = 0, openFor } = this.#options
    if (this.openUntil === 0 && (++this.#failures < failures || now - this.#succeededAt < quiet)) return false
    this.open(now, openFor * 2 ** Math.min(this.#opened++, 20))
    return true
  }

  /** Opens it at once; a longer time that runs already stays. */
  open(now: number, milliseconds: number): void {
    this.#probe = null
    this.openUntil = Math.max(this.openUntil, now + Math.min(milliseconds, this.#options.mostOpenFor))
  }

  #close(): boolean {
    const closed = this.openUntil !== 0
    this.openUntil = 0
    this.#probe = null
    return closed
  }
}
