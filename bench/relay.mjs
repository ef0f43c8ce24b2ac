// The bare relay everything is compared to: Fastify takes the call, undici makes it, nothing in between.
// `node relay.mjs PORT UPSTREAM [JSON-VARIANT STREAM-VARIANT]`. The defaults are the fastest ones measured (README.md).
import { Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import Fastify from 'fastify'
import { Pool } from 'undici'

const [port, upstream, json = 'text', stream = 'send'] = process.argv.slice(2)
const { origin, pathname } = new URL(upstream)
const path = `${pathname}/chat/completions`
const pool = new Pool(origin, { connections: 256 })

const call = body => ({
  method: 'POST',
  path,
  headers: { 'content-type': 'application/json', authorization: 'Bearer bench' },
  body
})

/** Ways to relay an answer that comes whole. */
const whole = {
  async send(body, reply) {
    const answer = await pool.request(call(body))
    return reply.code(answer.statusCode).type(answer.headers['content-type']).send(answer.body)
  },
  async text(body, reply) {
    const answer = await pool.request(call(body))
    return reply.code(answer.statusCode).type(answer.headers['content-type']).send(await answer.body.text())
  },
  async bytes(body, reply) {
    const answer = await pool.request(call(body))
    const bytes = Buffer.from(await answer.body.arrayBuffer())
    return reply.code(answer.statusCode).type(answer.headers['content-type']).send(bytes)
  },
  async chunks(body, reply) {
    const answer = await pool.request(call(body))
    const chunks = []
    for await (const chunk of answer.body) chunks.push(chunk)
    return reply.code(answer.statusCode).type(answer.headers['content-type']).send(Buffer.concat(chunks))
  },
  async stream(body, reply) {
    reply.hijack()
    await pool.stream(call(body), ({ statusCode, headers }) =>
      reply.raw.writeHead(statusCode, { 'content-type': headers['content-type'] })
    )
  },
  dispatch(body, reply) {
    let status
    let type
    const chunks = []
    pool.dispatch(call(body), {
      onRequestStart() {},
      onResponseStart(_controller, statusCode, headers) {
        status = statusCode
        type = headers['content-type']
      },
      onResponseData(_controller, chunk) {
        chunks.push(chunk)
      },
      onResponseEnd() {
        reply.code(status).type(type).send(chunks.length === 1 ? chunks[0] : Buffer.concat(chunks))
      },
      onResponseError(_controller, error) {
        reply.send(error)
      }
    })
    return reply
  }
}

/** Ways to relay an answer as it arrives. */
const asItArrives = {
  async send(body, reply) {
    const answer = await pool.request(call(body))
    return reply.code(answer.statusCode).type(answer.headers['content-type']).send(answer.body)
  },
  async web(body, reply) {
    const answer = await pool.request(call(body))
    return reply
      .code(answer.statusCode)
      .type(answer.headers['content-type'])
      .send(Readable.toWeb(answer.body))
  },
  async pipeline(body, reply) {
    const answer = await pool.request(call(body))
    reply.hijack()
    reply.raw.writeHead(answer.statusCode, { 'content-type': answer.headers['content-type'] })
    await pipeline(answer.body, reply.raw)
  },
  async loop(body, reply) {
    const answer = await pool.request(call(body))
    reply.hijack()
    reply.raw.writeHead(answer.statusCode, { 'content-type': answer.headers['content-type'] })
    for await (const chunk of answer.body) {
      if (!reply.raw.write(chunk)) await new Promise(resolve => reply.raw.once('drain', resolve))
    }
    reply.raw.end()
  },
  stream: whole.stream,
  dispatch(body, reply) {
    const { raw } = reply
    reply.hijack()
    pool.dispatch(call(body), {
      onRequestStart() {},
      onResponseStart(_controller, statusCode, headers) {
        raw.writeHead(statusCode, { 'content-type': headers['content-type'] })
      },
      onResponseData(controller, chunk) {
        if (raw.write(chunk)) return
        controller.pause()
        raw.once('drain', () => controller.resume())
      },
      onResponseEnd() {
        raw.end()
      },
      onResponseError(_controller, error) {
        raw.destroy(error)
      }
    })
    return reply
  }
}

const app = Fastify({ logger: false, bodyLimit: 16 * 1024 * 1024 })
const relayWhole = whole[json.replace('raw-', '')]
const relayStream = asItArrives[stream]

// `raw-`: Fastify parses the body, and the bytes that came go on as they are.
if (json.startsWith('raw-')) {
  app.removeAllContentTypeParsers()
  app.addContentTypeParser('application/json', { parseAs: 'buffer' }, (request, bytes, done) => {
    request.raw.bytes = bytes
    try {
      done(null, JSON.parse(bytes))
    } catch (error) {
      done(error)
    }
  })
}
const outgoing = json.startsWith('raw-') ? request => request.raw.bytes : request => JSON.stringify(request.body)

app.get('/health', () => ({ ok: true }))
app.post('/v1/chat/completions', (request, reply) =>
  request.body.stream ? relayStream(outgoing(request), reply) : relayWhole(outgoing(request), reply)
)
await app.listen({ port: Number(port), host: '127.0.0.1', backlog: 4096 })
