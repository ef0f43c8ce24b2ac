import assert from 'node:assert/strict'
import test, { type TestContext } from 'node:test'
import Fastify from 'fastify'
import modelGateway from 'fastify-model-gateway'
import gateway from 'fastify-model-gateway/plugins/gateway'
import routing from 'fastify-model-gateway/plugins/routing'
import {
  conversationsCross,
  type Item,
  json,
  providerConformance,
  type Speech,
  type Subject,
  sse,
  startUpstream,
  type Turn,
  type Upstream,
  type Vendor
} from 'fastify-model-gateway/testing'
import acme from './provider.ts'

const keys = ['acme-key-number-one', 'acme-key-number-two']

/** A provider of its own for each test, before a server that says what the suite wants Acme to say. */
const subject: Subject<TestContext> = {
  name: 'acme',
  async start(t) {
    const upstream = await startUpstream()
    const app = Fastify()
    t.after(() => app.close())
    t.after(() => upstream.close())
    await app.register(gateway)
    await app.register(routing)
    await app.register(acme, { name: 'acme', baseUrl: upstream.url, apiKeys: keys })
    await app.ready()
    return { provider: app.gateway.providers.get('acme')!, vendor: scripted(upstream), keys }
  }
}

function scripted(upstream: Upstream): Vendor {
  return {
    upstream,
    says: ['calls'],
    whole: (speech, options) => json({ said: entriesOf(speech) }, options),
    stream: (speech, options) => sse(entriesOf(speech), { done: false, ...options }),
    refusal: (status, text) => json({ problem: text }, { status }),
    failing: (speech, text) => sse([...entriesOf(speech).slice(0, -1), { problem: text }], { done: false }),
    understood
  }
}

function entriesOf({ text, calls = [], finish, inputTokens, outputTokens }: Speech) {
  const said = text.map(text => ({ text }))
  const called = calls.map(({ id, name, arguments: given }) => {
    return { call: id, tool: name, input: given.join('') }
  })
  const end = calls.length > 0 ? 'tool' : finish === 'length' ? 'full' : 'done'
  return [...said, ...called, { end, in: inputTokens, out: outputTokens }]
}

interface Sent {
  tools?: Array<{ name: string }>
  choice?: string | { function: { name: string } }
  log: Array<{
    from: string
    text: string
    image_url?: { url: string }
    file?: { file_data: string }
    call?: string
    tool?: string
    input?: string
  }>
}

/** What Acme would make of a request. */
function understood(body: unknown) {
  const { log, tools = [], choice = 'auto' } = body as Sent
  const turns: Turn[] = []
  for (const { from, text, image_url: image, file, call = '', tool, input = '' } of log) {
    let item: Item = { type: 'text', text }
    if (image !== undefined) item = { type: 'image', url: image.url }
    if (file !== undefined) item = { type: 'file', url: file.file_data }
    if (tool !== undefined) item = { type: 'call', id: call, name: tool, arguments: JSON.parse(input || '{}') }
    else if (from === 'tool') item = { type: 'result', call, text }
    if (from !== 'system') turns.push({ role: from === 'assistant' ? 'assistant' : 'user', items: [item] })
  }
  const system = log.filter(({ from }) => from === 'system').map(({ text }) => text)
  const chosen = typeof choice === 'string' ? choice : choice.function.name
  return { system, turns, tools: tools.map(({ name }) => name), choice: chosen }
}

test('acme', async t => {
  await providerConformance(t, subject)
  await conversationsCross(t, subject)
})

test('a gateway routes to it', async t => {
  const upstream = await startUpstream()
  t.after(() => upstream.close())
  upstream.script(scripted(upstream).whole({ text: ['Hi.'], finish: 'stop', inputTokens: 2, outputTokens: 1 }))

  const app = Fastify()
  t.after(() => app.close())
  await app.register(modelGateway, {
    store: false,
    providers: { acme: { type: 'custom' } },
    models: { fast: { targets: [{ provider: 'acme', model: 'acme-1', price: { input: 1, output: 2 } }] } }
  })
  await app.register(acme, { name: 'acme', baseUrl: upstream.url, apiKeys: keys })
  await app.ready()

  const messages = [{ role: 'user' as const, content: 'Hello' }]
  const answer = await app.gateway.complete({ model: 'fast', messages }, app.gateway.caller())
  assert.ok(!answer.stream)
  assert.equal(answer.body.choices[0]?.message.content, 'Hi.')
  assert.equal(upstream.requests[0]?.json['engine'], 'acme-1')
})
