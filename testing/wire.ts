import assert from 'node:assert/strict'
import type { GatewayError } from '../schemas/errors.ts'
import { isGatewayError } from '../schemas/errors.ts'
import { drain, errorOf, open, outcomeOfChunks, rest, streamed, whole } from './attempt.ts'
import { type Demand, ofVendors, speech } from './demands.ts'
import { bytes, close, gate, type Reply, redirect, reset, silence, sse, turn } from './upstream/replies.ts'

const text = speech.text.join('')
const statuses = { 400: 400, 401: 502, 403: 502, 404: 502, 422: 422, 429: 429, 500: 502, 503: 503, 529: 503 }

/** What a provider with an upstream owes to both sides of it: one request, its deadlines, its end, and clear faults. */
export const wireDemands: readonly Demand[] = [
  ofVendors(
    'an attempt is one request, with the headers that layers set',
    async (provider, { upstream, ...vendor }) => {
      for (const stream of [true, false]) {
        upstream.script(stream ? vendor.stream(speech) : vendor.whole(speech))
        const before = upstream.requests.length
        const headers = {
          traceparent: '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01',
          authorization: 'stolen'
        }
        await drain(provider, { request: { stream }, headers })
        const [request, ...others] = upstream.requests.slice(before)
        assert.equal(others.length, 0)
        assert.equal(request?.headers['traceparent'], headers.traceparent)
        assert.notEqual(request.headers.authorization, headers.authorization)
      }
    }
  ),

  ofVendors(
    'an attempt uses its own key',
    async (provider, { upstream, ...vendor }, { keys = [] }) => {
      assert.equal(provider.keys, keys.length)
      upstream.script(vendor.whole(speech))
      for (const [key, own] of keys.entries()) {
        const before = upstream.requests.length
        await whole(provider, { key })
        const { rawHeaders, url } = upstream.requests[before]!
        const used = keys.filter(secret => [url, ...rawHeaders].some(text => text.includes(secret)))
        assert.deepEqual(used, [own])
      }
    },
    (_, { keys }) => keys?.length
  ),

  ofVendors('a stream is handed on while the model still speaks', async (provider, vendor) => {
    const more = gate()
    const half = (await piecesOf(vendor.stream(speech))).length / 2
    vendor.upstream.script(vendor.stream(speech, { interval: index => (index > half ? more.promise : turn()) }))
    const frames = await open(provider)
    let heard = ''
    while (heard === '') heard = outcomeOfChunks([...(await frames.next()).value!]).text
    more.open()
    assert.equal(heard + outcomeOfChunks(await rest(frames)).text, text)
  }),

  ...Object.entries(statuses).map(([status, expected]) =>
    ofVendors(`a refusal with ${status} is a fault with ${expected}`, async (provider, vendor) => {
      const words = 'The words of the vendor.'
      for (const stream of [true, false]) {
        vendor.upstream.script(vendor.refusal(Number(status), words))
        const before = vendor.upstream.requests.length
        const error = await faultOf(drain(provider, { request: { stream } }))
        assert.equal(error.statusCode, expected)
        if (status === '400' || status === '422') assert.equal(error.message, words)
        if (status === '401') assert.doesNotMatch(error.message, new RegExp(words))
        assert.notEqual(error.blame, null, 'routing has to know what to try next')
        assert.equal(vendor.upstream.requests.length, before + 1, 'repeating it is the business of routing')
      }
    })
  ),

  ofVendors('a limit says when to come again', async (provider, vendor) => {
    const refusal = vendor.refusal(429, 'Slow down.')
    vendor.upstream.script({ ...refusal, headers: { ...refusal.headers, 'retry-after': '7' } })
    const error = await faultOf(whole(provider))
    assert.equal(error.retryAfter, 7_000)
    assert.equal(error.headers['retry-after'], '7')
  }),

  ofVendors(
    'no fault holds a key',
    async (provider, vendor, { keys = [] }) => {
      for (const key of keys) {
        for (const words of [`Wrong key: ${key}.`, `Wrong key "${key.slice(0, 8)}***".`]) {
          vendor.upstream.script(vendor.refusal(400, words))
          const error = await faultOf(whole(provider))
          const said = `${error.message} ${error.param} ${error.wire} ${error.cause} ${JSON.stringify(error)}`
          assert.ok(!said.includes(key.slice(0, 8)), said)
        }
      }
    },
    (_, { keys }) => keys?.some(key => key.length >= 12)
  ),

  ofVendors('a refusal in no form that is known is a fault by its status', async (provider, vendor) => {
    for (const [status, expected] of [
      [429, 429],
      [500, 502],
      [502, 502],
      [503, 503]
    ] as const) {
      for (const stream of [true, false]) {
        for (const body of [
          '<html>Bad gateway</html>',
          '',
          '{"error"',
          'null',
          '"no"',
          '[1]',
          '{"error":{"message":7}}'
        ]) {
          vendor.upstream.script(bytes(body, { status, headers: { 'content-type': 'text/html' } }))
          const error = await faultOf(drain(provider, { request: { stream } }))
          assert.equal(error.statusCode, expected, `${status} ${body}`)
        }
      }
    }
  }),

  ofVendors('an answer that cannot be read is a fault', async (provider, vendor) => {
    const broken = Buffer.concat(await piecesOf(vendor.whole(speech))).toString()
    const headers = { 'content-type': 'application/json' }
    for (const body of ['', 'null', '[]', '"Hello"', '<html>Hello</html>', broken.slice(0, broken.length / 2)]) {
      for (const stream of [true, false]) {
        vendor.upstream.script(bytes(body, { headers }))
        const error = await faultOf(drain(provider, { request: { stream } }))
        assert.ok(error.statusCode >= 500, `${error.statusCode} for ${body}`)
      }
    }
    vendor.upstream.script(close(vendor.whole(speech), Math.floor(broken.length / 2)))
    assert.ok((await faultOf(whole(provider))).statusCode >= 500)
  }),

  ofVendors('a stream that cannot be read is never finished', async (provider, { upstream }) => {
    for (const events of [
      '',
      ': hello\n\n',
      'data: {"broken\n\n',
      'data: null\n\n',
      'data: 7\n\ndata: []\n\n',
      '<html></html>'
    ]) {
      upstream.script(sse(events))
      const { error, frames } = await streamed(provider)
      assert.ok(error === null || isGatewayError(error), `${events}: ${error}`)
      assert.ok(!frames.some(read => read.finished), `it ends well after ${JSON.stringify(events)}`)
    }
  }),

  ofVendors('a redirect is a fault, and never followed', async (provider, { upstream }) => {
    for (const stream of [true, false]) {
      const before = upstream.requests.length
      upstream.script(redirect(upstream.url))
      assert.equal((await faultOf(drain(provider, { request: { stream } }))).statusCode, 502)
      assert.equal(upstream.requests.length, before + 1)
    }
  }),

  ofVendors('a vendor that breaks off before it answers is a fault', async (provider, { upstream }) => {
    for (const stream of [true, false]) {
      upstream.script(reset())
      assert.ok((await faultOf(drain(provider, { request: { stream } }))).statusCode >= 500)
    }
  }),

  ofVendors('a stream that breaks off is a fault after what it said', async (provider, vendor) => {
    const length = await lengthOf(vendor.stream(speech))
    vendor.upstream.script(reset(vendor.stream(speech), Math.floor(length / 2)))
    const { error, chunks, frames } = await streamed(provider)
    assert.ok(isGatewayError(error) && error.statusCode >= 500, `it failed with ${error ?? 'nothing'}`)
    assert.ok(text.startsWith(outcomeOfChunks(chunks).text))
    assert.ok(!frames.some(read => read.finished), 'it does not end well')
  }),

  ofVendors('a stream cut before its end never counts as finished', async (provider, vendor) => {
    const length = await lengthOf(vendor.stream(speech))
    for (let at = 0; at < length / 2; at += Math.ceil(length / 20)) {
      const cut: Reply = { ...vendor.stream(speech), limit: at, wire: 'close' }
      vendor.upstream.script(cut)
      const { error, frames } = await streamed(provider)
      assert.ok(error === null || isGatewayError(error), String(error))
      assert.ok(!frames.some(read => read.finished), `it ends well though it was cut at ${at}`)
    }
  }),

  ofVendors(
    'a stream that says that it failed is a fault after what it said',
    async (provider, vendor) => {
      vendor.upstream.script(vendor.failing!(speech, 'It broke.'))
      const { error, chunks, frames } = await streamed(provider)
      assert.ok(isGatewayError(error) && error.statusCode >= 500, `it failed with ${error ?? 'nothing'}`)
      assert.equal(outcomeOfChunks(chunks).text, text)
      assert.ok(!frames.some(read => read.finished), 'it does not end well')
    },
    vendor => vendor.failing
  ),

  ofVendors('a silent vendor is given up by the deadlines', async (provider, vendor) => {
    vendor.upstream.script(silence(), silence('headers'), silence(vendor.stream(speech), 1))
    const timeouts = { headers: 60, firstToken: 60, idle: 60 }
    for (let call = 0; call < 3; call++) {
      const error = await faultOf(drain(provider, { request: { stream: true }, timeouts }))
      assert.equal(error.code, 'GATEWAY_UPSTREAM_TIMEOUT')
      assert.equal(error.statusCode, 504)
    }
  }),

  ...[true, false].map(stream =>
    ofVendors(
      `an abort of a ${stream ? 'stream' : 'whole answer'} ends the vendor's request within 100 ms`,
      async (provider, { upstream }) => {
        upstream.script(silence(stream ? 'headers' : 'start'))
        const controller = new AbortController()
        const reason = new Error('gone')
        const call = errorOf(drain(provider, { request: { stream }, signal: controller.signal }))
        const request = await upstream.received()
        await turn()
        const aborted = performance.now()
        controller.abort(reason)
        assert.equal(await call, reason)
        const closed = await request.closed
        assert.equal(closed.how, 'aborted')
        assert.ok(closed.at - aborted < 100)
      }
    )
  ),

  ofVendors("a reader that leaves ends the vendor's request within 100 ms", async (provider, vendor) => {
    const length = await lengthOf(vendor.stream(speech))
    vendor.upstream.script(silence(vendor.stream(speech), Math.floor(length / 2)))
    const frames = await open(provider)
    await frames.next()
    const left = performance.now()
    await frames.return?.()
    const closed = await vendor.upstream.requests[0]!.closed
    assert.equal(closed.how, 'aborted')
    assert.ok(closed.at - left < 100)
  })
]

/** The fault that something has to fail with. */
export async function faultOf(promise: Promise<unknown>): Promise<GatewayError> {
  const error = await errorOf(promise)
  if (isGatewayError(error)) return error
  throw new assert.AssertionError({
    message: `It did not fail with a fault but with ${error ?? 'nothing'}.`,
    actual: error
  })
}

/** The body of a reply, in the pieces that it is written in. */
export async function piecesOf(reply: Reply): Promise<Uint8Array[]> {
  const all: Uint8Array[] = []
  for await (const piece of reply.body()) all.push(piece)
  return all
}

async function lengthOf(reply: Reply): Promise<number> {
  return Buffer.concat(await piecesOf(reply)).length
}
