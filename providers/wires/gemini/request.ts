import type { ChatRequest, Message } from '../../../schemas/chat.ts'
import { callsOf, resultsOf } from './calls.ts'
import { invalid, listed } from './complaints.ts'
import { generationConfigOf } from './config.ts'
import type { Context, Known, Part, Surface } from './context.ts'
import { familyOf } from './models.ts'
import { addParts, textOf } from './parts.ts'
import { signatureIn, skipSignature, textKey } from './signatures.ts'
import { callingOf, declarationOf } from './tools.ts'

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
