import type { ChatRequest, ContentPart } from './chat.ts'

// Counting tokens without a tokenizer: an upper bound for holds, a likely number for limits and for answers that came
// without usage.

/** Input tokens of one request. */
export interface RequestSize {
  /**
   * Never passed: one token a byte of text, 16 for each message, a provider's own words about tools, and a bound for
   * each image, page and sound. What is only named, by an id or a link, counts as one image or page.
   */
  readonly bound: number
  /** Likely: a token for four bytes of text, 4 for each message, a typical sound or document. */
  readonly estimate: number
}

const perMessage = { bound: 16, estimate: 4 }
/** What providers tell a model about tools before it sees the first one: Anthropic's words are the longest, up to 530. */
const forTools = { bound: 600, estimate: 0 }
/** Bytes of base64 for one token of sound: the bound is speech at 6 kbit/s and 32 tokens a second. */
const bytesPerAudioToken = { bound: 24, estimate: 400 }
/** Bytes of base64 for one page of a document. */
const bytesPerPage = { bound: 2_048, estimate: 65_536 }
/** Fields that never become tokens. */
const silent = new Set([
  'messages',
  'metadata',
  'stream_options',
  'logit_bias',
  'model',
  'user',
  'stop',
  'tenant',
  'task'
])

/** A sum in the making. */
interface Count {
  bytes: number
  bound: number
  estimate: number
}

/** Counts a request. Messages, tools, schemas and whatever else goes upstream are counted; `perImage` tokens an image or page. */
export function sizeOf(request: ChatRequest, perImage: number): RequestSize {
  const count: Count = { bytes: 0, bound: 0, estimate: 0 }
  for (const message of request.messages) {
    count.bound += perMessage.bound
    count.estimate += perMessage.estimate
    for (const name in message) {
      if (name === 'role') continue
      const value = message[name]
      if (name === 'content' && Array.isArray(value)) for (const part of value) addPart(count, part, perImage)
      else count.bytes += bytesIn(value)
    }
  }
  for (const name in request) if (!silent.has(name)) count.bytes += bytesIn(request[name])
  if (request.tools?.length) {
    count.bound += forTools.bound
    count.estimate += forTools.estimate
  }
  return { bound: count.bytes + count.bound, estimate: Math.ceil(count.bytes / 4) + count.estimate }
}

/** Images, documents and sounds count by their kind and never by their bytes alone; everything else is text. */
function addPart(count: Count, part: ContentPart, perImage: number): void {
  switch (part?.type) {
    case 'image_url':
    case 'image':
    case 'input_image':
      count.bound += perImage
      count.estimate += perImage
      return
    case 'input_audio': {
      const bytes = lengthOf(part['input_audio'], 'data')
      count.bound += Math.ceil(bytes / bytesPerAudioToken.bound) + 1
      count.estimate += Math.ceil(bytes / bytesPerAudioToken.estimate) + 1
      return
    }
    case 'file': {
      const bytes = lengthOf(part['file'], 'file_data')
      // A document of plain text has no pages: its bytes are its tokens.
      count.bound += Math.max(perImage * Math.max(1, Math.ceil(bytes / bytesPerPage.bound)), Math.ceil((bytes * 3) / 4))
      count.estimate += perImage * Math.max(1, Math.ceil(bytes / bytesPerPage.estimate))
      return
    }
    default:
      count.bytes += bytesIn(part)
  }
}

function lengthOf(value: unknown, name: string): number {
  if (typeof value !== 'object' || value === null) return 0
  const found = Object.entries(value).find(([key]) => key === name)?.[1]
  return typeof found === 'string' ? found.length : 0
}

/** Bytes of a text, or of the JSON of anything else. */
function bytesIn(value: unknown): number {
  if (typeof value === 'string') return Buffer.byteLength(value)
  if (typeof value !== 'object' || value === null) return 0
  try {
    return Buffer.byteLength(JSON.stringify(value))
  } catch {
    return bytesDeep(value)
  }
}

/** The same for what is nested deeper than the stack is, or holds itself: without recursion, every object once. */
function bytesDeep(root: object): number {
  const seen = new Set<object>([root])
  const left: object[] = [root]
  let bytes = 0
  for (let value = left.pop(); value !== undefined; value = left.pop()) {
    bytes += 2
    for (const [name, part] of Object.entries(value)) {
      bytes += Buffer.byteLength(name) + 4
      if (typeof part !== 'object' || part === null) bytes += Buffer.byteLength(JSON.stringify(String(part)))
      else if (!seen.has(part)) {
        seen.add(part)
        left.push(part)
      }
    }
  }
  return bytes
}

/**
 * Output tokens of what was delivered without usage: `pieces` events with `bytes` of text in all. Most providers send a
 * token an event; where events are longer than tokens are, four bytes count as one. A few long words at the start say
 * nothing yet.
 */
export function tokensIn(pieces: number, bytes: number): number {
  return bytes <= 8 * pieces + 16 ? pieces : Math.max(pieces, Math.round(bytes / 4))
}
