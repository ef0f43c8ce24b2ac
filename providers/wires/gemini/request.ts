import type { ChatRequest, ContentPart, Message, Tool, ToolCall } from '../../../schemas/chat.ts'
import { detail, type GatewayError, InvalidRequest } from '../../../schemas/errors.ts'
import { fieldsOf } from '../../../schemas/json.ts'
import type { Link, Media } from '../../media.ts'
import { type Family, familyOf } from './models.ts'
import { responseSchema } from './schema.ts'
import { type Signatures, signatureIn, skipSignature, textKey } from './signatures.ts'

/** What differs between the vendors that speak this wire. */
export interface Surface {
  /** Whether the vendor reads what stands at this address by itself. */
  readonly opens: (url: string) => boolean
  /** Whether calls and results carry their ids; Vertex goes by their order. */
  readonly callIds: boolean
  /** Whether the body may name a service tier. */
  readonly serviceTier: boolean
  readonly safetySettings?: ReadonlyArray<{ readonly category: string; readonly threshold: string }>
}

/** What one request needs besides itself. */
export interface Known {
  readonly signatures: Pick<Signatures, 'find'>
  /** What stands at the links of the request, by their address. */
  readonly media?: ReadonlyMap<string, Media>
}

export interface Part {
  text?: string
  thoughtSignature?: string
  inlineData?: Media
  fileData?: { fileUri: string; mimeType?: string }
  functionCall?: { id?: string; name: string; args: object }
  functionResponse?: { id?: string; name: string; response: object }
}

export interface Content {
  role: 'user' | 'model'
  parts: Part[]
}

/** The body of generateContent and streamGenerateContent. */
export interface GeminiBody {
  contents: Content[]
  systemInstruction?: { parts: Part[] }
  tools?: Array<{ functionDeclarations: object[] }>
  toolConfig?: { functionCallingConfig: { mode: string; allowedFunctionNames?: string[] } }
  safetySettings?: Surface['safetySettings']
  serviceTier?: string
  generationConfig?: Record<string, unknown>
}

interface Context extends Surface, Known {
  readonly family: Family
  readonly warn: (text: string) => void
}

/**
 * OpenAI's request as Google's; the model's name stands in the address and not here.
 * @throws InvalidRequest with `param` for what cannot be said
 */
export function toGemini(
  request: ChatRequest,
  surface: Surface,
  known: Known
): { body: GeminiBody; warnings: string[] } {
  const warnings = new Set<string>()
  const family = familyOf(request.model ?? '')
  const context: Context = { ...surface, ...known, family, warn: text => warnings.add(text) }
  refuse(request)
  const body: GeminiBody = { contents: [] }
  const system = addContents(body.contents, request.messages, context)
  if (system.length > 0) {
    if (family.systemInstruction) body.systemInstruction = { parts: system.map(text => ({ text })) }
    else body.contents[0]?.parts.unshift({ text: system.join('\n\n') })
  }
  if (request.tools?.length) {
    body.tools = [{ functionDeclarations: request.tools.map(declarationOf) }]
    const config = callingOf(request, request.tools)
    if (config !== null) body.toolConfig = { functionCallingConfig: config }
  }
  if (surface.safetySettings?.length) body.safetySettings = surface.safetySettings
  const tier = surface.serviceTier ? tiers.get(String(request['service_tier'])) : undefined
  if (tier !== undefined) body.serviceTier = tier
  const config = generationConfigOf(request, context)
  if (config !== null) body.generationConfig = config
  nameUnknown(request, surface, context.warn)
  return { body, warnings: [...warnings] }
}

// Maps, because requests say what is looked up: of an object, `constructor` would be found.

const tiers: ReadonlyMap<string, string> = new Map([
  ['default', 'standard'],
  ['flex', 'flex'],
  ['priority', 'priority'],
  ['fast', 'priority']
])

function invalid(message: string, param: string): GatewayError {
  return detail(new InvalidRequest(message), { param })
}

/** What would change the meaning if it were left out. */
function refuse({ modalities, audio, functions }: ChatRequest): void {
  if (audio || (Array.isArray(modalities) && modalities.includes('audio'))) {
    throw invalid('This model does not answer in audio here.', audio ? 'audio' : 'modalities')
  }
  if (Array.isArray(functions) && functions.length > 0) {
    throw invalid('`functions` are not translated for this model: send them as `tools`.', 'functions')
  }
}

/** Fields that are translated, or that change nothing of an answer. */
const understood = new Set([
  ...['model', 'messages', 'stream', 'stream_options', 'max_tokens', 'max_completion_tokens', 'temperature', 'top_p'],
  ...['top_k', 'frequency_penalty', 'presence_penalty', 'n', 'seed', 'stop', 'logprobs', 'top_logprobs', 'tools'],
  ...['response_format', 'tool_choice', 'reasoning_effort', 'modalities', 'metadata', 'user', 'safety_identifier'],
  ...['prompt_cache_key', 'prompt_cache_options', 'prompt_cache_retention', 'store']
])

function nameUnknown(request: ChatRequest, { serviceTier }: Surface, warn: (text: string) => void): void {
  const names: string[] = []
  for (const name in request) {
    const value = request[name]
    if (understood.has(name) || value === null || value === undefined) continue
    if (name === 'parallel_tool_calls' && value === true) continue
    if (name === 'service_tier' && (value === 'auto' || (serviceTier && tiers.has(String(value))))) continue
    names.push(name)
  }
  if (names.length > 0) warn(`Gemini does not take ${listed(names)}.`)
}

/** Names that come from the client, short enough for a header. */
function listed(names: readonly string[]): string {
  const shown = names.filter(name => /^[\w$]{1,40}$/.test(name)).slice(0, 10)
  return shown.length === names.length ? shown.join(', ') : [...shown, 'other fields'].join(', ')
}

/** Adds the conversation, and returns what its system messages say. */
function addContents(contents: Content[], messages: readonly Message[], context: Context): string[] {
  const system: string[] = []
  const results = new Set<Message>()
  let turn = 0
  for (const [index, message] of messages.entries()) {
    const at = `messages[${index}]`
    if (message.role === 'system' || message.role === 'developer') {
      const text = textOf(message.content, at)
      if (text !== '') system.push(text)
    } else if (message.role === 'user') {
      if (message.name) context.warn('Gemini does not take the names of users.')
      // What a tool has said stands alone.
      const last = contents.at(-1)
      const own = last?.role === 'user' && last.parts[0]?.functionResponse === undefined ? last : open(contents, 'user')
      turn = contents.length - 1
      addParts(own.parts, message.content, at, context)
    } else if (message.role === 'assistant') {
      const calls = callsOf(message, at, context)
      const parts = said(message, at, context)
      if (parts.length + calls.length === 0) continue
      if (contents.length === 0) open(contents, 'user')
      const own = contents.at(-1)?.role === 'model' ? contents.at(-1)! : open(contents, 'model')
      own.parts.push(...parts, ...calls.map(({ part }) => part))
      if (calls.length > 0) open(contents, 'user').parts.push(...resultsOf(calls, messages, index, results, context))
    } else if (!results.has(message)) {
      throw invalid('This result belongs to no call of the assistant message before it.', `${at}.tool_call_id`)
    }
  }
  if (contents.length === 0) open(contents, 'user')
  // An empty text is refused, and so is a turn without parts.
  for (const { parts } of contents) if (parts.length === 0) parts.push({ text: ' ' })
  if (context.family.signed) signFrom(contents, turn)
  return system
}

function open(contents: Content[], role: Content['role']): Content {
  const content: Content = { role, parts: [] }
  contents.push(content)
  return content
}

/** Of each step since the user spoke the first call has to be signed. */
function signFrom(contents: readonly Content[], turn: number): void {
  for (let index = turn; index < contents.length; index++) {
    const first = contents[index]!.parts.find(part => part.functionCall !== undefined)
    if (first !== undefined) first.thoughtSignature ??= skipSignature
  }
}

function addParts(parts: Part[], content: Message['content'], at: string, context: Context): void {
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

/** What the assistant said, and what its refusals did. */
function said(message: Message, at: string, { signatures }: Context): Part[] {
  const texts = typeof message.content === 'string' ? message.content : textOf(message.content, at)
  const refusal = message['refusal']
  const text = texts === '' && typeof refusal === 'string' ? refusal : texts
  const own = signatureIn(message)
  const signature = own !== undefined && signatures.find(textKey(own)) === undefined ? own : undefined
  if (text === '' && signature === undefined) return []
  return [signature === undefined ? { text } : { text, thoughtSignature: signature }]
}

interface Call {
  readonly id: string | undefined
  readonly name: string
  readonly part: Part
}

function callsOf(message: Message, at: string, context: Context): Call[] {
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
function resultsOf(
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

/** The texts of messages that have nothing else. */
function textOf(content: Message['content'], at: string): string {
  if (typeof content === 'string') return content
  let text = ''
  for (const [index, part] of (content ?? []).entries()) {
    const own = part.type === 'refusal' ? part['refusal'] : part.type === 'text' ? part.text : undefined
    if (typeof own !== 'string') throw invalid('This message may hold nothing but text.', `${at}.content[${index}]`)
    text += own
  }
  return text
}

function declarationOf(tool: Tool, index: number): object {
  if (tool.type !== 'function' || tool.function === undefined) {
    throw invalid(`Tools of the type \`${tool.type.slice(0, 40)}\` cannot be sent to this model.`, `tools[${index}]`)
  }
  const { name, description, parameters } = tool.function
  const declaration = { name, description: description ?? '' }
  return parameters ? { ...declaration, parametersJsonSchema: parameters } : declaration
}

/** The choice of tools; null for Gemini's own default. */
function callingOf(
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

function generationConfigOf(request: ChatRequest, context: Context): Record<string, unknown> | null {
  const config: Record<string, unknown> = {}
  const set = (name: string, value: unknown) => {
    if (value !== null && value !== undefined) config[name] = value
  }
  set('temperature', request.temperature)
  set('topP', request.top_p)
  set('topK', request['top_k'])
  set('seed', request['seed'])
  set('maxOutputTokens', request.max_completion_tokens ?? request.max_tokens)
  // Many models refuse these two, whatever they are; clients send their defaults.
  set('presencePenalty', request.presence_penalty || undefined)
  set('frequencyPenalty', request.frequency_penalty || undefined)
  if (request.n && request.n > 1) config['candidateCount'] = request.n
  const stop = typeof request.stop === 'string' ? [request.stop] : request.stop?.filter(text => text !== '')
  if (stop?.length && stop[0] !== '') config['stopSequences'] = stop
  if (request['logprobs'] === true) {
    config['responseLogprobs'] = true
    set('logprobs', request['top_logprobs'] || undefined)
  }
  addFormat(config, request['response_format'], context)
  const thinking = thinkingOf(request['reasoning_effort'], context)
  if (thinking !== null) config['thinkingConfig'] = thinking
  for (const _name in config) return config
  return null
}

function addFormat(config: Record<string, unknown>, format: unknown, { warn }: Context): void {
  const { type, json_schema: named } = fieldsOf(format)
  if (type !== 'json_object' && type !== 'json_schema') {
    if (type === undefined || type === 'text') return
    throw invalid('A response format is `text`, `json_object` or `json_schema`.', 'response_format')
  }
  config['responseMimeType'] = 'application/json'
  const { schema } = fieldsOf(named)
  if (type === 'json_object' || schema === undefined) return
  const dropped = new Set<string>()
  config['responseJsonSchema'] = responseSchema(fieldsOf(schema), dropped)
  if (dropped.size > 0) warn(`Gemini does not take these keywords of the schema: ${listed([...dropped])}.`)
}

const levels: ReadonlyMap<unknown, string> = new Map(
  Object.entries({
    ...{ none: 'MINIMAL', minimal: 'MINIMAL', low: 'LOW', medium: 'MEDIUM', high: 'HIGH', xhigh: 'HIGH', max: 'HIGH' }
  })
)
/** As Google's own translation of OpenAI's wire has them (https://ai.google.dev/gemini-api/docs/openai). */
const budgets: Readonly<Record<string, number>> = { none: 0, minimal: 1_024, low: 1_024, medium: 8_192, high: 24_576 }

function thinkingOf(effort: unknown, { family, warn }: Context): object | null {
  if (effort === null || effort === undefined) return null
  const level = levels.get(effort)
  if (level === undefined) throw invalid('This effort of reasoning is not known.', 'reasoning_effort')
  const quiet = effort === 'none'
  if (family.thinking === null) {
    if (!quiet) warn('This model does not think: reasoning_effort is left out.')
    return null
  }
  const { least, most } = family.budgets
  if (quiet && (family.thinking === 'level' || least > 0)) warn('This model always thinks: as little as it can.')
  if (family.thinking === 'level') {
    return { includeThoughts: !quiet, thinkingLevel: level === 'MINIMAL' ? family.lowestLevel : level }
  }
  return { includeThoughts: !quiet, thinkingBudget: Math.max(least, budgets[String(effort)] ?? most) }
}
