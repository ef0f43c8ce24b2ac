import type { ChatRequest } from '../schemas/chat.ts'
import { heardIn } from './heard.ts'
import { type Chunk, chunks, completion, failure, toolChunks } from './upstream/openai.ts'
import { json, sse } from './upstream/replies.ts'
import type { Upstream } from './upstream/server.ts'
import type { Speech, Vendor } from './vendor.ts'

/** What a vendor's answers have besides OpenAI's own fields. */
export interface Manner {
  readonly usage?: object
  /** Before every stream. */
  readonly comments?: readonly string[]
  /** Replaces or adds fields of every chunk. */
  readonly chunk?: (chunk: Chunk) => object
}

/** How a vendor says things that speaks OpenAI's wire; what one does differently is spread over it. */
export function openaiVendor(upstream: Upstream, { usage, comments = [], chunk }: Manner = {}): Vendor {
  const remarks = comments.map(comment => `: ${comment}\n\n`)
  const dressed = (chunks: readonly Chunk[]) => [...remarks, ...chunks.map(plain => ({ ...plain, ...chunk?.(plain) }))]
  return {
    upstream,
    says: ['calls', 'thinking', 'cacheRead', 'cacheWrite', 'reasoningTokens', 'filtered'],
    whole: (speech, options) => json(bodyOf(speech, usage), options),
    stream: (speech, options) => sse(dressed(chunksOf(speech, usage)), options),
    refusal: (status, message) => failure(status, { message }),
    failing: ({ text }, message) =>
      sse([...dressed(chunks(text, { finish_reason: null })), { error: { message, code: 502 } }], { done: false }),
    understood(body) {
      if (!isRequest(body)) throw new Error('What arrived is no request in the wire of OpenAI.')
      return heardIn(body)
    },
    models: ids =>
      json({ object: 'list', data: ids.map(id => ({ id, object: 'model', created: 1, owned_by: 'them' })) }),
    healthy: () => json({ object: 'list', data: [] })
  }
}

function usageOf({ inputTokens, outputTokens, cacheRead, cacheWrite, reasoningTokens }: Speech, more: object = {}) {
  return {
    prompt_tokens: inputTokens,
    completion_tokens: outputTokens,
    total_tokens: inputTokens + outputTokens,
    prompt_tokens_details: { cached_tokens: cacheRead ?? 0, cache_write_tokens: cacheWrite ?? 0 },
    completion_tokens_details: { reasoning_tokens: reasoningTokens ?? 0 },
    ...more
  }
}

function finishOf({ finish, calls, filtered }: Speech): string {
  if (filtered) return 'content_filter'
  return calls === undefined ? finish : 'tool_calls'
}

function bodyOf(speech: Speech, more?: object) {
  const { text, thinking, calls } = speech
  const body = completion({ usage: usageOf(speech, more), finish_reason: finishOf(speech) })
  const message = {
    role: 'assistant',
    content: text.length === 0 ? null : text.join(''),
    ...(thinking && { reasoning_content: thinking.join('') }),
    ...(calls && {
      tool_calls: calls.map(({ id, name, arguments: given }) => {
        return { id, type: 'function', function: { name, arguments: given.join('') } }
      })
    })
  }
  return { ...body, choices: [{ ...body.choices[0], message }] }
}

function chunksOf(speech: Speech, more?: object): Chunk[] {
  const { text, thinking = [], calls = [] } = speech
  const [head, ...said] = chunks(text, { finish_reason: null })
  const [, ...called] = toolChunks(calls, { finish_reason: finishOf(speech), usage: usageOf(speech, more) })
  const thoughts = thinking.map(reasoning_content => ({
    ...head!,
    choices: [{ index: 0, delta: { reasoning_content }, finish_reason: null, logprobs: null }]
  }))
  return [head!, ...thoughts, ...said, ...called]
}

function isRequest(body: unknown): body is ChatRequest {
  return typeof body === 'object' && body !== null && 'messages' in body && Array.isArray(body.messages)
}
