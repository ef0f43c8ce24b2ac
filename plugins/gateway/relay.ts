import { Cancelled } from '../../schemas/errors.ts'
import type { Frames } from '../../schemas/frames.ts'
import type { Call } from './call.ts'
import { asError } from './ending.ts'

type Read = IteratorResult<Frames, undefined>

const end: Read = { done: true, value: undefined }

/**
 * The frames of a call on their way to its transport: listeners see them, a usage event nobody asked for is taken out,
 * and the end is announced only after the call has settled. Not a generator: one that never started skips its `finally`,
 * and one that waits for a silent upstream cannot be ended from outside. And a class: closures that end up on a Call make
 * V8 keep what they lead to until the next full collection, which cost a third of the throughput of short streams.
 */
export class Relay implements AsyncIterableIterator<Frames, undefined> {
  #call: Call
  #source: AsyncIterator<Frames>
  #ended = false
  #reading = false
  #draining = false
  /** Why the call ended from outside: the next read is told. */
  #untold: Error | null = null

  constructor(call: Call, frames: AsyncIterable<Frames>) {
    this.#call = call
    this.#source = frames[Symbol.asyncIterator]()
    call.relay = this
  }

  [Symbol.asyncIterator](): this {
    return this
  }

  async next(): Promise<Read> {
    // Whoever left gets no more of what goes on without them.
    if (this.#draining) throw new Cancelled()
    const read = await this.#read()
    if (!this.#draining) return read
    if (!read.done) void this.#pump()
    throw new Cancelled()
  }

  async #read(): Promise<Read> {
    while (!this.#ended) {
      try {
        this.#reading = true
        const read = await this.#source.next()
        this.#reading = false
        if (this.#ended) break
        if (read.done) return await this.#finish()
        const kept = this.#call.tapped ? read.value : this.#call.inspect(read.value)
        if (kept !== null) return { done: false, value: kept }
      } catch (error) {
        this.#reading = false
        // What the source says of a call that was ended from outside is only an echo of the aborted signal.
        if (this.#ended) break
        void this.#close()
        await this.#call.settle('failed', asError(error))
        throw error
      }
    }
    return this.#tell()
  }

  async return(): Promise<Read> {
    this.#call.leave()
    if (this.#draining) return end
    this.#untold = null
    await this.#call.settle('cancelled', null)
    return end
  }

  /** The call was ended from outside, read or not; a read that waits ends with the source, whose signal is aborted. */
  stop(reason: Error): void {
    if (this.#ended) return
    void this.#close()
    this.#untold = reason
  }

  /** The caller has left and the call goes on: reads to the end, for those who listen and for the books. */
  drain(): void {
    if (this.#ended || this.#draining) return
    this.#draining = true
    // A read that somebody waits for comes back by itself and goes on from there.
    if (!this.#reading) void this.#pump()
  }

  async #pump(): Promise<void> {
    try {
      for (let read = await this.#read(); !read.done; ) read = await this.#read()
    } catch {
      // The call has settled with it; nobody else waits.
    }
  }

  async #finish(): Promise<Read> {
    this.#ended = true
    await this.#call.settle('completed', null)
    return end
  }

  async #tell(): Promise<Read> {
    if (this.#untold === null) return end
    const reason = this.#untold
    this.#untold = null
    await this.#call.settle('failed', reason)
    throw reason
  }

  /** Not awaited: a source that waits for a silent provider would keep us here; the aborted signal ends it. */
  async #close(): Promise<void> {
    this.#ended = true
    try {
      await this.#source.return?.()
    } catch {
      // Nobody waits for it any more.
    }
  }
}
