import type { ChatRequest, ContentPart, Message, ToolCall } from '../../../schemas/chat.ts'
import { detail, InvalidRequest } from '../../../schemas/errors.ts'
import { isRecord } from '../../../schemas/reader.ts'
import type { Recall } from '../../recall.ts'

type Cached = { cache_control?: unknown }
type Source =
  | { type: 'base64'; media_type: string; data: string }
  | { type: 'text'; media_type: 'text/plain'; data: string }
  | { type: 'url'; url: string }
export type TextBlock = { type: 'text'; text: string } & Cached
/** A piece of what the model thought, to be given back as it came: its signature covers it. */
export type Thought =
  | { type: 'thinking'; thinking: string; signature: string }
  | { type: 'redacted_thinking'; data: string }
/** A block of a message, as far as we write them. */
export type Block =
  | TextBlock
  | ({ type: 'image' | 'document'; source: Source; title?: string } & Cached)
  | { type: 'tool_use'; id: string; name: string; input: object }
  | { type: 'tool_result'; tool_use_id: string; content?: string | Block[]; is_error?: true }
  | Thought

export interface Turn {
  readonly role: 'user' | 'assistant'
  readonly content: Block[]
}

/** A conversation as the wire takes it. */
export interface Conversation {
  readonly system: TextBlock[]
  /** Never empty, the user's first, roles alternate, each call has its result in the turn after it. */
  readonly turns: Turn[]
  /** Names of the tools that were called. */
  readonly called: ReadonlySet<string>
}

/** The thoughts that came with calls, which have to be given back with their results: for clients that drop them. */
export interface Memory {
  recollect(call: string): readonly Thought[] | undefined
  keep(calls: readonly string[], thoughts: readonly Thought[]): void
}

/** What one tenant's calls brought. */
export function memoryOf(recall: Recall<readonly Thought[]>, tenant: string): Memory {
  return {
    recollect: call => recall.find(tenant, call),
    keep(calls, thoughts) {
      const bytes = Math.ceil(JSON.stringify(thoughts).length / calls.length)
      for (const call of calls) recall.keep(tenant, call, thoughts, bytes)
    }
  }
}

const legalId = /^[a-zA-Z0-9_-]+$/
/** Marks an id that had to be written in other letters. */
const coded = 'b64-'
const imageTypes = new Set(['image/jpeg', 'image/png', 'image/gif', 'image/webp'])

/** @throws InvalidRequest naming what Claude cannot take */
export function conversationOf(
  messages: ChatRequest['messages'],
  recollect: Memory['recollect'],
  warnings: Set<string>
): Conversation {
  const system: TextBlock[] = []
  const turns: Turn[] = []
  const called = new Set<string>()
  const used = new Set<string>()
  /** Calls of the last assistant that wait for their results: their ids here and there. */
  const open = new Map<string, string>()

  function add(role: Turn['role'], blocks: readonly Block[]): void {
    if (blocks.length === 0) return
    const last = turns.at(-1)
    if (last?.role === role) for (const block of blocks) last.content.push(block)
    else turns.push({ role, content: [...blocks] })
  }

  function answerOpenCalls(): void {
    if (open.size === 0) return
    warnings.add('Tool calls without a result were given an error as theirs.')
    for (const id of open.values()) {
      add('user', [{ type: 'tool_result', tool_use_id: id, content: 'There is no result.', is_error: true }])
    }
    open.clear()
  }

  function answer(message: Message, param: string): void {
    const id = open.get(message.tool_call_id ?? '')
    if (id === undefined) {
      refuse('A tool message has to follow the assistant message with its call.', `${param}.tool_call_id`)
    }
    open.delete(message.tool_call_id ?? '')
    const { content } = message
    const blocks = blocksOf(content, `${param}.content`, true)
    const said = typeof content === 'string' ? content : blocks
    add('user', [{ type: 'tool_result', tool_use_id: id, content: blocks.length === 0 ? undefined : said }])
  }

  function say(message: Message, param: string): void {
    if (message['function_call'] || message['audio']) {
      const field = message['audio'] ? 'audio' : 'function_call'
      refuse(`Claude takes no \`${field}\` of an assistant.`, `${param}.${field}`)
    }
    const calls = message.tool_calls ?? []
    add('assistant', thoughtsOf(message, calls, recollect))
    add('assistant', blocksOf(message.content, `${param}.content`))
    if (typeof message['refusal'] === 'string') add('assistant', blocksOf(message['refusal'], param))
    for (const [index, call] of calls.entries()) {
      const at = `${param}.tool_calls[${index}]`
      const { id = '', function: asked } = call
      if (asked === undefined) refuse('Claude takes calls of functions only.', `${at}.type`)
      if (open.has(id)) refuse('Two calls of one message have the same id.', `${at}.id`)
      const own = wireId(id, used)
      open.set(id, own)
      called.add(asked.name)
      const input = inputOf(asked.arguments ?? '', `${at}.function.arguments`)
      add('assistant', [{ type: 'tool_use', id: own, name: asked.name, input }])
    }
  }

  for (const [index, message] of messages.entries()) {
    const param = `messages[${index}]`
    if (message.role === 'system' || message.role === 'developer') {
      if (turns.length > 0) warnings.add('System messages were moved to the beginning.')
      for (const block of blocksOf(message.content, `${param}.content`)) {
        if (block.type === 'text') system.push(block)
      }
      continue
    }
    if (message.name && message.role !== 'tool') warnings.add('Names of speakers were left out.')
    if (message.role === 'function') refuse('Functions are called by tools: send the role `tool`.', `${param}.role`)
    if (message.role === 'tool') {
      answer(message, param)
      continue
    }
    answerOpenCalls()
    if (message.role === 'user') add('user', blocksOf(message.content, `${param}.content`, true))
    else say(message, param)
  }
  answerOpenCalls()
  if (turns[0]?.role !== 'user') {
    warnings.add('The user has to speak first: a "." was put before the conversation.')
    turns.unshift({ role: 'user', content: [{ type: 'text', text: '.' }] })
  }
  trimPrefill(turns)
  return { system, turns, called }
}

/** @throws InvalidRequest */
export function refuse(message: string, param: string): never {
  throw detail(new InvalidRequest(message), { param })
}

/** What somebody says, without texts that say nothing: the wire refuses those. */
function blocksOf(content: Message['content'], param: string, media = false): Block[] {
  if (typeof content === 'string') return /\S/.test(content) ? [{ type: 'text', text: content }] : []
  const blocks: Block[] = []
  for (const [index, part] of (content ?? []).entries()) {
    const block = blockOf(part, `${param}[${index}]`, media)
    if (block === null) continue
    if (isRecord(part['cache_control'])) block.cache_control = part['cache_control']
    blocks.push(block)
  }
  return blocks
}

function blockOf(part: ContentPart, param: string, media: boolean): (Block & Cached) | null {
  const said = part.type === 'refusal' ? part['refusal'] : part.text
  if (part.type === 'text' || part.type === 'refusal') {
    return typeof said === 'string' && /\S/.test(said) ? { type: 'text', text: said } : null
  }
  if (media && part.type === 'image_url') return imageOf(part.image_url, `${param}.image_url`)
  if (media && part.type === 'file') return documentOf(part['file'], `${param}.file`)
  return refuse(`Claude takes no part of the type \`${part.type.slice(0, 64)}\` here.`, `${param}.type`)
}

function imageOf(image: ContentPart['image_url'], param: string): Block {
  const url = typeof image === 'string' ? image : (image?.url ?? '')
  if (/^https?:/i.test(url)) return { type: 'image', source: { type: 'url', url } }
  const { type, data } = dataOf(url, `${param}.url`)
  const named = type === 'image/jpg' ? 'image/jpeg' : type
  if (!imageTypes.has(named)) refuse('Claude takes images as JPEG, PNG, GIF or WebP.', `${param}.url`)
  return { type: 'image', source: { type: 'base64', media_type: named, data } }
}

function documentOf(file: unknown, param: string): Block {
  const { file_data: url, filename } = isRecord(file) ? file : {}
  if (typeof url !== 'string') refuse('Claude takes files as `file_data`: a data URL.', param)
  const title = typeof filename === 'string' && filename !== '' ? { title: filename } : {}
  if (/^https?:/i.test(url)) return { type: 'document', source: { type: 'url', url }, ...title }
  // The bytes alone, as OpenAI takes them too: the beginning of a PDF in base64.
  const { type, data } = url.startsWith('JVBERi') ? { type: pdf, data: url } : dataOf(url, `${param}.file_data`)
  if (type === pdf) return { type: 'document', source: { type: 'base64', media_type: pdf, data }, ...title }
  if (type !== 'text/plain') refuse('Claude takes files as PDF or as plain text.', `${param}.file_data`)
  const text = Buffer.from(data, 'base64').toString('utf8')
  return { type: 'document', source: { type: 'text', media_type: type, data: text }, ...title }
}

const pdf = 'application/pdf'

/** The parts of `data:image/png;base64,…`; what follows the comma is not looked at. */
function dataOf(url: string, param: string): { type: string; data: string } {
  const comma = url.indexOf(',')
  const head = comma === -1 ? '' : url.slice(0, Math.min(comma, 256)).toLowerCase()
  if (!head.startsWith('data:') || !head.endsWith(';base64')) {
    refuse('This has to be an http(s) URL or a data URL in base64.', param)
  }
  return { type: head.slice('data:'.length).split(';', 1)[0] ?? '', data: url.slice(comma + 1) }
}

/** What the client has kept, else what we have. */
function thoughtsOf(message: Message, calls: readonly ToolCall[], recollect: Memory['recollect']): readonly Thought[] {
  const kept = message['thinking_blocks']
  if (Array.isArray(kept)) return kept.filter(isThought)
  for (const { id } of calls) {
    const known = id === undefined ? undefined : recollect(id)
    if (known !== undefined) return known
  }
  return []
}

/** True for what the vendor takes back: signed, or encrypted. */
export function isThought(block: unknown): block is Thought {
  if (!isRecord(block)) return false
  if (block['type'] === 'redacted_thinking') return typeof block['data'] === 'string'
  const { type, thinking, signature } = block
  return type === 'thinking' && typeof thinking === 'string' && typeof signature === 'string' && signature !== ''
}

/**
 * The id under which a call goes upstream: its own where it may. Other letters than the vendor's are written in base64,
 * and an id that comes again, as from vendors that count anew in each answer, gets a number.
 */
function wireId(id: string, used: Set<string>): string {
  const legal = legalId.test(id) && !id.startsWith(coded)
  const own = legal ? id : coded + Buffer.from(id).toString('base64url')
  let unique = own
  for (let number = 2; used.has(unique); number++) unique = `${own}-${number}`
  used.add(unique)
  return unique
}

function inputOf(text: string, param: string): object {
  if (text.trim() === '') return {}
  let input: unknown
  try {
    input = JSON.parse(text)
  } catch {
    refuse('The arguments of this call are not JSON.', param)
  }
  if (!isRecord(input)) refuse('The arguments of a call have to be a JSON object.', param)
  return input
}

/** The wire refuses white space at the end of what the assistant is to go on with. */
function trimPrefill(turns: readonly Turn[]): void {
  const last = turns.at(-1)
  const end = last?.role === 'assistant' ? last.content.at(-1) : undefined
  if (last !== undefined && end?.type === 'text') last.content.splice(-1, 1, { ...end, text: end.text.trimEnd() })
}

/** True where the model calls tools and none of its last messages has its thoughts: it cannot go on thinking then. */
export function lacksThoughts(turns: readonly Turn[]): boolean {
  let calls = false
  for (const { role, content } of turns.toReversed()) {
    if (role === 'user' && !content.some(block => block.type === 'tool_result')) break
    if (content.some(isThought)) return false
    if (role === 'assistant') calls = true
  }
  return calls
}
