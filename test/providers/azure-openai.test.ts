import { readFileSync } from 'node:fs'
import { mock } from 'node:test'
import OpenAI from 'openai'
import t, { type Test } from 'tap'
import type { ModelGatewayOptions } from '../../app.ts'
import { addressOf } from '../../providers/azure-openai.ts'
import { type ConfigError, readConfig } from '../../schemas/config.ts'
import type { GatewayError } from '../../schemas/errors.ts'
import type { Attempt } from '../../schemas/provider.ts'
import { usageOf } from '../../schemas/usage.ts'
import { conversationsCross } from '../conformance/conversations.ts'
import { attemptOf, openaiVendor, providerConformance, type Subject, type Vendor } from '../conformance/provider.ts'
import { build, hello } from '../helper.ts'
import {
  bytes,
  chunks,
  failure,
  json,
  reset,
  type Script,
  sse,
  startUpstream,
  toolChunks,
  turn,
  type Upstream
} from '../upstream.ts'

type Own = Record<string, unknown>

const fixture = (name: string) => readFileSync(new URL(`../fixtures/azure-openai/${name}`, import.meta.url), 'utf8')
const whole = (name: string, status = 200) =>
  bytes(fixture(name), { status, headers: { 'content-type': 'application/json' } })
const stream = (name: string, options: object = {}) => sse(fixture(name), options)
const entra = { tenantId: 'contoso.example', clientId: 'app-1', clientSecret: 'entra~s3cret/value' }

async function scripted(t: Test, script?: Script): Promise<Upstream> {
  const upstream = await startUpstream({ script })
  t.teardown(() => upstream.close())
  return upstream
}

/** A gateway in front of a resource on Azure; `path` is that of its base URL. */
async function gateway(t: Test, own: Own = {}, path = '') {
  const resource = await scripted(t)
  const up = {
    type: 'azure-openai',
    baseUrl: `http://127.0.0.1:${resource.port}${path}`,
    apiKeys: ['az-key-one'],
    ...own
  }
  const options: unknown = { providers: { up }, models: { test: { targets: [{ provider: 'up', model: 'my-gpt' }] } } }
  const app = await build(t, options as ModelGatewayOptions)
  await app.ready()
  const provider = app.gateway.providers.get('up')!
  const send = (options?: Parameters<typeof attemptOf>[1], more: Partial<Attempt> = {}) =>
    provider.send({
      ...attemptOf(provider, { ...options, request: { model: 'my-gpt', ...options?.request } }),
      ...more
    })
  return { resource, app, provider, send }
}

/** The same, with the real SDK in front of it. */
async function withClient(t: Test, script: Script, own: Own = {}) {
  const made = await gateway(t, own)
  made.resource.script(script)
  const url = await made.app.listen({ host: '127.0.0.1', port: 0 })
  const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: 'not-needed', maxRetries: 0 })
  const raw = async (body: object) =>
    await fetch(`${url}/v1/chat/completions`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ ...hello, ...body })
    })
  return { ...made, client, raw }
}

/** A gateway whose credential comes from a token server; its tokens are token-1, token-2, … of an hour each. */
async function withEntra(t: Test, own: Own = {}) {
  let made = 0
  const authority = await scripted(t, () => json(granted(++made)))
  const baseUrl = `http://127.0.0.1:${authority.port}`
  const front = await gateway(t, { apiKeys: [], entra: { ...entra, authority: baseUrl }, ...own })
  return { ...front, authority }
}

function granted(number: number) {
  return { token_type: 'Bearer', expires_in: 3600, ext_expires_in: 3600, access_token: `token-${number}` }
}

async function faultOf(promise: Promise<unknown>): Promise<GatewayError> {
  try {
    await promise
  } catch (error) {
    return error as GatewayError
  }
  throw new Error('This should have failed.')
}

/** The v1 API, deployments, and an application of Entra. */
function subject(name: string, own: Own): Subject {
  return {
    name,
    async start(t) {
      const keys = own['entra'] === true ? [] : ['az-first-key-of-two', 'other-key-of-two']
      const { resource, provider } =
        keys.length === 0 ? await withEntra(t) : await gateway(t, { apiKeys: keys, ...own })
      const vendor: Vendor = {
        ...openaiVendor(resource),
        models: undefined,
        refusal: (status, message) => failure(status, { message, code: String(status) }),
        healthy: () => json({ object: 'list', data: [] })
      }
      return { provider, vendor, keys }
    }
  }
}

providerConformance(t, subject('azure-openai, v1', {}))
providerConformance(t, subject('azure-openai, deployments', { apiVersion: '2024-10-21' }))
providerConformance(t, subject('azure-openai, Entra', { entra: true }))
conversationsCross(t, { ...subject('azure-openai', {}), model: 'my-gpt' })

// Where it is sent

for (const [path, expected] of Object.entries({
  '': '/openai/v1/chat/completions',
  '/': '/openai/v1/chat/completions',
  '/openai': '/openai/v1/chat/completions',
  '/openai/': '/openai/v1/chat/completions',
  '/openai/v1': '/openai/v1/chat/completions',
  '/openai/v1/': '/openai/v1/chat/completions',
  '/api/projects/p': '/api/projects/p/openai/v1/chat/completions',
  '/team/v1': '/team/v1/chat/completions'
})) {
  t.test(`the v1 API of a base URL that ends in '${path}' is asked at ${expected}`, async t => {
    const { resource, send } = await gateway(t, {}, path)
    await send()
    t.equal(resource.requests[0]?.url, expected)
    t.equal(resource.requests[0]?.json.model, 'my-gpt', 'the deployment is the model')
  })
}

for (const [path, expected] of Object.entries({
  '': '/openai/deployments/my-gpt',
  '/openai/': '/openai/deployments/my-gpt',
  '/openai/v1': '/openai/deployments/my-gpt',
  '/openai/deployments/own': '/openai/deployments/own',
  '/openai/deployments/own/': '/openai/deployments/own',
  '/team/openai/deployments/own': '/team/openai/deployments/own',
  '/team/deployments/own': '/team/deployments/own',
  '/team': '/team/openai/deployments/my-gpt'
})) {
  t.test(`with a version a base URL that ends in '${path}' is asked at ${expected}`, async t => {
    const { resource, send } = await gateway(t, { apiVersion: '2025-01-01-preview' }, path)
    await send()
    t.equal(resource.requests[0]?.url, `${expected}/chat/completions?api-version=2025-01-01-preview`)
  })
}

for (const model of [
  '..',
  '.',
  'a/b',
  '../../x',
  'a?b=c',
  'a#b',
  'a%2fb',
  'a\\b',
  '-a',
  'ü',
  '',
  'a\r\nb',
  'x'.repeat(129)
]) {
  t.test(`no path is made of the name ${JSON.stringify(model.slice(0, 12))}`, async t => {
    const { resource, send } = await gateway(t, { apiVersion: '2024-10-21' })
    const fault = await faultOf(send({ request: { model } }))
    t.match(fault, { statusCode: 400, param: 'model', blame: 'target' })
    t.equal(resource.requests.length, 0)
  })
}

t.test('names of deployments stay as they are', async t => {
  const { resource, send } = await gateway(t, { apiVersion: '2024-10-21' })
  for (const model of ['gpt-4.1', 'GPT_4o', '4o..mini']) {
    await send({ request: { model } })
    t.match(resource.requests.at(-1)?.url, `/openai/deployments/${model}/chat`)
  }
})

t.test("a deployment's own URL needs a version, and an application no keys", async t => {
  const baseUrl = 'https://res.openai.azure.com/openai/deployments/own'
  t.throws(() => addressOf(baseUrl), /needs an apiVersion/)
  const faultsOf = (own: object) => {
    try {
      readConfig({ providers: { az: { type: 'azure-openai', baseUrl, ...own } } } as ModelGatewayOptions)
      return []
    } catch (error) {
      return (error as ConfigError).faults
    }
  }
  t.strictSame(faultsOf({}), [
    'providers.az.apiVersion: found nothing; allowed: a date, as 2024-10-21, for the URL of a deployment'
  ])
  t.strictSame(faultsOf({ apiVersion: 'v1' }), [
    'providers.az.apiVersion: found "v1"; allowed: a date, as 2024-10-21 or 2025-04-01-preview'
  ])
  t.strictSame(faultsOf({ apiVersion: '2024-10-21', entra, apiKeys: ['k'] }), [
    'providers.az.entra: found apiKeys beside it; allowed: one of the two'
  ])
  t.match(faultsOf({ apiVersion: '2024-10-21', entra: { ...entra, tenantId: '../x' } }), [/tenantId/])
  t.strictSame(faultsOf({ apiVersion: '2024-10-21', entra }), [])
})

// What is sent

t.test('the output cap goes as max_completion_tokens, and usage is asked of streams', async t => {
  for (const apiVersion of [undefined, '2024-10-21', '2024-09-01-preview']) {
    const { resource, send } = await gateway(t, { apiVersion })
    await send({ request: { max_tokens: 7, stream: true } })
    const sent = resource.requests[0]!.json
    t.match(sent, { max_completion_tokens: 7, stream_options: { include_usage: true } }, apiVersion ?? 'v1')
    t.notOk('max_tokens' in sent)
  }
})

t.test('versions from before September 2024 get max_tokens and no stream_options', async t => {
  const { resource, send } = await gateway(t, { apiVersion: '2024-06-01' })
  await send({ request: { max_completion_tokens: 7, stream: true } })
  const sent = resource.requests[0]!.json
  t.equal(sent['max_tokens'], 7)
  t.notOk('max_completion_tokens' in sent || 'stream_options' in sent)
})

t.test('a key goes as api-key, and each of a pool by its number', async t => {
  const { resource, provider, send } = await gateway(t, { apiKeys: ['az-key-one', 'az-key-two'] })
  t.equal(provider.keys, 2)
  await send()
  await send({}, { key: 1 })
  t.strictSame(
    resource.requests.map(({ headers }) => [headers['api-key'], headers.authorization]),
    [
      ['az-key-one', undefined],
      ['az-key-two', undefined]
    ]
  )
})

t.test('a token among the keys goes as a bearer token', async t => {
  const { resource, send } = await gateway(t, { auth: 'bearer' })
  await send()
  t.match(resource.requests[0]?.headers, { authorization: 'Bearer az-key-one', 'api-key': undefined })
})

// Entra

t.test('an application gets its token by the client-credentials grant', async t => {
  const headers = { Authorization: 'Bearer fixed', 'API-Key': 'fixed', 'X-Own': 'kept' }
  const { resource, authority, provider, send } = await withEntra(t, { headers })
  t.equal(authority.requests.length, 0, 'not before it is needed')
  await send()
  const [asked] = authority.requests
  t.equal(asked?.method, 'POST')
  t.equal(asked?.url, '/contoso.example/oauth2/v2.0/token')
  t.equal(asked?.headers['content-type'], 'application/x-www-form-urlencoded')
  t.strictSame(Object.fromEntries(new URLSearchParams(asked?.rawBody.toString())), {
    grant_type: 'client_credentials',
    client_id: 'app-1',
    client_secret: 'entra~s3cret/value',
    scope: 'https://cognitiveservices.azure.com/.default'
  })
  const sent = resource.requests[0]!
  t.match(sent.headers, { authorization: 'Bearer token-1', 'api-key': undefined, 'x-own': 'kept' })
  t.equal(sent.rawHeaders.filter(name => name.toLowerCase() === 'authorization').length, 1)
  t.equal(provider.keys, 0)
})

t.test('other clouds have an authority and a scope of their own', async t => {
  const authority = await scripted(t, json(granted(1)))
  const own = {
    authority: `http://127.0.0.1:${authority.port}/login/`,
    scope: 'https://cognitiveservices.azure.us/.default'
  }
  const { send } = await gateway(t, { apiKeys: [], entra: { ...entra, ...own } })
  await send()
  t.equal(authority.requests[0]?.url, '/login/contoso.example/oauth2/v2.0/token')
  t.equal(new URLSearchParams(authority.requests[0]?.rawBody.toString()).get('scope'), own.scope)
})

t.test('50 calls at the same time ask for one token', async t => {
  const { resource, authority, send } = await withEntra(t)
  await Promise.all(Array.from({ length: 50 }, () => send()))
  t.equal(authority.requests.length, 1)
  t.equal(resource.requests.length, 50)
  t.ok(resource.requests.every(({ headers }) => headers.authorization === 'Bearer token-1'))
})

t.test('a token is replaced when its time is over', async t => {
  mock.timers.enable({ apis: ['Date'], now: 1_790_000_000_000 })
  t.teardown(() => mock.timers.reset())
  const { resource, authority, send } = await withEntra(t)
  await send()
  mock.timers.tick(54 * 60_000)
  await send()
  t.equal(authority.requests.length, 1)
  mock.timers.tick(6 * 60_000)
  await send()
  t.equal(authority.requests.length, 2)
  t.strictSame(
    resource.requests.map(({ headers }) => headers.authorization),
    ['Bearer token-1', 'Bearer token-1', 'Bearer token-2']
  )
})

t.test('a token that the resource refuses is replaced for the next attempt', async t => {
  mock.timers.enable({ apis: ['Date'], now: 1_790_000_000_000 })
  t.teardown(() => mock.timers.reset())
  const { resource, send } = await withEntra(t)
  await send()
  mock.timers.tick(60_000)
  resource.script(whole('unauthorized.json', 401), whole('whole.json'))
  t.match(await faultOf(send()), { blame: 'key' })
  await send()
  t.equal(resource.requests.at(-1)?.headers.authorization, 'Bearer token-2')
})

t.test('a refused application is the fault of the key, and its secret is not told', async t => {
  const { authority, resource, send } = await withEntra(t)
  const error_description = `AADSTS7000215: Invalid client secret provided: ${entra.clientSecret}. Trace ID: 1`
  authority.script(json({ error: 'invalid_client', error_description, error_codes: [7000215] }, { status: 401 }))
  const fault = await faultOf(send())
  t.match(fault, {
    code: 'GATEWAY_UPSTREAM_ERROR',
    statusCode: 502,
    blame: 'key',
    headers: { 'x-should-retry': 'false' }
  })
  t.notMatch(fault.message, /AADSTS|s3cret/)
  t.match(fault.cause, { message: /401: invalid_client: AADSTS7000215: Invalid client secret provided: \[redacted\]/ })
  t.notMatch(String((fault.cause as Error).stack), 's3cret')
  t.equal(resource.requests.length, 0)
})

for (const [name, script] of Object.entries({
  'breaks off': reset(),
  'is down': failure(503),
  'answers without a token': json({ token_type: 'Bearer', expires_in: 3600 }),
  'answers without an end': json({ access_token: 'a', expires_in: 'soon' }),
  'answers with a token that is no header': json({ access_token: 'a\r\nb: c', expires_in: 3600 }),
  'answers with something else': bytes('<html>', { headers: { 'content-type': 'text/html' } }),
  'sends elsewhere': bytes('', { status: 302, headers: { location: 'http://127.0.0.1:1/' } })
})) {
  t.test(`a token endpoint that ${name} is a fault of the provider`, async t => {
    const { authority, resource, send } = await withEntra(t)
    authority.script(script, json(granted(2)))
    t.match(await faultOf(send()), { statusCode: 502, blame: 'provider', message: /its token endpoint/ })
    await send()
    t.equal(resource.requests[0]?.headers.authorization, 'Bearer token-2', 'the next call asks again')
  })
}

// What comes back

t.test('a stream whose first chunk has neither choice nor id keeps its bytes', async t => {
  const { raw } = await withClient(t, stream('stream.sse', { cut: 'byte', interval: null }))
  const text = await (await raw({ stream: true, stream_options: { include_usage: true } })).text()
  t.equal(text, fixture('stream.sse'))
})

t.test('the stream helper of the SDK takes it', async t => {
  const { client } = await withClient(t, stream('stream.sse'))
  const said = client.chat.completions.stream({ ...hello, stream_options: { include_usage: true } })
  const completion = await said.finalChatCompletion()
  t.match(completion, { id: 'chatcmpl-CYaZure000000000000000000000001', model: 'gpt-5-mini-2025-08-07' })
  t.match(completion.choices[0], { finish_reason: 'stop', message: { content: 'Grüße aus 東京 🙂.' } })
  t.equal((await said.totalUsage()).total_tokens, 1116)
})

for (const cut of ['none', 'event', 'byte'] as const) {
  t.test(`annotations without a delta and a late filter disturb nobody, cut at ${cut}`, async t => {
    const { client, resource, raw } = await withClient(t, stream('asynchronous.sse', { cut, interval: null }))
    t.equal(await (await raw({ stream: true })).text(), fixture('asynchronous.sse'))
    resource.script(stream('asynchronous.sse', { cut, interval: null }))
    const [choice] = (await client.chat.completions.stream(hello).finalChatCompletion()).choices
    t.match(choice, { finish_reason: 'content_filter', message: { content: 'Four score and seven years' } })
    t.match(choice, { content_filter_results: { protected_material_text: { filtered: true } } })
  })
}

t.test('runTools works over streams with annotations', async t => {
  const first = { choices: [], created: 0, id: '', model: '', object: '', prompt_filter_results: [] }
  const { client, resource } = await withClient(t, sse([]))
  const call = { name: 'weather', arguments: '{"city":"Zürich"}', id: 'call_1' }
  resource.script(sse([first, ...toolChunks([call])]), sse([first, ...chunks('It is sunny.')]))
  const asked: string[] = []
  const tool = {
    name: 'weather',
    description: 'The weather of a city',
    parameters: { type: 'object', properties: {} },
    function: (text: string) => {
      asked.push(text)
      return 'sunny'
    }
  }
  const runner = client.chat.completions.runTools({
    ...hello,
    stream: true,
    tools: [{ type: 'function', function: tool }]
  })
  t.equal(await runner.finalContent(), 'It is sunny.')
  t.strictSame(asked, [call.arguments])
})

t.test('a whole answer keeps its bytes, also while the filter is down', async t => {
  for (const name of ['whole.json', 'filtered.json', 'down.json']) {
    const { raw } = await withClient(t, whole(name))
    const response = await raw({})
    t.equal(response.status, 200, name)
    t.equal(await response.text(), fixture(name), name)
  }
})

t.test('what is reported adds up, streamed and whole', async t => {
  const { resource, send } = await gateway(t)
  const parts = { cacheRead: 1024, input: 16, reasoning: 64, output: 12, mismatch: false, source: 'reported' }
  resource.script(whole('whole.json'), stream('stream.sse'))
  const answer = await send()
  t.match(!answer.stream && usageOf(answer.body.usage), parts)
  const streamed = await send({ request: { stream: true } })
  if (!streamed.stream) throw new Error('A stream was asked for.')
  let last = null
  for await (const frames of streamed.frames) last = frames.usage ?? last
  t.match(usageOf(last), parts)
})

t.test('a blocked prompt is the fault of the request and keeps its code', async t => {
  const { client, resource, send } = await withClient(t, whole('prompt.json', 400))
  for (const stream of [true, false]) {
    t.match(await faultOf(send({ request: { stream } })), {
      statusCode: 400,
      blame: 'request',
      wire: 'content_filter',
      param: 'prompt',
      headers: { 'x-should-retry': 'false' }
    })
  }
  const asked = resource.requests.length
  await t.rejects(client.chat.completions.create(hello), { status: 400, code: 'content_filter', param: 'prompt' })
  t.equal(resource.requests.length, asked + 1)
})

t.test('a deployment that is not there is the fault of the target, a wrong key that of the key', async t => {
  const { resource, send } = await gateway(t)
  resource.script(whole('deployment.json', 404), whole('unauthorized.json', 401))
  t.match(await faultOf(send()), { statusCode: 502, blame: 'target' })
  t.match(await faultOf(send()), { statusCode: 502, blame: 'key' })
})

t.test('what Azure says of the next try is kept to the millisecond', async t => {
  const { resource, send } = await gateway(t)
  resource.script(failure(429, { code: '429' }, { headers: { 'retry-after': '2', 'retry-after-ms': '1250' } }))
  t.match(await faultOf(send()), { statusCode: 429, blame: 'limit', retryAfter: 1250 })
})

t.test('redirects are not followed, so that a key goes nowhere else', async t => {
  const other = await scripted(t)
  const { resource, send } = await gateway(t)
  resource.script(bytes('', { status: 307, headers: { location: other.url } }))
  t.match(await faultOf(send()), { statusCode: 502, blame: 'target' })
  t.equal(other.requests.length, 0)
})

// Health

t.test('health asks for the models of the resource, with the key', async t => {
  for (const [own, url] of [
    [{}, '/openai/v1/models'],
    [{ apiVersion: '2024-10-21' }, '/openai/models?api-version=2024-10-21']
  ] as const) {
    const { resource, provider } = await gateway(t, own)
    t.strictSame(await provider.health!(), { ok: true })
    t.match(resource.requests[0], { method: 'GET', url, headers: { 'api-key': 'az-key-one' } })
    resource.script(whole('unauthorized.json', 401), reset())
    t.strictSame(await provider.health!(), { ok: false, detail: 'It answered with status 401.' })
    t.match(await provider.health!(), { ok: false, detail: /the connection broke/ })
  }
})

t.test('health asks with the token of an application, and says when there is none', async t => {
  const { authority, resource, provider } = await withEntra(t)
  authority.script(failure(500), json(granted(1)))
  t.match(await provider.health!(), { ok: false, detail: /its token endpoint gave no access token/ })
  t.strictSame(await provider.health!(), { ok: true })
  t.equal(resource.requests[0]?.headers.authorization, 'Bearer token-1')
})

t.test('prices are those of Azure', async t => {
  const { provider } = await gateway(t)
  t.strictSame(provider.pricing, { vendor: 'azure' })
})

t.test('closing the app ends its connections to both', async t => {
  const { app, authority, resource, send } = await withEntra(t)
  await send()
  await app.close()
  await authority.until(({ connections }) => connections === 0)
  await resource.until(({ connections }) => connections === 0)
  await turn()
  t.strictSame([authority.open.connections, resource.open.connections], [0, 0])
})
