import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import Fastify, { type FastifyInstance } from 'fastify'
import fp from 'fastify-plugin'
import OpenAI from 'openai'
import t, { type Test } from 'tap'
import chatCompletions from '../../plugins/chat-completions/index.ts'
import gateway from '../../plugins/gateway/index.ts'
import http from '../../plugins/http/index.ts'
import { createAnswers } from '../../plugins/idempotency/answers.ts'
import idempotency, { type IdempotencyOptions } from '../../plugins/idempotency/index.ts'
import routing from '../../plugins/routing/index.ts'
import sharedPlugin from '../../plugins/shared/index.ts'
import store from '../../plugins/store/index.ts'
import openaiCompatible from '../../providers/openai-compatible.ts'
import { UpstreamError } from '../../schemas/errors.ts'
import { chunkFrames } from '../../schemas/frames.ts'
import type { Completed } from '../../schemas/gateway.ts'
import type { Send } from '../../schemas/provider.ts'
import { startRedis } from '../services/index.ts'
import { chunks, completion, gate, json, sse, startUpstream } from '../upstream.ts'
import {
  ask,
  askStream,
  chunk,
  fails,
  feed,
  finish,
  type HostOptions,
  host,
  nothingLeft,
  patient,
  reader,
  rejection,
  role,
  says,
  scripted,
  textOf,
  tokens,
  usageChunk
} from './kernel.ts'
import { type SharedDouble, sharedOver } from './redis-double.ts'

interface Options extends HostOptions, IdempotencyOptions {
  store?: string
  shared?: SharedDouble
}

async function keyed(t: Test, options: Options = {}) {
  const app = await host(t, options)
  const { shared, ttl, maxAnswer, memory, now } = options
  if (options.store) await app.register(store, { url: options.store })
  if (shared) await app.register(fp(async app => app.gateway.decorate('shared', shared), { name: 'shared' }))
  await app.register(idempotency, { ttl, maxAnswer, memory, now })
  await app.ready()
  const { gateway } = app
  const call = (idempotencyKey: string, request = ask, more: { tenant?: string; signal?: AbortSignal } = {}) =>
    gateway.complete(request, gateway.caller({ idempotencyKey, ...more }))
  return { app, gateway, call }
}

function replayed({ facts }: Completed): boolean {
  return facts.headers.includes('idempotency-replayed')
}

/** Answers once a test lets it, and counts. */
function gated(text = 'once') {
  const { promise, resolve } = Promise.withResolvers<void>()
  const send: Send = async attempt => {
    await promise
    return says(text)(attempt)
  }
  return { send, open: resolve }
}

/** Whatever waits gets its turn. */
async function turns(count = 20): Promise<void> {
  for (let turn = 0; turn < count; turn++) await new Promise(resolve => setImmediate(resolve))
}

// one process

t.test('a repeat gets the same answer, and no provider is asked', async t => {
  const up = scripted('up', says('one'), says('two'))
  const { call, app } = await keyed(t, { providers: [up] })
  const first = await call('k1')
  t.equal(replayed(first), false)
  const second = await call('k1')
  t.equal(await textOf(second), 'one')
  t.equal(replayed(second), true)
  t.equal(second.facts.attempts, 0)
  t.equal(second.facts.cache, first.facts.cache)
  t.equal(up.attempts.length, 1)
  t.equal(await textOf(await call('k2')), 'two')
  nothingLeft(t, app)
})

t.test('without a key nothing is kept', async t => {
  const up = scripted('up')
  const { gateway } = await keyed(t, { providers: [up] })
  await gateway.complete(ask, gateway.caller())
  t.equal(replayed(await gateway.complete(ask, gateway.caller())), false)
  t.equal(up.attempts.length, 2)
})

t.test('another body under the same key is refused, also while the first is still running', async t => {
  const { send, open } = gated()
  const { call } = await keyed(t, { providers: [scripted('up', send)] })
  const running = call('k')
  const other = { ...ask, temperature: 0.5 }
  const refused = await rejection(call('k', other))
  t.equal(refused['wire'], 'idempotency_key_reused')
  t.equal(refused['statusCode'], 422)
  open()
  await running
  t.equal((await rejection(call('k', other)))['wire'], 'idempotency_key_reused')
  t.equal((await rejection(call('k', askStream)))['wire'], 'idempotency_key_reused')
  t.ok(replayed(await call('k')))
})

t.test('keys of different tenants do not meet', async t => {
  const up = scripted('up', says('one'), says('two'))
  const { call } = await keyed(t, { providers: [up] })
  t.equal(await textOf(await call('k', ask, { tenant: 'a' })), 'one')
  t.equal(await textOf(await call('k', ask, { tenant: 'b' })), 'two')
  t.equal(await textOf(await call('k', ask, { tenant: 'a' })), 'one')
})

t.test('neither do those of two keys of one tenant', async t => {
  const up = scripted('up', says('one'), says('two'))
  const { gateway } = await keyed(t, { providers: [up] })
  const by = (key: string) =>
    gateway.complete(ask, {
      ...gateway.caller({ idempotencyKey: 'k' }),
      principal: { tenant: 'a', key, kind: 'key', scopes: ['chat'] }
    })
  t.equal(await textOf(await by('k1')), 'one')
  t.equal(await textOf(await by('k2')), 'two')
})

t.test('repeats at the same time wait for the first one', async t => {
  const { send, open } = gated()
  const up = scripted('up', send)
  const { call, app } = await keyed(t, { providers: [up] })
  const all = Promise.all(Array.from({ length: 20 }, () => call('k')))
  await turns()
  t.equal(up.attempts.length, 1)
  open()
  const answers = await all
  t.equal(answers.filter(replayed).length, 19)
  for (const answer of answers) t.equal(await textOf(answer), 'once')
  t.equal(up.attempts.length, 1)
  nothingLeft(t, app)
})

t.test('an error is not kept: of those who wait one asks again', async t => {
  const up = scripted('up', fails(new UpstreamError('broken')), says('mended'))
  const { call } = await keyed(t, { providers: [up] })
  const [first, ...others] = await Promise.allSettled([call('k'), call('k'), call('k')])
  t.equal(first.status, 'rejected')
  const answers = others.flatMap(one => (one.status === 'fulfilled' ? [one.value] : []))
  t.equal(answers.length, 2)
  t.same(answers.map(replayed), [false, true])
  t.equal(up.attempts.length, 2)
})

t.test('a stream is kept to the byte, and read again chunk by chunk', async t => {
  const up = scripted('up', says('some words here'))
  const { call } = await keyed(t, { providers: [up] })
  const read = async (answer: Completed) => {
    if (!answer.stream) throw new Error('no stream')
    const seen = []
    for await (const frames of answer.frames) seen.push(...frames)
    return seen
  }
  const first = await read(await call('k', askStream))
  const again = await call('k', askStream)
  t.ok(replayed(again))
  t.same(await read(again), first)
  t.equal(up.attempts.length, 1)
})

t.test('a stream is replayed with the usage that was asked for, and without the one that was not', async t => {
  for (const include_usage of [true, false]) {
    const up = scripted('up', says('hi', tokens(3, 1)))
    const { call } = await keyed(t, { providers: [up] })
    const request = { ...askStream, stream_options: { include_usage } }
    for (const repeat of [false, true]) {
      const answer = await call('k', request)
      t.equal(replayed(answer), repeat)
      if (!answer.stream) throw new Error('no stream')
      const usages = []
      for await (const frames of answer.frames) for (const { usage } of frames) if (usage) usages.push(usage)
      t.equal(usages.length, include_usage ? 1 : 0)
    }
  }
})

t.test('a stream that breaks off is not kept', async t => {
  const broken = feed(chunkFrames([role()]), chunkFrames([chunk('half')]))
  const up = scripted('up', broken.send, says('whole'))
  const { call } = await keyed(t, { providers: [up] })
  const answer = reader(await call('k', askStream))
  await answer.next()
  broken.fail(new UpstreamError('gone'))
  await rejection(
    (async () => {
      while (!(await answer.next()).done);
    })()
  )
  const second = await call('k', askStream)
  t.equal(replayed(second), false)
  t.equal(await textOf(second), 'whole')
})

t.test('repeats of a stream wait for its end', async t => {
  const running = feed(chunkFrames([role()]), chunkFrames([chunk('all of it')]))
  const up = scripted('up', running.send)
  const { call } = await keyed(t, { providers: [up] })
  const first = await call('k', askStream)
  const second = call('k', askStream)
  await turns()
  running.push(chunkFrames([finish()]))
  running.end()
  t.equal(await textOf(first), 'all of it')
  const again = await second
  t.ok(replayed(again))
  t.equal(await textOf(again), 'all of it')
  t.equal(up.attempts.length, 1)
})

t.test('the first client leaves: its call goes on, and its repeat gets the answer', async t => {
  const { send, open } = gated()
  const up = scripted('up', send)
  const { call, app } = await keyed(t, { providers: [up] })
  const leaving = new AbortController()
  const first = call('k', ask, { signal: leaving.signal })
  await turns()
  leaving.abort()
  t.equal((await rejection(first))['wire'], 'cancelled')
  const again = call('k')
  await turns()
  open()
  t.ok(replayed(await again))
  t.equal(up.attempts.length, 1)
  nothingLeft(t, app, leaving.signal)
})

t.test('the first client leaves mid-stream: the stream is read to its end all the same', async t => {
  const running = feed(chunkFrames([role()]), chunkFrames([chunk('first ')]))
  const up = scripted('up', running.send)
  const { call, app } = await keyed(t, { providers: [up] })
  const first = reader(await call('k', askStream))
  await first.next()
  await first.return()
  running.push(chunkFrames([chunk('second')]), chunkFrames([finish()]), chunkFrames([usageChunk(tokens(1, 2))]))
  running.end()
  const again = await call('k', askStream)
  t.ok(replayed(again))
  t.equal(await textOf(again), 'first second')
  t.equal(up.attempts.length, 1)
  nothingLeft(t, app)
})

t.test('a repeat that leaves while it waits disturbs nobody', async t => {
  const { send, open } = gated()
  const up = scripted('up', send)
  const { call, app } = await keyed(t, { providers: [up] })
  const first = call('k')
  const leaving = new AbortController()
  const second = call('k', ask, { signal: leaving.signal })
  await turns()
  leaving.abort()
  t.equal((await rejection(second))['wire'], 'cancelled')
  open()
  t.equal(await textOf(await first), 'once')
  nothingLeft(t, app, leaving.signal)
})

t.test('a call that is ended from outside lets its repeats go on', async t => {
  const timeouts = { connect: 1e4, headers: 1e4, firstToken: 1e4, idle: 1e4, total: 50 }
  const up = scripted('up', patient, says('second'))
  const { call } = await keyed(t, {
    providers: [up],
    routing: { models: { test: { targets: [{ provider: 'up', model: 'm' }], timeouts } } }
  })
  const first = call('k')
  await turns()
  const second = call('k')
  t.equal((await rejection(first))['wire'], 'upstream_timeout')
  t.equal(await textOf(await second), 'second')
})

t.test('an answer above the limit is not kept: each repeat is a call of its own, one after another', async t => {
  const up = scripted('up', says('x'.repeat(2_000)))
  const { call } = await keyed(t, { providers: [up], maxAnswer: 1_000 })
  for (const request of [ask, askStream]) {
    const before = up.attempts.length
    const answers = await Promise.all([
      call(`k${before}`, request),
      ...(request === ask ? [call(`k${before}`, request)] : [])
    ])
    for (const answer of answers) {
      t.equal((await textOf(answer)).length, 2_000)
      t.equal(replayed(answer), false)
    }
    const last = await call(`k${before}`, request)
    t.equal(replayed(last), false)
    await textOf(last)
  }
  t.equal(up.attempts.length, 5)
})

t.test('after its time a key is new', async t => {
  const clock = { time: 1_000 }
  const up = scripted('up', says('one'), says('two'))
  const { call } = await keyed(t, { providers: [up], ttl: 60_000, now: () => clock.time })
  await call('k')
  clock.time += 59_999
  t.ok(replayed(await call('k')))
  clock.time += 1
  t.equal(await textOf(await call('k')), 'two')
})

t.test('memory is bounded: what was used least lately goes first', async t => {
  const up = scripted('up', says('x'.repeat(1_000)))
  const { call } = await keyed(t, { providers: [up], memory: 5_000 })
  for (const key of ['a', 'b', 'c']) await call(key)
  t.ok(replayed(await call('a')))
  await call('d')
  t.ok(replayed(await call('a')))
  t.notOk(replayed(await call('b')))
})

t.test('a key of another form is refused, and its header is named', async t => {
  const up = scripted('up')
  const { call } = await keyed(t, { providers: [up] })
  for (const key of ['', 'with space', 'ümlaut', 'x'.repeat(256), 'line\nend', 'tab\t']) {
    const error = await rejection(call(key))
    t.equal(error['statusCode'], 400)
    t.equal(error['param'], 'Idempotency-Key')
    t.match(error.message, /Idempotency-Key is 1 to 255 visible ASCII characters/)
  }
  t.equal(up.attempts.length, 0)
  t.ok(await call('x'.repeat(255)))
  t.ok(await call('!~"\\{}'))
})

// the store

function databaseIn(t: Test): string {
  const folder = mkdtempSync(join(tmpdir(), 'idempotency-'))
  t.teardown(() => rmSync(folder, { recursive: true, force: true }))
  return `sqlite:${join(folder, 'gateway.db')}`
}

t.test('answers survive a restart', async t => {
  const url = databaseIn(t)
  const before = await keyed(t, { store: url })
  const whole = await before.call('whole')
  const streamed = await textOf(await before.call('streamed', askStream))
  await before.app.close()

  const up = scripted('up', says('something else'))
  const { call } = await keyed(t, { store: url, providers: [up] })
  const again = await call('whole')
  t.ok(replayed(again))
  t.equal(await textOf(again), await textOf(whole))
  t.equal(await textOf(await call('streamed', askStream)), streamed)
  t.equal((await rejection(call('whole', askStream)))['wire'], 'idempotency_key_reused')
  t.equal(up.attempts.length, 0)
})

t.test('a key that was never used does not read the database', async t => {
  const app = await host(t)
  await app.register(store, { url: 'sqlite::memory:' })
  const { gateway } = app
  let reads = 0
  const answers = gateway.store!.answers
  const get = answers.get.bind(answers)
  Object.assign(answers, {
    get(id: string) {
      reads++
      return get(id)
    }
  })
  await app.register(idempotency, { memory: 0 })
  await app.ready()
  await gateway.complete(ask, gateway.caller({ idempotencyKey: 'k' }))
  t.equal(reads, 0)
  t.ok(replayed(await gateway.complete(ask, gateway.caller({ idempotencyKey: 'k' }))))
  t.equal(reads, 1, 'one that was, and is not in memory any more, does')
})

// several processes

t.test('with Redis', async t => {
  const redis = await startRedis(t)
  if (redis === null) return

  async function two(t: Test, options: { one?: Options; two?: Options } = {}) {
    const names = ['one', 'two']
    const shared = names.map(name => sharedOver(t, redis!.url, name, names))
    await shared[0]!.redis.flushall()
    const one = await keyed(t, { ...options.one, shared: shared[0] })
    const other = await keyed(t, { ...options.two, shared: shared[1] })
    return { one, two: other, shared }
  }

  t.test('an answer of one process is replayed by another', async t => {
    const up = scripted('up', says('not this'))
    const { one, two: other, shared } = await two(t, { two: { providers: [up] } })
    const first = await textOf(await one.call('k'))
    while ((await shared[0]!.redis.keys('gw:idempotency-running:*')).length > 0) await turns(1)
    const again = await other.call('k')
    t.ok(replayed(again))
    t.equal(await textOf(again), first)
    const stream = await textOf(await one.call('s', askStream))
    t.equal(await textOf(await other.call('s', askStream)), stream)
    t.equal((await rejection(other.call('k', askStream)))['wire'], 'idempotency_key_reused')
    t.equal(up.attempts.length, 0)
    await turns()
    t.same(await shared[0]!.redis.keys('gw:idempotency-running:*'), [], 'nobody is said to run any more')
  })

  t.test('two gateways on one Redis make one call of a hundred repeats', async t => {
    const ups = [scripted('up'), scripted('up')]
    const gateways: Array<FastifyInstance['gateway']> = []
    for (const up of ups) {
      const app = await host(t, { providers: [up] })
      await app.register(sharedPlugin, { url: redis!.url })
      await app.register(idempotency)
      await app.ready()
      gateways.push(app.gateway)
    }
    const answers = await Promise.all(
      Array.from({ length: 100 }, (_, index) => {
        const gateway = gateways[index % 2]!
        return gateway.complete(ask, gateway.caller({ idempotencyKey: 'hundred' }))
      })
    )
    t.equal(ups[0]!.attempts.length + ups[1]!.attempts.length, 1)
    t.equal(answers.filter(replayed).length, 99)
  })

  t.test('a repeat waits for a call that another process runs', async t => {
    const { send, open } = gated()
    const up = scripted('up', says('not this'))
    const { one, two: other } = await two(t, { one: { providers: [scripted('up', send)] }, two: { providers: [up] } })
    const first = one.call('k')
    await turns()
    const second = other.call('k')
    await turns()
    open()
    t.equal(replayed(await first), false)
    t.ok(replayed(await second))
    t.equal(up.attempts.length, 0)
  })

  t.test('when the other process fails, the one that waits asks itself', async t => {
    const failing = scripted('up', async () => {
      await turns()
      throw new UpstreamError('broken')
    })
    const { one, two: other } = await two(t, {
      one: { providers: [failing] },
      two: { providers: [scripted('up', says('mine'))] }
    })
    const first = rejection(one.call('k'))
    await turns(5)
    const second = await other.call('k')
    await first
    t.equal(await textOf(second), 'mine')
    t.equal(replayed(second), false)
  })

  t.test('a repeat that leaves while it waits for another process lets go of everything', async t => {
    const { send, open } = gated()
    const { one, two: other, shared } = await two(t, { one: { providers: [scripted('up', send)] } })
    const first = one.call('k')
    await turns()
    const leaving = new AbortController()
    const second = other.call('k', ask, { signal: leaving.signal })
    await turns()
    leaving.abort()
    t.equal((await rejection(second))['wire'], 'cancelled')
    open()
    await first
    while ((await shared[0]!.redis.keys('gw:idempotency-running:*')).length > 0) await turns(1)
    nothingLeft(t, other.app, leaving.signal)
  })

  t.test('without Redis each process is on its own, and says so once', async t => {
    const lines: string[] = []
    const up = scripted('up', says('mine'))
    const { one, shared } = await two(t, { one: { providers: [up], log: line => lines.push(line) } })
    shared[0]!.down = 'stopped'
    await one.call('k1')
    await one.call('k2')
    t.ok(replayed(await one.call('k1')))
    t.equal(lines.filter(line => line.includes('Idempotency-Key holds within one process only')).length, 1)
  })
})

// over HTTP

async function serving(t: Test) {
  const upstream = await startUpstream()
  t.teardown(() => upstream.close())
  const app: FastifyInstance = Fastify()
  t.teardown(() => app.close())
  await app.register(gateway)
  await app.register(routing, { models: { test: { targets: [{ provider: 'up', model: 'm' }] } } })
  await app.register(openaiCompatible, { name: 'up', baseUrl: upstream.url, apiKeys: ['sk-upstream'] })
  await app.register(http)
  await app.register(idempotency)
  await app.register(chatCompletions)
  const url = await app.listen({ host: '127.0.0.1', port: 0 })
  const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: 'none', maxRetries: 0 })
  const post = async (body: object, key: string, signal?: AbortSignal) => {
    const answer = await fetch(`${url}/v1/chat/completions`, {
      method: 'POST',
      headers: { 'content-type': 'application/json', 'idempotency-key': key },
      body: JSON.stringify(body),
      signal
    })
    return { status: answer.status, headers: answer.headers, text: await answer.text() }
  }
  return { upstream, app, client, post }
}

const hello = { model: 'test', messages: [{ role: 'user' as const, content: 'Hello' }] }

t.test('the OpenAI SDK gets the stored answer, whole and streamed', async t => {
  const { client, upstream } = await serving(t)
  const headers = { 'Idempotency-Key': 'sdk-1' }
  const first = await client.chat.completions.create(hello, { headers })
  const { data, response } = await client.chat.completions.create(hello, { headers }).withResponse()
  t.same(data, first)
  t.equal(response.headers.get('idempotency-replayed'), 'true')
  t.equal(response.headers.get('x-gateway-attempts'), '0')
  t.equal(upstream.requests.length, 1)

  const streams = []
  for (let count = 0; count < 2; count++) {
    const stream = await client.chat.completions.create(
      { ...hello, stream: true },
      { headers: { 'Idempotency-Key': 'sdk-2' } }
    )
    const seen = []
    for await (const one of stream) seen.push(one)
    streams.push(seen)
  }
  t.ok(streams[0]!.length > 2)
  t.same(streams[1], streams[0])
  t.equal(upstream.requests.length, 2)
  await t.rejects(client.chat.completions.create({ ...hello, n: 2 }, { headers }), {
    status: 422,
    code: 'idempotency_key_reused'
  })
})

t.test('what is replayed over HTTP is the same to the byte', async t => {
  const { post, upstream } = await serving(t)
  upstream.script(json(completion({ content: 'ünïcödé', odd: { a: 1 } })))
  const whole = [await post(hello, 'k1'), await post(hello, 'k1')]
  t.equal(whole[1]!.text, whole[0]!.text)
  t.equal(whole[1]!.headers.get('content-type'), whole[0]!.headers.get('content-type'))

  for (const include_usage of [true, false]) {
    upstream.script(sse(chunks('many words in a row', { usage: true })))
    const body = { ...hello, stream: true, stream_options: { include_usage } }
    const streamed = [await post(body, `s${include_usage}`), await post(body, `s${include_usage}`)]
    t.equal(streamed[1]!.text, streamed[0]!.text)
    t.equal(streamed[0]!.text.includes('"usage":{'), include_usage)
    t.equal(streamed[1]!.headers.get('idempotency-replayed'), 'true')
    t.equal(streamed[1]!.headers.get('content-type'), 'text/event-stream; charset=utf-8')
  }
})

t.test('a client that broke the connection gets the answer with its repeat', async t => {
  const { post, upstream } = await serving(t)
  const hold = gate()
  upstream.script(async () => {
    await hold.promise
    return json(completion({ content: 'worth waiting for' }))
  })
  const leaving = new AbortController()
  const first = post(hello, 'k', leaving.signal)
  await upstream.received(1)
  leaving.abort()
  await first.catch(() => {})
  const second = post(hello, 'k')
  hold.open()
  const { text, headers } = await second
  t.match(text, /worth waiting for/)
  t.equal(headers.get('idempotency-replayed'), 'true')
  t.equal(upstream.requests.length, 1)
})

t.test('answers are purged when they have ended', async t => {
  const app = await host(t)
  await app.register(store, { url: 'sqlite::memory:' })
  const { answers } = app.gateway.store!
  const clock = { time: Date.now() }
  const kept = createAnswers(app.gateway.store, app.gateway.log, 1_000, () => clock.time)
  const answer = (id: string, ttl: number) => ({
    ...{ id, fingerprint: 'f', stream: false, body: Buffer.from('{}') },
    expiresAt: clock.time + ttl
  })
  kept.keep(answer('short', 60_000))
  kept.keep(answer('long', 600_000))
  await kept.flushed()
  t.same((await answers.ids(9)).sort(), ['long', 'short'])
  clock.time += 60_000
  await kept.purge()
  t.same(await answers.ids(9), ['long'])
  t.equal(kept.recall('short'), null)
  t.equal(await kept.find('short'), null)
  t.ok(kept.recall('long'))
})

t.test('a header of another form is a 400 that names it', async t => {
  const { post } = await serving(t)
  const { status, text } = await post(hello, 'two words')
  t.equal(status, 400)
  t.match(JSON.parse(text).error, { type: 'invalid_request_error', param: 'Idempotency-Key' })
})
