import { json, type Reply, type ReplyOptions, sse } from './replies.ts'

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
    asked.stream ? messageStream(said, around) : json(message(said, around))
}

export function messageStream(said: readonly Said[], around: Around = {}, options: ReplyOptions = {}): Reply {
  return sse(messageEvents(said, around), { ...options, done: false })
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
