import { context, diag, metrics, propagation, trace } from '@opentelemetry/api'
import {
  AggregationTemporality,
  type DataPoint,
  type Histogram,
  InMemoryMetricExporter,
  PeriodicExportingMetricReader
} from '@opentelemetry/sdk-metrics'
import { NodeSDK } from '@opentelemetry/sdk-node'
import { InMemorySpanExporter, type ReadableSpan, type Sampler, SimpleSpanProcessor } from '@opentelemetry/sdk-trace'
import type { FastifyInstance } from 'fastify'
import type { Test } from 'tap'
import otel, { type OtelOptions } from '../../../plugins/otel/index.ts'
import { type HostOptions, host } from '../kernel.ts'

/** An SDK of a host that keeps what it is told; forgotten after the test. */
export function record(t: Test, sampler?: Sampler) {
  const spans = new InMemorySpanExporter()
  const points = new InMemoryMetricExporter(AggregationTemporality.CUMULATIVE)
  const reader = new PeriodicExportingMetricReader({ exporter: points, exportIntervalMillis: 3_600_000 })
  const sdk = new NodeSDK({
    autoDetectResources: false,
    spanProcessors: [new SimpleSpanProcessor({ exporter: spans })],
    metricReaders: [reader],
    logRecordProcessors: [],
    ...(sampler && { sampler })
  })
  sdk.start()
  t.teardown(async () => {
    await sdk.shutdown()
    for (const api of [trace, metrics, context, propagation, diag]) api.disable()
  })
  return {
    /** In the order of their ends. */
    get spans(): ReadableSpan[] {
      return spans.getFinishedSpans()
    },
    async points(name: string): Promise<DataPoint<Histogram>[]> {
      await reader.forceFlush()
      const last = points.getMetrics().at(-1)
      const found = last?.scopeMetrics
        .flatMap(scope => scope.metrics)
        .find(({ descriptor }) => descriptor.name === name)
      return found === undefined ? [] : (found.dataPoints as DataPoint<Histogram>[])
    }
  }
}

/** The kernel with a price and the plugin, ready. */
export async function traced(t: Test, options: HostOptions & { otel?: OtelOptions } = {}): Promise<FastifyInstance> {
  const app = await host(t, options)
  app.gateway.accountWith({ cost: () => 1_500_000 })
  await app.register(otel, options.otel ?? {})
  await app.ready()
  return app
}

/** As a tree: kind, name, and the error behind an exclamation mark. */
export function drawn(spans: readonly ReadableSpan[]): string[] {
  const kinds = ['internal', 'server', 'client']
  const below = (parent: string | undefined, depth: number): string[] =>
    spans
      .filter(({ parentSpanContext: above }) =>
        parent === undefined
          ? !spans.some(span => span.spanContext().spanId === above?.spanId)
          : above?.spanId === parent
      )
      .toSorted((a, b) => a.startTime[0] - b.startTime[0] || a.startTime[1] - b.startTime[1])
      .flatMap(span => {
        const error = span.attributes['error.type']
        const line = `${'  '.repeat(depth)}${kinds[span.kind]} ${span.name}${error ? ` !${error}` : ''}`
        return [line, ...below(span.spanContext().spanId, depth + 1)]
      })
  return below(undefined, 0)
}
