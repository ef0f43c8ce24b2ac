import { json, type Reply, type ReplyOptions, repeat, sse } from './replies.ts'
import type { Received } from './server.ts'

/** Token counts as OpenAI reports them. */
export interface Usage {
  readonly prompt_tokens: number
  readonly completion_tokens: number
  readonly total_tokens: number
  readonly [field: string]: unknown
}

/** The fields of an answer that a test may replace or add; `content` and `finish_reason` are those of its only choice. */
export interface Overrides {
  readonly content?: string | null
  readonly finish_reason?: string | null
  readonly [field: string]: unknown
}

/** The body of a chat completion. */
export interface Completion {
  readonly id: string
  readonly model: string
  readonly choices: ReadonlyArray<{
    readonly index: number
    readonly message: { readonly role: string; readonly content: string | null; readonly [field: string]: unknown }
    readonly finish_reason: string | null
    readonly logprobs: unknown
  }>
  readonly usage: Usage
  readonly [field: string]: unknown
}

/** One chunk of a streamed chat completion. */
export interface Chunk {
  readonly id: string
  readonly model: string
  readonly choices: ReadonlyArray<{
    readonly index: number
    readonly delta: Readonly<Record<string, unknown>>
    readonly finish_reason: string | null
    readonly logprobs: unknown
  }>
  readonly usage?: Usage | null
  readonly [field: string]: unknown
}

const created = 1_790_000_000
const service = { service_tier: 'default', system_fingerprint: null }

/** A chat completion as OpenAI sends it. */
export function completion(overrides: Overrides = {}): Completion {
  const { content = 'Hello from upstream.', finish_reason = 'stop', ...rest } = overrides
  const message = { role: 'assistant', content, refusal: null, annotations: [] }
  return {
    ...identity('chat.completion'),
    choices: [{ index: 0, message, logprobs: null, finish_reason }],
    usage: countUsage(words(content ?? '').length),
    ...service,
    ...rest
  }
}

/** What `chunks` and `toolChunks` let a test replace; `usage` true or given: the last chunk reports it, the others null. */
export interface ChunkOverrides extends Overrides {
  readonly usage?: boolean | Usage
}

/** The chunks of a streamed text: role, one per word or given piece, finish, and usage where wanted. */
export function chunks(text: string | readonly string[], overrides: ChunkOverrides = {}): Chunk[] {
  const contents = typeof text === 'string' ? words(text) : text
  const deltas = [{ role: 'assistant', content: '', refusal: null }, ...contents.map(content => ({ content }))]
  return sequence(deltas, contents.length, { finish_reason: 'stop', ...overrides })
}

/** One call of a tool; the arguments are text, sent as the pieces given. */
export interface ToolCall {
  readonly name: string
  readonly arguments: string | readonly string[]
  readonly id?: string
}

/** The chunks of streamed tool calls: role with null content, each call's head and arguments, finish. */
export function toolChunks(calls: readonly ToolCall[], overrides: ChunkOverrides = {}): Chunk[] {
  const deltas = calls.flatMap((call, index) => {
    const head = { index, id: call.id ?? `call_upstream${index}`, type: 'function' }
    const parts = typeof call.arguments === 'string' ? (call.arguments.match(/.{1,8}/gsu) ?? []) : call.arguments
    return [
      { tool_calls: [{ ...head, function: { name: call.name, arguments: '' } }] },
      ...parts.map(part => ({ tool_calls: [{ index, function: { arguments: part } }] }))
    ]
  })
  const role = { role: 'assistant', content: null, refusal: null }
  return sequence([role, ...deltas], deltas.length, { finish_reason: 'tool_calls', ...overrides })
}

function sequence(deltas: readonly object[], tokens: number, overrides: ChunkOverrides): Chunk[] {
  const { finish_reason, usage = false, ...rest } = overrides
  const base = { ...identity('chat.completion.chunk'), ...service, ...rest }
  const silent = usage === false ? {} : { usage: null }
  const chunk = (delta: object, finish_reason: string | null): Chunk => {
    return { ...base, choices: [{ index: 0, delta: { ...delta }, logprobs: null, finish_reason }], ...silent }
  }
  const all = deltas.map(delta => chunk(delta, null))
  if (finish_reason !== null && finish_reason !== undefined) all.push(chunk({}, finish_reason))
  if (usage !== false) all.push({ ...base, choices: [], usage: usage === true ? countUsage(tokens) : usage })
  return all
}

function identity(object: string) {
  return { id: 'chatcmpl-CUpstream0000000000000000001', object, created, model: 'gpt-5.4-mini-2026-03-17' }
}

function words(text: string): string[] {
  return text.match(/\s*\S+(?:\s+$)?|\s+/gu) ?? []
}

function countUsage(tokens: number): Usage {
  return {
    prompt_tokens: 9,
    completion_tokens: tokens,
    total_tokens: 9 + tokens,
    prompt_tokens_details: { cached_tokens: 0, audio_tokens: 0 },
    completion_tokens_details: {
      reasoning_tokens: 0,
      audio_tokens: 0,
      accepted_prediction_tokens: 0,
      rejected_prediction_tokens: 0
    }
  }
}

/** True when a streamed request asked for the usage chunk. */
export function wantsUsage(request: Received): boolean {
  return request.json.stream_options?.include_usage === true
}

/** The default script: says what the last message said, streamed when asked; lists one model for GET /models. */
export function echo(request: Received): Reply {
  if (request.method === 'GET') {
    return json({
      object: 'list',
      data: [{ id: 'echo', object: 'model', created, owned_by: 'upstream' }]
    })
  }
  const { model = 'echo', messages, stream } = request.json
  const said = messages?.at(-1)?.content
  const content = typeof said === 'string' ? said : JSON.stringify(said ?? '')
  return stream ? sse(chunks(content, { model, usage: wantsUsage(request) })) : json(completion({ content, model }))
}

/** A stream of at least so many bytes of content chunks, made as fast as the client reads and never held in memory. */
export function flood(size = Infinity, options: ReplyOptions = {}): Reply {
  const event = `data: ${JSON.stringify(chunks('flood')[1])}\n\n`
  const block = Buffer.from(event.repeat(Math.ceil(65_536 / event.length)))
  return sse(() => repeat(block, size), { interval: null, ...options })
}

/** An OpenAI error body. */
export function failure(status: number, error: object = {}, options: ReplyOptions = {}): Reply {
  const type = status < 500 ? 'invalid_request_error' : 'server_error'
  const body = { message: `The upstream answers ${status}.`, type, param: null, code: null, ...error }
  return json({ error: body }, { ...options, status })
}
