import Fastify from 'fastify'
import OpenAI from 'openai'
import { makeParseableResponseFormat } from 'openai/lib/parser'
import t, { type Test } from 'tap'
import modelGateway, { readConfig, serverOptions } from '../../app.ts'
import llamacpp from '../../providers/llamacpp.ts'
import type { ChatRequest, CompletionUsage } from '../../schemas/chat.ts'
import type { Provider } from '../../schemas/provider.ts'
import { inputOf, outputOf, usageOf } from '../../schemas/usage.ts'
import { conversationsCross } from '../conformance/conversations.ts'
import { providerConformance, type Subject } from '../conformance/provider.ts'
import { hello } from '../helper.ts'
import { host } from '../plugins/kernel.ts'
import { bytes, chunks, completion, json, type Received, type Reply, silence, sse, startUpstream } from '../upstream.ts'
import { errorOf, eventsOf, fixture, front, replyOf, started } from './openai-wire.ts'

const subject: Subject = {
  name: 'llamacpp',
  start: t => started(t, { type: 'llamacpp' }, {}, { count: input_tokens => json({ input_tokens }) })
}

providerConformance(t, subject)
conversationsCross(t, { ...subject, refused: 0.5 })
conversationsCross(t, { ...subject, name: 'llamacpp, with nothing that it refuses', images: 'inline', files: false })

const llama = { type: 'llamacpp' }
const tools = [{ type: 'function', function: { name: 'weather', parameters: { type: 'object' } } }]

/** A llama-server as far as its GET paths go; the rest is answered by `post`. */
function serverOf(paths: Record<string, Reply>, post: Reply = replyOf('llamacpp/whole')) {
  return ({ method, url }: Received): Reply => paths[url] ?? (method === 'GET' ? json({}, { status: 404 }) : post)
}

async function ask<Value>(answer: Promise<Value> | undefined): Promise<Value> {
  if (answer === undefined) throw new Error('The provider cannot be asked.')
  return answer
}

const countOf = (provider: Provider, request: ChatRequest) => ask(provider.countTokens?.(request))

// Where it is sent, and what

for (const path of ['', '/', '/v1', '/v1/', '//']) {
  t.test(`an address that ends in "${path}" is asked at /v1/chat/completions`, async t => {
    const server = await startUpstream()
    t.teardown(() => server.close())
    server.script(replyOf('llamacpp/whole'))
    const { app } = await alone(t, `http://127.0.0.1:${server.port}${path}`)
    const answer = await app.gateway.complete({ ...hello }, app.gateway.caller())
    t.notOk(answer.stream)
    t.equal(server.requests[0]?.url, '/v1/chat/completions')
  })
}

t.test('an address with a path of its own keeps it', async t => {
  const server = await startUpstream()
  t.teardown(() => server.close())
  server.script(replyOf('llamacpp/whole'))
  const { app } = await alone(t, `http://127.0.0.1:${server.port}/llama/v1`)
  await app.gateway.complete({ ...hello }, app.gateway.caller())
  server.script(replyOf('llamacpp/healthy'))
  await app.gateway.providers.get('local')?.health?.()
  t.strictSame(
    server.requests.map(({ url }) => url),
    ['/llama/v1/chat/completions', '/llama/health']
  )
})

/** The provider by itself, under the kernel. */
async function alone(t: Test, baseUrl: string, own: object = {}) {
  const app = await host(t, { routing: { models: { test: { targets: [{ provider: 'local', model: 'gemma' }] } } } })
  await app.register(llamacpp, { name: 'local', baseUrl, ...own })
  await app.ready()
  return { app }
}

t.test('a key goes as a bearer token, and none without one', async t => {
  const { sent } = await front(t, llama)
  t.equal((await sent()).headers.authorization, 'Bearer sk-upstream-secret')
  const open = await front(t, { ...llama, apiKeys: [] })
  t.notOk('authorization' in (await open.sent()).headers)
})

t.test('the output cap goes as max_tokens, its own parameters go as they are', async t => {
  const { sent } = await front(t, llama)
  const own = { top_k: 5, min_p: 0.1, grammar: 'root ::= "a"', chat_template_kwargs: { enable_thinking: false } }
  const { json } = await sent({ max_completion_tokens: 5, ...own })
  t.match(json, { max_tokens: 5, ...own })
  t.notOk('max_completion_tokens' in json)
})

t.test('a schema goes where llama.cpp reads it', async t => {
  const { sent } = await front(t, llama)
  const schema = { type: 'object', properties: { city: { type: 'string' } } }
  const formats = async (response_format: unknown) => (await sent({ response_format })).json['response_format']
  const nested = { type: 'json_schema', json_schema: { name: 'place', strict: true, schema } }
  t.strictSame(await formats(nested), { type: 'json_object', schema })
  t.strictSame(
    await formats({ type: 'json_schema', schema }),
    { type: 'json_object', schema },
    'its own documented form'
  )
  t.strictSame(await formats({ type: 'json_schema', json_schema: { name: 'any' } }), { type: 'json_object' })
  for (const format of [{ type: 'json_object' }, { type: 'json_object', schema }, { type: 'text' }, null]) {
    t.strictSame(await formats(format), format)
  }
})

t.test('media go as data, links and files are refused: the server would fetch them for anybody', async t => {
  const { server, post } = await front(t, llama)
  const see = (type: string, own: unknown) => post({ messages: [{ role: 'user', content: [{ type, [type]: own }] }] })
  const link = 'http://169.254.169.254/latest'
  for (const [type, own] of [
    ['image_url', { url: link }],
    ['image_url', { url: 'file:///etc/passwd' }],
    ['image_url', link],
    ['input_audio', { data: link, format: 'wav' }],
    ['input_audio', { url: 'file:///etc/passwd' }],
    ['input_video', { url: link }]
  ] as const) {
    t.match(await errorOf(await see(type, own)), { status: 400, param: `messages[0].content[0].${type}` })
  }
  t.equal(server.requests.length, 0)
  t.equal((await see('image_url', { url: 'data:image/png;base64,iVBORw0KGgo=' })).status, 200)
  t.equal((await see('input_audio', { data: 'UklGRg==', format: 'wav' })).status, 200)
})

// What comes back

t.test('timings and thoughts leave as the bytes they came in', async t => {
  const { server, post } = await front(t, llama, replyOf('llamacpp/whole'))
  t.equal(await (await post()).text(), JSON.stringify(fixture('llamacpp/whole').body))
  server.script(replyOf('llamacpp/stream', { cut: 'byte', interval: null }))
  const asked = { stream: true, stream_options: { include_usage: true } }
  t.equal(
    await (await post(asked)).text(),
    `${eventsOf(fixture('llamacpp/stream').events ?? []).join('')}data: [DONE]\n\n`
  )
})

t.test('its buckets add up to what it reported, whole and streamed', async t => {
  const { usage: whole } = fixture('llamacpp/whole').body as { usage: CompletionUsage }
  const [{ usage: last }] = fixture('llamacpp/stream').events!.slice(-1) as [{ usage: CompletionUsage }]
  for (const usage of [usageOf(whole), usageOf(last)]) {
    t.match(usage, { input: 1, cacheRead: 236, output: 35, source: 'reported', mismatch: false })
    t.equal(inputOf(usage), 237)
    t.equal(outputOf(usage), 35)
  }
})

t.test('a context that is too long has the code of OpenAI, and its words', async t => {
  const { post } = await front(t, llama, replyOf('llamacpp/too-long'))
  for (const stream of [false, true]) {
    t.strictSame(await errorOf(await post({ stream })), {
      status: 400,
      message: 'request (13392 tokens) exceeds the available context size (8192 tokens), try increasing it',
      type: 'invalid_request_error',
      param: null,
      code: 'context_length_exceeded'
    })
  }
})

t.test('a context that is too long in a stream that had begun has the code, too', async t => {
  const { body } = fixture('llamacpp/too-long')
  const { post } = await front(t, llama, sse([chunks('a')[1]!, body!], { done: false }))
  t.match(await (await post({ stream: true })).text(), /"code":"context_length_exceeded"/)
})

t.test('a server that loads its model is overloaded', async t => {
  const { post } = await front(t, llama, replyOf('llamacpp/loading'))
  t.match(await errorOf(await post()), { status: 503, code: 'upstream_overloaded' })
})

t.test('what a server cannot do as it is set up is to blame on the target, with its words', async t => {
  const { post, app } = await front(t, llama, replyOf('llamacpp/not-supported'))
  t.match(await errorOf(await post()), { status: 502, message: /This server does not support this/ })
  const call = app.gateway.complete({ ...hello }, app.gateway.caller())
  await t.rejects(call, { code: 'GATEWAY_UPSTREAM_ERROR', blame: 'target' })
})

t.test('a wrong key is the fault of this gateway', async t => {
  const { post } = await front(t, llama, replyOf('llamacpp/unauthorized'))
  t.match(await errorOf(await post()), { status: 502, code: 'upstream_error' })
})

// What it knows

t.test('its model comes with the context that a slot has, not with the one it was trained for', async t => {
  const paths = { '/v1/models': replyOf('llamacpp/models'), '/props': replyOf('llamacpp/props') }
  const { server, provider } = await front(t, llama, serverOf(paths))
  t.strictSame(await ask(provider().models?.()), [
    {
      id: '../models/Meta-Llama-3.1-8B-Instruct-Q4_K_M.gguf',
      created: 1_735_142_223,
      ownedBy: 'llamacpp',
      contextLength: 8192
    }
  ])
  t.ok(server.requests.every(({ headers }) => headers.authorization === 'Bearer sk-upstream-secret'))
})

t.test('without its properties the model is listed without a context', async t => {
  const { provider } = await front(t, llama, serverOf({ '/v1/models': replyOf('llamacpp/models') }))
  const [model] = await ask(provider().models?.())
  t.match(model, { ownedBy: 'llamacpp' })
  t.notOk('contextLength' in model!)
})

t.test('a router is asked for its list only: nothing is loaded for it', async t => {
  const { server, provider } = await front(t, llama, serverOf({ '/v1/models': replyOf('llamacpp/router-models') }))
  const models = await ask(provider().models?.())
  t.match(models, [
    { id: 'ggml-org/gemma-3-4b-it-GGUF:Q4_K_M', contextLength: 4096 },
    { id: 'ggml-org/gpt-oss-20b-GGUF' }
  ])
  t.notOk('contextLength' in models[1]!)
  t.equal(server.requests.length, 1)
})

t.test('it is healthy once its model is loaded and it takes the key', async t => {
  const { server, provider } = await front(t, llama, serverOf({ '/health': replyOf('llamacpp/loading') }))
  t.strictSame(await ask(provider().health?.()), { ok: false, detail: 'It answered with status 503.' })
  server.script(serverOf({ '/health': replyOf('llamacpp/healthy'), '/props': replyOf('llamacpp/unauthorized') }))
  t.strictSame(await ask(provider().health?.()), { ok: false, detail: 'It answered with status 401.' })
  server.script(serverOf({ '/health': replyOf('llamacpp/healthy'), '/props': replyOf('llamacpp/props') }))
  t.strictSame(await ask(provider().health?.()), { ok: true })
})

t.test('a server that says nothing is not waited for longer than the provider has patience', async t => {
  const server = await startUpstream()
  t.teardown(() => server.close())
  server.script(silence())
  const { app } = await alone(t, server.url, { patience: 60 })
  const provider = app.gateway.providers.get('local')!
  t.match(await ask(provider.health?.()), { ok: false, detail: /60 ms/ })
  await t.rejects(countOf(provider, { ...hello }), { code: 'GATEWAY_UPSTREAM_TIMEOUT', statusCode: 504 })
  await server.until(({ requests }) => requests === 0)
})

t.test('a server that drips is given up at the same time', async t => {
  const server = await startUpstream()
  t.teardown(() => server.close())
  server.script(sse(() => drip(), { interval: 5 }))
  const { app } = await alone(t, server.url, { patience: 60 })
  const call = countOf(app.gateway.providers.get('local')!, { ...hello })
  await t.rejects(call, { code: 'GATEWAY_UPSTREAM_TIMEOUT' })
})

function* drip() {
  for (;;) yield ' '
}

t.test('tokens are counted by the server, for the request that would be sent', async t => {
  const { server, provider } = await front(t, llama, replyOf('llamacpp/input-tokens'))
  const schema = { type: 'object' }
  const response_format = { type: 'json_schema', json_schema: { name: 'x', schema } }
  t.equal(await countOf(provider(), { ...hello, tools, response_format }), 11)
  t.match(server.requests[0], { method: 'POST', url: '/v1/chat/completions/input_tokens' })
  t.match(server.requests[0]?.json, { ...hello, tools, response_format: { type: 'json_object', schema } })
})

t.test('a build that has no path for it counts the tokens of the prompt that it makes', async t => {
  const missing = json({ error: { code: 404, message: 'File Not Found', type: 'not_found_error' } }, { status: 404 })
  const paths = { '/apply-template': replyOf('llamacpp/template'), '/tokenize': replyOf('llamacpp/tokens') }
  const { server, provider } = await front(t, llama, serverOf(paths, missing))
  t.equal(await countOf(provider(), { ...hello, tools }), 9)
  t.match(server.requests[1]?.json, { messages: hello.messages, tools })
  t.match(server.requests[2]?.json, { content: /im_start/, add_special: true, parse_special: true })
})

t.test('nothing is fetched for a count either', async t => {
  const { server, provider } = await front(t, llama)
  const content = [{ type: 'image_url', image_url: { url: 'http://169.254.169.254/latest' } }]
  const refused = countOf(provider(), { ...hello, messages: [{ role: 'user', content }] })
  await t.rejects(refused, { code: 'GATEWAY_INVALID_REQUEST' })
  t.equal(server.requests.length, 0)
})

t.test('a count that cannot be had is a fault', async t => {
  const { server, provider } = await front(t, llama, bytes('{}'))
  await t.rejects(countOf(provider(), { ...hello }), { code: 'GATEWAY_UPSTREAM_ERROR', message: /did not count/ })
  server.script(replyOf('llamacpp/loading'))
  await t.rejects(countOf(provider(), { ...hello }), { code: 'GATEWAY_UPSTREAM_OVERLOADED' })
})

// From the environment alone

for (const [name, suffix] of [
  ['LLAMA_CPP_BASE', '/v1'],
  ['LLAMACPP_URL', '']
] as const) {
  t.test(`${name} is all that a gateway needs`, async t => {
    const server = await startUpstream()
    t.teardown(() => server.close())
    const paths = { '/v1/models': replyOf('llamacpp/models'), '/props': replyOf('llamacpp/props') }
    server.script(serverOf(paths))
    const { settings, notes } = readConfig({ store: false }, { [name]: `http://127.0.0.1:${server.port}${suffix}` })
    t.strictSame(notes, [])
    const app = Fastify(serverOptions({ bodyLimit: 1_000_000, trustProxy: false }))
    t.teardown(() => app.close())
    await app.register(modelGateway, { standalone: { settings, log: app.log, adminTokenGenerated: true } })
    const url = await app.listen({ host: '127.0.0.1', port: 0 })
    const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: 'not-needed', maxRetries: 0 })
    const { data, response } = await client.chat.completions
      .create({ ...hello, model: 'llamacpp/gemma' })
      .withResponse()
    t.equal(data.choices[0]?.message.content, 'Grüße aus Zürich.')
    t.equal(response.headers.get('x-gateway-cost-usd'), '0', 'it sends no bills')
    t.equal(server.requests[0]?.json.model, 'gemma')
    const { data: models } = await client.models.list()
    t.ok(models.some(({ id }) => id === 'llamacpp/../models/Meta-Llama-3.1-8B-Instruct-Q4_K_M.gguf'))
  })
}

// The SDK over a gateway

/** The real SDK before a gateway before a scripted llama-server. */
async function client(t: Test) {
  const { server, url } = await front(t, llama)
  return { server, client: new OpenAI({ baseURL: `${url}/v1`, apiKey: 'not-needed', maxRetries: 0 }) }
}

t.test('the SDK iterates over a stream, with thoughts and timings', async t => {
  const { server, client: sdk } = await client(t)
  server.script(replyOf('llamacpp/stream'))
  const got: object[] = []
  const asked = { ...hello, stream: true, stream_options: { include_usage: true } } as const
  for await (const chunk of await sdk.chat.completions.create(asked)) got.push(chunk)
  t.same(got, fixture('llamacpp/stream').events)
})

t.test('the stream helper of the SDK assembles a message and its calls', async t => {
  const { server, client: sdk } = await client(t)
  server.script(replyOf('llamacpp/stream'), replyOf('llamacpp/stream-tools'))
  t.equal(await sdk.chat.completions.stream(hello).finalContent(), 'Grüße aus Zürich.')
  const { tool_calls: calls } = await sdk.chat.completions
    .stream({ ...hello, tools: [...tools] as never })
    .finalMessage()
  t.match(calls, [{ type: 'function', function: { name: 'weather', arguments: '{"city":"Zürich"}' } }])
})

t.test('runTools of the SDK runs a call and sends its result back', async t => {
  const { server, client: sdk } = await client(t)
  const asked: string[] = []
  for (const stream of [true, false] as const) {
    const call = { id: 'c1', type: 'function', function: { name: 'weather', arguments: '{"city":"Zürich"}' } }
    const { choices, ...rest } = completion({ content: null, finish_reason: 'tool_calls' })
    const message = { ...choices[0]!.message, tool_calls: [call] }
    const whole = json({ ...rest, choices: [{ ...choices[0], message }] })
    server.script(
      stream ? replyOf('llamacpp/stream-tools') : whole,
      stream ? replyOf('llamacpp/stream') : replyOf('llamacpp/whole')
    )
    const before = server.requests.length
    const weather = { name: 'weather', parameters: { type: 'object' }, description: 'The weather of a city' }
    const tool = {
      type: 'function' as const,
      function: { ...weather, function: (text: string) => `${asked.push(text)}` }
    }
    const runner = stream
      ? sdk.chat.completions.runTools({ ...hello, stream: true, tools: [tool] })
      : sdk.chat.completions.runTools({ ...hello, tools: [tool] })
    t.equal(await runner.finalContent(), 'Grüße aus Zürich.')
    t.match(server.requests[before + 1]?.json.messages?.at(-1), { role: 'tool', content: String(asked.length) })
  }
  t.strictSame(asked, ['{"city":"Zürich"}', '{"city":"Zürich"}'])
})

t.test('parse of the SDK gets what fits its schema', async t => {
  const { server, client: sdk } = await client(t)
  server.script(json(completion({ content: '{"city":"Zürich"}' })))
  const schema = { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] }
  const format = { type: 'json_schema' as const, json_schema: { name: 'place', schema } }
  const answer = await sdk.chat.completions.parse({
    ...hello,
    response_format: makeParseableResponseFormat(format, text => JSON.parse(text))
  })
  t.strictSame(answer.choices[0]?.message.parsed, { city: 'Zürich' })
  t.strictSame(server.requests[0]?.json['response_format'], { type: 'json_object', schema })
})
