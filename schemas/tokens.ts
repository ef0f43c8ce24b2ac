import type { ChatRequest, ContentPart } from './chat.ts'

// Counting tokens without a tokenizer: an upper bound for holds, a likely number for limits and for answers that came
// without usage.

/** Input tokens of one request. */
export interface RequestSize {
  /** Never passed: one token a byte of text, 16 for each message, and a bound for each image, page and sound. */
  readonly bound: number
  /** Likely: a token for four bytes of text, a typical image. */
  readonly estimate: number
}

/** Bytes of base64 that stand for one token of sound: 8 kbit/s at ten tokens a second, the densest there is. */
const bytesPerAudioToken = 64
/** Bytes of base64 that a page of a document takes at least. */
const bytesPerPage = 2_048
const perMessage = 16
/** Fields that never become tokens. */
const silent = new Set(['messages', 'metadata', 'stream_options', 'logit_bias', 'model', 'user', 'stop'])

/** Counts a request. Messages, tools, schemas and whatever else goes upstream are counted; `perImage` tokens an image or page. */
export function sizeOf(request: ChatRequest, perImage: number): RequestSize {
  let bytes = 0
  let fixed = 0
  for (const message of request.messages) {
    fixed += perMessage
    const { content } = message
    if (typeof content === 'string') bytes += Buffer.byteLength(content)
    else if (content) {
      for (const part of content) {
        const tokens = mediaTokens(part, perImage)
        if (tokens === null) bytes += bytesIn(part)
        else fixed += tokens
      }
    }
    for (const name in message) {
      if (name !== 'content' && name !== 'role') bytes += bytesIn(message[name])
    }
  }
  for (const name in request) {
    const value = request[name]
    if (typeof value === 'object' && value !== null && !silent.has(name)) bytes += bytesIn(value)
  }
  return { bound: bytes + fixed, estimate: Math.ceil(bytes / 4) + fixed }
}

/** Tokens of a part that is no text, by its kind and never by its bytes alone; null for text. */
function mediaTokens(part: ContentPart, perImage: number): number | null {
  switch (part.type) {
    case 'text':
    case 'refusal':
      return null
    case 'image_url':
    case 'image':
      return perImage
    case 'input_audio':
      return Math.ceil(lengthOf(part['input_audio'], 'data') / bytesPerAudioToken) + 1
    case 'file':
      return Math.max(1, Math.ceil(lengthOf(part['file'], 'file_data') / bytesPerPage)) * perImage
    default:
      return null
  }
}

function lengthOf(value: unknown, name: string): number {
  if (typeof value !== 'object' || value === null) return 0
  const found = Object.entries(value).find(([key]) => key === name)?.[1]
  return typeof found === 'string' ? found.length : 0
}

function bytesIn(value: unknown): number {
  if (typeof value === 'string') return Buffer.byteLength(value)
  if (typeof value !== 'object' || value === null) return 0
  return Buffer.byteLength(JSON.stringify(value))
}

/**
 * Output tokens of what was delivered without usage: `pieces` chunks with `bytes` of text in all. Most providers send a
 * token a chunk; where chunks are longer than tokens are, four bytes count as one.
 */
export function tokensIn(pieces: number, bytes: number): number {
  if (pieces === 0) return 0
  return bytes / pieces <= 8 ? pieces : Math.max(pieces, Math.round(bytes / 4))
}
