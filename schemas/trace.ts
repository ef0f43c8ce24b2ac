import { randomFillSync } from 'node:crypto'

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

const bytes = 16
const pool = Buffer.allocUnsafe(256 * bytes)
let next = pool.length

/** A new trace id: 32 hex digits. Random bytes are drawn for many at a time. */
export function newTraceId(): string {
  if (next === pool.length) {
    randomFillSync(pool)
    next = 0
  }
  const id = pool.toString('hex', next, next + bytes)
  next += bytes
  // All zeros stand for none.
  return id === '0'.repeat(32) ? newTraceId() : id
}

/** What the plugin otel knows of the moment. */
export interface Tracing {
  /** The trace of the span that is active, if there is one. */
  traceId(): string | undefined
}

declare module './gateway.ts' {
  interface Gateway {
    tracing?: Tracing
  }
}
