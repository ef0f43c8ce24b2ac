import t, { type Test } from 'tap'
import type { ModelGatewayOptions } from '../../app.ts'
import type { ChatRequest } from '../../schemas/chat.ts'
import { conversationsCross, heardIn } from '../conformance/conversations.ts'
import { providerConformance, type Speech, type Subject, type Vendor } from '../conformance/provider.ts'
import { build } from '../helper.ts'
import { chunks, completion, failure, json, sse, startUpstream } from '../upstream.ts'

async function provider(t: Test, options: NonNullable<ModelGatewayOptions['providers']>[string]) {
  const app = await build(t, { providers: { own: options } })
  await app.ready()
  return app.gateway.providers.get('own')!
}

function usageOf({ inputTokens, outputTokens }: Speech) {
  return { prompt_tokens: inputTokens, completion_tokens: outputTokens, total_tokens: inputTokens + outputTokens }
}

const openaiCompatible: Subject = {
  name: 'openai-compatible',
  async start(t) {
    const upstream = await startUpstream()
    t.teardown(() => upstream.close())
    const vendor: Vendor = {
      upstream,
      whole: (speech, options) =>
        json(
          completion({ content: speech.text.join(''), finish_reason: speech.finish, usage: usageOf(speech) }),
          options
        ),
      stream: (speech, options) =>
        sse(chunks(speech.text, { finish_reason: speech.finish, usage: usageOf(speech) }), options),
      refusal: (status, message) => failure(status, { message }),
      failing: (speech, message) =>
        sse([...chunks(speech.text, { finish_reason: null }), { error: { message, code: 502 } }], { done: false }),
      understood: json => heardIn(json as ChatRequest)
    }
    return {
      vendor,
      provider: await provider(t, { type: 'openai-compatible', baseUrl: upstream.url, apiKeys: ['sk-one'] })
    }
  }
}

providerConformance(t, openaiCompatible)
conversationsCross(t, openaiCompatible)

providerConformance(t, {
  name: 'echo',
  start: async t => ({ provider: await provider(t, { type: 'echo' }) })
})
