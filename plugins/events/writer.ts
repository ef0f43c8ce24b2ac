import { createHash, randomBytes } from 'node:crypto'
import type { Redis } from 'ioredis'
import type { EventBus } from '../../schemas/events.ts'
import type { Log } from '../../schemas/gateway.ts'

export interface WriterOptions {
  /** Connects when it is first used, and keeps nothing to be sent later. */
  readonly redis: Redis
  /** The key of the stream. */
  readonly stream: string
  /** A key that remembers the last batch of this process. */
  readonly guard: string
  /** About so many entries the stream keeps. */
  readonly maxLength: number
  /** What waits at most: events, and characters of them. */
  readonly mostEvents: number
  readonly mostLength: number
  readonly bus: EventBus
  readonly log: Log
  /** Given by tests. */
  readonly timers?: Timers
}

/** setTimeout and what ends it. */
export interface Timers {
  set(work: () => void, milliseconds: number): () => void
}

/** Writes events to the stream, in batches, and never keeps anybody waiting. */
export interface Writer {
  add(type: string, data: string): void
  readonly waiting: number
  readonly dropped: number
  /** Writes what waits, if that is possible at once. */
  close(): Promise<void>
}

/** Milliseconds that an event waits for others: it has to be in Redis within 100. */
const flushEvery = 50
/** Events that one script writes: others use the same Redis, and it does one thing at a time. */
const batchSize = 500
const pauseAfterFault = 500
/** Milliseconds without an answer after which the connection is given up. */
const patience = 5_000
/** How long a batch is remembered; an outage after which it is sent again may be as long. */
const guardFor = 600_000
const closingPatience = 1_000

/**
 * A batch that was sent and not answered may have been written: it is sent again with its number, and Redis, which knows
 * the last number of this process, writes it once. Events are lines of one argument, type and data in turn: a client that
 * sends a thousand arguments spends more time on these than on everything else here.
 */
const script = `
if redis.call('GET', KEYS[2]) == ARGV[1] then return 0 end
for type, data in string.gmatch(ARGV[4], '([^\\n]*)\\n([^\\n]*)\\n') do
  redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[2], '*', 'event_type', type, 'data', data)
end
redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[3])
return 1`
const scriptHash = createHash('sha1').update(script).digest('hex')

const realTimers: Timers = {
  set(work, milliseconds) {
    const timer = setTimeout(work, milliseconds).unref()
    return () => clearTimeout(timer)
  }
}

export function createWriter(options: WriterOptions): Writer {
  const { redis, stream, guard, maxLength, mostEvents, mostLength, bus, log, timers = realTimers } = options
  /** Each one a line of its type and a line of its data. */
  let waiting: string[] = []
  /** Characters of what waits and of what is being written. */
  let length = 0
  let batch: string[] = []
  /** Another process may have had the same name. */
  const run = randomBytes(9).toString('base64url')
  let number = 0
  let dropped = 0
  /** Dropped, and nobody was told yet. */
  let untold = 0
  let fault: string | null = null
  let timer: (() => void) | null = null
  let sending: Promise<void> | null = null
  let closed = false

  function add(type: string, data: string): void {
    // JSON holds no line end; a name of somebody's own should not either.
    const entry = `${type.includes('\n') ? type.replaceAll('\n', ' ') : type}\n${data}\n`
    if (waiting.length + batch.length >= mostEvents || length + entry.length > mostLength) {
      dropped++
      untold++
      return
    }
    waiting.push(entry)
    length += entry.length
    if (waiting.length >= batchSize && fault === null) flush()
    else schedule(flushEvery)
  }

  function schedule(milliseconds: number): void {
    if (timer !== null || sending !== null || closed) return
    timer = timers.set(flush, milliseconds)
  }

  function flush(): void {
    stopTimer()
    sending ??= send().finally(sent)
  }

  function stopTimer(): void {
    timer?.()
    timer = null
  }

  function sent(): void {
    sending = null
    if (fault !== null) schedule(pauseAfterFault)
    else if (waiting.length > 0) schedule(flushEvery)
  }

  async function send(): Promise<void> {
    try {
      while (batch.length > 0 || waiting.length > 0) {
        if (batch.length === 0) take()
        await within(write(batch))
        for (const entry of batch) length -= entry.length
        batch = []
        if (fault !== null || untold > 0) recovered()
      }
    } catch (error) {
      failed(error)
    }
  }

  /** The next batch, which keeps its number until it is written. */
  function take(): void {
    batch = waiting.slice(0, batchSize)
    waiting = waiting.slice(batchSize)
    number++
  }

  async function write(entries: readonly string[]): Promise<void> {
    if (redis.status === 'wait' || redis.status === 'end') await redis.connect()
    const args = [stream, guard, `${run}:${number}`, maxLength, guardFor, Buffer.from(entries.join(''))]
    try {
      await redis.evalsha(scriptHash, 2, ...args)
    } catch (error) {
      if (!(error instanceof Error) || !error.message.startsWith('NOSCRIPT')) throw error
      await redis.eval(script, 2, ...args)
    }
  }

  /** One line for each outage, whatever it is. */
  function failed(error: unknown): void {
    if (fault !== null || closed) return
    // The address and the password are in no message of Redis, and what the client says of its connection is a code.
    fault = error instanceof Error && error.name === 'ReplyError' ? error.message.slice(0, 200) : 'it does not answer'
    log.warn(
      { stream, reason: fault },
      'events cannot be written to Redis: they wait, and are dropped when too many do'
    )
  }

  function recovered(): void {
    fault = null
    log.info({ stream, dropped: untold }, 'events are written to Redis again')
    const lost = untold
    untold = 0
    if (lost > 0 && bus.heard) bus.emit('gateway.events.dropped', { dropped: lost })
  }

  /** A connection that is silent is given up, so that another one can be made. */
  async function within(work: Promise<void>): Promise<void> {
    const late = Promise.withResolvers<never>()
    const stop = timers.set(() => {
      redis.disconnect(true)
      late.reject(new Error('it does not answer'))
    }, patience)
    work.catch(() => {})
    try {
      await Promise.race([work, late.promise])
    } finally {
      stop()
    }
  }

  return {
    add,
    get waiting() {
      return waiting.length + batch.length
    },
    get dropped() {
      return dropped
    },
    async close() {
      stopTimer()
      const patient = Promise.withResolvers<void>()
      const limit = setTimeout(patient.resolve, closingPatience)
      const last = async () => {
        await sending
        if (fault === null && waiting.length > 0) flush()
        await sending
      }
      await Promise.race([last(), patient.promise])
      clearTimeout(limit)
      closed = true
      // It may have failed meanwhile, to be tried again.
      stopTimer()
      const left = waiting.length + batch.length
      if (left > 0) {
        dropped += left
        log.warn({ stream, dropped: left }, 'events could not be written to Redis before the end')
      }
      redis.disconnect()
    }
  }
}
