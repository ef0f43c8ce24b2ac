import { hash } from 'node:crypto'
import type { FastifyInstance } from 'fastify'
import fp from 'fastify-plugin'
import { detail, IdempotencyKeyReused, InvalidRequest } from '../../schemas/errors.ts'
import type { Frames } from '../../schemas/frames.ts'
import type { Answer, Dispatch, Inference, Principal } from '../../schemas/gateway.ts'
import type { StoredAnswer } from '../../schemas/store.ts'
import { createAnswers } from './answers.ts'
import { createElsewhere, type Lease } from './elsewhere.ts'
import { answerOf, bytesOf } from './frames.ts'

export interface IdempotencyOptions {
  /** Milliseconds that an answer is kept. Default 24 hours. */
  ttl?: number
  /** Bytes of the largest answer that is kept; after a larger one a repeat is a new call. Default 4 MiB. */
  maxAnswer?: number
  /** Bytes that answers may take in memory. Default 64 MiB. */
  memory?: number
  /** Milliseconds since 1970. Given by tests. */
  now?: () => number
}

/** A call under a key that has not ended yet. */
interface Run {
  readonly fingerprint: string
  readonly ended: Promise<void>
}

/** What an answer has brought so far; no chunks: it is larger than what is kept. */
interface Taken {
  chunks: Uint8Array[] | null
  size: number
}

const hour = 3_600_000
const visible = /^[\x21-\x7e]{1,255}$/

/** `Idempotency-Key`: a repeat gets the answer of the first call, byte for byte, and costs nothing. */
async function idempotency(app: FastifyInstance, options: IdempotencyOptions): Promise<void> {
  const { gateway } = app
  const { log } = gateway
  const store = gateway.optional('store', 'idempotency')
  const shared = gateway.optional('shared', 'idempotency')
  const now = options.now ?? Date.now
  const ttl = options.ttl ?? 24 * hour
  const maxAnswer = options.maxAnswer ?? 4 * 1024 * 1024
  const answers = createAnswers(store, log, options.memory ?? 64 * 1024 * 1024, now)
  const elsewhere = shared === undefined ? null : createElsewhere(shared, log, now)
  const runs = new Map<string, Run>()

  gateway.intercept('cache', (inference, next) => {
    const { idempotencyKey } = inference
    return idempotencyKey === undefined ? next(inference) : once(inference, idempotencyKey, next)
  })

  const purge = () =>
    answers.purge().catch(error => log.warn({ err: error }, 'answers that have ended could not be deleted'))
  const timer = setInterval(purge, hour).unref()
  app.addHook('onReady', () =>
    answers.load().catch(error => log.warn({ err: error }, 'stored answers are not known: their keys count as new'))
  )
  app.addHook('onClose', async () => {
    clearInterval(timer)
    await answers.flushed()
  })

  async function once(inference: Inference, key: string, next: Dispatch): Promise<Answer> {
    if (!visible.test(key)) {
      throw detail(new InvalidRequest('The header Idempotency-Key is 1 to 255 visible ASCII characters.'), {
        param: 'Idempotency-Key'
      })
    }
    const id = idOf(inference.principal, key)
    const fingerprint = digest(JSON.stringify(inference.request))
    for (;;) {
      const known = answers.recall(id)
      if (known !== null) return replay(known, fingerprint, inference)
      const run = runs.get(id)
      if (run === undefined) return first(id, fingerprint, inference, next)
      if (run.fingerprint !== fingerprint) throw new IdempotencyKeyReused()
      await untilEnd(run, inference.signal)
    }
  }

  /** The call of its key in this process: everybody who comes later waits for its end. */
  async function first(id: string, fingerprint: string, inference: Inference, next: Dispatch): Promise<Answer> {
    const { promise, resolve } = Promise.withResolvers<void>()
    runs.set(id, { fingerprint, ended: promise })
    const taken: Taken = { chunks: [], size: 0 }
    let stream = false
    let complete = false
    let over = false
    let lease: Lease | null = null
    inference.onSettled(({ status }) => {
      over = true
      runs.delete(id)
      const whole = status === 'completed' && complete && taken.chunks !== null
      const body = whole ? joined(taken) : null
      const answer = body && { id, fingerprint, stream, body, expiresAt: now() + ttl }
      if (answer !== null) answers.keep(answer)
      if (lease !== null) void hand(lease, answer)
      resolve()
    })

    const stored = await answers.find(id)
    if (stored !== null) return replay(stored, fingerprint, inference)
    if (elsewhere !== null) {
      const entered = await elsewhere.enter(id, inference.signal)
      if (entered !== null && 'body' in entered) {
        answers.remember(entered)
        return replay(entered, fingerprint, inference)
      }
      // The call may have ended meanwhile: then nobody else ends the lease.
      if (over) await entered?.end()
      lease = entered
    }
    inference.signal.throwIfAborted()
    // Its client may leave and come back for the answer, which is charged once.
    inference.outlive()
    const answer = await next(inference)
    stream = answer.stream
    complete = true
    if (answer.stream) inference.onFrames(keeper(taken, wantsUsage(inference)))
    else take(taken, answer.raw ?? Buffer.from(JSON.stringify(answer.body)))
    return answer
  }

  /** Others look for an answer only when nobody holds the lease. */
  async function hand(lease: Lease, answer: StoredAnswer | null): Promise<void> {
    if (answer !== null) await elsewhere?.show(answer)
    await lease.end()
  }

  function take(taken: Taken, bytes: Uint8Array): void {
    if (taken.chunks === null) return
    taken.size += bytes.byteLength
    if (taken.size > maxAnswer) taken.chunks = null
    else taken.chunks.push(bytes)
  }

  /** Keeps what the client gets: without the usage that it did not ask for. */
  function keeper(taken: Taken, usage: boolean): (frames: Frames) => void {
    return frames => {
      const shown = usage || !frames.hasUsage ? frames : frames.withoutUsage()
      if (shown !== null && taken.chunks !== null) take(taken, bytesOf(shown))
    }
  }
}

/** In memory of its own: a view of a larger buffer would take that with it into the cache and to the store. */
function joined({ chunks, size }: Taken): Uint8Array {
  const body = Buffer.allocUnsafeSlow(size)
  let at = 0
  for (const chunk of chunks ?? []) {
    body.set(chunk, at)
    at += chunk.byteLength
  }
  return body
}

function replay(stored: StoredAnswer, fingerprint: string, inference: Inference): Answer {
  if (stored.fingerprint !== fingerprint) throw new IdempotencyKeyReused()
  inference.facts.headers.push('idempotency-replayed', 'true')
  return answerOf(stored)
}

/** Resolves with the end of a call, rejects when whoever waits is gone. */
function untilEnd({ ended }: Run, signal: AbortSignal): Promise<void> {
  signal.throwIfAborted()
  const { promise, resolve, reject } = Promise.withResolvers<void>()
  const leave = () => reject(signal.reason)
  signal.addEventListener('abort', leave, { once: true })
  void ended.then(() => {
    signal.removeEventListener('abort', leave)
    resolve()
  })
  return promise
}

function wantsUsage({ request }: Inference): boolean {
  return request.stream_options?.include_usage === true
}

/** Keys are their callers' own: nobody finds another one's answer. */
function idOf({ tenant, kind, key }: Principal, idempotencyKey: string): string {
  return digest(JSON.stringify([tenant, kind, key, idempotencyKey]))
}

function digest(text: string): string {
  return hash('sha256', text, 'base64url')
}

export default fp(idempotency, { fastify: '5.x', name: 'idempotency', dependencies: ['gateway'] })
