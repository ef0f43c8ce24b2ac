import type { Principal } from '../../schemas/gateway.ts'
import { bringUpToDate } from './catch-up.ts'
import type { Filter, Wish } from './filter.ts'
import { bytesOf, type Form, type Item, type Notice, notice } from './item.ts'
import type { Source } from './source.ts'

/** Why a subscription ends from our side. */
export type Ending = 'slow' | 'closing' | 'revoked'

/** Who gets events: one connection. */
export interface Sink {
  readonly form: Form
  /** Bytes that it has not taken. */
  readonly waiting: number
  write(bytes: Buffer): void
  /** A sign of life. `id`: that of the last event that passed by, wanted or not; null: more is on its way. */
  beat(id: string | null): void
  /** Resolves when it has taken what waits, or is gone; false: it has not for a long time. */
  drained(): Promise<boolean>
  end(why: Ending): void
  /** Ends it now. */
  cut(): void
}

/** Who subscribes, for the case that they may not any more. */
export interface Reader {
  readonly tenant: string
  readonly key: string | null
  readonly kind: Principal['kind']
  /** Until when, in milliseconds since 1970; null: nobody has set an end. */
  until: number | null
}

export interface HubOptions {
  /** Bytes that may wait for one subscriber. */
  readonly buffer: number
  /** Milliseconds since 1970. */
  readonly now: () => number
  /** A subscriber failed in a way of ours. */
  failed(error: unknown): void
}

/** Everybody who listens to `GET /events` of this process. */
export interface Hub {
  /** @returns what ends it, when the connection is gone */
  add(sink: Sink, wish: Wish, reader: Reader): () => void
  show(items: readonly Item[]): void
  /** Resolves when all that was shown has been written. */
  shown(): Promise<void>
  /** Tells everybody that events may have passed unseen. */
  missed(): void
  /** Ends those who may not listen any more from then on, in milliseconds since 1970. */
  revoke(test: (reader: Reader) => boolean, from: number): void
  readonly size: number
  readonly slow: number
  /** Writes what was shown and tells everybody that this ends, without waiting for anybody. */
  close(): void
  /** Resolves when the connections of all subscribers have ended; those that have not by then are cut. */
  emptied(patience: number): Promise<void>
}

export interface Subscription {
  readonly sink: Sink
  readonly reader: Reader
  readonly filter: Filter
  ended: boolean
  /** The first batch that it gets; what was before it has got in another way. */
  from: number
}

/** Subscribers that want the same in the same form share its bytes. */
interface Group {
  readonly form: Form
  readonly filter: Filter
  readonly members: Set<Subscription>
}

interface Batch {
  readonly number: number
  readonly items: readonly Item[]
}

/** Milliseconds in which events are collected: one write for each subscriber and batch. */
const collectFor = 25
/** Events that wait to be written to those who read them. */
const mostQueued = 50_000
/** Writes in one turn of the event loop: calls have their turn in between. */
const writesAtOnce = 100
/** Milliseconds between signs of life. */
const beatEvery = 15_000

export function createHub(source: () => Source, { buffer, now, failed }: HubOptions): Hub {
  const subscriptions = new Set<Subscription>()
  const groups = new Map<string, Group>()
  /** Connections, also of those whom we have ended and who have not gone yet. */
  const open = new Set<Sink>()
  let empty: (() => void) | null = null
  let current: Item[] = []
  /** Shown and not written yet. */
  let queued = 0
  let number = 0
  let batches: Batch[] = []
  let timer: NodeJS.Timeout | undefined
  let writing: Promise<void> | null = null
  let writes: Generator<void> | null = null
  let beats: NodeJS.Timeout | undefined
  let slow = 0

  function show(items: readonly Item[]): void {
    for (const item of items) current.push(item)
    queued += items.length
    if (queued > mostQueued) skip()
    timer ??= setTimeout(flush, collectFor).unref()
  }

  /** More is shown than can be written. */
  function skip(): void {
    batches = []
    current = []
    queued = 0
    missed()
  }

  function missed(): void {
    for (const { members } of groups.values()) {
      for (const subscription of members) tell(subscription, null, 'gateway.events.gap', { after: null })
    }
  }

  function flush(): void {
    clearTimeout(timer)
    timer = undefined
    cutBatch()
    if (batches.length > 0) writing ??= writeAll().finally(written)
  }

  function written(): void {
    writing = null
    if (batches.length > 0) flush()
  }

  /** What was shown until now is one batch: whoever joins from here on does not get it. */
  function cutBatch(): void {
    if (current.length === 0) return
    batches.push({ number: number++, items: current })
    current = []
  }

  async function writeAll(): Promise<void> {
    writes = writesOf()
    for (let count = 1; writes.next().done !== true; count++) if (count % writesAtOnce === 0) await turn()
    writes = null
  }

  /** Batch by batch, one subscriber at a time. */
  function* writesOf(): Generator<void> {
    for (let batch = batches.shift(); batch !== undefined; batch = batches.shift()) {
      for (const { form, filter, members } of [...groups.values()]) {
        const items = batch.items.filter(item => filter.passes(item))
        if (items.length === 0) continue
        const bytes = bytesOf(form, items)
        for (const subscription of [...members]) {
          if (subscription.from <= batch.number) write(subscription, bytes)
          yield
        }
      }
      queued -= Math.min(queued, batch.items.length)
    }
  }

  /** Nobody waits for those who do not read. */
  function write(subscription: Subscription, bytes: Buffer): void {
    if (subscription.ended) return
    if (subscription.sink.waiting > buffer) drop(subscription)
    else subscription.sink.write(bytes)
  }

  function drop(subscription: Subscription): void {
    if (subscription.ended) return
    slow++
    end(subscription, 'slow')
  }

  function tell({ sink }: Subscription, id: string | null, type: Notice, said: object): void {
    sink.write(bytesOf(sink.form, [notice(id, type, said)]))
  }

  function end(subscription: Subscription, why: Ending): void {
    remove(subscription)
    subscription.sink.end(why)
  }

  function remove(subscription: Subscription): void {
    if (subscription.ended) return
    subscription.ended = true
    subscriptions.delete(subscription)
    const key = keyOf(subscription)
    const group = groups.get(key)
    group?.members.delete(subscription)
    if (group?.members.size === 0) groups.delete(key)
    if (subscriptions.size > 0) return
    source().stop()
    clearInterval(beats)
    beats = undefined
  }

  /** From here on it gets what the others get. */
  function join(subscription: Subscription): void {
    cutBatch()
    subscription.from = number
    const key = keyOf(subscription)
    const { filter, sink } = subscription
    const group = groups.get(key) ?? { form: sink.form, filter, members: new Set() }
    groups.set(key, group)
    group.members.add(subscription)
  }

  function beat(): void {
    endOverdue()
    const isIdle = queued === 0
    for (const { sink, from } of [...subscriptions]) {
      sink.beat(isIdle && from !== Number.POSITIVE_INFINITY ? source().last : null)
    }
  }

  function endOverdue(): void {
    const time = now()
    for (const subscription of [...subscriptions]) {
      const { until } = subscription.reader
      if (until !== null && time >= until) end(subscription, 'revoked')
    }
  }

  return {
    add(sink, { filter, after }, reader) {
      const subscription: Subscription = { sink, filter, reader, ended: false, from: Number.POSITIVE_INFINITY }
      if (subscriptions.size === 0) source().start()
      subscriptions.add(subscription)
      beats ??= setInterval(beat, beatEvery).unref()
      bringUpToDate(subscription, after, { source: source(), buffer, tell, write, drop, join }).catch(failed)
      open.add(sink)
      return () => {
        remove(subscription)
        open.delete(sink)
        if (open.size === 0) empty?.()
      }
    },
    show,
    async shown() {
      flush()
      await writing
    },
    missed,
    revoke(test, from) {
      for (const { reader } of subscriptions) if (test(reader)) reader.until = Math.min(reader.until ?? from, from)
      endOverdue()
    },
    get size() {
      return subscriptions.size
    },
    get slow() {
      return slow
    },
    close() {
      clearTimeout(timer)
      cutBatch()
      // What was begun goes on where it is.
      for (const left = writes ?? writesOf(); left.next().done !== true; );
      for (const subscription of [...subscriptions]) end(subscription, 'closing')
    },
    async emptied(patience) {
      if (open.size === 0) return
      const { promise, resolve } = Promise.withResolvers<void>()
      empty = resolve
      const limit = setTimeout(() => {
        for (const sink of open) sink.cut()
        resolve()
      }, patience)
      await promise
      clearTimeout(limit)
    }
  }
}

function keyOf({ sink, filter }: Subscription): string {
  return `${sink.form} ${filter.key}`
}

function turn(): Promise<void> {
  return new Promise(resolve => setImmediate(resolve))
}
