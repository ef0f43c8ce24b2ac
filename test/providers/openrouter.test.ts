import t, { type Test } from 'tap'
import pricing from '../../plugins/pricing/index.ts'
import openaiCompatible, { type OpenAICompatibleOptions } from '../../providers/openai-compatible.ts'
import type { CompletionUsage } from '../../schemas/chat.ts'
import { inputOf, outputOf, usageOf } from '../../schemas/usage.ts'
import { conversationsCross } from '../conformance/conversations.ts'
import { providerConformance, type Subject } from '../conformance/provider.ts'
import { host } from '../plugins/kernel.ts'
import { chunks, json, sse, startUpstream } from '../upstream.ts'
import { errorOf, eventsOf, fixture, front, replyOf, started } from './openai-wire.ts'

const manner = {
  usage: { cost: 0.0001, is_byok: false, cost_details: { upstream_inference_cost: null } },
  comments: ['OPENROUTER PROCESSING'],
  chunk: () => ({ provider: 'Anthropic' })
}
const subject: Subject = {
  name: 'openai-compatible for OpenRouter',
  start: t => started(t, { type: 'openai-compatible', vendor: 'openrouter' }, manner)
}

providerConformance(t, subject)
conversationsCross(t, subject)

const openrouter = { type: 'openai-compatible', vendor: 'openrouter' }

// What it charges

/** A gateway with prices before a scripted OpenRouter, and what each call came to. */
async function priced(t: Test, own: Partial<OpenAICompatibleOptions> = {}) {
  const upstream = await startUpstream()
  t.teardown(() => upstream.close())
  const price = { input: 1, output: 1 }
  const models = { test: { targets: [{ provider: 'router', model: 'anthropic/claude-haiku-4.5', price }] } }
  const app = await host(t, { routing: { models } })
  await app.register(openaiCompatible, { name: 'router', baseUrl: upstream.url, vendor: 'openrouter', ...own })
  await app.register(pricing, { table: false })
  const costs: Array<number | null> = []
  app.gateway.intercept('observe', (inference, next) => {
    inference.onSettled(() => costs.push(inference.facts.cost))
    return next(inference)
  })
  await app.ready()
  const ask = async (stream: boolean) => {
    const request = { model: 'test', stream, messages: [{ role: 'user' as const, content: 'Hi' }] }
    const answer = await app.gateway.complete(request, app.gateway.caller())
    if (answer.stream) for await (const _ of answer.frames);
    return costs.at(-1)
  }
  return { upstream, ask }
}

for (const [name, stream] of [
  ['whole', false],
  ['stream', true]
] as const) {
  t.test(`what OpenRouter charges for a ${name} answer is what the call costs, to the nano-USD`, async t => {
    const { upstream, ask } = await priced(t)
    upstream.script(replyOf(`openrouter/${name}`))
    t.equal(await ask(stream), 499_000)
  })

  t.test(`what somebody else calls the cost of a ${name} answer is not what it costs`, async t => {
    const { upstream, ask } = await priced(t, { vendor: 'litellm' })
    upstream.script(replyOf(`openrouter/${name}`))
    t.equal(await ask(stream), 255_000, 'the price of the target')
  })
}

t.test('a call with a key of its own costs the fee and what its vendor takes', async t => {
  const { upstream, ask } = await priced(t)
  const usage = {
    prompt_tokens: 10,
    completion_tokens: 10,
    total_tokens: 20,
    cost: 0.00005,
    is_byok: true,
    cost_details: { upstream_inference_cost: 0.001 }
  }
  upstream.script(sse(chunks('Hi', { usage })))
  t.equal(await ask(true), 1_050_000)
})

t.test('an answer without a cost costs the price of its target', async t => {
  const { upstream, ask } = await priced(t)
  const usage = { prompt_tokens: 10, completion_tokens: 10, total_tokens: 20 }
  upstream.script(sse(chunks('Hi', { usage })))
  t.equal(await ask(true), 20_000)
})

t.test('its buckets add up to what it reported', async t => {
  const body = fixture('openrouter/whole').body as { usage: CompletionUsage }
  const usage = usageOf(body.usage)
  t.match(usage, { input: 74, cacheRead: 100, cacheWrite5m: 20, output: 50, reasoning: 11, mismatch: false })
  t.equal(inputOf(usage), 194)
  t.equal(outputOf(usage), 61)
})

// What leaves as it came

t.test('reasoning, its details, the provider and native reasons leave as the bytes they came in', async t => {
  const { server, post } = await front(t, openrouter, replyOf('openrouter/stream'))
  const { events = [] } = fixture('openrouter/stream')
  const asked = { stream: true, stream_options: { include_usage: true } }
  t.equal(await (await post(asked)).text(), `${eventsOf(events).join('')}data: [DONE]\n\n`)
  server.script(replyOf('openrouter/whole'))
  t.equal(await (await post()).text(), JSON.stringify(fixture('openrouter/whole').body))
})

t.test('the usage that it always sends is taken out where nobody asked for it', async t => {
  const { post } = await front(t, openrouter, replyOf('openrouter/stream'))
  const text = await (await post({ stream: true })).text()
  t.notMatch(text, /"cost"/)
  t.match(text, /OPENROUTER PROCESSING/)
})

t.test('reasoning that comes back with the conversation goes upstream as it is', async t => {
  const { sent } = await front(t, openrouter)
  const reasoning_details = [{ type: 'reasoning.text', signature: 'EqQBCkgIBRAB', index: 0 }]
  const messages = [
    { role: 'user', content: 'Hi' },
    { role: 'assistant', content: 'Hello', reasoning_details },
    { role: 'user', content: 'More' }
  ]
  t.same((await sent({ messages })).json.messages, messages)
})

t.test('its attribution headers are plain headers', async t => {
  const headers = { 'HTTP-Referer': 'https://app.example', 'X-OpenRouter-Title': 'App' }
  const { sent } = await front(t, { ...openrouter, headers })
  t.match((await sent()).headers, { 'http-referer': 'https://app.example', 'x-openrouter-title': 'App' })
})

// Its faults

t.test('an error inside a 200 is an error, at the top and in a choice', async t => {
  const { server, post } = await front(t, openrouter, replyOf('openrouter/error-in-choice'))
  t.match(await errorOf(await post()), { status: 502, message: /Provider disconnected mid-stream/ })
  // The last one: whoever is limited is left alone for a while.
  server.script(replyOf('openrouter/error-at-top'))
  t.match(await errorOf(await post()), { status: 429, code: 'upstream_rate_limited' })
})

t.test('a choice that ended in an error without one is a fault too', async t => {
  const choice = { index: 0, message: { role: 'assistant', content: 'part' }, finish_reason: 'error' }
  const { post } = await front(t, openrouter, json({ id: 'gen-1', object: 'chat.completion', choices: [choice] }))
  t.match(await errorOf(await post()), { status: 502, code: 'upstream_error', message: /finish_reason error/ })
})

t.test('an error in the middle of a stream follows what came before it, and no finish_reason is handed on', async t => {
  const { post } = await front(t, openrouter, replyOf('openrouter/mid-stream-error'))
  const text = await (await post({ stream: true })).text()
  const [partial, error] = text.trim().split('\n\n')
  t.match(partial, /"content":"Partial"/)
  t.match(JSON.parse(error!.slice(6)), { error: { code: 'upstream_rate_limited' } })
  t.notMatch(text, /"finish_reason":"error"|\[DONE\]/)
})

t.test('a context that is too long has the code of OpenAI, and its words', async t => {
  const { post } = await front(t, openrouter, replyOf('openrouter/too-long'))
  for (const stream of [false, true]) {
    const error = await errorOf(await post({ stream }))
    t.match(error, { status: 400, code: 'context_length_exceeded', message: /maximum context length is 8192/ })
  }
})

for (const name of ['guardrail', 'moderation']) {
  t.test(`a request that a ${name} stopped is the fault of the request, not of the key`, async t => {
    const { post } = await front(t, openrouter, replyOf(`openrouter/${name}`))
    const error = await errorOf(await post())
    t.match(error, { status: 400, code: 'content_policy_violation', message: /blocked|flagged/ })
  })
}

t.test('an account without credits is the fault of this gateway', async t => {
  const { post } = await front(t, openrouter, replyOf('openrouter/no-credits'))
  const error = await errorOf(await post())
  t.match(error, { status: 502, code: 'upstream_error' })
  t.notMatch(error.message, /credits/)
})

// What it has

t.test('its models come with their context and their prices in USD per million tokens', async t => {
  const { provider } = await front(t, openrouter, replyOf('openrouter/models'))
  t.strictSame(await provider().models?.(), [
    {
      id: 'openai/gpt-4o',
      created: 1_715_558_400,
      contextLength: 128_000,
      price: { input: 2.5, output: 10, cacheRead: 1.25, tiers: [{ above: 200_000, input: 5, output: 20 }] }
    },
    { id: 'openrouter/auto', created: 1_699_401_600, contextLength: 2_000_000 },
    {
      id: 'meta-llama/llama-3.3-70b-instruct:free',
      created: 1_733_506_137,
      contextLength: 65_536,
      price: { input: 0, output: 0 }
    }
  ])
})

t.test('its health is asked where the key counts', async t => {
  const { server, provider } = await front(t, openrouter, replyOf('openrouter/key'))
  t.strictSame(await provider().health?.(), { ok: true })
  t.equal(server.requests[0]?.url, '/v1/key')
})

t.test('it is known by its host, too', async t => {
  const app = await host(t)
  await app.register(openaiCompatible, { name: 'a', baseUrl: 'https://openrouter.ai/api/v1' })
  await app.register(openaiCompatible, { name: 'b', baseUrl: 'https://openrouter.ai.example/api/v1' })
  await app.register(openaiCompatible, { name: 'c', baseUrl: 'https://openrouter.ai/api/v1', vendor: 'litellm' })
  const charges = ['a', 'b', 'c'].map(name => app.gateway.providers.get(name)?.pricing?.charges)
  t.strictSame(charges, [true, false, false])
})
