/** How many of the last values count. */
const length = 256

/** How many new values make `usual` be computed anew. */
const renewAfter = 16

/** The last values of a measure, for percentiles. Adding one costs a store; a percentile is computed when it is asked for. */
export class Window {
  #values = new Float64Array(length)
  #count = 0
  #usual: number | null = null
  #usualAt = 0

  add(value: number): void {
    this.#values[this.#count++ % length] = value
  }

  get size(): number {
    return Math.min(this.#count, length)
  }

  /** What 19 of 20 values do not pass, as of a moment ago; null while they are fewer than 20. */
  get usual(): number | null {
    if (this.#count < 20) return null
    if (this.#usual === null || this.#count - this.#usualAt >= renewAfter) {
      this.#usual = this.percentile(0.95)
      this.#usualAt = this.#count
    }
    return this.#usual
  }

  /** The value below which this share of the last ones lies, 0 to 1; null while there is none. */
  percentile(share: number): number | null {
    const { size } = this
    if (size === 0) return null
    const sorted = this.#values.slice(0, size).sort()
    return sorted[Math.min(size - 1, Math.floor(share * size))]!
  }
}
