import t from 'tap'
import { conversationsCross } from '../conformance/conversations.ts'
import { providerConformance, type Subject } from '../conformance/provider.ts'
import { chunks, json, sse } from '../upstream.ts'
import { errorOf, eventsOf, fixture, front, replyOf, started } from './openai-wire.ts'

const vllm = { type: 'openai-compatible', vendor: 'vllm' } as const

const subject: Subject = {
  name: 'openai-compatible for vLLM',
  start: t =>
    started(t, vllm, {
      chunk: ({ choices }) => ({ choices: choices.map(choice => ({ ...choice, stop_reason: null })) })
    })
}

providerConformance(t, subject)
conversationsCross(t, subject)

const tools = [{ type: 'function', function: { name: 'weather' } }]

for (const name of ['too-long', 'too-long-prompt']) {
  t.test(`a context that is ${name} has the code of OpenAI, and its words`, async t => {
    const { post } = await front(t, vllm, replyOf(`vllm/${name}`))
    const error = await errorOf(await post())
    t.match(error, { status: 400, code: 'context_length_exceeded', message: /maximum (context|model) length/ })
  })
}

t.test('any other refusal has no code', async t => {
  const { post } = await front(t, vllm, replyOf('vllm/no-tool-parser'))
  t.match(await errorOf(await post({ tools })), { status: 400, code: null, message: /enable-auto-tool-choice/ })
})

t.test('reasoning and calls in pieces leave as the bytes they came in', async t => {
  const { post } = await front(t, vllm, replyOf('vllm/stream-tools'))
  const { events = [] } = fixture('vllm/stream-tools')
  const asked = { stream: true, stream_options: { include_usage: true }, tools }
  t.equal(await (await post(asked)).text(), `${eventsOf(events).join('')}data: [DONE]\n\n`)
})

t.test('an answer that it aborted is a fault, whole and streamed', async t => {
  const choice = { index: 0, message: { role: 'assistant', content: 'part' }, finish_reason: 'abort' }
  const { server, post } = await front(t, vllm, json({ id: 'x', object: 'chat.completion', choices: [choice] }))
  t.match(await errorOf(await post()), { status: 502, message: /finish_reason abort/ })
  server.script(sse(chunks('one two', { finish_reason: 'abort' })))
  const text = await (await post({ stream: true })).text()
  t.match(text, /one.*two.*"code":"upstream_error"/s)
  t.notMatch(text, /"finish_reason":"abort"|\[DONE\]/)
})

t.test('its models come with their context', async t => {
  const { provider } = await front(t, vllm, replyOf('vllm/models'))
  t.match(await provider().models?.(), [{ id: 'Qwen/Qwen3-8B', contextLength: 40_960, ownedBy: 'vllm' }])
})
