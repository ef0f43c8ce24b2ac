import type { Attributes } from '@opentelemetry/api'
import type { Instrument } from './names.ts'

/**
 * A histogram with one set of attributes. The SDK's own makes a text of all attributes for every value, which costs more
 * than everything else that a call without a recorded span costs.
 */
export class Buckets {
  readonly instrument: Instrument
  readonly attributes: Attributes
  /** One more than there are bounds; a value that equals a bound is below it. */
  counts: number[]
  count = 0
  sum = 0
  min = Number.POSITIVE_INFINITY
  max = Number.NEGATIVE_INFINITY
  #bounds: readonly number[]

  constructor(instrument: Instrument, attributes: Attributes) {
    this.instrument = instrument
    this.attributes = attributes
    this.#bounds = instrument.bounds
    this.counts = new Array(this.#bounds.length + 1).fill(0)
  }

  add(value: number): void {
    if (!(value >= 0)) return
    const bounds = this.#bounds
    let index = 0
    while (index < bounds.length && value > bounds[index]!) index++
    this.counts[index]!++
    this.count++
    this.sum += value
    if (value < this.min) this.min = value
    if (value > this.max) this.max = value
  }

  /** Begins anew, for collectors that want to know what has come since the last time. */
  clear(): void {
    this.counts = this.counts.map(() => 0)
    this.count = 0
    this.sum = 0
    this.min = Number.POSITIVE_INFINITY
    this.max = Number.NEGATIVE_INFINITY
  }
}
