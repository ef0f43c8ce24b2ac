import type { Message } from '../../schemas/chat.ts'
import type { Inference } from '../../schemas/gateway.ts'
import { hashOf } from './hash.ts'

/** Characters of each end of a message that tell a conversation from others. */
const told = 256

/**
 * A number that is the same for all turns of a conversation from its second one on, in every process; null for the first.
 * What stands before the first answer is the same in all turns. A `prompt_cache_key` says by itself what belongs together.
 */
export function conversationOf(alias: string, { request, principal }: Inference): number | null {
  const key = request['prompt_cache_key']
  if (typeof key === 'string' && key !== '') return hashOf(`${principal.tenant} ${alias} k ${ends(key)}`)
  const { messages } = request
  // An answer follows a question: a greeting that stands first is none.
  const answer = messages.findIndex(({ role }, index) => role === 'assistant' && index > 0)
  if (answer === -1) return null
  return hashOf(`${principal.tenant} ${alias} ${answer} ${said(messages[0]!)} ${said(messages[answer - 1]!)}`)
}

function said({ content }: Message): string {
  if (typeof content === 'string') return ends(content)
  const text = content?.find(part => typeof part?.text === 'string')?.text
  return `${content?.length ?? 0} ${ends(text ?? '')}`
}

/** Long prompts often begin alike, and all of one is not worth reading: this has to be quick. */
function ends(text: string): string {
  if (text.length <= 2 * told) return text
  return `${text.length} ${text.slice(0, told)}${text.slice(-told)}`
}
