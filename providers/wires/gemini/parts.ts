import type { ChatRequest, ContentPart, Message } from '../../../schemas/chat.ts'
import { fieldsOf } from '../../../schemas/json.ts'
import type { Link } from '../../media.ts'
import { invalid } from './complaints.ts'
import type { Context, Part, Surface } from './context.ts'

export function addParts(parts: Part[], content: Message['content'], at: string, context: Context): void {
  if (typeof content === 'string') {
    if (content !== '') parts.push({ text: content })
    return
  }
  for (const [index, part] of (content ?? []).entries()) {
    const own = partOf(part, `${at}.content[${index}]`, context)
    if (own !== null) parts.push(own)
  }
}

function partOf(part: ContentPart, at: string, context: Context): Part | null {
  switch (part.type) {
    case 'text':
      return part.text ? { text: part.text } : null
    case 'image_url': {
      const { image_url: image } = part
      const detailed = typeof image === 'object' && image.detail && image.detail !== 'auto'
      if (detailed) context.warn('Gemini does not take the detail of images.')
      return mediaPart(urlIn(part) ?? '', 'image/*', `${at}.image_url.url`, context)
    }
    case 'input_audio': {
      const { data, format } = fieldsOf(part['input_audio'])
      if (typeof data !== 'string' || typeof format !== 'string' || !/^[a-z0-9]{1,8}$/.test(format)) {
        throw invalid('Audio needs `data` in base64 and a `format`, wav or mp3.', `${at}.input_audio`)
      }
      return {
        inlineData: {
          mimeType: `audio/${format}`,
          data: data.slice(data.startsWith('data:') ? data.indexOf(',') + 1 : 0)
        }
      }
    }
    case 'file': {
      const { file_data: data, file_id: id, filename } = fieldsOf(part['file'])
      if (typeof data === 'string' && data !== '') {
        const isAddress = data.startsWith('data:') || isLink(data)
        const type = typeof filename === 'string' ? typeOf(filename, 'application/pdf') : 'application/pdf'
        return isAddress
          ? mediaPart(data, type, `${at}.file.file_data`, context)
          : { inlineData: { mimeType: type, data } }
      }
      if (typeof id === 'string' && context.opens(id)) return { fileData: { fileUri: id } }
      throw invalid('A file needs `file_data`: this vendor does not have files of that id.', `${at}.file`)
    }
    default:
      throw invalid(`Parts of the type \`${part.type.slice(0, 40)}\` cannot be sent to this model.`, `${at}.type`)
  }
}

/** @param type of what a link leads to, where its name does not say it */
function mediaPart(url: string, type: string, param: string, context: Context): Part {
  const data = /^data:([\w.+-]+\/[\w.+-]+)?(?:;[\w-]+=[^;,]*)*(;base64)?,/i.exec(url)
  if (data !== null) {
    const mimeType = data[1]?.toLowerCase() ?? (type === 'image/*' ? undefined : type)
    if (mimeType === undefined) throw invalid('This data URL does not say of what type it is.', param)
    const rest = url.slice(data[0].length)
    return { inlineData: { mimeType, data: data[2] === undefined ? encoded(rest, param) : rest } }
  }
  const fetched = context.media?.get(url)
  if (fetched !== undefined) return { inlineData: fetched }
  if (context.opens(url)) {
    const mimeType = typeOf(url.replace(/[?#].*$/s, ''), type === 'image/*' ? 'image/jpeg' : type)
    return { fileData: { fileUri: url, mimeType } }
  }
  const message = isLink(url)
    ? 'This provider does not read links. Send the data as a data URL, or set its option `fetchMedia`.'
    : 'This is neither a data URL nor a link.'
  throw invalid(message, param)
}

function encoded(text: string, param: string): string {
  try {
    return Buffer.from(decodeURIComponent(text)).toString('base64')
  } catch {
    throw invalid('This data URL cannot be read.', param)
  }
}

const types: ReadonlyMap<string, string> = new Map(
  Object.entries({
    ...{ pdf: 'application/pdf', txt: 'text/plain', md: 'text/markdown', csv: 'text/csv', html: 'text/html' },
    ...{ json: 'application/json', xml: 'text/xml', png: 'image/png', jpg: 'image/jpeg', jpeg: 'image/jpeg' },
    ...{ webp: 'image/webp', gif: 'image/gif', heic: 'image/heic', heif: 'image/heif', mp4: 'video/mp4' }
  })
)

function typeOf(name: string, otherwise: string): string {
  return types.get(name.slice(name.lastIndexOf('.') + 1).toLowerCase()) ?? otherwise
}

/** The links of a request that its vendor does not read by itself. */
export function linksOf(request: ChatRequest, { opens }: Pick<Surface, 'opens'>): Link[] {
  const links: Link[] = []
  for (const [index, { role, content }] of request.messages.entries()) {
    if (role !== 'user' || !Array.isArray(content)) continue
    for (const [place, part] of content.entries()) {
      const at = `messages[${index}].content[${place}]`
      const image = part.type === 'image_url' ? urlIn(part) : undefined
      const file = part.type === 'file' ? fieldsOf(part['file'])['file_data'] : undefined
      if (image !== undefined && isLink(image) && !opens(image)) {
        links.push({ url: image, kind: 'image', param: `${at}.image_url.url` })
      } else if (typeof file === 'string' && isLink(file) && !opens(file)) {
        links.push({ url: file, kind: 'pdf', param: `${at}.file.file_data` })
      }
    }
  }
  return links
}

function urlIn({ image_url: image }: ContentPart): string | undefined {
  return typeof image === 'string' ? image : image?.url
}

function isLink(url: string): boolean {
  return /^https?:\/\//i.test(url)
}

/** The texts of messages that have nothing else. */
export function textOf(content: Message['content'], at: string): string {
  if (typeof content === 'string') return content
  let text = ''
  for (const [index, part] of (content ?? []).entries()) {
    const own = part.type === 'refusal' ? part['refusal'] : part.type === 'text' ? part.text : undefined
    if (typeof own !== 'string') throw invalid('This message may hold nothing but text.', `${at}.content[${index}]`)
    text += own
  }
  return text
}
