import { STATUS_CODES } from 'node:http'
import type { Socket } from 'node:net'
import {
  type ConnectionError,
  type FastifyError,
  type FastifyReply,
  type FastifyRequest,
  type FastifyServerOptions,
  LogController
} from 'fastify'
import { detail, errorBody, InvalidRequest } from '../../schemas/errors.ts'
import { newTraceId } from '../../schemas/trace.ts'
import { toGatewayError } from './errors.ts'

/** A request line above this is what made the headers too large, whatever else they hold. Node allows 16 KiB in all. */
const longestUrl = 8_192

/** What a server of our own is built with; an embedder who wants faults below HTTP in our form too may use it. */
export function serverOptions(options: {
  bodyLimit: number
  trustProxy: boolean | number | string | string[]
}): FastifyServerOptions {
  return {
    bodyLimit: options.bodyLimit,
    trustProxy: typeof options.trustProxy === 'number' ? trustHops(options.trustProxy) : options.trustProxy,
    // The kernel refuses new work itself while it closes, in OpenAI's form.
    return503OnClosing: false,
    logController: new LogController({ disableRequestLogging: true }),
    // How long a client may take to send a request, in milliseconds.
    requestTimeout: 120_000,
    routerOptions: { maxParamLength: 1024 },
    clientErrorHandler,
    frameworkErrors(error: FastifyError, _request: FastifyRequest, reply: FastifyReply) {
      const fault = toGatewayError(error, options.bodyLimit)
      reply.code(fault.statusCode).headers(fault.headers).header('x-trace-id', newTraceId()).send(errorBody(fault))
    }
  }
}

/** The nearest `hops` addresses are proxies of ours. */
function trustHops(hops: number): (address: string, hop: number) => boolean {
  return (_address, hop) => hop < hops
}

/** Faults that Node finds before there is a request. */
function clientErrorHandler(error: ConnectionError, socket: Socket): void {
  if (error.code === 'ECONNRESET' || socket.destroyed) return
  const { statusCode, message } = describe(error)
  if (socket.writable && !isAnswering(socket)) {
    const body = JSON.stringify(errorBody(detail(new InvalidRequest(message), { statusCode })))
    socket.write(
      `HTTP/1.1 ${statusCode} ${STATUS_CODES[statusCode]}\r\nconnection: close\r\ncontent-type: application/json; charset=utf-8\r\n` +
        `x-trace-id: ${newTraceId()}\r\ncontent-length: ${Buffer.byteLength(body)}\r\n${statusCode === 408 ? '' : 'x-should-retry: false\r\n'}\r\n${body}`
    )
  }
  socket.destroySoon()
}

/** An answer is on its way already: nothing may be written into it. Node's own handler looks at the same field. */
function isAnswering(socket: Socket): boolean {
  if (!('_httpMessage' in socket)) return false
  const message = socket._httpMessage
  return typeof message === 'object' && message !== null && 'headersSent' in message && message.headersSent === true
}

function describe(error: ConnectionError): { statusCode: number; message: string } {
  if (error.code === 'ERR_HTTP_REQUEST_TIMEOUT')
    return { statusCode: 408, message: 'The request took too long to arrive.' }
  if (error.code !== 'HPE_HEADER_OVERFLOW') return { statusCode: 400, message: 'This is not an HTTP request.' }
  // Node counts the URL among the headers. What it was reading shows the start of the request, or the middle of a line.
  const packet: unknown = error.rawPacket
  if (Buffer.isBuffer(packet) && startsWithLongUrl(packet)) return { statusCode: 414, message: 'The URL is too long.' }
  return { statusCode: 431, message: 'The headers of this request are too large.' }
}

function startsWithLongUrl(packet: Buffer): boolean {
  if (!/^[A-Z]+ \//.test(packet.toString('latin1', 0, 32))) return false
  const end = packet.indexOf('\n')
  return end === -1 || end > longestUrl
}
