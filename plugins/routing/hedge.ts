import { Cancelled } from '../../schemas/errors.ts'
import type { Answered } from './attempt.ts'

/** Sends one attempt that ends with a signal of its own. */
export type Start = (signal: AbortSignal) => Promise<Answered>

/**
 * Runs an attempt and, should it be silent until `patience` is over, a second one beside it. The first answer wins and the
 * other attempt is broken off; both stand in the books. Rejects with what the first one threw once all that were started
 * have failed.
 *
 * @param patience ends when the first has been silent for long enough, or with its signal
 * @param second gives the other attempt, or null when there is nobody to ask; what it throws is its own business
 */
export function race(
  first: Start,
  patience: (signal: AbortSignal) => Promise<void>,
  signal: AbortSignal,
  second: () => Start | null
): Promise<Answered> {
  return new Promise((resolve, reject) => {
    const waiting = new AbortController()
    const runners: AbortController[] = []
    let running = 0
    let over = false
    let failure: unknown

    const leave = () => {
      waiting.abort(signal.reason)
      for (const runner of runners) runner.abort(signal.reason)
    }

    function run(start: Start): void {
      const runner = new AbortController()
      const isFirst = runners.push(runner) === 1
      running++
      start(runner.signal).then(
        answered => {
          if (over) discard(answered)
          else win(answered, runner)
        },
        error => {
          if (isFirst) failure = error
          if (--running === 0 && !over) lose()
        }
      )
    }

    function win(answered: Answered, winner: AbortController): void {
      end()
      for (const runner of runners) if (runner !== winner) runner.abort(new Cancelled())
      // Its stream goes on, and still ends with the call.
      resolve(answered)
    }

    function lose(): void {
      end()
      signal.removeEventListener('abort', leave)
      reject(failure)
    }

    function end(): void {
      over = true
      waiting.abort()
    }

    signal.addEventListener('abort', leave)
    run(first)
    patience(waiting.signal).then(
      () => {
        const start = over || signal.aborted ? null : second()
        if (start !== null) run(start)
      },
      () => {}
    )
  })
}

/** It answered in the same moment as the winner: a whole answer is in the books already, a stream ends here. */
function discard({ answer }: Answered): void {
  if (answer.stream)
    answer.frames[Symbol.asyncIterator]()
      .return?.()
      ?.then(undefined, () => {})
}
