import type { GatewayEvent } from '../../schemas/events.ts'
import { isRecord } from '../../schemas/reader.ts'

/** An event on its way out of the process. Its texts are made on first use and shared by everybody who gets it. */
export interface Item {
  /** As Redis counts: `<milliseconds>-<number>`. */
  readonly id: string
  readonly type: string
  /** The JSON object that stands in the stream, without `event_type`. */
  readonly data: string
  /** What a subscriber gets. */
  json?: string
  /** Undefined: not looked for yet. */
  tenant?: string | null
}

/** How a transport writes an event. */
export type Form = 'sse' | 'websocket'

export const idPattern = /^(\d{1,16})-(\d{1,16})$/
export const firstId = '0-0'

/** Whether one id comes after another. */
export function isAfter(one: string, other: string): boolean {
  const [milliseconds, number] = partsOf(one)
  const [otherMilliseconds, otherNumber] = partsOf(other)
  return milliseconds === otherMilliseconds ? number > otherNumber : milliseconds > otherMilliseconds
}

function partsOf(id: string): [number, number] {
  const dash = id.indexOf('-')
  return [Number(id.slice(0, dash)), Number(id.slice(dash + 1))]
}

/** What stands in the stream: the time, then what the event says. */
export function dataOf({ time, data }: GatewayEvent): string {
  const said = JSON.stringify(data)
  const comma = said === '{}' ? '' : ','
  return `{"time":"${isoOf(time)}"${comma}${said.slice(1)}`
}

let lastTime = 0
let lastIso = ''

/** Many events have the same millisecond. */
function isoOf(time: number): string {
  if (time !== lastTime) {
    lastIso = new Date(time).toISOString()
    lastTime = time
  }
  return lastIso
}

/** An entry of the stream, of whomever; null for what is none of an event. */
export function itemOf(id: string, type: string | undefined, data: string | undefined): Item | null {
  if (type === undefined || data === undefined || !data.startsWith('{')) return null
  if (!/[\r\n]/.test(data)) return { id, type, data }
  // Somebody else has written it in lines, which would be the end of an event.
  const flat = parsed(data)
  return flat === null ? null : { id, type, data: JSON.stringify(flat) }
}

export function jsonOf(item: Item): string {
  item.json ??= messageOf(item.id, item.type, item.data)
  return item.json
}

export function tenantOf(item: Item): string | null {
  if (item.tenant === undefined) {
    const tenant = parsed(item.data)?.['tenant']
    item.tenant = typeof tenant === 'string' ? tenant : null
  }
  return item.tenant
}

/** Types of messages about the stream itself, which pass every filter. */
export const notices = ['gateway.events.ready', 'gateway.events.gap', 'gateway.events.end'] as const
export type Notice = (typeof notices)[number]

/** A message about the stream itself, which stands in no stream. Without an id a reader's last one stays what it was. */
export function notice(id: string | null, type: Notice, said: object): Item {
  return { id: id ?? '', type, data: JSON.stringify(said) }
}

/** The bytes of events for one form of transport, in one piece. */
export function bytesOf(form: Form, items: readonly Item[]): Buffer {
  return form === 'sse' ? Buffer.from(sseOf(items)) : framesOf(items)
}

/** Without a name: only unnamed events reach `onmessage` of a browser. */
function sseOf(items: readonly Item[]): string {
  let text = ''
  for (const item of items) text += `${item.id === '' ? '' : `id: ${item.id}\n`}data: ${jsonOf(item)}\n\n`
  return text
}

/** A text frame for each event, as a server sends them: unmasked, so that the bytes are the same for everybody (RFC 6455, 5.2). */
function framesOf(items: readonly Item[]): Buffer {
  const lengths = items.map(item => Buffer.byteLength(jsonOf(item)))
  const bytes = Buffer.allocUnsafe(lengths.reduce((sum, length) => sum + headLength(length) + length, 0))
  let at = 0
  items.forEach((item, index) => {
    at = writeHead(bytes, at, lengths[index]!)
    at += bytes.write(jsonOf(item), at)
  })
  return bytes
}

function headLength(length: number): number {
  if (length < 126) return 2
  return length < 65_536 ? 4 : 10
}

function writeHead(bytes: Buffer, at: number, length: number): number {
  const size = headLength(length)
  bytes[at] = 0x81
  bytes[at + 1] = size === 2 ? length : size === 4 ? 126 : 127
  if (size === 4) bytes.writeUInt16BE(length, at + 2)
  if (size === 10) bytes.writeBigUInt64BE(BigInt(length), at + 2)
  return at + size
}

function messageOf(id: string, type: string, data: string): string {
  const comma = data === '{}' ? '' : ','
  const first = id === '' ? '' : `"event_id":"${id}",`
  return `{${first}"event_type":${JSON.stringify(type)}${comma}${data.slice(1)}`
}

/** What an event says; null for what is no JSON. */
export function parsed(text: string): Record<string, unknown> | null {
  try {
    const value: unknown = JSON.parse(text)
    return isRecord(value) ? value : null
  } catch {
    return null
  }
}
