import { Counter, Gauge, Histogram, type Registry } from 'prom-client'
import { usdOf } from '../../schemas/money.ts'

// Counters of our own behind prom-client's registry: its `inc({ labels })` makes a text of the labels with each call,
// which costs more than everything else that is counted. Ours are found once, and are themselves what is written.

export type Labels = Readonly<Record<string, string>>

/** One line of the exposition. prom-client makes the text of `sharedLabels` once for each object. */
interface Line {
  readonly labels: Labels
  readonly sharedLabels: Labels
  readonly value: number
  readonly metricName?: string
}

const none: Labels = {}

/** Bounds for durations: from what is refused at once to the longest answers of slow models. */
export const seconds: readonly number[] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300]

/** One number that grows. */
export class Count implements Line {
  readonly labels = none
  readonly sharedLabels: Labels
  value = 0

  constructor(labels: Labels) {
    this.sharedLabels = labels
  }
}

/** From here on what was spent is carried into a bigint, long before numbers stop being exact. */
const carryFrom = 2 ** 52

/** Money: added up in nano-USD, read in USD. */
export class Spend implements Line {
  readonly labels = none
  readonly sharedLabels: Labels
  #nano = 0
  #carry = 0n

  constructor(labels: Labels) {
    this.sharedLabels = labels
  }

  add(nano: number): void {
    this.#nano += nano
    if (this.#nano < carryFrom) return
    this.#carry += BigInt(this.#nano)
    this.#nano = 0
  }

  get value(): number {
    return usdOf(this.#carry + BigInt(this.#nano))
  }
}

/** One line of a histogram. */
class Part implements Line {
  readonly labels = none
  readonly sharedLabels: Labels
  readonly metricName: string
  value = 0

  constructor(metricName: string, labels: Labels) {
    this.metricName = metricName
    this.sharedLabels = labels
  }
}

/** How often something was at most how large. */
export class Distribution {
  readonly lines: readonly Part[]
  #bounds: readonly number[]
  #buckets: readonly Part[]
  #all: Part
  #sum: Part
  #count: Part

  constructor(name: string, bounds: readonly number[], labels: Labels) {
    const bucket = (le: string) => new Part(`${name}_bucket`, { ...labels, le })
    this.#bounds = bounds
    this.#buckets = bounds.map(bound => bucket(String(bound)))
    this.#all = bucket('+Inf')
    this.#sum = new Part(`${name}_sum`, labels)
    this.#count = new Part(`${name}_count`, labels)
    this.lines = [...this.#buckets, this.#all, this.#sum, this.#count]
  }

  observe(value: number): void {
    for (let index = this.#bounds.length - 1; index >= 0 && value <= this.#bounds[index]!; index--) {
      this.#buckets[index]!.value++
    }
    this.#all.value++
    this.#count.value++
    this.#sum.value += value
  }
}

/** What is read at the scrape: a value by its labels. */
export type Reading = readonly [labels: Labels, value: number]

/** Makes metrics. Each of the first three gives what makes one series of it, to be kept by whoever counts with it. */
export interface Families {
  counter(name: string, help: string, labels?: readonly string[]): (labels: Labels) => Count
  /** A counter of USD. */
  spend(name: string, help: string, labels?: readonly string[]): (labels: Labels) => Spend
  histogram(
    name: string,
    help: string,
    bounds: readonly number[],
    labels: readonly string[]
  ): (labels: Labels) => Distribution
  /** One whose values somebody else has. */
  read(kind: 'counter' | 'gauge', name: string, help: string, labels: readonly string[], read: () => Reading[]): void
}

export function createFamilies(registry: Registry): Families {
  const registers = [registry]

  return {
    counter(name, help, labels = []) {
      const counts: Count[] = []
      expose(new Counter({ name, help, labelNames: [...labels], registers }), () => counts)
      return labels => kept(counts, new Count(labels))
    },
    spend(name, help, labels = []) {
      const spends: Spend[] = []
      expose(new Counter({ name, help, labelNames: [...labels], registers }), () => spends)
      return labels => kept(spends, new Spend(labels))
    },
    histogram(name, help, bounds, labels) {
      const all: Distribution[] = []
      const metric = new Histogram({ name, help, labelNames: [...labels], buckets: [...bounds], registers })
      expose(metric, () => all.flatMap(({ lines }) => lines))
      return labels => kept(all, new Distribution(name, bounds, labels))
    },
    read(kind, name, help, labels, read) {
      const Kind = kind === 'counter' ? Counter : Gauge
      expose(new Kind({ name, help, labelNames: [...labels], registers }), () =>
        read().map(([sharedLabels, value]) => ({ labels: none, sharedLabels, value }))
      )
    }
  }
}

function kept<Entry>(list: Entry[], entry: Entry): Entry {
  list.push(entry)
  return entry
}

/** Puts lines in the place of what a metric of prom-client holds. */
function expose(metric: Counter | Gauge | Histogram, lines: () => readonly Line[]): void {
  const form = metric.get()
  // For a host that reads our registry as JSON, or merges it with its own.
  metric.get = async () => ({
    ...(await form),
    values: lines().map(({ sharedLabels, value, metricName }) => ({ labels: sharedLabels, value, metricName }))
  })
  // What the registry asks for where it is there: labels stay apart, so that their text is made once.
  Object.assign(metric, { getForPromString: async () => ({ ...(await form), values: lines() }) })
}
