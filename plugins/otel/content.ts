import type { ChatCompletion, ContentPart, Message, ToolCall } from '../../schemas/chat.ts'
import { withoutKeys } from '../../schemas/errors.ts'
import type { Frames } from '../../schemas/frames.ts'

// Prompts and answers in the form of the convention (gen_ai.input.messages and its kin), for those who have asked for them.
// Text is cut, keys of ours are taken out, and of images, sounds and documents only their kind and size are told.

/** What vendors' keys and tokens look like, those of configuration files too; ours are `withoutKeys`'s. */
const foreign =
  /\b(?:(?:sk|pk|rk|gw|key|ghp|gho|ghs|glpat|hf|xai|gsk|xox[a-z])[-_]|AKIA|AIza|ya29\.|eyJ)[\w.-]{11,}\w|\b[Bb]earer +[\w.~+/-]{12,}=*/g
/** Images and other files that stand in a text. */
const inline = /\bdata:[\w.+-]+\/[\w.+-]+(?:;[\w=.-]+)*;base64,[\w+/-]*=*/g
/** More of a text is looked at than is told, so that a key is seen that does not end before the cut. */
const beyond = 512

type Part = Readonly<Record<string, unknown>>

interface Captured {
  readonly role: string
  readonly parts: readonly Part[]
  readonly finish_reason?: string
}

/** How much of a text may still be told. */
class Allowance {
  #left: number

  constructor(characters: number) {
    this.#left = characters
  }

  get spent(): boolean {
    return this.#left <= 0
  }

  take(text: string): string {
    const kept = redacted(text.slice(0, this.#left + beyond)).slice(0, this.#left)
    const rest = text.length - this.#left
    this.#left = Math.max(0, this.#left - text.length)
    return rest > 0 ? `${kept}… (${rest} characters more)` : kept
  }
}

/** The conversation, and what stands above it. The latest turns count most, so they are told first. */
export function inputOf(messages: readonly Message[], characters: number): { messages: string; system: string | null } {
  const allowance = new Allowance(characters)
  const turns: Captured[] = []
  const system: Part[] = []
  for (const message of messages.toReversed()) {
    if (allowance.spent) break
    const parts = partsOf(message, allowance)
    if (message.role === 'system' || message.role === 'developer') system.unshift(...parts)
    else turns.unshift({ role: message.role, parts })
  }
  return { messages: JSON.stringify(turns), system: system.length > 0 ? JSON.stringify(system) : null }
}

/** What the choices of a whole answer say. */
export function outputOf(choices: ChatCompletion['choices'], characters: number): string {
  const allowance = new Allowance(characters)
  return JSON.stringify(
    choices.map(({ message, finish_reason }) => ({
      role: 'assistant',
      parts: partsOf(message, allowance),
      finish_reason
    }))
  )
}

/** What the choices of a stream say, put together as it passes. */
export class Heard {
  #choices: Array<{ text: string; thinking: string; calls: ToolCall[]; finish: string | undefined }> = []
  #left: number

  constructor(characters: number) {
    this.#left = characters
  }

  hear(frames: Frames): void {
    for (const { choices } of frames) {
      for (const { index, delta, finish_reason } of choices) {
        if (!(index >= 0 && index < 128)) continue
        const choice = (this.#choices[index] ??= { text: '', thinking: '', calls: [], finish: undefined })
        choice.finish = finish_reason ?? choice.finish
        choice.text += this.#take(delta?.content)
        choice.thinking += this.#take(delta?.['reasoning_content'] ?? delta?.['reasoning'])
        for (const { index, id, type, function: called } of delta?.tool_calls ?? []) {
          if (!(index >= 0 && index < 128)) continue
          const call = (choice.calls[index] ??= { id, type, function: { name: called?.name ?? '', arguments: '' } })
          if (call.function) call.function.arguments += this.#take(called?.arguments)
        }
      }
    }
  }

  output(): string {
    const told = this.#choices.filter(Boolean).map(({ text, thinking, calls, finish }) => {
      const parts: Part[] = []
      if (thinking) parts.push({ type: 'reasoning', content: redacted(thinking) })
      if (text) parts.push({ type: 'text', content: redacted(text) })
      for (const call of calls.filter(Boolean)) parts.push(callPart(call, redacted))
      return { role: 'assistant', parts, finish_reason: finish } satisfies Captured
    })
    return JSON.stringify(told)
  }

  /** What is too much is left out. */
  #take(text: unknown): string {
    if (typeof text !== 'string' || this.#left <= 0) return ''
    const kept = text.slice(0, this.#left)
    this.#left -= kept.length
    return kept
  }
}

function partsOf(
  message: Pick<Message, 'content' | 'tool_calls'> & { role?: string; [field: string]: unknown },
  allowance: Allowance
): Part[] {
  const { role, content, tool_calls: calls, tool_call_id: id } = message
  if (role === 'tool') return [{ type: 'tool_call_response', id, response: textOf(content, allowance) }]
  const parts: Part[] = []
  const thinking = message['reasoning_content'] ?? message['reasoning']
  if (typeof thinking === 'string' && thinking) parts.push({ type: 'reasoning', content: allowance.take(thinking) })
  if (typeof content === 'string') parts.push({ type: 'text', content: allowance.take(content) })
  else for (const part of content ?? []) parts.push(partOf(part, allowance))
  const take = (text: string) => allowance.take(text)
  for (const call of calls ?? []) parts.push(callPart(call, take))
  return parts
}

function callPart({ id, function: called }: ToolCall, take: (text: string) => string): Part {
  return { type: 'tool_call', id, name: called?.name, arguments: take(called?.arguments ?? '') }
}

function textOf(content: Message['content'], allowance: Allowance): string {
  if (typeof content === 'string') return allowance.take(content)
  return allowance.take((content ?? []).map(({ type, text }) => text ?? `(${type})`).join(''))
}

function partOf(part: ContentPart, allowance: Allowance): Part {
  if (typeof part.text === 'string') return { type: 'text', content: allowance.take(part.text) }
  if (part.image_url) {
    return mediaPart('image', typeof part.image_url === 'string' ? part.image_url : part.image_url.url)
  }
  const holder = part[part.type]
  const data = typeof holder === 'object' && holder !== null ? Object.values(holder) : []
  const largest = data.filter(value => typeof value === 'string').toSorted((one, other) => other.length - one.length)[0]
  return mediaPart(part.type === 'input_audio' ? 'audio' : part.type, largest ?? '')
}

/** Where it can be found, without what may be a signature; of what is inline only its kind and how much it is. */
function mediaPart(modality: string, source: string): Part {
  const link = /^https?:/i.test(source) && URL.canParse(source) ? new URL(source) : null
  if (link !== null) return { type: 'uri', modality, uri: `${link.origin}${link.pathname}`.slice(0, 512) }
  const kind = /^data:([\w.+-]+\/[\w.+-]+)/.exec(source.slice(0, 128))?.[1]
  return { type: 'blob', modality, mime_type: kind, content: `(${source.length} characters, not captured)` }
}

function redacted(text: string): string {
  return withoutKeys(text)
    .replace(inline, data => `(${data.length} characters, not captured)`)
    .replace(foreign, '…')
}
