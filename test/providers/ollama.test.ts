import t from 'tap'
import { withinLimits } from '../../providers/wires/openai/limits.ts'
import type { ChatRequest } from '../../schemas/chat.ts'
import { conversationsCross } from '../conformance/conversations.ts'
import { providerConformance, type Subject } from '../conformance/provider.ts'
import { hello } from '../helper.ts'
import { errorOf, eventsOf, fixture, front, replyOf, started } from './openai-wire.ts'

const ollama = { type: 'openai-compatible', vendor: 'ollama' } as const

const subject: Subject = {
  name: 'openai-compatible for Ollama',
  start: t => started(t, ollama, { chunk: () => ({ system_fingerprint: 'fp_ollama' }) })
}

providerConformance(t, subject)
conversationsCross(t, { ...subject, refused: 0.5 })
conversationsCross(t, { ...subject, name: 'Ollama, with nothing that it refuses', images: 'inline', files: false })

const tools = [{ type: 'function', function: { name: 'weather' } }]

t.test('the output cap goes under the only name that it knows', async t => {
  const { sent } = await front(t, ollama)
  const { json } = await sent({ max_completion_tokens: 5 })
  t.equal(json['max_tokens'], 5)
  t.notOk('max_completion_tokens' in json)
})

t.test('several choices are refused, because it would give one', async t => {
  const { server, post } = await front(t, ollama)
  t.match(await errorOf(await post({ n: 2 })), {
    status: 400,
    type: 'invalid_request_error',
    message: /one choice only/
  })
  t.equal(server.requests.length, 0)
  for (const n of [1, null]) t.equal((await post({ n })).status, 200)
})

t.test('images by a link are refused with the place where they stand, data URLs go', async t => {
  const { server, post } = await front(t, ollama)
  const content = (url: string) => [
    { type: 'text', text: 'What is it?' },
    { type: 'image_url', image_url: { url } }
  ]
  const ask = (url: string) => post({ messages: [...hello.messages, { role: 'user', content: content(url) }] })
  for (const url of ['https://example.com/a.png', 'file:///etc/passwd', 'iVBORw0KGgo=']) {
    const error = await errorOf(await ask(url))
    t.match(error, { status: 400, param: 'messages[1].content[1].image_url', message: /send them as data/ })
  }
  t.equal((await ask('data:image/png;base64,iVBORw0KGgo=')).status, 200)
  t.equal(server.requests.length, 1)
})

t.test('a plain text for an image counts as its URL', async t => {
  const { post } = await front(t, ollama)
  const content = [{ type: 'image_url', image_url: 'https://example.com/a.png' }]
  const error = await errorOf(await post({ messages: [{ role: 'user', content }] }))
  t.match(error, { status: 400 })
})

t.test('what it ignores is said, once, and only where it changes something', async t => {
  const { post } = await front(t, ollama)
  const warnings = async (body: object) => (await post(body)).headers.get('x-gateway-warnings')
  t.equal(await warnings({ tools, tool_choice: 'auto', logit_bias: null, parallel_tool_calls: true }), null)
  t.equal(await warnings({ tools, parallel_tool_calls: false }), 'The provider ignores parallel_tool_calls.')
  t.equal(await warnings({ logit_bias: { 5: 1 } }), 'The provider ignores logit_bias.')
  const ignored = 'The provider ignores tool_choice: the model may answer without a call.'
  t.equal(await warnings({ tools, tool_choice: 'required' }), ignored)
  t.equal(await warnings({ tools, tool_choice: { type: 'function', function: { name: 'weather' } } }), ignored)
  const twice: string[] = [ignored]
  withinLimits({ ...hello, tools, tool_choice: 'required' } as ChatRequest, { freeToolChoice: true }, twice)
  t.strictSame(twice, [ignored])
})

t.test('no calls are had by sending no tools', async t => {
  const { post, server } = await front(t, ollama)
  t.equal((await post({ tools, tool_choice: 'none' })).headers.get('x-gateway-warnings'), null)
  t.notOk('tools' in server.requests[0]!.json || 'tool_choice' in server.requests[0]!.json)
})

t.test('calls that are complete in one event leave as the bytes they came in', async t => {
  const { post } = await front(t, ollama, replyOf('ollama/stream-tools'))
  const { events = [] } = fixture('ollama/stream-tools')
  const asked = { stream: true, stream_options: { include_usage: true }, tools }
  t.equal(await (await post(asked)).text(), `${eventsOf(events).join('')}data: [DONE]\n\n`)
})

t.test(
  'a context that is too long has the code of OpenAI, a model that is not there is the operator’s fault',
  async t => {
    const { server, post } = await front(t, ollama, replyOf('ollama/too-long'))
    t.match(await errorOf(await post()), { status: 400, code: 'context_length_exceeded' })
    server.script(replyOf('ollama/not-found'))
    t.match(await errorOf(await post()), { status: 502, code: 'upstream_error' })
  }
)

t.test('it says what it cannot do, and lists its models', async t => {
  const { provider } = await front(t, ollama, replyOf('ollama/models'))
  t.match(provider().capabilities, { choices: false, audio: false, files: false })
  t.strictSame(await provider().models?.(), [{ id: 'qwen3:8b', created: 1_790_000_000, ownedBy: 'library' }])
})
