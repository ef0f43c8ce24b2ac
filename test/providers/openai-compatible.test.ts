import t, { type Test } from 'tap'
import type { ModelGatewayOptions } from '../../app.ts'
import { outputCapOf, toUpstream, withVersion } from '../../providers/wires/openai/request.ts'
import type { ChatRequest } from '../../schemas/chat.ts'
import { build, hello, towards } from '../helper.ts'
import {
  bytes,
  chunks,
  completion,
  failure,
  json,
  type Script,
  sse,
  startUpstream,
  toolChunks,
  turn
} from '../upstream.ts'

type ProviderOptions = NonNullable<ModelGatewayOptions['providers']>[string]
type Own = { [Key in keyof ProviderOptions]?: unknown } & { baseUrl?: string; [field: string]: unknown }

/** A gateway in front of one provider with options of its own. */
async function front(t: Test, own: Own = {}, script?: Script) {
  const server = await startUpstream()
  t.teardown(() => server.close())
  if (script) server.script(script)
  const up = { type: 'openai-compatible', baseUrl: server.url, ...own } as ProviderOptions
  if (own.baseUrl) Object.assign(up, { baseUrl: `http://127.0.0.1:${server.port}${own.baseUrl}` })
  const app = await build(t, towards(server, { providers: { up }, plugins: { tenants: false, budgets: false } }))
  const url = await app.listen({ host: '127.0.0.1', port: 0 })
  const post = (body: object | string = {}, headers: Record<string, string> = {}) =>
    fetch(`${url}/v1/chat/completions`, {
      method: 'POST',
      headers: { 'content-type': 'application/json', ...headers },
      body: typeof body === 'string' ? body : JSON.stringify({ ...hello, ...body })
    })
  /** What reaches the provider. */
  const sent = async (body: object = {}, headers: Record<string, string> = {}) => {
    const count = server.requests.length
    await (await post(body, headers)).arrayBuffer()
    return server.requests[count]!
  }
  return { server, app, post, sent }
}

// Where it is sent

for (const [baseUrl, path] of Object.entries({
  '/v1': '/v1/chat/completions',
  '/v1/': '/v1/chat/completions',
  '/': '/v1/chat/completions',
  '/api/v1': '/api/v1/chat/completions',
  '/api/v1//': '/api/v1/chat/completions',
  '/openai': '/openai/chat/completions'
})) {
  t.test(`a base URL that ends in ${baseUrl} is asked at ${path}`, async t => {
    const { sent } = await front(t, { baseUrl })
    const request = await sent()
    t.equal(request.method, 'POST')
    t.equal(request.url, path)
  })
}

t.test('a base URL may be nothing but a host', async t => {
  t.equal(withVersion('https://api.example.com'), 'https://api.example.com/v1')
  t.equal(withVersion('https://api.example.com:8443/'), 'https://api.example.com:8443/v1')
  t.equal(withVersion('https://openrouter.ai/api/v1/'), 'https://openrouter.ai/api/v1')
})

// What is sent

t.test('the target names the model, and unknown fields pass', async t => {
  const { sent } = await front(t)
  const own = { new_field: { deep: [1, null, 'é'] }, provider: { order: ['a'] }, top_k: 5, logit_bias: { 50256: -100 } }
  t.same((await sent(own)).json, { ...hello, ...own, model: 'upstream-model' })
})

t.test('fields of the gateway never go upstream', async t => {
  const { sent } = await front(t)
  const own = { tenant: 'public', response_schema: { type: 'object' }, coerce: true }
  t.same((await sent(own)).json, { ...hello, model: 'upstream-model' })
})

t.test('null is sent as null or not at all, and nothing is coerced', async t => {
  const { sent } = await front(t)
  const nulls = { max_tokens: null, temperature: null, stop: null, tools: null, stream: null, user: null }
  for (const [field, value] of Object.entries((await sent(nulls)).json)) {
    if (field in nulls) t.equal(value, null, field)
  }
  const message = { role: 'assistant', content: null, tool_calls: null }
  t.same((await sent({ messages: [message] })).json.messages, [message])
})

t.test('arguments of tool calls are sent as the text that they were', async t => {
  const { sent } = await front(t)
  const text = '{ "a" : 1.0, "b":"\\u00e9\\/", "big": 12345678901234567890, broken'
  const call = { id: 'c', type: 'function', function: { name: 'f', arguments: text } }
  const messages = [...hello.messages, { role: 'assistant', content: null, tool_calls: [call] }]
  t.same((await sent({ messages })).json.messages, messages)
})

t.test('usage is always asked of a stream', async t => {
  const { sent } = await front(t)
  for (const given of [{}, { stream_options: null }, { stream_options: { include_usage: false } }]) {
    t.same((await sent({ stream: true, ...given })).json['stream_options'], { include_usage: true })
  }
})

t.test("the client's own stream options are kept", async t => {
  const { sent } = await front(t)
  const request = await sent({ stream: true, stream_options: { include_obfuscation: false, x: 1 } })
  t.same(request.json['stream_options'], { include_obfuscation: false, x: 1, include_usage: true })
})

t.test('usage is not asked of a whole answer', async t => {
  const { sent } = await front(t)
  t.notOk('stream_options' in (await sent()).json)
  t.notOk('stream_options' in (await sent({ stream: false })).json)
})

t.test('without streamUsage only what the client itself asks goes upstream', async t => {
  const { sent } = await front(t, { streamUsage: false })
  t.notOk('stream_options' in (await sent({ stream: true })).json)
  const stream_options = { include_usage: true }
  t.same((await sent({ stream: true, stream_options })).json['stream_options'], stream_options)
})

t.test('a usage event is removed when the client did not ask for it and kept when it did', async t => {
  const { post } = await front(t)
  t.notMatch(await (await post({ stream: true })).text(), /prompt_tokens/)
  t.match(await (await post({ stream: true, stream_options: { include_usage: true } })).text(), /prompt_tokens/)
})

t.test('output caps go as max_completion_tokens to OpenAI and as max_tokens elsewhere', async t => {
  t.equal(outputCapOf('https://api.openai.com/v1'), 'max_completion_tokens')
  t.equal(outputCapOf('https://API.OPENAI.COM/v1'), 'max_completion_tokens')
  t.equal(outputCapOf('https://api.openai.com.example.com/v1'), 'max_tokens')
  t.equal(outputCapOf('https://openrouter.ai/api/v1'), 'max_tokens')
})

for (const [outputCap, other] of [
  ['max_tokens', 'max_completion_tokens'],
  ['max_completion_tokens', 'max_tokens']
] as const) {
  t.test(`where the cap is called ${outputCap} both names are understood`, async t => {
    const map = (own: object) => {
      const request = { ...hello, ...own } as ChatRequest
      const body = toUpstream(request, { outputCap, streamUsage: true })
      t.same(request, { ...hello, ...own }, 'the request is not changed')
      return { cap: body[outputCap], other: other in body }
    }
    t.same(map({ [other]: 5 }), { cap: 5, other: false })
    t.same(map({ [outputCap]: 5 }), { cap: 5, other: false })
    t.same(map({ max_tokens: 7, max_completion_tokens: 5 }), { cap: 5, other: false })
    t.same(map({ max_tokens: 7, max_completion_tokens: null }), { cap: 7, other: false })
    t.same(map({ max_tokens: null, max_completion_tokens: 5 }), { cap: 5, other: false })
    t.same(map({ [other]: null }), { cap: undefined, other: false })
    t.same(map({}), { cap: undefined, other: false })
  })
}

t.test('a request that needs no change is not copied', async t => {
  const request: ChatRequest = { ...hello, max_tokens: 5 }
  t.equal(toUpstream(request, { outputCap: 'max_tokens', streamUsage: true }), request)
})

t.test('over the wire the cap of a client reaches a provider under its own name', async t => {
  const { sent } = await front(t)
  const { json } = await sent({ max_completion_tokens: 5 })
  t.equal(json['max_tokens'], 5)
  t.notOk('max_completion_tokens' in json)
})

// With which headers

t.test('without options a provider gets nothing but what HTTP needs', async t => {
  const { sent } = await front(t)
  const { headers } = await sent({}, { 'x-secret': 'x', cookie: 'a=b', 'user-agent': 'client', accept: 'text/html' })
  t.same(Object.keys(headers).sort(), ['connection', 'content-length', 'content-type', 'host'])
  t.equal(headers['content-type'], 'application/json')
})

t.test('the key goes as a bearer token and the one of the client does not go', async t => {
  const { sent } = await front(t, { apiKeys: ['sk-one'] })
  const { headers, rawHeaders } = await sent({}, { authorization: 'Bearer client', 'x-api-key': 'client' })
  t.equal(headers.authorization, 'Bearer sk-one')
  t.notMatch(rawHeaders.join(), /client/)
})

t.test('several keys are used in turn', async t => {
  const { sent } = await front(t, { apiKeys: ['sk-one', 'sk-two', 'sk-three'] })
  const used: unknown[] = []
  for (let call = 0; call < 4; call++) used.push((await sent()).headers.authorization)
  t.same(used, ['Bearer sk-one', 'Bearer sk-two', 'Bearer sk-three', 'Bearer sk-one'])
})

t.test('fixed headers go with every request', async t => {
  const { sent } = await front(t, { headers: { 'HTTP-Referer': 'https://app.example', 'X-Title': 'App' } })
  for (const stream of [true, false]) {
    const { headers } = await sent({ stream })
    t.equal(headers['http-referer'], 'https://app.example')
    t.equal(headers['x-title'], 'App')
  }
})

t.test('only listed headers of the client go upstream', async t => {
  const { sent } = await front(t, { forwardHeaders: ['X-Session', 'x-missing'] })
  const { headers } = await sent({}, { 'x-session': 'abc', 'x-other': 'no' })
  t.equal(headers['x-session'], 'abc')
  t.notOk('x-other' in headers || 'x-missing' in headers)
})

t.test('no header is sent twice: fixed ones win over those of the client, keys over fixed ones', async t => {
  const own = {
    apiKeys: ['sk-one'],
    headers: { Authorization: 'Bearer fixed', 'X-Title': 'App', 'Content-Type': 'application/json; v=1' }
  }
  const { sent } = await front(t, { ...own, forwardHeaders: ['x-title', 'content-type'] })
  const { headers, rawHeaders } = await sent({}, { 'x-title': 'client' })
  t.equal(headers['x-title'], 'App')
  t.equal(headers.authorization, 'Bearer sk-one')
  t.equal(headers['content-type'], 'application/json; v=1')
  const names = rawHeaders.filter((_, index) => index % 2 === 0).map(name => name.toLowerCase())
  t.equal(names.length, new Set(names).size)
})

t.test('without keys a fixed Authorization is sent', async t => {
  const { sent } = await front(t, { headers: { Authorization: 'Basic dTpw' } })
  t.equal((await sent()).headers.authorization, 'Basic dTpw')
})

// What comes back

const odd = `\n { "object" : "chat.completion","id":"x", "choices":[ {"message":{"content":"\\u00e9\\/ \\ud83d\\ude42","role":"assistant",
  "tool_calls":[{"function":{"arguments":"{ \\"a\\" : 1.0 }","name":"f"},"type":"function","id":"c"}]},"index":0,"finish_reason":"stop"}],
  "big": 12345678901234567890, "one": 1.0, "exp": 1E+2, "unknown": {"b":1,"a":[ ]}, "dup":1, "dup":2 } \r\n`

t.test('a whole answer leaves as the bytes it came in', async t => {
  const { post } = await front(
    t,
    {},
    bytes(odd, { headers: { 'content-type': 'application/json' }, cut: 'byte', interval: null })
  )
  const response = await post()
  t.equal(response.headers.get('content-type'), 'application/json; charset=utf-8')
  t.equal(await response.text(), odd)
})

const oddEvents = [
  ': OPENROUTER PROCESSING\n\n',
  'data:{"choices" : [ {"delta":{"content":"\\u00e9\\/","role":"assistant"},"index":0} ],"big":12345678901234567890}\n\n',
  'event: message\nid: 7\ndata: {"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"{ \\"a\\" : 1.0"}}]}}],"x":1.0}\n\n',
  'data: {"choices":[],"usage":null,"prompt_filter_results":[{"content_filter":{"severity":"safe"}}]}\r\n\r\n',
  'data: {"choices":[{"delta":{},"finish_reason":"tool_calls","index":0}],\ndata:  "system_fingerprint":null}\n\n'
]

for (const cut of ['none', 'byte', 'event', { seed: 5 }] as const) {
  t.test(`the events of a stream leave as the bytes they came in, cut ${JSON.stringify(cut)}`, async t => {
    const { post } = await front(t, {}, sse(oddEvents, { cut, interval: null }))
    t.equal(await (await post({ stream: true })).text(), `${oddEvents.join('')}data: [DONE]\n\n`)
  })
}

t.test('a usage event is taken out of a stream and no other byte', async t => {
  const usage = 'data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3}}\n\n'
  const { post } = await front(t, {}, sse([...oddEvents, usage, ': bye\n\n'], { cut: 'none' }))
  t.equal(await (await post({ stream: true })).text(), `${oddEvents.join('')}: bye\n\ndata: [DONE]\n\n`)
})

t.test('usage on every chunk stays where it is, and only the bare one at the end goes', async t => {
  const all = chunks('one two', { usage: true })
  const continuous = all.map(chunk => ({
    ...chunk,
    usage: { prompt_tokens: 1, completion_tokens: 1, total_tokens: 2 }
  }))
  const { post } = await front(t, {}, sse(continuous))
  const expected = continuous.slice(0, -1).map(chunk => `data: ${JSON.stringify(chunk)}\n\n`)
  t.equal(await (await post({ stream: true })).text(), `${expected.join('')}data: [DONE]\n\n`)
})

t.test('pieces of arguments are not touched', async t => {
  const pieces = ['{ "city" :', ' "Z\\u00fcrich"', ', "n": 1.0', '}']
  const all = toolChunks([{ name: 'weather', arguments: pieces }])
  const { post } = await front(t, {}, sse(all))
  const text = await (await post({ stream: true })).text()
  for (const piece of pieces) t.ok(text.includes(`"arguments":${JSON.stringify(piece)}`), piece)
})

t.test('a stream that ends after its finish_reason without [DONE] is complete', async t => {
  const { post } = await front(t, {}, sse(chunks('a b'), { done: false }))
  t.match(await (await post({ stream: true })).text(), /\n\ndata: \[DONE\]\n\n$/)
})

t.test('a stream that ends before any finish_reason is a fault', async t => {
  const { post } = await front(t, {}, sse(chunks('a b', { finish_reason: null })))
  const text = await (await post({ stream: true })).text()
  const error = JSON.parse(text.trim().split('\n\n').at(-1)!.slice('data: '.length)).error
  t.equal(error.code, 'upstream_error')
  t.notMatch(text, /\[DONE\]/)
})

t.test('a stream that is cut in its last event is a fault, and the broken event is not handed on', async t => {
  const cut = 'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"'
  const { post } = await front(t, {}, sse([chunks('a b')[1], cut], { done: false }))
  const text = await (await post({ stream: true })).text()
  t.match(text, /upstream_error/)
  t.notMatch(text, /finish_reason":"stop/)
})

t.test('a stream without any token is answered with an error status', async t => {
  const { post } = await front(t, {}, sse([]))
  t.equal((await post({ stream: true })).status, 502)
})

t.test('an empty answer with a finish_reason is an answer', async t => {
  const { post } = await front(t, {}, sse(chunks([])))
  t.equal((await post({ stream: true })).status, 200)
})

// Errors inside of 200

const words = 'The model is not there.'
for (const [name, body, status, message] of [
  ['at the top', { error: { message: words } }, 502, `The provider of this model failed: ${words}`],
  ['as text', { error: words }, 502, `The provider of this model failed: ${words}`],
  ['with a numeric code', { error: { message: words, code: 400 } }, 400, words],
  ['with a code in digits', { error: { message: words, code: '422' } }, 422, words],
  [
    'with a code in words',
    { error: { message: words, code: 'server_error' } },
    502,
    `The provider of this model failed: ${words}`
  ],
  ['in a choice', { choices: [{ index: 0, error: { message: words, code: 400 } }] }, 400, words],
  ['beside choices', { ...completion(), error: { code: 429, message: words } }, 429, undefined],
  ['of an overloaded one', { error: { code: 503, message: words } }, 503, undefined],
  ['without words', { error: true }, 502, 'The provider of this model failed: an error without words']
] as const) {
  t.test(`a 200 with an error ${name} is an error`, async t => {
    const { server, post } = await front(t, {}, json(body))
    const response = await post()
    t.equal(response.status, status)
    const { error } = (await response.json()) as { error: { message: string; code: string | null } }
    if (message) t.equal(error.message, message)
    if (status === 400 || status === 422) t.equal(error.code, null)
    server.script(json(body))
    t.equal((await post({ stream: true })).status, status, 'the same for a stream that is refused')
  })
}

t.test('a null error is none', async t => {
  const body = JSON.stringify({ ...completion(), error: null })
  const { post } = await front(t, {}, bytes(body))
  t.equal(await (await post()).text(), body)
})

t.test('content that speaks of an error is content', async t => {
  const { post } = await front(t, {}, json(completion({ content: '{"error":{"message":"no"}}' })))
  t.equal((await post()).status, 200)
})

t.test('an error at the start of a stream has its own status', async t => {
  for (const [code, status] of [
    [400, 400],
    [429, 429],
    ['529', 503],
    [null, 502]
  ] as const) {
    const { post } = await front(t, {}, sse([': wait\n\n', { error: { message: words, code } }]))
    t.equal((await post({ stream: true })).status, status)
  }
})

t.test('an error in the middle of a stream follows what came before it, and ends it', async t => {
  const all = chunks('one two')
  const fault = {
    ...all[1],
    error: { message: words, code: 502 },
    choices: [{ index: 0, delta: {}, finish_reason: 'error' }]
  }
  for (const cut of ['none', 'event', 'byte'] as const) {
    const { post } = await front(
      t,
      {},
      sse([all[0], all[1], fault, all[2]], { cut, interval: cut === 'byte' ? null : undefined })
    )
    const text = await (await post({ stream: true })).text()
    const error = {
      message: `The provider of this model failed: ${words}`,
      type: 'server_error',
      param: null,
      code: 'upstream_error'
    }
    t.equal(text, [all[0], all[1], { error }].map(event => `data: ${JSON.stringify(event)}\n\n`).join(''))
  }
})

t.test('an error in a choice of a chunk ends the stream', async t => {
  const all = chunks('one two')
  const fault = { choices: [{ index: 0, delta: {}, finish_reason: 'error', error: { message: words, code: 502 } }] }
  const { post } = await front(t, {}, sse([all[1], fault]))
  t.match(
    await (await post({ stream: true })).text(),
    /data: \{"error":\{"message":"The provider of this model failed: The model/
  )
})

for (const [name, body, message] of [
  ['numeric', { error: { message: words, type: 'BadRequestError', param: null, code: 400 } }, words],
  ['textual', { error: { message: words, code: '400' } }, words],
  ['no', { error: words }, words],
  ['flat', { object: 'error', message: words, type: 'BadRequestError', param: null, code: 400 }, words]
] as const) {
  t.test(`a 400 with ${name} code keeps its words and gets no code that is only the status`, async t => {
    const { post } = await front(t, {}, json(body, { status: 400 }))
    const response = await post()
    t.equal(response.status, 400)
    t.same(await response.json(), { error: { message, type: 'invalid_request_error', param: null, code: null } })
  })
}

t.test("the HTTP status of a refusal counts more than its error's code", async t => {
  const { post } = await front(t, {}, failure(400, { code: 500, message: words }))
  t.equal((await post()).status, 400)
})

// Answers that are none

for (const [name, script, stream] of [
  ['a whole answer that is compressed', bytes('{}', { headers: { 'content-encoding': 'gzip' } }), false],
  ['a stream that is compressed', sse(chunks('a'), { headers: { 'content-encoding': 'br' } }), true],
  ['an answer in HTML', bytes('<html></html>', { headers: { 'content-type': 'text/html' } }), false],
  ['an answer without a body', bytes(''), false],
  ['a truncated answer', bytes('{"choices":[{"index":0'), false],
  ['a status 204', bytes('', { status: 204, headers: { 'content-length': null } }), false],
  ['a whole answer to a stream request', json(completion()), true],
  ['a stream to a whole request', sse(chunks('a')), false],
  ['a stream with another content type', sse(chunks('a'), { headers: { 'content-type': 'text/plain' } }), true]
] as const) {
  t.test(`${name} is a fault of the provider`, async t => {
    const { post } = await front(t, {}, script)
    const response = await post({ stream })
    t.equal(response.status, 502)
    t.match(await response.json(), { error: { type: 'server_error', code: 'upstream_error', param: null } })
  })
}

t.test('an answer whose encoding is called identity is an answer', async t => {
  const headers = { 'content-encoding': 'identity' }
  const { server, post } = await front(t, {}, json(completion(), { headers }))
  t.equal((await post()).status, 200)
  server.script(sse(chunks('a'), { headers }))
  t.equal((await post({ stream: true })).status, 200)
})

t.test('an event over the limit is a fault and closes the connection', async t => {
  const { server, post } = await front(
    t,
    { maxEvent: '4kb' },
    sse([chunks('a')[1], `data: ${'x'.repeat(200_000)}\n\n`])
  )
  t.match(await (await post({ stream: true })).text(), /one event of its stream is larger than 4096 bytes/)
  t.equal((await server.requests[0]!.closed).how, 'aborted')
})

t.test('a stream read to its end gives its connection back', async t => {
  const { server, post } = await front(t)
  for (let call = 0; call < 5; call++) {
    await (await post({ stream: call % 2 === 0 })).text()
    await turn()
  }
  t.same(
    server.requests.map(request => request.connection),
    [1, 1, 1, 1, 1]
  )
})
