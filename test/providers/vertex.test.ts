import { generateKeyPairSync } from 'node:crypto'
import { readFileSync } from 'node:fs'
import OpenAI from 'openai'
import t, { type Test } from 'tap'
import type { ModelGatewayOptions } from '../../app.ts'
import vertex from '../../providers/vertex/index.ts'
import type { ChatCompletionChunk, ChatRequest, CompletionUsage } from '../../schemas/chat.ts'
import { readConfig } from '../../schemas/config.ts'
import type { GatewayError } from '../../schemas/errors.ts'
import type { Answer } from '../../schemas/gateway.ts'
import type { Provider } from '../../schemas/provider.ts'
import { usageOf } from '../../schemas/usage.ts'
import { conversationsCross } from '../conformance/conversations.ts'
import { attemptOf, providerConformance, type Subject, type Vendor } from '../conformance/provider.ts'
import { build, hello } from '../helper.ts'
import {
  bytes,
  close,
  failure,
  json,
  type Received,
  type Script,
  sse,
  startUpstream,
  type Upstream
} from '../upstream.ts'
import { claudeError, claudeVendor, message, messageEvents } from './claude.ts'
import { calling, events, geminiVendor, failure as googleError, saying } from './gemini-vendor.ts'

type Own = Record<string, unknown>

for (const name of ['HTTPS_PROXY', 'https_proxy', 'HTTP_PROXY', 'http_proxy']) delete process.env[name]

const { privateKey } = generateKeyPairSync('rsa', { modulusLength: 2048 })
const account = JSON.stringify({
  type: 'service_account',
  private_key: privateKey.export({ type: 'pkcs8', format: 'pem' }),
  client_email: 'gateway@my-project.iam.gserviceaccount.com',
  token_uri: 'https://oauth2.googleapis.com/token'
})
const gemini = 'gemini-2.5-flash'
const claude = 'claude-sonnet-4-5@20250929'

const fixture = (name: string) => readFileSync(new URL(`../fixtures/vertex/${name}`, import.meta.url), 'utf8')
const said = (name: string, status = 200) =>
  bytes(fixture(name), { status, headers: { 'content-type': 'application/json; charset=UTF-8' } })

async function scripted(t: Test, script?: Script): Promise<Upstream> {
  const upstream = await startUpstream({ script })
  t.teardown(() => upstream.close())
  return upstream
}

/** Tokens are ya29.token-1, ya29.token-2, … */
function tokens(): Script {
  let made = 0
  return () => json({ access_token: `ya29.token-${++made}`, expires_in: 3599, token_type: 'Bearer' })
}

/** A gateway in front of Vertex AI, and the server that gives it tokens. */
async function gateway(t: Test, own: Own = {}, script?: Script) {
  const [google, authority] = [await scripted(t, script), await scripted(t, tokens())]
  const up = {
    type: 'vertex',
    project: 'my-project',
    location: 'europe-west1',
    baseUrl: `http://127.0.0.1:${google.port}`,
    credentials: account,
    tokenUrl: `http://127.0.0.1:${authority.port}/token`,
    ...own
  }
  const target = (model: string) => ({ targets: [{ provider: 'up', model }] })
  const options: unknown = { providers: { up }, models: { test: target(gemini), claude: target(claude) } }
  const app = await build(t, options as ModelGatewayOptions)
  await app.ready()
  const provider = app.gateway.providers.get('up')!
  return { google, authority, app, provider, send: sending(provider) }
}

function sending(provider: Provider) {
  return (request: Partial<ChatRequest> = {}) => {
    const attempt = attemptOf(provider, { request: { model: gemini, ...request } })
    return { attempt, answer: provider.send(attempt) }
  }
}

async function withClient(t: Test, script: Script, own: Own = {}) {
  const made = await gateway(t, own, script)
  const url = await made.app.listen({ host: '127.0.0.1', port: 0 })
  return { ...made, client: new OpenAI({ baseURL: `${url}/v1`, apiKey: 'not-needed', maxRetries: 0 }) }
}

async function faultOf(promise: Promise<unknown>): Promise<GatewayError> {
  try {
    await promise
  } catch (error) {
    return error as GatewayError
  }
  throw new Error('This should have failed.')
}

function wholeBody(answer: Answer) {
  if (answer.stream) throw new Error('A whole answer was asked for.')
  return answer.body
}

interface Asked {
  readonly contents: ReadonlyArray<{ readonly parts: ReadonlyArray<Record<string, object>> }>
}

/** Vertex AI takes no ids: the first result is that of the first call before it, and so on. */
function byOrder(body: Asked): object {
  const contents = body.contents.map((content, turn) => {
    let calls = 0
    let results = 0
    const parts = content.parts.map(({ functionCall, functionResponse, ...part }) => {
      if (functionCall) return { functionCall: { ...functionCall, id: `${turn}-${calls++}` } }
      if (functionResponse) return { functionResponse: { ...functionResponse, id: `${turn - 1}-${results++}` } }
      return part
    })
    return { ...content, parts }
  })
  return { ...body, contents }
}

function subject(name: string, model: string, vendorOn: (google: Upstream) => Vendor): Subject {
  return {
    name: `vertex, ${name}`,
    model,
    async start(t) {
      const { google, provider } = await gateway(t)
      const vendor = { ...vendorOn(google), models: undefined, healthy: () => said('permission.json', 403) }
      return { provider, vendor, keys: [] }
    }
  }
}

const asGemini = subject('Gemini', gemini, google => {
  const vendor = geminiVendor(google)
  return { ...vendor, understood: body => vendor.understood!(byOrder(body as Asked)) }
})
const asClaude = subject('Claude', claude, google => ({
  ...claudeVendor(google),
  // Both Anthropic and Google refuse.
  refusal: (status, text) =>
    status % 2 === 0 ? json(googleError(status, text), { status }) : claudeError(status, text, 'some_error')
}))

providerConformance(t, asGemini)
conversationsCross(t, asGemini)
providerConformance(t, asClaude)
// Claude does not read what is elsewhere.
conversationsCross(t, { ...asClaude, images: 'inline' })

// Where it is sent, and how

const place = '/v1/projects/my-project/locations/europe-west1/publishers'

t.test('Gemini is asked at its publisher, with a token', async t => {
  const { google, send } = await gateway(t, { headers: { Authorization: 'Bearer fixed', 'X-Own': 'kept' } })
  google.script(said('gemini.json'), geminiStream())
  await send({ model: gemini }).answer
  await drained(await send({ model: `publishers/google/models/${gemini}`, stream: true }).answer)
  t.strictSame(
    google.requests.map(({ url }) => url),
    [
      `${place}/google/models/${gemini}:generateContent`,
      `${place}/google/models/${gemini}:streamGenerateContent?alt=sse`
    ]
  )
  const [sent] = google.requests
  t.match(sent?.headers, { authorization: 'Bearer ya29.token-1', 'x-own': 'kept', 'content-type': 'application/json' })
  t.equal(sent?.rawHeaders.filter(name => name.toLowerCase() === 'authorization').length, 1)
  t.notOk('model' in sent!.json)
})

t.test('Claude is asked at its publisher, with its version in the body and no model', async t => {
  const { google, send } = await gateway(t)
  google.script(said('claude.json'), claudeStream())
  await send({ model: claude, max_tokens: 5, temperature: 0.5 }).answer
  await drained(await send({ model: `publishers/anthropic/models/${claude}`, stream: true }).answer)
  const [whole, streamed] = google.requests
  t.equal(whole?.url, `${place}/anthropic/models/${claude}:rawPredict`)
  t.equal(streamed?.url, `${place}/anthropic/models/${claude}:streamRawPredict`)
  t.match(whole?.json, { anthropic_version: 'vertex-2023-10-16', max_tokens: 5, temperature: 0.5 })
  t.equal(streamed?.json.stream, true)
  for (const request of google.requests) {
    t.notOk('model' in request.json)
    t.notOk('anthropic-version' in request.headers)
    t.equal(request.headers.authorization, 'Bearer ya29.token-1')
  }
})

t.test('with keys alone Gemini is asked in the express mode, each key by its number', async t => {
  const express = { project: undefined, location: undefined, credentials: undefined, tokenUrl: undefined }
  const { google, authority, provider, send } = await gateway(t, { ...express, apiKeys: ['AIza-one', 'AIza-two'] })
  google.script(said('gemini.json'))
  await send().answer
  await provider.send({ ...send().attempt, key: 1 })
  t.equal(provider.keys, 2)
  t.equal(google.requests[0]?.url, `/v1/publishers/google/models/${gemini}:generateContent`)
  t.same(new Set(google.requests.map(({ headers }) => headers['x-goog-api-key'])), new Set(['AIza-one', 'AIza-two']))
  t.notOk(google.requests.some(({ headers }) => 'authorization' in headers))
  t.equal(authority.requests.length, 0)
  t.match(await faultOf(send({ model: claude }).answer), {
    statusCode: 400,
    param: 'model',
    blame: 'target'
  })
})

t.test('no path is made of a name that is none', async t => {
  const { google, authority, send } = await gateway(t)
  for (const model of ['../../endpoints/1', 'publishers/meta/models/llama', `${gemini}:predict?x=`]) {
    t.match(await faultOf(send({ model }).answer), { statusCode: 400, param: 'model', blame: 'target' })
  }
  t.equal(google.requests.length + authority.requests.length, 0)
})

t.test('nobody is asked before the first call, and 50 at once ask for one token', async t => {
  const { google, authority, send } = await gateway(t, {}, said('gemini.json'))
  t.equal(google.requests.length + authority.requests.length, 0)
  await Promise.all(Array.from({ length: 50 }, () => send().answer))
  t.equal(authority.requests.length, 1)
  t.equal(google.requests.length, 50)
})

t.test('a refused token is the fault of the key, and Google is not asked', async t => {
  const { google, authority, send } = await gateway(t)
  authority.script(json({ error: 'invalid_grant', error_description: 'Invalid JWT Signature.' }, { status: 400 }))
  for (const model of [gemini, claude]) {
    const fault = await faultOf(send({ model }).answer)
    t.match(fault, { code: 'GATEWAY_UPSTREAM_ERROR', blame: 'key', statusCode: 502 })
    t.notMatch(fault.message, 'JWT')
  }
  t.equal(google.requests.length, 0)
})

t.test('a token in the words of Google is not told', async t => {
  const { google, send } = await gateway(t)
  google.script(
    json(googleError(400, 'The token ya29.token-1 and the header Bearer eyJh.eyJp.c2ln are odd.'), { status: 400 })
  )
  const fault = await faultOf(send().answer)
  t.equal(fault.message, 'The token [redacted] and the header Bearer [redacted] are odd.')
})

// Errors of both shapes

for (const model of [gemini, claude]) {
  t.test(`errors of Google are understood from ${model}, alone and in an array`, async t => {
    const { google, send } = await gateway(t)
    google.script(said('quota.json', 429), said('permission.json', 403))
    t.match(await faultOf(send({ model, stream: true }).answer), { statusCode: 429, blame: 'limit' })
    const fault = await faultOf(send({ model }).answer)
    t.match(fault, { statusCode: 502, blame: 'key' })
    t.notMatch(fault.message, 'my-project')
  })
}

t.test('Google says when to come back', async t => {
  const { send } = await gateway(t, {}, said('quota.json', 429))
  t.equal((await faultOf(send().answer)).retryAfter, 17_000)
})

t.test('errors of Anthropic are understood too', async t => {
  const { send } = await gateway(t, {}, said('links.json', 400))
  t.match(await faultOf(send({ model: claude }).answer), { statusCode: 400, message: /URL sources are not supported/ })
})

// Counts

t.test('what is reported adds up', async t => {
  const { google, send } = await gateway(t)
  google.script(said('gemini.json'), said('claude.json'))
  const parts = async (model: string) => usageOf(wholeBody(await send({ model }).answer).usage)
  t.match(await parts(gemini), { input: 16, cacheRead: 1024, reasoning: 64, output: 12, mismatch: false })
  const claudes = { input: 16, cacheRead: 1024, cacheWrite5m: 120, cacheWrite1h: 80, output: 12, mismatch: false }
  t.match(await parts(claude), claudes)
})

t.test('streams report the same', async t => {
  const { google, send } = await gateway(t)
  google.script(geminiStream(), claudeStream())
  for (const model of [gemini, claude]) {
    const { usage } = await drained(await send({ model, stream: true }).answer)
    t.match(usageOf(usage), { input: 9, output: 5, source: 'reported', mismatch: false }, model)
  }
})

// Links

const link = 'https://images.example/cat.png'
const pointing = (url: string): ChatRequest['messages'] => [
  {
    role: 'user',
    content: [
      { type: 'text', text: 'What is this?' },
      { type: 'image_url', image_url: { url } }
    ]
  }
]

t.test('Google reads links by itself', async t => {
  const { google, send } = await gateway(t, {}, said('gemini.json'))
  for (const url of [link, 'gs://bucket/cat.png']) {
    await send({ messages: pointing(url) }).answer
    t.match(google.requests.at(-1)?.json['contents'], [
      { parts: [{}, { fileData: { fileUri: url, mimeType: 'image/png' } }] }
    ])
  }
})

t.test('Claude reads none on Vertex AI: without fetchMedia they are refused by name', async t => {
  const { google, send } = await gateway(t)
  const fault = await faultOf(send({ model: claude, messages: pointing(link) }).answer)
  t.match(fault, { statusCode: 400, param: 'messages[0].content[1].image_url.url', message: /fetchMedia/ })
  t.equal(google.requests.length, 0)
})

t.test('with fetchMedia links are read here for Claude', async t => {
  const types: Readonly<Record<string, string>> = { '/cat.png': 'image/png', '/paper.pdf': 'application/pdf' }
  const pictures = await scripted(t, ({ url }) =>
    bytes(`bytes of ${url}`, { headers: { 'content-type': types[url]! } })
  )
  const at = (path: string) => `http://127.0.0.1:${pictures.port}${path}`
  const { google, send } = await gateway(t, { fetchMedia: { allowPrivate: true } }, said('claude.json'))
  const messages: ChatRequest['messages'] = [
    { role: 'system', content: 'Look.' },
    {
      role: 'user',
      content: [
        { type: 'image_url', image_url: { url: at('/cat.png'), detail: 'low' } },
        { type: 'file', file: { filename: 'paper.pdf', file_data: at('/paper.pdf') } },
        { type: 'text', text: 'What is this?' }
      ]
    }
  ]
  await send({ model: claude, messages }).answer
  const source = (media_type: string, path: string) => ({
    source: { type: 'base64', media_type, data: Buffer.from(`bytes of ${path}`).toString('base64') }
  })
  t.match(google.requests[0]?.json.messages, [
    {
      role: 'user',
      content: [
        { type: 'image', ...source('image/png', '/cat.png') },
        { type: 'document', ...source('application/pdf', '/paper.pdf') },
        { type: 'text', text: 'What is this?' }
      ]
    }
  ])
})

t.test('addresses of private networks are not read unless that is allowed', async t => {
  const pictures = await scripted(t)
  const { send } = await gateway(t, { fetchMedia: true })
  const messages = pointing(`http://127.0.0.1:${pictures.port}/cat.png`)
  t.match(await faultOf(send({ model: claude, messages }).answer), { statusCode: 400 })
  t.equal(pictures.requests.length, 0)
})

// What is left out

t.test('Claude has no service tiers there, which is said once', async t => {
  const { google, provider, send } = await gateway(t, {}, said('claude.json'))
  const { attempt, answer } = send({ model: claude, service_tier: 'auto' })
  await answer
  await provider.send(attempt)
  t.notOk('service_tier' in google.requests[0]!.json)
  const told = attempt.inference.facts.warnings.filter(text => text.includes('service tier'))
  t.equal(told.length, 1)
})

t.test('safety settings go to Gemini and not to Claude', async t => {
  const safetySettings = [{ category: 'HARM_CATEGORY_HARASSMENT', threshold: 'BLOCK_ONLY_HIGH' }]
  const { google, send } = await gateway(t, { safetySettings })
  google.script(said('gemini.json'), said('claude.json'))
  await send().answer
  await send({ model: claude }).answer
  t.same(google.requests[0]?.json['safetySettings'], safetySettings)
  t.notOk('safetySettings' in google.requests[1]!.json)
})

// Through the gateway, by the SDK

t.test('the stream helper of the SDK takes both', async t => {
  const { google, client } = await withClient(t, geminiStream())
  const heard = async (model: string) => await client.chat.completions.stream({ ...hello, model }).finalContent()
  t.equal(await heard('test'), text)
  google.script(claudeStream())
  t.equal(await heard('claude'), text)
})

t.test('runTools works with both, and their signatures come back', async t => {
  const call = calling('weather', { city: 'Zürich' }, { thoughtSignature: 'c2lnbmVk' })
  const thinking = { type: 'thinking', thinking: 'The weather.', signature: 'c2lnbmVk' } as const
  const use = { type: 'tool_use', id: 'toolu_vrtx_1', name: 'weather', input: '{"city":"Zürich"}' } as const
  for (const [model, first, last] of [
    ['test', saying([call], { finishReason: 'STOP' }), saying([{ text }], { finishReason: 'STOP' })],
    ['claude', message([thinking, use]), message([{ type: 'text', text }])]
  ] as const) {
    const { google, client } = await withClient(t, said('gemini.json'))
    google.script(json(first), json(last))
    const asked: string[] = []
    const runner = client.chat.completions.runTools({
      ...hello,
      model,
      tools: [
        {
          type: 'function',
          function: {
            name: 'weather',
            description: 'The weather of a city',
            parameters: { type: 'object', properties: { city: { type: 'string' } } },
            function: (text: string) => {
              asked.push(text)
              return 'sunny'
            }
          }
        }
      ]
    })
    t.equal(await runner.finalContent(), text, model)
    t.strictSame(asked, ['{"city":"Zürich"}'])
    t.match(google.requests[1]?.rawBody.toString(), /c2lnbmVk.*sunny/s, model)
  }
})

// Counting, health, abilities

t.test('tokens are counted by the vendor of the model', async t => {
  const { google, provider } = await gateway(t)
  google.script(
    json({ totalTokens: 31, totalBillableCharacters: 96 }),
    json({ input_tokens: 42 }),
    said('quota.json', 429)
  )
  const messages: ChatRequest['messages'] = [{ role: 'user', content: 'Hello' }]
  t.equal(await provider.countTokens!({ model: gemini, messages }), 31)
  t.equal(await provider.countTokens!({ model: claude, messages }), 42)
  const [first, second] = google.requests as Received[]
  t.equal(first?.url, `${place}/google/models/${gemini}:countTokens`)
  t.match(first?.json['contents'], [{ role: 'user', parts: [{ text: 'Hello' }] }])
  t.equal(second?.url, `${place}/anthropic/models/count-tokens:rawPredict`)
  t.match(second?.json, { model: claude, anthropic_version: 'vertex-2023-10-16' })
  t.notOk('max_tokens' in second!.json)
  t.match(await faultOf(provider.countTokens!({ model: claude, messages })), { statusCode: 429 })
})

t.test('health is a token and an answer of the host', async t => {
  const { google, authority, provider } = await gateway(t, {}, said('permission.json', 403))
  t.strictSame(await provider.health!(), { ok: true }, 'what it refuses here no model needs')
  t.equal(google.requests[0]?.url, '/v1/projects/my-project/locations/europe-west1')
  google.script(json(googleError(401, 'no'), { status: 401 }), failure(503), close())
  t.strictSame(await provider.health!(), { ok: false, detail: 'It answered with status 401.' })
  t.strictSame(await provider.health!(), { ok: false, detail: 'It answered with status 503.' })
  t.match(await provider.health!(), { ok: false, detail: /the connection broke/ })
  const other = await gateway(t)
  other.authority.script(failure(500))
  t.match(await other.provider.health!(), { ok: false, detail: /its token endpoint/ })
  t.equal(authority.requests.length, 1)
})

t.test('abilities are those of the model', async t => {
  const { provider } = await gateway(t)
  t.match(provider.abilitiesOf?.(claude), { tools: true, audio: false, choices: false, contextLength: 200_000 })
  t.match(provider.abilitiesOf?.(`publishers/google/models/${gemini}`), { tools: true, audio: true })
  t.doesNotThrow(() => provider.abilitiesOf?.('../x'))
  t.strictSame(provider.pricing, { vendor: 'google' })
})

// Options

t.test('what does not go together is said at the start', async t => {
  const faultsOf = (own: object) => {
    try {
      readConfig({ providers: { v: { type: 'vertex', ...own } } } as ModelGatewayOptions)
      return []
    } catch (error) {
      return (error as { faults: string[] }).faults
    }
  }
  t.strictSame(faultsOf({}), [
    'providers.v.project: found nothing; allowed: the id of a project, or apiKeys for the express mode'
  ])
  for (const own of [{ project: 'p' }, { credentials: account }]) {
    t.strictSame(faultsOf({ apiKeys: ['AIza-one'], ...own }), [
      'providers.v.apiKeys: found a project or credentials beside them; allowed: apiKeys alone, for the express mode'
    ])
  }
  t.strictSame(faultsOf({ project: 'p' }), [])
  t.strictSame(faultsOf({ apiKeys: ['AIza-one'] }), [])
})

t.test('a provider that cannot be set up stops the start with one line and no secret', async t => {
  for (const [own, words] of [
    [{ location: 'evil.example/' }, /The provider up cannot be set up: location is not the name/],
    [{ project: '../x' }, /project is not the id/],
    [{ credentials: '{"private_key": "hunter2"}' }, /not the key of a service account/]
  ] as const) {
    const error = await faultOf(gateway(t, { baseUrl: undefined, ...own }))
    t.match(error.message, words)
    t.notMatch(error.message, 'hunter2')
  }
  const app = await build(t)
  await t.rejects(async () => await vertex(app, { name: 'own' }), /neither a project nor a key/)
})

const text = 'Grüße aus 東京 🙂.'

function geminiStream() {
  const usage = { promptTokenCount: 9, candidatesTokenCount: 5, totalTokenCount: 14, trafficType: 'ON_DEMAND' }
  return events([saying([{ text }]), saying([{ text: '' }], { finishReason: 'STOP' }, usage)])
}

function claudeStream() {
  return sse(messageEvents([{ type: 'text', text }]), { done: false })
}

async function drained(answer: Answer): Promise<{ chunks: ChatCompletionChunk[]; usage: CompletionUsage | null }> {
  if (!answer.stream) throw new Error('A stream was asked for.')
  const chunks: ChatCompletionChunk[] = []
  for await (const frames of answer.frames) chunks.push(...frames)
  return { chunks, usage: chunks.findLast(chunk => chunk.usage)?.usage ?? null }
}
