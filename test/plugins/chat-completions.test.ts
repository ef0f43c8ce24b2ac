import { connect } from 'node:net'
import { mock } from 'node:test'
import t, { type Test } from 'tap'
import { request } from 'undici'
import type { ModelGatewayOptions } from '../../app.ts'
import type { ChatRequest } from '../../schemas/chat.ts'
import { build, hello, stack, towards } from '../helper.ts'
import {
  bytes,
  chunks,
  completion,
  failure,
  flood,
  gate,
  json,
  silence,
  sse,
  startUpstream,
  toolChunks,
  turn
} from '../upstream.ts'

const path = '/v1/chat/completions'
const streamed = { ...hello, stream: true }

/** A scripted upstream and a gateway in front of it that is only injected into. No tenant's cap is put on what goes up. */
async function injected(t: Test, options: ModelGatewayOptions = {}) {
  const upstream = await startUpstream()
  t.teardown(() => upstream.close())
  const app = await build(
    t,
    towards(upstream, { ...options, plugins: { tenants: false, budgets: false, ...options.plugins } })
  )
  const post = (payload: unknown, headers: Record<string, string> = {}) =>
    app.inject({
      method: 'POST',
      url: path,
      headers: { 'content-type': 'application/json', ...headers },
      payload: typeof payload === 'string' ? payload : JSON.stringify(payload)
    })
  return { upstream, app, post }
}

function invalid(message: string, param: string | null = null) {
  return { error: { message, type: 'invalid_request_error', param, code: null } }
}

const serverError = (message: string, code: string) => ({
  error: { message, type: 'server_error', param: null, code }
})

/** The data of every event, [DONE] included; comments left out. */
function dataOf(text: string): string[] {
  return text.split(/\r?\n/).flatMap(line => (line.startsWith('data: ') ? [line.slice(6)] : []))
}

// what goes upstream

t.test('fields that we do not know reach the upstream, our own do not', async t => {
  const { upstream, post } = await injected(t)
  const body = {
    ...hello,
    temperature: 0.5,
    logit_bias: { 50256: -100 },
    brand_new: { deep: [1, { x: null }] },
    'x-strange key': 'ü',
    tenant: 'public',
    task: 'anything',
    response_schema: { type: 'object' },
    coerce: true
  }
  const { statusCode } = await post(body)
  t.equal(statusCode, 200)
  t.same(upstream.requests[0]?.json, {
    model: 'upstream-model',
    messages: hello.messages,
    temperature: 0.5,
    logit_bias: { 50256: -100 },
    brand_new: { deep: [1, { x: null }] },
    'x-strange key': 'ü'
  })
})

t.test('our own fields stay here when they are null, too', async t => {
  const { upstream, post } = await injected(t)
  await post({ ...hello, tenant: null, task: null, response_schema: null, coerce: null })
  t.same(Object.keys(upstream.requests[0]!.json).sort(), ['messages', 'model'])
})

t.test('unknown fields of messages, parts and tools reach the upstream', async t => {
  const { upstream, post } = await injected(t)
  const messages = [
    { role: 'system', content: [{ type: 'text', text: 'be nice', cache_control: { type: 'ephemeral' } }], x: 1 },
    {
      role: 'assistant',
      content: null,
      reasoning_content: 'hm',
      tool_calls: [{ id: 'c', type: 'function', function: { name: 'f', arguments: '{ "a" :1.0 }', y: 2 }, z: 3 }]
    },
    { role: 'tool', tool_call_id: 'c', content: '', is_error: true },
    { role: 'user', content: [{ type: 'input_audio', input_audio: { data: 'AAAA', format: 'wav' } }] }
  ]
  const tools = [{ type: 'custom', custom: { name: 'g', format: { type: 'text' } }, extra: 'yes' }]
  t.equal((await post({ model: 'test', messages, tools })).statusCode, 200)
  t.same(upstream.requests[0]?.json.messages, messages)
  t.same(upstream.requests[0]?.json['tools'], tools)
})

t.test('the arguments of tool calls go upstream as the string that they are', async t => {
  const { upstream, post } = await injected(t)
  const text = '{"a":1.0,"a":2,  "big":123456789012345678901234567890, "u":"\\u00fc\\ud83d"'
  const messages = [
    { role: 'assistant', tool_calls: [{ id: 'c', type: 'function', function: { name: 'f', arguments: text } }] },
    { role: 'tool', tool_call_id: 'c', content: text }
  ]
  t.equal((await post({ model: 'test', messages })).statusCode, 200)
  t.same(upstream.requests[0]?.json.messages, messages)
})

const untouched: Array<[string, object]> = [
  ['max_tokens: null', { max_completion_tokens: null, temperature: null, top_p: null, stop: null, tools: null }],
  ['user: null', { user: null, metadata: null, n: null, seed: null, stream_options: null }],
  ['numbers at their limits', { temperature: 2, top_p: 0, frequency_penalty: -2, n: 128 }],
  ['an empty list of tools', { tools: [] }],
  ['stop as a list', { stop: ['a', 'b'] }]
]
for (const [what, fields] of untouched) {
  t.test(`${what} arrives upstream as it was sent, never coerced`, async t => {
    const { upstream, post } = await injected(t)
    t.equal((await post({ ...hello, ...fields })).statusCode, 200)
    const sent: Record<string, unknown> = { ...upstream.requests[0]!.json }
    for (const [name, value] of Object.entries(fields)) {
      // Which of the two names of the output cap goes upstream is the provider's own business; a null may be left out.
      if (name !== 'max_completion_tokens') t.same(sent[name], value, name)
      else t.ok(sent['max_tokens'] === undefined || sent['max_tokens'] === null)
    }
  })
}

t.test('max_tokens: null means that nobody set it, never 0', async t => {
  const { upstream, post } = await injected(t)
  t.equal((await post({ ...hello, max_tokens: null })).statusCode, 200)
  const sent = upstream.requests[0]!.json['max_tokens']
  t.ok(sent === null || sent === undefined, String(sent))
})

t.test('content: null of an assistant stays null, never an empty text', async t => {
  const { upstream, post } = await injected(t)
  const messages = [...hello.messages, { role: 'assistant', content: null, tool_calls: null, name: null }]
  t.equal((await post({ model: 'test', messages })).statusCode, 200)
  t.same(upstream.requests[0]?.json.messages, messages)
})

t.test('no header of the client reaches the provider, least of all its credentials', async t => {
  const { upstream, post } = await injected(t)
  await post(hello, {
    authorization: 'Bearer client-secret',
    'x-api-key': 'client-secret',
    cookie: 'session=client-secret',
    'user-agent': 'client-agent',
    'openai-organization': 'org-client',
    'x-stainless-lang': 'js',
    'x-custom': 'custom',
    traceparent: '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01',
    'x-request-id': 'client-id'
  })
  const { headers } = upstream.requests[0]!
  t.notMatch(JSON.stringify(headers), /client|custom|stainless|0af765/)
  t.equal(headers['authorization'], 'Bearer sk-upstream-secret')
  t.equal(headers['content-type'], 'application/json')
})

t.test('headers of the client on the allow-list reach the provider, and no others', async t => {
  const upstream = await startUpstream()
  t.teardown(() => upstream.close())
  const app = await build(t, {
    ...towards(upstream),
    providers: {
      up: {
        type: 'openai-compatible',
        baseUrl: upstream.url,
        apiKeys: ['sk-upstream-secret'],
        headers: { 'HTTP-Referer': 'https://app.example' },
        forwardHeaders: ['X-Custom', 'openai-beta']
      }
    }
  })
  await app.inject({
    method: 'POST',
    url: path,
    headers: { 'x-custom': 'custom', 'x-other': 'other', authorization: 'Bearer client-secret' },
    payload: hello
  })
  const { headers } = upstream.requests[0]!
  t.equal(headers['x-custom'], 'custom')
  t.equal(headers['http-referer'], 'https://app.example')
  t.equal(headers['x-other'], undefined)
  t.equal(headers['openai-beta'], undefined)
  t.equal(headers['authorization'], 'Bearer sk-upstream-secret')
})

t.test('the default model answers requests that name none', async t => {
  const { upstream, post } = await injected(t, { defaultModel: 'test' })
  t.equal((await post({ messages: hello.messages })).statusCode, 200)
  t.equal((await post({ messages: hello.messages, model: null })).statusCode, 200)
  t.same(
    upstream.requests.map(request => request.json.model),
    ['upstream-model', 'upstream-model']
  )
})

t.test('without a default model a request has to name one', async t => {
  const { post } = await injected(t)
  const answer = await post({ messages: hello.messages })
  t.equal(answer.statusCode, 400)
  t.same(answer.json(), invalid('Name a model: this gateway has no default one.', 'model'))
})

t.test('a task picks its model, a named model comes before it, an unknown task is refused', async t => {
  const upstream = await startUpstream()
  t.teardown(() => upstream.close())
  const target = (model: string) => ({ targets: [{ provider: 'up', model }] })
  const app = await build(t, {
    ...towards(upstream),
    models: { first: target('m1'), second: target('m2') },
    defaultModel: 'first',
    tasks: { vitals: 'second' }
  })
  const post = (fields: object) =>
    app.inject({ method: 'POST', url: path, payload: { messages: hello.messages, ...fields } })
  t.equal((await post({ task: 'vitals' })).headers['x-gateway-model'], 'm2')
  t.equal((await post({ task: 'vitals', model: 'first' })).headers['x-gateway-model'], 'm1')
  t.equal((await post({})).headers['x-gateway-model'], 'm1')
  const refused = await post({ task: 'sleep' })
  t.equal(refused.statusCode, 400)
  t.equal(refused.json().error.param, 'task')
  t.notOk(upstream.requests.some(request => 'task' in request.json))
})

// what comes back

t.test('a whole answer is byte for byte what the upstream sent', async t => {
  const { upstream, post } = await injected(t)
  const odd =
    ' {"id":"x",\n  "choices" : [ {"index":0, "n": 1.0, "e":1e3, "u":"\\u00fc" } ],"new_field":{"ü":"東京"} }\r\n'
  upstream.script(bytes(odd, { headers: { 'content-type': 'application/json' } }))
  const answer = await post(hello)
  t.equal(answer.statusCode, 200)
  t.equal(answer.headers['content-type'], 'application/json; charset=utf-8')
  t.equal(answer.headers['content-length'], String(Buffer.byteLength(odd)))
  t.same(answer.rawPayload, Buffer.from(odd))
})

t.test('a stream is byte for byte what the upstream sent, with our own terminator', async t => {
  const { upstream, post } = await injected(t)
  const odd =
    ': OPENROUTER PROCESSING\n\n' +
    'data: {"id":"x", "choices" :[{"index":0,"delta":{"content":"Gr\\u00fc\u00dfe","odd":1.0}}],"vendor":{"a":[]}}\n\n' +
    'event: message\nid: 7\ndata: {"choices":[{"index":0,"delta":{"content":" 東京 👋🏽"}}]}\n\n' +
    'data:{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n' +
    'data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3,"x":1.50}}\n\n'
  upstream.script(sse(`${odd}data: [DONE]\n\n`))
  const answer = await post({ ...streamed, stream_options: { include_usage: true } })
  t.equal(answer.statusCode, 200)
  t.equal(answer.body, `${odd}data: [DONE]\n\n`)
})

t.test('the usage event that nobody asked for is taken out, its neighbours stay as they were', async t => {
  const { upstream, post } = await injected(t)
  const [before, usage, after] = [
    'data: {"choices":[{"index":0,"delta":{"content":"x"},"finish_reason":"stop"}], "usage": null}\n\n',
    'data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3}}\n\n',
    'data: { "choices":[], "later": true }\n\n'
  ]
  upstream.script(sse(`${before}${usage}${after}data: [DONE]\n\n`))
  t.equal((await post(streamed)).body, `${before}${after}data: [DONE]\n\n`)
})

t.test('a stream cut at every byte boundary arrives whole', async t => {
  const { upstream, url } = await stack(t)
  const text =
    'data: {"choices":[{"index":0,"delta":{"content":"ü東👋🏽"}}]}\r\n\r\n: comment\r\n\r\n' +
    'data: {"choices":[{"index":0,"delta":{"content":"x"},"finish_reason":"stop"}]}\n\n'
  const whole = Buffer.from(`${text}data: [DONE]\n\n`)
  const post = async () => {
    const { statusCode, body } = await request(url + path, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify(streamed)
    })
    return [statusCode, await body.text()]
  }
  const wrong: number[] = []
  const at: number[] = Array.from({ length: whole.length }, (_, index) => index)
  for (const offset of at) {
    upstream.script(sse(whole, { cut: [offset] }))
    const [status, got] = await post()
    if (status !== 200 || got !== whole.toString()) wrong.push(offset)
  }
  t.same(wrong, [])
  upstream.script(sse(whole, { cut: 'byte' }))
  t.same(await post(), [200, whole.toString()])
})

t.test('the headers of a stream keep proxies from holding or changing it', async t => {
  const { post } = await injected(t)
  const { headers, body } = await post(streamed)
  t.match(headers, {
    'content-type': 'text/event-stream; charset=utf-8',
    'cache-control': 'no-cache, no-transform',
    'x-accel-buffering': 'no',
    'x-gateway-provider': 'up',
    'x-gateway-model': 'upstream-model',
    'x-gateway-attempts': '1',
    'x-gateway-cache': 'off'
  })
  t.match(headers['x-request-id'], /^req_/)
  t.equal(headers['content-length'], undefined)
  t.equal(headers['content-encoding'], undefined)
  t.ok(body.endsWith('\n\ndata: [DONE]\n\n'))
  t.equal(body.split('[DONE]').length, 2)
})

t.test('a stream that ends after its finish_reason is complete without the terminator of the upstream', async t => {
  const { upstream, post } = await injected(t)
  const sent = chunks('one two')
  upstream.script(sse(sent, { done: false }))
  const { body } = await post(streamed)
  t.same(dataOf(body), [...sent.map(chunk => JSON.stringify(chunk)), '[DONE]'])
})

t.test('a last event without its blank line still counts', async t => {
  const { upstream, post } = await injected(t)
  const events = chunks('one').map(chunk => `data: ${JSON.stringify(chunk)}`)
  upstream.script(sse(events.join('\n\n')))
  const { body } = await post(streamed)
  t.same(dataOf(body), [...events.map(event => event.slice(6)), '[DONE]'])
  t.ok(body.endsWith('\n\ndata: [DONE]\n\n'))
})

t.test('a stream that ends before any finish_reason ends with an error and without a terminator', async t => {
  const { upstream, post } = await injected(t)
  for (const done of [false, true]) {
    const sent = chunks('one two three').slice(0, 3)
    upstream.script(sse(sent, { done }))
    const { statusCode, body } = await post(streamed)
    t.equal(statusCode, 200)
    t.same(dataOf(body), [
      ...sent.map(chunk => JSON.stringify(chunk)),
      JSON.stringify(
        serverError(
          'The provider of this model failed: its stream ended before the answer was complete.',
          'upstream_error'
        )
      )
    ])
  }
})

t.test('a connection that breaks in the middle of a stream is an error event', async t => {
  const { upstream, url } = await stack(t)
  const sent = chunks('one two three')
  const door = gate()
  upstream.script(() => sse(sent.slice(0, 3), { done: false, interval: index => (index === 2 ? door.promise : 0) }))
  const { statusCode, body } = await request(url + path, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify(streamed)
  })
  t.equal(statusCode, 200)
  upstream.drop()
  door.open()
  const data = dataOf(await body.text())
  t.same(JSON.parse(data.at(-1)!).error.code, 'upstream_error')
  t.notOk(data.includes('[DONE]'))
})

t.test('an error event of the upstream follows what came before it, in our form', async t => {
  const { upstream, post } = await injected(t)
  const sent = chunks('one two').slice(0, 2)
  upstream.script(sse([...sent, { error: { message: 'no more memory', type: 'x', code: 'oom' } }, ...sent]))
  const { body } = await post(streamed)
  const data = dataOf(body)
  t.same(
    data.slice(0, 2),
    sent.map(chunk => JSON.stringify(chunk))
  )
  t.equal(data.length, 3)
  t.match(JSON.parse(data[2]!), { error: { type: 'server_error', code: 'upstream_error', param: null } })
})

t.test('a fault after the first token carries no finish_reason', async t => {
  const { upstream, post } = await injected(t)
  upstream.script(sse(chunks('one two').slice(0, 2), { done: false }))
  t.notMatch((await post(streamed)).body, /"finish_reason":"/)
})

const inside: Array<[string, object, number, string | null]> = [
  ['an error object', { error: { message: 'overloaded', code: 529 } }, 503, 'upstream_overloaded'],
  ['an error text', { error: 'model crashed' }, 502, 'upstream_error'],
  ['an error in a choice', { choices: [{ index: 0, error: { code: 502, message: 'x' } }] }, 502, 'upstream_error'],
  ['a refusal', { error: { message: 'too long', code: 400 } }, 400, null],
  ['a rate limit', { error: { message: 'slow', code: 429 } }, 429, 'upstream_rate_limited']
]
for (const [what, body, status, code] of inside) {
  t.test(`200 with ${what} inside is an error with status ${status}`, async t => {
    const { upstream, post } = await injected(t)
    upstream.script(json(body))
    const answer = await post(hello)
    t.equal(answer.statusCode, status)
    t.equal(answer.json().error.code, code)
  })
}

t.test('"error": null in an answer is no error', async t => {
  const { upstream, post } = await injected(t)
  upstream.script(json(completion({ error: null, content: 'says "error": "x"' })))
  t.equal((await post(hello)).statusCode, 200)
})

for (const [what, head] of [
  ['at once', []],
  ['after the role', chunks('x').slice(0, 1)]
] as const) {
  t.test(`an error before the first token of a stream, ${what}, is an ordinary HTTP error`, async t => {
    const { upstream, post } = await injected(t)
    upstream.script(sse([...head, { error: { message: 'too long', code: 400, param: 'messages' } }]))
    const answer = await post(streamed)
    t.equal(answer.statusCode, 400)
    t.equal(answer.headers['content-type'], 'application/json; charset=utf-8')
    t.same(answer.json(), invalid('too long', 'messages'))
  })
}

t.test('a stream that ends before its first token is an ordinary HTTP error', async t => {
  const { upstream, post } = await injected(t)
  upstream.script(sse([]))
  const answer = await post(streamed)
  t.equal(answer.statusCode, 502)
  t.equal(answer.json().error.code, 'upstream_error')
})

t.test('a stream of nothing but a tool call without arguments is complete', async t => {
  const { upstream, post } = await injected(t)
  const sent = toolChunks([{ name: 'now', arguments: [] }])
  upstream.script(sse(sent))
  t.same(dataOf((await post(streamed)).body), [...sent.map(chunk => JSON.stringify(chunk)), '[DONE]'])
})

const refusals: Array<[number, number, string | null]> = [
  [400, 400, null],
  [408, 408, null],
  [409, 409, null],
  [413, 413, null],
  [422, 422, null],
  [401, 502, 'upstream_error'],
  [402, 502, 'upstream_error'],
  [403, 502, 'upstream_error'],
  [404, 502, 'upstream_error'],
  [429, 429, 'upstream_rate_limited'],
  [500, 502, 'upstream_error'],
  [503, 503, 'upstream_overloaded'],
  [504, 504, 'upstream_timeout']
]
/** Whose repeat is useless, and whose words concern the caller. */
const useless = [400, 401, 402, 403, 404, 413, 422]
const spoken = [400, 408, 409, 413, 422, 500]
for (const [theirs, ours, code] of refusals) {
  t.test(`an upstream ${theirs} leaves as ${ours}, for whole answers and streams alike`, async t => {
    const { upstream, post } = await injected(t)
    upstream.script(failure(theirs, { message: 'Their words.' }))
    for (const body of [hello, streamed]) {
      const answer = await post(body)
      t.equal(answer.statusCode, ours)
      t.equal(answer.headers['content-type'], 'application/json; charset=utf-8')
      t.same(Object.keys(answer.json().error).sort(), ['code', 'message', 'param', 'type'])
      t.equal(answer.json().error.code, code)
      t.equal(answer.headers['x-should-retry'], useless.includes(theirs) ? 'false' : undefined)
      t.equal(answer.body.includes('Their words.'), spoken.includes(theirs))
    }
  })
}

t.test('the retry-after of an upstream is handed on', async t => {
  const { upstream, post } = await injected(t)
  upstream.script(failure(429, {}, { headers: { 'retry-after': 3, 'retry-after-ms': '2500' } }))
  const { headers } = await post(hello)
  t.equal(headers['retry-after'], '3')
  t.equal(headers['retry-after-ms'], '2500')
})

// silence

/** Streams whose upstream says nothing until the gate is open, under a clock that only the test moves. */
async function silent(t: Test, rest: 'tokens' | 'fault') {
  const { upstream, url, app } = await stack(t, { server: { sse: { headersAfter: '10s', heartbeat: '15s' } } })
  const door = gate()
  upstream.script(
    rest === 'tokens'
      ? sse(chunks('late'), { bodyDelay: door.promise })
      : failure(400, { message: 'far too long' }, { delay: door.promise })
  )
  mock.timers.enable({ apis: ['setTimeout', 'setInterval'] })
  t.teardown(() => mock.timers.reset())
  const answering = request(url + path, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify(streamed)
  })
  await upstream.received()
  await turn()
  return { upstream, app, door, answering }
}

t.test('after headersAfter of silence the headers leave, heartbeats follow, and then the stream as ever', async t => {
  const { door, answering } = await silent(t, 'tokens')
  let answered = false
  answering.then(() => (answered = true))
  mock.timers.tick(9_999)
  await turn()
  t.equal(answered, false)
  mock.timers.tick(1)
  const { statusCode, headers, body } = await answering
  t.equal(statusCode, 200)
  t.match(headers, { 'content-type': 'text/event-stream; charset=utf-8', 'x-accel-buffering': 'no' })
  t.equal(headers['x-gateway-provider'], undefined)
  const reads = body[Symbol.asyncIterator]()
  const read = async () => String((await reads.next()).value)
  t.equal(await read(), ': heartbeat\n\n')
  for (let beats = 0; beats < 3; beats++) {
    mock.timers.tick(15_000)
    t.equal(await read(), ': heartbeat\n\n')
  }
  door.open()
  let rest = ''
  for await (const piece of { [Symbol.asyncIterator]: () => reads }) rest += piece
  t.same(dataOf(rest), [...chunks('late').map(chunk => JSON.stringify(chunk)), '[DONE]'])
  t.notMatch(rest, /heartbeat/)
})

t.test('once the headers have left, a fault travels as an event', async t => {
  const { door, answering, app } = await silent(t, 'fault')
  mock.timers.tick(10_000)
  const { statusCode, body } = await answering
  t.equal(statusCode, 200)
  door.open()
  t.equal(await body.text(), `: heartbeat\n\ndata: ${JSON.stringify(invalid('far too long'))}\n\n`)
  t.equal(app.gateway.running, 0)
})

t.test('without silence there is no heartbeat', async t => {
  const { post } = await injected(t)
  t.notMatch((await post(streamed)).body, /heartbeat/)
})

t.test('between tokens heartbeats go out, each after a whole interval of silence', async t => {
  const { upstream, url } = await stack(t, {
    server: { sse: { headersAfter: '10s', heartbeat: '15s' } },
    models: { test: { targets: [{ provider: 'up', model: 'm' }], timeouts: { idle: '10m', firstToken: '10m' } } }
  })
  const doors = [gate(), gate(), gate(), gate()]
  upstream.script(sse(chunks('one two'), { interval: index => doors[index - 1]?.promise ?? 0 }))
  mock.timers.enable({ apis: ['setTimeout', 'setInterval'] })
  t.teardown(() => mock.timers.reset())
  doors[0]!.open()
  const { body } = await request(url + path, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify(streamed)
  })
  const reads = body[Symbol.asyncIterator]()
  let text = ''
  while (!text.includes('one')) text += (await reads.next()).value
  mock.timers.tick(14_999)
  doors[1]!.open()
  while (!text.includes('two')) text += (await reads.next()).value
  t.notMatch(text, /heartbeat/)
  mock.timers.tick(14_999)
  await turn()
  mock.timers.tick(1)
  t.equal(String((await reads.next()).value), ': heartbeat\n\n')
  for (const door of doors) door.open()
  for await (const piece of { [Symbol.asyncIterator]: () => reads }) text += piece
  t.ok(text.endsWith('data: [DONE]\n\n'))
})

t.test("the client's own time limit ends a call that takes longer with a 504", async t => {
  const { upstream, app, post } = await injected(t)
  upstream.script(silence())
  mock.timers.enable({ apis: ['setTimeout', 'setInterval'] })
  t.teardown(() => mock.timers.reset())
  const answering = post(hello, { 'x-stainless-timeout': '2' })
  const asked = await upstream.received()
  mock.timers.tick(1_999)
  await turn()
  t.equal(app.gateway.running, 1)
  mock.timers.tick(1)
  const answer = await answering
  t.equal(answer.statusCode, 504)
  t.match(answer.json(), { error: { type: 'server_error', code: 'upstream_timeout', param: null } })
  t.equal((await asked.closed).how, 'aborted')
})

// slow readers

t.test(
  'a reader that takes nothing stops the upstream after a few buffers, and gets everything in the end',
  async t => {
    const { upstream, url, app } = await stack(t)
    const size = 64 * 1024 * 1024
    upstream.script(flood(size))
    const { port, hostname } = new URL(url)
    const body = JSON.stringify(streamed)
    const socket = connect(Number(port), hostname)
    t.teardown(() => socket.destroy())
    socket.pause()
    socket.write(
      `POST ${path} HTTP/1.1\r\nhost: ${hostname}\r\ncontent-type: application/json\r\n` +
        `content-length: ${Buffer.byteLength(body)}\r\nconnection: close\r\n\r\n${body}`
    )
    const asked = await upstream.received()
    let still = 0
    for (let before = -1; still < 300; before = asked.sent) {
      await turn()
      still = asked.sent === before && before > 0 ? still + 1 : 0
    }
    t.ok(asked.sent < 24 * 1024 * 1024, `${asked.sent} bytes left the upstream`)
    t.equal(app.gateway.running, 1)
    let got = 0
    let tail = ''
    for await (const piece of socket as AsyncIterable<Buffer>) {
      got += piece.length
      tail = (tail + piece.toString('latin1')).slice(-400)
    }
    t.ok(got > size)
    // The flood never says that it is finished.
    t.match(tail, /upstream_error/)
    t.equal(app.gateway.running, 0)
  }
)

// requests that are refused

const faults: Array<[string, object, string, string]> = [
  ['no messages', { messages: undefined }, 'messages', 'messages is required.'],
  ['an empty list of messages', { messages: [] }, 'messages', 'messages must NOT have fewer than 1 items.'],
  ['messages of another kind', { messages: 'hi' }, 'messages', 'messages must be array.'],
  ['a message without a role', { messages: [{ content: 'x' }] }, 'messages[0].role', 'messages[0].role is required.'],
  [
    'an unknown role',
    { messages: [...hello.messages, { role: 'robot', content: 'x' }] },
    'messages[1].role',
    'messages[1].role must be one of developer, system, user, assistant, tool, function.'
  ],
  [
    'a user without content',
    { messages: [{ role: 'user' }] },
    'messages[0].content',
    'messages[0].content is required.'
  ],
  [
    'content: null of a user',
    { messages: [{ role: 'user', content: null }] },
    'messages[0].content',
    'messages[0].content must be string or array.'
  ],
  [
    'content of another kind',
    { messages: [{ role: 'user', content: 7 }] },
    'messages[0].content',
    'messages[0].content must be string or array.'
  ],
  [
    'a part without a type',
    { messages: [{ role: 'user', content: [{ text: 'x' }] }] },
    'messages[0].content[0].type',
    'messages[0].content[0].type is required.'
  ],
  [
    'an image without its address',
    { messages: [{ role: 'user', content: [{ type: 'image_url', image_url: {} }] }] },
    'messages[0].content[0].image_url.url',
    'messages[0].content[0].image_url.url is required.'
  ],
  [
    'a tool answer without its call',
    { messages: [{ role: 'tool', content: 'x' }] },
    'messages[0].tool_call_id',
    'messages[0].tool_call_id is required.'
  ],
  ['temperature as a text', { temperature: '0.7' }, 'temperature', 'temperature must be number or null.'],
  ['temperature above its range', { temperature: 2.1 }, 'temperature', 'temperature must be <= 2.'],
  ['max_tokens as a text', { max_tokens: '10' }, 'max_tokens', 'max_tokens must be integer or null.'],
  ['max_tokens: 0', { max_tokens: 0 }, 'max_tokens', 'max_tokens must be >= 1.'],
  ['max_tokens: 1.5', { max_tokens: 1.5 }, 'max_tokens', 'max_tokens must be integer or null.'],
  ['stream as a text', { stream: 'true' }, 'stream', 'stream must be boolean or null.'],
  ['stream as a number', { stream: 1 }, 'stream', 'stream must be boolean or null.'],
  ['an empty model', { model: '' }, 'model', 'model must NOT have fewer than 1 characters.'],
  ['a model of another kind', { model: 7 }, 'model', 'model must be string or null.'],
  [
    'a tool without a name',
    { tools: [{ type: 'function', function: {} }] },
    'tools[0].function.name',
    'tools[0].function.name is required.'
  ],
  ['a tenant of another kind', { tenant: 7 }, 'tenant', 'tenant must be string or null.'],
  [
    'include_usage of another kind',
    { stream_options: { include_usage: 'yes' } },
    'stream_options.include_usage',
    'stream_options.include_usage must be boolean or null.'
  ]
]
t.test('schema faults', async t => {
  const { upstream, post } = await injected(t)
  for (const [what, fields, param, message] of faults) {
    await t.test(`${what}: 400 that names ${param}`, async t => {
      const answer = await post({ ...hello, ...fields })
      t.equal(answer.statusCode, 400)
      t.equal(answer.headers['x-should-retry'], 'false')
      t.same(answer.json(), invalid(message, param))
    })
  }
  for (const body of [null, [], 'text', 7, true]) {
    await t.test(`a body that is ${JSON.stringify(body)}: 400`, async t => {
      const answer = await post(JSON.stringify(body))
      t.equal(answer.statusCode, 400)
      t.same(answer.json(), invalid('The request body must be object.'))
    })
  }
  t.equal(upstream.requests.length, 0)
})

t.test('a body that is no JSON', async t => {
  const { upstream, post } = await injected(t)
  const bodies = {
    empty: '',
    cut: '{"model":"test","messages":[{"role":"user"',
    'a form': 'model=test',
    'a comment': '{/* */}',
    'single quotes': "{'a':1}",
    NaN: '{"temperature":NaN}',
    'two values': '{}{}'
  }
  for (const [what, body] of Object.entries(bodies)) {
    await t.test(`${what}: 400 without a word of the parser`, async t => {
      const answer = await post(body)
      t.equal(answer.statusCode, 400)
      t.same(answer.json(), invalid('The request body is not valid JSON.'))
    })
  }
  t.equal(upstream.requests.length, 0)
})

t.test('keys that would reach into prototypes', async t => {
  const { upstream, post } = await injected(t)
  const around = (text: string) => `{"model":"test","messages":[{"role":"user","content":"x"}],${text}}`
  const refused = {
    'a __proto__ at the top': around('"__proto__":{"stream":true}'),
    'a __proto__ deep inside': around('"metadata":{"a":[{"__proto__":{}}]}'),
    'an escaped __proto__': around('"\\u005f_proto__":{"x":1}'),
    'a constructor that holds a prototype': around('"constructor":{"prototype":{"x":1}}'),
    'one deep inside': around('"metadata":{"a":{"constructor":{"prototype":null}}}')
  }
  for (const [what, body] of Object.entries(refused)) {
    await t.test(`${what}: refused`, async t => {
      const answer = await post(body)
      t.equal(answer.statusCode, 400)
      t.same(answer.json(), invalid('The request body is not valid JSON.'))
    })
  }
  t.equal(upstream.requests.length, 0)

  await t.test('a tool whose schema has properties called constructor and prototype: passes', async t => {
    const properties = { constructor: { type: 'string' }, prototype: { type: 'object' }, toString: { type: 'null' } }
    const tools = [{ type: 'function', function: { name: 'build', parameters: { type: 'object', properties } } }]
    t.equal((await post({ ...hello, tools })).statusCode, 200)
    t.same(upstream.requests[0]?.json['tools'], tools)
  })

  await t.test('the word in a text: passes', async t => {
    const messages = [{ role: 'user', content: '{"__proto__": {}, "constructor": {"prototype": 1}}' }]
    t.equal((await post({ model: 'test', messages })).statusCode, 200)
    t.same(upstream.requests[1]?.json.messages, messages)
  })

  t.equal(({} as Record<string, unknown>)['stream'], undefined)
})

t.test('content types', async t => {
  const { upstream, post, app } = await injected(t, { tenants: { public: { keys: ['a-key-of-the-tenant'] } } })
  const key = { authorization: 'Bearer a-key-of-the-tenant' }
  for (const type of [
    'application/json',
    'application/json; charset=utf-8',
    'Application/JSON',
    'text/plain',
    'text/plain;charset=UTF-8'
  ]) {
    await t.test(`${type}: accepted from whoever has a key`, async t => {
      t.equal((await post(hello, { ...key, 'content-type': type })).statusCode, 200)
    })
  }
  const before = upstream.requests.length
  for (const type of [
    'application/x-www-form-urlencoded',
    'multipart/form-data; boundary=x',
    'application/xml',
    'text/html',
    'application/jsonp',
    'x'
  ]) {
    await t.test(`${type}: 415`, async t => {
      const answer = await post(hello, { ...key, 'content-type': type })
      t.equal(answer.statusCode, 415)
      t.same(answer.json(), {
        error: {
          message: 'Send the request as application/json.',
          type: 'invalid_request_error',
          param: null,
          code: 'unsupported_media_type'
        }
      })
    })
  }
  await t.test('none: 415', async t => {
    const answer = await app.inject({
      method: 'POST',
      url: path,
      headers: key,
      payload: Buffer.from(JSON.stringify(hello))
    })
    t.equal(answer.statusCode, 415)
    t.equal(answer.json().error.code, 'unsupported_media_type')
  })
  await t.test('no body at all: 400', async t => {
    const answer = await app.inject({ method: 'POST', url: path, headers: key })
    t.equal(answer.statusCode, 400)
    t.match(answer.json(), { error: { type: 'invalid_request_error', code: null } })
  })
  t.equal(upstream.requests.length, before)
})

t.test('an unknown model is refused before anything is asked', async t => {
  const { upstream, post } = await injected(t)
  for (const model of ['nope', 'up/upstream-model', '__proto__', 'constructor', 'toString', 'test ', '%s', 'a\nb']) {
    const answer = await post({ ...hello, model })
    t.equal(answer.statusCode, 404, model)
    t.same(answer.json(), {
      error: {
        message: `The model \`${model}\` does not exist here. GET /v1/models lists the models of this gateway.`,
        type: 'invalid_request_error',
        param: 'model',
        code: 'model_not_found'
      }
    })
  }
  t.equal(upstream.requests.length, 0)
})

t.test('sse: false refuses streams and still answers everything else', async t => {
  const { upstream, post } = await injected(t, { server: { sse: false } })
  const refused = await post(streamed)
  t.equal(refused.statusCode, 400)
  t.same(refused.json(), invalid('Streaming is switched off on this gateway: send stream: false.', 'stream'))
  t.equal((await post({ ...hello, stream: false })).statusCode, 200)
  t.equal((await post({ ...hello, stream: null })).statusCode, 200)
  t.equal(upstream.requests.length, 2)
})

t.test(
  'a layer that answers a stream request with a whole answer is a fault of ours, said without details',
  async t => {
    const { app, post } = await injected(t)
    app.gateway.intercept('shape', async () => ({ stream: false, body: completion() as never, raw: null }))
    const answer = await post(streamed)
    t.equal(answer.statusCode, 500)
    t.same(answer.json(), serverError('The gateway failed to handle this request.', 'internal_error'))
    t.equal(app.gateway.running, 0)
  }
)

t.test(
  'a layer that answers a whole request with a stream is a fault of ours, and nothing is left running',
  async t => {
    const { app, post, upstream } = await injected(t)
    upstream.script(silence(sse(chunks('one two')), 600))
    app.gateway.intercept('shape', (inference, next) => {
      inference.request = { ...(inference.request as ChatRequest), stream: true }
      return next(inference)
    })
    const answer = await post(hello)
    t.equal(answer.statusCode, 500)
    await upstream.until(open => open.requests === 0)
    t.equal(app.gateway.running, 0)
  }
)

t.test('chunks that a layer replaced are written as events of ours', async t => {
  const { app, post } = await injected(t)
  const replaced = {
    id: 'x',
    object: 'chat.completion.chunk',
    choices: [{ index: 0, delta: { content: 'ü' }, finish_reason: 'stop' }]
  }
  const { chunkFrames } = await import('../../schemas/frames.ts')
  app.gateway.intercept('shape', async () => ({
    stream: true,
    frames: (async function* () {
      yield chunkFrames([replaced as never, replaced as never])
    })()
  }))
  const event = `data: ${JSON.stringify(replaced)}\n\n`
  t.equal((await post(streamed)).body, `${event}${event}data: [DONE]\n\n`)
})
