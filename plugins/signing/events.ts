import type { ChatCompletionChunk } from '../../schemas/chat.ts'
import type { Frames } from '../../schemas/frames.ts'
import { type Pattern, patternOf } from './pattern.ts'
import { plainOf } from './plain.ts'

/** A chunk on its way out, without the fields that are ours. */
export class Event {
  /** The canonical form, which is signed. */
  readonly canonical: string
  /** What is sent: the JSON that it came as, unless that has fields of ours or is written in a way of its own. */
  readonly text: string
  /** Empty until it is signed. */
  signature = ''
  /** Null while nobody has looked into it. */
  parsed: ChatCompletionChunk | null

  constructor(canonical: string, text: string, parsed: ChatCompletionChunk | null) {
    this.canonical = canonical
    this.text = text
    this.parsed = parsed
  }

  get chunk(): ChatCompletionChunk {
    this.parsed ??= chunkOf(this.text)
    if (this.parsed === null) throw new Error('This has been JSON before.')
    return this.parsed
  }
}

const prefix = 'data: '
const own = ['x_signature', 'x_signature_final', 'x_receipt']
/** How often a pattern is looked for in vain: some streams have none. */
const mostTries = 3

/** Reads what the frames of one stream say. Comments and events that are no chunks cannot be signed, and are left out. */
export class EventReader {
  #pattern: Pattern | null = null
  #tries = mostTries
  /** The first chunk is like no other. */
  #isFirst = true

  /** @throws UpstreamError for a chunk that cannot be signed */
  read(frames: Frames): Event[] {
    const events = frames.raw === null ? null : this.#plain(frames.raw)
    return events ?? Array.from(frames, chunk => eventOf(chunk, null))
  }

  /** Events as nearly everybody writes them, one line of data each, and comments; null: read them by the book. */
  #plain(raw: Uint8Array): Event[] | null {
    const text = lined(Buffer.from(raw.buffer, raw.byteOffset, raw.byteLength).toString())
    const events: Event[] = []
    for (let start = 0; start < text.length; ) {
      const end = text.indexOf('\n', start)
      if (end === -1 || text[end + 1] !== '\n') return null
      if (text[start] !== ':') {
        if (!text.startsWith(prefix, start) || text[end - 1] !== '}') return null
        const event = this.#event(text.slice(start + prefix.length, end))
        if (event === null) return null
        events.push(event)
      }
      start = end + 2
    }
    return events
  }

  #event(data: string): Event | null {
    const canonical = this.#pattern === null ? null : this.#pattern.canonicalOf(data)
    if (canonical !== null) {
      this.#tries = mostTries
      return new Event(canonical, data, null)
    }
    const chunk = chunkOf(data)
    if (chunk === null) return null
    const event = eventOf(chunk, data)
    if (this.#isFirst) this.#isFirst = false
    else if (event.text === data && this.#tries > 0) {
      this.#tries--
      this.#pattern = patternOf(data)
    }
    return event
  }
}

/** @param data the JSON that it came as */
export function eventOf(given: ChatCompletionChunk, data: string | null): Event {
  const { value, text, untouched } = plainOf(given, own)
  return new Event(text, untouched && data !== null ? data : text, value)
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
