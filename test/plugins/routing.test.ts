import t, { type Test } from 'tap'
import type { ModelOptions } from '../../plugins/routing/index.ts'
import type { ChatRequest } from '../../schemas/chat.ts'
import {
  detail,
  InvalidRequest,
  ModelNotFound,
  UpstreamError,
  UpstreamOverloaded,
  UpstreamRateLimited,
  UpstreamRejected,
  UpstreamTimeout
} from '../../schemas/errors.ts'
import { chunkFrames } from '../../schemas/frames.ts'
import type { Expense } from '../../schemas/gateway.ts'
import type { Send } from '../../schemas/provider.ts'
import { build, hello, towards } from '../helper.ts'
import { failure, gate, json, reset, seeded, startUpstream, turn, completion as wireCompletion } from '../upstream.ts'
import {
  ask,
  askStream,
  chunk,
  fails,
  feed,
  finish,
  type HostOptions,
  host,
  patient,
  reader,
  rejection,
  role,
  says,
  scripted,
  silent,
  streams,
  textOf,
  tokens,
  usageChunk
} from './kernel.ts'

/** An alias `test` with targets at the providers of these names, tried in this order. */
function inOrder(...names: string[]): HostOptions['routing'] {
  const targets = names.map(provider => ({ provider, model: `${provider}-model` }))
  return { models: { test: { targets, retries: 0 } }, random: () => 0 }
}

async function ready(t: Test, options: HostOptions) {
  const app = await host(t, options)
  await app.ready()
  const { gateway } = app
  return { gateway, run: (request: ChatRequest = ask) => gateway.complete(request, gateway.caller()) }
}

t.test('the registry', async t => {
  t.test('gives providers by name and lists them', async t => {
    const one = scripted('one')
    const two = scripted('two')
    const { gateway } = await ready(t, { providers: [one, two], routing: {} })
    t.equal(gateway.providers.get('two'), two)
    t.equal(gateway.providers.get('three'), undefined)
    t.strictSame(
      gateway.providers.list().map(provider => provider.name),
      ['one', 'two']
    )
  })

  t.test('refuses a name that is taken', async t => {
    const app = await host(t)
    t.throws(() => app.gateway.providers.register(scripted('up')), {
      message: "A provider named 'up' is registered already."
    })
  })

  t.test('refuses providers once the instance is ready', async t => {
    const { gateway } = await ready(t, {})
    t.throws(() => gateway.providers.register(scripted('late')), { message: /refused once the instance is ready/ })
  })
})

t.test('a name', async t => {
  t.test('is an alias, and the target is asked by its own model name', async t => {
    const up = scripted('up')
    const { run } = await ready(t, {
      providers: [up],
      routing: { models: { test: { targets: [{ provider: 'up', model: 'vendor/model-7' }] } } }
    })
    const { facts } = await run()
    t.equal(up.attempts[0]?.request.model, 'vendor/model-7')
    t.equal(facts.target?.model, 'vendor/model-7')
  })

  t.test('may hold slashes as an alias', async t => {
    const up = scripted('up')
    const models = { 'org/model/v1': { targets: [{ provider: 'up', model: 'm' }] } }
    const { run } = await ready(t, { providers: [up], routing: { models } })
    await run({ ...ask, model: 'org/model/v1' })
    t.equal(up.attempts[0]?.request.model, 'm')
  })

  t.test('of the form provider/model works without aliases', async t => {
    const up = scripted('up')
    const { run } = await ready(t, { providers: [up], routing: {} })
    await run({ ...ask, model: 'up/some-model' })
    t.equal(up.attempts[0]?.request.model, 'some-model')
  })

  t.test('of the form provider/model keeps the slashes of the model', async t => {
    const up = scripted('up')
    const { run } = await ready(t, { providers: [up], routing: {} })
    await run({ ...ask, model: 'up/anthropic/claude:beta' })
    t.equal(up.attempts[0]?.request.model, 'anthropic/claude:beta')
  })

  t.test('of the form provider/model is unknown where there are aliases', async t => {
    const { run } = await ready(t, {})
    t.type(await rejection(run({ ...ask, model: 'up/m' })), ModelNotFound)
  })

  const unknown = [
    'nowhere',
    '/m',
    'up/',
    'up',
    'other/m',
    'up/a b',
    'up/\r\nx: y',
    'up/é',
    '',
    '__proto__',
    'toString'
  ]
  for (const model of unknown) {
    t.test(`${JSON.stringify(model)} is unknown`, async t => {
      const up = scripted('up')
      const { run } = await ready(t, { providers: [up], routing: {} })
      const error = await rejection(run({ ...ask, model }))
      t.type(error, ModelNotFound)
      t.match(error, { statusCode: 404, wire: 'model_not_found', param: 'model' })
      t.equal(up.attempts.length, 0)
    })
  }

  for (const model of ['__proto__', 'constructor', 'toString', 'nowhere']) {
    t.test(`${model} is unknown where there are aliases`, async t => {
      const { run } = await ready(t, {})
      t.type(await rejection(run({ ...ask, model })), ModelNotFound)
    })
  }

  t.test('that is missing means the default model', async t => {
    const targets = (model: string) => ({ targets: [{ provider: 'up', model }] })
    const up = scripted('up')
    const routing = { models: { test: targets('a'), other: targets('b') }, defaultModel: 'other' }
    const { run } = await ready(t, { providers: [up], routing })
    await run({ ...ask, model: undefined })
    await run({ ...ask, model: null })
    t.strictSame(
      up.attempts.map(({ request }) => request.model),
      ['b', 'b']
    )
  })

  t.test('that is missing is a fault of the request without a default model', async t => {
    const { run } = await ready(t, {})
    for (const model of [undefined, null]) {
      const error = await rejection(run({ ...ask, model }))
      t.type(error, InvalidRequest)
      t.match(error, { statusCode: 400, param: 'model' })
    }
  })
})

t.test('a task', async t => {
  const targets = (model: string) => ({ targets: [{ provider: 'up', model }] })
  const models = { small: targets('s'), large: targets('l'), usual: targets('u') }
  const routing = { models, tasks: { vitals: 'small', essay: 'large' }, defaultModel: 'usual' }

  t.test('picks its model', async t => {
    const up = scripted('up')
    const { run } = await ready(t, { providers: [up], routing })
    await run({ messages: ask.messages, task: 'essay' })
    await run({ messages: ask.messages, task: 'vitals', model: null })
    t.strictSame(
      up.attempts.map(({ request }) => request.model),
      ['l', 's']
    )
  })

  t.test('does not overrule the model of a request', async t => {
    const up = scripted('up')
    const { run } = await ready(t, { providers: [up], routing })
    await run({ ...ask, model: 'small', task: 'essay' })
    t.equal(up.attempts[0]?.request.model, 's')
  })

  t.test('of null is none', async t => {
    const up = scripted('up')
    const { run } = await ready(t, { providers: [up], routing })
    await run({ messages: ask.messages, task: null })
    t.equal(up.attempts[0]?.request.model, 'u')
  })

  for (const task of ['nonsense', '__proto__', 'constructor']) {
    t.test(`${task}, which is not configured, is a fault of the request that lists the known ones`, async t => {
      const { run } = await ready(t, { routing })
      const error = await rejection(run({ messages: ask.messages, task }))
      t.type(error, InvalidRequest)
      t.match(error, { statusCode: 400, param: 'task', message: /configured tasks: vitals, essay/ })
    })
  }
})

t.test('weights', async t => {
  /** Which target each of these draws picks first. */
  async function picks(t: Test, weights: number[], random: () => number, count: number): Promise<string[]> {
    const up = scripted('up')
    const targets = weights.map((weight, index) => ({ provider: 'up', model: 'abcdef'[index]!, weight }))
    const { run } = await ready(t, { providers: [up], routing: { models: { test: { targets } }, random } })
    for (let call = 0; call < count; call++) await run()
    return up.attempts.map(({ request }) => request.model ?? '')
  }

  function draws(...numbers: number[]): () => number {
    return () => numbers.shift() ?? 0
  }

  t.test('cut the numbers from 0 to 1 into shares', async t => {
    // Each call draws once for every target but the last; only the first draw decides.
    const numbers = [0, 0, 0.2499, 0, 0.25, 0, 0.4999, 0, 0.5, 0, 0.9999, 0]
    t.strictSame(await picks(t, [1, 1, 2], draws(...numbers), 6), ['a', 'a', 'b', 'b', 'c', 'c'])
  })

  t.test('give the same draws for the same seed', async t => {
    const once = await picks(t, [3, 1, 2], seeded(7), 100)
    t.strictSame(await picks(t, [3, 1, 2], seeded(7), 100), once)
    t.equal(new Set(once).size, 3)
  })

  t.test('are kept within 2 % over 20,000 draws', async t => {
    const drawn = await picks(t, [3, 1, 6], seeded(42), 20_000)
    for (const [model, share] of Object.entries({ a: 0.3, b: 0.1, c: 0.6 })) {
      const found = drawn.filter(other => other === model).length / drawn.length
      t.ok(Math.abs(found - share) < 0.02 * share + 0.002, `${model}: ${found} of ${share}`)
    }
  })

  t.test('are 1 where none is given', async t => {
    const up = scripted('up')
    const targets = [
      { provider: 'up', model: 'a' },
      { provider: 'up', model: 'b', weight: 3 }
    ]
    const routing = { models: { test: { targets } }, random: draws(0.24, 0.26) }
    const { run } = await ready(t, { providers: [up], routing })
    await run()
    await run()
    t.strictSame(
      up.attempts.map(({ request }) => request.model),
      ['a', 'b']
    )
  })

  t.test('also decide among the targets that are left after a failure', async t => {
    const up = scripted('up', fails(new UpstreamError('broken')))
    const targets = [1, 1, 2].map((weight, index) => ({ provider: 'up', model: 'abc'[index]!, weight }))
    const { run } = await ready(t, {
      providers: [up],
      routing: { models: { test: { targets, retries: 0 } }, random: draws(0.3, 0.5) }
    })
    await rejection(run())
    t.strictSame(
      up.attempts.map(({ request }) => request.model),
      ['b', 'c', 'a']
    )
  })

  for (const random of [0, 0.5, 1 - 2 ** -53]) {
    t.test(`of 0 are tried last at a draw of ${random}`, async t => {
      const up = scripted('up', fails(new UpstreamError('broken')))
      // At the highest draw the rounded sum of these lies above what their subtraction reaches.
      const targets = [0, 0.1, 0.2, 0.3].map((weight, index) => ({ provider: 'up', model: 'abcd'[index]!, weight }))
      const { run } = await ready(t, {
        providers: [up],
        routing: { models: { test: { targets, retries: 0 } }, random: () => random }
      })
      await rejection(run())
      t.equal(up.attempts.length, 4)
      t.equal(up.attempts[3]?.request.model, 'a')
    })
  }

  t.test('that are all 0 keep the order of the configuration', async t => {
    t.strictSame(await picks(t, [0, 0], seeded(1), 5), ['a', 'a', 'a', 'a', 'a'])
  })
})

t.test('dispatch', async t => {
  const mended: Record<string, Send> = {
    'a rate limit': fails(new UpstreamRateLimited()),
    'a failure': fails(new UpstreamError('broken')),
    'an overload': fails(new UpstreamOverloaded()),
    'a timeout': fails(new UpstreamTimeout('no answer within 5 ms.')),
    'a stream without a token': streams(chunkFrames([role()])),
    'a stream without anything': streams(),
    'a stream that breaks before its first token': attempt => {
      const source = feed(chunkFrames([role()]))
      source.fail(new UpstreamError('the connection broke.'))
      return source.send(attempt)
    }
  }
  for (const [what, send] of Object.entries(mended)) {
    t.test(`moves on to another target after ${what}`, async t => {
      const one = scripted('one', send)
      const two = scripted('two', says('from two'))
      const { run } = await ready(t, { providers: [one, two], routing: inOrder('one', 'two') })
      const answer = await run(askStream)
      t.equal(await textOf(answer), 'from two')
      t.equal(one.attempts.length, 1)
      t.match(answer.facts, { attempts: 2, target: { model: 'two-model' } })
      t.strictSame([one.attempts[0]?.number, two.attempts[0]?.number], [1, 2])
    })
  }

  for (const status of [400, 409, 413, 422]) {
    t.test(`does not move on after a ${status} of the provider`, async t => {
      const fault = detail(new UpstreamRejected('No.'), { statusCode: status })
      const two = scripted('two')
      const { run } = await ready(t, {
        providers: [scripted('one', fails(fault)), two],
        routing: inOrder('one', 'two')
      })
      t.equal(await rejection(run()), fault)
      t.equal(two.attempts.length, 0)
    })
  }

  for (const [what, fault] of [
    ['a fault that is not the provider’s', new TypeError('a bug of ours')],
    ['something that is no error', 'text'],
    ['an unknown model', new ModelNotFound('x')]
  ] as const) {
    t.test(`does not move on after ${what}`, async t => {
      const two = scripted('two')
      const { run } = await ready(t, {
        providers: [scripted('one', fails(fault)), two],
        routing: inOrder('one', 'two')
      })
      t.equal(await rejection(run()), fault as Error)
      t.equal(two.attempts.length, 0)
    })
  }

  t.test('does not move on after the first token', async t => {
    const source = feed(chunkFrames([role()]), chunkFrames([chunk('x')]))
    const two = scripted('two')
    const { run } = await ready(t, {
      providers: [scripted('one', source.send), two],
      routing: inOrder('one', 'two')
    })
    const frames = reader(await run(askStream))
    const fault = new UpstreamError('broken')
    source.fail(fault)
    await frames.next()
    await frames.next()
    t.equal(await rejection(frames.next()), fault)
    t.equal(two.attempts.length, 0)
  })

  t.test('does not move on for a caller that left', async t => {
    const two = scripted('two')
    const { gateway } = await ready(t, {
      providers: [
        scripted(
          'one',
          ({ signal }) =>
            new Promise((_, reject) => {
              signal.addEventListener('abort', () => reject(new UpstreamError('the connection broke.')))
            })
        ),
        two
      ],
      routing: inOrder('one', 'two')
    })
    const leaving = new AbortController()
    const answering = rejection(gateway.complete(ask, gateway.caller({ signal: leaving.signal })))
    await turn()
    leaving.abort()
    t.match(await answering, { statusCode: 499 })
    await turn()
    t.equal(two.attempts.length, 0)
  })

  t.test('gives the last error when every target fails', async t => {
    const last = new UpstreamOverloaded()
    const { run } = await ready(t, {
      providers: [
        scripted('one', fails(new UpstreamError('broken'))),
        scripted('two', fails(new UpstreamRateLimited())),
        scripted('three', fails(last))
      ],
      routing: inOrder('one', 'two', 'three')
    })
    t.equal(await rejection(run()), last)
  })

  t.test('gives frames from the first on, however many came before the first token', async t => {
    const sent = [
      chunkFrames([]),
      chunkFrames([role()]),
      chunkFrames([usageChunk(tokens(9, 0))]),
      chunkFrames([chunk('x')]),
      chunkFrames([finish()])
    ]
    const { run } = await ready(t, { providers: [scripted('up', streams(...sent))] })
    const answer = await run({ ...askStream, stream_options: { include_usage: true } })
    const got = []
    if (answer.stream) for await (const frames of answer.frames) got.push(frames)
    t.equal(got.length, sent.length)
    t.ok(got.every((frames, index) => frames === sent[index]))
  })

  t.test('waits for the first token however long comments come, and keeps only so many of them', async t => {
    const comments = { ...chunkFrames([]), raw: Buffer.alloc(200_000) }
    const sent = [...Array.from({ length: 50 }, () => comments), chunkFrames([chunk('x'), finish()])]
    const { run } = await ready(t, { providers: [scripted('up', streams(...sent))] })
    const answer = await run(askStream)
    const got: number[] = []
    if (answer.stream) for await (const frames of answer.frames) got.push(frames.raw?.length ?? 0)
    t.ok(got.reduce((sum, size) => sum + size, 0) < 1_000_000, String(got))
    t.equal(got.at(-1), 0, 'what has data is kept')
  })

  t.test('waits no longer for the first token of a stream that says too much without one', async t => {
    const much = { ...chunkFrames([role()]), raw: Buffer.alloc(200_000) }
    const source = feed(...Array.from({ length: 50 }, () => much))
    const { run } = await ready(t, { providers: [scripted('up', source.send)] })
    const frames = reader(await run(askStream))
    t.ok(source.reads < 10, `${source.reads} reads`)
    await frames.return()
  })

  t.test('waits for the first token before it answers', async t => {
    const source = feed(chunkFrames([role()]))
    const { run } = await ready(t, { providers: [scripted('up', source.send)] })
    let answered = false
    const answering = run(askStream).then(answer => {
      answered = true
      return answer
    })
    await turn()
    t.notOk(answered)
    source.push(chunkFrames([chunk('x')]))
    await reader(await answering).return()
  })

  t.test('gives an attempt the deadlines of its route, the defaults where none is named', async t => {
    const up = scripted('up')
    const model: ModelOptions = { targets: [{ provider: 'up', model: 'm' }], timeouts: { idle: 7, total: 8_000 } }
    const { run } = await ready(t, { providers: [up], routing: { models: { test: model } } })
    await run()
    t.strictSame(up.attempts[0]?.timeouts, {
      connect: 5_000,
      headers: 60_000,
      firstToken: 60_000,
      idle: 7,
      total: 8_000
    })
  })

  t.test('never sends fields of our own, and all others', async t => {
    const up = scripted('up')
    const { run } = await ready(t, { providers: [up], routing: { ...inOrder('up'), tasks: { x: 'test' } } })
    const request = { ...ask, tenant: 'acme', task: 'x', response_schema: {}, coerce: true, seed: 7, future: { a: 1 } }
    await run(request)
    t.strictSame(up.attempts[0]?.request, { ...ask, model: 'up-model', seed: 7, future: { a: 1 } })
    t.equal(request.tenant, 'acme', 'the request of the caller is not touched')
  })
})

t.test('the output cap of a model', async t => {
  async function sent(t: Test, wanted: Partial<ChatRequest>, cap: number | null = 100) {
    const up = scripted('up')
    const model = { targets: [{ provider: 'up', model: 'm' }], maxOutputTokens: cap ?? undefined }
    const { run } = await ready(t, { providers: [up], routing: { models: { test: model } } })
    await run({ ...ask, ...wanted })
    const { max_tokens, max_completion_tokens } = up.attempts[0]!.request
    return { max_tokens, max_completion_tokens }
  }

  const cases: Array<[string, Partial<ChatRequest>, number | undefined, number | undefined]> = [
    ['is forced on a request without one', {}, undefined, 100],
    ['is forced on a request whose fields are null', { max_tokens: null, max_completion_tokens: null }, undefined, 100],
    ['is forced on a larger max_tokens', { max_tokens: 101 }, undefined, 100],
    ['is forced on a larger max_completion_tokens', { max_completion_tokens: 5_000 }, undefined, 100],
    ['leaves a smaller max_tokens', { max_tokens: 99 }, 99, undefined],
    ['leaves an equal max_tokens', { max_tokens: 100 }, 100, undefined],
    ['leaves a smaller max_completion_tokens', { max_completion_tokens: 99 }, undefined, 99],
    ['lets no larger max_tokens pass beside a smaller max_completion_tokens', both(50, 5_000), undefined, 50],
    ['takes the newer of two fields', both(5_000, 50), undefined, 100],
    ['takes max_tokens where the newer field is null', { max_completion_tokens: null, max_tokens: 50 }, 50, undefined]
  ]
  for (const [what, wanted, older, newer] of cases) {
    t.test(what, async t => {
      const { max_tokens, max_completion_tokens } = await sent(t, wanted)
      t.strictSame([max_tokens ?? undefined, max_completion_tokens ?? undefined], [older, newer])
    })
  }

  t.test('is not there where none is configured', async t => {
    t.strictSame(await sent(t, { max_tokens: 5_000_000 }, null), {
      max_tokens: 5_000_000,
      max_completion_tokens: undefined
    })
  })

  function both(newer: number, older: number): Partial<ChatRequest> {
    return { max_completion_tokens: newer, max_tokens: older }
  }
})

t.test('a target whose provider is not there', async t => {
  t.test('is left out and logged', async t => {
    const lines: string[] = []
    const up = scripted('up')
    const { run } = await ready(t, {
      providers: [up],
      routing: inOrder('off', 'up'),
      log: line => lines.push(line)
    })
    const { facts } = await run()
    t.equal(facts.attempts, 1)
    t.equal(up.attempts.length, 1)
    t.match(lines, [/"provider":"off".*a target is left out/])
  })

  t.test('makes its model fail as a provider would where there is no other', async t => {
    const { run } = await ready(t, { routing: inOrder('off'), log: () => {} })
    const error = await rejection(run())
    t.type(error, UpstreamError)
    t.match(error, { statusCode: 502, message: /every target of this model is switched off/ })
  })

  t.test('is what a switched-off provider of the configuration makes', async t => {
    const upstream = await startUpstream()
    t.teardown(() => upstream.close())
    const app = await build(t, {
      providers: {
        up: { type: 'openai-compatible', baseUrl: upstream.url },
        off: { type: 'openai-compatible', baseUrl: 'http://127.0.0.1:1', enabled: false }
      },
      models: {
        test: {
          targets: [
            { provider: 'off', model: 'm', weight: 1_000_000 },
            { provider: 'up', model: 'm' }
          ]
        }
      }
    })
    const response = await app.inject({ method: 'POST', url: '/v1/chat/completions', payload: hello })
    t.equal(response.statusCode, 200)
    t.equal(response.headers['x-gateway-provider'], 'up')
    t.equal(response.headers['x-gateway-attempts'], '1')
  })

  t.test('does not hide a model name that no header could carry', async t => {
    const routing = { models: { test: { targets: [{ provider: 'up', model: 'a\r\nb: c' }] } } }
    const app = await host(t, { routing })
    t.match(await rejection(app.ready() as unknown as Promise<void>), {
      message: /^models\.test: .*not a model name/s
    })
  })
})

t.test('over the network, dispatch moves on', async t => {
  const broken = {
    'a 500': failure(500),
    'a 503': failure(503),
    'a 429': failure(429),
    'a reset connection': reset()
  }
  for (const [what, script] of Object.entries(broken)) {
    t.test(`after ${what}`, async t => {
      const one = await startUpstream({ script })
      const two = await startUpstream({ script: json(wireCompletion({ content: 'from two' })) })
      t.teardown(() => Promise.all([one.close(), two.close()]))
      const app = await build(t, pair(one.url, two.url))
      const response = await app.inject({ method: 'POST', url: '/v1/chat/completions', payload: hello })
      t.equal(response.statusCode, 200, response.body)
      t.equal(response.json().choices[0].message.content, 'from two')
      t.equal(response.headers['x-gateway-attempts'], '2')
      t.equal(one.requests.length, 1)
    })
  }

  t.test('after a refused connection', async t => {
    const gone = await startUpstream()
    await gone.close()
    const two = await startUpstream()
    t.teardown(() => two.close())
    const app = await build(t, pair(gone.url, two.url))
    const response = await app.inject({ method: 'POST', url: '/v1/chat/completions', payload: hello })
    t.equal(response.statusCode, 200, response.body)
    t.equal(response.headers['x-gateway-attempts'], '2')
  })

  for (const status of [400, 409, 413, 422]) {
    t.test(`but not after a ${status}`, async t => {
      const one = await startUpstream({ script: failure(status, { message: 'Theirs.', code: 'theirs' }) })
      const two = await startUpstream()
      t.teardown(() => Promise.all([one.close(), two.close()]))
      const app = await build(t, pair(one.url, two.url))
      const response = await app.inject({ method: 'POST', url: '/v1/chat/completions', payload: hello })
      t.equal(response.statusCode, status)
      t.match(response.json(), { error: { message: 'Theirs.', code: 'theirs' } })
      t.equal(two.requests.length, 0)
    })
  }

  /** The second is so light that it never comes first. */
  function pair(one: string, two: string) {
    return {
      providers: {
        one: { type: 'openai-compatible' as const, baseUrl: one },
        two: { type: 'openai-compatible' as const, baseUrl: two }
      },
      models: {
        test: {
          targets: [
            { provider: 'one', model: 'm' },
            { provider: 'two', model: 'm', weight: 0 }
          ]
        }
      }
    }
  }
})

t.test('attempt layers', async t => {
  t.test('wrap every attempt, in the order of their registration', async t => {
    const app = await host(t, {
      providers: [scripted('one', fails(new UpstreamError('broken'))), scripted('two')],
      routing: inOrder('one', 'two')
    })
    const passed: string[] = []
    for (const name of ['outer', 'inner']) {
      app.gateway.interceptAttempt(async (attempt, next) => {
        passed.push(`${name} ${attempt.number} ${attempt.target.provider.name}`)
        try {
          return await next(attempt)
        } finally {
          passed.push(`${name} out`)
        }
      })
    }
    await app.ready()
    await app.gateway.complete(ask, app.gateway.caller())
    t.strictSame(passed, [
      'outer 1 one',
      'inner 1 one',
      'inner out',
      'outer out',
      'outer 2 two',
      'inner 2 two',
      'inner out',
      'outer out'
    ])
  })

  t.test('that throw at once count as a failed attempt', async t => {
    const app = await host(t)
    const thrown = new Error('at once')
    app.gateway.interceptAttempt(() => {
      throw thrown
    })
    await app.ready()
    t.equal(await rejection(app.gateway.complete(ask, app.gateway.caller())), thrown)
    t.equal(app.gateway.running, 0)
  })

  t.test('write headers that arrive upstream', async t => {
    const upstream = await startUpstream()
    t.teardown(() => upstream.close())
    const app = await build(t, towards(upstream))
    app.gateway.interceptAttempt((attempt, next) => {
      attempt.headers['traceparent'] = '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01'
      attempt.headers['x-attempt'] = String(attempt.number)
      return next(attempt)
    })
    await app.ready()
    await app.gateway.complete(hello, app.gateway.caller())
    t.match(upstream.requests[0]?.headers, {
      traceparent: '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01',
      'x-attempt': '1',
      authorization: 'Bearer sk-upstream-secret'
    })
  })

  t.test('know the inference that they belong to', async t => {
    const app = await host(t)
    const ids: string[] = []
    app.gateway.interceptAttempt((attempt, next) => {
      ids.push(attempt.inference.id)
      return next(attempt)
    })
    await app.ready()
    const caller = app.gateway.caller()
    await app.gateway.complete(ask, caller)
    t.strictSame(ids, [caller.id])
  })
})

t.test('the accountant', async t => {
  /** A host whose books note each line, and what has become of it by the time that the call has ended. */
  async function books(t: Test, options: HostOptions) {
    const app = await host(t, options)
    const lines: Expense[] = []
    const order: string[] = []
    app.gateway.accountWith({
      open: expense => void lines.push(expense),
      cost(_target, usage) {
        order.push('line')
        return usage.input + usage.output
      }
    })
    app.gateway.intercept('budget', (inference, next) => {
      inference.onSettled(() => {
        order.push('call')
        t.notOk(
          inference.expenses.some(({ status }) => status === 'open'),
          'every line has ended before anybody hears of the end of the call'
        )
      })
      return next(inference)
    })
    await app.ready()
    const { gateway } = app
    return {
      lines,
      order,
      gateway,
      run: (request: ChatRequest = ask, signal?: AbortSignal) => gateway.complete(request, gateway.caller({ signal })),
      /** What became of each line. */
      closed: () => lines.map(({ target, status }) => [target.provider.name, status])
    }
  }

  const reported = { input: 3, output: 2, source: 'reported' }

  t.test('gets one line for a whole answer, settled with its usage before the call', async t => {
    const { run, lines, closed, order } = await books(t, { providers: [scripted('up', says('x', tokens(3, 2)))] })
    await run()
    t.strictSame(closed(), [['up', 'settled']])
    t.match(lines[0]?.usage, reported)
    t.strictSame(order, ['line', 'call'])
    t.equal(lines[0]?.cost, 5)
  })

  t.test('gets one line for a stream, settled with its usage at the end, before the call', async t => {
    const { run, lines, closed, order } = await books(t, { providers: [scripted('up', says('x', tokens(3, 2)))] })
    const frames = reader(await run(askStream))
    while (!(await frames.next()).done) t.strictSame(closed(), [['up', 'open']])
    t.strictSame(closed(), [['up', 'settled']])
    t.match(lines[0]?.usage, reported)
    t.strictSame(order, ['line', 'call'])
  })

  t.test('gets one line for a failure', async t => {
    const fault = new UpstreamError('broken')
    const { run, lines, closed, order } = await books(t, { providers: [scripted('up', fails(fault))] })
    await rejection(run())
    t.strictSame(closed(), [['up', 'failed']])
    t.equal(lines[0]?.error, fault)
    t.match(lines[0]?.usage, { input: 0, output: 0, source: 'estimated' })
    t.equal(lines[0]?.cost, 0)
    t.strictSame(order, ['call'], 'nothing was used, so nobody is asked what it costs')
  })

  t.test('finds out that an answer cannot be read, and another target is asked', async t => {
    const unreadable: Send = async () => ({
      stream: false,
      raw: Buffer.from('{ truncated }'),
      get body(): never {
        throw new UpstreamError('its answer is not JSON.')
      }
    })
    const { run } = await books(t, {
      providers: [scripted('one', unreadable), scripted('two', says('from two'))],
      routing: inOrder('one', 'two')
    })
    const answer = await run()
    t.equal(await textOf(answer), 'from two')
    t.equal(answer.facts.attempts, 2)
  })

  t.test('gets one line for each target that was tried', async t => {
    const { run, closed } = await books(t, {
      providers: [scripted('one', fails(new UpstreamRateLimited())), scripted('two')],
      routing: inOrder('one', 'two')
    })
    await run()
    t.strictSame(closed(), [
      ['one', 'failed'],
      ['two', 'settled']
    ])
  })

  t.test('gets a line with the usage that came before a stream failed without a token', async t => {
    const source = feed(chunkFrames([usageChunk(tokens(9, 0))]))
    source.fail(new UpstreamError('broken'))
    const { run, lines, closed } = await books(t, {
      providers: [scripted('one', source.send), scripted('two', says('x', tokens(3, 2)))],
      routing: inOrder('one', 'two')
    })
    await textOf(await run(askStream))
    t.strictSame(closed(), [
      ['one', 'failed'],
      ['two', 'settled']
    ])
    t.match(lines[0]?.usage, { input: 9, source: 'reported' })
    t.match(lines[1]?.usage, reported)
  })

  t.test('gets one line for a stream that fails in the middle', async t => {
    const source = feed(chunkFrames([chunk('x')]), chunkFrames([{ ...chunk('y'), usage: tokens(3, 2) }]))
    const { run, lines, closed, order } = await books(t, { providers: [scripted('up', source.send)] })
    const frames = reader(await run(askStream))
    await frames.next()
    await frames.next()
    const fault = new UpstreamError('broken')
    source.fail(fault)
    await rejection(frames.next())
    t.strictSame(closed(), [['up', 'failed']])
    t.match(lines[0], { error: fault, usage: reported })
    t.strictSame(order, ['line', 'call'])
  })

  t.test('gets a failed line for a stream that ends too early', async t => {
    const { run, lines, closed } = await books(t, { providers: [scripted('up', streams(chunkFrames([chunk('x')])))] })
    await rejection(run(askStream).then(textOf))
    t.strictSame(closed(), [['up', 'failed']])
    t.type(lines[0]?.error, UpstreamError)
  })

  t.test('gets an interrupted line, with the reason, when the reader breaks off', async t => {
    const source = feed(chunkFrames([{ ...chunk('x'), usage: tokens(3, 2) }]))
    const { run, lines, closed, order } = await books(t, { providers: [scripted('up', source.send)] })
    const frames = reader(await run(askStream))
    await frames.next()
    await frames.return()
    t.strictSame(closed(), [['up', 'interrupted']])
    t.match(lines[0], { error: { wire: 'cancelled' }, usage: reported })
    t.strictSame(order, ['line', 'call'])
  })

  t.test('gets an interrupted line, with the reason, when the caller leaves', async t => {
    const source = feed(chunkFrames([chunk('x')]))
    const { run, lines, closed, order } = await books(t, { providers: [scripted('up', source.send)] })
    const leaving = new AbortController()
    const frames = reader(await run(askStream, leaving.signal))
    await frames.next()
    const reading = rejection(frames.next())
    leaving.abort()
    await reading
    await turn()
    t.strictSame(closed(), [['up', 'interrupted']])
    t.match(lines[0], { error: { wire: 'cancelled' } })
    t.strictSame(order, ['line', 'call'])
  })

  t.test('gets an interrupted line when the caller leaves and nobody ever read', async t => {
    const source = feed(chunkFrames([chunk('x')]))
    const { run, closed, order } = await books(t, { providers: [scripted('up', source.send)] })
    const leaving = new AbortController()
    await run(askStream, leaving.signal)
    leaving.abort()
    await turn()
    t.strictSame(closed(), [['up', 'interrupted']])
    t.strictSame(order, ['line', 'call'])
  })

  for (const request of [ask, askStream]) {
    t.test(`gets an interrupted line when the caller leaves before the answer, stream: ${request.stream}`, async t => {
      const { run, closed } = await books(t, { providers: [scripted('up', patient)] })
      const leaving = new AbortController()
      const answering = rejection(run(request, leaving.signal))
      await turn()
      leaving.abort()
      await answering
      await turn()
      t.strictSame(closed(), [['up', 'interrupted']])
    })
  }

  t.test('gets an interrupted line when a stream comes after its caller has left', async t => {
    const { promise, open } = gate()
    const up = scripted('up', async attempt => {
      await promise
      return says('late')(attempt)
    })
    const { run, closed } = await books(t, { providers: [up] })
    const leaving = new AbortController()
    const answering = rejection(run(askStream, leaving.signal))
    await turn()
    leaving.abort()
    await answering
    open()
    await turn()
    t.strictSame(closed(), [['up', 'interrupted']])
  })

  t.test('gets one line per call of next, each with its own usage', async t => {
    const up = scripted('up', says('one', tokens(1, 1)), says('two', tokens(2, 2)))
    const app = await host(t, { providers: [up] })
    const lines: Expense[] = []
    app.gateway.accountWith({ open: expense => void lines.push(expense) })
    app.gateway.intercept('shape', async (inference, next) => {
      const first = await next(inference)
      if (first.stream) for await (const _ of first.frames);
      return next(inference)
    })
    await app.ready()
    await textOf(await app.gateway.complete(askStream, app.gateway.caller()))
    t.match(lines, [
      { status: 'settled', usage: { input: 1, output: 1 } },
      { status: 'settled', usage: { input: 2, output: 2 } }
    ])
  })

  t.test('that refuses the first attempt ends the call with its refusal', async t => {
    const up = scripted('up')
    const app = await host(t, { providers: [up] })
    const refusal = new UpstreamRateLimited()
    app.gateway.accountWith({ open: async () => Promise.reject(refusal) })
    await app.ready()
    t.equal(await rejection(app.gateway.complete(ask, app.gateway.caller())), refusal)
    t.equal(up.attempts.length, 0)
  })

  t.test('that refuses a further attempt ends the call with the error of the last one', async t => {
    const fault = new UpstreamError('broken')
    const two = scripted('two')
    const app = await host(t, { providers: [scripted('one', fails(fault)), two], routing: inOrder('one', 'two') })
    let opened = 0
    app.gateway.accountWith({
      async open() {
        if (++opened > 1) throw new Error('no money left')
      }
    })
    await app.ready()
    t.equal(await rejection(app.gateway.complete(ask, app.gateway.caller())), fault)
    t.equal(two.attempts.length, 0)
  })

  t.test('is asked before the provider', async t => {
    const { promise, open } = gate()
    const up = scripted('up', silent)
    const app = await host(t, { providers: [up] })
    app.gateway.accountWith({ open: () => promise })
    await app.ready()
    const leaving = new AbortController()
    const answering = rejection(app.gateway.complete(ask, app.gateway.caller({ signal: leaving.signal })))
    await turn()
    t.equal(up.attempts.length, 0)
    open()
    await turn()
    t.equal(up.attempts.length, 1)
    leaving.abort()
    await answering
  })
})
