import { once } from 'node:events'
import { connect } from 'node:net'
import { mock } from 'node:test'
import t from 'tap'
import WebSocket from 'ws'
import { createHub, type Sink } from '../../plugins/events/hub.ts'
import { bytesOf, isAfter, itemOf } from '../../plugins/events/item.ts'
import { createRing } from '../../plugins/events/ring.ts'
import { createTickets } from '../../plugins/events/tickets.ts'
import { createEventBus, eventTypes } from '../../schemas/events.ts'
import { admin, call, holds, refusedSocket, type Said, socketTo, sseTo, start, ticketOf, token } from './events/kit.ts'
import { everybodyGetsEverything } from './events/load.ts'

const typesOf = (events: readonly Said[]) => events.map(({ event_type }) => event_type)
const ofAStream = [
  'model.request.start',
  'model.attempt.start',
  'model.streaming.start',
  'model.attempt.complete',
  'model.request.complete'
]

t.test('the bus', async t => {
  const data = { tenant: 'acme', actor: 'admin' }

  t.test('tells a listener to one type of no other', async t => {
    const bus = createEventBus(error => t.fail(String(error)))
    const heard: string[] = []
    const off = bus.on('tenant.created', ({ data }) => heard.push(data.tenant))
    bus.emit('tenant.deleted', data)
    bus.emit('tenant.created', data)
    t.strictSame(heard, ['acme'])
    off()
    t.equal(bus.heard, false)
  })

  t.test('goes on past a listener that rejects', async t => {
    const { promise, resolve } = Promise.withResolvers<unknown>()
    const bus = createEventBus(resolve)
    bus.on(async () => {
      throw new Error('not me')
    })
    bus.emit('tenant.created', data)
    t.match(await promise, { message: 'not me' })
  })
})

t.test('the bytes of events', async t => {
  t.test('are what a WebSocket reads, whatever their length', async t => {
    const lengths = [0, 1, 60, 61, 62, 63, 64, 65_400, 65_480, 65_481, 65_482, 65_483, 65_484, 65_485, 65_490, 200_000]
    const items = lengths.map(
      (length, index) => itemOf(`1-${index}`, 'a.b', JSON.stringify({ x: 'ü'.repeat(length) }))!
    )
    const frames = bytesOf('websocket', items)
    // As ws itself reads them.
    const { WebSocketServer } = await import('ws')
    const server = new WebSocketServer({ port: 0, host: '127.0.0.1' })
    t.teardown(() => server.close())
    await once(server, 'listening')
    const { port } = server.address() as { port: number }
    server.on('connection', (_peer, request) => request.socket.write(frames))
    const socket = new WebSocket(`ws://127.0.0.1:${port}`)
    const texts: string[] = []
    const { promise, resolve } = Promise.withResolvers<void>()
    socket.on('message', text => texts.push(String(text)) === items.length && resolve())
    await promise
    t.strictSame(
      texts.map(text => JSON.parse(text)),
      lengths.map((length, index) => ({ event_id: `1-${index}`, event_type: 'a.b', x: 'ü'.repeat(length) }))
    )
    socket.terminate()
  })

  t.test('hold what somebody else has written into the stream, if it is an event', async t => {
    t.equal(itemOf('1-0', undefined, '{}'), null)
    t.equal(itemOf('1-0', 'x', undefined), null)
    t.equal(itemOf('1-0', 'x', 'no JSON'), null)
    t.equal(itemOf('1-0', 'x', '{\nbroken'), null)
    const item = itemOf('1-0', 'a"b', '{\n"a": 1\n}')!
    t.equal(String(bytesOf('sse', [item])), 'id: 1-0\ndata: {"event_id":"1-0","event_type":"a\\"b","a":1}\n\n')
    t.equal(
      String(bytesOf('sse', [itemOf('1-0', 'x', '{}')!])),
      'id: 1-0\ndata: {"event_id":"1-0","event_type":"x"}\n\n'
    )
  })

  t.test('ids are compared as numbers', async t => {
    t.ok(isAfter('10-0', '9-9'))
    t.ok(isAfter('9-10', '9-9'))
    t.notOk(isAfter('9-9', '9-9'))
    t.notOk(isAfter('9-9', '10-0'))
  })
})

t.test('a single process', async t => {
  t.test('records nothing before somebody subscribes, and nothing a while after the last', async t => {
    const bus = createEventBus(error => t.fail(String(error)))
    const shown: string[] = []
    const ring = createRing({ bus, kept: 3, linger: 1, show: items => shown.push(...items.map(({ id }) => id)) })
    const emit = () => bus.emit('tenant.created', { tenant: 'acme', actor: 'admin' })
    t.equal(bus.heard, false)
    const before = ring.last!
    ring.start()
    ring.start()
    emit()
    t.equal(shown.length, 1)
    ring.stop()
    emit()
    t.equal(shown.length, 2, 'whoever comes back at once misses nothing')
    await holds(() => !bus.heard)
    emit()
    ring.start()
    t.equal(await ring.misses(shown[1]!), true, 'what happened meanwhile is not here')
    t.equal(await ring.misses(before), true)
    emit()
    t.equal(await ring.misses(ring.last!), false)
    ring.close()
    t.equal(bus.heard, false)
  })

  t.test('keeps so many events, under ids that grow whatever the clock does', async t => {
    let time = 1_000
    const realNow = Date.now
    t.teardown(() => (Date.now = realNow))
    Date.now = () => time
    const bus = createEventBus(error => t.fail(String(error)))
    const shown: string[] = []
    const ring = createRing({ bus, kept: 10, linger: 1, show: items => shown.push(...items.map(({ id }) => id)) })
    t.teardown(() => ring.close())
    ring.start()
    for (let count = 0; count < 100; count++) {
      time += [0, 1, -5, 7][count % 4]!
      bus.emit('tenant.created', { tenant: 'acme', actor: 'admin' })
    }
    for (let index = 1; index < shown.length; index++) t.ok(isAfter(shown[index]!, shown[index - 1]!))
    const last = shown.at(-1)!
    t.equal(await ring.misses(shown.at(-11)!), false)
    t.equal(await ring.misses(shown.at(-30)!), true)
    const ids = (await ring.between(shown.at(-8)!, shown.at(-2)!, 100)).map(({ id }) => id)
    t.strictSame(ids, shown.slice(-7, -1))
    t.strictSame((await ring.between(shown.at(-8)!, last, 2)).length, 2)
    t.strictSame(await ring.between(last, last, 2), [])
  })
})

t.test('GET /events', async t => {
  t.test('tells a WebSocket of each step of a call, in order', async t => {
    const { app, url } = await start(t)
    const ear = await socketTo(t, url)
    t.equal(app.gateway.eventStream?.subscribers, 1)
    const { headers } = await call(url, { stream: true })
    await ear.count(5)
    t.strictSame(typesOf(ear.events), ofAStream)
    for (const event of ear.events) {
      t.match(event, {
        id: headers.get('x-request-id'),
        trace_id: headers.get('x-trace-id'),
        tenant: 'public',
        model: 'test'
      })
      t.match(event.event_id, /^\d+-\d+$/)
      t.match(event['time'], /^\d{4}-\d\d-\d\dT/)
    }
    t.match(ear.events[4], { status: 'settled', http_status: 200, usd: 0, tokens_out: 3, attempts: 1, error: null })
    ear.close()
    t.equal((await ear.closed).code, 1005)
    await holds(() => app.gateway.eventStream?.subscribers === 0)
  })

  t.test('tells a reader of server-sent events the same', async t => {
    const { url } = await start(t)
    const [ear, socket] = [await sseTo(t, url), await socketTo(t, url)]
    await call(url, { stream: true })
    await Promise.all([ear.count(5), socket.count(5)])
    t.strictSame(ear.events, socket.events)
    t.equal(ear.lastEventId, ear.events[4]?.event_id)
    t.equal(ear.head.get('content-type'), 'text/event-stream; charset=utf-8')
    t.equal(ear.head.get('cache-control'), 'no-store, no-transform')
    t.equal(ear.head.get('x-accel-buffering'), 'no')
    t.match(ear.head.get('x-trace-id'), /^[0-9a-f]{32}$/)
  })

  t.test('begins with where it is, so that whoever is cut off at once misses nothing', async t => {
    const { url } = await start(t)
    const first = await sseTo(t, url)
    t.equal(first.heard[0]?.event_type, 'gateway.events.ready')
    t.equal(first.lastEventId, first.heard[0]?.event_id)
    first.close()
    await first.closed
    await call(url)
    const second = await sseTo(t, url, '', { ...admin, 'last-event-id': first.lastEventId })
    await second.count(4)
    t.equal(second.events[0]?.event_type, 'model.request.start')
  })

  t.test('goes on behind the id that it is given: nothing is missing and nothing comes twice', async t => {
    const { url } = await start(t)
    const whole = await socketTo(t, url)
    const seen: Said[] = []
    let ear = await socketTo(t, url)
    for (let round = 0; round < 5; round++) {
      await Promise.all([call(url), call(url, { stream: true })])
      // Cut off somewhere in the middle of it.
      await ear.count(round + 1)
      ear.close()
      await ear.closed
      seen.push(...ear.events)
      const last = seen.at(-1)!.event_id
      ear = await (round % 2 ? socketTo(t, url, `?lastEventId=${last}`) : sseTo(t, url, `?lastEventId=${last}`))
      t.equal(ear.heard[0]?.event_type, 'gateway.events.ready')
    }
    await whole.count(45)
    await ear.count(45 - seen.length)
    t.strictSame([...seen, ...ear.events], whole.events)
  })

  t.test('says first that an id is older than what is kept, and gives what there is', async t => {
    const { url } = await start(t, {
      plugins: { auth: { adminToken: token, anonymousTenant: 'public' }, events: { kept: 5 } }
    })
    const ear = await socketTo(t, url)
    await call(url)
    await ear.count(1)
    const first = ear.events[0]!.event_id
    for (let count = 0; count < 5; count++) await call(url)
    await ear.count(24)
    const back = await socketTo(t, url, `?lastEventId=${first}`)
    t.match(back.heard[0], { event_type: 'gateway.events.gap', after: first })
    await back.count(5)
    const tail = ear.events.slice(-back.events.length)
    t.strictSame(back.events, tail)
    const [stranger] = (await socketTo(t, url, '?lastEventId=9999999999999-0')).heard
    t.match(stranger, { event_type: 'gateway.events.gap', event_id: ear.events.at(-1)!.event_id })
    const everything = await sseTo(t, url, '?lastEventId=0-0')
    await everything.count(5)
  })

  t.test('gives what was asked for: types and tenants', async t => {
    const tenant = { maxRequestUsd: false as const, budget: { usd: 1 } }
    const { app, url } = await start(t, {
      tenants: { acme: { ...tenant, keys: ['gw_acme-key-000'] }, public: {} },
      plugins: { auth: { adminToken: token, anonymousTenant: 'public' } }
    })
    const [all, ends, attempts, acme, none] = [
      await socketTo(t, url),
      await socketTo(t, url, '?type=model.request.complete,key.*'),
      await sseTo(t, url, '?type=model.attempt.*'),
      await sseTo(t, url, '?tenant=acme,other'),
      await socketTo(t, url, '?tenant=nobody')
    ]
    await call(url)
    await call(url, {}, { authorization: 'Bearer gw_acme-key-000' })
    app.gateway.events.emit('routing.reloaded', { changes: 1, config: null, actor: 'test' })
    await all.count(9)
    await Promise.all([ends.count(2), attempts.count(4), acme.count(4)])
    t.strictSame(new Set(typesOf(ends.events)), new Set(['model.request.complete']))
    t.strictSame(new Set(typesOf(attempts.events)), new Set(['model.attempt.start', 'model.attempt.complete']))
    t.ok(acme.events.every(({ tenant, key }) => tenant === 'acme' && key === 'acme#1'))
    t.strictSame(none.events, [])
  })

  t.test('refuses what it does not understand, and names it', async t => {
    const { url } = await start(t)
    for (const [query, param] of [
      ['?types=model.*', 'types'],
      ['?type=', 'type'],
      ['?type=Model', 'type'],
      ['?type=model.*.start', 'type'],
      ['?type=model.request.stop', 'type'],
      ['?type=model.request.complete,modle.*', 'type'],
      ['?type=agent.step', 'type'],
      ['?type=model', 'type'],
      ['?type=a&type=b', 'type'],
      [`?type=${Array.from({ length: 33 }, () => 'a').join()}`, 'type'],
      ['?tenant=a%20b', 'tenant'],
      ['?tenant=gw_abcdefgh', 'tenant'],
      ['?lastEventId=1', 'lastEventId'],
      ['?lastEventId=-1', 'lastEventId'],
      ['?lastEventId=1-x', 'lastEventId']
    ] as const) {
      const response = await fetch(`${url}/events${query}`, { headers: admin })
      const { error } = (await response.json()) as { error: { param: string } }
      t.strictSame([response.status, error.param], [400, param], query)
      const socket = await refusedSocket(url, query, admin)
      t.strictSame([socket.status, socket.body.error.param], [400, param], query)
    }
    const response = await fetch(`${url}/events`, { headers: { ...admin, 'last-event-id': 'nonsense' } })
    t.equal(response.status, 400)
    const stale = await sseTo(t, url, '?lastEventId=1-0', { ...admin, 'last-event-id': '2-0' })
    t.equal(stale.heard[0]?.['after'], '2-0', 'the header is newer than the URL')
    t.ok(await sseTo(t, url, '', { ...admin, 'last-event-id': '' }))
  })

  t.test('a type that does not exist waited for ever: the answer says which there are', async t => {
    const { url } = await start(t, { plugins: { events: { types: ['agent.*', 'billing.done'] } } })
    const response = await fetch(`${url}/events?type=model.request.stop`, { headers: admin })
    const { error } = (await response.json()) as { error: { message: string; param: string } }
    t.strictSame([response.status, error.param], [400, 'type'])
    t.match(error.message, 'model.request.stop')
    for (const type of [...eventTypes, 'agent.*', 'billing.done']) t.match(error.message, type)
    for (const type of [
      ...eventTypes,
      'key.*,gateway.events.gap',
      'gateway.events.ready',
      'gateway.events.end',
      '*',
      'model.*',
      'model.request.*',
      'agent.*',
      'agent.step',
      'agent.step.*',
      'billing.*'
    ]) {
      await sseTo(t, url, `?type=${type}`)
    }
  })

  t.test('answers a refused WebSocket as any request, and closes it', async t => {
    const { app, url } = await start(t)
    const nobody = await refusedSocket(url, '')
    t.equal(nobody.status, 401)
    t.equal(nobody.body.error.code, 'invalid_api_key')
    t.equal(nobody.headers.connection, 'close')
    t.match(nobody.headers['x-trace-id'], /^[0-9a-f]{32}$/)
    t.equal((await refusedSocket(url, '', { authorization: 'Bearer sk-nonsense' })).status, 401)
    t.equal((await refusedSocket(url, '', admin, '/nowhere')).status, 404)
    t.equal((await refusedSocket(url, '', admin, '/events/')).status, 404)
    for (const [head, status] of [
      ['sec-websocket-version: 12\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==', 426],
      ['sec-websocket-version: 13\r\nsec-websocket-key: short', 400],
      ['sec-websocket-version: 13', 400]
    ] as const) {
      const socket = connect(Number(new URL(url).port), '127.0.0.1')
      socket.write(
        `GET /events HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: websocket\r\nauthorization: Bearer ${token}\r\n${head}\r\n\r\n`
      )
      let text = ''
      for await (const part of socket) text += part
      t.match(text, new RegExp(`^HTTP/1.1 ${status} [\\s\\S]*"type":"invalid_request_error"`))
    }
    t.equal(app.gateway.eventStream?.subscribers, 0)
  })

  t.test('counts a refused WebSocket by its address, as any request', async t => {
    const { url } = await start(t, {
      plugins: { auth: { adminToken: token }, rateLimit: { max: 2, timeWindow: '60s' }, budgets: { unpriced: 'allow' } }
    })
    t.equal((await refusedSocket(url, '', { authorization: 'Bearer sk-nonsense' })).status, 401)
    t.equal((await refusedSocket(url, '', admin)).status, 429)
  })

  t.test('takes so many subscribers at a time', async t => {
    const { url } = await start(t, {
      plugins: { auth: { adminToken: token, anonymousTenant: 'public' }, events: { subscribers: 2 } }
    })
    const first = await socketTo(t, url)
    await sseTo(t, url)
    const { status, body } = await refusedSocket(url, '', admin)
    t.strictSame([status, body.error.code], [429, 'rate_limit_exceeded'])
    t.equal((await fetch(`${url}/events`, { headers: admin })).status, 429)
    first.close()
    await first.closed
    await socketTo(t, url)
  })

  t.test('closes a WebSocket that says something', async t => {
    const { url } = await start(t)
    for (const [message, code] of [
      ['hello', 1003],
      ['x'.repeat(2_000), 1009]
    ] as const) {
      const socket = new WebSocket(`${url.replace('http', 'ws')}/events`, { headers: admin })
      socket.on('error', () => {})
      await once(socket, 'open')
      socket.send(message)
      const [closed] = await once(socket, 'close')
      t.equal(closed, code)
    }
  })

  t.test('ends when the process does, at once', async t => {
    const { app, url } = await start(t)
    const [socket, sse] = [await socketTo(t, url), await sseTo(t, url)]
    // One that does not answer is not waited for.
    const deaf = connect(Number(new URL(url).port), '127.0.0.1')
    deaf.on('error', () => {})
    deaf.write(
      `GET /events HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: websocket\r\nauthorization: Bearer ${token}\r\n` +
        'sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n'
    )
    await once(deaf, 'readable')
    const began = performance.now()
    await app.close()
    t.ok(performance.now() - began < 3_000)
    t.strictSame(await socket.closed, { code: 1001, reason: 'closing' })
    t.match(await sse.closed, { reason: 'ended' })
    t.match(sse.heard.at(-1), { event_type: 'gateway.events.end', reason: 'closing' })
    t.equal(app.gateway.eventStream?.subscribers, 0)
    deaf.destroy()
  })

  t.test('shows that it is alive, and lets those go that are not', async t => {
    mock.timers.enable({ apis: ['setInterval'] })
    t.teardown(() => mock.timers.reset())
    const { app, url } = await start(t)
    const sse = await sseTo(t, url, '?tenant=nobody')
    const before = sse.lastEventId
    await call(url)
    await holds(() => {
      mock.timers.tick(15_000)
      return sse.lastEventId !== before
    })
    t.ok(isAfter(sse.lastEventId, before), 'whoever waits for something rare comes back to where it was')
    t.strictSame(sse.events, [])

    const socket = new WebSocket(`${url.replace('http', 'ws')}/events`, { headers: admin })
    const deaf = new WebSocket(`${url.replace('http', 'ws')}/events`, { headers: admin, autoPong: false })
    t.teardown(() => socket.terminate())
    await Promise.all([once(socket, 'open'), once(deaf, 'open')])
    await holds(() => app.gateway.eventStream?.subscribers === 3)
    const pings = Promise.all([once(socket, 'ping'), once(deaf, 'ping')])
    mock.timers.tick(30_000)
    await pings
    // The pong is on its way already, and has a whole call's time to arrive.
    await call(url)
    const gone = once(deaf, 'close')
    mock.timers.tick(30_000)
    t.equal((await gone)[0], 1006)
    t.equal(socket.readyState, socket.OPEN)
    t.equal(app.gateway.eventStream?.subscribers, 2)
  })

  t.test('is nowhere without authentication, and the events are told all the same', async t => {
    const { app, url } = await start(t, { plugins: { auth: false } })
    t.equal((await fetch(`${url}/events`)).status, 404)
    t.equal((await fetch(`${url}/events/ticket`, { method: 'POST' })).status, 404)
    const heard: string[] = []
    app.gateway.events.on(({ type }) => heard.push(type))
    await call(url, { stream: true })
    t.strictSame(heard, ofAStream)
  })

  t.test('switched off, is nowhere, and no call is told of', async t => {
    const { app, url } = await start(t, { plugins: { events: false } })
    t.equal((await fetch(`${url}/events`, { headers: admin })).status, 404)
    const heard: string[] = []
    app.gateway.events.on(({ type }) => heard.push(type))
    await call(url)
    t.strictSame(heard, [])
  })
})

t.test('many subscribers', async t => {
  t.test('get everything, and one that never reads is let go', t => everybodyGetsEverything(t, 60, 30))

  t.test('one of server-sent events that stops reading is told so, and comes back without a loss', async t => {
    const { app, url } = await start(t, {
      plugins: {
        auth: { adminToken: token, anonymousTenant: 'public' },
        events: { buffer: 65_536, kept: 10_000 }
      }
    })
    const { events, eventStream } = app.gateway
    const socket = connect(Number(new URL(url).port), '127.0.0.1')
    t.teardown(() => socket.destroy())
    socket.write(`GET /events HTTP/1.0\r\nhost: localhost\r\nauthorization: Bearer ${token}\r\n\r\n`)
    await once(socket, 'readable')
    await holds(() => eventStream?.subscribers === 1)
    let sent = 0
    while (eventStream?.slow === 0) {
      for (let count = 0; count < 20; count++) {
        events.emit('tenant.created', { tenant: `t${sent++}`, actor: 'x'.repeat(40_000) })
      }
      await new Promise(resolve => setTimeout(resolve, 30))
    }
    for (let count = 0; count < 10; count++) events.emit('tenant.created', { tenant: `t${sent++}`, actor: 'late' })
    let text = ''
    for await (const part of socket) text += part
    t.match(text, /data: \{"event_type":"gateway\.events\.end","reason":"slow"\}\n\n$/)
    const got = [...text.matchAll(/"tenant":"t(\d+)"/g)].map(([, number]) => Number(number))
    const last = [...text.matchAll(/^id: (.+)$/gm)].at(-1)![1]!
    t.strictSame(
      got,
      got.map((_, index) => index)
    )
    t.ok(got.length < sent)
    const back = await sseTo(t, url, '', { ...admin, 'last-event-id': last })
    await back.count(sent - got.length)
    t.equal(back.heard[0]?.event_type, 'gateway.events.ready')
    t.strictSame(
      back.events.map(({ tenant }) => tenant),
      Array.from({ length: sent - got.length }, (_, index) => `t${got.length + index}`)
    )
  })

  t.test('one that reads nothing while it catches up is let go too', async t => {
    const bus = createEventBus(error => t.fail(String(error)))
    const ring = createRing({ bus, kept: 10_000, linger: 1, show: items => hub.show(items) })
    const hub = createHub(() => ring, { buffer: 1_000, now: Date.now, failed: error => t.fail(String(error)) })
    t.teardown(() => ring.close())
    ring.start()
    for (let count = 0; count < 2_000; count++) bus.emit('tenant.created', { tenant: 'acme', actor: 'admin' })
    const { promise, resolve } = Promise.withResolvers<string>()
    let waiting = 0
    let writes = 0
    const sink: Sink = {
      form: 'sse',
      get waiting() {
        return waiting
      },
      write(bytes) {
        writes++
        waiting += bytes.length
      },
      beat() {},
      drained: async () => false,
      end: resolve,
      cut() {}
    }
    const { filter } = { filter: { key: '', passes: () => true } }
    hub.add(sink, { filter, after: '0-0' }, { tenant: 'public', key: null, kind: 'admin', until: null })
    t.equal(await promise, 'slow')
    t.equal(hub.slow, 1)
    t.equal(hub.size, 0)
    t.equal(writes, 2, 'a word of where it begins, and one page')
  })

  t.test('more than can be written is skipped, and said so', async t => {
    const bus = createEventBus(error => t.fail(String(error)))
    const ring = createRing({ bus, kept: 10, linger: 1, show: items => hub.show(items) })
    const hub = createHub(() => ring, { buffer: 1e9, now: Date.now, failed: error => t.fail(String(error)) })
    t.teardown(() => ring.close())
    let text = ''
    const sink: Sink = {
      form: 'sse',
      waiting: 0,
      write: bytes => void (text += bytes),
      beat() {},
      drained: async () => true,
      end() {},
      cut() {}
    }
    const { filter } = { filter: { key: '', passes: () => true } }
    const off = hub.add(sink, { filter, after: null }, { tenant: 'public', key: null, kind: 'admin', until: null })
    await holds(() => text.includes('gateway.events.ready'))
    for (let count = 0; count < 50_010; count++) bus.emit('tenant.created', { tenant: 'acme', actor: String(count) })
    await hub.shown()
    const actors = [...text.matchAll(/"actor":"(\d+)"/g)].map(([, actor]) => Number(actor))
    t.strictSame(actors, [50_001, 50_002, 50_003, 50_004, 50_005, 50_006, 50_007, 50_008, 50_009])
    t.match(text, /gateway\.events\.gap/)
    off()
  })
})

t.test('tickets', async t => {
  t.test('open the events once, as a WebSocket and as server-sent events', async t => {
    const { url } = await start(t)
    for (const open of [socketTo, sseTo]) {
      const ticket = await ticketOf(url)
      t.match(ticket, /^[A-Za-z0-9_-]{43}$/)
      const ear = await open(t, url, `?type=model.*&ticket=${ticket}`, {})
      await call(url)
      await ear.count(4)
      const again = await refusedSocket(url, `?ticket=${ticket}`)
      t.strictSame([again.status, again.body.error.code], [401, 'invalid_api_key'])
      t.equal((await fetch(`${url}/events?ticket=${ticket}`)).status, 401)
    }
  })

  t.test('expire, are given to administrators only, and open nothing else', async t => {
    const { url } = await start(t)
    const response = await fetch(`${url}/events/ticket`, { method: 'POST', headers: admin })
    const { ticket, expires_at } = (await response.json()) as Record<string, string>
    const left = Date.parse(expires_at!) - Date.now()
    t.ok(left > 50_000 && left <= 60_000)
    t.equal(response.headers.get('cache-control'), 'no-store')
    t.equal((await fetch(`${url}/events/ticket`, { method: 'POST' })).status, 401)
    t.equal((await fetch(`${url}/events/ticket?ticket=${ticket}`, { method: 'POST' })).status, 401)
    t.equal((await fetch(`${url}/api/tenants?ticket=${await ticketOf(url)}`)).status, 401)
    for (const wrong of ['', 'short', 'x'.repeat(43), '%00']) {
      t.equal((await fetch(`${url}/events?ticket=${wrong}`)).status, 401)
    }
    const both = await fetch(`${url}/events?ticket=${await ticketOf(url)}`, { headers: admin })
    t.equal(both.status, 401)
    t.match(await both.text(), /two different credentials/)
  })

  t.test('were good after the key that they were got with had been revoked', async t => {
    const { app, url } = await start(t, { store: 'sqlite::memory:' })
    const { keys } = app.gateway
    if (keys === undefined) return t.fail('There is no store.')
    const got = async (expiresAt: number | null = null) => {
      const { key, secret } = await keys.create('public', { scopes: ['admin'], expiresAt }, 'test')
      const response = await fetch(`${url}/events/ticket`, {
        method: 'POST',
        headers: { authorization: `Bearer ${secret}` }
      })
      return { id: key.id, ticket: ((await response.json()) as { ticket: string }).ticket }
    }
    const [good, revoked, rotated] = [await got(), await got(), await got(Date.now() + 3_600_000)]
    await keys.revoke('public', revoked.id, 'test')
    await keys.rotate('public', rotated.id, 0, 'test')
    for (const { ticket } of [revoked, rotated]) {
      const { status, body } = await refusedSocket(url, `?ticket=${ticket}`)
      t.strictSame([status, body.error.code], [401, 'invalid_api_key'])
    }
    await sseTo(t, url, `?ticket=${good.ticket}`, {})
  })

  t.test('are good for a minute', async t => {
    let time = 1_000_000
    const tickets = createTickets(undefined, () => time)
    const principal = { tenant: 'public', key: 'admin', kind: 'admin', scopes: ['chat', 'admin'] } as const
    const [first, second] = [await tickets.give(principal), await tickets.give(principal)]
    t.equal(first.expiresAt, 1_060_000)
    time += 59_999
    t.match(await tickets.take(first.ticket), { ...principal, until: null })
    await t.rejects(tickets.take(first.ticket), { code: 'GATEWAY_INVALID_API_KEY' })
    time += 1
    await t.rejects(tickets.take(second.ticket), { code: 'GATEWAY_INVALID_API_KEY' })
  })

  t.test('that nobody uses are forgotten, the oldest first', async t => {
    const tickets = createTickets(undefined, Date.now)
    const principal = { tenant: 'public', key: 'admin', kind: 'admin', scopes: ['admin'] } as const
    const given = []
    for (let count = 0; count < 1_001; count++) given.push(await tickets.give(principal))
    await t.rejects(tickets.take(given[0]!.ticket))
    await tickets.take(given[1]!.ticket)
  })
})

t.test('a subscription ends with the right to it', async t => {
  const { app, url } = await start(t, { store: 'sqlite::memory:' })
  const { keys, tenants } = app.gateway
  if (keys === undefined || tenants === undefined) return t.fail('There is no store.')
  const [any] = await tenants.list({ limit: 1 })
  for (const id of ['one', 'two', 'three']) await tenants.create({ ...any!, id, source: 'api' }, 'test')
  const key = async (tenant: string, options = {}) => {
    const { key, secret } = await keys.create(tenant, { scopes: ['admin'], ...options }, 'test')
    return { id: key.id, headers: { authorization: `Bearer ${secret}` } }
  }
  const witness = await socketTo(t, url, '?type=key.*,tenant.*')

  const revoked = await key('one')
  const [socket, sse] = [await socketTo(t, url, '', revoked.headers), await sseTo(t, url, '', revoked.headers)]
  const response = await fetch(`${url}/events/ticket`, { method: 'POST', headers: revoked.headers })
  const { ticket } = (await response.json()) as { ticket: string }
  const byTicket = await socketTo(t, url, `?ticket=${ticket}`, {})
  await keys.revoke('one', revoked.id, 'test')
  t.strictSame(await socket.closed, { code: 1008, reason: 'revoked' })
  t.strictSame(await byTicket.closed, { code: 1008, reason: 'revoked' })
  await sse.closed
  t.match(sse.heard.at(-1), { event_type: 'gateway.events.end', reason: 'revoked' })

  const rotated = await key('one')
  const old = await socketTo(t, url, '', rotated.headers)
  await keys.rotate('one', rotated.id, 0, 'test')
  t.equal((await old.closed).code, 1008)

  const shut = await socketTo(t, url, '', (await key('two')).headers)
  await tenants.update('two', { active: false }, 'test')
  t.equal((await shut.closed).code, 1008)
  t.equal((await refusedSocket(url, '', (await key('two')).headers)).status, 403)

  const gone = await socketTo(t, url, '', (await key('three')).headers)
  await tenants.remove('three', 'test')
  t.equal((await gone.closed).code, 1008)

  await witness.count(9)
  t.equal(app.gateway.eventStream?.subscribers, 1, 'nobody else was touched')
})
