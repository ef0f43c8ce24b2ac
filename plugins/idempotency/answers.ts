import type { Log } from '../../schemas/gateway.ts'
import type { Store, StoredAnswer } from '../../schemas/store.ts'

/** Answers that were given for a key: the latest in memory, all of them in the store. */
export interface Answers {
  /** One in memory. */
  recall(id: string): StoredAnswer | null
  /** One in the store; one that was never kept is not looked for there. @throws StoreUnavailable */
  find(id: string): Promise<StoredAnswer | null>
  keep(answer: StoredAnswer): void
  /** Remembers one that another process has kept. */
  remember(answer: StoredAnswer): void
  /** Learns which answers the store has. */
  load(): Promise<void>
  /** Forgets those that have ended. */
  purge(): Promise<void>
  /** Resolves when everything that was kept is in the store. */
  flushed(): Promise<unknown>
}

/** What an answer takes besides its bytes, about. */
const overhead = 400
/** How many ids of stored answers are known; older ones count as never given. */
const mostIds = 200_000

/** @param bytes the most that answers take in memory */
export function createAnswers(store: Store | undefined, log: Log, bytes: number, now: () => number): Answers {
  /** Used last stands last. */
  const recent = new Map<string, StoredAnswer>()
  let size = 0
  let stored = new Set<string>()
  /** What takes the place of `stored` once it has been read. */
  let loading: Set<string> | null = null
  const writing = new Map<string, Promise<void>>()

  function forget(answer: StoredAnswer): void {
    if (recent.delete(answer.id)) size -= sizeOf(answer)
  }

  function remember(answer: StoredAnswer): void {
    const before = recent.get(answer.id)
    if (before !== undefined) forget(before)
    recent.set(answer.id, answer)
    size += sizeOf(answer)
    for (const oldest of recent.values()) {
      if (size <= bytes) break
      forget(oldest)
    }
  }

  function note(id: string): void {
    loading?.add(id)
    stored.add(id)
    for (const oldest of stored) {
      if (stored.size <= mostIds) break
      stored.delete(oldest)
    }
  }

  async function write({ answers }: Store, answer: StoredAnswer): Promise<void> {
    try {
      await answers.put(answer)
      note(answer.id)
    } catch (error) {
      log.warn({ err: error }, 'an answer for an Idempotency-Key could not be stored: a restart forgets it')
    } finally {
      writing.delete(answer.id)
    }
  }

  async function load(): Promise<void> {
    if (store === undefined) return
    const meanwhile = (loading = new Set<string>())
    const ids = await store.answers.ids(mostIds)
    stored = new Set(ids.reverse())
    loading = null
    for (const id of meanwhile) note(id)
  }

  return {
    remember,
    load,
    recall(id) {
      const answer = recent.get(id)
      if (answer === undefined) return null
      recent.delete(id)
      if (answer.expiresAt <= now()) {
        size -= sizeOf(answer)
        return null
      }
      recent.set(id, answer)
      return answer
    },
    async find(id) {
      await writing.get(id)
      if (store === undefined || !stored.has(id)) return null
      const answer = await store.answers.get(id)
      if (answer === null || answer.expiresAt <= now()) return null
      remember(answer)
      return answer
    },
    keep(answer) {
      remember(answer)
      if (store !== undefined) writing.set(answer.id, write(store, answer))
    },
    async purge() {
      const time = now()
      for (const answer of [...recent.values()]) if (answer.expiresAt <= time) forget(answer)
      await store?.answers.purge(time)
      await Promise.all(writing.values())
      await load()
    },
    flushed: () => Promise.all(writing.values())
  }
}

function sizeOf({ body }: StoredAnswer): number {
  return body.byteLength + overhead
}
