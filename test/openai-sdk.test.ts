import { mock } from 'node:test'
import OpenAI, {
  APIConnectionTimeoutError,
  APIError,
  APIUserAbortError,
  AuthenticationError,
  BadRequestError,
  InternalServerError,
  NotFoundError,
  RateLimitError,
  UnprocessableEntityError
} from 'openai'
import { makeParseableResponseFormat } from 'openai/lib/parser'
import t, { type Test } from 'tap'
import { build, hello, stack, towards } from './helper.ts'
import { chunks, completion, failure, gate, json, reset, silence, sse, startUpstream, toolChunks } from './upstream.ts'

const words = ['Grüße', ' aus', ' 東京', ' 👋🏽', '!']

/** Arguments as models write them: spacing, escapes and numbers that a round trip through JSON would change. */
const oddArguments = '{ "city" :"M\\u00fcnchen",\n\t"n": 1.0, "big": 12345678901234567890, "n": 2e0 }'
const otherArguments = '{"city":"東京 \\ud83d\\ude00",  "days" : [ ] }'

/** What a promise is refused with. */
async function fault(promise: PromiseLike<unknown>): Promise<unknown> {
  try {
    await promise
  } catch (error) {
    return error
  }
  throw new Error('This should have failed.')
}

const weather = {
  name: 'weather',
  description: 'The weather of a city',
  parameters: { type: 'object', properties: { city: { type: 'string' } } }
}

t.test('create answers with what the upstream said', async t => {
  const { upstream, client } = await stack(t)
  upstream.script(json(completion({ content: 'Hi from upstream' })))
  const answer = await client.chat.completions.create(hello)
  t.equal(answer.choices[0]?.message.content, 'Hi from upstream')
  t.equal(upstream.requests[0]?.headers['authorization'], 'Bearer sk-upstream-secret')
})

t.test('create returns the whole body of the upstream, field by field', async t => {
  const { upstream, client } = await stack(t)
  const body = completion({ content: 'whole', surprise: { nested: [1, null, 'x'] } })
  upstream.script(json(body))
  const answer = await client.chat.completions.create(hello)
  t.same(JSON.parse(JSON.stringify(answer)), body)
})

t.test('create with stream yields every chunk of the upstream, unknown fields included, and no other', async t => {
  const { upstream, client } = await stack(t)
  const sent = chunks(words, { obfuscation: 'xyz', vendor: { a: 1 } })
  upstream.script(sse(sent))
  const got: unknown[] = []
  for await (const chunk of await client.chat.completions.create({ ...hello, stream: true })) got.push(chunk)
  t.same(got, sent)
})

t.test('create with stream hides the usage chunk that nobody asked for', async t => {
  const { upstream, client } = await stack(t)
  upstream.script(sse(chunks(words, { usage: true })))
  let counted = 0
  for await (const chunk of await client.chat.completions.create({ ...hello, stream: true })) {
    if (chunk.choices.length === 0) counted++
  }
  t.equal(counted, 0)
  t.same(upstream.requests[0]?.json.stream_options, { include_usage: true })
})

t.test('create with stream and include_usage ends with the usage chunk', async t => {
  const { upstream, client } = await stack(t)
  const sent = chunks(words, { usage: true })
  upstream.script(sse(sent))
  const got: unknown[] = []
  const stream = await client.chat.completions.create({
    ...hello,
    stream: true,
    stream_options: { include_usage: true }
  })
  for await (const chunk of stream) got.push(chunk)
  t.same(got, sent)
})

t.test('the stream helper assembles the final message and the total usage', async t => {
  const { upstream, client } = await stack(t)
  upstream.script(sse(chunks(words, { usage: true })))
  const stream = client.chat.completions.stream({ ...hello, stream_options: { include_usage: true } })
  const deltas: string[] = []
  stream.on('content', delta => deltas.push(delta))
  const message = await stream.finalMessage()
  t.equal(message.content, words.join(''))
  t.same(deltas, words)
  t.equal(await stream.finalContent(), words.join(''))
  const usage = await stream.totalUsage()
  t.equal(usage.completion_tokens, words.length)
  t.equal(usage.total_tokens, 9 + words.length)
  t.equal((await stream.finalChatCompletion()).choices[0]?.finish_reason, 'stop')
})

t.test('the stream helper assembles parallel tool calls with their arguments as they were sent', async t => {
  const { upstream, client } = await stack(t)
  upstream.script(
    sse(
      toolChunks([
        { name: 'weather', arguments: oddArguments, id: 'call_a' },
        { name: 'weather', arguments: otherArguments, id: 'call_b' },
        { name: 'now', arguments: '{}', id: 'call_c' }
      ])
    )
  )
  const message = await client.chat.completions.stream(hello).finalMessage()
  t.same(
    message.tool_calls?.map(call =>
      call.type === 'function' ? [call.id, call.function.name, call.function.arguments] : []
    ),
    [
      ['call_a', 'weather', oddArguments],
      ['call_b', 'weather', otherArguments],
      ['call_c', 'now', '{}']
    ]
  )
})

t.test('runTools runs two rounds of parallel calls, arguments byte-exact in both directions', async t => {
  const { upstream, client } = await stack(t)
  const called: string[] = []
  const call = (id: string, text: string) => ({ id, type: 'function', function: { name: 'weather', arguments: text } })
  const withCalls = (...calls: object[]) => {
    const body = completion({ content: null, finish_reason: 'tool_calls' })
    const message = { ...body.choices[0]!.message, tool_calls: calls }
    return json({ ...body, choices: [{ ...body.choices[0]!, message }] })
  }
  upstream.script(
    withCalls(call('call_1', oddArguments), call('call_2', otherArguments)),
    withCalls(call('call_3', '{}')),
    json(completion({ content: 'Sunny everywhere.' }))
  )
  const runner = client.chat.completions.runTools({
    ...hello,
    tools: [
      {
        type: 'function',
        function: {
          ...weather,
          function: (text: string) => {
            called.push(text)
            return `weather ${called.length}`
          }
        }
      }
    ]
  })
  t.equal(await runner.finalContent(), 'Sunny everywhere.')
  t.same(called, [oddArguments, otherArguments, '{}'])
  t.equal(upstream.requests.length, 3)
  const last = upstream.requests[2]!.json.messages!
  t.same(
    last.map(message => message.role),
    ['user', 'assistant', 'tool', 'tool', 'assistant', 'tool']
  )
  t.match(last[1], { tool_calls: [call('call_1', oddArguments), call('call_2', otherArguments)] })
  t.match(last[2], { tool_call_id: 'call_1', content: 'weather 1' })
  t.match(last[3], { tool_call_id: 'call_2', content: 'weather 2' })
  const usage = await runner.totalUsage()
  t.equal(usage.prompt_tokens, 27)
})

t.test('runTools works over streams too', async t => {
  const { upstream, client } = await stack(t)
  const called: string[] = []
  upstream.script(
    sse(
      toolChunks([
        { name: 'weather', arguments: oddArguments },
        { name: 'weather', arguments: otherArguments }
      ])
    ),
    sse(toolChunks([{ name: 'weather', arguments: '{}' }])),
    sse(chunks('Sunny everywhere.'))
  )
  const runner = client.chat.completions.runTools({
    ...hello,
    stream: true,
    tools: [{ type: 'function', function: { ...weather, function: (text: string) => `weather ${called.push(text)}` } }]
  })
  t.equal(await runner.finalContent(), 'Sunny everywhere.')
  t.same(called, [oddArguments, otherArguments, '{}'])
  t.match(upstream.requests[1]?.json.messages?.[1], {
    tool_calls: [{ function: { arguments: oddArguments } }, { function: { arguments: otherArguments } }]
  })
})

t.test('withResponse shows our request id and what answered', async t => {
  const { client } = await stack(t)
  const { data, response, request_id } = await client.chat.completions.create(hello).withResponse()
  t.match(request_id, /^req_[A-Za-z0-9]{18}$/)
  t.match(data, { _request_id: request_id })
  t.equal(response.headers.get('x-request-id'), request_id)
  t.equal(response.headers.get('content-type'), 'application/json; charset=utf-8')
  t.equal(response.headers.get('x-gateway-provider'), 'up')
  t.equal(response.headers.get('x-gateway-model'), 'upstream-model')
  t.equal(response.headers.get('x-gateway-attempts'), '1')
  t.equal(response.headers.get('x-gateway-cache'), 'off')
})

t.test('withResponse shows the same of a stream', async t => {
  const { client } = await stack(t)
  const { data, response, request_id } = await client.chat.completions.create({ ...hello, stream: true }).withResponse()
  t.match(request_id, /^req_[A-Za-z0-9]{18}$/)
  t.equal(response.headers.get('content-type'), 'text/event-stream; charset=utf-8')
  t.equal(response.headers.get('x-gateway-provider'), 'up')
  t.equal(response.headers.get('x-gateway-model'), 'upstream-model')
  t.equal(response.headers.get('x-gateway-attempts'), '1')
  for await (const _ of data);
})

t.test('two requests have two ids', async t => {
  const { client } = await stack(t)
  const first = await client.chat.completions.create(hello)
  const second = await client.chat.completions.create(hello)
  t.not(first._request_id, second._request_id)
})

t.test('parse hands the schema to the upstream and reads its answer', async t => {
  const { upstream, client } = await stack(t)
  upstream.script(json(completion({ content: '{"city":"Bern"}' })))
  const json_schema = {
    name: 'place',
    strict: true,
    schema: {
      type: 'object',
      properties: { city: { type: 'string' } },
      required: ['city'],
      additionalProperties: false
    }
  }
  const answer = await client.chat.completions.parse({
    ...hello,
    response_format: makeParseableResponseFormat({ type: 'json_schema', json_schema }, text => JSON.parse(text))
  })
  t.same(answer.choices[0]?.message.parsed, { city: 'Bern' })
  t.same(upstream.requests[0]?.json['response_format'], { type: 'json_schema', json_schema })
})

t.test('aborting a stream closes the upstream request', async t => {
  const { upstream, app, client } = await stack(t)
  upstream.script(silence(sse(chunks(words)), 900))
  const stream = await client.chat.completions.create({ ...hello, stream: true })
  for await (const _ of stream) stream.controller.abort()
  const { how } = await upstream.requests[0]!.closed
  t.equal(how, 'aborted')
  await upstream.until(open => open.requests === 0)
  t.equal(app.gateway.running, 0)
})

t.test('breaking out of a stream closes the upstream request', async t => {
  const { upstream, client } = await stack(t)
  upstream.script(silence(sse(chunks(words)), 900))
  for await (const _ of await client.chat.completions.create({ ...hello, stream: true })) break
  t.equal((await upstream.requests[0]!.closed).how, 'aborted')
})

t.test('aborting the stream helper closes the upstream request', async t => {
  const { upstream, client } = await stack(t)
  upstream.script(silence(sse(chunks(words)), 900))
  const stream = client.chat.completions.stream(hello)
  stream.once('content', () => stream.abort())
  t.ok((await fault(stream.finalMessage())) instanceof APIUserAbortError)
  t.equal((await upstream.requests[0]!.closed).how, 'aborted')
})

t.test('an AbortSignal ends a whole answer that is still awaited', async t => {
  const { upstream, client } = await stack(t)
  upstream.script(silence())
  const departure = new AbortController()
  const refused = fault(client.chat.completions.create(hello, { signal: departure.signal }))
  const request = await upstream.received()
  departure.abort()
  t.ok((await refused) instanceof APIUserAbortError)
  t.equal((await request.closed).how, 'aborted')
})

t.test('models.list lists the aliases', async t => {
  const upstream = await startUpstream()
  t.teardown(() => upstream.close())
  const app = await build(t, {
    ...towards(upstream),
    models: Object.fromEntries(
      ['plain', 'vendor/model', 'vendor/model:free'].map(id => [id, { targets: [{ provider: 'up', model: 'm' }] }])
    )
  })
  const url = await app.listen({ host: '127.0.0.1', port: 0 })
  const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: 'not-needed', maxRetries: 0 })

  await t.test('in their order, with all fields of a model', async t => {
    const { data, object } = await client.models.list()
    t.equal(object, 'list')
    t.same(
      data.map(model => model.id),
      ['plain', 'vendor/model', 'vendor/model:free']
    )
    t.match(data[0], { object: 'model', created: Number, owned_by: 'fastify-model-gateway' })
  })

  for (const id of ['plain', 'vendor/model', 'vendor/model:free']) {
    await t.test(`models.retrieve finds ${id}, and create reaches it`, async t => {
      t.match(await client.models.retrieve(id), { id, object: 'model' })
      t.equal((await client.chat.completions.create({ ...hello, model: id })).choices[0]?.message.content, 'Hello')
    })
  }

  await t.test('models.retrieve refuses an unknown one with model_not_found', async t => {
    await t.rejects(client.models.retrieve('vendor/other'), {
      status: 404,
      code: 'model_not_found',
      param: 'model',
      type: 'invalid_request_error'
    })
  })
})

t.test('without aliases models.list names every model of every provider that lists its own', async t => {
  const app = await build(t, { providers: { echo: { type: 'echo' } } })
  const url = await app.listen({ host: '127.0.0.1', port: 0 })
  const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: 'not-needed', maxRetries: 0 })
  t.same(
    (await client.models.list()).data.map(model => model.id),
    ['echo/echo']
  )
  t.match(await client.models.retrieve('echo/anything:free'), { id: 'echo/anything:free', owned_by: 'echo' })
})

const errors = [
  { status: 400, kind: BadRequestError, code: 'context_length_exceeded', tries: 1 },
  { status: 422, kind: UnprocessableEntityError, code: 'odd', tries: 1 }
] as const
for (const { status, kind, code, tries } of errors) {
  t.test(`an upstream ${status} is a ${kind.name} with the upstream's words, tried ${tries} time`, async t => {
    const { upstream, client } = await stack(t)
    upstream.script(failure(status, { message: 'Too many words.', code, param: 'messages' }))
    const error = await fault(client.chat.completions.create(hello, { maxRetries: 2 }))
    t.ok(error instanceof kind)
    t.match(error, {
      status,
      code,
      param: 'messages',
      type: 'invalid_request_error',
      message: `${status} Too many words.`
    })
    t.equal((error as APIError).headers?.get('x-should-retry'), 'false')
    t.match((error as APIError).requestID, /^req_/)
    t.equal(upstream.requests.length, tries)
  })
}

t.test('an unknown model is a NotFoundError, asked once', async t => {
  const { upstream, client } = await stack(t)
  const error = await fault(client.chat.completions.create({ ...hello, model: 'nope' }, { maxRetries: 2 }))
  t.ok(error instanceof NotFoundError)
  t.match(error, { status: 404, code: 'model_not_found', param: 'model' })
  t.equal(upstream.requests.length, 0)
})

t.test('a wrong key is an AuthenticationError, shown once', async t => {
  const { client, url } = await stack(t, { tenants: { public: { keys: ['a-real-key-of-the-tenant'] } } })
  let tries = 0
  const wrong = client.withOptions({
    apiKey: 'wrong',
    maxRetries: 2,
    fetch: (...given) => {
      tries++
      return fetch(...given)
    }
  })
  const error = await fault(wrong.chat.completions.create(hello))
  t.ok(error instanceof AuthenticationError)
  t.match(error, { status: 401, code: 'invalid_api_key', type: 'invalid_request_error' })
  t.equal(tries, 1)
  const right = new OpenAI({ baseURL: `${url}/v1`, apiKey: 'a-real-key-of-the-tenant' })
  t.equal((await right.chat.completions.create(hello)).choices[0]?.message.content, 'Hello')
})

/** Notes how long the SDK waits before it tries again, and lets it wait no longer than a turn. */
function hurried(t: Test, ...asked: number[]): number[] {
  const waits: number[] = []
  const later = globalThis.setTimeout
  const hurry = mock.method(globalThis, 'setTimeout', (callback: () => void, ms = 0, ...rest: []) => {
    // Its own delays are random, and thereby no whole numbers; nobody else has such timers here.
    if (!asked.includes(ms) && Number.isInteger(ms)) return later(callback, ms, ...rest)
    waits.push(ms)
    return later(callback, 0, ...rest)
  })
  t.teardown(() => hurry.mock.restore())
  return waits
}

t.test(
  'a 429 of the upstream is told with the seconds that it asks for, and the upstream is left alone until then',
  async t => {
    const { upstream, client } = await stack(t)
    const waits = hurried(t, 7_000)
    upstream.script(failure(429, {}, { headers: { 'retry-after': '7' } }), json(completion({ content: 'too early' })))
    const error = await fault(client.chat.completions.create(hello, { maxRetries: 2 }))
    t.match(error, { status: 429, code: 'upstream_rate_limited' })
    t.same(waits, [7_000, 7_000])
    t.equal(upstream.requests.length, 1)
  }
)

t.test('a 429 of the upstream is tried again after the milliseconds that it asks for', async t => {
  const { upstream, client } = await stack(t)
  const waits = hurried(t, 123)
  upstream.script(failure(429, {}, { headers: { 'retry-after-ms': '123' } }), json(completion()))
  await client.chat.completions.create(hello, { maxRetries: 2 })
  t.same(waits, [123])
})

t.test(
  'a 429 that stays is a RateLimitError after all tries, in our words, and not each asks the upstream',
  async t => {
    const { upstream, client } = await stack(t)
    hurried(t)
    upstream.script(failure(429, { message: 'for org-secret', code: 'rate_limit_exceeded' }))
    const error = await fault(client.chat.completions.create(hello, { maxRetries: 2 }))
    t.ok(error instanceof RateLimitError)
    t.match(error, { status: 429, code: 'upstream_rate_limited', type: 'rate_limit_error' })
    t.notMatch((error as APIError).message, /org-secret/)
    t.equal((error as APIError).headers?.get('x-should-retry'), null)
    // The second came too early and was told to wait for a second.
    t.equal(upstream.requests.length, 2)
  }
)

for (const script of [failure(500), failure(503), failure(529), reset()] as const) {
  const what = script.ending === 'reset' ? 'a connection that breaks' : `an upstream ${script.status}`
  t.test(`${what} is tried again by the SDK`, async t => {
    const { upstream, client } = await stack(t)
    hurried(t)
    upstream.script(script, script, json(completion({ content: 'third time' })))
    const answer = await client.chat.completions.create(hello, { maxRetries: 2 })
    t.equal(answer.choices[0]?.message.content, 'third time')
  })
}

t.test('a 5xx that stays is an InternalServerError after all tries', async t => {
  const { upstream, client } = await stack(t)
  hurried(t)
  upstream.script(failure(500))
  const error = await fault(client.chat.completions.create(hello, { maxRetries: 1 }))
  t.ok(error instanceof InternalServerError)
  t.match(error, { status: 502, code: 'upstream_error', type: 'server_error' })
  t.equal(upstream.requests.length, 2)
})

t.test('a refusal of our own key at the upstream is a 502 that quotes nothing', async t => {
  const { upstream, client } = await stack(t)
  upstream.script(failure(401, { message: 'Incorrect API key provided: sk-upstream-secret', code: 'invalid_api_key' }))
  const error = await fault(client.chat.completions.create(hello))
  t.match(error, { status: 502, code: 'upstream_error' })
  t.notMatch((error as APIError).message, /sk-upstream|Incorrect/)
})

t.test('an error before the first token of a stream is an ordinary one, and tried again', async t => {
  const { upstream, client } = await stack(t)
  hurried(t)
  const inside = sse([{ error: { message: 'busy', type: 'server_error', code: 503 } }], { done: false })
  upstream.script(inside, sse(chunks(words)))
  const message = await client.chat.completions.stream(hello, { maxRetries: 1 }).finalMessage()
  t.equal(message.content, words.join(''))
  t.equal(upstream.requests.length, 2)
})

t.test(
  'an error after the first token is an APIError without a status, with what came before it delivered',
  async t => {
    const { upstream, client } = await stack(t)
    upstream.script(
      sse([...chunks(words).slice(0, 3), { error: { message: 'it broke', type: 'server_error', code: 'boom' } }], {
        done: false
      })
    )
    let text = ''
    const stream = await client.chat.completions.create({ ...hello, stream: true }, { maxRetries: 2 })
    const reading = async () => {
      for await (const chunk of stream) text += chunk.choices[0]?.delta.content ?? ''
    }
    const error = await fault(reading())
    t.equal(text, 'Grüße aus')
    t.ok(error instanceof APIError)
    t.match(error, { status: undefined, code: 'upstream_error', type: 'server_error' })
    t.equal(upstream.requests.length, 1)
  }
)

t.test('a stream that breaks off is an error, not a short answer', async t => {
  const { upstream, client } = await stack(t)
  upstream.script(sse(chunks(words).slice(0, 4), { done: false }))
  await t.rejects(client.chat.completions.stream(hello).finalMessage(), {
    code: 'upstream_error',
    type: 'server_error'
  })
})

t.test("the SDK's time limit is the deadline of the call: the upstream request ends with it", async t => {
  const { upstream, app, client } = await stack(t)
  upstream.script(silence())
  const error = await fault(client.chat.completions.create(hello, { timeout: 1_000 }))
  // Both clocks run: whose word comes first is theirs to decide.
  t.ok(error instanceof APIConnectionTimeoutError || (error instanceof APIError && error.status === 504))
  t.equal((await upstream.requests[0]!.closed).how, 'aborted')
  t.equal(app.gateway.running, 0)
})

t.test('x-stainless-timeout reaches the kernel as a deadline in milliseconds', async t => {
  const upstream = await startUpstream()
  t.teardown(() => upstream.close())
  const app = await build(t, towards(upstream))
  const deadlines: Array<number | undefined> = []
  app.gateway.intercept('observe', (inference, next) => {
    deadlines.push(inference.deadline)
    return next(inference)
  })
  const url = await app.listen({ host: '127.0.0.1', port: 0 })
  const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: 'not-needed', maxRetries: 0 })
  await client.chat.completions.create(hello, { timeout: 30_000 })
  await client.chat.completions.create(hello, { timeout: 30_000, headers: { 'X-Stainless-Timeout': null } })
  await client.chat.completions.create(hello, { headers: { 'X-Stainless-Timeout': 'soon' } })
  t.same(deadlines, [30_000, undefined, undefined])
})

t.test('a stream request that the upstream answers slowly is held until its first token', async t => {
  const { upstream, client } = await stack(t)
  const door = gate()
  upstream.script(sse(chunks(words), { bodyDelay: door.promise }))
  let answered = false
  const opening = client.chat.completions.create({ ...hello, stream: true }).then(stream => {
    answered = true
    return stream
  })
  await upstream.received()
  t.equal(answered, false)
  door.open()
  let text = ''
  for await (const chunk of await opening) text += chunk.choices[0]?.delta.content ?? ''
  t.equal(text, words.join(''))
})
