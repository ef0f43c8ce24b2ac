import { isRecord } from '../../schemas/reader.ts'
import type { Heard, Item } from '../../testing/heard.ts'
import type { Speech, Vendor } from '../conformance/provider.ts'
import { json, type Reply, type ReplyOptions, sse, type Upstream } from '../upstream.ts'

/** What a scripted Claude says. Text, thoughts and arguments may be given in the pieces that they are streamed in. */
export type Said =
  | { readonly type: 'text'; readonly text: string | readonly string[] }
  | { readonly type: 'thinking'; readonly thinking: string | readonly string[]; readonly signature: string }
  | { readonly type: 'redacted_thinking'; readonly data: string }
  | {
      readonly type: 'tool_use'
      readonly id: string
      readonly name: string
      readonly input: string | readonly string[]
    }

interface Around {
  readonly stop_reason?: string
  readonly usage?: Readonly<Record<string, unknown>>
  readonly [field: string]: unknown
}

const head = { id: 'msg_01Upstream', type: 'message', role: 'assistant', model: 'claude-sonnet-4-5-20250929' }
const counts = { input_tokens: 9, cache_creation_input_tokens: 0, cache_read_input_tokens: 0, output_tokens: 5 }

/** A message as POST /v1/messages answers it. */
export function message(said: readonly Said[], around: Around = {}) {
  const content = said.map(block => {
    if (block.type === 'text') return { type: 'text', text: joined(block.text), citations: null }
    if (block.type === 'thinking') return { ...block, thinking: joined(block.thinking) }
    if (block.type === 'tool_use') return { ...block, input: JSON.parse(joined(block.input) || '{}') }
    return block
  })
  const own = { stop_reason: reasonOf(said), stop_sequence: null, stop_details: null, usage: counts }
  return { ...head, content, ...own, ...around }
}

/** The same as the events of a stream. */
export function messageEvents(said: readonly Said[], around: Around = {}): string[] {
  const { usage = counts, stop_reason = reasonOf(said), ...rest } = around
  const begun = { ...head, content: [], stop_reason: null, stop_sequence: null, usage: { ...usage, output_tokens: 1 } }
  const blocks = said.flatMap((block, index) => {
    const { start, deltas } = piecesOf(block)
    return [
      event({ type: 'content_block_start', index, content_block: start }),
      ...deltas.map(delta => event({ type: 'content_block_delta', index, delta })),
      event({ type: 'content_block_stop', index })
    ]
  })
  return [
    event({ type: 'message_start', message: begun }),
    event({ type: 'ping' }),
    ...blocks,
    event({ type: 'message_delta', delta: { stop_reason, stop_sequence: null, ...rest }, usage }),
    event({ type: 'message_stop' })
  ]
}

/** One event as the vendor writes it. */
export function event(data: { readonly type: string; readonly [field: string]: unknown }): string {
  return `event: ${data.type}\ndata: ${JSON.stringify(data)}\n\n`
}

/** Says it streamed or whole, as a request asks. */
export function claude(said: readonly Said[], around: Around = {}) {
  return ({ json: asked }: { readonly json: { readonly stream?: boolean | null } }): Reply =>
    asked.stream ? sse(messageEvents(said, around), { done: false }) : json(message(said, around))
}

/** A failure before any answer. */
export function claudeError(status: number, text: string, type = 'api_error', options: ReplyOptions = {}): Reply {
  return json({ type: 'error', error: { type, message: text }, request_id: 'req_01' }, { ...options, status })
}

function piecesOf(block: Said): { start: object; deltas: object[] } {
  if (block.type === 'text') {
    const deltas = listed(block.text).map(text => ({ type: 'text_delta', text }))
    return { start: { type: 'text', text: '' }, deltas }
  }
  if (block.type === 'thinking') {
    const deltas: object[] = listed(block.thinking).map(thinking => ({ type: 'thinking_delta', thinking }))
    deltas.push({ type: 'signature_delta', signature: block.signature })
    return { start: { type: 'thinking', thinking: '', signature: '' }, deltas }
  }
  if (block.type === 'redacted_thinking') return { start: block, deltas: [] }
  const deltas = listed(block.input).map(json => ({ type: 'input_json_delta', partial_json: json }))
  return { start: { ...block, input: {} }, deltas }
}

function reasonOf(said: readonly Said[]): string {
  return said.some(block => block.type === 'tool_use') ? 'tool_use' : 'end_turn'
}

function listed(text: string | readonly string[]): readonly string[] {
  return typeof text === 'string' ? [text] : text
}

function joined(text: string | readonly string[]): string {
  return listed(text).join('')
}

/** How Claude says what the suites want said, and how it reads what it is asked. */
export function claudeVendor(upstream: Upstream): Vendor {
  return {
    upstream,
    says: ['calls', 'thinking', 'cacheRead', 'cacheWrite', 'reasoningTokens', 'filtered'],
    whole: (speech, options) => json(message(blocksOf(speech), aroundOf(speech)), options),
    stream: (speech, options) => sse(eventsOf(speech), { ...options, done: false }),
    refusal: (status, text) => claudeError(status, text, 'some_error'),
    failing: (speech, text) => {
      const error = event({ type: 'error', error: { type: 'api_error', message: text } })
      return sse([...eventsOf(speech).slice(0, -3), error], { done: false })
    },
    understood: heardByClaude,
    models: ids => json({ data: ids.map(modelOf), has_more: false, first_id: ids[0], last_id: ids.at(-1) }),
    count: tokens => json({ input_tokens: tokens }),
    healthy: () => json({ data: [modelOf('claude-opus-5')], has_more: true, last_id: 'claude-opus-5' })
  }
}

function eventsOf(speech: Speech): string[] {
  return messageEvents(blocksOf(speech), aroundOf(speech))
}

function blocksOf({ thinking, text, calls = [] }: Speech): Said[] {
  return [
    ...(thinking ? [{ type: 'thinking' as const, thinking, signature: 'c2ln' }] : []),
    ...(text.length > 0 ? [{ type: 'text' as const, text }] : []),
    ...calls.map(({ id, name, arguments: input }) => ({ type: 'tool_use' as const, id, name, input }))
  ]
}

function aroundOf({ finish, filtered, calls, ...speech }: Speech): Around {
  const { inputTokens, outputTokens, cacheRead = 0, cacheWrite = 0, reasoningTokens } = speech
  const ended = finish === 'length' ? 'max_tokens' : 'end_turn'
  return {
    stop_reason: filtered ? 'refusal' : calls ? 'tool_use' : ended,
    usage: {
      input_tokens: inputTokens - cacheRead - cacheWrite,
      cache_read_input_tokens: cacheRead,
      cache_creation_input_tokens: cacheWrite,
      cache_creation: { ephemeral_5m_input_tokens: cacheWrite, ephemeral_1h_input_tokens: 0 },
      output_tokens: outputTokens,
      output_tokens_details: reasoningTokens === undefined ? null : { thinking_tokens: reasoningTokens }
    }
  }
}

function modelOf(id: string) {
  return { type: 'model', id, display_name: id, created_at: '2026-02-04T00:00:00Z', max_input_tokens: 1_000_000 }
}

/** Reads a request as the vendor would, and refuses what the vendor refuses. */
function heardByClaude(body: unknown): Heard {
  const { system, messages, tools, tool_choice: choice } = recordOf(body)
  let role = ''
  const turns = recordsOf(messages).map(turn => {
    if (turn['role'] !== 'user' && turn['role'] !== 'assistant') throw new Error(`The role ${turn['role']}`)
    if (turn['role'] === role || (role === '' && turn['role'] !== 'user')) throw new Error('Roles do not alternate.')
    role = turn['role']
    const content = recordsOf(turn['content'])
    if (content.length === 0) throw new Error('A message is empty.')
    const results = content.map(block => block['type'] === 'tool_result')
    if (results.lastIndexOf(true) > results.indexOf(false) && results.includes(false))
      throw new Error('Results come late.')
    return { role: turn['role'], items: content.flatMap(itemsOf) } as const
  })
  for (const [index, { items }] of turns.entries()) {
    const calls = items.flatMap(item => (item.type === 'call' ? item.id : []))
    const answered = new Set(turns[index + 1]?.items.map(item => (item.type === 'result' ? item.call : '')))
    if (calls.some(id => !answered.has(id) || !/^[a-zA-Z0-9_-]+$/.test(id))) throw new Error('A call has no result.')
  }
  return {
    system: recordsOf(system ?? []).map(block => String(block['text'])),
    turns,
    tools: recordsOf(tools ?? []).map(tool => String(tool['name'])),
    choice: choiceOf(choice)
  }
}

function choiceOf(choice: unknown): string {
  const { type, name } = recordOf(choice ?? { type: 'auto' })
  if (type === 'tool') return String(name)
  return type === 'any' ? 'required' : String(type)
}

function itemsOf(block: Record<string, unknown>): Item[] {
  const { type, id, name, input, content, tool_use_id: call } = block
  const text = String(block['text'])
  if (type === 'text' && !/\S/.test(text)) throw new Error('A text is empty.')
  if (type === 'text') return [{ type, text }]
  if (type === 'tool_use') return [{ type: 'call', id: String(id), name: String(name), arguments: input }]
  if (type === 'tool_result') {
    const texts = typeof content === 'string' ? [content] : recordsOf(content ?? []).map(part => String(part['text']))
    return (texts.length === 0 ? [''] : texts).map(text => ({ type: 'result', call: String(call), text }))
  }
  const { type: kind, url, media_type: media, data } = recordOf(block['source'])
  const address = kind === 'url' ? String(url) : `data:${media};base64,${data}`
  if (type === 'image') return [{ type, url: address }]
  if (type === 'document') return [{ type: 'file', url: address }]
  throw new Error(`A block of the type ${type}`)
}

function recordsOf(value: unknown): Array<Record<string, unknown>> {
  if (!Array.isArray(value)) throw new Error('This has to be a list.')
  return value.map(recordOf)
}

function recordOf(value: unknown): Record<string, unknown> {
  if (!isRecord(value)) throw new Error('This has to be an object.')
  return value
}
