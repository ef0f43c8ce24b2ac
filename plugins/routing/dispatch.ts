import { type ChatRequest, ownFields } from '../../schemas/chat.ts'
import { isGatewayError, UpstreamError } from '../../schemas/errors.ts'
import type { Frames } from '../../schemas/frames.ts'
import type { Dispatch, Gateway, Inference, Target } from '../../schemas/gateway.ts'
import type { Attempt, LedgerEntry } from '../../schemas/provider.ts'

/**
 * The loop that tries targets until one answers. For a stream that means its first token: before it any failure that
 * another target could mend moves on, after it nothing does.
 */
export function createDispatch(gateway: Gateway, random: () => number): Dispatch {
  return async function dispatch(inference) {
    let failure: unknown
    for (const target of draw(inference.route.targets, random)) {
      const attempt = await mint(gateway, inference, target)
      try {
        const answer = await gateway.send(attempt)
        if (answer.stream) return { stream: true, frames: await untilToken(attempt, answer.frames) }
        attempt.entry.settle(() => inference.usage)
        return answer
      } catch (error) {
        attempt.entry.fail(error, () => inference.usage)
        failure = error
        if (!isWorthAnother(attempt, error)) break
      }
    }
    throw failure
  }
}

/** The only place where an attempt comes to be, together with its ledger line. */
async function mint(gateway: Gateway, inference: Inference, target: Target): Promise<Attempt> {
  const entry = await gateway.open(inference, target)
  inference.facts.target = target
  inference.facts.attempts++
  return {
    inference,
    target,
    number: inference.facts.attempts,
    request: requestFor(target, inference.request, inference.route.maxOutputTokens),
    headers: {},
    caller: inference,
    signal: inference.signal,
    timeouts: inference.route.timeouts,
    entry
  }
}

/** What the target is asked: its own name of the model, our fields gone, the route's cap on output forced. */
function requestFor(target: Target, request: ChatRequest, cap: number | null): ChatRequest {
  const asked: ChatRequest = { ...request, model: target.model }
  for (const field of ownFields) if (field in asked) delete asked[field]
  if (cap === null) return asked
  const wanted = asked.max_completion_tokens ?? asked.max_tokens
  if (typeof wanted === 'number' && wanted <= cap) return asked
  delete asked.max_tokens
  asked.max_completion_tokens = cap
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

/** Reads up to the first token and hands the stream on with what was read; fails while another target can still answer. */
async function untilToken(attempt: Attempt, frames: AsyncIterable<Frames>): Promise<AsyncIterable<Frames>> {
  const { inference, entry } = attempt
  const source = frames[Symbol.asyncIterator]()
  const head: Frames[] = []
  for (;;) {
    const read = await source.next()
    if (read.done) {
      if (head.some(frames => frames.finished)) break
      throw new UpstreamError('its stream ended before the first token.')
    }
    head.push(read.value)
    if (read.value.hasToken) break
  }
  inference.facts.firstToken = performance.now() - inference.started
  return resume(head, source, entry, inference)
}

/** What was read, then the rest; the ledger line closes with the stream. */
function resume(
  head: Frames[],
  source: AsyncIterator<Frames>,
  entry: LedgerEntry,
  inference: Inference
): AsyncIterable<Frames> {
  let open = true
  const usage = () => inference.usage
  const iterator: AsyncIterator<Frames> = {
    async next() {
      const kept = head.shift()
      if (kept !== undefined) return { done: false, value: kept }
      try {
        const read = await source.next()
        if (read.done && open) {
          open = false
          entry.settle(usage)
        }
        return read
      } catch (error) {
        if (open) {
          open = false
          entry.fail(error, usage)
        }
        throw error
      }
    },
    async return() {
      if (open) {
        open = false
        entry.fail(inference.signal.reason, usage)
      }
      await source.return?.()
      return { done: true, value: undefined }
    }
  }
  return { [Symbol.asyncIterator]: () => iterator }
}
