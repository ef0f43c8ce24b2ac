import type { ChatCompletion, ChatCompletionChunk, ChatRequest } from '../schemas/chat.ts'
import type { Frames } from '../schemas/frames.ts'
import type { Answer, Expense, Inference, Timeouts } from '../schemas/gateway.ts'
import type { Attempt, Provider } from '../schemas/provider.ts'
import { noUsage } from '../schemas/usage.ts'

export interface AttemptOptions {
  /** Its `model` is that of the target. */
  readonly request?: Partial<ChatRequest>
  readonly signal?: AbortSignal
  readonly timeouts?: Partial<Timeouts>
  /** Which of the provider's keys to use. Default 0. */
  readonly key?: number
  /** As layers of attempts set them. */
  readonly headers?: Record<string, string>
}

const patient: Timeouts = { connect: 5_000, headers: 5_000, firstToken: 5_000, idle: 5_000, total: 60_000 }

/** The example of the W3C. */
const traceId = '0af7651916cd43dd8448eb211c80319c'

/** An attempt as dispatch would make it, for calling a provider without a gateway. */
export function attemptOf(provider: Provider, options: AttemptOptions = {}): Attempt {
  const request: ChatRequest = { model: 'm', messages: [{ role: 'user', content: 'Say hello.' }], ...options.request }
  const signal = options.signal ?? new AbortController().signal
  const timeouts = { ...patient, ...options.timeouts }
  const target = { provider, model: request.model ?? 'm', weight: 1, price: null }
  const inference: Inference = {
    operation: 'chat',
    id: 'req_conformance',
    principal: { tenant: 'public', key: null, kind: 'process', scopes: ['chat'] },
    origin: { lane: 'process' },
    signal,
    request,
    route: { alias: 'm', targets: [target], timeouts, maxOutputTokens: null, inputTokensPerImage: 1600 },
    facts: { target, attempts: 1, cache: 'off', warnings: [], cost: null, headers: [], firstToken: null, traceId },
    started: performance.now(),
    usage: noUsage,
    size: { bound: 0, estimate: 0 },
    maxOutputTokens: null,
    limitOutput() {},
    hold: null,
    expenses: [],
    outlive() {},
    onFrames() {},
    onSettled() {}
  }
  const entry: Expense = {
    inference,
    target,
    number: 1,
    started: inference.started,
    status: 'open',
    usage: noUsage,
    cost: null,
    error: null,
    duration: null,
    firstToken: null,
    reads: 0,
    meter: null,
    metered: false,
    settle() {},
    fail() {},
    onEnded() {}
  }
  const { key = 0, headers = {} } = options
  return { inference, target, number: 1, key, request, headers, caller: inference, signal, timeouts, entry }
}

/** Asks for a whole answer. */
export async function whole(provider: Provider, options: AttemptOptions = {}): Promise<WholeAnswer> {
  const answer = await provider.send(attemptOf(provider, options))
  if (answer.stream) throw new Error('A whole answer was asked for.')
  return answer
}

type WholeAnswer = Extract<Answer, { stream: false }>

/** Asks for a stream and leaves it to be read. */
export async function open(provider: Provider, options: AttemptOptions = {}): Promise<AsyncIterator<Frames>> {
  const answer = await provider.send(attemptOf(provider, { ...options, request: { stream: true, ...options.request } }))
  if (!answer.stream) throw new Error('A stream was asked for.')
  return answer.frames[Symbol.asyncIterator]()
}

/** Everything that a stream brought until it ended, and how. */
export interface Streamed {
  readonly frames: Frames[]
  readonly chunks: ChatCompletionChunk[]
  readonly error: unknown
}

export async function streamed(provider: Provider, options: AttemptOptions = {}): Promise<Streamed> {
  const frames: Frames[] = []
  const chunks: ChatCompletionChunk[] = []
  try {
    const source = await open(provider, options)
    for (let read = await source.next(); !read.done; read = await source.next()) {
      frames.push(read.value)
      chunks.push(...read.value)
    }
    return { frames, chunks, error: null }
  } catch (error) {
    return { frames, chunks, error }
  }
}

/** What is left of a stream. */
export async function rest(source: AsyncIterator<Frames>): Promise<ChatCompletionChunk[]> {
  const all: ChatCompletionChunk[] = []
  for (let read = await source.next(); !read.done; read = await source.next()) all.push(...read.value)
  return all
}

/** Asks for either kind and reads it to its end. */
export async function drain(provider: Provider, options: AttemptOptions = {}): Promise<void> {
  const answer = await provider.send(attemptOf(provider, options))
  if (answer.stream) for await (const _ of answer.frames);
}

/** What it failed with; null when it did not. */
export async function errorOf(promise: Promise<unknown>): Promise<unknown> {
  try {
    await promise
    return null
  } catch (error) {
    return error
  }
}

/** What an answer says, whole or streamed. */
export interface Outcome {
  readonly text: string
  readonly thinking: string
  readonly calls: readonly Call[]
  readonly finish: string | null
  readonly usage: ChatCompletion['usage']
}

export interface Call {
  id: string
  type: string
  name: string
  arguments: string
}

export function outcomeOf({ choices: [choice], usage = null }: ChatCompletion): Outcome {
  const calls = choice?.message.tool_calls ?? []
  return {
    text: choice?.message.content ?? '',
    thinking: textIn(choice?.message['reasoning_content']),
    calls: calls.map(({ id = '', type = '', function: called }) => {
      return { id, type, name: called?.name ?? '', arguments: called?.arguments ?? '' }
    }),
    finish: choice?.finish_reason ?? null,
    usage
  }
}

/** @throws what it said out of order: deltas of a call that nothing began, an end that was not the end */
export function outcomeOfChunks(chunks: readonly ChatCompletionChunk[]): Outcome {
  const calls: Call[] = []
  let text = ''
  let thinking = ''
  let finish: string | null = null
  for (const { delta, finish_reason } of chunks.flatMap(chunk => chunk.choices)) {
    if (finish !== null) throw new Error(`It says more after its end: ${JSON.stringify(delta)}`)
    text += delta.content ?? ''
    thinking += textIn(delta['reasoning_content'])
    for (const { index, id, type, function: called } of delta.tool_calls ?? []) {
      const call = calls[index] ?? { id: id ?? '', type: type ?? '', name: called?.name ?? '', arguments: '' }
      if (index > calls.length) throw new Error(`The call ${index} comes before the call ${calls.length}.`)
      call.arguments += called?.arguments ?? ''
      calls[index] = call
    }
    finish = finish_reason ?? null
  }
  return { text, thinking, calls, finish, usage: chunks.findLast(chunk => chunk.usage)?.usage ?? null }
}

function textIn(value: unknown): string {
  return typeof value === 'string' ? value : ''
}
