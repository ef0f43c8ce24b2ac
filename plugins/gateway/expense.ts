import { Cancelled, ShuttingDown } from '../../schemas/errors.ts'
import type { Accountant, Expense, Inference, Meter, Target } from '../../schemas/gateway.ts'
import { noUsage, type Usage } from '../../schemas/usage.ts'

/** Who keeps books, put together from the plugins that do. */
export interface Books {
  cost: NonNullable<Accountant['cost']> | null
  open: NonNullable<Accountant['open']> | null
  /** Somebody who listened to the end of a provider call failed. */
  failed(error: unknown, call: Inference): void
}

/**
 * One provider call in the books. Whoever ends it first decides how: dispatch with its answer or failure, the call that
 * is ended from outside. A class for the reason of relay.ts.
 */
export class Entry implements Expense {
  readonly inference: Inference
  readonly target: Target
  readonly number: number
  readonly started = performance.now()
  status: Expense['status'] = 'open'
  usage: Usage = noUsage
  cost: number | null = null
  error: unknown = null
  duration: number | null = null
  firstToken: number | null = null
  reads = 0
  meter: Meter | null = null
  #books: Books
  #listeners: Array<(expense: Expense) => void> | null = null

  constructor(books: Books, inference: Inference, target: Target, number: number) {
    this.#books = books
    this.inference = inference
    this.target = target
    this.number = number
  }

  get metered(): boolean {
    return this.#books.cost !== null || this.#books.open !== null
  }

  settle(): void {
    this.#end('settled', null)
  }

  fail(error: unknown): void {
    // The reason of the call's own signal: its time is up.
    const isOurs = error === this.inference.signal.reason || error instanceof Cancelled || error instanceof ShuttingDown
    this.#end(isOurs ? 'interrupted' : 'failed', error)
  }

  /** It was broken off by us: its caller left, or its time was up. */
  interrupt(error: unknown): void {
    this.#end('interrupted', error)
  }

  onEnded(listener: (expense: Expense) => void): void {
    if (this.status !== 'open') this.#tell(listener)
    else if (this.#listeners === null) this.#listeners = [listener]
    else this.#listeners.push(listener)
  }

  #end(status: Exclude<Expense['status'], 'open'>, error: unknown): void {
    if (this.status !== 'open') return
    // Reading the usage may find out that an answer is no JSON after all: then this has not ended yet.
    const usage = this.metered && this.meter !== null ? chargeable(this.meter.usage(), status) : noUsage
    this.status = status
    this.error = error
    this.duration = performance.now() - this.started
    this.usage = usage
    if (this.#books.cost !== null) this.cost = usage === noUsage ? 0 : this.#books.cost(this.target, usage)
    const listeners = this.#listeners
    this.#listeners = null
    if (listeners !== null) for (const listener of listeners) this.#tell(listener)
    this.meter?.ended?.(this)
  }

  #tell(listener: (expense: Expense) => void): void {
    try {
      listener(this)
    } catch (error) {
      this.#books.failed(error, this.inference)
    }
  }
}

/** What failed before any output costs what its provider reported, else nothing; who breaks off has had the input read. */
function chargeable(usage: Usage, status: Expense['status']): Usage {
  const nothing = status === 'failed' && usage.source === 'estimated' && usage.output === 0
  return nothing ? noUsage : usage
}
