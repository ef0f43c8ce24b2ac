import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import fp from 'fastify-plugin'
import { ChatRequest } from '../../schemas/chat.ts'
import { detail, InvalidRequest } from '../../schemas/errors.ts'
import type { Completed } from '../../schemas/gateway.ts'
import { type Asker, headOf, pairs, writeHead } from './head.ts'
import { type SseOptions, sendStream } from './stream.ts'

declare module '../../schemas/gateway.ts' {
  interface Gateway {
    /** Answers a chat request over HTTP. `model` overrules the body's. */
    chat(request: FastifyRequest, reply: FastifyReply, body: ChatRequest, model?: string): Promise<FastifyReply>
  }
}

export interface ChatCompletionsOptions {
  /** False refuses streams. */
  sse?: SseOptions | false
  /** True on a server without hooks of a host: answers are then written past Fastify's reply, which is faster. */
  direct?: boolean
}

/** POST /v1/chat/completions: JSON and server-sent events. */
async function chatCompletions(app: FastifyInstance, options: ChatCompletionsOptions): Promise<void> {
  const { gateway } = app
  const direct = options.direct ?? false
  const sse = options.sse ?? { heartbeat: 15_000, headersAfter: 10_000 }

  gateway.decorate('chat', async (request, reply, body, model) => {
    const asked = model === undefined ? body : { ...body, model }
    if (asked.stream === true && sse === false) {
      throw detail(new InvalidRequest('Streaming is switched off on this gateway: send stream: false.'), {
        param: 'stream'
      })
    }
    const departure = new AbortController()
    const { raw } = reply
    // Not request.signal, which aborts as soon as a JSON body was parsed, and not onResponse, which never runs for a
    // client that left mid-stream.
    raw.on('close', () => {
      if (!raw.writableFinished) departure.abort()
    })
    if (raw.destroyed) departure.abort()
    const caller = gateway.http.caller(request, departure.signal, asked.tenant)
    const answering = gateway.complete(asked, caller)
    if (asked.stream === true && sse !== false) {
      return sendStream(reply, answering, caller, gateway, sse)
    }
    return sendWhole(reply, await answering, caller, gateway.http.fixed, direct)
  })

  app.register(async scope => {
    gateway.http.prepare(scope, { open: false, fixed: false })
    scope.post<{ Body: ChatRequest }>(
      '/v1/chat/completions',
      { schema: { body: ChatRequest }, bodyLimit: gateway.http.bodyLimit },
      (request, reply) => gateway.chat(request, reply, request.body)
    )
  })
}

function sendWhole(
  reply: FastifyReply,
  answer: Completed,
  caller: Asker,
  fixed: readonly string[],
  direct: boolean
): FastifyReply {
  if (answer.stream) {
    void answer.frames.return()
    throw new Error('A layer answered a whole request with a stream.')
  }
  const body = bytesOf(answer.raw) ?? Buffer.from(JSON.stringify(answer.body))
  const head = headOf(answer.facts, caller, 'application/json; charset=utf-8')
  if (!direct) return reply.headers(pairs(fixed)).headers(pairs(head)).send(body)
  head.push('content-length', String(body.length))
  writeHead(reply, fixed, head)
  // Node writes a short text together with the head in one piece, and two pieces with a vectored write.
  if (body.length < 4_096) reply.raw.end(body.toString('latin1'), 'latin1')
  else reply.raw.end(body)
  return reply
}

function bytesOf(raw: Uint8Array | null): Buffer | null {
  return raw === null || Buffer.isBuffer(raw) ? raw : Buffer.from(raw.buffer, raw.byteOffset, raw.byteLength)
}

export default fp(chatCompletions, { fastify: '5.x', name: 'chat-completions', dependencies: ['http', 'routing'] })
