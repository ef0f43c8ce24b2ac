import type { FastifyReply } from 'fastify'
import type { Sink } from './hub.ts'
import { bytesOf, notice } from './item.ts'
import { patiently } from './patience.ts'

/** Milliseconds after which a browser comes back, and that one which does not read gets to take the last words. */
const retry = 3_000
const lastWords = 5_000

/** Takes the reply over and writes events into it. @param gone the connection has ended */
export function sseSink(reply: FastifyReply, gone: () => void): Sink {
  const response = reply.raw
  let timer: NodeJS.Timeout | undefined
  // Proxies on the way are not to store, compress or collect what is meant to arrive as it comes.
  reply.headers({
    'content-type': 'text/event-stream; charset=utf-8',
    'cache-control': 'no-store, no-transform',
    'x-accel-buffering': 'no'
  })
  for (const [name, value] of Object.entries(reply.getHeaders())) {
    if (value !== undefined) response.setHeader(name, value)
  }
  response.writeHead(200)
  reply.hijack()
  response.write(`retry: ${retry}\n\n`)
  response.on('error', () => {})
  response.on('close', () => {
    clearTimeout(timer)
    gone()
  })
  return {
    form: 'sse',
    get waiting() {
      return response.writableLength
    },
    write: bytes => void response.write(bytes),
    beat(id) {
      // A reader who takes nothing needs no sign of life. An id without data changes where it comes back to, and nothing else.
      if (response.writableLength === 0) response.write(id === null ? ': heartbeat\n\n' : `: heartbeat\nid: ${id}\n\n`)
    },
    drained: () => patiently(response),
    end(reason) {
      response.end(bytesOf('sse', [notice(null, 'gateway.events.end', { reason })]))
      timer = setTimeout(() => response.destroy(), lastWords).unref()
    },
    cut: () => void response.destroy()
  }
}
