import { setTimeout as wait } from 'node:timers/promises'
import type { FastifyInstance } from 'fastify'
import fp from 'fastify-plugin'
import type { ChatCompletion, ChatCompletionChunk, ChatRequest, CompletionUsage } from '../schemas/chat.ts'
import { chunkFrames, type Frames } from '../schemas/frames.ts'
import type { Attempt, Provider } from '../schemas/provider.ts'

export interface EchoOptions {
  /** Default `echo`. */
  name?: string
  /** How many words an answer has; the last user message is repeated until it is that long. Default 16. */
  words?: number
  /** Milliseconds before the answer or its first token. Default 0. */
  delay?: number
  /** Milliseconds between chunks. Default 0. */
  interval?: number
  /** Words in one chunk. Default 1. */
  chunkWords?: number
}

type Shape = Required<Omit<EchoOptions, 'name'>>

/** Answers with the caller's own words: no key, no network, no cost. The same request always gets the same answer. */
async function echo(app: FastifyInstance, options: EchoOptions): Promise<void> {
  const { name = 'echo', words = 16, delay = 0, interval = 0, chunkWords = 1 } = options
  app.gateway.providers.register(createEcho(name, { words, delay, interval, chunkWords }))
}

function createEcho(name: string, shape: Shape): Provider {
  return {
    name,
    vendor: 'echo',
    capabilities: { dialects: [] },
    price: { input: 0, output: 0 },
    models: async () => [{ id: 'echo', created: 0 }],
    async send({ request, signal, inference }: Attempt) {
      signal.throwIfAborted()
      const said = speech(request, shape.words)
      const head = { id: `chatcmpl-${inference.id}`, created: 0, model: request.model ?? 'echo' }
      if (request.stream === true) return { stream: true, frames: stream(head, request, said, shape, signal) }
      if (shape.delay > 0) await pause(shape.delay, signal)
      const body: ChatCompletion = {
        ...head,
        object: 'chat.completion',
        choices: [
          {
            index: 0,
            message: { role: 'assistant', content: said.words.join(' '), refusal: null },
            logprobs: null,
            finish_reason: said.cut ? 'length' : 'stop'
          }
        ],
        usage: usageFor(request, said.words)
      }
      return { stream: false, body, raw: null }
    }
  }
}

/** Ends with the signal's own reason, as every provider does. */
async function pause(delay: number, signal: AbortSignal): Promise<void> {
  try {
    await wait(delay, undefined, { signal })
  } catch (error) {
    signal.throwIfAborted()
    throw error
  }
}

type Head = Pick<ChatCompletionChunk, 'id' | 'created' | 'model'>
type Speech = { words: string[]; cut: boolean }

async function* stream(
  head: Head,
  request: ChatRequest,
  said: Speech,
  shape: Shape,
  signal: AbortSignal
): AsyncGenerator<Frames> {
  if (shape.delay > 0) await pause(shape.delay, signal)
  const chunk = (delta: ChatCompletionChunk['choices'][number]['delta'], reason: string | null = null) => ({
    ...head,
    object: 'chat.completion.chunk' as const,
    choices: [{ index: 0, delta, logprobs: null, finish_reason: reason }]
  })
  yield chunkFrames([chunk({ role: 'assistant', content: '', refusal: null })])
  for (let from = 0; from < said.words.length; from += shape.chunkWords) {
    if (from > 0 && shape.interval > 0) await pause(shape.interval, signal)
    signal.throwIfAborted()
    const text = said.words.slice(from, from + shape.chunkWords).join(' ')
    yield chunkFrames([chunk({ content: from === 0 ? text : ` ${text}` })])
  }
  const usage = { ...head, object: 'chat.completion.chunk' as const, choices: [], usage: usageFor(request, said.words) }
  yield chunkFrames([chunk({}, said.cut ? 'length' : 'stop'), usage])
}

/** The last user message, repeated up to the configured length and cut at the caller's output cap. */
function speech(request: ChatRequest, length: number): Speech {
  const last = request.messages.findLast(message => message.role === 'user') ?? request.messages.at(-1)
  const source = textOf(last?.content).split(/\s+/).filter(Boolean)
  if (source.length === 0) source.push('echo')
  const cap = request.max_completion_tokens ?? request.max_tokens ?? length
  const words = Array.from({ length: Math.min(length, cap) }, (_, index) => source[index % source.length]!)
  return { words, cut: cap < length }
}

function textOf(content: ChatRequest['messages'][number]['content']): string {
  if (typeof content === 'string') return content
  return (content ?? []).map(part => part.text ?? '').join(' ')
}

/** One word is one token, here. */
function usageFor(request: ChatRequest, words: string[]): CompletionUsage {
  const prompt = request.messages.reduce(
    (sum, message) => sum + textOf(message.content).split(/\s+/).filter(Boolean).length,
    0
  )
  return { prompt_tokens: prompt, completion_tokens: words.length, total_tokens: prompt + words.length }
}

export default fp(echo, { fastify: '5.x', name: 'echo', dependencies: ['routing'] })
