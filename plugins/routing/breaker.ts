/** How a breaker is set. */
export interface BreakerOptions {
  /** Failures one after another that open it. */
  readonly failures: number
  /** Milliseconds that it stays open at first; doubled each time its probe fails. */
  readonly openFor: number
  /** The most milliseconds that it stays open. */
  readonly mostOpenFor: number
}

export type BreakerState = 'closed' | 'open' | 'half-open'

/**
 * Keeps calls from what does not answer. Closed: everybody passes. Open: nobody, until its time is over. Half-open: one
 * call passes, the probe, whose end decides. A class, because there is one for each target and each of its keys.
 */
export class Breaker {
  /** Milliseconds since 1970 until which it is open; 0 while it is closed. */
  openUntil = 0
  #options: BreakerOptions
  #failures = 0
  #opened = 0
  #probing = false

  constructor(options: BreakerOptions) {
    this.#options = options
  }

  state(now: number): BreakerState {
    if (this.openUntil === 0) return 'closed'
    return now < this.openUntil ? 'open' : 'half-open'
  }

  /** Whether a call may pass. */
  passes(now: number): boolean {
    return this.openUntil === 0 || (now >= this.openUntil && !this.#probing)
  }

  /** A call that may pass begins. True: it is the probe; its end has to be told, whatever it is. */
  enter(): boolean {
    if (this.openUntil === 0) return false
    this.#probing = true
    return true
  }

  /** True: this closed it. While it is open this is old news, and its time goes on. */
  succeed(now: number): boolean {
    if (now < this.openUntil) return false
    const closed = this.openUntil !== 0
    this.#failures = 0
    this.#opened = 0
    this.openUntil = 0
    this.#probing = false
    return closed
  }

  /** True: this opened it. What fails while it is open was on its way before. */
  fail(now: number): boolean {
    if (now < this.openUntil) return false
    if (this.openUntil === 0 && ++this.#failures < this.#options.failures) return false
    this.open(now, this.#options.openFor * 2 ** Math.min(this.#opened++, 20))
    return true
  }

  /** Opens it at once; a longer time that runs already stays. */
  open(now: number, milliseconds: number): void {
    this.#probing = false
    this.openUntil = Math.max(this.openUntil, now + Math.min(milliseconds, this.#options.mostOpenFor))
  }

  /** The probe ended without saying anything of its target. */
  release(): void {
    this.#probing = false
  }
}
