import { Cancelled } from '../../schemas/errors.ts'
import type { Answer } from '../../schemas/gateway.ts'

/** Sends one attempt that ends with a signal of its own. */
type Start = (signal: AbortSignal) => Promise<Answer>

/**
 * Runs an attempt and, should it be silent for `delay` milliseconds, a second one beside it. The first answer wins and the
 * other attempt is broken off; both stand in the books. Rejects when all that were started have failed, with what the first
 * of them threw.
 *
 * @param second gives the other attempt, or null when there is nobody to ask
 */
export function race(first: Start, delay: number, signal: AbortSignal, second: () => Start | null): Promise<Answer> {
  return new Promise((resolve, reject) => {
    const runners: AbortController[] = []
    let running = 0
    let over = false
    let failure: unknown
    const leave = () => {
      for (const runner of runners) runner.abort(signal.reason)
    }
    const timer = setTimeout(() => {
      const start = over ? null : second()
      if (start !== null) run(start)
    }, delay)
    signal.addEventListener('abort', leave)
    run(first)

    function run(start: Start): void {
      const runner = new AbortController()
      runners.push(runner)
      running++
      start(runner.signal).then(
        answer => {
          running--
          if (over) return discard(answer)
          over = true
          clearTimeout(timer)
          for (const other of runners) if (other !== runner) other.abort(new Cancelled())
          // Its stream goes on, and still ends with the call.
          resolve(answer)
        },
        error => {
          failure ??= error
          running--
          if (over || running > 0) return
          over = true
          clearTimeout(timer)
          signal.removeEventListener('abort', leave)
          reject(failure)
        }
      )
    }
  })
}

/** It answered in the same moment as the winner. */
function discard(answer: Answer): void {
  if (answer.stream)
    answer.frames[Symbol.asyncIterator]()
      .return?.()
      ?.then(undefined, () => {})
}
