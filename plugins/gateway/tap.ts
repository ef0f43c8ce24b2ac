import type { Frames } from '../../schemas/frames.ts'
import type { Layer } from '../../schemas/gateway.ts'
import { Call } from './call.ts'

type Read = IteratorResult<Frames, undefined>

/**
 * The innermost layer of the stage `seal`, there only where somebody seals. What the relay does with frames is done here:
 * listeners are shown what the provider sent, and what is sealed is what the client gets, without the usage it did not ask for.
 */
export const tap: Layer = async (inference, next) => {
  const answer = await next(inference)
  if (!answer.stream || !(inference instanceof Call)) return answer
  inference.tapped = true
  return { stream: true, frames: new Tap(inference, answer.frames) }
}

/** A class for the reason of relay.ts. */
class Tap implements AsyncIterableIterator<Frames, undefined> {
  #call: Call
  #source: AsyncIterator<Frames>

  constructor(call: Call, frames: AsyncIterable<Frames>) {
    this.#call = call
    this.#source = frames[Symbol.asyncIterator]()
  }

  [Symbol.asyncIterator](): this {
    return this
  }

  async next(): Promise<Read> {
    for (;;) {
      const read = await this.#source.next()
      if (read.done) return { done: true, value: undefined }
      const kept = this.#call.inspect(read.value)
      if (kept !== null) return { done: false, value: kept }
    }
  }

  async return(): Promise<Read> {
    await this.#source.return?.()
    return { done: true, value: undefined }
  }
}
