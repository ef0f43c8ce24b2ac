import type { ChatRequest, Tool } from '../../../schemas/chat.ts'
import { isRecord } from '../../../schemas/reader.ts'
import { conversationOf, lacksThoughts, type Memory, refuse, type TextBlock, type Turn } from './messages.ts'
import { type Model, modelOf } from './models.ts'
import { lowered } from './schema.ts'

type Thinking = { type: string; budget_tokens?: number; display?: string }
type ToolChoice =
  | { type: 'auto' | 'any'; disable_parallel_tool_use?: true }
  | { type: 'tool'; name: string; disable_parallel_tool_use?: true }
  | { type: 'none' }
interface ToolParam {
  name: string
  description?: string
  input_schema: object
  strict?: true
  cache_control?: unknown
}

/** The body of POST /v1/messages but for the model, which vendors say in different places. */
export interface MessagesBody {
  max_tokens: number
  messages: readonly Turn[]
  stream?: true
  system?: readonly TextBlock[]
  tools?: readonly ToolParam[]
  tool_choice?: ToolChoice
  thinking?: Thinking
  output_config?: { effort?: string; format?: { type: 'json_schema'; schema: object } }
  stop_sequences?: readonly string[]
  temperature?: number
  top_p?: number
  top_k?: unknown
  metadata?: { user_id: string }
  service_tier?: string
  cache_control?: unknown
}

export interface Translation {
  readonly body: MessagesBody
  /** What had to be left out or changed: short English sentences. */
  readonly warnings: readonly string[]
  /** The tool that was made up to get an answer in JSON: its call is the answer. */
  readonly jsonTool: string | null
}

export interface RequestOptions {
  /** The API's version takes sampling parameters, of models that do. */
  readonly sampling: boolean
  readonly recollect: Memory['recollect']
}

const effortBudgets: Readonly<Record<string, number>> = { minimal: 1_024, low: 1_024, medium: 4_096, high: 16_384 }
const efforts = ['none', 'minimal', 'low', 'medium', 'high', 'xhigh', 'max']
const leastBudget = 1_024
/** Translated here, or without any meaning for an answer; what else is said is warned of. */
const understood = new Set([
  ...['model', 'messages', 'stream', 'stream_options', 'max_tokens', 'max_completion_tokens', 'temperature', 'top_p'],
  ...['top_k', 'n', 'stop', 'tools', 'tool_choice', 'parallel_tool_calls', 'response_format', 'reasoning_effort'],
  ...['thinking', 'cache_control', 'user', 'safety_identifier', 'service_tier', 'modalities', 'audio', 'functions'],
  ...['function_call', 'metadata', 'store', 'prompt_cache_key', 'prompt_cache_retention']
])

/**
 * A request of OpenAI's wire as one of Anthropic's.
 * @throws InvalidRequest for what Claude cannot do, naming the field
 */
export function toMessages(request: ChatRequest, options: RequestOptions): Translation {
  refuseImpossible(request)
  const warnings = new Set<string>()
  const model = modelOf(request.model ?? '')
  const { system, turns, called } = conversationOf(request.messages, options.recollect, warnings)
  const most = maxTokensOf(request, model, warnings)
  const format = formatOf(request, model, warnings)
  if (format.words !== null) system.push({ type: 'text', text: format.words })
  const { thinking, effort } = thinkingOf(request, model, most, turns, format.tool !== null, warnings)
  const forced = model.forced && thinking?.type !== 'enabled'
  const body: MessagesBody = { max_tokens: most, messages: turns }
  if (request.stream === true) body.stream = true
  if (system.length > 0) body.system = system
  if (thinking !== undefined) body.thinking = thinking
  if (effort !== undefined || format.schema !== null) {
    body.output_config = { effort, format: format.schema ? { type: 'json_schema', schema: format.schema } : undefined }
  }
  addTools(body, request, model, forced, format.tool, called, warnings)
  addSampling(body, request, model.sampling && options.sampling, warnings)
  addRest(body, request, warnings)
  return { body, warnings: [...warnings], jsonTool: format.tool?.name ?? null }
}

function refuseImpossible(request: ChatRequest): void {
  if ((request.n ?? 1) > 1) refuse('Claude gives one choice: n has to be 1.', 'n')
  const { modalities, audio, functions, function_call: call } = request
  if (audio || (Array.isArray(modalities) && modalities.includes('audio'))) {
    refuse('Claude does not speak: ask for text only.', audio ? 'audio' : 'modalities')
  }
  if (functions) refuse('Functions are named by tools: send `tools`.', 'functions')
  if (call) refuse('Functions are chosen by tool_choice.', 'function_call')
}

/** Required by the wire: the request's own cap, else the most that the model gives. */
function maxTokensOf(request: ChatRequest, model: Model, warnings: Set<string>): number {
  const asked = request.max_completion_tokens ?? request.max_tokens ?? model.maxOutput
  if (!model.known || asked <= model.maxOutput) return asked
  warnings.add(`This model gives at most ${model.maxOutput} output tokens.`)
  return model.maxOutput
}

interface Format {
  readonly schema: object | null
  readonly tool: ToolParam | null
  /** For the system: what cannot be said otherwise. */
  readonly words: string | null
}

/** `response_format`: by the model's own way, by a tool that it has to call, or in words. */
function formatOf(request: ChatRequest, model: Model, warnings: Set<string>): Format {
  const none: Format = { schema: null, tool: null, words: null }
  const { response_format: format } = request
  if (!isRecord(format) || format['type'] === 'text') return none
  const wanted = isRecord(format['json_schema']) ? format['json_schema'] : {}
  const { schema, description } = format['type'] === 'json_schema' ? wanted : {}
  if (schema === undefined || schema === null) {
    if (format['type'] !== 'json_object') refuse('There is no schema.', 'response_format')
    warnings.add('JSON was asked for in words: Claude has no json_object.')
    return { ...none, words: 'Answer with one JSON object and nothing else: no words around it, no code fence.' }
  }
  const param = 'response_format.json_schema.schema'
  if (!isRecord(schema)) return refuse('A schema is an object.', param)
  if (model.schemas) {
    const { schema: own, dropped, exact } = lowered(schema, param)
    if (exact) {
      warnDropped('response_format', dropped, warnings)
      return { ...none, schema: own }
    }
  }
  if (schema['type'] !== undefined && schema['type'] !== 'object') refuse('The answer has to be an object.', param)
  let name = 'json_answer'
  while (request.tools?.some(tool => tool.function?.name === name)) name += '_'
  const told = typeof description === 'string' ? `\n${description}` : ''
  return {
    ...none,
    tool: {
      name,
      description: `Gives the answer to the user. Call it once, and say nothing else.${told}`,
      input_schema: { ...schema, type: 'object' }
    }
  }
}

function warnDropped(where: string, dropped: ReadonlySet<string>, warnings: Set<string>): void {
  if (dropped.size > 0) warnings.add(`Keywords of a schema left out (${where}): ${listed(dropped)}.`)
}

/** At most ten names that may stand in a header. */
function listed(names: Iterable<string>): string {
  const shown = [...names].filter(name => /^[$\w]{1,40}$/.test(name))
  return shown.length > 10 ? `${shown.slice(0, 10).join(', ')} and more` : shown.join(', ')
}

/** `reasoning_effort`, or Anthropic's own `thinking` where a client sends it. A budget leaves room below `most`. */
function thinkingOf(
  request: ChatRequest,
  model: Model,
  most: number,
  turns: readonly Turn[],
  mustCall: boolean,
  warnings: Set<string>
): { thinking?: Thinking; effort?: string } {
  const given = wantedThinking(request, model, most, warnings)
  if (given.thinking?.type !== 'enabled') return given
  const budget = Math.min(given.thinking.budget_tokens ?? leastBudget, most - 1)
  let reason: string | null = null
  if (budget < leastBudget) reason = `the cap on output tokens leaves no room for the least of ${leastBudget}`
  else if (mustCall) reason = 'this model cannot think before an answer in JSON'
  else if (lacksThoughts(turns)) reason = 'the thoughts before its tool calls are missing'
  if (reason === null) return { ...given, thinking: { ...given.thinking, budget_tokens: budget } }
  warnings.add(`It answers without thinking: ${reason}.`)
  return {}
}

function wantedThinking(
  request: ChatRequest,
  model: Model,
  most: number,
  warnings: Set<string>
): { thinking?: Thinking; effort?: string } {
  const { thinking, reasoning_effort: effort } = request
  if (isRecord(thinking) && typeof thinking['type'] === 'string') {
    if (thinking['type'] !== 'enabled' || model.budgets) {
      const budget = typeof thinking['budget_tokens'] === 'number' ? { budget_tokens: thinking['budget_tokens'] } : {}
      return { thinking: { ...thinking, ...budget, type: thinking['type'] } }
    }
    warnings.add('This model decides itself how much it thinks: the budget was left out.')
    return { thinking: { type: 'adaptive', display: 'summarized' } }
  }
  if (effort === undefined || effort === null) return {}
  if (typeof effort !== 'string' || !efforts.includes(effort)) {
    return refuse(`reasoning_effort is one of ${efforts.join(', ')}.`, 'reasoning_effort')
  }
  if (model.thinking === 'none') {
    if (effort !== 'none') warnings.add('This model does not think: reasoning_effort was left out.')
    return {}
  }
  if (model.thinking === 'budget') {
    if (effort === 'none') return {}
    const budget = effortBudgets[effort] ?? 32_768
    return { thinking: { type: 'enabled', budget_tokens: Math.min(budget, Math.max(leastBudget, most >> 1)) } }
  }
  if (effort === 'none') {
    if (model.least === 'disabled') return { thinking: { type: 'disabled' } }
    warnings.add('This model cannot do without thinking: it thinks as little as it can.')
    return model.least === 'low' ? { effort: 'low' } : { thinking: { type: 'between_tools' } }
  }
  if (effort === 'xhigh' && !model.xhigh) warnings.add('This model knows no effort xhigh: it was asked for high.')
  const own = effort === 'minimal' ? 'low' : effort === 'xhigh' && !model.xhigh ? 'high' : effort
  return { thinking: { type: 'adaptive', display: 'summarized' }, effort: own }
}

/** @param forced whether a tool may be demanded */
function addTools(
  body: MessagesBody,
  request: ChatRequest,
  model: Model,
  forced: boolean,
  jsonTool: ToolParam | null,
  called: ReadonlySet<string>,
  warnings: Set<string>
): void {
  const tools = (request.tools ?? []).map((tool, index) => toolOf(tool, `tools[${index}]`, model, warnings))
  const wanted = choiceOf(request, tools)
  const parallel = request.parallel_tool_calls === false ? ({ disable_parallel_tool_use: true } as const) : {}
  if (jsonTool !== null) {
    const others = wanted.type === 'none' ? [] : tools.filter(({ name }) => wanted.names?.has(name) ?? true)
    body.tools = [...others, jsonTool]
    const once = { disable_parallel_tool_use: true } as const
    if (!forced) body.tool_choice = { type: 'auto', ...once }
    else if (others.length > 0) body.tool_choice = { type: 'any', ...once }
    else body.tool_choice = { type: 'tool', name: jsonTool.name, ...once }
    if (!forced) warnings.add('This model cannot be made to answer in this schema: it was asked to.')
    return
  }
  if (tools.length === 0) {
    // Calls in a conversation are refused where no tools are known.
    if (called.size === 0) return
    body.tools = [...called].map(name => ({ name, input_schema: { type: 'object', properties: {} } }))
    body.tool_choice = { type: 'none' }
    return
  }
  const { type, names } = wanted
  const demanded = type === 'any' || type === 'tool'
  body.tools = names === null || (type === 'tool' && forced) ? tools : tools.filter(({ name }) => names.has(name))
  if (demanded && !forced) {
    warnings.add('This model cannot be made to call a tool here: it may.')
    body.tool_choice = { type: 'auto', ...parallel }
  } else if (type === 'tool') body.tool_choice = { type, name: [...(names ?? [])][0] ?? '', ...parallel }
  else if (type === 'none') body.tool_choice = { type }
  else if (type === 'any' || request.parallel_tool_calls === false) body.tool_choice = { type, ...parallel }
}

function toolOf(tool: Tool, param: string, model: Model, warnings: Set<string>): ToolParam {
  const { function: asked } = tool
  if (tool.type !== 'function' || asked === undefined) {
    return refuse(`Claude takes tools of the type \`function\`, not \`${tool.type.slice(0, 64)}\`.`, `${param}.type`)
  }
  const { name, description, parameters } = asked
  const { strict, cache_control: cache = tool['cache_control'] }: Record<string, unknown> = asked
  const own: ToolParam = { name, input_schema: { properties: {}, ...parameters, type: 'object' } }
  if (description) own.description = description
  if (isRecord(cache)) own.cache_control = cache
  if (strict !== true) return own
  const strictly = model.schemas && parameters ? lowered(parameters, `${param}.function.parameters`) : null
  if (strictly?.exact) {
    warnDropped('tools', strictly.dropped, warnings)
    return { ...own, input_schema: { properties: {}, ...strictly.schema, type: 'object' }, strict: true }
  }
  warnings.add('Tools that cannot be strict here are not.')
  return own
}

/** `names`: the tools that may be called; null for all of them. */
function choiceOf(
  request: ChatRequest,
  tools: readonly ToolParam[]
): { type: ToolChoice['type']; names: Set<string> | null } {
  const { tool_choice: choice } = request
  if (choice === undefined || choice === null || choice === 'auto') return { type: 'auto', names: null }
  if (choice === 'none') return { type: 'none', names: null }
  if (choice === 'required') {
    if (tools.length === 0) refuse('A tool is required and there are no tools.', 'tool_choice')
    return { type: 'any', names: null }
  }
  if (!isRecord(choice)) return refuse('There is no such tool_choice.', 'tool_choice')
  const { type, allowed_tools: allowed, function: named } = choice
  const several = type === 'allowed_tools' && isRecord(allowed) && Array.isArray(allowed['tools']) ? allowed : null
  const entries: unknown[] = several === null ? [{ function: named }] : Object.values(several['tools'] ?? [])
  const names = new Set<string>()
  for (const entry of entries) {
    const name = isRecord(entry) && isRecord(entry['function']) ? entry['function']['name'] : undefined
    if (typeof name === 'string' && tools.some(tool => tool.name === name)) names.add(name)
    else refuse('tool_choice names a tool that is not among the tools.', 'tool_choice')
  }
  if (several === null) return { type: 'tool', names }
  return { type: several['mode'] === 'required' ? 'any' : 'auto', names }
}

/** @param takes whether the model and the version of its API take any */
function addSampling(body: MessagesBody, request: ChatRequest, takes: boolean, warnings: Set<string>): void {
  const { temperature, top_p: topP, top_k: topK } = request
  const thinks = body.thinking !== undefined && body.thinking.type !== 'disabled'
  const left: string[] = []
  if (topK !== undefined && topK !== null) {
    if (takes && !thinks) body.top_k = topK
    else left.push('top_k')
  }
  const heat = temperature ?? null
  if (heat !== null && takes && !thinks) {
    body.temperature = Math.min(1, heat)
    if (heat > 1) warnings.add('The temperature is at most 1 here.')
  } else if (heat !== null && heat !== 1) left.push('temperature')
  // Newer models refuse both at once. 1 is what they do anyway.
  if (typeof topP === 'number') {
    if (takes && !thinks && heat === null) body.top_p = topP
    else if (topP !== 1) left.push('top_p')
  }
  if (left.length > 0) warnings.add(`Left out, for this model does not take it so: ${left.join(', ')}.`)
}

function addRest(body: MessagesBody, request: ChatRequest, warnings: Set<string>): void {
  const { stop, user, safety_identifier: person = user, service_tier: tier, cache_control: cache } = request
  const stops = typeof stop === 'string' ? [stop] : (stop ?? [])
  const audible = stops.filter(text => /\S/.test(text))
  if (audible.length > 0) body.stop_sequences = audible
  if (audible.length < stops.length) warnings.add('Stop sequences of nothing but white space were left out.')
  if (typeof person === 'string' && person !== '') body.metadata = { user_id: person }
  if (isRecord(cache)) body.cache_control = cache
  if (tier === 'auto' || tier === 'priority') body.service_tier = 'auto'
  else if (tier === 'default' || tier === 'standard_only') body.service_tier = 'standard_only'
  else if (tier !== undefined && tier !== null) warnings.add('The service tier is unknown here and was left out.')
  const left: string[] = []
  for (const name in request) if (!understood.has(name) && says(name, request[name])) left.push(name)
  if (left.length > 0) warnings.add(`Left out, for Claude has no such parameter: ${listed(left)}.`)
}

/** False for a value that asks for nothing. */
function says(name: string, value: unknown): boolean {
  if (value === undefined || value === null || value === false) return false
  return !(value === 0 && name.endsWith('_penalty'))
}
