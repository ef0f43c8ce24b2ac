import type { IncomingMessage, ServerResponse } from 'node:http'
import { TLSSocket } from 'node:tls'
import {
  type Context,
  context,
  propagation,
  type Span,
  SpanKind,
  SpanStatusCode,
  type Tracer,
  trace
} from '@opentelemetry/api'
import { withoutKeys } from '../../schemas/errors.ts'
import { timeNow } from './clock.ts'
import { errors, attributes as is } from './names.ts'
import { Traced } from './traced.ts'

/** Longer paths and names are cut. */
const longest = 256

/** Gives a request its span, unless one of the host's is active; see docs/decisions/0018. */
export function createServe(tracer: Tracer, decided: boolean) {
  /** Headers in which clients send a context. */
  let fields: readonly string[] = []

  /** Most clients send none, and then nothing has to be read. */
  function joined(above: Context, headers: IncomingMessage['headers']): Context {
    if (fields.length === 0) fields = propagation.fields()
    for (const field of fields) if (headers[field] !== undefined) return propagation.extract(above, headers)
    return above
  }

  return (request: IncomingMessage, response: ServerResponse, route: string | undefined): Traced => {
    const active = context.active()
    const outer = trace.getSpan(active)
    const method = request.method ?? '_OTHER'
    if (outer !== undefined) {
      const traced = new Traced(active, outer, decided)
      // That of instrumentation-http, which knows no routes.
      if (decided && traced.recording && route !== undefined) {
        outer.setAttribute(is.route, route).updateName(nameOf(method, route))
      }
      return traced
    }
    const above = joined(active, request.headers)
    // Samplers of our own server do not look at names.
    const name = decided ? method : nameOf(method, route)
    const span = tracer.startSpan(name, { kind: SpanKind.SERVER, startTime: timeNow() }, above)
    const traced = new Traced(above, span, decided)
    if (traced.recording) {
      if (decided) span.updateName(nameOf(method, route))
      describe(span, request, method, route)
      response.on('finish', () => end(span, response, true))
      // Others hear of it as well, and what they end is within this.
      response.on('close', () => process.nextTick(end, span, response, false))
      // Once a connection is upgraded its response hears of nothing any more.
      if (request.headers.upgrade !== undefined) {
        request.socket.once('close', () => process.nextTick(endUpgraded, span, response))
      }
    }
    return traced
  }
}

function nameOf(method: string, route: string | undefined): string {
  return route === undefined ? method : `${method} ${route}`
}

function describe(span: Span, request: IncomingMessage, method: string, route: string | undefined): void {
  const { url = '/', headers, socket } = request
  const query = url.indexOf('?')
  span.setAttribute(is.method, method)
  span.setAttribute(is.scheme, socket instanceof TLSSocket ? 'https' : 'http')
  // Never the query: tickets travel in it.
  span.setAttribute(is.path, withoutKeys(url.slice(0, query === -1 ? longest : Math.min(query, longest))))
  if (route !== undefined) span.setAttribute(is.route, route)
  const agent = headers['user-agent']
  if (agent !== undefined) span.setAttribute(is.userAgent, withoutKeys(agent.slice(0, longest)))
}

/** With its connection, which has been taken from the response. */
function endUpgraded(span: Span, response: ServerResponse): void {
  if (!span.isRecording()) return
  if (response.socket === null && !response.headersSent) span.setAttribute(is.status, 101)
  span.end(timeNow())
}

/** With the last byte, or when the client has gone: a head that never left says nothing. */
function end(span: Span, response: ServerResponse, whole: boolean): void {
  if (!span.isRecording()) return
  if (response.headersSent) span.setAttribute(is.status, response.statusCode)
  if (!whole) span.setAttribute(is.error, errors.cancelled)
  else if (response.statusCode >= 500) {
    span.setAttribute(is.error, String(response.statusCode))
    span.setStatus({ code: SpanStatusCode.ERROR })
  }
  span.end(timeNow())
}
