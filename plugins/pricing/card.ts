import type { Price } from '../../schemas/model-options.ts'
import { nanoOf, picoOf } from '../../schemas/money.ts'
import type { PriceCard, Rates } from '../../schemas/pricing.ts'

/** One step of a price list, as it is written. */
type Written = Omit<Price, 'input' | 'output' | 'request' | 'tiers'> & {
  readonly input?: number
  readonly output?: number
}

const free: Rates = {
  input: 0,
  cacheRead: 0,
  cacheWrite5m: 0,
  cacheWrite1h: 0,
  audioInput: 0,
  output: 0,
  reasoning: 0,
  audioOutput: 0
}

/** Compiles a price list: USD per million tokens to whole pico-USD per token. @throws RangeError for what cannot be counted */
export function cardOf(price: Price, source: PriceCard['source'], version: string): PriceCard {
  const rates = ratesOf(price, free)
  let below = rates
  const tiers = [...(price.tiers ?? [])]
    .sort((one, other) => one.above - other.above)
    .map(tier => {
      below = ratesOf(tier, below)
      return { above: tier.above, rates: below }
    })
  const request = nanoOf(price.request ?? 0) * 1_000
  if (!Number.isSafeInteger(request)) throw new RangeError(`${price.request} USD a call cannot be counted exactly.`)
  return { source, version, rates, request, tiers }
}

/**
 * What a step leaves out costs what its plain kind costs; a step that does not name the plain kind either leaves it as it
 * is below.
 */
function ratesOf(written: Written, below: Rates): Rates {
  const input = written.input === undefined ? below.input : picoOf(written.input)
  const output = written.output === undefined ? below.output : picoOf(written.output)

  function extra(price: number | undefined, plain: number, own: boolean, before: number): number {
    if (price !== undefined) return picoOf(price)
    return own ? plain : before
  }

  const ownInput = written.input !== undefined
  const ownOutput = written.output !== undefined
  const cacheWrite5m = extra(written.cacheWrite, input, ownInput, below.cacheWrite5m)
  const ownWrite = ownInput || written.cacheWrite !== undefined
  return {
    input,
    cacheRead: extra(written.cacheRead, input, ownInput, below.cacheRead),
    cacheWrite5m,
    cacheWrite1h: extra(written.cacheWrite1h, cacheWrite5m, ownWrite, below.cacheWrite1h),
    audioInput: extra(written.audioInput, input, ownInput, below.audioInput),
    output,
    reasoning: extra(written.reasoning, output, ownOutput, below.reasoning),
    audioOutput: extra(written.audioOutput, output, ownOutput, below.audioOutput)
  }
}
