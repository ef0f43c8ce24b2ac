import { randomFillSync } from 'node:crypto'
import type { IncomingMessage, ServerResponse } from 'node:http'

// W3C trace context, https://www.w3.org/TR/trace-context/. Every call has a trace id, whether anybody traces or not.

const form = /^(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-|$)/

/** The trace id of a `traceparent` as it came in; null for what is none. */
export function traceIdOf(traceparent: string | undefined): string | null {
  if (traceparent === undefined || traceparent.length > 256) return null
  const found = form.exec(traceparent)
  // Version 00 ends with the flags.
  if (found === null || (traceparent.length > 55 && traceparent.startsWith('00'))) return null
  return found[1] ?? null
}

/** Random bytes for the next ids: to draw them for each would cost more than all else about an id. */
const pool = Buffer.allocUnsafe(4_096)
let next = pool.length

/** A new trace id: 32 hex digits. */
export function newTraceId(): string {
  const id = draw(32)
  // All zeros stand for none.
  return id === '00000000000000000000000000000000' ? newTraceId() : id
}

/** A new span id: 16 hex digits. */
export function newSpanId(): string {
  const id = draw(16)
  return id === '0000000000000000' ? newSpanId() : id
}

function draw(digits: number): string {
  const bytes = digits / 2
  if (next + bytes > pool.length) {
    randomFillSync(pool)
    next = 0
  }
  const id = pool.toString('hex', next, next + bytes)
  next += bytes
  return id
}

/** What the plugin otel offers. */
export interface Tracing {
  /** The trace of the span that is active, if there is one. */
  traceId(): string | undefined
  /**
   * A request has come in: its span begins here and ends with its answer, unless a span of the host is active already.
   * @param route its pattern
   */
  serve(request: IncomingMessage, response: ServerResponse, route: string | undefined): Served
  /** Spans that the queue before the collector had no room for, and those that the collector did not take. */
  readonly dropped: number
  readonly failed: number
}

/** What tracing knows of a request, for the calls that it brings. */
export interface Served {
  /** Undefined: nobody traces. */
  readonly traceId: string | undefined
}

declare module './gateway.ts' {
  interface Gateway {
    tracing?: Tracing
  }
}
