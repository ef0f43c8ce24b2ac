import { type DiagLogger, DiagLogLevel, diag } from '@opentelemetry/api'
import {
  defaultResource,
  envDetector,
  resourceFromAttributes,
  serviceInstanceIdDetector
} from '@opentelemetry/resources'
import {
  AggregationTemporality,
  InstrumentType,
  PeriodicExportingMetricReader,
  type PushMetricExporter
} from '@opentelemetry/sdk-metrics'
import { NodeSDK } from '@opentelemetry/sdk-node'
import { BatchSpanProcessor, type ReadableSpan, type SpanExporter, type SpanProcessor } from '@opentelemetry/sdk-trace'
import { withoutKeys } from '../../schemas/errors.ts'
import type { Log } from '../../schemas/gateway.ts'
import type { PluginSettings } from '../../schemas/plugin-options.ts'
import { newSpanId, newTraceId } from '../../schemas/trace.ts'
import { Buckets } from './buckets.ts'
import type { CellMaker } from './meters.ts'
import { producerOf } from './producer.ts'

/** The SDK of a server of our own, as the plugin sees it. */
export interface Telemetry {
  /** Spans that the queue had no room for. */
  readonly dropped: number
  /** Spans that the collector did not take. */
  readonly failed: number
  /** Where histograms come from. Absent: metrics are not exported. */
  readonly cells?: CellMaker
  /** Sends what is left, for as long as a collector may take that does not answer. */
  stop(): Promise<void>
}

type Settings = Exclude<PluginSettings['otel'], false>
type Environment = Readonly<Record<string, string | undefined>>

const defaultName = 'fastify-model-gateway'
/** Milliseconds that the last export may take. */
const patience = 3_000
/** Milliseconds between two lines about the SDK. */
const quiet = 60_000

/**
 * Starts OpenTelemetry: spans in batches through a bounded queue, metrics every minute, both over OTLP. What has a standard
 * variable (`OTEL_BSP_*`, samplers, resource, headers of the exporter) is the SDK's to read.
 * @param env the environment, for those that the SDK does not read by itself where spans are counted
 */
export async function startTelemetry(settings: Settings, env: Environment, log: Log): Promise<Telemetry> {
  const { traces, metrics } = await exportersFor(settings, env)
  const spans = env['OTEL_TRACES_EXPORTER'] === 'none' ? null : new Counted(traces, env)
  const buckets: Buckets[] = []
  const withMetrics = settings.metrics && env['OTEL_METRICS_EXPORTER'] !== 'none'
  const sdk = new NodeSDK({
    spanProcessors: spans === null ? [] : [spans],
    metricReaders: withMetrics ? [readerOf(metrics, buckets, env)] : [],
    logRecordProcessors: [],
    // Not the others: they ask the system who it is, and tell the command line.
    resourceDetectors: [envDetector, serviceInstanceIdDetector],
    resource: defaultResource().merge(resourceFromAttributes({ 'service.name': defaultName })),
    ...(settings.serviceName !== defaultName && { serviceName: settings.serviceName }),
    idGenerator: { generateTraceId: newTraceId, generateSpanId: newSpanId },
    instrumentations: settings.instrumentation ? [await instrumentation()] : []
  })
  const { protocol } = settings
  const ofTraces = 'OTEL_EXPORTER_OTLP_TRACES_ENDPOINT'
  const endpoint = env[ofTraces] ? ofTraces : endpointOf(settings)
  diag.setLogger(diagnostics(log, { endpoint, protocol }), {
    logLevel: DiagLogLevel.WARN,
    suppressOverrideMessage: true
  })
  sdk.start()
  if (env['OTEL_SDK_DISABLED'] !== 'true') log.info({ endpoint, protocol }, 'OpenTelemetry is on')
  return {
    get dropped() {
      return spans?.dropped ?? 0
    },
    get failed() {
      return spans?.failed ?? 0
    },
    ...(withMetrics && { cells: cellsIn(buckets) }),
    async stop() {
      let timer: NodeJS.Timeout | undefined
      const late = new Promise<void>(resolve => (timer = setTimeout(resolve, patience)))
      await Promise.race([sdk.shutdown().catch(error => diag.error(String(error))), late])
      clearTimeout(timer)
      diag.disable()
    }
  }
}

/** Of both signals; the collectors' usual ports. */
function endpointOf({ protocol, endpoint }: Settings): string {
  return endpoint ?? (protocol === 'grpc' ? 'http://localhost:4317' : 'http://localhost:4318')
}

/** Only those of the protocol that is used. An endpoint for one signal alone, which has a variable, wins. */
async function exportersFor(
  settings: Settings,
  env: Environment
): Promise<{ traces: SpanExporter; metrics: PushMetricExporter }> {
  const to = (signal: 'TRACES' | 'METRICS', url: string) =>
    env[`OTEL_EXPORTER_OTLP_${signal}_ENDPOINT`] ? {} : { url }
  const endpoint = endpointOf(settings)
  if (settings.protocol === 'grpc') {
    const [{ OTLPTraceExporter }, { OTLPMetricExporter }] = await Promise.all([
      import('@opentelemetry/exporter-trace-otlp-grpc'),
      import('@opentelemetry/exporter-metrics-otlp-grpc')
    ])
    return {
      traces: new OTLPTraceExporter(to('TRACES', endpoint)),
      metrics: new OTLPMetricExporter(to('METRICS', endpoint))
    }
  }
  const url = endpoint.replace(/\/+$/, '')
  const [{ OTLPTraceExporter }, { OTLPMetricExporter }] = await Promise.all([
    import('@opentelemetry/exporter-trace-otlp-proto'),
    import('@opentelemetry/exporter-metrics-otlp-proto')
  ])
  return {
    traces: new OTLPTraceExporter(to('TRACES', `${url}/v1/traces`)),
    metrics: new OTLPMetricExporter(to('METRICS', `${url}/v1/metrics`))
  }
}

/**
 * A queue that counts. The SDK's own drops spans as well, but tells nobody how many: with a door of the same width before
 * it, it never has to.
 */
class Counted implements SpanProcessor {
  dropped = 0
  failed = 0
  #waiting = 0
  readonly #room: number
  readonly #queue: BatchSpanProcessor

  constructor(exporter: SpanExporter, env: Environment) {
    const limit = (name: string) => positive(env[`OTEL_BSP_${name}`])
    this.#room = limit('MAX_QUEUE_SIZE') ?? 2_048
    this.#queue = new BatchSpanProcessor({
      exporter: {
        export: (spans, done) => {
          this.#waiting -= spans.length
          exporter.export(spans, result => {
            if (result.code !== 0) this.failed += spans.length
            done(result)
          })
        },
        forceFlush: async () => exporter.forceFlush?.(),
        shutdown: () => exporter.shutdown()
      },
      maxQueueSize: this.#room,
      maxExportBatchSize: limit('MAX_EXPORT_BATCH_SIZE'),
      scheduledDelayMillis: limit('SCHEDULE_DELAY'),
      exportTimeoutMillis: limit('EXPORT_TIMEOUT')
    })
  }

  onStart(): void {}

  onEnd(span: ReadableSpan): void {
    if ((span.spanContext().traceFlags & 1) === 0) return
    if (this.#waiting >= this.#room) {
      this.dropped++
      return
    }
    this.#waiting++
    this.#queue.onEnd(span)
  }

  forceFlush(): Promise<void> {
    return this.#queue.forceFlush()
  }

  shutdown(): Promise<void> {
    return this.#queue.shutdown()
  }
}

function readerOf(exporter: PushMetricExporter, buckets: Buckets[], env: Environment): PeriodicExportingMetricReader {
  const interval = positive(env['OTEL_METRIC_EXPORT_INTERVAL']) ?? 60_000
  const timeout = positive(env['OTEL_METRIC_EXPORT_TIMEOUT']) ?? 30_000
  const temporality = exporter.selectAggregationTemporality?.(InstrumentType.HISTOGRAM)
  return new PeriodicExportingMetricReader({
    exporter,
    exportIntervalMillis: interval,
    exportTimeoutMillis: Math.min(timeout, interval),
    metricProducers: [producerOf(buckets, temporality ?? AggregationTemporality.CUMULATIVE)]
  })
}

/** One for each set of attributes: two providers may be one to a collector. */
function cellsIn(buckets: Buckets[]): CellMaker {
  const known = new Map<string, Buckets>()
  return (instrument, attributes) => {
    const key = instrument.name + JSON.stringify(attributes)
    const found = known.get(key)
    if (found !== undefined) return found
    const cell = new Buckets(instrument, attributes)
    known.set(key, cell)
    buckets.push(cell)
    return cell
  }
}

/** OpenTelemetry's own server spans, in place of ours. Queries are not told: tickets and searches travel in them. */
async function instrumentation() {
  const { HttpInstrumentation } = await import('@opentelemetry/instrumentation-http')
  return new HttpInstrumentation({
    disableOutgoingRequestInstrumentation: true,
    requestHook: span => void span.setAttribute('url.query', '')
  })
}

/**
 * What the SDK says of itself, in our log: its words alone, because what comes with them may be a request with its headers;
 * and not more than a line a minute.
 * @param about what they are mostly about
 */
function diagnostics(log: Log, about: { endpoint: string; protocol: string }): DiagLogger {
  let next = 0
  let unsaid = 0

  function say(level: 'error' | 'warn', words: string): void {
    const now = Date.now()
    if (now < next) {
      unsaid++
      return
    }
    next = now + quiet
    log[level]({ reason: withoutKeys(messageOf(words)).slice(0, 300), ...about, unsaid }, 'OpenTelemetry')
    unsaid = 0
  }

  return {
    error: words => say('error', words),
    warn: words => say('warn', words),
    info() {},
    debug() {},
    verbose() {}
  }
}

/** Errors come as JSON with everything that they carry. */
function messageOf(words: string): string {
  if (!words.startsWith('{')) return words
  try {
    const error: unknown = JSON.parse(words)
    return typeof error === 'object' && error !== null && 'message' in error ? String(error.message) : 'an error'
  } catch {
    return 'an error'
  }
}

function positive(text: string | undefined): number | undefined {
  const number = Number(text)
  return text !== undefined && number > 0 && Number.isFinite(number) ? number : undefined
}
