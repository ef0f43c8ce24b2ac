import type { Attributes, Meter } from '@opentelemetry/api'
import type { Expense, Target } from '../../schemas/gateway.ts'
import { inputOf, outputOf } from '../../schemas/usage.ts'
import { errorTypeOf } from './describe.ts'
import { errors, type Instrument, attributes as is, metricAttributes, metrics } from './names.ts'
import { beginningOf } from './places.ts'

/** Takes the values of one histogram with one set of attributes. */
export interface Cell {
  add(value: number): void
}

export type CellMaker = (instrument: Instrument, attributes: Attributes) => Cell

/** The histograms of provider calls to one target that ended in one way. */
interface Series {
  readonly duration: Cell
  readonly input: Cell
  readonly output: Cell
  readonly firstChunk: Cell
  readonly chunkTime: Cell
}

/** Names of models may come from callers: what is beyond this is counted together. */
const mostSeries = 500

/**
 * Tells the histograms of provider calls that have ended. Attributes are made once for each target and way to end, so that a
 * call costs a look-up and a few additions.
 */
export function createMeters(make: CellMaker): (expense: Expense) => void {
  const known = new Map<string, Series>()

  function seriesOf(target: Target, error: string | null): Series {
    const key = `${target.provider.name}\n${target.model}\n${error ?? ''}`
    const found = known.get(key)
    if (found !== undefined) return found
    if (known.size < mostSeries) return create(key, target, error)
    const rest = `${target.provider.name}\n\n`
    return known.get(rest) ?? create(rest, { ...target, model: errors.other }, null)
  }

  function create(key: string, target: Target, error: string | null): Series {
    const attributes = { ...beginningOf(target), ...(error !== null && { [is.error]: error }) }
    const tokens = (type: string) => make(metrics.tokens, { ...attributes, [metricAttributes.tokenType]: type })
    const series = {
      duration: make(metrics.duration, attributes),
      input: tokens('input'),
      output: tokens('output'),
      firstChunk: make(metrics.firstChunk, attributes),
      chunkTime: make(metrics.chunkTime, attributes)
    }
    known.set(key, series)
    return series
  }

  return expense => {
    const { status, error, target, usage, firstToken, reads } = expense
    const series = seriesOf(target, status === 'settled' ? null : errorTypeOf(error))
    const duration = expense.duration ?? 0
    series.duration.add(duration / 1_000)
    if (usage.source === 'reported') {
      series.input.add(inputOf(usage))
      series.output.add(outputOf(usage))
    }
    if (firstToken === null) return
    series.firstChunk.add(firstToken / 1_000)
    if (reads > 1) series.chunkTime.add((duration - firstToken) / (reads - 1) / 1_000)
  }
}

/** Histograms of the API, for whichever SDK the host has. */
export function apiCells(meter: Meter): CellMaker {
  const histograms = new Map(
    Object.values(metrics).map(({ name, unit, description, bounds }) => [
      name as string,
      meter.createHistogram(name, { unit, description, advice: { explicitBucketBoundaries: [...bounds] } })
    ])
  )
  return ({ name }, attributes) => ({ add: value => histograms.get(name)?.record(value, attributes) })
}
