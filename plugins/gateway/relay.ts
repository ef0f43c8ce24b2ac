import type { Frames } from '../../schemas/frames.ts'
import { asError, type Call, whenSettled } from './call.ts'

type Read = IteratorResult<Frames, undefined>

const end: Read = { done: true, value: undefined }

/**
 * The frames of a call on their way to its transport: listeners see them, a usage event nobody asked for is taken out,
 * and the end is announced only after the call has settled. Written by hand rather than as a generator: a generator that
 * never started skips its `finally`, and one that waits for a silent upstream cannot be ended from outside.
 */
export function relay(call: Call, frames: AsyncIterable<Frames>): AsyncIterableIterator<Frames, undefined> {
  const source = frames[Symbol.asyncIterator]()
  let ended = false
  /** Why the call ended while nobody was reading: the next read is told. */
  let untold: Error | null = null

  call.stop = reason => {
    if (ended) return
    void close()
    untold = reason
  }

  function pull(resolve: (read: Read) => void, reject: (error: unknown) => void): void {
    call.interrupt = reason => {
      untold = null
      reject(reason)
    }
    try {
      source.next().then(
        read => {
          if (ended) return
          try {
            take(read, resolve, reject)
          } catch (error) {
            fail(error, reject)
          }
        },
        error => {
          if (!ended) fail(error, reject)
        }
      )
    } catch (error) {
      fail(error, reject)
    }
  }

  function take(read: IteratorResult<Frames>, resolve: (read: Read) => void, reject: (error: unknown) => void): void {
    if (read.done) {
      finish(resolve)
      return
    }
    const kept = inspect(read.value)
    if (kept === null) {
      pull(resolve, reject)
      return
    }
    call.interrupt = null
    resolve({ done: false, value: kept })
  }

  function inspect(frames: Frames): Frames | null {
    if (call.frameListeners !== null) call.show(frames)
    if (!frames.hasUsage) return frames
    call.report(frames)
    return call.wantsUsage ? frames : frames.withoutUsage()
  }

  function finish(resolve: (read: Read) => void): void {
    ended = true
    call.interrupt = null
    whenSettled(call.settle('completed', null), () => resolve(end))
  }

  function fail(error: unknown, reject: (error: unknown) => void): void {
    void close()
    call.interrupt = null
    whenSettled(call.settle('failed', asError(error)), () => reject(error))
  }

  /** Not awaited: a source that waits for a silent provider would keep us here; the aborted signal ends it. */
  async function close(): Promise<void> {
    ended = true
    try {
      await source.return?.()
    } catch {
      // Nobody waits for it any more.
    }
  }

  return {
    [Symbol.asyncIterator]() {
      return this
    },
    next() {
      if (!ended) return new Promise(pull)
      if (untold === null) return Promise.resolve(end)
      const reason = untold
      untold = null
      return new Promise((_, reject) => whenSettled(call.settle('failed', reason), () => reject(reason)))
    },
    async return() {
      call.leave()
      untold = null
      await call.settle('cancelled', null)
      return end
    }
  }
}
