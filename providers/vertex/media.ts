import type { ChatRequest, ContentPart } from '../../schemas/chat.ts'
import { isRecord } from '../../schemas/reader.ts'
import type { Media } from '../media.ts'

/** The same request with data in place of its links. */
export function inlined(request: ChatRequest, media: ReadonlyMap<string, Media>): ChatRequest {
  const dataOf = (url: unknown): string | undefined => {
    const found = typeof url === 'string' ? media.get(url) : undefined
    return found && `data:${found.mimeType};base64,${found.data}`
  }
  const filled = (part: ContentPart): ContentPart => {
    const { image_url: image, file } = part
    const shown = dataOf(typeof image === 'string' ? image : image?.url)
    if (shown !== undefined) return { ...part, image_url: { url: shown } }
    const read = isRecord(file) ? dataOf(file['file_data']) : undefined
    return isRecord(file) && read !== undefined ? { ...part, file: { ...file, file_data: read } } : part
  }
  const messages = request.messages.map(message =>
    Array.isArray(message.content) ? { ...message, content: message.content.map(filled) } : message
  )
  return { ...request, messages }
}
