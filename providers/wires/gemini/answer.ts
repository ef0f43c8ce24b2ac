import { randomUUID } from 'node:crypto'
import type { ChatCompletion, CompletionUsage, FinishReason, ToolCall } from '../../../schemas/chat.ts'
import { type GatewayError, isGatewayError, UpstreamError } from '../../../schemas/errors.ts'
import type { Answer } from '../../../schemas/gateway.ts'
import { fieldsOf, jsonOf, listOf } from '../../../schemas/json.ts'
import { isRecord } from '../../../schemas/reader.ts'
import { notJson, type Redact, vendorFault } from '../../faults.ts'
import { isEncoded } from '../../stream.ts'
import type { Reply } from '../../upstream.ts'
import type { Signatures } from './signatures.ts'

/** What an answer may lack by itself, and where its signatures are kept. */
export interface Origin {
  /** The model that was asked. */
  readonly model: string
  readonly id: string
  readonly redact: Redact
  readonly signatures: Pick<Signatures, 'keep'>
}

// Everything may be absent, whatever Google's own types say: a candidate has no content when it was blocked or when its
// tokens went into thinking.

export interface AnswerPart {
  text?: string
  thought?: boolean
  thoughtSignature?: string
  functionCall?: { id?: string; name?: string; args?: object | null }
  inlineData?: { mimeType?: string; data?: string }
}

export interface Candidate {
  index?: number
  content?: { parts?: AnswerPart[] | null } | null
  finishReason?: string | null
  finishMessage?: string | null
  logprobsResult?: {
    chosenCandidates?: Logprob[]
    topCandidates?: Array<{ candidates?: Logprob[] }>
  } | null
}

interface Logprob {
  token?: string
  logProbability?: number
}

interface Modality {
  modality?: string
  tokenCount?: number
}

export interface UsageMetadata {
  promptTokenCount?: number
  cachedContentTokenCount?: number
  candidatesTokenCount?: number
  thoughtsTokenCount?: number
  toolUsePromptTokenCount?: number
  totalTokenCount?: number
  promptTokensDetails?: Modality[]
  cacheTokensDetails?: Modality[]
  toolUsePromptTokensDetails?: Modality[]
  candidatesTokensDetails?: Modality[]
}

/** The body of an answer, and one event of a stream. */
export interface GeminiResponse {
  candidates?: Candidate[] | null
  promptFeedback?: { blockReason?: string; blockReasonMessage?: string } | null
  usageMetadata?: UsageMetadata | null
  modelVersion?: string
  responseId?: string
  error?: unknown
}

/** A whole answer as OpenAI would give it. @throws a fault for everything else */
export function wholeAnswer(reply: Reply, origin: Origin): Answer {
  const body = jsonOf(reply.body)
  if (reply.status !== 200) throw googleFault(reply.status, body, reply.headers, origin.redact)
  if (isEncoded(reply)) throw new UpstreamError('it compressed an answer that nobody asked to.')
  if (!isResponse(body)) {
    if (errorIn(body) !== null) throw googleFault(0, body, reply.headers, origin.redact)
    throw notJson(reply.headers)
  }
  if (body.error) throw googleFault(0, body, reply.headers, origin.redact)
  try {
    return { stream: false, body: completionOf(body, origin), raw: null }
  } catch (error) {
    throw unreadable(error)
  }
}

/** The fault of an answer: what a wrong shape of it made of us is its own. */
export function unreadable(error: unknown): GatewayError {
  return isGatewayError(error) ? error : new UpstreamError('its answer cannot be read.', { cause: error })
}

export function completionOf(response: GeminiResponse, origin: Origin): ChatCompletion {
  const { candidates, promptFeedback: feedback, usageMetadata: usage } = response
  const choices = listOf(candidates).map((candidate, index) => choiceOf(candidate, index, origin))
  if (choices.length === 0) {
    if (!feedback?.blockReason) throw new UpstreamError('its answer holds nothing.')
    const message = { role: 'assistant' as const, content: null, refusal: blockOf(feedback) }
    choices.push({ index: 0, message, logprobs: null, finish_reason: 'content_filter' })
  }
  return {
    id: idOf(response, origin),
    object: 'chat.completion',
    created: Math.floor(Date.now() / 1_000),
    model: response.modelVersion ?? origin.model,
    choices,
    usage: isReport(usage) ? usageFrom(usage) : null
  }
}

type Choice = ChatCompletion['choices'][number]

function choiceOf(candidate: Candidate, position: number, origin: Origin): Choice {
  let text = ''
  let thoughts = ''
  const calls: ToolCall[] = []
  const images: object[] = []
  let signature: string | undefined
  for (const part of partsOf(candidate)) {
    if (part.functionCall) calls.push(toolCallOf(part.functionCall, part.thoughtSignature, origin))
    else if (part.inlineData?.data) images.push(imageOf(part.inlineData))
    else if (part.thought) thoughts += part.text ?? ''
    else {
      text += part.text ?? ''
      signature = part.thoughtSignature ?? signature
    }
  }
  const reason = finishOf(candidate.finishReason, calls.length > 0)
  const silent = text === '' && calls.length === 0
  const message: Choice['message'] = {
    role: 'assistant',
    content: silent && reason !== 'content_filter' ? '' : text || null,
    refusal: silent && reason === 'content_filter' ? refusalOf(candidate) : null
  }
  if (thoughts !== '') message['reasoning_content'] = thoughts
  if (calls.length > 0) message.tool_calls = calls
  if (images.length > 0) message['images'] = images
  if (signature) message['extra_content'] = signed(signature)
  return { index: candidate.index ?? position, message, logprobs: logprobsOf(candidate), finish_reason: reason }
}

export function partsOf(candidate: Candidate): readonly AnswerPart[] {
  return listOf(candidate.content?.parts)
}

export function toolCallOf(
  { id: own, name = '', args }: NonNullable<AnswerPart['functionCall']>,
  signature: string | undefined,
  { signatures }: Origin
): ToolCall & { id: string; function: { name: string; arguments: string } } {
  const id = own || `call_${randomUUID().replaceAll('-', '')}`
  const call = { id, type: 'function', function: { name, arguments: JSON.stringify(args ?? {}) } }
  if (!signature) return call
  signatures.keep(id, signature)
  return { ...call, extra_content: signed(signature) }
}

/** Where Google's own translation of OpenAI's wire has it. */
export function signed(signature: string): object {
  return { google: { thought_signature: signature } }
}

/** As OpenRouter hands out images. */
export function imageOf({ mimeType = 'image/png', data = '' }: NonNullable<AnswerPart['inlineData']>): object {
  return { type: 'image_url', image_url: { url: `data:${mimeType};base64,${data}` } }
}

export function idOf({ responseId }: GeminiResponse, { id }: Origin): string {
  return `chatcmpl-${responseId ?? id}`
}

const filtered = new Set([
  ...['SAFETY', 'RECITATION', 'BLOCKLIST', 'PROHIBITED_CONTENT', 'SPII', 'IMAGE_SAFETY', 'IMAGE_PROHIBITED_CONTENT'],
  'IMAGE_RECITATION'
])

/** Google has no reason of its own for calls of tools. @throws UpstreamError for an answer that went wrong */
export function finishOf(reason: string | null | undefined, called: boolean): FinishReason {
  if (reason === 'MALFORMED_FUNCTION_CALL') throw new UpstreamError('it called a tool with something unreadable.')
  if (reason === 'MALFORMED_RESPONSE') throw new UpstreamError('it answered with something unreadable.')
  if (reason === 'MAX_TOKENS' || reason === 'CONTINUATION') return 'length'
  if (filtered.has(reason ?? '')) return 'content_filter'
  return called ? 'tool_calls' : 'stop'
}

export function refusalOf({ finishMessage, finishReason }: Candidate): string {
  return finishMessage || `The answer was blocked: ${finishReason}.`
}

export function blockOf({ blockReason, blockReasonMessage }: NonNullable<GeminiResponse['promptFeedback']>): string {
  return blockReasonMessage || `The prompt was blocked: ${blockReason}.`
}

export function logprobsOf({ logprobsResult: result }: Candidate): object | null {
  const chosen = listOf(result?.chosenCandidates)
  if (chosen.length === 0) return null
  const top = listOf(result?.topCandidates)
  const content = chosen.map((token, index) => ({
    ...logprobOf(token),
    top_logprobs: listOf(top[index]?.candidates).map(logprobOf)
  }))
  return { content, refusal: null }
}

function logprobOf({ token = '', logProbability = -9_999 }: Logprob) {
  return { token, logprob: logProbability, bytes: [...Buffer.from(token)] }
}

/** Vertex names the kind of traffic in every event, and the counts only in the last. */
export function isReport(usage: UsageMetadata | null | undefined): usage is UsageMetadata {
  return typeof usage?.promptTokenCount === 'number' || typeof usage?.totalTokenCount === 'number'
}

/** Google's counts as OpenAI's: candidates are counted without thoughts, prompts without what tools brought. */
export function usageFrom(usage: UsageMetadata): CompletionUsage {
  const prompt = (usage.promptTokenCount ?? 0) + (usage.toolUsePromptTokenCount ?? 0)
  const thoughts = usage.thoughtsTokenCount ?? 0
  const completion = (usage.candidatesTokenCount ?? 0) + thoughts
  // What is cached is counted once, whatever it is.
  const heard = audioIn(usage.promptTokensDetails) + audioIn(usage.toolUsePromptTokensDetails)
  return {
    prompt_tokens: prompt,
    completion_tokens: completion,
    total_tokens: usage.totalTokenCount ?? prompt + completion,
    prompt_tokens_details: {
      cached_tokens: usage.cachedContentTokenCount ?? 0,
      audio_tokens: Math.max(0, heard - audioIn(usage.cacheTokensDetails))
    },
    completion_tokens_details: { reasoning_tokens: thoughts, audio_tokens: audioIn(usage.candidatesTokensDetails) }
  }
}

function audioIn(details: readonly Modality[] | undefined): number {
  let tokens = 0
  for (const { modality, tokenCount } of listOf(details)) if (modality === 'AUDIO') tokens += tokenCount ?? 0
  return tokens
}

/** Codes of google.rpc, for errors that do not say which HTTP status they are. */
const statuses: ReadonlyMap<unknown, number> = new Map(
  Object.entries({
    ...{ INVALID_ARGUMENT: 400, FAILED_PRECONDITION: 400, OUT_OF_RANGE: 400, UNAUTHENTICATED: 401 },
    ...{ PERMISSION_DENIED: 403, NOT_FOUND: 404, ABORTED: 409, ALREADY_EXISTS: 409, RESOURCE_EXHAUSTED: 429 },
    ...{ INTERNAL: 500, UNKNOWN: 500, DATA_LOSS: 500, UNIMPLEMENTED: 501, UNAVAILABLE: 503, DEADLINE_EXCEEDED: 504 },
    CANCELLED: 500
  })
)

/**
 * Google's error, alone or in an array, as a fault of ours.
 * @param http the status of the answer; 0 where it was 200 or a stream had begun
 */
export function googleFault(http: number, body: unknown, headers: Reply['headers'], redact: Redact): GatewayError {
  const error = errorIn(body)
  const { code, status, message, details } = error ?? {}
  const named = typeof code === 'number' && code >= 400 && code <= 599 ? code : (statuses.get(status) ?? 0)
  const found = http === 499 || http === 0 ? named : http
  const words = typeof message === 'string' ? message : ''
  let refused = /\bAPI key (?:not valid|expired|not found)/i.test(words)
  let after: string | undefined
  for (const detail of listOf(details)) {
    const { '@type': type, reason, retryDelay } = fieldsOf(detail)
    if (reason === 'API_KEY_INVALID') refused = true
    if (String(type).endsWith('google.rpc.RetryInfo')) after = secondsOf(retryDelay)
  }
  const tooLong = /token count .*exceeds/i.test(words)
  return vendorFault(
    refused && found === 400 ? 401 : found === 499 ? 500 : found,
    error === null ? null : { message, code: tooLong ? 'context_length_exceeded' : status },
    after === undefined || headers['retry-after'] !== undefined ? headers : { ...headers, 'retry-after': after },
    redact
  )
}

/** A duration of google.protobuf: `17s`, `0.25s`. */
function secondsOf(duration: unknown): string | undefined {
  const seconds = /^(\d+(?:\.\d+)?)s$/.exec(String(duration))?.[1]
  return seconds === undefined ? undefined : String(Math.ceil(Number(seconds)))
}

function errorIn(body: unknown): { readonly [field: string]: unknown } | null {
  const { error } = fieldsOf(Array.isArray(body) ? body[0] : body)
  if (typeof error === 'string') return { message: error }
  return typeof error === 'object' && error !== null ? fieldsOf(error) : null
}

export function isResponse(value: unknown): value is GeminiResponse {
  return isRecord(value)
}
