import type { Redis } from 'ioredis'
import { firstId, type Item, isAfter, itemOf } from './item.ts'
import type { Source } from './source.ts'

export interface StreamOptions {
  /** For questions that are answered at once; it is not closed here. */
  readonly redis: Redis
  /** A connection that may wait; made while somebody subscribes, and closed here. */
  connect(): Redis
  readonly stream: string
  show(items: readonly Item[]): void
  /** Resolves when what was shown has gone out: no more is read before. */
  shown(): Promise<void>
  /** Events may have passed unseen. */
  missed(): void
}

type Entry = readonly [id: string, fields: readonly string[]]

/** Milliseconds that a read waits for something to come; then it looks whether anybody still wants it. */
const waitFor = 5_000
const pauseAfterFault = 250
const page = 1_000

/** The stream in Redis as the source of what subscribers see: events of all processes, each once and in one order. */
export function createStream({ redis, connect, stream, show, shown, missed }: StreamOptions): Source {
  let last: string | null = null
  let reading: Redis | null = null
  let known = Promise.withResolvers<void>()

  async function read(connection: Redis): Promise<void> {
    let connected = false
    while (reading === connection) {
      try {
        if (!connected) {
          await find(connection)
          connected = true
        }
        const entries = await next(connection)
        if (reading !== connection) return
        const end = entries.at(-1)
        if (end === undefined) continue
        last = end[0]
        show(itemsOf(entries))
        await shown()
      } catch {
        // The writer has the same Redis and says why, once.
        connected = false
        await pause()
      }
    }
  }

  /** Where the stream ends; after an interruption, whether it is still the same. */
  async function find(connection: Redis): Promise<void> {
    const [newest] = await connection.xrevrange(stream, '+', '-', 'COUNT', 1)
    if (reading !== connection) return
    const end = newest?.[0] ?? firstId
    const before = last
    // A stream that ends earlier than it did is another one.
    const isOther = before !== null && isAfter(before, end)
    if (before === null || isOther) last = end
    known.resolve()
    if (isOther) missed()
  }

  /** Asks with each read where the stream begins: under load it may have been cut behind what was read last. */
  async function next(connection: Redis): Promise<readonly Entry[]> {
    const from = last ?? firstId
    const [[oldest], answer] = await Promise.all([
      connection.xrange(stream, '-', '+', 'COUNT', 1),
      connection.xread('COUNT', page, 'BLOCK', waitFor, 'STREAMS', stream, from)
    ])
    if (reading === connection && from !== firstId && oldest !== undefined && isAfter(oldest[0], from)) missed()
    return answer?.[0]?.[1] ?? []
  }

  return {
    get last() {
      return last
    },
    start() {
      if (reading !== null) return
      reading = connect()
      void read(reading)
    },
    stop() {
      reading?.disconnect()
      reading = null
      last = null
      known = Promise.withResolvers()
    },
    ready: () => known.promise,
    async between(after, upTo, count) {
      // Entries that are no events of anybody count too: whoever asks goes on after the last.
      const found: Item[] = []
      let from = after
      while (found.length < count) {
        const entries = await redis.xrange(stream, `(${from}`, upTo, 'COUNT', count)
        found.push(...itemsOf(entries))
        if (entries.length < count) break
        from = entries.at(-1)?.[0] ?? upTo
      }
      return found
    },
    async reaches(id) {
      const [newest] = await redis.xrevrange(stream, '+', '-', 'COUNT', 1)
      return newest !== undefined && !isAfter(id, newest[0])
    },
    async misses(after) {
      if (after === firstId) return false
      const [oldest] = await redis.xrange(stream, '-', '+', 'COUNT', 1)
      return oldest === undefined || isAfter(oldest[0], after)
    },
    close() {
      reading?.disconnect()
      reading = null
      known.resolve()
    }
  }
}

function itemsOf(entries: readonly Entry[]): Item[] {
  return entries.flatMap(([id, fields]) => {
    const item = itemOf(id, fieldOf(fields, 'event_type'), fieldOf(fields, 'data'))
    return item === null ? [] : [item]
  })
}

/** Name, value, name, value. */
function fieldOf(fields: readonly string[], name: string): string | undefined {
  for (let index = 0; index < fields.length; index += 2) if (fields[index] === name) return fields[index + 1]
  return undefined
}

function pause(): Promise<void> {
  return new Promise(resolve => setTimeout(resolve, pauseAfterFault).unref())
}
