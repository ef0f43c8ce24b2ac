import type { FastifyInstance } from 'fastify'
import type {} from 'fastify-model-gateway/plugins/routing'
import { createEndpoint, type EndpointOptions } from 'fastify-model-gateway/providers/endpoint'
import { vendorFault } from 'fastify-model-gateway/providers/faults'
import { dataReader } from 'fastify-model-gateway/providers/sse'
import { type Step, streamedAnswer } from 'fastify-model-gateway/providers/stream'
import type { ChatCompletion, ChatCompletionChunk, ChatRequest, Message } from 'fastify-model-gateway/schemas/chat'
import { detail, InvalidRequest } from 'fastify-model-gateway/schemas/errors'
import { chunkFrames } from 'fastify-model-gateway/schemas/frames'
import type { Attempt } from 'fastify-model-gateway/schemas/provider'

/** Acme's wire: an answer is a list of these, a stream has one in each event. What else Acme sends is passed over. */
type Entry = { text?: string; call?: string; tool?: string; input?: string; end?: string; in?: number; out?: number }
type Head = { id: string; created: number; model: string }

export default async function acme(app: FastifyInstance, options: EndpointOptions & { baseUrl: string }) {
  const endpoint = createEndpoint(options, options.baseUrl, key => ['acme-key', key])

  async function send(attempt: Attempt) {
    const { request, inference } = attempt
    const reply = await endpoint.post(attempt, '/talk', asked(request))
    const fault = (status: number, message?: string) => vendorFault(status, { message }, reply.headers, endpoint.redact)
    const head = { id: inference.id, created: Math.floor(Date.now() / 1_000), model: request.model ?? '' }
    if (reply.reads !== null) return streamedAnswer(reply, reply.reads, reader(head, endpoint.maxEvent, fault))
    const { said, problem } = parse(reply.body?.toString())
    if (reply.status !== 200 || !Array.isArray(said) || request.stream === true) throw fault(reply.status, problem)
    return { stream: false as const, body: answer(head, said), raw: null }
  }

  app.gateway.providers.register({ name: options.name, keys: endpoint.keys, capabilities: { dialects: [] }, send })
  app.addHook('onClose', () => endpoint.close())
}

function asked({ model, messages, tools, tool_choice, stream, max_completion_tokens, max_tokens }: ChatRequest) {
  const limit = max_completion_tokens ?? max_tokens ?? undefined
  const log = messages.flatMap(entriesOf)
  const known = tools?.map(tool => tool.function)
  return { engine: model, limit, stream: stream === true, tools: known, choice: tool_choice, log }
}

function entriesOf({ role, content, refusal, tool_calls, tool_call_id: call }: Message) {
  const from = role === 'developer' ? 'system' : role
  const parts = typeof content === 'string' ? [{ type: 'text', text: content }] : (content ?? [])
  const said = [...parts, ...(refusal ? [{ type: 'refusal', refusal }] : [])].map(part => {
    if (part.type === 'text' || part.type === 'refusal') return { from, call, text: part.text ?? part.refusal }
    if (part.type === 'image_url' || part.type === 'file') return { from, [part.type]: part[part.type] }
    throw detail(new InvalidRequest(`Acme takes no ${part.type}.`), { param: 'messages' })
  })
  const calls = tool_calls?.map(({ id, function: f }) => ({ from, call: id, tool: f?.name, input: f?.arguments })) ?? []
  return [...said, ...calls]
}

function answer(head: Head, said: Entry[]): ChatCompletion {
  const calls = said.filter(entry => entry.tool).map(callOf)
  const content = said.map(entry => entry.text ?? '').join('')
  const message = { role: 'assistant' as const, content, ...(calls.length > 0 && { tool_calls: calls }) }
  const { finish_reason, usage } = endOf(said.at(-1) ?? {})
  return { ...head, object: 'chat.completion', choices: [{ index: 0, message, finish_reason }], usage }
}

function reader(head: Head, maxEvent: number, fault: (status: number, message?: string) => Error) {
  const events = dataReader(maxEvent)
  let index = -1

  function chunkOf(entry: Entry): ChatCompletionChunk {
    const said = entry.tool ? { tool_calls: [{ index: ++index, ...callOf(entry) }] } : { content: entry.text ?? '' }
    const { finish_reason, usage } = entry.end ? endOf(entry) : { finish_reason: null, usage: null }
    const choices = [{ index: 0, delta: { role: 'assistant' as const, ...said }, finish_reason }]
    return { ...head, object: 'chat.completion.chunk', choices, usage }
  }

  function step(datas: string[]): Step {
    const entries = datas.map(parse)
    const failed = entries.findIndex(entry => entry.problem)
    const chunks = (failed === -1 ? entries : entries.slice(0, failed)).map(chunkOf)
    const frames = chunks.length > 0 ? chunkFrames(chunks) : null
    if (failed !== -1) return { frames, done: true, fault: fault(0, entries[failed]?.problem) }
    return { frames, done: entries.some(entry => entry.end), fault: null }
  }

  return { read: (bytes: Buffer) => step(events.read(bytes)), end: () => step(events.end()) }
}

function callOf({ call, tool = '', input }: Entry) {
  return { id: call, type: 'function', function: { name: tool, arguments: input || '{}' } }
}

function endOf({ end, in: input = 0, out = 0 }: Entry) {
  const finish_reason = end === 'full' ? 'length' : end === 'tool' ? 'tool_calls' : 'stop'
  return { finish_reason, usage: { prompt_tokens: input, completion_tokens: out, total_tokens: input + out } } as const
}

function parse(text = ''): Entry & { said?: Entry[]; problem?: string } {
  try {
    return { ...JSON.parse(text) }
  } catch {
    return { problem: 'what it says is not JSON.' }
  }
}
