/** Waits so many milliseconds, or rejects with the signal's reason. */
export type Pause = (milliseconds: number, signal: AbortSignal) => Promise<void>

/**
 * Asks somebody who may not care for signals, for so many milliseconds at most.
 * @throws what the asked one threw; Error: it took too long; the reason of the signal
 */
export async function inTime<T>(
  ask: (signal: AbortSignal) => Promise<T>,
  milliseconds: number,
  signal: AbortSignal,
  pause: Pause
): Promise<T> {
  const own = new AbortController()
  const both = AbortSignal.any([own.signal, signal])
  const tooLong = pause(milliseconds, both).then(() => {
    throw new Error(`There was no answer within ${milliseconds} ms.`)
  })
  try {
    return await Promise.race([ask(both), tooLong])
  } finally {
    own.abort()
  }
}
