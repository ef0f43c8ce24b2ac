// A reader and a writer for the few messages of opentelemetry-proto (v1) that tests look at, of their own: what an exporter
// of OpenTelemetry has written is not read by OpenTelemetry. A message comes out as its OTLP/JSON form: fields by name,
// 64-bit numbers as decimal texts, ids in hexadecimal.

/** A message in its OTLP/JSON form. */
export interface Message {
  readonly [field: string]: Value
}
export type Value = string | number | boolean | null | undefined | Message | readonly Value[]

type Scalar = 'text' | 'hex' | 'base64' | 'bool' | 'enum' | 'int64' | 'fixed32' | 'fixed64' | 'sfixed64' | 'double'
/** What a field is called and holds; `many`: repeated. */
interface Field {
  readonly name: string
  readonly holds: Scalar | Shape | (() => Shape)
  readonly many?: true
}
type Shape = Readonly<Record<number, Field>>

const one = (name: string, holds: Field['holds']): Field => ({ name, holds })
const many = (name: string, holds: Field['holds']): Field => ({ name, holds, many: true })

// common/v1
const anyValue: Shape = {
  1: one('stringValue', 'text'),
  2: one('boolValue', 'bool'),
  3: one('intValue', 'int64'),
  4: one('doubleValue', 'double'),
  5: one('arrayValue', () => ({ 1: many('values', anyValue) })),
  6: one('kvlistValue', () => ({ 1: many('values', keyValue) })),
  7: one('bytesValue', 'base64')
}
const keyValue: Shape = { 1: one('key', 'text'), 2: one('value', anyValue) }
const scope: Shape = { 1: one('name', 'text'), 2: one('version', 'text'), 3: many('attributes', keyValue) }
const resource: Shape = { 1: many('attributes', keyValue), 2: one('droppedAttributesCount', 'enum') }

// trace/v1
const event: Shape = {
  1: one('timeUnixNano', 'fixed64'),
  2: one('name', 'text'),
  3: many('attributes', keyValue),
  4: one('droppedAttributesCount', 'enum')
}
const link: Shape = {
  1: one('traceId', 'hex'),
  2: one('spanId', 'hex'),
  3: one('traceState', 'text'),
  4: many('attributes', keyValue),
  5: one('droppedAttributesCount', 'enum'),
  6: one('flags', 'fixed32')
}
const span: Shape = {
  1: one('traceId', 'hex'),
  2: one('spanId', 'hex'),
  3: one('traceState', 'text'),
  4: one('parentSpanId', 'hex'),
  5: one('name', 'text'),
  6: one('kind', 'enum'),
  7: one('startTimeUnixNano', 'fixed64'),
  8: one('endTimeUnixNano', 'fixed64'),
  9: many('attributes', keyValue),
  10: one('droppedAttributesCount', 'enum'),
  11: many('events', event),
  12: one('droppedEventsCount', 'enum'),
  13: many('links', link),
  14: one('droppedLinksCount', 'enum'),
  15: one('status', { 2: one('message', 'text'), 3: one('code', 'enum') }),
  16: one('flags', 'fixed32')
}
/** ExportTraceServiceRequest. */
export const traces: Shape = {
  1: many('resourceSpans', {
    1: one('resource', resource),
    2: many('scopeSpans', { 1: one('scope', scope), 2: many('spans', span), 3: one('schemaUrl', 'text') }),
    3: one('schemaUrl', 'text')
  })
}

// metrics/v1; exponential histograms and summaries are not looked into
const numberPoint: Shape = {
  2: one('startTimeUnixNano', 'fixed64'),
  3: one('timeUnixNano', 'fixed64'),
  4: one('asDouble', 'double'),
  6: one('asInt', 'sfixed64'),
  7: many('attributes', keyValue)
}
const histogramPoint: Shape = {
  2: one('startTimeUnixNano', 'fixed64'),
  3: one('timeUnixNano', 'fixed64'),
  4: one('count', 'fixed64'),
  5: one('sum', 'double'),
  6: many('bucketCounts', 'fixed64'),
  7: many('explicitBounds', 'double'),
  9: many('attributes', keyValue),
  11: one('min', 'double'),
  12: one('max', 'double')
}
const metric: Shape = {
  1: one('name', 'text'),
  2: one('description', 'text'),
  3: one('unit', 'text'),
  5: one('gauge', { 1: many('dataPoints', numberPoint) }),
  7: one('sum', {
    1: many('dataPoints', numberPoint),
    2: one('aggregationTemporality', 'enum'),
    3: one('isMonotonic', 'bool')
  }),
  9: one('histogram', { 1: many('dataPoints', histogramPoint), 2: one('aggregationTemporality', 'enum') })
}
/** ExportMetricsServiceRequest. */
export const metrics: Shape = {
  1: many('resourceMetrics', {
    1: one('resource', resource),
    2: many('scopeMetrics', { 1: one('scope', scope), 2: many('metrics', metric), 3: one('schemaUrl', 'text') }),
    3: one('schemaUrl', 'text')
  })
}

/** Decodes a message. Fields that the shape does not know are skipped. @throws Error where the bytes are no message */
export function decode(shape: Shape, bytes: Uint8Array): Message {
  const message: Record<string, Value> = {}
  const lists = new Map<string, Value[]>()
  for (const { number, wire, content } of fieldsOf(bytes)) {
    const field = shape[number]
    if (field === undefined) continue
    const values = valuesOf(field.holds, wire, content)
    if (!field.many) message[field.name] = values.at(-1)
    else {
      const list = lists.get(field.name) ?? []
      list.push(...values)
      lists.set(field.name, list)
    }
  }
  return Object.assign(message, Object.fromEntries(lists))
}

const varint = 0
const eight = 1
const delimited = 2
const four = 5
const wires: Record<Scalar, number> = {
  text: delimited,
  hex: delimited,
  base64: delimited,
  bool: varint,
  enum: varint,
  int64: varint,
  fixed32: four,
  fixed64: eight,
  sfixed64: eight,
  double: eight
}

/** One value, or all of a packed field. */
function valuesOf(holds: Field['holds'], wire: number, content: Uint8Array): Value[] {
  if (typeof holds === 'function') return valuesOf(holds(), wire, content)
  if (typeof holds === 'object') {
    if (wire !== delimited) throw new Error(`A message stands as wire type ${wire}.`)
    return [decode(holds, content)]
  }
  const expected = wires[holds]
  if (wire === expected) return [scalar(holds, content)]
  if (wire !== delimited || expected !== eight) throw new Error(`A ${holds} stands as wire type ${wire}.`)
  if (content.length % 8 !== 0) throw new Error('A packed field does not end with its last value.')
  return Array.from({ length: content.length / 8 }, (_, index) =>
    scalar(holds, content.subarray(index * 8, index * 8 + 8))
  )
}

function scalar(holds: Scalar, content: Uint8Array): Value {
  const view = new DataView(content.buffer, content.byteOffset, content.byteLength)
  switch (holds) {
    case 'text':
      return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(content)
    case 'hex':
      return Buffer.from(content).toString('hex')
    case 'base64':
      return Buffer.from(content).toString('base64')
    case 'bool':
      return readVarint(content, 0).value !== 0n
    case 'enum':
      return Number(readVarint(content, 0).value)
    case 'int64':
      return String(BigInt.asIntN(64, readVarint(content, 0).value))
    case 'fixed32':
      return view.getUint32(0, true)
    case 'fixed64':
      return String(view.getBigUint64(0, true))
    case 'sfixed64':
      return String(view.getBigInt64(0, true))
    case 'double':
      return view.getFloat64(0, true)
  }
}

function* fieldsOf(bytes: Uint8Array): Generator<{ number: number; wire: number; content: Uint8Array }> {
  let at = 0
  while (at < bytes.length) {
    const tag = readVarint(bytes, at)
    const number = Number(tag.value >> 3n)
    const wire = Number(tag.value & 7n)
    if (number === 0) throw new Error('A field has the number 0.')
    const { start, end } = extentOf(bytes, tag.end, wire)
    if (end > bytes.length) throw new Error(`Field ${number} ends after its message.`)
    yield { number, wire, content: bytes.subarray(start, end) }
    at = end
  }
}

function extentOf(bytes: Uint8Array, at: number, wire: number): { start: number; end: number } {
  if (wire === varint) return { start: at, end: readVarint(bytes, at).end }
  if (wire === eight) return { start: at, end: at + 8 }
  if (wire === four) return { start: at, end: at + 4 }
  if (wire !== delimited) throw new Error(`There is no wire type ${wire}.`)
  const length = readVarint(bytes, at)
  return { start: length.end, end: length.end + Number(length.value) }
}

function readVarint(bytes: Uint8Array, start: number): { value: bigint; end: number } {
  let value = 0n
  for (let at = start; at < start + 10; at++) {
    const byte = bytes[at]
    if (byte === undefined) break
    value |= BigInt(byte & 0x7f) << BigInt(7 * (at - start))
    if (byte < 0x80) return { value, end: at + 1 }
  }
  throw new Error('A number does not end.')
}

/** Export…ServiceResponse with a partial success: how many were refused, and why, in less than 100 bytes. */
export function partialSuccess(rejected: number, reason: string): Uint8Array {
  const words = Buffer.from(reason)
  const inner = Buffer.concat([Buffer.from([0x08, ...varintOf(rejected), 0x12, words.length]), words])
  return Buffer.concat([Buffer.from([0x0a, inner.length]), inner])
}

function varintOf(value: number): number[] {
  return value < 0x80 ? [value] : [(value & 0x7f) | 0x80, ...varintOf(value >>> 7)]
}
