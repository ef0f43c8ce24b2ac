import { mostNano } from '../../schemas/money.ts'
import type { PriceCard, Rates } from '../../schemas/pricing.ts'
import { buckets, inputOf, type Usage } from '../../schemas/usage.ts'

// Sums are exact: whole pico-USD in numbers while they stay below 2^53 (9,007 USD), in bigint above; one rounding at the
// end. What is more than one number of nano-USD may hold is that most.

/** The rates of a call with more than `above` input tokens, and the dearest of each side up to here. */
interface Step {
  readonly above: number
  readonly rates: Rates
  readonly inputMost: number
  readonly outputMost: number
}

/** A price card made ready for sums. */
export interface Sheet {
  readonly request: number
  readonly steps: readonly Step[]
}

export function sheetOf(card: PriceCard): Sheet {
  let inputMost = 0
  let outputMost = 0
  const steps = [{ above: -1, rates: card.rates }, ...card.tiers].map(({ above, rates }) => {
    const { input, cacheRead, cacheWrite5m, cacheWrite1h, audioInput } = rates
    inputMost = Math.max(inputMost, input, cacheRead, cacheWrite5m, cacheWrite1h, audioInput)
    outputMost = Math.max(outputMost, rates.output, rates.reasoning, rates.audioOutput)
    return { above, rates, inputMost, outputMost }
  })
  return { request: card.request, steps }
}

/** Nano-USD of a usage, rounded half up. */
export function costOf(sheet: Sheet, usage: Usage): number {
  const { rates } = stepFor(sheet, inputOf(usage))
  const pico =
    sheet.request +
    usage.input * rates.input +
    usage.cacheRead * rates.cacheRead +
    usage.cacheWrite5m * rates.cacheWrite5m +
    usage.cacheWrite1h * rates.cacheWrite1h +
    usage.audioInput * rates.audioInput +
    usage.output * rates.output +
    usage.reasoning * rates.reasoning +
    usage.audioOutput * rates.audioOutput
  if (pico < Number.MAX_SAFE_INTEGER) return nearest(pico)
  return exactly(sheet.request, usage, rates, buckets, 500n)
}

/** Nano-USD of plain tokens, rounded half up. */
export function estimateOf(sheet: Sheet, input: number, output: number): number {
  const { rates } = stepFor(sheet, input)
  const pico = sheet.request + input * rates.input + output * rates.output
  if (pico < Number.MAX_SAFE_INTEGER) return nearest(pico)
  return exactly(sheet.request, { input, output }, rates, sides, 500n)
}

/** Nano-USD that up to so many tokens of whatever kind cost at most, rounded up. */
export function boundOf(sheet: Sheet, input: number, output: number): number {
  const { inputMost, outputMost } = stepFor(sheet, input)
  const pico = sheet.request + input * inputMost + output * outputMost
  if (pico < Number.MAX_SAFE_INTEGER) {
    const rest = pico % 1_000
    return (pico - rest) / 1_000 + (rest > 0 ? 1 : 0)
  }
  return exactly(sheet.request, { input, output }, { input: inputMost, output: outputMost }, sides, 999n)
}

function stepFor({ steps }: Sheet, input: number): Step {
  let index = steps.length - 1
  while (index > 0 && input <= steps[index]!.above) index--
  return steps[index]!
}

function nearest(pico: number): number {
  const rest = pico % 1_000
  return (pico - rest) / 1_000 + (rest >= 500 ? 1 : 0)
}

const sides = ['input', 'output'] as const

/** The same sum where numbers are not exact any more. No count of tokens at all, an endless one too, is the most. */
function exactly<Name extends string>(
  request: number,
  tokens: Readonly<Record<Name, number>>,
  rates: Readonly<Record<Name, number>>,
  names: readonly Name[],
  rounding: bigint
): number {
  let pico = BigInt(request) + rounding
  for (const name of names) {
    if (!Number.isFinite(tokens[name])) return mostNano
    pico += BigInt(Math.ceil(tokens[name])) * BigInt(rates[name])
  }
  return Math.min(Number(pico / 1_000n), mostNano)
}
