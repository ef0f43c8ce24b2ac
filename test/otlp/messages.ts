import type { Message, Value } from './protobuf.ts'

// What tests look at: spans and points of metrics, from the OTLP/JSON form of an export.

export type AttributeValue = string | number | bigint | boolean | null | readonly AttributeValue[] | Attributes
export interface Attributes {
  readonly [name: string]: AttributeValue
}

export interface Scope {
  readonly name: string
  readonly version: string
}

const kinds = ['unspecified', 'internal', 'server', 'client', 'producer', 'consumer'] as const
const codes = ['unset', 'ok', 'error'] as const

/** One span that was exported. Ids in hexadecimal, times in nanoseconds since 1970. */
export interface Span {
  readonly traceId: string
  readonly spanId: string
  /** null: a root. */
  readonly parentSpanId: string | null
  readonly traceState: string
  readonly sampled: boolean
  /** The parent is in another process. */
  readonly remoteParent: boolean
  readonly name: string
  readonly kind: (typeof kinds)[number]
  readonly start: bigint
  readonly end: bigint
  readonly attributes: Attributes
  readonly events: ReadonlyArray<{ readonly name: string; readonly time: bigint; readonly attributes: Attributes }>
  readonly links: ReadonlyArray<{ readonly traceId: string; readonly spanId: string; readonly attributes: Attributes }>
  readonly status: { readonly code: (typeof codes)[number]; readonly message: string }
  /** Attributes, events and links that the SDK has left out. */
  readonly dropped: number
  readonly resource: Attributes
  readonly scope: Scope
}

/** One point of a metric that was exported. */
export interface Point {
  readonly name: string
  readonly unit: string
  readonly description: string
  readonly kind: 'gauge' | 'sum' | 'histogram'
  /** Of sums and histograms. */
  readonly temporality: 'delta' | 'cumulative' | null
  readonly monotonic: boolean
  readonly attributes: Attributes
  readonly start: bigint
  readonly time: bigint
  /** Of a histogram: the sum of what was recorded. */
  readonly value: number
  /** Of a histogram: how often something was recorded. */
  readonly count: number
  readonly bounds: readonly number[]
  readonly buckets: readonly number[]
  readonly resource: Attributes
  readonly scope: Scope
}

/** @throws Error where the export is not as OTLP has it */
export function spansOf(request: Message): Span[] {
  return messages(request, 'resourceSpans').flatMap(group => {
    const resource = attributesOf(message(group, 'resource'))
    return messages(group, 'scopeSpans').flatMap(part => {
      const scope = scopeOf(part)
      return messages(part, 'spans').map(span => spanOf(span, resource, scope))
    })
  })
}

/** @throws Error where the export is not as OTLP has it */
export function pointsOf(request: Message): Point[] {
  return messages(request, 'resourceMetrics').flatMap(group => {
    const resource = attributesOf(message(group, 'resource'))
    return messages(group, 'scopeMetrics').flatMap(part => {
      const scope = scopeOf(part)
      return messages(part, 'metrics').flatMap(metric => pointsOfMetric(metric, resource, scope))
    })
  })
}

function spanOf(span: Message, resource: Attributes, scope: Scope): Span {
  const status = message(span, 'status')
  const flags = whole(span, 'flags')
  return {
    traceId: idOf(span, 'traceId', 16),
    spanId: idOf(span, 'spanId', 8),
    parentSpanId: text(span, 'parentSpanId') === '' ? null : idOf(span, 'parentSpanId', 8),
    traceState: text(span, 'traceState'),
    sampled: (flags & 1) === 1,
    remoteParent: (flags & 0x200) !== 0,
    name: text(span, 'name'),
    kind: choice(span, 'kind', kinds),
    start: nanos(span, 'startTimeUnixNano'),
    end: nanos(span, 'endTimeUnixNano'),
    attributes: attributesOf(span),
    events: messages(span, 'events').map(event => {
      return { name: text(event, 'name'), time: nanos(event, 'timeUnixNano'), attributes: attributesOf(event) }
    }),
    links: messages(span, 'links').map(link => {
      return { traceId: idOf(link, 'traceId', 16), spanId: idOf(link, 'spanId', 8), attributes: attributesOf(link) }
    }),
    status: { code: choice(status, 'code', codes), message: text(status, 'message') },
    dropped:
      whole(span, 'droppedAttributesCount') + whole(span, 'droppedEventsCount') + whole(span, 'droppedLinksCount'),
    resource,
    scope
  }
}

function pointsOfMetric(metric: Message, resource: Attributes, scope: Scope): Point[] {
  const kind = (['gauge', 'sum', 'histogram'] as const).find(kind => metric[kind] !== undefined)
  if (kind === undefined) return []
  const data = message(metric, kind)
  const temporality = kind === 'gauge' ? 'none' : choice(data, 'aggregationTemporality', temporalities)
  return messages(data, 'dataPoints').map(point => ({
    name: text(metric, 'name'),
    unit: text(metric, 'unit'),
    description: text(metric, 'description'),
    kind,
    temporality: temporality === 'none' ? null : temporality,
    monotonic: data['isMonotonic'] === true,
    attributes: attributesOf(point),
    start: nanos(point, 'startTimeUnixNano'),
    time: nanos(point, 'timeUnixNano'),
    value: Number(point['asDouble'] ?? point['asInt'] ?? point['sum'] ?? 0),
    count: Number(point['count'] ?? 1),
    bounds: list(point, 'explicitBounds').map(Number),
    buckets: list(point, 'bucketCounts').map(Number),
    resource,
    scope
  }))
}
const temporalities = ['none', 'delta', 'cumulative'] as const

function scopeOf(part: Message): Scope {
  const scope = message(part, 'scope')
  return { name: text(scope, 'name'), version: text(scope, 'version') }
}

function attributesOf(holder: Message): Attributes {
  return keyValues(messages(holder, 'attributes'))
}

function keyValues(pairs: readonly Message[]): Attributes {
  const attributes: Record<string, AttributeValue> = {}
  for (const pair of pairs) {
    const key = text(pair, 'key')
    if (key in attributes) throw new Error(`The attribute ${key} stands twice.`)
    attributes[key] = attributeValue(message(pair, 'value'))
  }
  return attributes
}

function attributeValue(value: Message): AttributeValue {
  if (value['stringValue'] !== undefined) return text(value, 'stringValue')
  if (value['boolValue'] !== undefined) return value['boolValue'] === true
  if (value['intValue'] !== undefined) {
    const exact = BigInt(String(value['intValue']))
    return BigInt(Number(exact)) === exact ? Number(exact) : exact
  }
  if (value['doubleValue'] !== undefined) return Number(value['doubleValue'])
  if (value['arrayValue'] !== undefined) return messages(message(value, 'arrayValue'), 'values').map(attributeValue)
  if (value['kvlistValue'] !== undefined) return keyValues(messages(message(value, 'kvlistValue'), 'values'))
  return value['bytesValue'] === undefined ? null : text(value, 'bytesValue')
}

function message(holder: Message, field: string): Message {
  const value = holder[field]
  if (value === undefined || value === null) return {}
  if (!isMessage(value)) throw new Error(`${field} is no message.`)
  return value
}

function messages(holder: Message, field: string): Message[] {
  return list(holder, field).map(value => {
    if (!isMessage(value)) throw new Error(`${field} holds what is no message.`)
    return value
  })
}

function list(holder: Message, field: string): readonly Value[] {
  const value = holder[field] ?? []
  if (!isList(value)) throw new Error(`${field} is no list.`)
  return value
}

function isMessage(value: Value): value is Message {
  return typeof value === 'object' && value !== null && !isList(value)
}

function isList(value: Value): value is readonly Value[] {
  return Array.isArray(value)
}

function text(holder: Message, field: string): string {
  const value = holder[field] ?? ''
  if (typeof value !== 'string') throw new Error(`${field} is no text.`)
  return value
}

function whole(holder: Message, field: string): number {
  const value = Number(holder[field] ?? 0)
  if (!Number.isInteger(value)) throw new Error(`${field} is no whole number.`)
  return value
}

function nanos(holder: Message, field: string): bigint {
  return BigInt(String(holder[field] ?? 0))
}

function choice<T>(holder: Message, field: string, names: readonly T[]): T {
  const name = names[whole(holder, field)]
  if (name === undefined) throw new Error(`${field} is ${holder[field]}, which does not exist.`)
  return name
}

function idOf(holder: Message, field: string, bytes: number): string {
  const id = text(holder, field)
  if (id.length !== bytes * 2 || !/^[0-9a-f]+$/.test(id) || /^0+$/.test(id)) {
    throw new Error(`${field} is ${id || 'empty'}: it has ${bytes} bytes and is not zero.`)
  }
  return id
}
