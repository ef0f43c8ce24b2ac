import { type ChatRequest, ownFields } from '../../schemas/chat.ts'
import { type GatewayError, isGatewayError } from '../../schemas/errors.ts'
import type { Answer, Dispatch, Expense, Gateway, Inference } from '../../schemas/gateway.ts'
import type { Attempt } from '../../schemas/provider.ts'
import { untilToken } from './frames.ts'
import { race } from './hedge.ts'
import { Heard, Whole } from './meter.ts'
import { nobody } from './nobody.ts'
import { type Candidate, Plan, type Step } from './plan.ts'
import { longestWait, pauseBefore, verdictOf } from './policy.ts'
import { type Order, type Ranking, rank } from './rank.ts'
import type { Lane } from './target-state.ts'
import { Ticket } from './ticket.ts'

export interface DispatchOptions extends Ranking {
  /** Waits so many milliseconds, or rejects with the signal's reason. */
  readonly pause: (milliseconds: number, signal: AbortSignal) => Promise<void>
}

/** How far a call has come along its plan. */
interface Trail {
  /** The last fault; undefined while nothing has been tried. */
  failure: unknown
  /** Candidates of this step whose fault may pass. */
  again: Candidate[]
  /** Candidates of this pass that were asked as the second of two. */
  hedged: Candidate[] | null
  /** What candidates cannot do of it. */
  lacks: string[]
}

/** What kept an attempt from being sent: the caller's budget or the books. It ends the call. */
class Refusal {
  readonly reason: unknown
  constructor(reason: unknown) {
    this.reason = reason
  }
}

/**
 * The loop that tries targets until one answers; docs/routing.md says what follows which fault. For a stream the first
 * token decides: before it any failure that another target could mend moves on, after it nothing does.
 */
export function createDispatch(gateway: Gateway, options: DispatchOptions): Dispatch {
  const { now, random, pause } = options

  return async function dispatch(inference) {
    const { route } = inference
    if (!(route instanceof Plan)) throw new Error('This call has a route that another router has made.')
    const trail: Trail = { failure: undefined, again: [], hedged: null, lacks: [] }
    for (const step of route.steps) {
      const order = rank(step, inference, options, ({ provider, model }, lack) => {
        trail.lacks.push(`${provider.name}/${model} ${lack}`)
      })
      const answer = await along(step, order, inference, trail)
      if (answer !== null) {
        for (const lack of trail.lacks) warn(inference, `left out: ${lack}`)
        return answer
      }
    }
    throw trail.failure ?? nobody(route, trail.lacks, now())
  }

  /** One pass over the candidates, then over those whose fault may pass, as often as the step allows. */
  async function along(step: Step, order: Order, inference: Inference, trail: Trail): Promise<Answer | null> {
    let { candidates } = order
    for (let repeat = 0; ; repeat++) {
      trail.again = []
      trail.hedged = null
      const answer = await pass(step, candidates, order.seed, inference, trail)
      if (answer !== null || repeat >= step.retries || trail.again.length === 0) return answer
      const last = inference.route instanceof Plan && inference.route.steps.at(-1) === step
      const wait = waitFor(trail, repeat, last, inference)
      if (wait === null) return null
      await pause(wait, inference.signal)
      candidates = trail.again
    }
  }

  /** Asks each candidate that may be asked, those with a free place first; then those where a place may come free. */
  async function pass(
    step: Step,
    candidates: readonly Candidate[],
    seed: number | null,
    inference: Inference,
    trail: Trail
  ): Promise<Answer | null> {
    let full: Candidate[] | null = null
    for (const [at, candidate] of candidates.entries()) {
      if (trail.hedged?.includes(candidate)) continue
      const answer = await ask(step, candidate, candidates, at, seed, inference, trail, false)
      if (answer === 'full') full = [...(full ?? []), candidate]
      else if (answer !== null) return answer
    }
    for (const candidate of full ?? []) {
      const answer = await ask(step, candidate, candidates, candidates.length, seed, inference, trail, true)
      if (answer !== null && answer !== 'full') return answer
    }
    return null
  }

  /** Asks one candidate, with one key after the other where it is the key that is refused or limited. */
  async function ask(
    step: Step,
    candidate: Candidate,
    candidates: readonly Candidate[],
    at: number,
    seed: number | null,
    inference: Inference,
    trail: Trail,
    patient: boolean
  ): Promise<Answer | null | 'full'> {
    const { state } = candidate
    const { signal } = inference
    for (let tries = 0; tries < state.lanes.length; tries++) {
      signal.throwIfAborted()
      if (!state.breaker.passes(now())) return null
      const lane = state.lane(now(), seed)
      if (lane === null) return null
      if (!(patient ? await state.queue(signal) : state.enter())) {
        signal.throwIfAborted()
        return 'full'
      }
      try {
        if (step.hedge === null) return await attempt(candidate, lane, inference, signal)
        return await hedge(step, candidate, lane, candidates.slice(at + 1), inference, trail)
      } catch (error) {
        if (error instanceof Refusal) throw trail.failure ?? error.reason
        trail.failure = error
        const { another, again } = signal.aborted ? verdictOf(null) : verdictOf(error)
        if (!another) throw error
        if (again && !trail.again.includes(candidate)) trail.again.push(candidate)
        if (!isAboutKey(error)) return null
      }
    }
    return null
  }

  /** One provider call: opened in the books, sent, and ended in them. @throws Refusal where it was not sent */
  async function attempt(candidate: Candidate, lane: Lane, inference: Inference, signal: AbortSignal): Promise<Answer> {
    const ticket = new Ticket(candidate, lane, now)
    const heard = new Heard(inference, ticket)
    let sent: Attempt
    try {
      const entry = gateway.open(inference, candidate)
      sent = mint(inference, candidate, lane, entry instanceof Promise ? await entry : entry, heard, signal)
    } catch (refusal) {
      ticket.drop()
      throw new Refusal(refusal)
    }
    const { entry } = sent
    try {
      const answer = await gateway.send(sent)
      if (answer.stream) {
        const frames = await untilToken(sent, answer.frames, heard)
        inference.facts.target = candidate
        inference.facts.firstToken = entry.started - inference.started + (entry.firstToken ?? 0)
        return { stream: true, frames }
      }
      // Whoever keeps books reads the usage now, and finds out here that an answer is no JSON after all.
      entry.meter = new Whole(inference, answer, ticket)
      entry.settle()
      inference.facts.target = candidate
      return answer
    } catch (error) {
      if (!(entry.meter instanceof Heard)) entry.meter = heard
      entry.fail(error)
      throw error
    }
  }

  /** Asks this candidate, and one more should it be silent for longer than usual: the first to answer wins. */
  function hedge(
    step: Step,
    candidate: Candidate,
    lane: Lane,
    others: readonly Candidate[],
    inference: Inference,
    trail: Trail
  ): Promise<Answer> {
    const first = (signal: AbortSignal) => attempt(candidate, lane, inference, signal)
    const { state } = candidate
    const usual = inference.request.stream === true ? state.firstToken.usual : state.latency.usual
    const delay = step.hedge === 'p95' ? usual : step.hedge
    if (delay === null) return first(inference.signal)
    return race(first, delay, inference.signal, () => {
      const time = now()
      const other = others.find(({ state }) => state.breaker.passes(time) && state.lane(time, null) !== null)
      const otherLane = other?.state.lane(time, null) ?? null
      if (other === undefined || otherLane === null || !other.state.enter()) return null
      trail.hedged = [...(trail.hedged ?? []), other]
      return signal => attempt(other, otherLane, inference, signal)
    })
  }

  /** Milliseconds until those who failed may be asked again; null: not within this call, or a fallback is quicker. */
  function waitFor(trail: Trail, repeat: number, last: boolean, inference: Inference): number | null {
    const time = now()
    const pause = pauseBefore(repeat, random)
    let soonest = Number.POSITIVE_INFINITY
    trail.again = trail.again.filter(({ state }) => {
      const rest = state.rest(time)
      if (rest?.why === 'breaker') return false
      soonest = Math.min(soonest, rest === null ? 0 : rest.until - time)
      return true
    })
    if (soonest > (last ? longestWait : pause)) return null
    const wait = Math.max(pause, soonest)
    return wait < remaining(inference) ? wait : null
  }
}

/** The only place where an attempt comes to be, together with its ledger line. */
function mint(
  inference: Inference,
  candidate: Candidate,
  lane: Lane,
  entry: Expense,
  meter: Heard,
  signal: AbortSignal
): Attempt {
  // The call may have ended while its line was written.
  signal.throwIfAborted()
  entry.meter = meter
  inference.facts.target = candidate
  inference.facts.attempts++
  return {
    inference,
    target: candidate,
    number: entry.number,
    key: lane.key,
    request: requestFor(candidate, inference.request, lower(inference.maxOutputTokens, candidate.maxOutputTokens)),
    headers: {},
    caller: inference,
    signal,
    timeouts: candidate.timeouts,
    entry
  }
}

/** What the target is asked: its own name of the model, our fields gone, the cap on output forced. */
function requestFor(target: Candidate, request: ChatRequest, cap: number | null): ChatRequest {
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

function lower(one: number | null, other: number | null): number | null {
  if (one === null) return other
  return other === null ? one : Math.min(one, other)
}

function isAboutKey(error: unknown): error is GatewayError {
  return isGatewayError(error) && (error.blame === 'key' || error.blame === 'limit')
}

/** Milliseconds that the call may still take. */
function remaining({ route, deadline, started }: Inference): number {
  const total = Math.min(route.timeouts.total, deadline ?? Number.POSITIVE_INFINITY)
  return total - (performance.now() - started)
}

function warn({ facts }: Inference, warning: string): void {
  if (!facts.warnings.includes(warning)) facts.warnings.push(warning)
}
