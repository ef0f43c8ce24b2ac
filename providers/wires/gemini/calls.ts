import type { Message, ToolCall } from '../../../schemas/chat.ts'
import { fieldsOf } from '../../../schemas/json.ts'
import { invalid } from './complaints.ts'
import type { Context, Part } from './context.ts'
import { textOf } from './parts.ts'
import { signatureIn } from './signatures.ts'

export interface Call {
  readonly id: string | undefined
  readonly name: string
  readonly part: Part
}

export function callsOf(message: Message, at: string, context: Context): Call[] {
  const calls = (message.tool_calls ?? []).map((call, index) => callOf(call, `${at}.tool_calls[${index}]`, context))
  const { name, arguments: text } = fieldsOf(message['function_call'])
  if (typeof name === 'string') calls.push(made(undefined, name, argsOf(text), undefined, context))
  return calls
}

function callOf(call: ToolCall, at: string, context: Context): Call {
  const signature = (call.id === undefined ? undefined : context.signatures.find(call.id)) ?? signatureIn(call)
  if (call.function !== undefined) {
    return made(call.id, call.function.name, argsOf(call.function.arguments), signature, context)
  }
  const { name, input } = fieldsOf(call['custom'])
  if (typeof name !== 'string') throw invalid('A call needs its `function`.', at)
  return made(call.id, name, { input }, signature, context)
}

function made(
  id: string | undefined,
  name: string,
  args: object,
  signature: string | undefined,
  context: Context
): Call {
  const part: Part = { functionCall: id !== undefined && context.callIds ? { id, name, args } : { name, args } }
  if (signature !== undefined) part.thoughtSignature = signature
  return { id, name, part }
}

/** Arguments are whatever text a model has written; Gemini wants an object. */
function argsOf(text: unknown): object {
  if (typeof text !== 'string' || text.trim() === '') return {}
  try {
    const value: unknown = JSON.parse(text)
    return typeof value === 'object' && value !== null && !Array.isArray(value) ? value : { arguments: value }
  } catch {
    return { arguments: text }
  }
}

/** One result for each call, in their order, wherever they stand before the assistant speaks again. */
export function resultsOf(
  calls: readonly Call[],
  messages: readonly Message[],
  from: number,
  used: Set<Message>,
  { callIds }: Context
): Part[] {
  let end = from + 1
  while (end < messages.length && messages[end]!.role !== 'assistant') end++
  return calls.map(({ id, name }) => {
    let response: object = { error: 'This call has no result.' }
    for (let index = from + 1; index < end; index++) {
      const message = messages[index]!
      const answers =
        id === undefined ? message.role === 'function' && message.name === name : message.tool_call_id === id
      if (!answers || (message.role !== 'tool' && message.role !== 'function') || used.has(message)) continue
      used.add(message)
      response = { output: textOf(message.content, `messages[${index}]`) }
      break
    }
    return { functionResponse: id !== undefined && callIds ? { id, name, response } : { name, response } }
  })
}
