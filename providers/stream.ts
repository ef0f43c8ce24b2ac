import { UpstreamError } from '../schemas/errors.ts'
import type { Frames } from '../schemas/frames.ts'
import type { Answer } from '../schemas/gateway.ts'
import type { Reads, Reply } from './upstream.ts'

/** What a wire makes of one network read. */
export interface Step {
  readonly frames: Frames | null
  /** The provider has said that nothing follows. */
  readonly done: boolean
  /** It said that it failed: thrown after the frames. */
  readonly fault: Error | null
}

/** Reads the stream of one wire; bytes may be split anywhere. */
export interface StreamReader {
  /** @throws UpstreamError for what cannot be read on */
  read(bytes: Buffer): Step
  /** The provider has closed the connection. */
  end(): Step
}

/** The frames of a stream; an error inside it is thrown after what came before it. */
export function streamedAnswer(reply: Reply, reads: Reads, reader: StreamReader): Answer {
  if (isEncoded(reply)) {
    reads.close(false)
    throw new UpstreamError('it compressed a stream that nobody asked to.')
  }
  return { stream: true, frames: { [Symbol.asyncIterator]: () => framesOf(reads, reader) } }
}

function framesOf(reads: Reads, reader: StreamReader): AsyncIterator<Frames, undefined> {
  let over = false
  let fault: Error | null = null

  async function next(): Promise<IteratorResult<Frames, undefined>> {
    while (!over) {
      const bytes = await reads.next()
      const { frames, done, fault: failed } = bytes === null ? reader.end() : reader.read(bytes)
      if (failed !== null) {
        over = true
        fault = failed
        reads.close(false)
      } else if (done || bytes === null) {
        over = true
        reads.close(true)
      }
      if (frames === null) continue
      // Neither a comment nor an empty delta is a sign of life from a model.
      if (!over && frames.hasToken) reads.progress()
      return { done: false, value: frames }
    }
    if (fault !== null) {
      const error = fault
      fault = null
      throw error
    }
    return { done: true, value: undefined }
  }

  return {
    async next() {
      try {
        return await next()
      } catch (error) {
        over = true
        reads.close(false)
        throw error
      }
    },
    async return() {
      over = true
      reads.close(false)
      return { done: true, value: undefined }
    }
  }
}

/** True for an answer that came compressed, though nobody asks for that. */
export function isEncoded(reply: Reply): boolean {
  const encoding = reply.headers['content-encoding']
  return Boolean(encoding) && encoding !== 'identity'
}
