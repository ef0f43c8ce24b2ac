import type { ChatCompletionChunk } from '../../schemas/chat.ts'
import type { Frames } from '../../schemas/frames.ts'

/** A chunk and the JSON that it came as; null where it has none, or is written in a way of its own. */
export interface Event {
  readonly chunk: ChatCompletionChunk
  readonly text: string | null
}

const prefix = 'data: '

/** What these frames say. Comments and events that are no chunks cannot be signed, and are left out. */
export function eventsOf(frames: Frames): Event[] {
  return (frames.raw === null ? null : plainEvents(frames.raw)) ?? Array.from(frames, chunk => ({ chunk, text: null }))
}

/** Events as nearly everybody writes them, one line of data each, and comments; null: read them by the book. */
function plainEvents(raw: Uint8Array): Event[] | null {
  const text = lined(Buffer.from(raw.buffer, raw.byteOffset, raw.byteLength).toString())
  const events: Event[] = []
  for (let start = 0; start < text.length; ) {
    const blank = text.indexOf('\n\n', start)
    const end = blank === -1 ? text.length : blank
    const isComment = text[start] === ':'
    const data = text.slice(isComment ? start : start + prefix.length, end)
    if (data.includes('\n')) return null
    if (!isComment) {
      const chunk = text.startsWith(prefix, start) && data.endsWith('}') ? chunkOf(data) : null
      if (chunk === null) return null
      events.push({ chunk, text: data })
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
