import type { ChatCompletionChunk } from '../../schemas/chat.ts'
import type { Frames } from '../../schemas/frames.ts'

/** A chunk on its way out. */
export interface Event {
  chunk: ChatCompletionChunk
  /** The JSON that it came as; null where it has none, or is written in a way of its own. */
  readonly text: string | null
  /** Empty until it is signed. */
  signature: string
}

const prefix = 'data: '

export function eventOf(chunk: ChatCompletionChunk, text: string | null): Event {
  return { chunk, text, signature: '' }
}

/** What these frames say. Comments and events that are no chunks cannot be signed, and are left out. */
export function eventsOf(frames: Frames): Event[] {
  return (frames.raw === null ? null : plainEvents(frames.raw)) ?? Array.from(frames, chunk => eventOf(chunk, null))
}

/** Events as nearly everybody writes them, one line of data each, and comments; null: read them by the book. */
function plainEvents(raw: Uint8Array): Event[] | null {
  const text = lined(Buffer.from(raw.buffer, raw.byteOffset, raw.byteLength).toString())
  const events: Event[] = []
  for (let start = 0; start < text.length; ) {
    const end = text.indexOf('\n', start)
    if (end === -1 || text[end + 1] !== '\n') return null
    if (text[start] !== ':') {
      if (!text.startsWith(prefix, start) || text[end - 1] !== '}') return null
      const data = text.slice(start + prefix.length, end)
      const chunk = chunkOf(data)
      if (chunk === null) return null
      events.push(eventOf(chunk, data))
    }
    start = end + 2
  }
  return events
}

/** No line end stands inside JSON, so that each may be written as another. */
function lined(text: string): string {
  return text.includes('\r') ? text.replace(/\r\n?/g, '\n') : text
}

function chunkOf(data: string): ChatCompletionChunk | null {
  try {
    const value: ChatCompletionChunk = JSON.parse(data)
    return Array.isArray(value.choices) ? value : null
  } catch {
    return null
  }
}
