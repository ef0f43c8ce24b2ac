import { getEventListeners } from 'node:events'
import type { Test } from 'tap'
import type { ChatCompletionChunk, ChatRequest } from '../../schemas/chat.ts'
import { type GatewayError, isGatewayError } from '../../schemas/errors.ts'
import type { Frames } from '../../schemas/frames.ts'
import type { Answer, Expense, Inference, Timeouts } from '../../schemas/gateway.ts'
import type { Attempt, Provider } from '../../schemas/provider.ts'
import { noUsage } from '../../schemas/usage.ts'
import { gate, type Reply, type ReplyOptions, reset, silence, turn, type Upstream } from '../upstream.ts'
import type { Heard } from './conversations.ts'

/** What a model is to say. The suite decides it, a vendor's script puts it on the wire. */
export interface Speech {
  /** In the pieces that it is streamed in. */
  readonly text: readonly string[]
  readonly finish: 'stop' | 'length'
  readonly inputTokens: number
  readonly outputTokens: number
}

/** A scripted upstream and how its vendor says things. The options of a reply are the kit's: cuts, delays, headers. */
export interface Vendor {
  readonly upstream: Upstream
  whole(speech: Speech, options?: ReplyOptions): Reply
  /** Usage included, if the vendor has it; the end of the stream as the vendor marks it. */
  stream(speech: Speech, options?: ReplyOptions): Reply
  refusal(status: number, message: string): Reply
  /** A stream that says the speech and then, instead of its end, that it failed. Absent where the wire has no such thing. */
  failing?(speech: Speech, message: string): Reply
  /** Reads a request of its wire back, for test/conformance/conversations.ts. */
  understood?(json: unknown): Heard
}

export interface Started {
  readonly provider: Provider
  /** Absent for a provider without an upstream: only what applies to it is tested. */
  readonly vendor?: Vendor
}

export interface Subject {
  readonly name: string
  /** A provider of its own for each test, closed with it. */
  start(t: Test): Promise<Started>
}

const speech: Speech = {
  text: ['Hello', ' Zürich,', ' 東京', ' 🙂', ' "quoted"\n'],
  finish: 'stop',
  inputTokens: 9,
  outputTokens: 5
}
const patient: Timeouts = { connect: 5_000, headers: 5_000, firstToken: 5_000, idle: 5_000, total: 60_000 }
const reasons = new Set(['stop', 'length', 'tool_calls', 'content_filter', 'function_call'])

export interface AttemptOptions {
  readonly request?: Partial<ChatRequest>
  readonly signal?: AbortSignal
  readonly timeouts?: Partial<Timeouts>
}

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
    facts: { target, attempts: 1, cache: 'off', warnings: [], cost: null, headers: [], firstToken: null },
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
    meter: null,
    metered: false,
    settle() {},
    fail() {}
  }
  return { inference, target, number: 1, key: 0, request, headers: {}, caller: inference, signal, timeouts, entry }
}

/** What every provider has to do, whatever it speaks to. Runs as one test with a part for each demand. */
export function providerConformance(t: Test, { name, start }: Subject): Promise<unknown> {
  return t.test(`${name} conforms`, async t => {
    /** A part that needs an upstream; skipped where there is none. */
    const withVendor = (title: string, test: (t: Test, provider: Provider, vendor: Vendor) => Promise<void>) =>
      t.test(title, async t => {
        const { provider, vendor } = await start(t)
        if (vendor === undefined) t.comment('it has no upstream')
        else await test(t, provider, vendor)
      })
    const withAny = (title: string, test: (t: Test, provider: Provider) => Promise<void>) =>
      t.test(title, async t => {
        const { provider, vendor } = await start(t)
        vendor?.upstream.script(({ json }) => (json.stream ? vendor.stream(speech) : vendor.whole(speech)))
        await test(t, provider)
      })

    withAny('it has a name and says what it can do', async (t, provider) => {
      t.match(provider.name, /^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/)
      t.ok(Array.isArray(provider.capabilities.dialects))
    })

    withAny('a whole answer has the form of a completion', async (t, provider) => {
      const { body, raw } = await whole(provider)
      t.equal(body.object, 'chat.completion')
      t.type(body.id, 'string')
      t.type(body.model, 'string')
      t.ok(Number.isInteger(body.created))
      const [choice] = body.choices
      t.equal(choice?.index, 0)
      t.equal(choice?.message.role, 'assistant')
      t.type(choice?.message.content, 'string')
      t.ok(reasons.has(choice?.finish_reason ?? ''))
      t.equal(body.usage!.total_tokens, body.usage!.prompt_tokens + body.usage!.completion_tokens)
      if (raw !== null) t.same(JSON.parse(Buffer.from(raw).toString()), body, 'its bytes say the same')
    })

    withAny('a stream has the form of chunks and says what a whole answer says', async (t, provider) => {
      const { chunks, frames, error } = await streamed(provider)
      t.equal(error, null)
      t.ok(chunks.every(chunk => chunk.object === 'chat.completion.chunk' && chunk.id === chunks[0]?.id))
      t.equal(textOf(chunks), (await whole(provider)).body.choices[0]?.message.content)
      const ends = chunks.flatMap(chunk => chunk.choices.flatMap(choice => choice.finish_reason ?? []))
      t.equal(ends.length, 1)
      t.ok(reasons.has(ends[0]!))
      t.ok(frames.some(read => read.hasToken))
      t.ok(frames.every(read => read.dialect !== ''))
    })

    withAny('frames know whether they finish and what they report, and can be read again', async (t, provider) => {
      const { frames } = await streamed(provider)
      for (const read of frames) {
        const chunks = [...read]
        t.same([...read], chunks)
        t.equal(
          read.finished,
          chunks.some(chunk => chunk.choices.some(choice => choice.finish_reason))
        )
        t.same(read.usage, chunks.findLast(chunk => chunk.usage)?.usage ?? null)
        const kept = chunks.filter(chunk => chunk.choices.length > 0 || !chunk.usage)
        t.same([...(read.withoutUsage() ?? [])], kept)
      }
    })

    withAny('the request it is given stays as it is', async (t, provider) => {
      const request: ChatRequest = {
        model: 'm',
        messages: [{ role: 'user', content: 'Hi' }],
        max_tokens: 3,
        max_completion_tokens: 3
      }
      for (const stream of [true, false]) {
        const frozen = deepFreeze({ ...request, stream, stream_options: stream ? { include_usage: false } : undefined })
        const answer = await provider.send(attemptOf(provider, { request: frozen }))
        if (answer.stream) for await (const _ of answer.frames);
      }
      t.pass('nobody wrote to it')
    })

    withAny('calls at the same time do not disturb each other', async (t, provider) => {
      const expected = (await whole(provider)).body.choices[0]?.message.content
      const calls = Array.from({ length: 20 }, async (_, call) => {
        if (call % 2 === 0) return (await whole(provider)).body.choices[0]?.message.content
        return textOf((await streamed(provider)).chunks)
      })
      for (const text of await Promise.all(calls)) t.equal(text, expected)
    })

    withAny('an attempt that was aborted before it began fails with the reason', async (t, provider) => {
      const reason = new Error('gone')
      for (const stream of [true, false]) {
        const attempt = attemptOf(provider, { request: { stream }, signal: AbortSignal.abort(reason) })
        t.equal(await errorOf(drain(provider.send(attempt))), reason)
      }
    })

    withAny('a stream whose reader leaves is over', async (t, provider) => {
      const frames = await open(provider)
      await frames.next()
      await frames.return?.()
      t.same(await frames.next(), { done: true, value: undefined })
    })

    withAny('no listener stays on the signal', async (t, provider) => {
      const { signal } = new AbortController()
      await whole(provider, { signal })
      await streamed(provider, { signal })
      const frames = await open(provider, { signal })
      await frames.next()
      await frames.return?.()
      t.equal(getEventListeners(signal, 'abort').length, 0)
    })

    withAny('a stream that is aborted half way fails with the reason', async (t, provider) => {
      const controller = new AbortController()
      const reason = new Error('gone')
      const frames = await open(provider, { signal: controller.signal })
      const first = await frames.next()
      controller.abort(reason)
      t.notOk(first.done)
      // What had arrived before the abort may still be delivered, its end included.
      t.ok([reason, null].includes((await errorOf(rest(frames))) as Error | null))
    })

    withVendor('a whole answer says what the model said', async (t, provider, vendor) => {
      vendor.upstream.script(vendor.whole(speech), vendor.whole({ ...speech, finish: 'length' }))
      const { body } = await whole(provider)
      t.equal(body.choices[0]?.message.content, speech.text.join(''))
      t.equal(body.choices[0]?.finish_reason, 'stop')
      t.match(body.usage, { prompt_tokens: 9, completion_tokens: 5, total_tokens: 14 })
      t.equal((await whole(provider)).body.choices[0]?.finish_reason, 'length')
    })

    withVendor('a stream says what the model said, in its pieces', async (t, provider, vendor) => {
      vendor.upstream.script(vendor.stream(speech))
      const { chunks } = await streamed(provider)
      t.same(
        chunks.flatMap(chunk => chunk.choices[0]?.delta.content || []),
        speech.text
      )
      t.match(chunks.findLast(chunk => chunk.usage)?.usage, {
        prompt_tokens: 9,
        completion_tokens: 5,
        total_tokens: 14
      })
    })

    withVendor('a stream is handed on while the model still speaks', async (t, provider, vendor) => {
      const more = gate()
      vendor.upstream.script(vendor.stream(speech, { interval: index => (index > 2 ? more.promise : turn()) }))
      const frames = await open(provider)
      let heard = ''
      while (heard === '') heard = textOf([...(await frames.next()).value!])
      more.open()
      t.equal(heard + (await rest(frames)).map(textOf).join(''), speech.text.join(''))
    })

    withVendor('a stream arrives whole however its bytes are split', async (t, provider, vendor) => {
      const cuts = ['none', 'byte', ...Array.from({ length: 20 }, (_, index) => ({ seed: index + 1 }))] as const
      for (const cut of cuts) {
        vendor.upstream.script(vendor.stream(speech, { cut, interval: null }))
        const { chunks, error } = await streamed(provider)
        t.equal(error, null)
        t.equal(textOf(chunks), speech.text.join(''), JSON.stringify(cut))
      }
    })

    for (const [status, expected] of Object.entries({
      400: 400,
      401: 502,
      403: 502,
      404: 502,
      422: 422,
      429: 429,
      500: 502,
      503: 503,
      529: 503
    })) {
      withVendor(`a refusal with ${status} is a fault with ${expected}`, async (t, provider, vendor) => {
        const words = 'The words of the vendor.'
        for (const stream of [true, false]) {
          vendor.upstream.script(vendor.refusal(Number(status), words))
          const error = (await errorOf(
            drain(provider.send(attemptOf(provider, { request: { stream } })))
          )) as GatewayError
          t.ok(isGatewayError(error))
          t.equal(error.statusCode, expected)
          if (status === '400' || status === '422') t.equal(error.message, words)
          if (status === '401') t.notMatch(error.message, words)
        }
      })
    }

    withVendor('a vendor that breaks off before it answers is a fault', async (t, provider, vendor) => {
      for (const stream of [true, false]) {
        vendor.upstream.script(reset())
        const error = await errorOf(drain(provider.send(attemptOf(provider, { request: { stream } }))))
        t.ok(isGatewayError(error) && error.statusCode >= 500)
      }
    })

    withVendor('a stream that breaks off is a fault after what it said', async (t, provider, vendor) => {
      const length = await lengthOf(vendor.stream(speech))
      vendor.upstream.script(reset(vendor.stream(speech), Math.floor(length / 2)))
      const { error, chunks, frames } = await streamed(provider)
      t.ok(isGatewayError(error) && error.statusCode >= 500)
      t.ok(speech.text.join('').startsWith(textOf(chunks)))
      t.notOk(frames.some(read => read.finished))
    })

    withVendor('a stream cut before its end never counts as finished', async (t, provider, vendor) => {
      const length = await lengthOf(vendor.stream(speech))
      for (let at = 0; at < length / 2; at += Math.ceil(length / 20)) {
        const cut: Reply = { ...vendor.stream(speech), limit: at, wire: 'close' }
        vendor.upstream.script(cut)
        const { error, frames } = await streamed(provider)
        t.ok(error === null || isGatewayError(error))
        t.notOk(
          frames.some(read => read.finished),
          `cut at ${at}`
        )
      }
    })

    withVendor('a stream that says that it failed is a fault after what it said', async (t, provider, vendor) => {
      if (vendor.failing === undefined) return t.comment('its wire has no such thing')
      vendor.upstream.script(vendor.failing(speech, 'It broke.'))
      const { error, chunks } = await streamed(provider)
      t.ok(isGatewayError(error) && error.statusCode >= 500)
      t.equal(textOf(chunks), speech.text.join(''))
    })

    withVendor('a silent vendor is given up by the deadlines', async (t, provider, vendor) => {
      vendor.upstream.script(silence(), silence('headers'), silence(vendor.stream(speech), 1))
      const timeouts = { headers: 60, firstToken: 60, idle: 60 }
      for (let call = 0; call < 3; call++) {
        const attempt = attemptOf(provider, { request: { stream: true }, timeouts })
        t.match(await errorOf(drain(provider.send(attempt))), { code: 'GATEWAY_UPSTREAM_TIMEOUT', statusCode: 504 })
      }
    })

    for (const stream of [true, false]) {
      withVendor(
        `an abort of a ${stream ? 'stream' : 'whole answer'} ends the vendor's request within 100 ms`,
        async (t, provider, vendor) => {
          vendor.upstream.script(silence(stream ? 'headers' : 'start'))
          const controller = new AbortController()
          const reason = new Error('gone')
          const call = errorOf(
            drain(provider.send(attemptOf(provider, { request: { stream }, signal: controller.signal })))
          )
          const request = await vendor.upstream.received()
          await turn()
          const aborted = performance.now()
          controller.abort(reason)
          t.equal(await call, reason)
          const closed = await request.closed
          t.equal(closed.how, 'aborted')
          t.ok(closed.at - aborted < 100)
        }
      )
    }

    withVendor("a reader that leaves ends the vendor's request within 100 ms", async (t, provider, vendor) => {
      const length = await lengthOf(vendor.stream(speech))
      vendor.upstream.script(silence(vendor.stream(speech), Math.floor(length / 2)))
      const frames = await open(provider)
      await frames.next()
      const left = performance.now()
      await frames.return?.()
      const closed = await vendor.upstream.requests[0]!.closed
      t.equal(closed.how, 'aborted')
      t.ok(closed.at - left < 100)
    })
  })
}

async function whole(provider: Provider, options: AttemptOptions = {}) {
  const answer = await provider.send(attemptOf(provider, options))
  if (answer.stream) throw new Error('A whole answer was asked for.')
  return answer
}

async function open(provider: Provider, options: AttemptOptions = {}): Promise<AsyncIterator<Frames>> {
  const answer = await provider.send(attemptOf(provider, { ...options, request: { stream: true, ...options.request } }))
  if (!answer.stream) throw new Error('A stream was asked for.')
  return answer.frames[Symbol.asyncIterator]()
}

/** Everything that a stream brought until it ended, and how. */
async function streamed(provider: Provider, options: AttemptOptions = {}) {
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

async function rest(source: AsyncIterator<Frames>): Promise<ChatCompletionChunk[][]> {
  const all: ChatCompletionChunk[][] = []
  for (let read = await source.next(); !read.done; read = await source.next()) all.push([...read.value])
  return all
}

async function drain(sent: Promise<Answer>): Promise<void> {
  const answer = await sent
  if (answer.stream) for await (const _ of answer.frames);
}

async function errorOf(promise: Promise<unknown>): Promise<unknown> {
  try {
    await promise
    return null
  } catch (error) {
    return error
  }
}

async function lengthOf(reply: Reply): Promise<number> {
  let length = 0
  for await (const piece of reply.body()) length += piece.length
  return length
}

function textOf(chunks: readonly ChatCompletionChunk[]): string {
  return chunks.map(chunk => chunk.choices[0]?.delta?.content ?? '').join('')
}

function deepFreeze<T>(value: T): T {
  if (typeof value === 'object' && value !== null) for (const inner of Object.values(value)) deepFreeze(inner)
  return Object.freeze(value)
}
