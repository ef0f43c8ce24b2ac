import type { Attributes, Meter } from '@opentelemetry/api'
import type { Expense, Target } from '../../schemas/gateway.ts'
import type { Provider } from '../../schemas/provider.ts'
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

/** What came of the provider calls to one model. */
interface Endings {
  settled: Series | null
  /** By what went wrong. */
  readonly failed: Map<string, Series>
}

/** Names of models may come from callers: what is beyond these is counted together, by provider. */
const mostModels = 200

/**
 * Tells the histograms of provider calls that have ended. Attributes are made once for each model and way to end, so that a
 * call costs two look-ups and a few additions.
 */
export function createMeters(make: CellMaker): (expense: Expense) => void {
  const known = new Map<Provider, Map<string, Endings>>()
  let models = 0

  function endingsOf(provider: Provider, model: string): Endings {
    let own = known.get(provider)
    if (own === undefined) known.set(provider, (own = new Map()))
    const found = own.get(model)
    if (found !== undefined) return found
    if (models === mostModels && model !== errors.other) return endingsOf(provider, errors.other)
    if (model !== errors.other) models++
    const endings = { settled: null, failed: new Map() }
    own.set(model, endings)
    return endings
  }

  function seriesOf({ provider, model }: Target, error: string | null): Series {
    const endings = endingsOf(provider, model)
    const found = error === null ? endings.settled : endings.failed.get(error)
    if (found) return found
    const name = known.get(provider)?.get(model) === endings ? model : errors.other
    const series = create({ provider, model: name }, error)
    if (error === null) endings.settled = series
    else endings.failed.set(error, series)
    return series
  }

  function create(target: Pick<Target, 'provider' | 'model'>, error: string | null): Series {
    const begun = beginningOf(target)
    const attributes = error === null ? begun : { ...begun, [is.error]: error }
    const tokens = (type: string) => make(metrics.tokens, { ...attributes, [metricAttributes.tokenType]: type })
    return {
      duration: make(metrics.duration, attributes),
      input: tokens('input'),
      output: tokens('output'),
      firstChunk: make(metrics.firstChunk, attributes),
      chunkTime: make(metrics.chunkTime, attributes)
    }
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
