import { type ChatRequest, ownFields } from '../../schemas/chat.ts'
import { Cancelled, isGatewayError, UpstreamError } from '../../schemas/errors.ts'
import type { Frames } from '../../schemas/frames.ts'
import type { Answer, Dispatch, Expense, Gateway, Inference, Meter, Target } from '../../schemas/gateway.ts'
import type { Attempt } from '../../schemas/provider.ts'
import { Heard, Whole } from './meter.ts'

/**
 * The loop that tries targets until one answers. For a stream that means its first token: before it any failure that
 * another target could mend moves on, after it nothing does.
 */
export function createDispatch(gateway: Gateway, random: () => number): Dispatch {
  return async function dispatch(inference) {
    let failure: unknown
    for (const target of draw(inference.route.targets, random)) {
      inference.signal.throwIfAborted()
      let attempt: Attempt
      const heard = new Heard(inference)
      try {
        const entry = gateway.open(inference, target)
        attempt = mint(inference, target, entry instanceof Promise ? await entry : entry, heard)
      } catch (refusal) {
        throw failure ?? refusal
      }
      let answer: Answer
      try {
        answer = await gateway.send(attempt)
        if (answer.stream) return { stream: true, frames: await untilToken(attempt, answer.frames, heard) }
        // Whoever keeps books reads the usage now, and finds out here that an answer is no JSON after all.
        attempt.entry.meter = new Whole(inference, answer)
        attempt.entry.settle()
        return answer
      } catch (error) {
        if (!(attempt.entry.meter instanceof Heard)) attempt.entry.meter = heard
        attempt.entry.fail(error)
        if (!isWorthAnother(attempt, error)) throw error
        failure = error
      }
    }
    throw failure
  }
}

/** The only place where an attempt comes to be, together with its ledger line. */
function mint(inference: Inference, target: Target, entry: Expense, meter: Meter): Attempt {
  // The call may have ended while its line was written.
  inference.signal.throwIfAborted()
  entry.meter = meter
  inference.facts.target = target
  inference.facts.attempts++
  return {
    inference,
    target,
    number: inference.facts.attempts,
    key: 0,
    request: requestFor(target, inference.request, inference.maxOutputTokens),
    headers: {},
    caller: inference,
    signal: inference.signal,
    timeouts: inference.route.timeouts,
    entry
  }
}

/** What the target is asked: its own name of the model, our fields gone, the cap on output forced. */
function requestFor(target: Target, request: ChatRequest, cap: number | null): ChatRequest {
  const asked: ChatRequest = { ...request, model: target.model }
  for (const field of ownFields) if (field in asked) delete asked[field]
  if (cap === null) return asked
  const { max_completion_tokens: newer, max_tokens: older } = asked
  const wanted = newer ?? older
  const fits = typeof wanted === 'number' && wanted <= cap
  if (fits && wanted === (older ?? wanted)) return asked
  delete asked.max_tokens
  asked.max_completion_tokens = fits ? wanted : cap
  return asked
}

/** All targets in the order of a weighted draw without replacement. A weight of 0 is tried last. */
function draw(targets: readonly Target[], random: () => number): readonly Target[] {
  if (targets.length === 1) return targets
  const left = [...targets]
  const order: Target[] = []
  while (left.length > 0) {
    const sum = left.reduce((total, target) => total + target.weight, 0)
    let point = random() * sum
    let index = left.findIndex(target => {
      point -= target.weight
      return point < 0
    })
    // No weight is left, or the sum was rounded up past the last one.
    if (index === -1) index = left.findLastIndex(({ weight }) => weight > 0)
    if (index === -1) index = 0
    order.push(...left.splice(index, 1))
  }
  return order
}

/** The one point of policy: whether a failed attempt is worth another one. Retries, fallbacks and breakers come here. */
function isWorthAnother(attempt: Attempt, error: unknown): boolean {
  if (attempt.signal.aborted) return false
  // What the request itself caused fails everywhere; a fault that is not the provider's is ours.
  return isGatewayError(error) && (error.statusCode === 429 || error.statusCode >= 500)
}

/** What a stream may say before its first token, in bytes; above it the stream is handed on as it is. */
const mostBeforeToken = 262_144

/** Reads up to the first token and hands the stream on with what was read; fails while another target can still answer. */
async function untilToken(
  attempt: Attempt,
  frames: AsyncIterable<Frames>,
  heard: Heard
): Promise<AsyncIterable<Frames>> {
  const { inference, entry } = attempt
  const source = frames[Symbol.asyncIterator]()
  const head: Frames[] = []
  let size = 0
  for (;;) {
    const read = await source.next()
    if (read.done) {
      if (heard.finished) break
      throw new UpstreamError('its stream ended before the first token.')
    }
    heard.hear(read.value, entry.metered)
    size += read.value.raw?.length ?? 0
    // A provider may send comments for as long as it likes; what is too much of them is nobody's loss.
    if (size <= mostBeforeToken || read.value.hasData) head.push(read.value)
    if (read.value.hasToken) break
    if (size > mostBeforeToken && read.value.hasData) break
  }
  const now = performance.now()
  inference.facts.firstToken = now - inference.started
  entry.firstToken = now - entry.started
  return resume(head, source, attempt, heard)
}

/** What was read, then the rest; the ledger line closes with the stream. An end before any finish_reason is a fault. */
function resume(
  head: Frames[],
  source: AsyncIterator<Frames>,
  { entry, inference }: Attempt,
  heard: Heard
): AsyncIterable<Frames> {
  const { metered } = entry
  const iterator: AsyncIterator<Frames> = {
    async next() {
      const kept = head.shift()
      if (kept !== undefined) return { done: false, value: kept }
      try {
        const read = await source.next()
        if (!read.done) heard.hear(read.value, metered)
        else if (heard.finished) entry.settle()
        else throw new UpstreamError('its stream ended before the answer was complete.')
        return read
      } catch (error) {
        entry.fail(error)
        throw error
      }
    },
    async return() {
      entry.fail(inference.signal.reason ?? new Cancelled())
      await source.return?.()
      return { done: true, value: undefined }
    }
  }
  return { [Symbol.asyncIterator]: () => iterator }
}
