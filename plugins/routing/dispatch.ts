import { isGatewayError } from '../../schemas/errors.ts'
import type { Answer, Dispatch, Inference } from '../../schemas/gateway.ts'
import { able, inWords, type Unable } from './abilities.ts'
import { type Answered, attempt, Refusal } from './attempt.ts'
import { conversationOf } from './conversation.ts'
import { race, type Start } from './hedge.ts'
import type { Lane } from './lane.ts'
import { nobody } from './nobody.ts'
import type { Pause } from './patience.ts'
import { type Candidate, Plan, type Step } from './plan.ts'
import { longestWait, pauseBefore, verdictOf } from './policy.ts'
import { type Ranking, rank } from './rank.ts'

export interface DispatchOptions extends Ranking {
  /** From its second turn on a conversation stays where it is. */
  readonly sticky: boolean
  readonly pause: Pause
}

/**
 * The loop that tries targets until one answers; docs/routing.md says what follows which fault. For a stream the first
 * token decides: before it any failure that another target could mend moves on, after it nothing does.
 */
export function createDispatch(options: DispatchOptions): Dispatch {
  return inference => {
    const { route } = inference
    if (route instanceof Plan) return new Course(options, inference, route).run()
    return Promise.reject(new Error('This call has a route that another router has made.'))
  }
}

/** A candidate whose fault may pass. */
interface Again {
  readonly candidate: Candidate
  /** When it may be asked again. */
  from: number
  /** In how many passes it was asked. */
  asks: number
  /** It waits for a further one. */
  waits: boolean
}

/** A second attempt that did not win. */
interface Failed {
  readonly candidate: Candidate
  readonly error: unknown
}

const nothing: never[] = []
/** Milliseconds by which a timer may be early. */
const early = 1
/** Milliseconds over which those come back who wait for the same moment. */
const spread = 250

/**
 * The way of one call along its plan. A class, because everything on it is about what has been tried so far, and because
 * of docs/decisions/0008.
 */
class Course {
  #options: DispatchOptions
  #inference: Inference
  #plan: Plan
  /** The last fault; undefined while nothing has been tried. */
  #failure: unknown
  /** Those that cannot do what is asked. */
  #unable: Unable[] = nothing
  /** Keeps a conversation at the targets and keys of this step. */
  #conversation: number | null = null
  /** Of this step. */
  #again: Again[] = nothing
  /** Candidates that were asked as the second of two in this pass. */
  #seconds: Candidate[] = nothing

  constructor(options: DispatchOptions, inference: Inference, plan: Plan) {
    this.#options = options
    this.#inference = inference
    this.#plan = plan
  }

  async run(): Promise<Answer> {
    const { steps } = this.#plan
    for (let index = 0; index < steps.length; index++) {
      const answered = await this.#along(steps[index]!, index === steps.length - 1)
      if (answered !== null) return this.#accept(answered)
    }
    throw this.#failure ?? nobody(this.#plan, this.#unable, this.#options.now())
  }

  #accept({ answer, entry }: Answered): Answer {
    const { facts, started } = this.#inference
    facts.target = entry.target
    if (answer.stream) facts.firstToken = entry.started - started + (entry.firstToken ?? 0)
    for (const one of this.#unable) {
      const warning = `left out: ${inWords(one)}`
      if (!facts.warnings.includes(warning)) facts.warnings.push(warning)
    }
    return answer
  }

  /** One pass over the candidates, then as often as the step allows over those whose fault may pass. */
  async #along(step: Step, isLast: boolean): Promise<Answered | null> {
    const inference = this.#inference
    const { sticky, pause } = this.#options
    if (step.limited && this.#unable === nothing) this.#unable = []
    const found = able(step, inference, this.#unable)
    this.#conversation = step.choice && sticky ? conversationOf(step.alias, inference) : null
    let candidates = rank(found, step, this.#conversation, inference, this.#options)
    this.#again = nothing
    /** In all, while everybody was limited. */
    let waited = 0
    for (;;) {
      this.#seconds = nothing
      const { attempts } = inference.facts
      const answered = await this.#pass(step, candidates)
      if (answered !== null || step.retries === 0 || this.#again.length === 0) return answered
      const waiting = this.#again.filter(({ waits, asks }) => waits && asks <= step.retries)
      const wait = this.#waitBefore(waiting, isLast)
      if (wait === null) return null
      if (inference.facts.attempts === attempts) {
        // Nobody was asked, which is no repeat: others were quicker when the last limit was over.
        if (waited > 0 && !isLast) return null
        waited += wait
        if (waited > longestWait) return null
      }
      const ready = this.#options.now() + wait
      // Who is limited for longer than that has its turn in a later pass.
      const next = waiting.filter(({ from }) => from <= ready)
      for (const one of next) one.waits = false
      candidates = next.map(({ candidate }) => candidate)
      await pause(wait, inference.signal)
    }
  }

  /** Asks each candidate that may be asked, those with a free place first; then those where a place may come free. */
  async #pass(step: Step, candidates: readonly Candidate[]): Promise<Answered | null> {
    let full: Candidate[] = nothing
    for (let at = 0; at < candidates.length; at++) {
      const candidate = candidates[at]!
      if (this.#seconds.includes(candidate)) continue
      const answered = await this.#ask(step, candidates, at, false)
      if (answered === 'full') full = [...full, candidate]
      else if (answered !== null) return answered
    }
    for (let at = 0; at < full.length; at++) {
      if (this.#seconds.includes(full[at]!)) continue
      const answered = await this.#ask(step, full, at, true)
      if (answered !== null && answered !== 'full') return answered
    }
    return null
  }

  /** Asks one candidate, with one key after the other where it is the key that is refused or limited. */
  async #ask(
    step: Step,
    candidates: readonly Candidate[],
    at: number,
    isPatient: boolean
  ): Promise<Answered | null | 'full'> {
    const candidate = candidates[at]!
    const { now } = this.#options
    const { signal } = this.#inference
    const { state } = candidate
    const { lanes, places } = state
    const first = this.#conversation ?? state.turn()
    for (let tries = 0; tries < lanes.length; tries++) {
      signal.throwIfAborted()
      const lane = lanes[(first + tries) % lanes.length]!
      if (!state.passes(lane, now())) continue
      if (isPatient ? !(await places.queue(signal)) : !places.enter()) {
        signal.throwIfAborted()
        return 'full'
      }
      // Much may have happened while it waited.
      if (isPatient && !state.passes(lane, now())) {
        places.leave()
        continue
      }
      try {
        if (step.hedge === null) return await this.#attempt(candidate, lane, signal)
        return await this.#hedge(step, candidate, lane, candidates, at)
      } catch (error) {
        this.#note(candidate, error)
        if (!isAboutKey(error)) return null
      }
    }
    // It is as if it had limited this call as well: others have found out for it.
    if (state.rest(now())?.why === 'limited') this.#askAgain(candidate, 0, false)
    return null
  }

  #attempt(candidate: Candidate, lane: Lane, signal: AbortSignal): Promise<Answered> {
    const { gateway, now } = this.#options
    return attempt(gateway, this.#inference, candidate, lane, signal, now)
  }

  /** What a failed attempt means for the call. @throws what ends it */
  #note(candidate: Candidate, error: unknown): void {
    if (error instanceof Refusal) throw this.#failure ?? error.reason
    this.#failure = error
    const { another, again } = verdictOf(error)
    if (!another || this.#inference.signal.aborted) throw error
    if (again) this.#askAgain(candidate, waitAfter(error), true)
  }

  /** Its fault may pass: after so many milliseconds, and what it rests. `asked`: it has had its turn in this pass. */
  #askAgain(candidate: Candidate, wait: number, asked: boolean): void {
    const from = this.#options.now() + wait
    const known = this.#again.find(one => one.candidate === candidate)
    if (known === undefined) {
      this.#again = [...this.#again, { candidate, from, asks: asked ? 1 : 0, waits: true }]
    } else if (known.waits) {
      known.from = Math.max(known.from, from)
    } else {
      known.from = from
      known.waits = true
      if (asked) known.asks++
    }
  }

  /** Asks this candidate, and one more should it be silent for longer than usual: the first to answer wins. */
  async #hedge(
    step: Step,
    candidate: Candidate,
    lane: Lane,
    candidates: readonly Candidate[],
    at: number
  ): Promise<Answered> {
    const { signal, request } = this.#inference
    const { state } = candidate
    const usual = request.stream === true ? state.firstToken.usual : state.latency.usual
    const delay = step.hedge === 'p95' ? usual : step.hedge
    if (delay === null || at === candidates.length - 1) return this.#attempt(candidate, lane, signal)
    const seconds: Failed[] = []
    try {
      return await race(
        signal => this.#attempt(candidate, lane, signal),
        signal => this.#options.pause(delay, signal),
        signal,
        () => this.#second(candidates, at, seconds)
      )
    } catch (error) {
      for (const failed of seconds) this.#noteSecond(failed)
      throw error
    }
  }

  /** The next candidate that has a free place, which is taken; null: there is none. */
  #second(candidates: readonly Candidate[], at: number, seconds: Failed[]): Start | null {
    for (let next = at + 1; next < candidates.length; next++) {
      const candidate = candidates[next]!
      const { state } = candidate
      if (this.#seconds.includes(candidate)) continue
      const lane = state.lane(this.#conversation ?? state.turn(), this.#options.now())
      if (lane === null || !state.places.enter()) continue
      this.#seconds = [...this.#seconds, candidate]
      return async signal => {
        try {
          return await this.#attempt(candidate, lane, signal)
        } catch (error) {
          seconds.push({ candidate, error })
          throw error
        }
      }
    }
    return null
  }

  #noteSecond({ candidate, error }: Failed): void {
    // It has not had its turn: it was not sent, or another key may do.
    if (error instanceof Refusal || isAboutKey(error)) this.#seconds = this.#seconds.filter(one => one !== candidate)
    // A budget that does not hold two attempts leaves the first one as it was.
    if (!(error instanceof Refusal)) this.#note(candidate, error)
  }

  /** Milliseconds until those who failed may be asked again; null: not within this call, or a fallback is quicker. */
  #waitBefore(waiting: readonly Again[], isLast: boolean): number | null {
    const { now, random } = this.#options
    const time = now()
    const pause = pauseBefore(Math.max(0, ...waiting.map(({ asks }) => asks - 1)), random)
    let soonest = Number.POSITIVE_INFINITY
    for (const one of waiting) {
      const rest = one.candidate.state.rest(time)
      if (rest?.why === 'breaker') one.from = Number.POSITIVE_INFINITY
      else if (rest !== null) one.from = Math.max(one.from, rest.until)
      soonest = Math.min(soonest, one.from - time)
    }
    if (soonest > (isLast ? longestWait : pause)) return null
    const wait = soonest > 0 ? Math.max(pause, soonest + early + random() * spread) : pause
    return wait < remaining(this.#inference) ? wait : null
  }
}

/** Milliseconds that the provider asks for. What it asks of one key is kept there: another one may be free sooner. */
function waitAfter(error: unknown): number {
  return isGatewayError(error) && error.blame !== 'limit' ? (error.retryAfter ?? 0) : 0
}

function isAboutKey(error: unknown): boolean {
  return isGatewayError(error) && (error.blame === 'key' || error.blame === 'limit')
}

/** Milliseconds that the call may still take. */
function remaining({ route, deadline, started }: Inference): number {
  const total = Math.min(route.timeouts.total, deadline ?? Number.POSITIVE_INFINITY)
  return total - (performance.now() - started)
}
