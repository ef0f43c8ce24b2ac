import type { ChatRequest } from '../schemas/chat.ts'
import { heardIn } from './heard.ts'
import { chunks, completion, failure, toolChunks } from './upstream/openai.ts'
import { json, sse } from './upstream/replies.ts'
import type { Upstream } from './upstream/server.ts'
import type { Speech, Vendor } from './vendor.ts'

/** How a vendor says things that speaks OpenAI's wire; what one does differently is spread over it. */
export function openaiVendor(upstream: Upstream): Vendor {
  return {
    upstream,
    says: ['calls', 'thinking', 'cacheRead', 'cacheWrite', 'reasoningTokens', 'filtered'],
    whole: (speech, options) => json(bodyOf(speech), options),
    stream: (speech, options) => sse(eventsOf(speech), options),
    refusal: (status, message) => failure(status, { message }),
    failing: ({ text }, message) =>
      sse([...chunks(text, { finish_reason: null }), { error: { message, code: 502 } }], { done: false }),
    understood(body) {
      if (!isRequest(body)) throw new Error('What arrived is no request in the wire of OpenAI.')
      return heardIn(body)
    },
    models: ids =>
      json({ object: 'list', data: ids.map(id => ({ id, object: 'model', created: 1, owned_by: 'them' })) })
  }
}

function usageOf({ inputTokens, outputTokens, cacheRead, cacheWrite, reasoningTokens }: Speech) {
  return {
    prompt_tokens: inputTokens,
    completion_tokens: outputTokens,
    total_tokens: inputTokens + outputTokens,
    prompt_tokens_details: { cached_tokens: cacheRead ?? 0, cache_write_tokens: cacheWrite ?? 0 },
    completion_tokens_details: { reasoning_tokens: reasoningTokens ?? 0 }
  }
}

function finishOf({ finish, calls, filtered }: Speech): string {
  if (filtered) return 'content_filter'
  return calls === undefined ? finish : 'tool_calls'
}

function bodyOf(speech: Speech) {
  const { text, thinking, calls } = speech
  const body = completion({ usage: usageOf(speech), finish_reason: finishOf(speech) })
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

function eventsOf(speech: Speech, finish_reason: string | null = finishOf(speech)) {
  const { text, thinking = [], calls = [] } = speech
  const [head, ...said] = chunks(text, { finish_reason: null })
  const thoughts = thinking.map(reasoning_content => ({
    ...head,
    choices: [{ index: 0, delta: { reasoning_content }, finish_reason: null }]
  }))
  const [, ...called] = toolChunks(calls, { finish_reason, usage: usageOf(speech) })
  return [head, ...thoughts, ...said, ...called]
}

function isRequest(body: unknown): body is ChatRequest {
  return typeof body === 'object' && body !== null && 'messages' in body && Array.isArray(body.messages)
}
