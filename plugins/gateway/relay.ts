import { UpstreamError } from '../../schemas/errors.ts'
import type { Frames } from '../../schemas/frames.ts'
import type { Call } from './call.ts'

type Read = IteratorResult<Frames, undefined>

const end: Read = { done: true, value: undefined }

/**
 * The frames of a call on their way to its transport: listeners see them, a usage event nobody asked for is taken out,
 * and the end is announced only after the call has settled. Written by hand rather than as a generator: a generator that
 * never started skips its `finally`, and one that waits for a silent upstream cannot be ended from outside.
 */
export function relay(call: Call, frames: AsyncIterable<Frames>): AsyncIterableIterator<Frames, undefined> {
  const source = frames[Symbol.asyncIterator]()
  let finished = false
  let ended = false

  function pull(resolve: (read: Read) => void, reject: (error: Error) => void): void {
    call.interrupt = reason => {
      close()
      reject(reason)
    }
    source.next().then(
      read => {
        if (ended) return
        if (read.done) {
          if (finished) finish(resolve)
          else fail(new UpstreamError('its stream ended before the answer was complete.'), reject)
          return
        }
        const kept = inspect(read.value)
        if (kept === null) return pull(resolve, reject)
        call.interrupt = null
        resolve({ done: false, value: kept })
      },
      error => {
        if (!ended) fail(error, reject)
      }
    )
  }

  function inspect(frames: Frames): Frames | null {
    if (frames.finished) finished = true
    if (call.frameListeners !== null) for (const listener of call.frameListeners) listener(frames)
    const usage = frames.usage
    if (usage === null) return frames
    call.report(usage)
    return call.wantsUsage ? frames : frames.withoutUsage()
  }

  function finish(resolve: (read: Read) => void): void {
    ended = true
    call.interrupt = null
    const settled = call.settle('completed', null)
    if (settled === undefined) resolve(end)
    else settled.then(() => resolve(end))
  }

  function fail(error: Error, reject: (error: Error) => void): void {
    close()
    call.interrupt = null
    const settled = call.settle('failed', error)
    if (settled === undefined) reject(error)
    else settled.then(() => reject(error))
  }

  function close(): void {
    ended = true
    // Not awaited: a source that waits for a silent provider would keep us here; the aborted signal ends it.
    source.return?.()?.then(undefined, () => {})
  }

  return {
    [Symbol.asyncIterator]() {
      return this
    },
    next() {
      if (ended) return Promise.resolve(end)
      if (call.reason !== null) {
        close()
        return Promise.reject(call.reason)
      }
      return new Promise(pull)
    },
    async return() {
      if (!ended) {
        close()
        call.leave()
        await call.settle('cancelled', null)
      }
      return end
    }
  }
}
