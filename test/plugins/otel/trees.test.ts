import { once } from 'node:events'
import t, { type Test } from 'tap'
import { WebSocket } from 'ws'
import { faultsOfAttributes, faultsOfModelSpan } from '../../otlp/convention.ts'
import type { Span } from '../../otlp/messages.ts'
import { drawn, faultsOfTimes } from '../../otlp/tree.ts'
import { chunks, completion, failure, gate, json, reset, silence, sse, wantsUsage } from '../../upstream.ts'
import { type Asked, type Stage, secrets, stage } from './stage.ts'

// What a server exports of each kind of call: the tree, its times, its attributes.

/** The tree of a call: a server span, the call, its attempts. Their attributes and times are judged on the way. */
async function treeOf(t: Test, { spans }: Stage, asked: Asked, enough: number) {
  const found = await spans(asked, enough)
  t.same(faultsOfTimes(found, 0n), [], 'children are within their parents')
  for (const span of found) {
    const faults = isOfModel(span) ? faultsOfModelSpan(span) : faultsOfAttributes(span.attributes)
    t.same(faults, [], `${span.name} is as the conventions have it`)
    t.same(span.dropped, 0)
  }
  return { spans: found, tree: drawn(found), named: (name: string) => found.find(span => span.name === name)! }
}

function isOfModel({ attributes }: Span): boolean {
  return attributes['gen_ai.operation.name'] !== undefined
}

const route = 'server POST /v1/chat/completions'

t.test('what a server exports', async t => {
  const world = await stage(t)
  const { first, second, ask } = world

  await t.test('of a whole answer', async t => {
    first.script(json(completion({ content: 'Hello' })))
    const before = BigInt(Date.now()) * 1_000_000n
    const asked = await ask({ model: 'plain', temperature: 0.5, max_tokens: 20, stop: ['x'], seed: 7 })
    await asked.text()
    t.equal(asked.status, 200)
    const { spans, tree } = await treeOf(t, world, asked, 3)
    t.same(tree, [route, '  internal chat plain', '    client chat first-model'])
    t.ok(spans.every(({ start }) => start >= before))
    const attempt = spans.find(({ kind }) => kind === 'client')!
    t.match(attempt.attributes, {
      'gen_ai.operation.name': 'chat',
      'gen_ai.request.model': 'first-model',
      'gen_ai.request.temperature': 0.5,
      'gen_ai.request.max_tokens': 20,
      'gen_ai.request.stop_sequences': ['x'],
      'gen_ai.request.seed': 7,
      'gen_ai.response.model': 'gpt-5.4-mini-2026-03-17',
      'gen_ai.response.finish_reasons': ['stop'],
      'gen_ai.usage.input_tokens': 9,
      'gen_ai.usage.output_tokens': 1,
      'server.address': '127.0.0.1',
      'server.port': first.port
    })
  })

  await t.test('of a stream: spans end when it does', async t => {
    const { promise, open } = gate()
    first.script(request =>
      sse(chunks('one two', { usage: wantsUsage(request) }), { interval: i => (i > 1 ? promise : 0) })
    )
    const asked = await ask({ model: 'plain', stream: true })
    const halfway = BigInt(Date.now()) * 1_000_000n
    open()
    await asked.text()
    const { spans, tree } = await treeOf(t, world, asked, 3)
    t.same(tree, [route, '  internal chat plain', '    client chat first-model'])
    t.ok(spans.every(({ end }) => end >= halfway))
    for (const name of ['gen_ai.request.stream', 'gen_ai.response.time_to_first_chunk']) {
      t.ok(spans.find(({ kind }) => kind === 'client')!.attributes[name], name)
    }
  })

  await t.test('of a fallback', async t => {
    first.script(failure(500))
    second.script(json(completion({ content: 'Hello' })))
    const asked = await ask({ model: 'chain' })
    await asked.text()
    const { tree } = await treeOf(t, world, asked, 4)
    t.same(tree, [
      route,
      '  internal chat chain',
      '    client chat first-model !upstream_error',
      '    client chat second-model'
    ])
  })

  await t.test('of a stream that falls back', async t => {
    first.script(reset())
    second.script(sse(chunks('one two')))
    const asked = await ask({ model: 'chain', stream: true })
    await asked.text()
    const { tree } = await treeOf(t, world, asked, 4)
    t.match(tree, [route, '  internal chat chain', /^ {4}client chat first-model !\w+/, '    client chat second-model'])
  })

  await t.test('of a retry', async t => {
    first.script(failure(503), json(completion({ content: 'Hello' })))
    const asked = await ask({ model: 'twice' })
    await asked.text()
    t.equal(asked.status, 200)
    const { tree } = await treeOf(t, world, asked, 4)
    t.same(tree, [
      route,
      '  internal chat twice',
      '    client chat first-model !upstream_overloaded',
      '    client chat first-model'
    ])
  })

  await t.test('of two attempts at a time', async t => {
    first.script(silence())
    second.script(json(completion({ content: 'Hello' })))
    const asked = await ask({ model: 'hedged' })
    await asked.text()
    const { tree, spans } = await treeOf(t, world, asked, 4)
    t.match(tree, [route, '  internal chat hedged', /^ {4}client chat first-model/, '    client chat second-model'])
    const [, , one, other] = spans.toSorted((a, b) => Number(a.start - b.start))
    t.ok(other!.start - one!.start > 30_000_000n, 'the second began later')
    t.ok(one!.end > other!.start, 'while the first was under way')
  })

  await t.test('of an answer that is kept', async t => {
    first.script(json(completion({ content: 'Hello' })))
    const headers = { 'idempotency-key': 'once' }
    await (await ask({ model: 'plain' }, { headers })).text()
    const asked = await ask({ model: 'plain' }, { headers })
    await asked.text()
    const { tree } = await treeOf(t, world, asked, 2)
    t.same(tree, [route, '  internal chat plain'], 'no attempt was made')
  })

  await t.test('of a vendor with a wire of its own: its words are translated', async t => {
    const usage = { input_tokens: 10, cache_read_input_tokens: 4, cache_creation_input_tokens: 6, output_tokens: 3 }
    const content = [{ type: 'text', text: 'Hello' }]
    const message = { id: 'msg_1', type: 'message', role: 'assistant', model: 'claude-5', content, usage }
    second.script(json({ ...message, stop_reason: 'end_turn', stop_sequence: null }))
    const asked = await ask({ model: 'translated' })
    await asked.text()
    const { tree, named } = await treeOf(t, world, asked, 3)
    t.same(tree, [route, '  internal chat translated', '    client chat claude-model'])
    t.match(named('chat claude-model').attributes, {
      'gen_ai.provider.name': 'anthropic',
      'gen_ai.response.id': /msg_1/,
      'gen_ai.response.model': 'claude-5',
      'gen_ai.response.finish_reasons': ['stop'],
      'gen_ai.usage.input_tokens': 20,
      'gen_ai.usage.cache_read.input_tokens': 4,
      'gen_ai.usage.cache_creation.input_tokens': 6,
      'gen_ai.usage.output_tokens': 3,
      'server.port': second.port
    })
  })

  await t.test('of a failure of every target', async t => {
    first.script(failure(500))
    second.script(failure(502))
    const asked = await ask({ model: 'chain' })
    await asked.text()
    const { tree } = await treeOf(t, world, asked, 4)
    t.match(tree, [
      /^server POST \/v1\/chat\/completions !/,
      /^ {2}internal chat chain !\w+/,
      '    client chat first-model !upstream_error',
      '    client chat second-model !upstream_error'
    ])
  })

  await t.test('of a call that its budget refuses', async t => {
    const asked = await ask({ model: 'plain' }, { headers: { authorization: `Bearer ${secrets.poorKey}` } })
    t.equal(asked.status, 429)
    const { tree } = await treeOf(t, world, asked, 2)
    t.same(tree, [route, '  internal chat plain !insufficient_quota'])
  })

  await t.test('of a model that nobody knows', async t => {
    const asked = await ask({ model: 'nobody' })
    t.equal(asked.status, 404)
    const { tree } = await treeOf(t, world, asked, 1)
    t.same(tree, [route])
  })

  await t.test('of a key that nobody has', async t => {
    const asked = await ask({ model: 'plain' }, { headers: { authorization: 'Bearer gw-nobody-0000000000' } })
    t.equal(asked.status, 401)
    const { tree } = await treeOf(t, world, asked, 1)
    t.same(tree, [route])
  })

  await t.test('of a client that leaves amid a stream', async t => {
    const { promise } = gate()
    const asked = first.requests.length
    first.script(sse(chunks('one two three'), { interval: index => (index > 2 ? promise : 0) }))
    const controller = new AbortController()
    const answer = await ask({ model: 'plain', stream: true }, { signal: controller.signal })
    await answer.body!.getReader().read()
    controller.abort()
    t.equal((await (await first.received(asked + 1)).closed).how, 'aborted')
    const { tree, named } = await treeOf(t, world, answer, 3)
    t.equal(tree.length, 3)
    t.match(tree[1], /internal chat plain/)
    t.match(tree[2], /client chat first-model/)
    t.ok(named('chat first-model').attributes['gen_ai.response.time_to_first_chunk'], 'what there was is said')
  })

  await t.test('of a client that leaves before there is an answer', async t => {
    const asked = first.requests.length
    first.script(silence())
    const controller = new AbortController()
    const headers = {
      traceparent: `00-${'5a'.repeat(16)}-${'6b'.repeat(8)}-01`,
      authorization: `Bearer ${secrets.clientKey}`
    }
    const answer = ask({ model: 'plain' }, { signal: controller.signal, headers }).catch(error => error)
    await first.received(asked + 1)
    controller.abort()
    t.match(await answer, { name: 'AbortError' })
    const spans = await world.receiver.trace('5a'.repeat(16), 3)
    t.same(faultsOfTimes(spans, 0n), [])
    t.equal(drawn(spans).length, 3)
  })

  await t.test('of an upstream that breaks off amid a stream', async t => {
    first.script(reset(sse(chunks('one two three')), 1_000))
    const asked = await ask({ model: 'plain', stream: true })
    await asked.text()
    const { tree, spans } = await treeOf(t, world, asked, 3)
    t.match(tree, [/^server/, /^ {2}internal chat plain !\w+/, /^ {4}client chat first-model !\w+/])
    t.ok(spans.find(({ kind }) => kind === 'client')!.attributes['gen_ai.response.time_to_first_chunk'])
  })

  await t.test('of an upstream that falls silent', async t => {
    first.script(silence())
    const asked = await ask({ model: 'impatient' })
    await asked.text()
    t.equal(asked.status, 504)
    const { tree } = await treeOf(t, world, asked, 3)
    t.match(tree, [/^server/, /^ {2}internal chat impatient !\w+/, /^ {4}client chat first-model !\w+/])
  })

  await t.test('no two spans of all that have one id', async t => {
    const all = await world.receiver.spans(40)
    t.equal(new Set(all.map(({ spanId }) => spanId)).size, all.length)
    t.equal(world.receiver.exports.filter(({ signal }) => signal === 'logs').length, 0, 'logs go their own way')
  })
})

t.test('of a WebSocket: its span ends with its connection', async t => {
  const { url, receiver } = await stage(t, { config: { plugins: { rateLimit: false, events: {} } } })
  const headers = { authorization: `Bearer ${secrets.adminToken}` }
  const socket = new WebSocket(`${url.replace('http', 'ws')}/events`, { headers })
  const [{ headers: answered }] = await once(socket, 'upgrade')
  const traceId = answered['x-trace-id']
  t.match(traceId, /^[0-9a-f]{32}$/)
  t.match(answered['x-request-id'], /^req_/)
  socket.close()
  const [span] = await receiver.trace(traceId, 1)
  t.equal(span?.name, 'GET /events')
  t.match(span?.attributes, { 'http.response.status_code': 101, 'error.type': undefined })
})

const incoming = { traceId: '0af7651916cd43dd8448eb211c80319c', spanId: 'b7ad6b7169203331' }

t.test('traces of the client', async t => {
  const world = await stage(t)
  const { first, ask } = world
  const parent = `00-${incoming.traceId}-${incoming.spanId}-01`
  const key = { authorization: `Bearer ${secrets.clientKey}` }
  const sent = () => first.requests.at(-1)!

  await t.test('are joined, and go on upstream from the attempt, once', async t => {
    first.script(json(completion({ content: 'Hello' })))
    // Also where an operator forwards what the client sends.
    const own = { traceparent: parent, tracestate: 'vendor=1', baggage: 'a=1', 'x-forwarded-by-wish': 'yes' }
    const asked = await ask({ model: 'plain' }, { headers: { ...key, ...own } })
    await asked.text()
    t.equal(asked.traceId, incoming.traceId)
    const { spans } = await treeOf(t, world, asked, 3)
    const server = spans.find(({ kind }) => kind === 'server')!
    t.equal(server.parentSpanId, incoming.spanId)
    t.ok(server.remoteParent)
    const attempt = spans.find(({ kind }) => kind === 'client')!
    const names = sent()
      .rawHeaders.filter((_, index) => index % 2 === 0)
      .map(name => name.toLowerCase())
    t.equal(names.filter(name => name === 'traceparent').length, 1)
    t.equal(sent().headers['traceparent'], `00-${incoming.traceId}-${attempt.spanId}-01`)
    t.ok(names.filter(name => name === 'tracestate').length <= 1)
    t.equal(sent().headers['x-forwarded-by-wish'], 'yes')
  })

  await t.test('go upstream from each attempt', async t => {
    first.script(failure(503), json(completion({ content: 'Hello' })))
    const before = first.requests.length
    const asked = await ask({ model: 'twice' })
    await asked.text()
    const { spans } = await treeOf(t, world, asked, 4)
    const attempts = spans.filter(({ kind }) => kind === 'client').toSorted((a, b) => Number(a.start - b.start))
    t.same(
      first.requests.slice(before).map(({ headers }) => headers['traceparent']),
      attempts.map(({ traceId, spanId }) => `00-${traceId}-${spanId}-01`)
    )
  })

  await t.test('that were not sampled are not exported, and go on so', async t => {
    first.script(json(completion({ content: 'Hello' })))
    const traceId = '1bf7651916cd43dd8448eb211c80319c'
    const traceparent = `00-${traceId}-${incoming.spanId}-00`
    const asked = await ask({ model: 'plain' }, { headers: { ...key, traceparent } })
    await asked.text()
    t.equal(asked.traceId, traceId)
    t.match(sent().headers['traceparent'], new RegExp(`^00-${traceId}-[0-9a-f]{16}-00$`))
    const after = await ask({ model: 'plain' })
    await after.text()
    await world.spans(after, 3)
    t.same(await world.receiver.trace(traceId, 0), [])
  })

  await t.test('without one there is one, and the answer names it', async t => {
    first.script(json(completion({ content: 'Hello' })))
    for (const headers of [key, { ...key, traceparent: 'nonsense' }]) {
      const asked = await ask({ model: 'plain' }, { headers })
      await asked.text()
      const spans = await world.spans(asked, 3)
      t.equal(spans.find(({ kind }) => kind === 'server')!.parentSpanId, null)
      t.match(sent().headers['traceparent'], asked.traceId)
    }
  })
})
