import OpenAI from 'openai'
import { makeParseableResponseFormat } from 'openai/lib/parser'
import type { ChatCompletionMessageParam } from 'openai/resources'
import t, { type Test } from 'tap'
import type { ModelGatewayOptions } from '../../app.ts'
import type { ChatRequest } from '../../schemas/chat.ts'
import { usageOf } from '../../schemas/usage.ts'
import { conversationsCross } from '../conformance/conversations.ts'
import { attemptOf, providerConformance, type Subject } from '../conformance/provider.ts'
import { build } from '../helper.ts'
import { failure, json, type Received, type Script, startUpstream } from '../upstream.ts'
import { claude, claudeError, claudeVendor, message, type Said } from './claude.ts'

type Options = NonNullable<ModelGatewayOptions['providers']>[string]
type Own = { [field: string]: unknown; baseUrl?: string }

/** A provider of this type before a scripted server. */
async function front(t: Test, own: Own = {}, script?: Script) {
  const upstream = await startUpstream()
  t.teardown(() => upstream.close())
  if (script) upstream.script(script)
  const baseUrl = `http://127.0.0.1:${upstream.port}${own.baseUrl ?? ''}`
  const options = { type: 'anthropic', apiKeys: ['sk-ant-one'], ...own, baseUrl } as Options
  const target = { provider: 'claude', price: { input: 0, output: 0 } }
  const app = await build(t, {
    providers: { claude: options },
    models: {
      test: { targets: [{ ...target, model: 'claude-sonnet-4-5' }], retries: 0 },
      newer: { targets: [{ ...target, model: 'claude-sonnet-4-6' }], retries: 0 },
      older: { targets: [{ ...target, model: 'claude-sonnet-4-20250514' }], retries: 0 }
    },
    plugins: { tenants: false, budgets: false }
  })
  await app.ready()
  return { upstream, app, provider: app.gateway.providers.get('claude')! }
}

/** The real SDK before a gateway that listens. */
async function client(t: Test, own: Own = {}) {
  const { upstream, app } = await front(t, own)
  const url = await app.listen({ host: '127.0.0.1', port: 0 })
  return { upstream, url, client: new OpenAI({ baseURL: `${url}/v1`, apiKey: 'not-needed', maxRetries: 0 }) }
}

const hi: ChatRequest['messages'] = [{ role: 'user', content: 'Hi' }]
const hello = { model: 'test', messages: [{ role: 'user' as const, content: 'Hello' }] }
const said = (text: string | readonly string[]): Said[] => [{ type: 'text', text }]

const subject: Subject = {
  name: 'anthropic',
  async start(t) {
    const keys = ['sk-ant-first-key-of-two', 'sk-ant-other-key-of-two']
    const { upstream, provider } = await front(t, { apiKeys: keys })
    return { provider, vendor: claudeVendor(upstream), keys }
  }
}

providerConformance(t, subject)
conversationsCross(t, { ...subject, model: 'claude-sonnet-4-5' })
// It cannot be made to call a tool.
conversationsCross(t, { ...subject, name: 'anthropic, a model of late 2026', model: 'claude-opus-5-5' })

// Where it is sent, and what with

for (const [baseUrl, path] of Object.entries({
  '': '/v1/messages',
  '/': '/v1/messages',
  '/v1': '/v1/messages',
  '/v1/': '/v1/messages',
  '/anthropic': '/anthropic/v1/messages',
  '/anthropic/v1': '/anthropic/v1/messages'
})) {
  t.test(`a base URL that ends in '${baseUrl}' is asked at ${path}`, async t => {
    const { upstream, provider } = await front(t, { baseUrl }, claude(said('ok')))
    await provider.send(attemptOf(provider))
    t.equal(upstream.requests[0]?.url, path)
  })
}

t.test('the key, the version and the features go as headers, the model in the body', async t => {
  const own = { beta: ['one-2026-01-01', 'two-2026-01-01'], apiKeys: ['sk-ant-one', 'sk-ant-two'] }
  const { upstream, provider } = await front(t, own, claude(said('ok')))
  t.equal(provider.keys, 2)
  await provider.send({ ...attemptOf(provider, { request: { model: 'claude-haiku-4-5' } }), key: 1 })
  const { headers, json: body } = upstream.requests[0]!
  t.match(headers, {
    'x-api-key': 'sk-ant-two',
    'anthropic-version': '2023-06-01',
    'anthropic-beta': 'one-2026-01-01,two-2026-01-01',
    'content-type': 'application/json'
  })
  t.notOk('authorization' in headers)
  t.equal(body.model, 'claude-haiku-4-5')
})

t.test('without features there is no header of them, and a fixed header of that name is sent once', async t => {
  const { upstream, provider } = await front(t, {}, claude(said('ok')))
  await provider.send(attemptOf(provider))
  t.notOk('anthropic-beta' in upstream.requests[0]!.headers)
  const fixed = await front(t, { headers: { 'Anthropic-Version': '2024-01-01' } }, claude(said('ok')))
  await fixed.provider.send(attemptOf(fixed.provider))
  const names = fixed.upstream.requests[0]!.rawHeaders.filter(name => /^anthropic-version$/i.test(name))
  t.equal(names.length, 1)
  t.equal(fixed.upstream.requests[0]!.headers['anthropic-version'], '2024-01-01')
})

t.test('from the version of 2026-10-21 on no sampling parameter is sent', async t => {
  for (const [version, temperature] of [
    ['2023-06-01', 0.5],
    ['2026-10-21', undefined],
    ['2027-01-01', undefined]
  ] as const) {
    const { upstream, provider } = await front(t, { version }, claude(said('ok')))
    const attempt = attemptOf(provider, { request: { model: 'claude-sonnet-4-5', temperature: 0.5 } })
    await provider.send(attempt)
    t.equal(upstream.requests[0]?.headers['anthropic-version'], version)
    t.equal(upstream.requests[0]?.json['temperature'], temperature)
    t.equal(attempt.inference.facts.warnings.length, temperature === undefined ? 1 : 0)
  }
})

t.test('a version is a day, a feature a name', async t => {
  const gateway = (own: object) => build(t, { providers: { claude: { type: 'anthropic', ...own } as Options } })
  await t.rejects(gateway({ version: 'newest' }), { message: /providers\.claude\.version: .*a day such as 2023-06-01/ })
  await t.rejects(gateway({ beta: ['a,b'] }), { message: /providers\.claude\.beta/ })
})

// What is known of models

t.test('it says what it can do, and how long a conversation may be', async t => {
  const { provider } = await front(t)
  t.match(provider.capabilities, { streaming: true, tools: true, images: true, files: true, jsonSchema: true })
  t.match(provider.abilitiesOf?.('claude-opus-4-8'), {
    audio: false,
    choices: false,
    logprobs: false,
    contextLength: 1_000_000
  })
  t.equal(provider.abilitiesOf?.('claude-of-tomorrow').contextLength, undefined)
})

t.test('models are listed to their last page', async t => {
  const model = (id: string) => ({
    type: 'model',
    id,
    display_name: id,
    created_at: '2026-02-04T00:00:00Z',
    max_input_tokens: 1_000_000
  })
  const pages = [
    { data: [model('claude-a'), model('claude-b')], has_more: true, first_id: 'claude-a', last_id: 'claude-b' },
    {
      data: [{ ...model('claude-c'), created_at: 'odd', max_input_tokens: null }],
      has_more: false,
      last_id: 'claude-c'
    }
  ]
  const { upstream, provider } = await front(t, {}, ({ url }: Received) =>
    json(pages[url.includes('after_id=claude-b') ? 1 : 0])
  )
  t.strictSame(await provider.models?.(), [
    { id: 'claude-a', ownedBy: 'anthropic', created: 1_770_163_200, contextLength: 1_000_000 },
    { id: 'claude-b', ownedBy: 'anthropic', created: 1_770_163_200, contextLength: 1_000_000 },
    { id: 'claude-c', ownedBy: 'anthropic' }
  ])
  t.same(
    upstream.requests.map(({ method, url }) => `${method} ${url}`),
    ['GET /v1/models?limit=1000', 'GET /v1/models?limit=1000&after_id=claude-b']
  )
  t.equal(upstream.requests[1]?.headers['x-api-key'], 'sk-ant-one')
})

t.test('a list that never ends is given up', async t => {
  const { upstream, provider } = await front(
    t,
    {},
    json({ data: [{ id: 'a' }, {}, null], has_more: true, last_id: 'a' })
  )
  t.equal((await provider.models?.())?.length, 20)
  t.equal(upstream.requests.length, 20)
})

t.test('tokens are counted by the vendor, without what counting refuses', async t => {
  const { upstream, provider } = await front(t, {}, json({ input_tokens: 14 }))
  const request = { model: 'claude-sonnet-4-5', messages: hi, max_tokens: 5, temperature: 1, stream: true }
  t.equal(await provider.countTokens?.(request), 14)
  t.equal(upstream.requests[0]?.url, '/v1/messages/count_tokens')
  t.strictSame(upstream.requests[0]?.json, {
    model: 'claude-sonnet-4-5',
    messages: [{ role: 'user', content: [{ type: 'text', text: 'Hi' }] }]
  })
  upstream.script(json({}), claudeError(400, 'No.'))
  await t.rejects(provider.countTokens!(request), { message: /did not count/, statusCode: 502 })
  await t.rejects(provider.countTokens!(request), { message: 'No.', statusCode: 400 })
})

t.test('health is a list of one model', async t => {
  const { upstream, provider } = await front(t, {}, json({ data: [], has_more: false }))
  t.strictSame(await provider.health?.(), { ok: true })
  upstream.script(claudeError(401, 'invalid x-api-key sk-ant-one', 'authentication_error'))
  const refused = await provider.health?.()
  t.match(refused, { ok: false, detail: /status 401/ })
  t.notMatch(refused?.detail, /sk-ant/)
  await t.rejects(provider.health!(AbortSignal.abort(new Error('gone'))), { message: 'gone' })
})

// Answers that are none

t.test('an answer of another kind than was asked for is a fault', async t => {
  const { upstream, provider } = await front(t, {}, json(message(said('ok'))))
  await t.rejects(provider.send(attemptOf(provider, { request: { stream: true } })), {
    message: /something else/,
    statusCode: 502
  })
  upstream.script(failure(502))
  await t.rejects(provider.send(attemptOf(provider)), { message: /./, statusCode: 502 })
})

t.test('a warning is given once, however many attempts there are', async t => {
  const { provider } = await front(t, {}, claude(said('ok')))
  const attempt = attemptOf(provider, { request: { seed: 1 } })
  await provider.send(attempt)
  await provider.send(attempt)
  t.strictSame(attempt.inference.facts.warnings, ['Left out, for Claude has no such parameter: seed.'])
})

// The real SDK before a gateway

const sdkSaid = ['Grüße', ' aus\n', ' 東京', ' 👋🏽', '!']

t.test('create answers, and the client is told what was left out', async t => {
  const { upstream, client: openai } = await client(t)
  upstream.script(claude(said(sdkSaid)))
  const { data, response } = await openai.chat.completions.create({ ...hello, seed: 1, max_tokens: 50 }).withResponse()
  t.equal(data.choices[0]?.message.content, sdkSaid.join(''))
  t.match(data.usage, { prompt_tokens: 9, completion_tokens: 5, total_tokens: 14 })
  t.equal(response.headers.get('x-gateway-warnings'), 'Left out, for Claude has no such parameter: seed.')
  t.equal(upstream.requests[0]?.json['max_tokens'], 50)
})

t.test('create streams, with usage for those who ask', async t => {
  const { upstream, client: openai } = await client(t)
  upstream.script(claude(said(sdkSaid)))
  for (const include_usage of [true, false]) {
    const texts: string[] = []
    let counted = 0
    for await (const chunk of await openai.chat.completions.create({
      ...hello,
      stream: true,
      stream_options: { include_usage }
    })) {
      if (chunk.choices[0]?.delta.content) texts.push(chunk.choices[0].delta.content)
      if (chunk.usage) counted++
    }
    t.same(texts, sdkSaid)
    t.equal(counted, include_usage ? 1 : 0)
  }
})

t.test('errors reach the SDK as those of OpenAI', async t => {
  const { upstream, client: openai } = await client(t)
  const tools = [{ type: 'custom' as const, custom: { name: 'grammar' } }]
  await t.rejects(openai.chat.completions.create({ ...hello, tools }), {
    message: /`custom`/,
    status: 400,
    param: 'tools[0].type'
  })
  upstream.script(
    claudeError(400, 'prompt is too long: 3 tokens > 2 maximum', 'invalid_request_error'),
    claudeError(529, 'Overloaded', 'overloaded_error'),
    claudeError(429, 'Slow down.', 'rate_limit_error', { headers: { 'retry-after': 3 } })
  )
  await t.rejects(openai.chat.completions.create(hello), {
    message: /too long/,
    status: 400,
    code: 'context_length_exceeded'
  })
  await t.rejects(openai.chat.completions.create(hello), {
    message: /overloaded/,
    status: 503,
    code: 'upstream_overloaded'
  })
  await t.rejects(openai.chat.completions.create(hello), {
    message: /limiting/,
    status: 429,
    code: 'upstream_rate_limited'
  })
  t.equal(upstream.requests.length, 3)
})

const weather = {
  name: 'weather',
  description: 'The weather',
  parameters: { type: 'object', properties: { city: { type: 'string' } } }
}
const calls: Said[] = [
  { type: 'text', text: 'Let me see.' },
  { type: 'tool_use', id: 'toolu_1', name: 'weather', input: ['', '{"city": ', '"Zürich"}'] },
  { type: 'tool_use', id: 'toolu_2', name: 'weather', input: '' }
]

t.test('the stream helper assembles parallel calls', async t => {
  const { upstream, client: openai } = await client(t)
  upstream.script(claude(calls))
  const tools = [{ type: 'function' as const, function: weather }]
  const runner = openai.chat.completions.stream({ ...hello, tools })
  const { choices } = await runner.finalChatCompletion()
  t.match(choices[0], {
    finish_reason: 'tool_calls',
    message: {
      content: 'Let me see.',
      tool_calls: [
        { id: 'toolu_1', function: { name: 'weather', arguments: '{"city": "Zürich"}' } },
        { id: 'toolu_2', function: { name: 'weather', arguments: '{}' } }
      ]
    }
  })
})

for (const stream of [false, true]) {
  t.test(`runTools runs parallel calls, ${stream ? 'streamed' : 'whole'}`, async t => {
    const { upstream, client: openai } = await client(t)
    upstream.script(claude(calls), claude(said('Sunny everywhere.')))
    const asked: string[] = []
    const tools = [
      { type: 'function' as const, function: { ...weather, function: (text: string) => `weather ${asked.push(text)}` } }
    ]
    const runner = openai.chat.completions.runTools({ ...hello, stream: stream as false, tools })
    t.equal(await runner.finalContent(), 'Sunny everywhere.')
    t.same(
      asked.map(text => JSON.parse(text)),
      [{ city: 'Zürich' }, {}]
    )
    t.match(upstream.requests[1]?.json.messages, [
      { role: 'user' },
      {
        role: 'assistant',
        content: [{ text: 'Let me see.' }, { id: 'toolu_1', input: { city: 'Zürich' } }, { id: 'toolu_2', input: {} }]
      },
      {
        role: 'user',
        content: [
          { tool_use_id: 'toolu_1', content: 'weather 1' },
          { tool_use_id: 'toolu_2', content: 'weather 2' }
        ]
      }
    ])
  })
}

for (const [model, answer] of [
  ['test', said('{"city":"Bern"}')],
  ['older', [{ type: 'tool_use', id: 'toolu_1', name: 'json_answer', input: ['{"city"', ':"Bern"}'] }]]
] as Array<[string, Said[]]>) {
  t.test(`parse reads the answer of the model ${model}, whole and streamed`, async t => {
    const { upstream, client: openai } = await client(t)
    upstream.script(claude(answer))
    const schema = {
      type: 'object',
      properties: { city: { type: 'string' } },
      required: ['city'],
      additionalProperties: false
    }
    const json_schema = { name: 'place', strict: true, schema }
    const response_format = makeParseableResponseFormat({ type: 'json_schema', json_schema }, text => JSON.parse(text))
    const { choices } = await openai.chat.completions.parse({ ...hello, model, response_format })
    t.same(choices[0]?.message.parsed, { city: 'Bern' })
    const streamed = await openai.chat.completions.stream({ ...hello, model, response_format }).finalChatCompletion()
    t.same(streamed.choices[0]?.message.parsed, { city: 'Bern' })
    t.equal(streamed.choices[0]?.finish_reason, 'stop')
    if (model === 'test') t.match(upstream.requests[0]?.json['output_config'], { format: { schema } })
  })
}

// Thoughts: a loop of three turns, whose signatures have to come back as they were

const thought = (round: number): Said[] => [
  { type: 'thinking', thinking: ['Round ', `${round}: "é" 🙂\n`], signature: `c2lnbmF0dXJl${round}/+==` },
  { type: 'redacted_thinking', data: `EmwK${round}==` }
]
const round = (number: number): Said[] => [
  ...thought(number),
  { type: 'tool_use', id: `toolu_${number}a`, name: 'weather', input: '{"city":"Bern"}' },
  { type: 'tool_use', id: `toolu_${number}b`, name: 'weather', input: '' }
]
const expectedThoughts = (number: number) => message(thought(number)).content

type Kept = Record<string, unknown> & { tool_calls?: Array<{ id: string }> | null }

for (const stream of [false, true]) {
  for (const [who, reduce] of [
    ['keeps unknown fields', (kept: Kept) => kept],
    ['drops them', ({ role, content, tool_calls }: Kept) => ({ role, content, tool_calls })]
  ] as const) {
    t.test(
      `signatures come back over three turns with a client that ${who}, ${stream ? 'streamed' : 'whole'}`,
      async t => {
        const { upstream, client: openai } = await client(t)
        upstream.script(claude(round(1)), claude(round(2)), claude(round(3)), claude(said('Done.')))
        const messages: ChatCompletionMessageParam[] = [...hello.messages]
        const asked = {
          model: 'newer',
          reasoning_effort: 'low' as const,
          tools: [{ type: 'function' as const, function: weather }]
        }
        for (let turn = 1; turn <= 4; turn++) {
          const { choices } = stream
            ? await openai.chat.completions.stream({ ...asked, messages }).finalChatCompletion()
            : await openai.chat.completions.create({ ...asked, messages })
          const answered: Kept = { ...choices[0]!.message } as never
          if (turn === 4) break
          t.same(answered['thinking_blocks'], expectedThoughts(turn))
          messages.push(reduce(answered) as ChatCompletionMessageParam)
          for (const { id } of answered.tool_calls ?? [])
            messages.push({ role: 'tool', tool_call_id: id, content: `result of ${id}` })
        }
        const last = upstream.requests[3]!.json
        t.match(last['thinking'], { type: 'adaptive' })
        for (let turn = 1; turn <= 3; turn++) {
          const back = last.messages?.[2 * turn - 1]
          t.equal(back?.role, 'assistant')
          const content = back?.content as Array<{ type: string; id?: string }>
          t.strictSame(content.slice(0, 2), expectedThoughts(turn))
          t.same(
            content.slice(2).map(block => block.id),
            [`toolu_${turn}a`, `toolu_${turn}b`]
          )
        }
      }
    )
  }
}

t.test('what one tenant was told is not given back for another', async t => {
  const { upstream, provider } = await front(t, {}, claude(round(1)))
  const messages: ChatRequest['messages'] = [
    ...hi,
    {
      role: 'assistant',
      tool_calls: [{ id: 'toolu_1a', type: 'function', function: { name: 'weather', arguments: '' } }]
    },
    { role: 'tool', tool_call_id: 'toolu_1a', content: 'r' }
  ]
  await provider.send(attemptOf(provider))
  const sentBy = async (tenant: string) => {
    const attempt = attemptOf(provider, { request: { messages } })
    const principal = { ...attempt.inference.principal, tenant }
    await provider.send({ ...attempt, inference: { ...attempt.inference, principal } })
    const content = upstream.requests.at(-1)?.json.messages?.[1]?.content as Array<{ type: string }>
    return content.map(block => block.type)
  }
  t.same(await sentBy('public'), ['thinking', 'redacted_thinking', 'tool_use'])
  t.same(await sentBy('other'), ['tool_use'])
})

t.test('usage falls into the same buckets, streamed and whole', async t => {
  const usage = {
    input_tokens: 47,
    cache_creation_input_tokens: 1200,
    cache_read_input_tokens: 300,
    cache_creation: { ephemeral_5m_input_tokens: 200, ephemeral_1h_input_tokens: 1000 },
    output_tokens: 90,
    output_tokens_details: { thinking_tokens: 62 }
  }
  const { provider } = await front(t, {}, claude(said('ok'), { usage }))
  const expected = {
    input: 47,
    cacheRead: 300,
    cacheWrite5m: 200,
    cacheWrite1h: 1000,
    output: 28,
    reasoning: 62,
    mismatch: false
  }
  for (const stream of [false, true]) {
    const answer = await provider.send(attemptOf(provider, { request: { stream } }))
    let reported = answer.stream ? null : answer.body.usage
    if (answer.stream) for await (const frames of answer.frames) reported = frames.usage ?? reported
    t.match(usageOf(reported), expected)
  }
})
