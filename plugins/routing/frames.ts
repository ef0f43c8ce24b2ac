import { Cancelled, UpstreamError } from '../../schemas/errors.ts'
import type { Frames } from '../../schemas/frames.ts'
import type { Expense } from '../../schemas/gateway.ts'
import type { Attempt } from '../../schemas/provider.ts'
import type { Heard } from './meter.ts'

/** What a stream may say before its first token, in bytes; above it the stream is handed on as it is. */
const mostBeforeToken = 262_144

/** Reads up to the first token and hands the stream on with what was read; fails while another target can still answer. */
export async function untilToken(
  attempt: Attempt,
  frames: AsyncIterable<Frames>,
  heard: Heard
): Promise<AsyncIterable<Frames>> {
  const source = frames[Symbol.asyncIterator]()
  try {
    const head = await headOf(source, attempt.entry, heard)
    return resume(head, source, attempt, heard)
  } catch (error) {
    // Not awaited: one that waits for a silent provider would keep us here.
    source.return?.().then(undefined, () => {})
    throw error
  }
}

async function headOf(source: AsyncIterator<Frames>, entry: Expense, heard: Heard): Promise<Frames[]> {
  const head: Frames[] = []
  let size = 0
  for (;;) {
    const read = await source.next()
    if (read.done) {
      if (heard.finished) break
      throw new UpstreamError('its stream ended before the first token.')
    }
    heard.hear(read.value, entry.metered)
    size += read.value.raw?.length ?? 0
    // A provider may send comments for as long as it likes; what is too much of them is nobody's loss.
    if (size <= mostBeforeToken || read.value.hasData) head.push(read.value)
    if (read.value.hasToken) break
    if (size > mostBeforeToken && read.value.hasData) break
  }
  entry.firstToken = performance.now() - entry.started
  entry.reads = 1
  heard.ticket.answered(entry.firstToken)
  return head
}

/** What was read, then the rest; the ledger line closes with the stream. An end before any finish_reason is a fault. */
function resume(
  head: Frames[],
  source: AsyncIterator<Frames>,
  { entry, signal }: Attempt,
  heard: Heard
): AsyncIterable<Frames> {
  const { metered } = entry
  const iterator: AsyncIterator<Frames> = {
    async next() {
      const kept = head.shift()
      if (kept !== undefined) return { done: false, value: kept }
      try {
        const read = await source.next()
        if (!read.done) {
          if (read.value.hasData) entry.reads++
          heard.hear(read.value, metered)
        } else if (heard.finished) entry.settle()
        else throw new UpstreamError('its stream ended before the answer was complete.')
        return read
      } catch (error) {
        entry.fail(error)
        throw error
      }
    },
    async return() {
      entry.fail(signal.reason ?? new Cancelled())
      await source.return?.()
      return { done: true, value: undefined }
    }
  }
  return { [Symbol.asyncIterator]: () => iterator }
}
