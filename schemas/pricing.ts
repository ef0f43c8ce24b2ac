import type { Target } from './gateway.ts'
import type { Usage } from './usage.ts'

/** Pico-USD per token, whole numbers, one for each bucket of Usage. */
export interface Rates {
  readonly input: number
  readonly cacheRead: number
  readonly cacheWrite5m: number
  readonly cacheWrite1h: number
  readonly audioInput: number
  readonly output: number
  readonly reasoning: number
  readonly audioOutput: number
}

/** What a target costs, compiled. */
export interface PriceCard {
  /** `target` from the configuration, `provider` as the adapter says (the echo is free), `table` built in. */
  readonly source: 'target' | 'provider' | 'table'
  /** Goes with every row of the ledger: `config`, `provider`, or the table's name and version. */
  readonly version: string
  readonly rates: Rates
  /** Pico-USD per call. */
  readonly request: number
  /** The rates of a call with more than `above` input tokens, cached ones counted: all of its tokens cost them. Ascending. */
  readonly tiers: ReadonlyArray<{ readonly above: number; readonly rates: Rates }>
}

/** Prices: lookups and sums without the network. Nothing here throws on the way of a request. */
export interface Pricing {
  /** Null: nobody knows what this target costs. Unknown is not zero. */
  of(target: Target): PriceCard | null
  /** Nano-USD of one provider call. The provider's own charge wins. Null: unknown. At most `mostNano`. */
  cost(target: Target, usage: Usage): number | null
  /**
   * The most that so many tokens can cost at this target, in nano-USD, rounded up; null: unknown. A provider's own charge
   * is not bound by it. Prices that change within a day count as well.
   */
  bound(target: Target, input: number, output: number): number | null
  /** What so many tokens are likely to cost: plain input and output. Null: unknown. */
  estimate(target: Target, input: number, output: number): number | null
  /** The built-in table, as /ready and the start-up log show it; null: switched off. */
  readonly table: { readonly name: string; readonly version: string; readonly published: string | null } | null
}

declare module './gateway.ts' {
  interface Gateway {
    pricing?: Pricing
  }
}
