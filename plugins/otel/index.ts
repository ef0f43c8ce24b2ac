import { hasSubscribers } from 'node:diagnostics_channel'
import {
  type Attributes,
  type Context,
  context,
  INVALID_TRACEID,
  metrics,
  propagation,
  type Span,
  type SpanContext,
  SpanKind,
  TraceFlags,
  trace
} from '@opentelemetry/api'
import type { FastifyInstance } from 'fastify'
import fp from 'fastify-plugin'
import { withoutKeys } from '../../schemas/errors.ts'
import type { Answer, Dispatch, Expense, Inference, Log, Outcome } from '../../schemas/gateway.ts'
import type { Attempt } from '../../schemas/provider.ts'
import { timeNow, timeOf } from './clock.ts'
import { Heard, inputOf, outputOf } from './content.ts'
import { describeCost, describeError, describeRequest, describeResponse, describeUsage } from './describe.ts'
import { apiCells, createMeters } from './meters.ts'
import { attributes as is, legacy, legacySpans, operation } from './names.ts'
import { beginningOf, placeOf } from './places.ts'
import { createServe } from './requests.ts'
import type { Telemetry } from './sdk.ts'
import { Traced } from './traced.ts'

export interface OtelOptions {
  /** Histograms of provider calls. Default true. */
  metrics?: boolean
  /** Prompts and answers are in the spans. Default false. */
  captureContent?: boolean
  /** Characters of each of them. Default 4096. */
  maxContentLength?: number
  /** Names of older dashboards, too. Default false. */
  legacyAttributes?: boolean
  /** The SDK that a server of our own has started. Absent: whichever the host has registered. */
  telemetry?: Telemetry
}

/** Spans and metrics of calls, by the OpenTelemetry API: where nobody registers an SDK nothing is recorded. */
async function otel(app: FastifyInstance, options: OtelOptions): Promise<void> {
  const { gateway } = app
  const { captureContent = false, maxContentLength = 4096, legacyAttributes = false, telemetry } = options
  const tracer = trace.getTracer('fastify-model-gateway')
  /** Samplers of our own server do not record below what they did not record. */
  const decided = telemetry !== undefined
  const measure =
    options.metrics === false
      ? null
      : createMeters(telemetry?.cells ?? apiCells(metrics.getMeter('fastify-model-gateway')))
  warnOfHost(gateway.log, telemetry !== undefined)

  gateway.decorate('tracing', {
    serve: createServe(tracer, decided),
    traceId: () => idOf(trace.getSpan(context.active())?.spanContext()),
    get dropped() {
      return telemetry?.dropped ?? 0
    },
    get failed() {
      return telemetry?.failed ?? 0
    }
  })

  /** Samplers are shown what they might look at; ours do not, and what a span begins with costs three times as much. */
  function start(name: string, kind: SpanKind, above: Context, attributes: Attributes): Span {
    if (!decided) return tracer.startSpan(name, { kind, attributes, startTime: timeNow() }, above)
    const span = tracer.startSpan(name, { kind, startTime: timeNow() }, above)
    return span.isRecording() ? span.setAttributes(attributes) : span
  }

  gateway.intercept('observe', (inference, next) => {
    const { served, traced: known } = inference
    const outer = served instanceof Traced ? served : null
    if (outer?.quiet) {
      inference.traced = outer
      return next(inference)
    }
    // A layer outside may ask twice.
    if (known instanceof Traced) return known.quiet ? next(inference) : below(known, inference, next)
    const above = outer?.context ?? contextOf(inference)
    const alias = withoutKeys(inference.route.alias)
    const span = start(legacyAttributes ? legacySpans.inference : `${operation} ${alias}`, SpanKind.INTERNAL, above, {
      [is.operation]: operation,
      [is.requestModel]: alias
    })
    const traceId = idOf(span.spanContext())
    if (traceId === undefined) return next(inference)
    inference.facts.traceId = traceId
    const traced = new Traced(above, span, decided)
    inference.traced = traced
    if (traced.quiet) return next(inference)
    if (!traced.recording) return below(traced, inference, next)
    describeCaller(span, inference)
    if (captureContent) traced.heard = new Heard(maxContentLength)
    if (inference.request.stream === true) inference.onFrames(frames => traced.see(frames))
    inference.onSettled(settled)
    return below(traced, inference, next).then(answer => {
      traced.answer = answer
      return answer
    })
  })

  gateway.interceptAttempt((attempt, next) => {
    const { entry, inference, target } = attempt
    const { traced } = inference
    if (measure !== null) entry.onEnded(measure)
    if (!(traced instanceof Traced)) return next(attempt)
    if (traced.quiet) {
      carry(attempt, traced.span.spanContext())
      return next(attempt)
    }
    const name = legacyAttributes
      ? legacySpans.attempt + target.provider.name
      : `${operation} ${withoutKeys(target.model)}`
    const span = start(name, SpanKind.CLIENT, traced.context, beginningOf(target))
    // An SDK of the host that instruments undici sends a context of its own.
    if (decided || !hasSubscribers('undici:request:create')) carry(attempt, span.spanContext())
    const inside = trace.setSpan(traced.context, span)
    if (!span.isRecording()) return context.with(inside, next, undefined, attempt)
    describeAttempt(span, attempt)
    let answer: Answer | null = null
    entry.onEnded(expense => ended(span, expense, traced, answer))
    return context.with(inside, next, undefined, attempt).then(given => {
      answer = given
      return given
    })
  })

  function describeAttempt(span: Span, { request, number, target }: Attempt): void {
    span.setAttribute(is.attempt, number)
    span.setAttribute(is.target, target.provider.name)
    const { provider } = placeOf(target.provider)
    if (provider === 'openai' || provider === 'azure.ai.openai') span.setAttribute(is.apiType, 'chat_completions')
    if (legacyAttributes) span.setAttribute(legacy.system, provider)
    describeRequest(span, request)
  }

  /** A provider call has ended, its stream too. */
  function ended(span: Span, expense: Expense, traced: Traced, answer: Answer | null): void {
    try {
      describeEnd(span, expense, traced, answer)
    } finally {
      span.end(timeNow())
    }
  }

  function describeEnd(span: Span, expense: Expense, traced: Traced, answer: Answer | null): void {
    const { status, usage, cost, error, duration, firstToken, reads } = expense
    describeUsage(span, usage, legacyAttributes)
    describeCost(span, usage.source === 'reported' || cost !== 0 ? cost : null)
    if (firstToken !== null) {
      span.setAttribute(is.firstChunk, firstToken / 1_000)
      if (reads > 1 && duration !== null) span.setAttribute(is.chunkTime, (duration - firstToken) / (reads - 1) / 1_000)
    }
    // Of two at a time, what the caller reads is said by the one that won.
    const isRead = answer?.stream === false || expense.inference.facts.target === expense.target
    if (answer !== null && isRead) describeResponse(span, traced.response(answer), true)
    if (status !== 'settled') describeError(span, error)
  }

  function describeCaller(span: Span, inference: Inference): void {
    const { id, principal, origin, route, request } = inference
    span.setAttribute(is.requestId, id)
    span.setAttribute(is.tenant, principal.tenant)
    if (principal.key !== null) span.setAttribute(is.key, principal.key)
    span.setAttribute(is.lane, origin.lane)
    span.setAttribute(is.alias, withoutKeys(route.alias))
    if (route.config) span.setAttribute(is.config, route.config)
    describeRequest(span, request)
  }

  function settled(outcome: Outcome, inference: Inference): void {
    const { traced } = inference
    if (!(traced instanceof Traced)) return
    try {
      describeCall(outcome, inference, traced)
    } finally {
      traced.span.end(timeNow())
    }
  }

  function describeCall(outcome: Outcome, inference: Inference, traced: Traced): void {
    const { span } = traced
    const { record } = outcome
    const { target } = inference.facts
    if (target !== null && record.attempts > 0) {
      const { provider } = placeOf(target.provider)
      span.setAttribute(is.provider, provider)
      if (legacyAttributes) span.setAttribute(legacy.system, provider)
    }
    span.setAttribute(is.attempts, record.attempts)
    if (record.retries > 0) span.setAttribute(is.retries, record.retries)
    if (record.fallbacks > 0) span.setAttribute(is.fallbacks, record.fallbacks)
    span.setAttribute(is.cache, record.cache)
    if (record.firstToken !== null) span.setAttribute(is.firstChunk, record.firstToken / 1_000)
    describeUsage(span, record.usage, legacyAttributes)
    describeCost(span, record.cost)
    describeResponse(span, traced.response(), false)
    if (captureContent) describeContent(span, inference, traced)
    if (outcome.status !== 'completed') describeError(span, outcome.error)
    if (legacyAttributes) addOlderSpans(inference, traced, outcome)
  }

  function describeContent(span: Span, { request }: Inference, { answer, heard }: Traced): void {
    try {
      const { messages, system } = inputOf(request.messages, maxContentLength)
      span.setAttribute(is.inputMessages, messages)
      if (system !== null) span.setAttribute(is.systemInstructions, system)
      if (answer === null) return
      const output = answer.stream ? heard?.output() : outputOf(answer.body.choices, maxContentLength)
      if (output !== undefined) span.setAttribute(is.outputMessages, output)
    } catch {
      // What has a form of its own is not told: some servers leave out choices, or give arguments as objects.
    }
  }

  /** Older dashboards know the way to the target that answered, and its stream, as spans of their own. */
  function addOlderSpans({ started, expenses, facts }: Inference, { context: above }: Traced, outcome: Outcome): void {
    const last = expenses.at(-1)
    if (last === undefined) return
    tracer.startSpan(legacySpans.route, { startTime: timeOf(started) }, above).end(timeOf(last.started))
    if (facts.firstToken === null) return
    const first = started + facts.firstToken
    const end = Math.max(first, started + outcome.duration)
    tracer.startSpan(legacySpans.stream, { startTime: timeOf(first) }, above).end(timeOf(end))
  }
}

function below(traced: Traced, inference: Inference, next: Dispatch): Promise<Answer> {
  return context.with(traced.context, next, undefined, inference)
}

/** Where a call belongs that came without a request: what its caller says, else what is active. */
function contextOf({ trace: parent }: Inference): Context {
  const active = context.active()
  if (parent === undefined) return active
  return propagation.extract(active, { traceparent: parent.traceparent, tracestate: parent.tracestate })
}

/** The one context that goes upstream. No baggage: what a client adds for its own services is not the vendor's to know. */
function carry({ headers }: Attempt, { traceId, spanId, traceFlags, traceState }: SpanContext): void {
  // An SDK that is switched off names no trace.
  if (traceId === INVALID_TRACEID) return
  headers['traceparent'] = `00-${traceId}-${spanId}-0${traceFlags & TraceFlags.SAMPLED}`
  const state = traceState?.serialize()
  if (state) headers['tracestate'] = state
}

function idOf(span: SpanContext | undefined): string | undefined {
  return span === undefined || span.traceId === INVALID_TRACEID ? undefined : span.traceId
}

/**
 * An API takes part only in one that is as new as itself: otherwise everything goes nowhere, and nobody says so. Where a host
 * has no SDK the same happens.
 * @param own the SDK is that of our own server
 */
function warnOfHost(log: Log, own: boolean): void {
  const global: unknown = Reflect.get(globalThis, Symbol.for('opentelemetry.js.api.1'))
  if (typeof global !== 'object' || global === null || !('trace' in global)) {
    if (!own)
      log.warn({}, 'no OpenTelemetry SDK is registered: nothing is traced until one is. Start it before the app')
    return
  }
  if (global.trace === trace.getTracerProvider()) return
  const version = 'version' in global ? String(global.version) : 'unknown'
  log.warn(
    { version },
    'the OpenTelemetry API that this process has registered is older than the one of the gateway: nothing is traced. ' +
      'Update @opentelemetry/api of the host'
  )
}

export default fp(otel, { fastify: '5.x', name: 'otel', dependencies: ['gateway', 'routing'] })
