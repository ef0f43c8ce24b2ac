import type { EventBus } from '../../schemas/events.ts'
import { dataOf, type Item, isAfter, itemOf } from './item.ts'
import type { Source } from './source.ts'

export interface RingOptions {
  readonly bus: EventBus
  /** How many events are kept for those who come back. */
  readonly kept: number
  /** Milliseconds for which that goes on when nobody subscribes any more. */
  readonly linger: number
  show(items: readonly Item[]): void
}

/**
 * The last events of a single process. Nothing is kept before the first subscriber, and nothing a while after the last: then
 * nobody listens to the bus.
 */
export function createRing({ bus, kept, linger, show }: RingOptions): Source {
  let items: Item[] = []
  /** Of the last event, or when listening began. What came up to `gone` is not kept. */
  let last = idAfter(null, Date.now())
  let gone = last
  let off: (() => void) | null = null
  let timer: NodeJS.Timeout | undefined

  function listen(): void {
    if (off !== null) return
    // What happened while nobody listened is not here.
    last = idAfter(last, Date.now())
    gone = last
    off = bus.on(event => {
      last = idAfter(last, event.time)
      const item = itemOf(last, event.type, dataOf(event))
      if (item === null) return
      items.push(item)
      if (items.length >= 2 * kept) {
        gone = items[items.length - kept - 1]!.id
        items = items.slice(-kept)
      }
      show([item])
    })
  }

  function forget(): void {
    off?.()
    off = null
    items = []
    gone = last
  }

  return {
    get last() {
      return last
    },
    start() {
      clearTimeout(timer)
      listen()
    },
    stop() {
      clearTimeout(timer)
      timer = setTimeout(forget, linger).unref()
    },
    ready: async () => {},
    async between(after, upTo, count) {
      const from = items.findIndex(({ id }) => isAfter(id, after))
      return from === -1 ? [] : items.slice(from, from + count).filter(({ id }) => !isAfter(id, upTo))
    },
    reaches: async id => !isAfter(id, last),
    misses: async after => isAfter(gone, after),
    close() {
      clearTimeout(timer)
      forget()
    }
  }
}

/** Grows also when the clock does not. */
function idAfter(last: string | null, time: number): string {
  if (last === null) return `${time}-0`
  const dash = last.indexOf('-')
  const before = Number(last.slice(0, dash))
  return time > before ? `${time}-0` : `${before}-${Number(last.slice(dash + 1)) + 1}`
}
