import type { ChatCompletion, ChatCompletionChunk } from '../../schemas/chat.ts'
import { chunkFrames, type Frames } from '../../schemas/frames.ts'
import type { Answer } from '../../schemas/gateway.ts'
import type { StoredAnswer } from '../../schemas/store.ts'

// What a client was sent, kept as bytes, and an answer made of them again.

/** The bytes that a transport writes for these frames. */
export function bytesOf(frames: Frames): Uint8Array {
  if (frames.raw !== null) return frames.raw
  let text = ''
  for (const chunk of frames) text += `data: ${JSON.stringify(chunk)}\n\n`
  return Buffer.from(text)
}

/** The answer that was kept, parsed only where somebody looks into it. */
export function answerOf(stored: StoredAnswer): Answer {
  const { body } = stored
  if (stored.stream) return { stream: true, frames: once(storedFrames(body)) }
  let parsed: ChatCompletion | undefined
  return {
    stream: false,
    raw: body,
    get body(): ChatCompletion {
      parsed ??= JSON.parse(textOf(body))
      return parsed!
    }
  }
}

async function* once(frames: Frames): AsyncGenerator<Frames> {
  yield frames
}

function storedFrames(raw: Uint8Array): Frames {
  let parsed: Frames | undefined
  const chunks = () => (parsed ??= chunkFrames([...chunksIn(textOf(raw))]))
  return {
    raw,
    dialect: 'openai',
    last: true,
    finished: true,
    hasData: true,
    get hasUsage() {
      return chunks().hasUsage
    },
    get usage() {
      return chunks().usage
    },
    get hasToken() {
      return chunks().hasToken
    },
    get pieces() {
      return chunks().pieces
    },
    get textBytes() {
      return chunks().textBytes
    },
    // What nobody asked for was taken out before it was kept.
    withoutUsage() {
      return this
    },
    [Symbol.iterator]: () => chunks()[Symbol.iterator]()
  }
}

function* chunksIn(text: string): Generator<ChatCompletionChunk> {
  let data: string[] = []
  for (const line of text.split(/\r\n|\r|\n/)) {
    if (line.startsWith('data:')) data.push(line.slice(line[5] === ' ' ? 6 : 5))
    if (line !== '' || data.length === 0) continue
    const chunk = chunkOf(data.join('\n'))
    data = []
    if (chunk !== null) yield chunk
  }
}

/** Events that are no chunks were forwarded, and are nobody's to read. */
function chunkOf(data: string): ChatCompletionChunk | null {
  try {
    const value: ChatCompletionChunk | null = JSON.parse(data)
    return Array.isArray(value?.choices) ? value : null
  } catch {
    return null
  }
}

function textOf(bytes: Uint8Array): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString()
}
