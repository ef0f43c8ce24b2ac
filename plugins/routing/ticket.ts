import { isGatewayError } from '../../schemas/errors.ts'
import type { Expense, Inference } from '../../schemas/gateway.ts'
import type { Candidate } from './plan.ts'
import { verdictOf } from './policy.ts'
import type { Lane } from './target-state.ts'

/**
 * One attempt's place at its target: taken before it is sent, given back once, however it ends, with what it says of the
 * target. A class for the reason of meter.ts.
 */
export class Ticket {
  readonly candidate: Candidate
  readonly lane: Lane
  #now: () => number
  #probe: boolean
  #answered = false
  #ended = false

  /** The place in `candidate.state` has been taken. */
  constructor(candidate: Candidate, lane: Lane, now: () => number) {
    this.candidate = candidate
    this.lane = lane
    this.#now = now
    this.#probe = candidate.state.breaker.enter()
    candidate.state.attempts++
  }

  /** Its first token is here, after so many milliseconds: the target is well, however long it goes on. */
  answered(milliseconds: number): void {
    this.#answered = true
    const { state } = this.candidate
    state.firstToken.add(milliseconds)
    state.succeeded(this.lane, milliseconds, this.#now())
  }

  /** Nothing was sent. */
  drop(): void {
    if (this.#ended) return
    this.#ended = true
    const { state } = this.candidate
    state.attempts--
    if (this.#probe) state.breaker.release()
    state.leave()
  }

  /** It has ended in the books. */
  end(expense: Expense): void {
    if (this.#ended) return
    this.#ended = true
    const { state } = this.candidate
    const { status, error, duration } = expense
    state.leave()
    if (status === 'settled') {
      state.latency.add(duration ?? 0)
      if (!this.#answered) state.succeeded(this.lane, duration ?? 0, this.#now())
    } else if (isGatewayError(error) && (status === 'failed' || isStarved(expense, this.#answered))) {
      state.failed(this.lane, error, verdictOf(error).counts, this.#now())
    } else if (this.#probe && !this.#answered) state.breaker.release()
  }
}

/** The time of the whole call is over, and this target has said nothing in it: it is as dead as one that is given up sooner. */
function isStarved({ inference, error, firstToken }: Expense, answered: boolean): boolean {
  const { route, deadline } = inference satisfies Inference
  const ours = deadline === undefined || deadline >= route.timeouts.total
  return ours && !answered && firstToken === null && isGatewayError(error) && error.blame === 'time'
}
