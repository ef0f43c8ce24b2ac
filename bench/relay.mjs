// The bare relay that everything is compared to: Fastify takes the call, undici makes it, nothing in between.
// `node relay.mjs PORT UPSTREAM [JSON-VARIANT STREAM-VARIANT [MICROSECONDS]]`; it works that much longer for each request.
// Errors, back-pressure and clients that leave are handled
// in every variant; `run.mjs --relays` measures them all, and the defaults are the fastest ones.

import { Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import Fastify from 'fastify'
import { Pool } from 'undici'

const [port, upstream, json = 'raw-dispatch', stream = 'dispatch', longer = '0'] = process.argv.slice(2)
const { origin, pathname } = new URL(upstream)
const path = `${pathname}/chat/completions`
const pool = new Pool(origin, { connections: 1_024 })

const call = body => ({
  method: 'POST',
  path,
  headers: { 'content-type': 'application/json', authorization: 'Bearer bench' },
  body
})

/** Through undici's `request`: `send` turns the answer's body into what Fastify is given. */
const request = send => async (body, reply) => {
  const answer = await pool.request(call(body))
  reply.code(answer.statusCode).type(answer.headers['content-type'])
  return reply.send(await send(answer.body))
}

/** Through undici's `stream`, into the socket's response. */
async function streamed(body, reply) {
  await pool.stream(call(body), ({ statusCode, headers }) => {
    reply.hijack()
    return reply.raw.writeHead(statusCode, { 'content-type': headers['content-type'] })
  })
}

/** Ways to relay an answer that comes whole. */
const whole = {
  send: request(body => body),
  text: request(body => body.text()),
  bytes: request(async body => Buffer.from(await body.arrayBuffer())),
  stream: streamed,
  dispatch(body, reply) {
    const chunks = []
    pool.dispatch(call(body), {
      onRequestStart() {},
      onResponseStart(_controller, status, headers) {
        reply.code(status).type(headers['content-type'])
      },
      onResponseData(_controller, chunk) {
        chunks.push(chunk)
      },
      onResponseEnd() {
        reply.send(chunks.length === 1 ? chunks[0] : Buffer.concat(chunks))
      },
      onResponseError(_controller, error) {
        reply.send(error)
      }
    })
  }
}

/** Ways to relay an answer as it arrives. */
const asItArrives = {
  send: request(body => body),
  web: request(body => Readable.toWeb(body)),
  async pipeline(body, reply) {
    const answer = await pool.request(call(body))
    reply.hijack()
    reply.raw.writeHead(answer.statusCode, { 'content-type': answer.headers['content-type'] })
    await pipeline(answer.body, reply.raw)
  },
  stream: streamed,
  dispatch(body, reply) {
    const { raw } = reply
    pool.dispatch(call(body), {
      onRequestStart() {},
      onResponseStart(controller, status, headers) {
        reply.hijack()
        raw.writeHead(status, { 'content-type': headers['content-type'] })
        raw.on('drain', () => controller.resume())
        raw.on('close', () => {
          if (!raw.writableFinished) controller.abort(new Error('the client left'))
        })
      },
      onResponseData(controller, chunk) {
        if (!raw.write(chunk)) controller.pause()
      },
      onResponseEnd() {
        raw.end()
      },
      onResponseError(_controller, error) {
        if (raw.headersSent) raw.destroy(error)
        else reply.send(error)
      }
    })
  }
}

const app = Fastify({ logger: false, bodyLimit: 16 * 1024 * 1024 })
const relayWhole = whole[json.replace('raw-', '')]
const relayStream = asItArrives[stream]
let outgoing = request => JSON.stringify(request.body)

// `raw-`: the body is parsed as ever, and goes on as the bytes that came.
if (json.startsWith('raw-')) {
  outgoing = request => request.bytes
  app.decorateRequest('bytes', null)
  app.removeContentTypeParser('application/json')
  app.addContentTypeParser('application/json', { parseAs: 'buffer' }, (request, bytes, done) => {
    request.bytes = bytes
    try {
      done(null, JSON.parse(bytes))
    } catch (error) {
      done(error)
    }
  })
}

if (Number(longer) > 0) {
  app.addHook('preHandler', (_request, _reply, done) => {
    const until = performance.now() + longer / 1_000
    while (performance.now() < until);
    done()
  })
}

app.get('/health', () => ({ ok: true }))
app.post('/v1/chat/completions', (request, reply) =>
  request.body.stream === true ? relayStream(outgoing(request), reply) : relayWhole(outgoing(request), reply)
)
await app.listen({ port: Number(port), host: '127.0.0.1', backlog: 4_096 })
