import { once } from 'node:events'
import { type AddressInfo, createServer, type Socket } from 'node:net'
import t, { type Test } from 'tap'
import { bodyOf, type LongBody } from '../../providers/body.ts'
import { type Call, createUpstream } from '../../providers/upstream.ts'
import { completion, json, seeded, startUpstream, turn } from '../upstream.ts'

const never = new AbortController().signal
const timeouts = { connect: 5_000, headers: 5_000, firstToken: 5_000, idle: 5_000, total: 60_000 }
const limit = 262_144

const image = (length: number) => `data:image/png;base64,${'iVBORw0K/+=='.repeat(length / 12)}`
const asking = (...urls: string[]) => ({
  model: 'm',
  messages: [{ role: 'user', content: urls.map(url => ({ type: 'image_url', image_url: { url } })) }]
})

function textOf(body: string | LongBody): string {
  return typeof body === 'string' ? body : [...body.pieces()].join('')
}

function longOf(value: object): LongBody {
  const body = bodyOf(value)
  if (typeof body === 'string') throw new Error('This is one text.')
  return body
}

/** True for what is sent as one text, and the text itself against JSON.stringify in either case. */
function isOne(t: Test, value: object, name: string): boolean {
  const body = bodyOf(value)
  const text = textOf(body)
  t.ok(text === JSON.stringify(value), `${name}: the text`)
  if (typeof body === 'string') return true
  t.equal(body.bytes, Buffer.byteLength(text), `${name}: its length`)
  return false
}

t.test('a request without long strings is one text', async t => {
  t.equal(bodyOf(asking('data:,')), JSON.stringify(asking('data:,')))
  t.ok(isOne(t, asking('A'.repeat(limit)), 'at the limit'))
  t.notOk(isOne(t, asking('A'.repeat(limit + 1)), 'above it'))
})

t.test('long strings leave in slices, wherever a wire has them', async t => {
  const data = 'A'.repeat(300_000)
  const source = { type: 'base64', media_type: 'image/png', data }
  const bodies: Record<string, object> = {
    image: asking(image(600_000)),
    'several images': asking(image(600_000), 'data:,', image(300_000), image(300_000)),
    sound: { messages: [{ role: 'user', content: [{ type: 'input_audio', input_audio: { data, format: 'wav' } }] }] },
    document: { messages: [{ role: 'user', content: [{ type: 'file', file: { file_data: data } }] }] },
    anthropic: { messages: [{ role: 'user', content: [{ type: 'image', source }] }] },
    'a result of a tool': {
      messages: [{ role: 'user', content: [{ type: 'tool_result', content: [{ type: 'image', source }] }] }]
    },
    gemini: { contents: [{ role: 'user', parts: [{ inlineData: { mimeType: 'image/png', data } }] }] }
  }
  for (const [name, body] of Object.entries(bodies)) {
    t.notOk(isOne(t, body, name), name)
    t.ok(
      [...longOf(body).pieces()].every(piece => piece.length <= 65_536),
      `${name}: in slices`
    )
  }
})

t.test('what JSON writes in another way is left to JSON.stringify', async t => {
  const long = 'A'.repeat(limit)
  for (const inner of ['"', '\\', '\n', '\u0000', '\u001f', 'ü', '字', '👋', '\ud800', '\udc00', '\u2028']) {
    const name = `with character ${inner.codePointAt(0)}`
    for (const text of [inner + long, long + inner, long + inner + long]) t.ok(isOne(t, asking(text), name))
  }
  for (const inner of [' ', '~', '\u007f', '/', '<'])
    t.notOk(isOne(t, asking(long + inner), `with character ${inner.codePointAt(0)}`))
})

t.test('the rest of a request with an image is what JSON.stringify makes of it', async t => {
  const random = seeded(20_261_122)
  const long = () => (random() < 0.5 ? image(300_000) : 'x'.repeat(limit + 1 + Math.floor(random() * 10)))
  const leaves = [
    () => 'Grüße 👋🏽 \ud800 "\\\n\u0000',
    () => -0,
    () => 1e308,
    () => Number.NaN,
    () => null,
    () => undefined,
    () => new Date(0),
    () => {
      const text = long()
      return { toJSON: () => text }
    },
    () => Symbol('none'),
    () => [],
    () => ({}),
    () => `${long()}"`,
    long,
    long
  ]
  const any = (depth: number): unknown => {
    if (depth === 0 || random() < 0.3) return leaves[Math.floor(random() * leaves.length)]!()
    const parts = Array.from({ length: 1 + Math.floor(random() * 3) }, () => any(depth - 1))
    if (random() < 0.5) return parts
    return Object.fromEntries(parts.map((part, index) => [['b', '1', '0', '"ü', 'toString'][index] ?? 'a', part]))
  }
  for (let round = 0; round < 60; round++) {
    const content = [{ type: 'image_url', image_url: { url: long() } }, any(4)]
    const value = { model: 'm', metadata: any(2), messages: [{ role: 'user', content }], [long()]: 'a long name' }
    if (isOne(t, value, `round ${round}`)) t.fail(`round ${round} was one text`)
  }
})

t.test('what cannot be written throws as JSON.stringify does', async t => {
  t.throws(() => bodyOf({ ...asking(image(600_000)), number: 1n }), TypeError)
})

t.test('a request is only read', async t => {
  const frozen = Object.freeze(asking(image(600_000)))
  for (const { content } of frozen.messages) Object.freeze(content.map(part => Object.freeze(part.image_url)))
  t.equal(textOf(bodyOf(frozen)), JSON.stringify(frozen))
})

// On the wire

function call(body: Call['body'], own: Partial<Call> = {}): Call {
  return {
    path: '/chat/completions',
    headers: ['content-type', 'application/json'],
    body,
    signal: never,
    timeouts,
    stream: false,
    ...own
  }
}

async function pair(t: Test) {
  const server = await startUpstream()
  const upstream = createUpstream({ baseUrl: server.url, connections: 1 })
  t.teardown(async () => {
    await upstream.close()
    await server.close()
  })
  return { server, upstream }
}

/** A provider of bare sockets: each is handed over with its first bytes unread, and nothing is read unless the test does. */
async function bare(t: Test) {
  const sockets: Socket[] = []
  const server = createServer({ pauseOnConnect: true }, socket => {
    sockets.push(socket)
    socket.on('error', () => {})
  }).listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  const upstream = createUpstream({ baseUrl: `http://127.0.0.1:${port}/v1`, connections: 1 })
  t.teardown(async () => {
    await upstream.close()
    for (const socket of sockets) socket.destroy()
    server.close()
  })
  return { upstream, connected: async () => (await once(server, 'connection'))[0] as Socket }
}

/** A body of 64 MB that tells how far it was asked for, and whether somebody ended it. */
function watched() {
  const state = { made: 0, ended: false }
  const slice = 'x'.repeat(65_536)
  const body: LongBody = {
    bytes: 1_024 * slice.length,
    *pieces() {
      try {
        for (; state.made < 1_024; state.made++) yield slice
      } finally {
        state.ended = true
      }
    }
  }
  return { body, state }
}

async function still(state: { made: number }): Promise<number> {
  for (let same = 0, last = -1; same < 50; last = state.made) {
    await turn()
    same = state.made === last ? same + 1 : 0
  }
  return state.made
}

t.test('a long body arrives whole, with its length, and its connection is used again', async t => {
  const { server, upstream } = await pair(t)
  server.script(json(completion()))
  const value = { ...asking(image(3_000_000), image(600_000)), user: 'Grüße 👋🏽' }
  for (let round = 0; round < 2; round++) {
    t.equal((await upstream.post(call(bodyOf(value)))).status, 200)
    const request = server.requests[round]!
    t.ok(request.rawBody.toString() === JSON.stringify(value))
    t.equal(request.headers['content-length'], String(Buffer.byteLength(JSON.stringify(value))))
    t.equal(request.headers['transfer-encoding'], undefined)
    t.equal(request.connection, 1)
    await turn()
  }
})

t.test('a provider that does not read stops the making of the text, and an abort ends it', async t => {
  const { upstream, connected } = await bare(t)
  const { body, state } = watched()
  const controller = new AbortController()
  const reason = new Error('gone')
  const reply = upstream.post(call(body, { signal: controller.signal }))
  const socket = await connected()
  t.ok((await still(state)) < 512, `${state.made} slices made`)
  controller.abort(reason)
  await t.rejects(reply, reason)
  socket.resume()
  await once(socket, 'close')
  t.ok(state.ended)
  t.ok(state.made < 1_024)
})

t.test('a provider that does not read is given up by the deadline of its answer', async t => {
  const { upstream, connected } = await bare(t)
  const { body, state } = watched()
  const reply = upstream.post(call(body, { timeouts: { ...timeouts, headers: 100 } }))
  const refused = t.rejects(reply, { statusCode: 504, message: /no answer within 100 ms\.$/ })
  const socket = await connected()
  await refused
  socket.resume()
  await once(socket, 'close')
  t.ok(state.ended)
})

t.test('an answer that comes before the body was read is the answer, and the connection is not used again', async t => {
  const { upstream, connected } = await bare(t)
  const { body, state } = watched()
  const reply = upstream.post(call(body))
  const first = await connected()
  await still(state)
  first.write('HTTP/1.1 413 Payload Too Large\r\ncontent-length: 2\r\n\r\n{}')
  const { status, body: answer } = await reply
  t.equal(status, 413)
  t.equal(answer?.toString(), '{}')
  first.resume()
  await once(first, 'close')
  t.ok(state.ended)
  const next = upstream.post(call('{}'))
  const second = await connected()
  second.end('HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n')
  t.equal((await next).status, 200)
})

t.test('an answer that comes with the end of the connection is the answer too', async t => {
  const { upstream, connected } = await bare(t)
  const { body, state } = watched()
  const reply = upstream.post(call(body))
  const socket = await connected()
  await still(state)
  socket.end('HTTP/1.1 413 Payload Too Large\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}')
  t.equal((await reply).status, 413)
  t.ok(state.made < 1_024)
})

t.test('a connection that breaks under a long body is a fault of the provider', async t => {
  const { upstream, connected } = await bare(t)
  const { body, state } = watched()
  const reply = upstream.post(call(body))
  const refused = t.rejects(reply, { statusCode: 502, message: /the connection broke before it answered\.$/ })
  const socket = await connected()
  await still(state)
  socket.resetAndDestroy()
  await refused
  await turn()
  t.ok(state.ended)
})

t.test('a long body that waits for a connection and is aborted is never begun', async t => {
  const { upstream, connected } = await bare(t)
  const controller = new AbortController()
  const first = upstream.post(call('{}', { signal: controller.signal })).catch(() => {})
  await connected()
  const { body, state } = watched()
  const reply = upstream.post(call(body, { signal: controller.signal }))
  controller.abort(new Error('gone'))
  await t.rejects(reply, { message: 'gone' })
  await first
  t.equal(state.made, 0)
})
