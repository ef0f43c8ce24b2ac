import type { Subscription } from './hub.ts'
import { bytesOf, isAfter, type Notice } from './item.ts'
import type { Source } from './source.ts'

export interface Catching {
  readonly source: Source
  /** Bytes that may wait for one subscriber. */
  readonly buffer: number
  tell(subscription: Subscription, id: string | null, type: Notice, said: object): void
  write(subscription: Subscription, bytes: Buffer): void
  /** It does not read. */
  drop(subscription: Subscription): void
  /** From here on it gets what the others get. */
  join(subscription: Subscription): void
}

/** Events that are read at once for those who come back. */
const page = 500
const pauseAfterFault = 500
/** Milliseconds in which this process has probably read what another one has. */
const soon = 10

/** Says where it begins, and hands out what is kept from there on, until nothing is left that was shown already. */
export async function bringUpToDate(
  subscription: Subscription,
  after: string | null,
  { source, buffer, tell, write, drop, join }: Catching
): Promise<void> {
  const { sink, filter } = subscription
  await source.ready()
  const isAhead = after !== null && !(await comesTo(subscription, after, source))
  const start = source.last
  if (subscription.ended || start === null) return
  const gap = after !== null && (isAhead || (await ask(subscription, () => source.misses(after))))
  let cursor = after === null || isAhead ? start : after
  let isTold = gap
  if (subscription.ended) return
  if (gap) tell(subscription, cursor, 'gateway.events.gap', { after })
  else tell(subscription, cursor, 'gateway.events.ready', {})
  for (let last = source.last; last !== null && isAfter(last, cursor); last = source.last) {
    const [from, upTo] = [cursor, last]
    const items = await ask(subscription, () => source.between(from, upTo, page))
    if (items === null) return
    // It takes its time, and what it has not got yet is not kept for its sake.
    if (!isTold && (await ask(subscription, () => source.misses(from)))) {
      tell(subscription, null, 'gateway.events.gap', { after: null })
    }
    if (subscription.ended) return
    isTold = false
    cursor = items.length < page ? last : items.at(-1)!.id
    const wanted = items.filter(item => filter.passes(item))
    if (wanted.length > 0) write(subscription, bytesOf(sink.form, wanted))
    if (sink.waiting > buffer / 2 && !(await sink.drained())) drop(subscription)
    if (subscription.ended) return
  }
  join(subscription)
}

/** Whether an event was shown here. Another process, from which somebody comes back, may have been quicker. */
async function comesTo(subscription: Subscription, id: string, source: Source): Promise<boolean> {
  while (source.last !== null && isAfter(id, source.last)) {
    if ((await ask(subscription, () => source.reaches(id))) !== true) return false
    await pause(soon)
  }
  return true
}

/** Redis may be away: then it is asked again. Null: nobody waits for the answer any more. */
async function ask<Answer>(subscription: Subscription, question: () => Promise<Answer>): Promise<Answer | null> {
  while (!subscription.ended) {
    try {
      const answer = await question()
      return subscription.ended ? null : answer
    } catch {
      await pause(pauseAfterFault)
    }
  }
  return null
}

function pause(milliseconds: number): Promise<void> {
  return new Promise(resolve => setTimeout(resolve, milliseconds).unref())
}
