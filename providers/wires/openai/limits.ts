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
  /** It takes images as data URLs only. */
  readonly dataUrls?: boolean
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
  if (limits.dataUrls) refuseLinks(request)
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
    for (const [position, { image_url: image }] of content.entries()) {
      const url = typeof image === 'string' ? image : image?.url
      if (url === undefined || /^data:/i.test(url)) continue
      throw refusal(
        'The provider of this model does not fetch images: send them as data URLs.',
        `messages[${index}].content[${position}].image_url`
      )
    }
  }
}

function refusal(words: string, param: string): Error {
  return detail(new InvalidRequest(words), { param })
}

function warn(warnings: string[], text: string): void {
  if (!warnings.includes(text)) warnings.push(text)
}
