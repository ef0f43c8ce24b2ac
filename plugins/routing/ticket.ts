import { isGatewayError } from '../../schemas/errors.ts'
import type { Expense } from '../../schemas/gateway.ts'
import type { Lane } from './lane.ts'
import type { Candidate } from './plan.ts'
import { verdictOf } from './policy.ts'

/**
 * One attempt's place at its target: taken before it is sent, given back once, however it ends, with what it says of the
 * target. A class for the reason of meter.ts.
 */
export class Ticket {
  readonly candidate: Candidate
  readonly lane: Lane
  #now: () => number
  #answered = false
  #ended = false

  /** A place of `candidate.state` has been taken, and it lets calls pass. */
  constructor(candidate: Candidate, lane: Lane, now: () => number) {
    this.candidate = candidate
    this.lane = lane
    this.#now = now
    candidate.state.begin(this, lane)
  }

  /** Its first token is here, after so many milliseconds. */
  answered(milliseconds: number): void {
    if (this.#ended) return
    this.#answered = true
    const { state } = this.candidate
    state.firstToken.add(milliseconds)
    state.answered(this.lane, milliseconds, this.#now())
  }

  /** Nothing was sent. */
  drop(): void {
    if (this.#ended) return
    this.#ended = true
    const { state } = this.candidate
    state.attempts--
    state.end(this, this.lane)
  }

  /** It has ended in the books. */
  end(expense: Expense): void {
    if (this.#ended) return
    this.#ended = true
    const { lane } = this
    const { state } = this.candidate
    const { status, error } = expense
    const now = this.#now()
    if (status === 'settled') {
      const duration = expense.duration ?? 0
      state.latency.add(duration)
      if (!this.#answered) state.answered(lane, duration, now)
      state.succeeded(now)
    } else if (isGatewayError(error) && (status === 'failed' || isStarved(expense))) {
      state.explain(error, expense.inference)
      state.failed(this, lane, error, verdictOf(error).counts, now)
    }
    state.end(this, lane)
  }
}

/**
 * The time of the whole call is over, and this target has said nothing in most of it: it is as dead as one that is given
 * up sooner. Not so when it was the client that set the time, or when others had used it up.
 */
function isStarved({ inference, error, firstToken, duration }: Expense): boolean {
  const { deadline } = inference
  const { total } = inference.route.timeouts
  const ours = deadline === undefined || deadline >= total
  const own = duration !== null && duration >= total / 2
  return ours && own && firstToken === null && isGatewayError(error) && error.blame === 'time'
}
