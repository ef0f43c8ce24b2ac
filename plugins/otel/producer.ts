import { ValueType } from '@opentelemetry/api'
import { emptyResource } from '@opentelemetry/resources'
import { AggregationTemporality, DataPointType, type MetricData, type MetricProducer } from '@opentelemetry/sdk-metrics'
import type { Buckets } from './buckets.ts'
import { type Instrument, metrics } from './names.ts'

type Moment = [seconds: number, nanoseconds: number]

/** Shows our histograms to the SDK's reader. `buckets` grows. */
export function producerOf(buckets: readonly Buckets[], temporality: AggregationTemporality): MetricProducer {
  const isDelta = temporality === AggregationTemporality.DELTA
  let since = now()

  function dataOf(instrument: Instrument, start: Moment, end: Moment): MetricData | null {
    const { name, unit, description, bounds } = instrument
    const filled = buckets.filter(cell => cell.instrument === instrument && cell.count > 0)
    if (filled.length === 0) return null
    return {
      descriptor: { name, unit, description, valueType: ValueType.DOUBLE },
      aggregationTemporality: temporality,
      dataPointType: DataPointType.HISTOGRAM,
      dataPoints: filled.map(({ attributes, counts, count, sum, min, max }) => ({
        startTime: start,
        endTime: end,
        attributes,
        value: { buckets: { boundaries: [...bounds], counts: [...counts] }, count, sum, min, max }
      }))
    }
  }

  return {
    async collect() {
      const start = since
      const end = now()
      const found = Object.values(metrics).map(instrument => dataOf(instrument, start, end))
      if (isDelta) {
        since = end
        for (const cell of buckets) cell.clear()
      }
      const scopeMetrics = [
        { scope: { name: 'fastify-model-gateway' }, metrics: found.filter(metric => metric !== null) }
      ]
      return { resourceMetrics: { resource: emptyResource(), scopeMetrics }, errors: [] }
    }
  }
}

function now(): Moment {
  const time = Date.now()
  return [Math.floor(time / 1_000), (time % 1_000) * 1_000_000]
}
