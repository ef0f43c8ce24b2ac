import t from 'tap'
import { createStream } from '../../../plugins/events/stream.ts'
import { startRedis } from '../../services/index.ts'
import { consumed } from './group.ts'
import { call, holds, redisClient, refusedSocket, type Said, socketTo, sseTo, start, ticketOf, token } from './kit.ts'

const auth = { adminToken: token, anonymousTenant: 'public' }

t.test('a consumer group reads every event of every call once, in order', t => consumed(t, 300))

t.test('several processes', async t => {
  const redis = await startRedis(t)
  if (redis === null) return
  const client = redisClient(t, redis)
  t.beforeEach(() => client.del('agent.events'))
  // What budgets make of an empty Redis is not the question here.
  const options = { redis: redis.url, plugins: { auth, budgets: false as const, limits: false as const } }

  t.test('see each other’s events, each once and in one order', async t => {
    const [one, two] = [await start(t, options), await start(t, options)]
    const ears = [await socketTo(t, one.url), await sseTo(t, one.url), await socketTo(t, two.url)]
    await Promise.all(Array.from({ length: 20 }, (_, count) => call(count % 2 ? one.url : two.url, { stream: true })))
    await Promise.all(ears.map(ear => ear.count(100)))
    const entries = await client.xrange('agent.events', '-', '+')
    t.equal(entries.length, 100)
    for (const ear of ears) {
      t.strictSame(
        ear.events.map(({ event_id }) => event_id),
        entries.map(([id]) => id),
        'under the ids of the stream'
      )
    }
  })

  t.test('go on where another one has stopped', async t => {
    const [one, two] = [await start(t, options), await start(t, options)]
    const whole = await socketTo(t, one.url)
    const seen: Said[] = []
    let ear = await socketTo(t, one.url)
    for (let round = 0; round < 4; round++) {
      await Promise.all([call(one.url), call(two.url, { stream: true })])
      await ear.count(round + 1)
      ear.close()
      await ear.closed
      seen.push(...ear.events)
      const { url } = round % 2 ? one : two
      ear = await (round < 2 ? socketTo : sseTo)(t, url, `?lastEventId=${seen.at(-1)!.event_id}`)
      t.equal(ear.heard[0]?.event_type, 'gateway.events.ready')
    }
    await Promise.all([whole.count(36), ear.count(36 - seen.length)])
    t.strictSame([...seen, ...ear.events], whole.events)
  })

  t.test('catch up with more than one page while more comes', async t => {
    const { url, app } = await start(t, options)
    const before = await socketTo(t, url)
    for (let count = 0; count < 3_000; count++)
      app.gateway.events.emit('tenant.created', { tenant: 'a', actor: String(count) })
    const first = await before.until(({ actor }) => actor === '0')
    await before.count(3_000)
    const emitting = setInterval(() => app.gateway.events.emit('tenant.created', { tenant: 'a', actor: 'late' }), 1)
    const ear = await socketTo(t, url, `?lastEventId=${first.event_id}`)
    await ear.count(3_050)
    clearInterval(emitting)
    await before.count(3_060 - 10)
    await ear.count(before.events.length - 1)
    t.strictSame(ear.events.slice(0, 3_040), before.events.slice(1, 3_041))
  })

  t.test('take each other’s tickets, once', async t => {
    const [one, two] = [await start(t, options), await start(t, options)]
    const ticket = await ticketOf(one.url)
    await socketTo(t, two.url, `?ticket=${ticket}`, {})
    for (const { url } of [one, two]) t.equal((await refusedSocket(url, `?ticket=${ticket}`)).status, 401)
    const second = await ticketOf(two.url)
    const answers = await Promise.all([one, two, one, two].map(({ url }) => fetch(`${url}/events?ticket=${second}`)))
    t.strictSame(answers.map(({ status }) => status).sort(), [200, 401, 401, 401], 'of four at once one gets it')
    for (const { body } of answers) void body?.cancel()
    const keys = await client.keys('gw:t:*')
    t.strictSame(keys, [])
    const text = JSON.stringify(await client.xrange('agent.events', '-', '+'))
    t.notOk(text.includes(ticket))
  })

  t.test('say of an id that is not kept any more that something may be missing', async t => {
    const { url } = await start(t, options)
    const ear = await socketTo(t, url)
    await call(url)
    await ear.count(4)
    const [first] = ear.events
    await client.xtrim('agent.events', 'MAXLEN', 2)
    const back = await socketTo(t, url, `?lastEventId=${first!.event_id}`)
    t.match(back.heard[0], { event_type: 'gateway.events.gap', after: first!.event_id })
    await back.count(2)
    t.strictSame(back.events, ear.events.slice(2))
    await call(url)
    await back.count(6)
  })

  t.test('read what somebody else writes, if it is an event', async t => {
    const { url } = await start(t, options)
    const ear = await socketTo(t, url)
    await client.xadd('agent.events', '*', 'something', 'else')
    await client.xadd('agent.events', '*', 'event_type', 'agent.step', 'data', 'no JSON')
    const id = await client.xadd(
      'agent.events',
      '*',
      'event_type',
      'agent.step',
      'data',
      '{"tenant":"acme",\n"step":1}'
    )
    await ear.count(1)
    t.strictSame(ear.events, [{ event_id: id, event_type: 'agent.step', tenant: 'acme', step: 1 }])
    const back = await sseTo(t, url, '?lastEventId=0-0&tenant=acme')
    await back.count(1)
  })

  t.test('with stream: false keep their events to themselves', async t => {
    const { url } = await start(t, {
      ...options,
      plugins: { ...options.plugins, events: { stream: false } }
    })
    const ear = await socketTo(t, url)
    await call(url)
    await ear.count(4)
    t.equal(await client.xlen('agent.events'), 0)
  })

  t.test('that have no subscriber read nothing', async t => {
    const { app, url } = await start(t, options)
    const clients = async () =>
      ((await client.client('LIST')) as string).split('\n').filter(line => / cmd=xread/.test(line)).length
    const before = await clients()
    const ear = await socketTo(t, url)
    await holds(async () => (await clients()) === before + 1)
    ear.close()
    await holds(async () => (await clients()) === before)
    t.equal(app.gateway.eventStream?.subscribers, 0)
  })
})

t.test('what calls say that end while the process does is in Redis', async t => {
  const redis = await startRedis(t)
  if (redis === null) return
  const client = redisClient(t, redis)
  const { app } = await start(t, { redis: redis.url, plugins: { auth, budgets: false, limits: false } })
  const { gateway } = app
  const ask = { model: 'test', messages: [{ role: 'user' as const, content: 'Hello' }], stream: true }
  const answer = await gateway.complete(ask, gateway.caller())
  if (!answer.stream) return t.fail('It is no stream.')
  const closing = app.close()
  await holds(() => gateway.closing)
  for await (const _frames of answer.frames);
  await closing
  const entries = await client.xrange('agent.events', '-', '+')
  t.equal(entries.length, 5)
  t.match(entries.at(-1)?.[1], ['event_type', 'model.request.complete', 'data', /"status":"settled"/])
})

t.test('a stream that was cut behind a reader who is late was read on without a word', async t => {
  const server = await startRedis(t)
  if (server === null) return
  const client = redisClient(t, server)
  const shown: string[] = []
  let missed = 0
  let written = Promise.withResolvers<void>()
  const source = createStream({
    redis: client,
    connect: () => redisClient(t, server),
    stream: 'agent.events',
    show: items => shown.push(...items.map(({ id }) => id)),
    shown: () => written.promise,
    missed: () => void missed++
  })
  t.teardown(() => source.close())
  const add = () => client.xadd('agent.events', '*', 'event_type', 'a.b', 'data', '{}')
  source.start()
  await source.ready()
  await add()
  await holds(() => shown.length === 1)
  for (let count = 0; count < 9; count++) await add()
  await client.xtrim('agent.events', 'MAXLEN', 3)
  written.resolve()
  written = Promise.withResolvers()
  await holds(() => shown.length === 4)
  t.equal(missed, 1)
  written.resolve()
  written = Promise.withResolvers()
  await add()
  await holds(() => shown.length === 5)
  t.equal(missed, 1)
  written.resolve()
})

t.test('Redis away', async t => {
  const redis = await startRedis(t)
  if (redis === null) return
  // Budgets have their own word to say about that: here it is about events.
  const { app, url } = await start(t, {
    redis: redis.url,
    plugins: {
      auth,
      limits: false,
      budgets: false,
      shared: false
    }
  })
  const ear = await socketTo(t, url)
  await call(url)
  await ear.count(4)

  // They may be read before whoever has written them knows it.
  await holds(() => app.gateway.eventStream?.waiting === 0)

  await redis.stop()
  const times: number[] = []
  for (let count = 0; count < 200; count++) {
    const began = performance.now()
    t.equal((await call(url)).status, 200)
    times.push(performance.now() - began)
  }
  times.sort((one, other) => one - other)
  t.ok(times[100]! < 50, `calls are as quick as ever: ${times[100]?.toFixed(1)} ms`)
  t.equal(app.gateway.eventStream?.waiting, 800)
  t.equal(app.gateway.eventStream?.dropped, 0)
  const events = app.gateway.events
  for (let count = 0; count < 10_000; count++) events.emit('tenant.created', { tenant: 'acme', actor: 'test' })
  const dropped = app.gateway.eventStream!.dropped
  t.equal(dropped, 800)
  t.equal(ear.events.length, 4, 'subscribers see nothing meanwhile')
  const late = sseTo(t, url)

  await redis.start()
  const told = await ear.until(({ event_type }) => event_type === 'gateway.events.dropped')
  t.match(told, { dropped })
  await ear.count(4 + 10_000 + 1)
  t.equal(app.gateway.eventStream?.waiting, 0)
  t.match(
    ear.heard.find(({ event_type }) => event_type === 'gateway.events.gap'),
    { after: null },
    'the stream is another one: something may be missing'
  )
  await late
  await call(url)
  await ear.count(4 + 10_000 + 1 + 4)
  t.equal(ear.events.at(-1)?.event_type, 'model.request.complete')
})
