import t from 'tap'
import { conversationsCross } from '../conformance/conversations.ts'
import { providerConformance, type Subject } from '../conformance/provider.ts'
import { errorOf, front, replyOf, started } from './openai-wire.ts'

const litellm = { type: 'openai-compatible', vendor: 'litellm' } as const

const subject: Subject = { name: 'openai-compatible for LiteLLM', start: t => started(t, litellm) }

providerConformance(t, subject)
conversationsCross(t, subject)

t.test('a context that is too long has the code of OpenAI', async t => {
  const { post } = await front(t, litellm, replyOf('litellm/too-long'))
  const expected = { status: 400, code: 'context_length_exceeded', param: null, message: /prompt is too long/ }
  t.match(await errorOf(await post()), expected)
})

t.test('codes that are only the status and texts that say None are null', async t => {
  const { post } = await front(t, litellm, replyOf('litellm/refused'))
  const message = 'litellm.BadRequestError: Unsupported value.'
  t.strictSame(await errorOf(await post()), {
    status: 400,
    message,
    type: 'invalid_request_error',
    param: null,
    code: null
  })
})

t.test('a limit keeps the time that it asks to wait', async t => {
  const { post } = await front(t, litellm, replyOf('litellm/limited'))
  const response = await post()
  t.equal(response.headers.get('retry-after'), '7')
  t.match(await errorOf(response), { status: 429, code: 'upstream_rate_limited' })
})

t.test('its models are listed, and its health is the list: its own path would call every model', async t => {
  const { server, provider } = await front(t, litellm, replyOf('litellm/models'))
  t.match(await provider().models?.(), [{ id: 'gpt-5', ownedBy: 'openai' }, { id: 'claude' }])
  t.strictSame(await provider().health?.(), { ok: true })
  t.strictSame(
    server.requests.map(({ url }) => url),
    ['/v1/models', '/v1/models']
  )
})
