import t from 'tap'
import type { Provider } from '../../schemas/provider.ts'
import { conversationsCross } from '../conformance/conversations.ts'
import { providerConformance, type Subject } from '../conformance/provider.ts'
import { bytes, failure, flood, sse } from '../upstream.ts'
import { errorOf, eventsOf, fixture, front, replyOf, started } from './openai-wire.ts'

const subject: Subject = { name: 'openai', start: t => started(t, { type: 'openai' }) }

providerConformance(t, subject)
conversationsCross(t, subject)

const openai = { type: 'openai' }

async function listed(provider: Provider, signal?: AbortSignal): Promise<void> {
  await provider.models?.(signal)
}

t.test('the output cap always goes as max_completion_tokens, wherever the address leads', async t => {
  const { sent } = await front(t, openai)
  const { json } = await sent({ max_tokens: 5 })
  t.equal(json['max_completion_tokens'], 5)
  t.notOk('max_tokens' in json)
})

t.test('sampling parameters are the business of the request', async t => {
  const { sent } = await front(t, openai)
  const own = { temperature: 0.2, top_p: 0.5, reasoning_effort: 'high', logprobs: true, verbosity: 'low' }
  t.match((await sent(own)).json, own)
})

t.test('organization and project go as headers', async t => {
  const { sent } = await front(t, { ...openai, organization: 'org-1', project: 'proj_2' })
  const { headers } = await sent()
  t.equal(headers['openai-organization'], 'org-1')
  t.equal(headers['openai-project'], 'proj_2')
  t.equal(headers.authorization, 'Bearer sk-upstream-secret')
})

t.test('without them no such header goes', async t => {
  const { sent } = await front(t, openai)
  t.notMatch(Object.keys((await sent()).headers).join(), /openai/)
})

t.test('what OpenAI sends is never made anew, odd reasons included', async t => {
  const { events = [] } = fixture('openrouter/stream')
  const odd = eventsOf(events).map(event => event.replace('"finish_reason":"stop"', '"finish_reason":"new_reason"'))
  const { post } = await front(t, openai, sse(odd))
  const asked = { stream: true, stream_options: { include_usage: true } }
  t.equal(await (await post(asked)).text(), `${odd.join('')}data: [DONE]\n\n`)
})

t.test('a context that is too long keeps the code of OpenAI', async t => {
  const { post } = await front(t, openai, replyOf('openai/too-long'))
  t.match(await errorOf(await post()), { status: 400, code: 'context_length_exceeded', param: 'messages' })
})

t.test('a key that is refused does not hide its models, nor make it unwell', async t => {
  const { server, provider } = await front(t, { ...openai, apiKeys: ['sk-refused-key-1', 'sk-good-key-2'] })
  server.script(({ headers }) =>
    headers.authorization === 'Bearer sk-good-key-2' ? replyOf('openai/models') : failure(401)
  )
  t.ok((await provider().models?.())?.length)
  t.match(await provider().health?.(), { ok: true })
  t.equal(server.requests.length, 4)
  server.script(failure(401))
  t.match(await provider().health?.(), { ok: false })
})

t.test('its models are listed as it lists them', async t => {
  const { server, provider } = await front(t, openai, replyOf('openai/models'))
  t.strictSame(await provider().models?.(), [
    { id: 'gpt-4.1', created: 1_744_316_542, ownedBy: 'system' },
    { id: 'o4-mini', created: 1_744_133_506, ownedBy: 'system' }
  ])
  const [request] = server.requests
  t.match(request, { method: 'GET', url: '/v1/models', headers: { authorization: 'Bearer sk-upstream-secret' } })
})

t.test('a list that is none is a fault of the provider', async t => {
  for (const body of ['{}', '[]', 'null', '<html>', '']) {
    const { provider } = await front(t, openai, bytes(body))
    await t.rejects(listed(provider()), { code: 'GATEWAY_UPSTREAM_ERROR' }, body)
  }
})

t.test('entries of a list that are no models are left out', async t => {
  const data = [null, 5, 'x', {}, { id: '' }, { id: 7 }, { id: 'm', created: 'yesterday', owned_by: null }]
  const { provider } = await front(t, openai, bytes(JSON.stringify({ data })))
  t.strictSame(await provider().models?.(), [{ id: 'm' }])
})

t.test('a list that is too long is a fault of the provider, and its connection is closed', async t => {
  const { server, provider } = await front(t, openai, flood(Infinity))
  await t.rejects(listed(provider()), { message: /its answer is too large/ })
  t.equal((await server.requests[0]!.closed).how, 'aborted')
})

t.test('health asks what costs nothing, with the key', async t => {
  const { server, provider } = await front(t, openai, replyOf('openai/models'))
  t.strictSame(await provider().health?.(), { ok: true })
  t.match(server.requests[0], { method: 'GET', url: '/v1/models' })
  server.script(failure(401, { message: 'Incorrect API key provided: sk-upstream-secret' }))
  t.strictSame(await provider().health?.(), { ok: false, detail: 'It answered with status 401.' })
  server.drop()
  await server.close()
  t.match(await provider().health?.(), { ok: false, detail: /refused the connection|connection broke/ })
})

t.test('lists and health end with the signal of who asks', async t => {
  const { provider } = await front(t, openai, replyOf('openai/models'))
  const reason = new Error('gone')
  await t.rejects(listed(provider(), AbortSignal.abort(reason)), reason)
  await t.rejects(async () => void (await provider().health?.(AbortSignal.abort(reason))), reason)
})

t.test('abilities are those of families that are known, dated names included', async t => {
  const { provider } = await front(t, openai)
  const of = (model: string) => provider().abilitiesOf?.(model)
  t.match(of('gpt-4.1-mini-2025-04-14'), { contextLength: 1_047_576, images: true, jsonSchema: true })
  t.match(of('gpt-4o'), { contextLength: 128_000, jsonSchema: true, audio: false })
  t.match(of('gpt-4o-2024-05-13'), { jsonSchema: false })
  t.match(of('gpt-3.5-turbo'), { contextLength: 16_385, images: false })
  t.match(of('o3'), { contextLength: 200_000, logprobs: false, images: true })
  t.match(of('o3-mini'), { images: false })
  t.match(of('gpt-5-nano'), { contextLength: 400_000 })
  for (const unknown of ['gpt-5.4', 'gpt-4o-audio-preview', 'gpt-4.1-turbo', 'o1-pro', 'ft:gpt-4o:acme', '']) {
    t.strictSame(of(unknown), {}, unknown)
  }
})
