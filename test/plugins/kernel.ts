import { getEventListeners } from 'node:events'
import Fastify, { type FastifyInstance } from 'fastify'
import type { Test } from 'tap'
import gateway from '../../plugins/gateway/index.ts'
import routing, { type RoutingOptions } from '../../plugins/routing/index.ts'
import type { ChatCompletion, ChatCompletionChunk, ChatRequest, CompletionUsage } from '../../schemas/chat.ts'
import { chunkFrames, type Frames } from '../../schemas/frames.ts'
import type { Completed, Outcome } from '../../schemas/gateway.ts'
import type { Attempt, Provider, Send } from '../../schemas/provider.ts'

// The kernel and routing by themselves: no network, no routes, providers that do what a test says.

export const ask: ChatRequest = { model: 'test', messages: [{ role: 'user', content: 'Hello' }] }
export const askStream: ChatRequest = { ...ask, stream: true }

export interface HostOptions {
  providers?: Provider[]
  routing?: RoutingOptions
  shutdownGrace?: number
  /** Gets every line of the log. */
  log?: (line: string) => void
}

/** A host with the alias `test`, answered by the provider `up`; not ready yet, so that a test can add layers. */
export async function host(t: Test, options: HostOptions = {}): Promise<FastifyInstance> {
  const { log } = options
  const app = Fastify(log ? { logger: { level: 'warn', stream: { write: log } } } : {})
  t.teardown(() => app.close())
  await app.register(gateway, { shutdownGrace: options.shutdownGrace })
  await app.register(
    routing,
    options.routing ?? { models: { test: { targets: [{ provider: 'up', model: 'm' }], retries: 0 } } }
  )
  for (const provider of options.providers ?? [scripted('up')]) app.gateway.providers.register(provider)
  return app
}

/** The same, ready, with what each call came to. */
export async function watched(t: Test, options: HostOptions = {}) {
  const app = await host(t, options)
  const outcomes: Outcome[] = []
  app.gateway.intercept('observe', (inference, next) => {
    inference.onSettled(outcome => outcomes.push(outcome))
    return next(inference)
  })
  await app.ready()
  return { app, gateway: app.gateway, outcomes }
}

export type Scripted = Provider & { readonly attempts: Attempt[] }

/** A provider that answers its first attempt with the first script, and so on; the last one stays. */
export function scripted(name: string, ...scripts: Send[]): Scripted {
  const attempts: Attempt[] = []
  return {
    name,
    capabilities: { dialects: [] },
    attempts,
    send(attempt) {
      const script = scripts[Math.min(attempts.length, scripts.length - 1)] ?? says(`${name} says`)
      attempts.push(attempt)
      return script(attempt)
    }
  }
}

/** Answers with a text, whole or as a stream of its words, as asked. */
export function says(text: string, reported?: CompletionUsage): Send {
  return async ({ request }) => {
    if (request.stream !== true) return { stream: false, raw: null, body: completion(text, reported) }
    const words = text.split(/(?= )/).map(word => chunkFrames([chunk(word)]))
    const last = reported ? [finish(), usageChunk(reported)] : [finish()]
    return { stream: true, frames: from([chunkFrames([role()]), ...words, chunkFrames(last)]) }
  }
}

export function fails(error: unknown): Send {
  return async () => {
    throw error
  }
}

/** Never answers, and does not care for signals. */
export const silent: Send = () => new Promise(() => {})

/** Never answers, until it is told to stop. */
export const patient: Send = ({ signal }) =>
  new Promise((_, reject) => signal.addEventListener('abort', () => reject(signal.reason)))

/** A stream of these frames. */
export function streams(...frames: Frames[]): Send {
  return async () => ({ stream: true, frames: from(frames) })
}

async function* from(frames: readonly Frames[]): AsyncGenerator<Frames> {
  yield* frames
}

/** A stream that a test feeds by hand. */
export interface Feed {
  readonly send: Send
  push(...frames: Frames[]): void
  end(): void
  fail(error: unknown): void
  /** How often the reader asked, and how often it broke off. */
  readonly reads: number
  readonly closed: number
}

export function feed(...first: Frames[]): Feed {
  type Step = { frames: Frames } | { error: unknown } | 'end'
  const steps: Step[] = first.map(frames => ({ frames }))
  let wake: (() => void) | null = null
  let reads = 0
  let closed = 0

  function add(step: Step): void {
    steps.push(step)
    wake?.()
    wake = null
  }

  const iterator: AsyncIterator<Frames> = {
    async next() {
      reads++
      while (steps.length === 0) await new Promise<void>(resolve => (wake = resolve))
      const step = steps.shift()!
      if (step === 'end') return { done: true, value: undefined }
      if ('error' in step) throw step.error
      return { done: false, value: step.frames }
    },
    async return() {
      closed++
      return { done: true, value: undefined }
    }
  }

  return {
    async send({ signal }) {
      signal.addEventListener('abort', () => add({ error: signal.reason }))
      return { stream: true, frames: { [Symbol.asyncIterator]: () => iterator } }
    },
    push: (...frames) => frames.forEach(frames => void add({ frames })),
    end: () => add('end'),
    fail: error => add({ error }),
    get reads() {
      return reads
    },
    get closed() {
      return closed
    }
  }
}

export function completion(content: string, usage?: CompletionUsage): ChatCompletion {
  return {
    id: 'c1',
    object: 'chat.completion',
    created: 1,
    model: 'm',
    choices: [{ index: 0, finish_reason: 'stop', message: { role: 'assistant', content } }],
    usage
  }
}

const head = { id: 'c1', object: 'chat.completion.chunk' as const, created: 1, model: 'm' }

export function role(): ChatCompletionChunk {
  return { ...head, choices: [{ index: 0, delta: { role: 'assistant', content: '' }, finish_reason: null }] }
}

export function chunk(content: string): ChatCompletionChunk {
  return { ...head, choices: [{ index: 0, delta: { content }, finish_reason: null }] }
}

export function finish(reason = 'stop'): ChatCompletionChunk {
  return { ...head, choices: [{ index: 0, delta: {}, finish_reason: reason }] }
}

export function usageChunk(usage: CompletionUsage): ChatCompletionChunk {
  return { ...head, choices: [], usage }
}

export function tokens(prompt: number, completion: number): CompletionUsage {
  return { prompt_tokens: prompt, completion_tokens: completion, total_tokens: prompt + completion }
}

/** The text of an answer, of either kind, read to its end. */
export async function textOf(answer: Completed): Promise<string> {
  if (!answer.stream) return answer.body.choices[0]?.message.content ?? ''
  let text = ''
  for await (const frames of answer.frames) {
    for (const { choices } of frames) text += choices[0]?.delta.content ?? ''
  }
  return text
}

/** The frames of a stream, for a test that reads step by step. */
export function reader(answer: Completed): AsyncIterator<Frames, undefined> & { return(): Promise<unknown> } {
  if (!answer.stream) throw new Error('This answer is no stream.')
  return answer.frames[Symbol.asyncIterator]() as ReturnType<typeof reader>
}

/** What a promise was rejected with. */
export async function rejection(promise: Promise<unknown>): Promise<Error & Record<string, unknown>> {
  return promise.then(
    () => Promise.reject(new Error('It was not rejected.')),
    error => error
  )
}

/** Says that a call has left nothing behind. */
export function nothingLeft(t: Test, app: FastifyInstance, signal?: AbortSignal): void {
  t.equal(app.gateway.running, 0, 'no call is running')
  if (signal) t.equal(getEventListeners(signal, 'abort').length, 0, 'nobody listens to the caller')
}
