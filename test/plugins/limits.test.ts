import type { FastifyInstance } from 'fastify'
import fp from 'fastify-plugin'
import OpenAI from 'openai'
import t, { type Test } from 'tap'
import chatCompletions from '../../plugins/chat-completions/index.ts'
import http from '../../plugins/http/index.ts'
import limits from '../../plugins/limits/index.ts'
import { createMemory } from '../../plugins/limits/memory.ts'
import { createRedis } from '../../plugins/limits/redis.ts'
import { durationText } from '../../plugins/limits/standing.ts'
import shared from '../../plugins/shared/index.ts'
import tenants from '../../plugins/tenants/index.ts'
import { InsufficientQuota } from '../../schemas/errors.ts'
import { chunkFrames } from '../../schemas/frames.ts'
import type { Caller } from '../../schemas/gateway.ts'
import type { ApiKey, Limits } from '../../schemas/tenants.ts'
import { attempt, demand, limiterConformance, none } from '../conformance/limiter.ts'
import { startRedis } from '../services/index.ts'
import {
  ask,
  askStream,
  chunk,
  feed,
  type HostOptions,
  host,
  patient,
  reader,
  rejection,
  role,
  says,
  scripted,
  textOf,
  tokens
} from './kernel.ts'
import { type SharedDouble, sharedOver } from './redis-double.ts'

const minute = 60_000

limiterConformance(t, 'memory', async () => {
  const clock = { time: 1_000_000 }
  return {
    limiter: createMemory(() => clock.time),
    pass: minutes => void (clock.time += minutes * minute)
  }
})

t.test('redis', async t => {
  const redis = await startRedis(t)
  if (redis === null) return

  limiterConformance(t, 'redis', async t => {
    const shared = sharedOver(t, redis.url, 'one')
    await shared.redis.flushall()
    const limiter = createRedis(
      shared,
      createMemory(() => performance.now())
    )
    t.teardown(() => limiter.close())
    return { limiter, pass: minutes => void (shared.ahead += 60 * minutes) }
  })

  async function processes(t: Test, ...names: string[]) {
    const doubles = names.map(name => sharedOver(t, redis!.url, name, names))
    await doubles[0]!.redis.flushall()
    return doubles.map(shared => {
      const memory = createMemory(() => performance.now())
      const limiter = createRedis(shared, memory)
      t.teardown(() => limiter.close())
      return { shared, memory, limiter }
    })
  }

  /** Resolves when Redis has been told all that is known here. */
  async function told({ runs }: SharedDouble, count: number): Promise<void> {
    while (runs.length < count) await new Promise(resolve => setImmediate(resolve))
  }

  t.test('three processes share one limit', async t => {
    const all = await processes(t, 'one', 'two', 'three')
    const verdicts = await Promise.all(
      Array.from({ length: 300 }, (_, index) =>
        attempt(all[index % 3]!.limiter, demand({ requestsPerMinute: 100, concurrency: 50 }))
      )
    )
    t.equal(verdicts.filter(({ admission }) => admission).length, 50)
  })

  t.test('what waits while a script is under way goes with the next one', async t => {
    const [one] = await processes(t, 'one')
    await Promise.all(Array.from({ length: 200 }, () => attempt(one!.limiter, demand({ requestsPerMinute: 1_000 }))))
    t.equal(one!.shared.runs.length, 2)
  })

  t.test('the end of a call makes room in other processes', async t => {
    const [one, two] = await processes(t, 'one', 'two')
    const asked = demand({ concurrency: 1 })
    const first = await attempt(one!.limiter, asked)
    t.equal((await attempt(two!.limiter, asked)).admission, null)
    first.admission?.end(0)
    await told(one!.shared, 2)
    t.ok((await attempt(two!.limiter, asked)).admission)
  })

  t.test('the calls of a dead process no longer count when its lease has ended', async t => {
    const [one, two] = await processes(t, 'one', 'two')
    const asked = demand({ concurrency: 2 })
    await attempt(one!.limiter, asked)
    await attempt(one!.limiter, asked)
    t.equal((await attempt(two!.limiter, asked)).admission, null)
    two!.shared.instances = ['two']
    t.ok((await attempt(two!.limiter, asked)).admission)
  })

  t.test('an emptied Redis is told of the calls that run', async t => {
    const [one, two] = await processes(t, 'one', 'two')
    const asked = demand({ concurrency: 1 })
    await attempt(one!.limiter, asked)
    one!.shared.become('gone')
    await one!.shared.redis.flushall()
    one!.shared.become(null)
    await told(one!.shared, 2)
    t.equal((await attempt(two!.limiter, asked)).admission, null)
  })

  t.test('deny: without Redis nothing is let in', async t => {
    const [one] = await processes(t, 'one')
    one!.shared.become('connection refused')
    const error = await rejection(Promise.resolve(one!.limiter.admit(demand({ requestsPerMinute: 5 }), [])))
    t.equal(error['wire'], 'limits_unavailable')
    t.equal(error['statusCode'], 503)
    t.match(error.message, /connection refused/)
    one!.shared.become(null)
    t.ok((await attempt(one!.limiter, demand({ requestsPerMinute: 5 }))).admission)
  })

  t.test('local-share: without Redis each process has its part, and says so', async t => {
    const all = await processes(t, 'one', 'two', 'three')
    const asked = demand({ requestsPerMinute: 9, concurrency: 7 })
    for (const { shared } of all) {
      shared.onRedisDown = 'local-share'
      shared.become('gone')
    }
    for (const { limiter } of all) {
      const first = await attempt(limiter, asked)
      t.equal(first.headers['x-gateway-degraded'], 'redis')
      t.equal(first.headers['x-ratelimit-limit-requests'], '3')
      first.admission?.end(0)
      t.ok((await attempt(limiter, asked)).admission)
      t.ok((await attempt(limiter, asked)).admission)
      t.equal((await attempt(limiter, asked)).admission, null)
    }
    for (const { shared } of all) shared.become(null)
    for (const { shared } of all) await told(shared, 1)
    const back = await attempt(all[0]!.limiter, asked)
    t.equal(back.headers['x-gateway-degraded'], undefined)
    t.ok(back.admission, '6 of 7 were running')
    t.equal((await attempt(all[0]!.limiter, asked)).admission, null, 'the calls of the time without Redis count')
  })

  t.test('local-share: before Redis has answered once nobody has a part', async t => {
    const [one] = await processes(t, 'one')
    one!.shared.onRedisDown = 'local-share'
    one!.shared.generation = null
    one!.shared.become('gone')
    const error = await rejection(Promise.resolve(one!.limiter.admit(demand({ requestsPerMinute: 5 }), [])))
    t.match(error, { wire: 'limits_unavailable', statusCode: 503 })
  })

  t.test('local-share: a call that fits into the whole limit is not too large for a part of it', async t => {
    const [one] = await processes(t, 'one', 'two')
    one!.shared.onRedisDown = 'local-share'
    one!.shared.become('gone')
    const asked = demand({ tokensPerMinute: 10 }, { tokens: 8 })
    t.equal((await attempt(one!.limiter, asked)).headers['x-ratelimit-remaining-tokens'], '0')
    t.match(
      (await attempt(one!.limiter, { ...asked, tenant: 'b', tokens: 11 })).message,
      /counts for 11 tokens, more than/
    )
  })

  t.test('local-share begins with what this process had let in before', async t => {
    const [one] = await processes(t, 'one')
    const asked = demand({ requestsPerMinute: 4, concurrency: 2 })
    const first = await attempt(one!.limiter, asked)
    await attempt(one!.limiter, asked)
    one!.shared.onRedisDown = 'local-share'
    one!.shared.become('gone')
    t.match((await attempt(one!.limiter, asked)).message, /Concurrency/)
    first.admission?.end(0)
    t.equal((await attempt(one!.limiter, asked)).headers['x-ratelimit-remaining-requests'], '1')
  })
})

// the sliding minute

function clocked() {
  const clock = { time: 0 }
  const memory = createMemory(() => clock.time)
  return { clock, memory }
}

t.test('what was used fades over the next minute', async t => {
  const { clock, memory } = clocked()
  const asked = demand({ requestsPerMinute: 10 })
  clock.time = 59_999
  for (let count = 0; count < 10; count++) memory.admit(asked, [])
  clock.time = 60_000
  t.equal((await attempt(memory, asked)).admission, null, 'a minute of the clock that begins changes nothing')
  clock.time = 65_999
  t.equal((await attempt(memory, asked)).admission, null)
  clock.time = 66_000
  t.ok((await attempt(memory, asked)).admission)
  t.equal((await attempt(memory, asked)).admission, null)
  clock.time = 120_000
  t.equal((await attempt(memory, asked)).headers['x-ratelimit-remaining-requests'], '8')
})

t.test('whoever waits as long as retry-after-ms says is let in, and not a moment earlier', async t => {
  for (const [limit, start, burst, later] of [
    [10, 30_000, 10, 0],
    [7, 1_234, 7, 30_000],
    [3, 59_999, 3, 10],
    [1, 0, 1, 0],
    [600, 45_678, 600, 14_400]
  ] as const) {
    const { clock, memory } = clocked()
    const asked = demand({ requestsPerMinute: limit })
    clock.time = start
    for (let count = 0; count < burst; count++) memory.admit(asked, [])
    clock.time += later
    const { headers } = await attempt(memory, asked)
    const wait = Number(headers['retry-after-ms'])
    t.ok(wait > 0 && wait <= 120_000, `${limit}: ${wait}`)
    clock.time += wait - 2
    t.equal((await attempt(memory, asked)).admission, null)
    clock.time += 2
    t.ok((await attempt(memory, asked)).admission)
  }
})

t.test('the reset is when everything is free again', async t => {
  const { clock, memory } = clocked()
  const asked = demand({ requestsPerMinute: 10, tokensPerMinute: 10 }, { tokens: 1 })
  clock.time = 20_000
  const first = await attempt(memory, asked)
  t.equal(first.headers['x-ratelimit-reset-requests'], '1m40s')
  t.equal(first.headers['x-ratelimit-reset-tokens'], '1m40s')
  clock.time = 120_000
  t.equal((await attempt(memory, asked)).headers['x-ratelimit-remaining-requests'], '9')
})

t.test('durations are written as OpenAI writes them', async t => {
  t.equal(durationText(0), '0s')
  t.equal(durationText(119.2), '120ms')
  t.equal(durationText(1_000), '1s')
  t.equal(durationText(1_001), '2s')
  t.equal(durationText(60_000), '1m0s')
  t.equal(durationText(360_000), '6m0s')
})

t.test('of several limits that are reached the answer names the one to wait for longest', async t => {
  const { memory } = clocked()
  const asked = demand({ requestsPerMinute: 1, concurrency: 1 })
  memory.admit(asked, [])
  const { message, headers } = await attempt(memory, asked)
  t.match(message, /1 request per minute/)
  t.not(headers['retry-after'], '1')
})

t.test('what has not been called for two minutes takes no memory, except while its calls run', async t => {
  const { clock, memory } = clocked()
  for (let index = 0; index < 1_000; index++)
    memory.admit(demand({ concurrency: 5 }, { tenant: `t${index}` }), []).end(0)
  const running = memory.admit(demand({ concurrency: 1 }, { tenant: 'runs' }), [])
  t.equal(memory.size, 1_001)
  clock.time += minute
  memory.admit(demand({ concurrency: 5 }, { tenant: 'x' }), []).end(0)
  clock.time += minute
  memory.admit(demand({ concurrency: 5 }, { tenant: 'x' }), []).end(0)
  t.equal(memory.size, 2)
  clock.time += 60 * minute
  t.equal((await attempt(memory, demand({ concurrency: 1 }, { tenant: 'runs' }))).admission, null)
  running.end(0)
  t.ok((await attempt(memory, demand({ concurrency: 1 }, { tenant: 'runs' }))).admission)
})

// the layer

interface Options extends HostOptions {
  limits?: Partial<Limits>
  maxOutputTokens?: number
  shared?: SharedDouble
  before?: (app: FastifyInstance) => void
}

async function limited(t: Test, options: Options = {}) {
  const clock = { time: 0 }
  const app = await host(t, options)
  const { shared } = options
  if (shared) await app.register(fp(async app => app.gateway.decorate('shared', shared), { name: 'shared' }))
  const { requestsPerMinute, tokensPerMinute, concurrency } = { ...none, ...options.limits }
  await app.register(tenants, {
    tenants: {
      acme: {
        requestsPerMinute: requestsPerMinute ?? undefined,
        tokensPerMinute: tokensPerMinute ?? undefined,
        concurrency: concurrency ?? undefined,
        maxOutputTokens: options.maxOutputTokens ?? 20
      }
    }
  })
  await app.register(limits, { now: () => clock.time })
  options.before?.(app)
  await app.ready()
  const { gateway } = app
  return { app, gateway, clock, caller: () => gateway.caller({ tenant: 'acme' }) }
}

function shown(list: readonly string[]): Record<string, string> {
  const headers: Record<string, string> = {}
  for (let index = 0; index < list.length; index += 2) headers[list[index]!] = list[index + 1]!
  return headers
}

const priced = (app: FastifyInstance) => app.gateway.accountWith({ cost: () => 1 })

t.test('a tenant without limits pays nothing and gets no headers', async t => {
  const { gateway, caller } = await limited(t)
  t.same((await gateway.complete(ask, caller())).facts.headers, [])
})

t.test('an answer carries the headers, a refusal too, and the upstream is not asked', async t => {
  const up = scripted('up')
  const { gateway, caller } = await limited(t, { providers: [up], limits: { requestsPerMinute: 1 } })
  const answer = await gateway.complete(ask, caller())
  t.same(shown(answer.facts.headers), {
    'x-ratelimit-limit-requests': '1',
    'x-ratelimit-remaining-requests': '0',
    'x-ratelimit-reset-requests': '2m0s'
  })
  const error = await rejection(gateway.complete(ask, caller()))
  t.equal(error['wire'], 'rate_limit_exceeded')
  t.equal(error['type'], 'rate_limit_error')
  t.equal(error['statusCode'], 429)
  t.equal(up.attempts.length, 1)
})

t.test('limits of a key count beside those of its tenant', async t => {
  const { gateway } = await limited(t, { limits: { requestsPerMinute: 10 } })
  const apiKey: ApiKey = {
    ...{
      id: 'k1',
      tenant: 'acme',
      name: null,
      scopes: ['chat'],
      hash: '',
      budget: null,
      expiresAt: null,
      createdAt: 0
    },
    ...{ lastUsedAt: null, revokedAt: null, rotatedTo: null, account: null },
    ...{ requestsPerMinute: 1, tokensPerMinute: null, concurrency: null }
  }
  const keyed = (): Caller => ({
    ...gateway.caller({ tenant: 'acme' }),
    principal: { tenant: 'acme', key: 'k1', kind: 'key', scopes: ['chat'], apiKey }
  })
  t.equal(shown((await gateway.complete(ask, keyed())).facts.headers)['x-ratelimit-limit-requests'], '1')
  const error = await rejection(gateway.complete(ask, keyed()))
  t.match(error.message, /the key `k1`/)
  const other = await gateway.complete(ask, gateway.caller({ tenant: 'acme' }))
  t.equal(shown(other.facts.headers)['x-ratelimit-remaining-requests'], '8')
})

t.test('tokens count as their estimate and cap, then as all of them that were used', async t => {
  const usage = {
    ...tokens(30, 7),
    prompt_tokens_details: { cached_tokens: 20 },
    completion_tokens_details: { reasoning_tokens: 3 }
  }
  const up = scripted('up', says('hi', usage))
  const { gateway, caller } = await limited(t, { providers: [up], limits: { tokensPerMinute: 1_000 }, before: priced })
  const first = await gateway.complete({ ...ask, n: 2 }, caller())
  const expected = 6 + 2 * 20
  t.equal(shown(first.facts.headers)['x-ratelimit-remaining-tokens'], String(1_000 - expected))
  const second = await gateway.complete({ ...ask, max_tokens: 5 }, caller())
  t.equal(shown(second.facts.headers)['x-ratelimit-remaining-tokens'], String(1_000 - 37 - 6 - 5))
})

t.test('without books the last report counts, and an answer without one as expected', async t => {
  const up = scripted('up', says('hi', tokens(3, 1)), says('no usage'))
  const { gateway, caller } = await limited(t, { providers: [up], limits: { tokensPerMinute: 1_000 } })
  await gateway.complete(ask, caller())
  const second = await gateway.complete(ask, caller())
  t.equal(shown(second.facts.headers)['x-ratelimit-remaining-tokens'], String(1_000 - 4 - 26))
  const third = await gateway.complete(ask, caller())
  t.equal(shown(third.facts.headers)['x-ratelimit-remaining-tokens'], String(1_000 - 4 - 26 - 26))
})

t.test('a request that is refused later counts, its tokens do not', async t => {
  let refuse = true
  const { gateway, caller } = await limited(t, {
    limits: { requestsPerMinute: 10, tokensPerMinute: 100, concurrency: 1 },
    before: app =>
      app.gateway.intercept('budget', async (inference, next) => {
        if (refuse) throw new InsufficientQuota('no money')
        return next(inference)
      })
  })
  for (let count = 0; count < 5; count++) {
    t.equal((await rejection(gateway.complete(ask, caller())))['wire'], 'insufficient_quota')
  }
  refuse = false
  const headers = shown((await gateway.complete(ask, caller())).facts.headers)
  t.equal(headers['x-ratelimit-remaining-requests'], '4')
  t.equal(headers['x-ratelimit-remaining-tokens'], '74')
})

t.test('a cap of the tenant above the limit does not refuse every call, one that the client asks for does', async t => {
  const { gateway, caller } = await limited(t, { limits: { tokensPerMinute: 50 }, maxOutputTokens: 1_000 })
  t.equal(shown((await gateway.complete(ask, caller())).facts.headers)['x-ratelimit-remaining-tokens'], '0')
  const error = await rejection(gateway.complete({ ...ask, max_tokens: 900 }, caller()))
  t.match(error.message, /counts for 906 tokens, more than the tenant `acme` may use in a minute: 50/)
  t.same(error['headers'], {
    'x-ratelimit-limit-tokens': '50',
    'x-ratelimit-remaining-tokens': '0',
    'x-ratelimit-reset-tokens': '2m0s',
    'x-should-retry': 'false'
  })
})

t.test('a client that leaves makes room, mid-stream and before the answer', async t => {
  const stream = feed()
  stream.push(chunkFrames([role()]), chunkFrames([chunk('hi')]))
  const up = scripted('up', patient, stream.send, says('free'))
  const { gateway } = await limited(t, { providers: [up], limits: { concurrency: 1 } })
  const leaving = new AbortController()
  const waiting = gateway.complete(ask, gateway.caller({ tenant: 'acme', signal: leaving.signal }))
  t.match((await rejection(gateway.complete(ask, gateway.caller({ tenant: 'acme' })))).message, /Concurrency/)
  leaving.abort()
  await rejection(waiting)
  const streaming = reader(await gateway.complete(askStream, gateway.caller({ tenant: 'acme' })))
  await streaming.next()
  t.match((await rejection(gateway.complete(ask, gateway.caller({ tenant: 'acme' })))).message, /Concurrency/)
  await streaming.return()
  t.equal(await textOf(await gateway.complete(ask, gateway.caller({ tenant: 'acme' }))), 'free')
})

t.test('a failure makes room', async t => {
  const up = scripted('up', () => Promise.reject(new Error('broken')), says('free'))
  const { gateway, caller } = await limited(t, { providers: [up], limits: { concurrency: 1 } })
  await rejection(gateway.complete(ask, caller()))
  t.equal(await textOf(await gateway.complete(ask, caller())), 'free')
})

t.test('a layer that asks twice is one call', async t => {
  const { gateway, caller } = await limited(t, {
    limits: { requestsPerMinute: 1, concurrency: 1 },
    before: app =>
      app.gateway.intercept('observe', async (inference, next) => {
        await next(inference)
        return next(inference)
      })
  })
  t.ok(await gateway.complete(ask, caller()))
})

t.test('with Redis the layer waits for it, and a client that left meanwhile holds no place', async t => {
  const redis = await startRedis(t)
  if (redis === null) return
  const shared = sharedOver(t, redis.url, 'one')
  const { gateway, caller } = await limited(t, { limits: { requestsPerMinute: 5, concurrency: 1 }, shared })
  const leaving = new AbortController()
  const left = gateway.complete(ask, gateway.caller({ tenant: 'acme', signal: leaving.signal }))
  leaving.abort()
  await rejection(left)
  while (shared.runs.length < 2) await new Promise(resolve => setImmediate(resolve))
  const answer = await gateway.complete(ask, caller())
  t.equal(shown(answer.facts.headers)['x-ratelimit-remaining-requests'], '3')
  shared.become('stopped')
  t.equal((await rejection(gateway.complete(ask, caller())))['wire'], 'limits_unavailable')
})

t.test('the OpenAI SDK waits as long as retry-after says, and then gets through', async t => {
  const { promise, resolve } = Promise.withResolvers<void>()
  const up = scripted('up', async attempt => {
    await promise
    return says('hi')(attempt)
  })
  const app = await host(t, { providers: [up] })
  await app.register(tenants, { tenants: { public: { concurrency: 1 } } })
  await app.register(limits)
  await app.register(http)
  await app.register(chatCompletions)
  const url = await app.listen({ host: '127.0.0.1', port: 0 })
  const statuses: number[] = []
  const client = new OpenAI({
    baseURL: `${url}/v1`,
    apiKey: 'none',
    maxRetries: 1,
    async fetch(input, init) {
      const answer = await fetch(input, init)
      statuses.push(answer.status)
      if (answer.status === 429) resolve()
      return answer
    }
  })
  const create = () => client.chat.completions.create({ model: 'test', messages: [{ role: 'user', content: 'Hello' }] })
  const started = performance.now()
  const answers = await Promise.all([create(), create()])
  t.same(statuses, [429, 200, 200])
  t.equal(answers.length, 2)
  t.ok(performance.now() - started >= 1_000)
})

t.test('the headers of limits reach HTTP clients, on answers and on refusals', async t => {
  const app = await host(t)
  await app.register(tenants, { tenants: { public: { requestsPerMinute: 1, tokensPerMinute: 5_000 } } })
  await app.register(limits, { now: () => 30_000 })
  await app.register(http)
  await app.register(chatCompletions)
  const post = () => app.inject({ method: 'POST', url: '/v1/chat/completions', payload: ask })
  const answer = await post()
  t.match(answer.headers, {
    'x-ratelimit-limit-requests': '1',
    'x-ratelimit-remaining-requests': '0',
    'x-ratelimit-reset-requests': '1m30s',
    'x-ratelimit-limit-tokens': '5000',
    'x-ratelimit-remaining-tokens': '3994',
    'x-ratelimit-reset-tokens': '1m30s'
  })
  const refused = await post()
  t.equal(refused.statusCode, 429)
  t.match(refused.headers, {
    'x-ratelimit-limit-requests': '1',
    'x-ratelimit-remaining-requests': '0',
    'retry-after': '90',
    'retry-after-ms': '90000'
  })
  t.same(refused.json(), {
    error: {
      message: 'Rate limit reached: the tenant `public` may make 1 request per minute. Try again in 1m30s.',
      type: 'rate_limit_error',
      param: null,
      code: 'rate_limit_exceeded'
    }
  })
})

t.test('two gateways on one Redis share the limits of a tenant; without it nothing is let in', async t => {
  const redis = await startRedis(t)
  if (redis === null) return
  const gateways: Array<FastifyInstance['gateway']> = []
  for (let index = 0; index < 2; index++) {
    const app = await host(t)
    await app.register(shared, { url: redis.url })
    await app.register(tenants, { tenants: { acme: { requestsPerMinute: 10 } } })
    await app.register(limits)
    await app.ready()
    gateways.push(app.gateway)
  }
  const ended = await Promise.allSettled(
    Array.from({ length: 40 }, (_, index) => {
      const gateway = gateways[index % 2]!
      return gateway.complete(ask, gateway.caller({ tenant: 'acme' }))
    })
  )
  t.equal(ended.filter(({ status }) => status === 'fulfilled').length, 10)
  await redis.stop()
  const [gateway] = gateways
  const error = await rejection(gateway!.complete(ask, gateway!.caller({ tenant: 'acme' })))
  t.equal(error['wire'], 'limits_unavailable')
})
