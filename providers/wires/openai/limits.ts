import type { ChatRequest } from '../../../schemas/chat.ts'
import { detail, InvalidRequest } from '../../../schemas/errors.ts'

/** What a server on this wire does not do, though it takes the request without a word. */
export interface Limits {
  /** It answers once, whatever `n` says. */
  readonly oneChoice?: boolean
  /** It lets the model call what it likes, whatever `tool_choice` says. */
  readonly freeToolChoice?: boolean
  /** Fields that it ignores, each with the value that changes nothing; null and absent never do. */
  readonly ignored?: Readonly<Record<string, unknown>>
  /** It takes media as data only, or would fetch links from where it stands. */
  readonly dataOnly?: boolean
}

/**
 * The request as far as such a server can do it.
 * @param warnings gets a sentence for everything that it cannot do, once
 * @throws InvalidRequest where the answer would be another one than was asked for
 */
export function withinLimits(request: ChatRequest, limits: Limits, warnings: string[]): ChatRequest {
  if (limits.oneChoice && typeof request.n === 'number' && request.n > 1) {
    throw refusal('The provider of this model gives one choice only: leave `n` out.', 'n')
  }
  if (limits.dataOnly) refuseLinks(request)
  for (const field in limits.ignored) {
    const value = request[field]
    if (value === undefined || value === null || value === limits.ignored[field]) continue
    warn(warnings, `The provider ignores ${field}.`)
  }
  const choice = request['tool_choice']
  if (!limits.freeToolChoice || choice === undefined || choice === null || choice === 'auto') return request
  const { tool_choice: _choice, ...rest } = request
  // No tools, no calls: the same as asked.
  if (choice === 'none') return withoutTools(rest)
  if (rest.tools) warn(warnings, 'The provider ignores tool_choice: the model may answer without a call.')
  return rest
}

function withoutTools(request: ChatRequest): ChatRequest {
  const { tools: _tools, ...rest } = request
  return rest
}

function refuseLinks({ messages }: ChatRequest): void {
  for (const [index, { content }] of messages.entries()) {
    if (!Array.isArray(content)) continue
    for (const [position, part] of content.entries()) {
      const field = linked.find(name => hasLink(name, part[name]))
      if (field === undefined) continue
      throw refusal(
        'The provider of this model is not to fetch media: send them as data.',
        `messages[${index}].content[${position}].${field}`
      )
    }
  }
}

/** Parts in which llama.cpp takes links, audio and video in either of their fields. */
const linked = ['image_url', 'input_audio', 'input_video'] as const

function hasLink(name: (typeof linked)[number], media: unknown): boolean {
  const { url, data } = typeof media === 'string' ? { url: media } : fieldsOf(media)
  // Images without a scheme are no data URLs either; audio in OpenAI's form is plain base64.
  if (name === 'image_url') return typeof url === 'string' && !/^data:/i.test(url)
  return [url, data].some(value => typeof value === 'string' && /^(?!data:)[a-z][a-z\d+.-]*:/i.test(value))
}

function fieldsOf(value: unknown): { url?: unknown; data?: unknown } {
  return typeof value === 'object' && value !== null ? value : {}
}

function refusal(words: string, param: string): Error {
  return detail(new InvalidRequest(words), { param })
}

function warn(warnings: string[], text: string): void {
  if (!warnings.includes(text)) warnings.push(text)
}
