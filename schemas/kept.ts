import { isGatewayError } from './errors.ts'
import { createRecent } from './recent.ts'
import type { Shared } from './shared.ts'

/**
 * Rows of the store that are kept in memory once somebody has asked for them, and what other processes say of them.
 * While Redis is down nobody is told of changes: what is kept is then read again after a second. Where the store cannot be
 * read, what is kept counts as it was.
 */
export interface Kept<Value> {
  /** In memory, however old. */
  peek(id: string): Value | undefined
  /** In memory and still to be believed; null: there is none. Undefined: only `find` knows. */
  recall(id: string): Value | null | undefined
  /** Reads what is not in memory; everybody who waits for one id shares one read. @throws what `read` throws */
  find(id: string): Promise<Value | null>
  /**
   * Changes something in its turn, those of one id one after another. What `work` resolves to is what counts from then
   * on, null: there is none any more; at once in this process, then told to the others.
   */
  change<Result extends Value | null>(id: string, work: () => Promise<Result>): Promise<Result>
  /** Forgets whatever a test finds, and what is being read. */
  forget(test: (value: Value) => boolean): void
}

export interface KeptOptions<Value> {
  read(id: string): Promise<Value | null>
  /** False while the store is known to be gone. */
  readable(): boolean
  /** Where changes are told to other processes. */
  channel: string
  shared: Shared | undefined
  /** How many stay in memory at least; at most twice as many. */
  limit: number
  /** Milliseconds since 1970. */
  now: () => number
}

interface Entry<Value> {
  readonly value: Value
  /** When it was asked for. */
  at: number
  epoch: number
}

interface Reading<Value> {
  result: Promise<Value | null>
}

interface Turn {
  ended: Promise<unknown>
  /** Another process has changed the same thing meanwhile: nobody here knows who was last. */
  overtaken: boolean
}

/** How long an unknown id is remembered as such, in milliseconds. */
const unknownFor = 10_000
/** How long anything is believed while nobody can tell us of changes. */
const deaf = 1_000
/** How long while they can: a message that was lost all the same does harm no longer than this. */
const hearing = 60_000
/** Changes that could not be told; more than these are told as "everything". */
const mostUntold = 1_000
const everything = '*'

export function createKept<Value>(options: KeptOptions<Value>): Kept<Value> {
  const { shared, now, channel } = options
  const known = createRecent<Entry<Value>>(options.limit)
  const unknown = createRecent<Entry<null>>(options.limit)
  const reads = new Map<string, Reading<Value>>()
  const turns = new Map<string, Turn>()
  const untold = new Set<string>()
  /** Grows when messages may have been missed: what was read before is read again. */
  let epoch = 0

  shared?.subscribe(channel, id => {
    if (id === everything) clear()
    else drop(id)
  })
  shared?.onState(({ down }) => {
    if (down !== null) return
    epoch++
    if (untold.size > mostUntold) shared.publish(channel, everything)
    else for (const id of untold) shared.publish(channel, id)
    untold.clear()
  })

  function believed(entry: Entry<unknown>): boolean {
    if (entry.epoch !== epoch) return false
    return shared === undefined || isYoung(entry, shared.down === null ? hearing : deaf)
  }

  /** A clock that was set back makes nothing young. */
  function isYoung(entry: Entry<unknown>, age: number): boolean {
    const passed = now() - entry.at
    return passed >= 0 && passed < age
  }

  function recall(id: string): Value | null | undefined {
    const entry = known.get(id)
    if (entry !== undefined) return believed(entry) || !options.readable() ? entry.value : undefined
    const nothing = unknown.get(id)
    return nothing !== undefined && isYoung(nothing, unknownFor) && believed(nothing) ? null : undefined
  }

  function drop(id: string): void {
    known.delete(id)
    unknown.delete(id)
    reads.delete(id)
    const turn = turns.get(id)
    if (turn !== undefined) turn.overtaken = true
  }

  function clear(): void {
    known.clear()
    unknown.clear()
    reads.clear()
    for (const turn of turns.values()) turn.overtaken = true
  }

  async function read(id: string, reading: Reading<Value>): Promise<Value | null> {
    const asked = { at: now(), epoch }
    try {
      const value = await options.read(id)
      // A read that was forgotten meanwhile may have seen what stood there before a change: nobody keeps it.
      if (reads.get(id) === reading) keep(id, value, asked)
      return value
    } catch (error) {
      const entry = known.get(id)
      if (entry === undefined || !isGone(error)) throw error
      entry.at = now()
      return entry.value
    } finally {
      if (reads.get(id) === reading) reads.delete(id)
    }
  }

  function keep(id: string, value: Value | null, asked: { at: number; epoch: number }): void {
    known.delete(id)
    unknown.delete(id)
    if (value === null) unknown.set(id, { value: null, ...asked })
    else known.set(id, { value, ...asked })
  }

  async function take<Result extends Value | null>(
    before: Promise<unknown> | undefined,
    turn: Turn,
    id: string,
    work: () => Promise<Result>
  ): Promise<Result> {
    await before
    turn.overtaken = false
    const asked = { at: now(), epoch }
    try {
      const value = await work()
      reads.delete(id)
      if (turn.overtaken) drop(id)
      else keep(id, value, asked)
      return value
    } catch (error) {
      // It may have been done all the same. What is kept is not dropped: it serves while the store is gone.
      const entry = known.get(id)
      if (entry !== undefined) entry.epoch = Number.NaN
      unknown.delete(id)
      reads.delete(id)
      throw error
    } finally {
      tell(id)
    }
  }

  function endTurn(id: string, turn: Turn): void {
    if (turns.get(id) === turn) turns.delete(id)
  }

  function tell(id: string): void {
    if (shared === undefined) return
    if (shared.down !== null && untold.size <= mostUntold) untold.add(id)
    shared.publish(channel, id)
  }

  return {
    peek: id => known.get(id)?.value,
    recall,
    find(id) {
      const value = recall(id)
      if (value !== undefined) return Promise.resolve(value)
      const running = reads.get(id)
      if (running !== undefined) return running.result
      const reading: Reading<Value> = { result: Promise.resolve(null) }
      reads.set(id, reading)
      reading.result = read(id, reading)
      return reading.result
    },
    change(id, work) {
      const turn: Turn = { ended: Promise.resolve(), overtaken: false }
      const result = take(turns.get(id)?.ended, turn, id, work)
      turns.set(id, turn)
      turn.ended = result.then(
        () => endTurn(id, turn),
        () => endTurn(id, turn)
      )
      return result
    },
    forget(test) {
      reads.clear()
      for (const [id, { value }] of [...known.entries()]) if (test(value)) known.delete(id)
    }
  }
}

function isGone(error: unknown): boolean {
  return isGatewayError(error) && error.wire === 'store_unavailable'
}
