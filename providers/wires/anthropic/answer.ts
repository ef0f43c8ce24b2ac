import type { ChatCompletion, CompletionUsage, FinishReason, ToolCall } from '../../../schemas/chat.ts'
import { type GatewayError, UpstreamError } from '../../../schemas/errors.ts'
import type { Answer } from '../../../schemas/gateway.ts'
import { jsonOf } from '../../../schemas/json.ts'
import { isRecord } from '../../../schemas/reader.ts'
import { notJson, type Redact, vendorFault } from '../../faults.ts'
import { isEncoded } from '../../stream.ts'
import type { Reply } from '../../upstream.ts'
import { isThought, type Memory, type Thought } from './messages.ts'

/** What reading an answer takes to know of its request. */
export interface Expected {
  /** The tool whose call is the answer; null where none was made up. */
  readonly jsonTool: string | null
  readonly keep: Memory['keep']
}

/** A whole answer. @throws what the vendor says of its failure, or UpstreamError for what is no message */
export function wholeMessage(reply: Reply, redact: Redact, expected: Expected): Answer {
  const said = jsonOf(reply.body)
  if (reply.status !== 200) throw faultOf(reply.status, said, reply.headers, redact)
  if (isEncoded(reply)) throw new UpstreamError('it compressed an answer that nobody asked to.')
  if (!isRecord(said)) throw notJson(reply.headers)
  if (said['type'] === 'error') throw faultOf(0, said, reply.headers, redact)
  if (!Array.isArray(said['content'])) throw new UpstreamError('its answer is not a message.')
  return { stream: false, raw: null, body: toCompletion(said, Math.floor(Date.now() / 1_000), expected) }
}

/**
 * A message of Anthropic's as a completion of OpenAI's; blocks that we do not know are passed over.
 * @param created unix seconds
 */
export function toCompletion(message: Record<string, unknown>, created: number, expected: Expected): ChatCompletion {
  const thoughts: Thought[] = []
  const calls: ToolCall[] = []
  let text: string | null = null
  let reasoning = ''
  let json: string | null = null
  for (const block of Array.isArray(message['content']) ? message['content'] : []) {
    if (!isRecord(block)) continue
    if (block['type'] === 'text' && typeof block['text'] === 'string') text = (text ?? '') + block['text']
    else if (isThought(block)) thoughts.push(block)
    if (block['type'] === 'thinking' && typeof block['thinking'] === 'string') reasoning += block['thinking']
    if (block['type'] !== 'tool_use') continue
    const { id, name, input } = block
    const args = JSON.stringify(input ?? {})
    if (expected.jsonTool !== null && name === expected.jsonTool) json ??= args
    else calls.push({ id: String(id), type: 'function', function: { name: String(name), arguments: args } })
  }
  if (calls.length > 0 && thoughts.length > 0)
    expected.keep(
      calls.flatMap(({ id }) => id ?? []),
      thoughts
    )
  const { stop_reason: reason, stop_details: details, usage } = message
  return {
    id: String(message['id']),
    object: 'chat.completion',
    created,
    model: String(message['model']),
    choices: [
      {
        index: 0,
        message: {
          role: 'assistant',
          content: json ?? text,
          refusal: refusalOf(reason, details),
          ...(reasoning === '' ? {} : { reasoning_content: reasoning }),
          ...(thoughts.length === 0 ? {} : { thinking_blocks: thoughts }),
          ...(calls.length === 0 ? {} : { tool_calls: calls })
        },
        logprobs: null,
        finish_reason: toFinishReason(reason, calls.length > 0)
      }
    ],
    usage: toUsage(usage),
    ...tierOf(usage)
  }
}

/** @param called false where the only call was that of a made-up tool */
export function toFinishReason(reason: unknown, called: boolean): FinishReason {
  if (reason === 'max_tokens' || reason === 'model_context_window_exceeded') return 'length'
  if (reason === 'refusal') return 'content_filter'
  return reason === 'tool_use' && called ? 'tool_calls' : 'stop'
}

/** Why the model refused, where it says so. */
export function refusalOf(reason: unknown, details: unknown): string | null {
  const said = reason === 'refusal' && isRecord(details) ? details['explanation'] : null
  return typeof said === 'string' && said !== '' ? said : null
}

/** The tier that served a message, under OpenAI's name for it. */
export function tierOf(usage: unknown): { service_tier?: string } {
  const tier = isRecord(usage) ? usage['service_tier'] : null
  return typeof tier === 'string' ? { service_tier: tier === 'standard' ? 'default' : tier } : {}
}

/**
 * The vendor's counts in OpenAI's form. Its `input_tokens` are those beside the cache, its `output_tokens` hold the
 * thoughts, and of a compacted conversation the totals lack what the compaction took (`iterations`). Null: none are there.
 */
export function toUsage(usage: unknown): CompletionUsage | null {
  if (!isRecord(usage) || (usage['input_tokens'] ?? usage['output_tokens'] ?? null) === null) return null
  const { cache_creation: split, output_tokens_details: details } = usage
  const runs = Array.isArray(usage['iterations']) ? usage['iterations'].filter(isRecord) : []
  const own = runs.filter(({ type }) => type === 'message' || type === 'compaction')
  const counted = own.length > 0 && !runs.some(({ type }) => type === 'fallback_message') ? own : [usage]
  const read = count(usage['cache_read_input_tokens'])
  const written = count(usage['cache_creation_input_tokens'])
  const input = counted.reduce((sum, run) => sum + count(run['input_tokens']), 0) + read + written
  const output = counted.reduce((sum, run) => sum + count(run['output_tokens']), 0)
  return {
    prompt_tokens: input,
    completion_tokens: output,
    total_tokens: input + output,
    prompt_tokens_details: {
      cached_tokens: read,
      cache_write_tokens: written,
      ...(isRecord(split) ? { cache_creation_token_details: split } : {})
    },
    ...(isRecord(details) ? { completion_tokens_details: { reasoning_tokens: count(details['thinking_tokens']) } } : {})
  }
}

function count(tokens: unknown): number {
  return typeof tokens === 'number' ? tokens : 0
}

const statuses = new Map<unknown, number>(
  Object.entries({
    invalid_request_error: 400,
    authentication_error: 401,
    billing_error: 402,
    permission_error: 403,
    not_found_error: 404,
    conflict_error: 409,
    request_too_large: 413,
    rate_limit_error: 429,
    api_error: 500,
    timeout_error: 504,
    overloaded_error: 529
  })
)
/** Our own account is at its end, whatever the status says: another key may help, waiting does not. */
const spent = /credit balance is too low|reached your specified (?:\w+ )*usage limits/i
const spentCodes = new Set(['enforced_spend_limit_reached', 'contract_spend_limit_reached'])
const tooLong = /^prompt is too long|exceeds? (?:the )?(?:model's )?context (?:limit|window)/i

/**
 * What the vendor says of its failure: Anthropic's body, or Google's where Claude runs on Vertex.
 * @param status of the answer; 0 for an error inside of one, whose type says it
 */
export function faultOf(status: number, body: unknown, headers: Reply['headers'], redact: Redact): GatewayError {
  const outer = Array.isArray(body) ? body[0] : body
  const error = isRecord(outer) && isRecord(outer['error']) ? outer['error'] : {}
  const { type, message, details } = error
  const code = isRecord(details) ? details['error_code'] : null
  const found = status || (statuses.get(type) ?? 0)
  const words = typeof message === 'string' ? message : ''
  if (spentCodes.has(String(code)) || (found === 400 && spent.test(words)))
    return vendorFault(402, error, headers, redact)
  const wire = found === 400 && tooLong.test(words) ? 'context_length_exceeded' : code
  return vendorFault(found, { message, type, code: wire }, headers, redact)
}
