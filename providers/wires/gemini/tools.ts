import type { ChatRequest, Tool } from '../../../schemas/chat.ts'
import { fieldsOf } from '../../../schemas/json.ts'
import { invalid } from './complaints.ts'

export function declarationOf(tool: Tool, index: number): object {
  if (tool.type !== 'function' || tool.function === undefined) {
    throw invalid(`Tools of the type \`${tool.type.slice(0, 40)}\` cannot be sent to this model.`, `tools[${index}]`)
  }
  const { name, description, parameters } = tool.function
  const declaration = { name, description: description ?? '' }
  return parameters ? { ...declaration, parametersJsonSchema: parameters } : declaration
}

/** The choice of tools; null for Gemini's own default. */
export function callingOf(
  request: ChatRequest,
  tools: readonly Tool[]
): { mode: string; allowedFunctionNames?: string[] } | null {
  const strict = tools.some(tool => fieldsOf(tool.function)['strict'] === true)
  const choice = request['tool_choice'] ?? 'auto'
  if (choice === 'auto') return strict ? { mode: 'VALIDATED' } : null
  if (choice === 'none') return { mode: 'NONE' }
  if (choice === 'required') return { mode: 'ANY' }
  const { type, function: named, allowed_tools: allowed } = fieldsOf(choice)
  if (type === 'function') {
    const { name } = fieldsOf(named)
    if (typeof name === 'string') return { mode: 'ANY', allowedFunctionNames: [name] }
  } else if (type === 'allowed_tools') {
    const { mode, tools: some } = fieldsOf(allowed)
    const names = (Array.isArray(some) ? some : []).map(tool => fieldsOf(fieldsOf(tool)['function'])['name'])
    const known = names.filter(name => typeof name === 'string')
    // AUTO takes no names; VALIDATED does, and leaves the choice between them and a text.
    if (known.length > 0 && known.length === names.length) {
      return { mode: mode === 'required' ? 'ANY' : 'VALIDATED', allowedFunctionNames: known }
    }
  }
  throw invalid('This choice of tools cannot be made with this model.', 'tool_choice')
}
