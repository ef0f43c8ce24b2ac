import t, { type Test } from 'tap'
import type { ModelGatewayOptions } from '../../app.ts'
import type { ChatRequest } from '../../schemas/chat.ts'
import { conversationsCross, heardIn } from '../conformance/conversations.ts'
import { providerConformance, type Speech, type Subject, type Vendor } from '../conformance/provider.ts'
import { build } from '../helper.ts'
import { chunks, completion, failure, json, sse, startUpstream, toolChunks } from '../upstream.ts'

async function provider(t: Test, options: NonNullable<ModelGatewayOptions['providers']>[string]) {
  const app = await build(t, { providers: { own: options } })
  await app.ready()
  return app.gateway.providers.get('own')!
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

const openaiCompatible: Subject = {
  name: 'openai-compatible',
  async start(t) {
    const upstream = await startUpstream()
    t.teardown(() => upstream.close())
    const vendor: Vendor = {
      upstream,
      says: ['calls', 'thinking', 'cacheRead', 'cacheWrite', 'reasoningTokens', 'filtered'],
      whole: (speech, options) => json(bodyOf(speech), options),
      stream: (speech, options) => sse(eventsOf(speech), options),
      refusal: (status, message) => failure(status, { message }),
      failing: (speech, message) =>
        sse([...chunks(speech.text, { finish_reason: null }), { error: { message, code: 502 } }], { done: false }),
      understood: json => heardIn(json as ChatRequest)
    }
    const keys = ['sk-first-key-of-two', 'pk-other-key-of-two']
    return {
      vendor,
      keys,
      provider: await provider(t, { type: 'openai-compatible', baseUrl: upstream.url, apiKeys: keys })
    }
  }
}

providerConformance(t, openaiCompatible)
conversationsCross(t, openaiCompatible)

providerConformance(t, {
  name: 'echo',
  start: async t => ({ provider: await provider(t, { type: 'echo' }) })
})
