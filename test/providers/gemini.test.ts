import { readFileSync } from 'node:fs'
import OpenAI from 'openai'
import { makeParseableResponseFormat } from 'openai/lib/parser'
import t, { type Test } from 'tap'
import type { ModelGatewayOptions } from '../../app.ts'
import { abilitiesOf } from '../../providers/wires/gemini/models.ts'
import { conversationsCross } from '../conformance/conversations.ts'
import { attemptOf, providerConformance, type Subject } from '../conformance/provider.ts'
import { build, hello } from '../helper.ts'
import { bytes, json, type Received, type Script, sse, startUpstream } from '../upstream.ts'
import { calling, events, failure, geminiVendor, saying } from './gemini-vendor.ts'

type Own = { [field: string]: unknown }

const model = 'gemini-3-pro-preview'
const key = 'AIzaSyFirstKeyOfThePool000000000'
const skip = 'skip_thought_signature_validator'

/** A scripted Gemini, a gateway in front of it that listens, and the real SDK. */
async function gateway(t: Test, own: Own = {}, script?: Script, target: Own = {}) {
  const upstream = await startUpstream({ script })
  t.teardown(() => upstream.close())
  const options: unknown = {
    providers: { up: { type: 'gemini', baseUrl: `http://127.0.0.1:${upstream.port}`, apiKeys: [key], ...own } },
    tenants: { other: {} },
    models: { test: { retries: 0, targets: [{ provider: 'up', model, price: { input: 0, output: 0 } }], ...target } }
  }
  const app = await build(t, options as ModelGatewayOptions)
  const url = await app.listen({ host: '127.0.0.1', port: 0 })
  const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: 'not-needed', maxRetries: 0 })
  return { upstream, app, url, client, provider: app.gateway.providers.get('up')! }
}

const gemini: Subject = {
  name: 'gemini',
  async start(t) {
    const keys = [key, 'AIzaSyOtherKeyOfThePool000000000']
    const { upstream, provider } = await gateway(t, { apiKeys: keys })
    return { provider, keys, vendor: geminiVendor(upstream) }
  }
}

providerConformance(t, gemini)
// Its pictures at addresses elsewhere are refused while nothing reads them.
conversationsCross(t, { ...gemini, refused: 0.2 })
conversationsCross(t, { ...gemini, name: 'gemini, with nothing that it refuses', images: 'inline', model })

function fixture(name: string) {
  return readFileSync(new URL(`../fixtures/gemini/${name}`, import.meta.url))
}

const recorded = (name: string) =>
  bytes(fixture(name), { headers: { 'content-type': 'application/json; charset=UTF-8' } })
const streamed = (name: string) => sse(fixture(name))

/** What a promise is refused with. */
async function fault(promise: PromiseLike<unknown>): Promise<unknown> {
  try {
    await promise
  } catch (error) {
    return error
  }
  throw new Error('This should have failed.')
}

// Where it is sent

for (const [base, path] of Object.entries({
  '': '/v1beta/models/',
  '/': '/v1beta/models/',
  '/v1beta': '/v1beta/models/',
  '/v1': '/v1/models/',
  '/google': '/google/v1beta/models/',
  '/google/v1alpha/': '/google/v1alpha/models/'
})) {
  t.test(`a base URL that ends in "${base}" is asked at ${path}`, async t => {
    const upstream = await startUpstream({ script: recorded('text.json') })
    t.teardown(() => upstream.close())
    const { client } = await gateway(t, { baseUrl: `http://127.0.0.1:${upstream.port}${base}` })
    await client.chat.completions.create(hello)
    const [request] = upstream.requests
    t.equal(request?.url, `${path}${model}:generateContent`)
    t.equal(request?.headers['x-goog-api-key'], key)
    t.equal(request?.headers.authorization, undefined)
  })
}

t.test('a stream is asked for as events', async t => {
  const { client, upstream } = await gateway(t, {}, streamed('text.sse'))
  let text = ''
  for await (const chunk of await client.chat.completions.create({ ...hello, stream: true })) {
    text += chunk.choices[0]?.delta.content ?? ''
  }
  t.equal(upstream.requests[0]?.url, `/v1beta/models/${model}:streamGenerateContent?alt=sse`)
  t.equal(text, 'Zürich has "22"\ndegrees 🌤️ 東京\u2028.')
  t.notOk('stream' in upstream.requests[0]!.json)
})

t.test('the name of a model is a name and nothing else', async t => {
  const { provider, upstream } = await gateway(t, {}, recorded('text.json'))
  const sent = (name: string) => provider.send(attemptOf(provider, { request: { model: name } }))
  for (const name of ['models/gemini-2.5-flash', 'tunedModels/mine-1', 'gemini-2.5-flash@001', 'gemini_x.y'])
    await sent(name)
  t.same(
    upstream.requests.map(({ url }) => url),
    [
      '/v1beta/models/gemini-2.5-flash:generateContent',
      '/v1beta/tunedModels/mine-1:generateContent',
      '/v1beta/models/gemini-2.5-flash@001:generateContent',
      '/v1beta/models/gemini_x.y:generateContent'
    ]
  )
  for (const name of [
    '',
    '.',
    '..',
    '../files',
    'a/b',
    'models/../x',
    'a:generateContent',
    'a?key=x',
    'a%2fb',
    'a b',
    'ä',
    'files/a'
  ]) {
    t.match(await fault(sent(name)), { code: 'GATEWAY_INVALID_REQUEST', statusCode: 400, param: 'model' }, name)
  }
  t.equal(upstream.requests.length, 4)
})

// Over the SDK

t.test('create gets a text, its usage and its warnings', async t => {
  const { client } = await gateway(t, {}, recorded('thinking.json'))
  const { data, response } = await client.chat.completions
    .create({ ...hello, logit_bias: { 5: 1 }, reasoning_effort: 'low' })
    .withResponse()
  t.equal(data.choices[0]?.message.content, 'Hello there.')
  t.match(data.choices[0]?.message, { reasoning_content: '**Considering**\n\nThe user greets.' })
  t.match(data.usage, {
    prompt_tokens: 2_150,
    completion_tokens: 350,
    total_tokens: 2_500,
    prompt_tokens_details: { cached_tokens: 2_000, audio_tokens: 50 },
    completion_tokens_details: { reasoning_tokens: 310, audio_tokens: 10 }
  })
  t.equal(response.headers.get('x-gateway-warnings'), 'Gemini does not take logit_bias.')
})

t.test('usage is there for who asks, streamed', async t => {
  const { client } = await gateway(t, {}, streamed('tools.sse'))
  const all = []
  const request = { ...hello, stream: true as const, stream_options: { include_usage: true } }
  for await (const chunk of await client.chat.completions.create(request)) all.push(chunk)
  t.match(all.at(-1), { choices: [], usage: { prompt_tokens: 80, completion_tokens: 90, total_tokens: 170 } })
  t.same(
    all.flatMap(({ choices }) => choices.flatMap(choice => choice.finish_reason ?? [])),
    ['tool_calls']
  )
})

t.test('the stream helper assembles text, thoughts and parallel calls', async t => {
  const { client } = await gateway(t, {}, streamed('tools.sse'))
  const stream = client.chat.completions.stream({ ...hello, stream_options: { include_usage: true } })
  const message = await stream.finalMessage()
  t.equal(message.content, 'Let me see.')
  t.match(message, { reasoning_content: '**Looking**' })
  t.match(message.tool_calls, [
    {
      type: 'function',
      function: { name: 'get_weather', arguments: '{"city":"Zürich","days":3}' },
      extra_content: { google: { thought_signature: 'EpAFCo0FAXLI2nwSignatureOfTheFirst==' } }
    },
    { id: 'fc-2', type: 'function', function: { name: 'now', arguments: '{}' } }
  ])
  t.equal((await stream.totalUsage()).completion_tokens, 90)
})

t.test('parse asks for the schema and reads the answer', async t => {
  const { client, upstream } = await gateway(
    t,
    {},
    json(saying([{ text: '{"city":"Zürich"}' }], { finishReason: 'STOP' }))
  )
  const schema = {
    type: 'object',
    properties: { city: { type: 'string', minLength: 1 } },
    required: ['city'],
    additionalProperties: false
  }
  const format = makeParseableResponseFormat(
    { type: 'json_schema', json_schema: { name: 'place', strict: true, schema } },
    (text): { city: string } => JSON.parse(text)
  )
  const { data, response } = await client.chat.completions.parse({ ...hello, response_format: format }).withResponse()
  t.equal(data.choices[0]?.message.parsed?.city, 'Zürich')
  t.match(upstream.requests[0]?.json['generationConfig'], {
    responseMimeType: 'application/json',
    responseJsonSchema: { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] }
  })
  t.match(response.headers.get('x-gateway-warnings'), /minLength/)
})

t.test('a blocked prompt is a refusal with content_filter, whole and streamed', async t => {
  const { client, upstream } = await gateway(t)
  upstream.script(recorded('blocked.json'), streamed('blocked.sse'))
  const [choice] = (await client.chat.completions.create(hello)).choices
  t.match(choice, { finish_reason: 'content_filter', message: { refusal: /PROHIBITED_CONTENT/, content: null } })
  const final = await client.chat.completions.stream(hello).finalChatCompletion()
  t.match(final.choices[0], { finish_reason: 'content_filter', message: { refusal: /SAFETY/ } })
})

// Three turns of tools with signatures

const tools = ['weather', 'now'].map(name => ({
  type: 'function' as const,
  function: { name, parameters: { type: 'object', properties: { city: { type: 'string' } } } }
}))

const first = [
  calling('weather', { city: 'Zürich' }, { thoughtSignature: 'SignatureOne+/==' }),
  calling('weather', { city: 'Bern' })
]
const second = [{ text: 'Now the time.' }, calling('now', {}, { thoughtSignature: 'SignatureTwo+/==' })]
const steps = [
  saying(first, { finishReason: 'STOP' }),
  saying(second, { finishReason: 'STOP' }),
  saying([{ text: 'Noon and sunny.', thoughtSignature: 'SignatureOfText==' }], { finishReason: 'STOP' }),
  saying([{ text: 'You are welcome.' }], { finishReason: 'STOP' })
]

interface Sent {
  contents: Array<{ role: string; parts: Array<{ functionCall?: object; thoughtSignature?: string }> }>
}

/** The signatures of all calls that a request holds, in order. */
function signaturesIn(request: Received | undefined): Array<string | undefined> {
  const { contents } = request!.json as unknown as Sent
  return contents.flatMap(({ parts }) => parts.filter(part => part.functionCall).map(part => part.thoughtSignature))
}

for (const kind of ['whole', 'streamed'] as const) {
  for (const client of ['keeps', 'drops'] as const) {
    t.test(`three turns of tools, ${kind}, with a client that ${client} fields it does not know`, async t => {
      const made = await gateway(t)
      const answers = kind === 'whole' ? steps.map(step => json(step)) : steps.map(step => events([step]))
      made.upstream.script(answers[0]!, answers[1]!, answers[2]!, json(steps[3]))
      const messages: OpenAI.ChatCompletionMessageParam[] = [{ role: 'user', content: 'Weather and time?' }]
      for (let step = 0; step < 3; step++) {
        const request = { model: 'test', messages, tools }
        const completions = made.client.chat.completions
        const { choices } =
          kind === 'whole' ? await completions.create(request) : await completions.stream(request).finalChatCompletion()
        const { content, tool_calls: calls = [], ...more } = choices[0]!.message
        const known = calls.map(call => {
          if (call.type !== 'function') throw new Error('There are only functions.')
          const { id, type, function: called } = call
          return client === 'keeps' ? call : { id, type, function: { name: called.name, arguments: called.arguments } }
        })
        const said = known.length > 0 ? { tool_calls: known } : {}
        messages.push({ ...(client === 'keeps' ? more : {}), role: 'assistant', content, ...said })
        for (const { id } of known) messages.push({ role: 'tool', tool_call_id: id, content: 'fine' })
      }
      messages.push({ role: 'user', content: 'Thanks.' })
      await made.client.chat.completions.create({ model: 'test', messages, tools })
      t.same(signaturesIn(made.upstream.requests[1]), ['SignatureOne+/==', undefined])
      t.same(signaturesIn(made.upstream.requests[2]), ['SignatureOne+/==', undefined, 'SignatureTwo+/=='])
      t.same(signaturesIn(made.upstream.requests[3]), ['SignatureOne+/==', undefined, 'SignatureTwo+/=='])
      const { contents } = made.upstream.requests[3]!.json as unknown as Sent
      t.same(
        contents.map(({ role }) => role),
        ['user', 'model', 'user', 'model', 'user', 'model', 'user']
      )
      const text = { text: 'Noon and sunny.' }
      t.strictSame(contents[5]?.parts, [client === 'keeps' ? { ...text, thoughtSignature: 'SignatureOfText==' } : text])
    })
  }
}

for (const stream of [false, true] as const) {
  t.test(`runTools runs its rounds ${stream ? 'over streams' : 'whole'}, and its signatures come back`, async t => {
    const { client, upstream } = await gateway(t)
    const answers = steps.map(step => (stream ? events([step]) : json(step)))
    upstream.script(answers[0]!, ...answers.slice(1, 3))
    const called: string[] = []
    const runnable = tools.map(({ type, function: { name, parameters } }) => ({
      type,
      function: {
        name,
        parameters,
        description: 'A tool',
        function: (text: string) => `${name} ${called.push(`${name} ${text}`)}`
      }
    }))
    const options = { ...hello, tools: runnable }
    const runner = stream
      ? client.chat.completions.runTools({ ...options, stream })
      : client.chat.completions.runTools(options)
    t.equal(await runner.finalContent(), 'Noon and sunny.')
    t.same(called, ['weather {"city":"Zürich"}', 'weather {"city":"Bern"}', 'now {}'])
    t.same(signaturesIn(upstream.requests[2]), ['SignatureOne+/==', undefined, 'SignatureTwo+/=='])
  })
}

t.test('a tenant is not given the signatures of another', async t => {
  const { client, upstream, app } = await gateway(
    t,
    {},
    json(saying([calling('now', {}, { thoughtSignature: 'Mine' })]))
  )
  const [call] = (await client.chat.completions.create(hello)).choices[0]?.message.tool_calls ?? []
  const messages = [
    { role: 'user' as const, content: 'Hi' },
    {
      role: 'assistant' as const,
      content: null,
      tool_calls: [{ id: call!.id, type: 'function', function: { name: 'now' } }]
    }
  ]
  for (const tenant of ['public', 'other']) {
    await app.gateway.complete({ model: 'test', messages }, app.gateway.caller({ tenant }))
  }
  t.same(upstream.requests.slice(1).map(signaturesIn), [['Mine'], [skip]])
})

t.test('a signature that is refused is not sent again, and the next attempt goes without', async t => {
  const { client, upstream } = await gateway(t, {}, undefined, { retries: 1 })
  const { signature } = JSON.parse(fixture('errors.json').toString())
  upstream.script(json(signature, { status: 400 }), json(steps[3]))
  const extra_content = { google: { thought_signature: 'FromElsewhere' } }
  const call = { id: 'call_1', type: 'function' as const, function: { name: 'now', arguments: '{}' }, extra_content }
  const messages = [
    { role: 'user' as const, content: 'Hi' },
    { role: 'assistant' as const, content: 'Well', extra_content, tool_calls: [call] },
    { role: 'tool' as const, tool_call_id: 'call_1', content: 'noon' }
  ]
  const answer = await client.chat.completions.create({ model: 'test', messages })
  t.equal(answer.choices[0]?.message.content, 'You are welcome.')
  t.same(upstream.requests.map(signaturesIn), [['FromElsewhere'], [skip]])
  t.notMatch(upstream.requests[1]?.rawBody.toString(), 'FromElsewhere')
})

t.test('callers who bring signatures from elsewhere opened the breaker for everybody', async t => {
  const { client, upstream } = await gateway(t, {}, undefined, { retries: 0 })
  const { signature } = JSON.parse(fixture('errors.json').toString())
  upstream.script(json(signature, { status: 400 }))
  for (let call = 0; call < 10; call++) {
    const extra_content = { google: { thought_signature: `FromElsewhere${call}` } }
    const messages = [hello.messages[0]!, { role: 'assistant' as const, content: 'Well', extra_content }]
    t.match(await fault(client.chat.completions.create({ ...hello, messages })), { status: 502 })
  }
  upstream.script(json(steps[3]))
  t.equal((await client.chat.completions.create(hello)).choices[0]?.message.content, 'You are welcome.')
  t.equal(upstream.requests.length, 11)
})

t.test('a fault over signatures that is not theirs stays what it is', async t => {
  const { client, upstream } = await gateway(t, {}, undefined, { retries: 1 })
  upstream.script(json(failure(400, 'Thought signature: no.'), { status: 400 }))
  t.match(await fault(client.chat.completions.create(hello)), { status: 400, message: /Thought signature: no/ })
  t.equal(upstream.requests.length, 1)
})

// Links

const picture = (url: string) => [
  { role: 'user' as const, content: [{ type: 'image_url' as const, image_url: { url } }] }
]

t.test('a link is refused by its place while nothing reads it', async t => {
  const { client, upstream } = await gateway(t)
  t.match(
    await fault(client.chat.completions.create({ model: 'test', messages: picture('https://a.example/x.png') })),
    {
      status: 400,
      param: 'messages[0].content[0].image_url.url',
      message: /fetchMedia/
    }
  )
  t.equal(upstream.requests.length, 0)
})

t.test('a link is read where that is switched on', async t => {
  const files = await startUpstream({ script: bytes('PNG', { headers: { 'content-type': 'image/png' } }) })
  t.teardown(() => files.close())
  const url = `http://127.0.0.1:${files.port}/a.png`
  const open = await gateway(t, { fetchMedia: { allowPrivate: true } }, recorded('text.json'))
  await open.client.chat.completions.create({ model: 'test', messages: picture(url) })
  const data = Buffer.from('PNG').toString('base64')
  t.match(open.upstream.requests[0]?.json['contents'], [{ parts: [{ inlineData: { mimeType: 'image/png', data } }] }])
  const closed = await gateway(t, { fetchMedia: true }, recorded('text.json'))
  t.match(await fault(closed.client.chat.completions.create({ model: 'test', messages: picture(url) })), {
    status: 400,
    param: 'messages[0].content[0].image_url.url'
  })
  t.equal(closed.upstream.requests.length + files.requests.length, 1)
})

t.test("Google's own files and YouTube go as they are", async t => {
  const { client, upstream } = await gateway(t, {}, recorded('text.json'))
  const own = 'https://generativelanguage.googleapis.com/v1beta/files/abc-123'
  for (const url of [own, 'https://www.youtube.com/watch?v=9hE5-98ZeCg', 'https://youtu.be/9hE5']) {
    await client.chat.completions.create({ model: 'test', messages: picture(url) })
    t.match(upstream.requests.at(-1)?.json['contents'], [{ parts: [{ fileData: { fileUri: url } }] }])
  }
  const evil = 'https://generativelanguage.googleapis.com.evil.example/v1beta/files/abc'
  t.match(await fault(client.chat.completions.create({ model: 'test', messages: picture(evil) })), { status: 400 })
})

// Besides chats

t.test('safety settings are sent with every call', async t => {
  const safetySettings = [{ category: 'HARM_CATEGORY_HATE_SPEECH', threshold: 'OFF' }]
  const { client, upstream } = await gateway(t, { safetySettings }, recorded('text.json'))
  await client.chat.completions.create(hello)
  t.same(upstream.requests[0]?.json['safetySettings'], safetySettings)
})

t.test('tokens are counted for the whole request', async t => {
  const { provider, upstream } = await gateway(t, {}, json({ totalTokens: 31 }))
  const messages = [{ role: 'system' as const, content: 'Be brief.' }, ...hello.messages]
  t.equal(await provider.countTokens?.({ model: 'gemini-2.5-flash', messages, tools, temperature: 1 }), 31)
  t.equal(upstream.requests[0]?.url, '/v1beta/models/gemini-2.5-flash:countTokens')
  t.match(upstream.requests[0]?.json, {
    generateContentRequest: {
      model: 'models/gemini-2.5-flash',
      contents: [{ role: 'user' }],
      systemInstruction: { parts: [{ text: 'Be brief.' }] },
      tools: [{ functionDeclarations: [{ name: 'weather' }, { name: 'now' }] }]
    }
  })
})

t.test('models are listed page by page, those that can be talked to', async t => {
  const { provider, upstream } = await gateway(t)
  upstream.script(
    recorded('models.json'),
    json({ models: [{ name: 'tunedModels/x', supportedGenerationMethods: ['generateContent'] }, null] })
  )
  t.strictSame(await provider.models?.(), [
    { id: 'gemini-2.5-flash', ownedBy: 'google', contextLength: 1_114_112 },
    { id: 'tunedModels/x', ownedBy: 'google' }
  ])
  t.same(
    upstream.requests.map(({ url }) => url),
    ['/v1beta/models?pageSize=1000', '/v1beta/models?pageSize=1000&pageToken=Ch9tb2RlbHMv%2B%2F%3D%3D']
  )
})

t.test('a list without an end comes to one all the same', async t => {
  const { provider, upstream } = await gateway(t, {}, json({ models: [], nextPageToken: 'more' }))
  t.same(await provider.models?.(), [])
  t.equal(upstream.requests.length, 50)
})

t.test('health tells nothing of the key', async t => {
  const { provider } = await gateway(t, {}, json(JSON.parse(fixture('errors.json').toString()).key, { status: 400 }))
  const health = await provider.health?.()
  t.equal(health?.ok, false)
  t.notMatch(health?.detail, 'API key')
})

t.test('what models can do is known by their names', async t => {
  t.match(abilitiesOf('gemini-2.5-pro'), { tools: true, images: true, audio: true, contextLength: 1_114_112 })
  t.match(abilitiesOf('models/gemini-2.0-flash'), { contextLength: 1_056_768 })
  t.match(abilitiesOf('gemini-3-flash-preview'), { files: true, jsonSchema: true, contextLength: 1_114_112 })
  t.match(abilitiesOf('gemini-3-pro-image-preview'), { tools: false, images: true })
  t.equal(abilitiesOf('gemini-1.5-pro').contextLength, undefined)
  t.match(abilitiesOf('gemma-3-27b-it'), { tools: false, files: false })
  t.same(abilitiesOf('gemini-2.5-pro-preview-tts'), {})
  t.same(abilitiesOf('tunedModels/mine'), {})
})
