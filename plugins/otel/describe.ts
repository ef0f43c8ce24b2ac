import { type Span, SpanStatusCode } from '@opentelemetry/api'
import { wordsOf } from '../../schemas/call-record.ts'
import type { ChatRequest } from '../../schemas/chat.ts'
import { Cancelled, isGatewayError, withoutKeys } from '../../schemas/errors.ts'
import { inputOf, outputOf, type Usage } from '../../schemas/usage.ts'
import { errors, attributes as is, legacy } from './names.ts'
import type { Response } from './traced.ts'

// What spans of calls and of provider calls have in common.

/** Longer texts of clients are cut. */
const longest = 256
/** The most stop sequences that are told. */
const mostStops = 16

/** What a request asks for, nothing of what it says. */
export function describeRequest(span: Span, request: ChatRequest): void {
  const { max_completion_tokens: newer, max_tokens: older, stop, n } = request
  number(span, is.maxTokens, newer ?? older)
  number(span, is.temperature, request.temperature)
  number(span, is.topP, request.top_p)
  number(span, is.frequencyPenalty, request.frequency_penalty)
  number(span, is.presencePenalty, request.presence_penalty)
  number(span, is.seed, request['seed'])
  if (n !== 1) number(span, is.choiceCount, n)
  if (request.stream === true) span.setAttribute(is.stream, true)
  const stops = typeof stop === 'string' ? [stop] : stop
  if (stops?.length) span.setAttribute(is.stopSequences, stops.slice(0, mostStops).map(brief))
  const output = outputTypeOf(request)
  if (output !== null) span.setAttribute(is.outputType, output)
  const conversation = request.metadata?.['conversation_id'] ?? request.metadata?.['thread_id']
  if (typeof conversation === 'string' && conversation) span.setAttribute(is.conversation, brief(conversation))
  const { service_tier: tier } = request
  if (typeof tier === 'string' && tier !== 'auto') span.setAttribute(is.requestTier, brief(tier))
}

/** @param vendor also what only its vendor can use: it is on the span of the provider call */
export function describeResponse(span: Span, response: Response | null, vendor: boolean): void {
  if (response === null) return
  text(span, is.responseModel, response.model)
  if (response.reasons.length > 0) span.setAttribute(is.finishReasons, response.reasons)
  if (!vendor) return
  text(span, is.responseId, response.id)
  text(span, is.responseTier, response.service_tier)
  text(span, is.fingerprint, response.system_fingerprint)
}

/** Nothing where nobody knows: unknown is not none. */
export function describeUsage(span: Span, usage: Usage, older: boolean): void {
  const input = inputOf(usage)
  const output = outputOf(usage)
  if (usage.source === 'estimated' && input + output === 0) return
  if (usage.source === 'estimated') span.setAttribute(is.usageSource, usage.source)
  span.setAttribute(is.inputTokens, input)
  span.setAttribute(is.outputTokens, output)
  const written = usage.cacheWrite5m + usage.cacheWrite1h
  if (usage.cacheRead > 0) span.setAttribute(is.cacheRead, usage.cacheRead)
  if (written > 0) span.setAttribute(is.cacheCreation, written)
  if (usage.reasoning > 0) span.setAttribute(is.reasoning, usage.reasoning)
  if (!older) return
  span.setAttribute(legacy.promptTokens, input)
  span.setAttribute(legacy.completionTokens, output)
}

/** @param nano nano-USD; null: nobody knows */
export function describeCost(span: Span, nano: number | null): void {
  if (nano !== null) span.setAttribute(is.cost, nano / 1e9)
}

/** A caller that leaves is no fault: `error.type` says so, the status stays unset. */
export function describeError(span: Span, error: unknown): void {
  const type = errorTypeOf(error)
  span.setAttribute(is.error, type)
  if (type === errors.cancelled) return
  span.setStatus({ code: SpanStatusCode.ERROR, message: messageOf(error) })
}

/** Our own words of a fault. What is said of a request may quote it. */
function messageOf(error: unknown): string | undefined {
  if (!isGatewayError(error) || error.statusCode < 500 || error.blame === 'request') return undefined
  return wordsOf(error)
}

/** The kind of fault by our own word, the same for spans and metrics: what a vendor calls it may quote the request. */
export function errorTypeOf(error: unknown): string {
  if (error instanceof Cancelled) return errors.cancelled
  return isGatewayError(error) ? error.code.replace(/^GATEWAY_/, '').toLowerCase() : errors.other
}

function outputTypeOf({ response_format: format, response_schema: schema, modalities }: ChatRequest): string | null {
  if (Array.isArray(modalities) && modalities.includes('audio')) return 'speech'
  if (schema !== undefined && schema !== null) return 'json'
  const type = typeof format === 'object' && format !== null && 'type' in format ? format.type : null
  if (type === 'json_object' || type === 'json_schema') return 'json'
  return type === 'text' ? 'text' : null
}

function number(span: Span, name: string, value: unknown): void {
  if (typeof value === 'number') span.setAttribute(name, value)
}

function text(span: Span, name: string, value: unknown): void {
  if (typeof value === 'string' && value !== '') span.setAttribute(name, brief(value))
}

/** Some clients put keys where names belong. */
function brief(value: string): string {
  return withoutKeys(value.slice(0, longest))
}
