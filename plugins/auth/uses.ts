import type { Log } from '../../schemas/gateway.ts'
import type { Store } from '../../schemas/store.ts'

/** When keys were last used: noted in memory, written in batches. */
export interface Uses {
  note(id: string, at: number): void
  /** What is not written yet. */
  latest(id: string): number | undefined
  /** Writes the rest. */
  close(): Promise<void>
}

/** @param every milliseconds for which uses are gathered */
export function createUses(store: Store, log: Log, every: number): Uses {
  let noted = new Map<string, number>()
  let timer: NodeJS.Timeout | undefined
  let writing: Promise<void> = Promise.resolve()

  function write(): Promise<void> {
    clearTimeout(timer)
    timer = undefined
    if (noted.size > 0) {
      const uses = Array.from(noted, ([id, at]) => ({ id, at }))
      noted = new Map()
      writing = writing.then(() => store.keys.touch(uses)).catch(lost)
    }
    return writing
  }

  function lost(error: unknown): void {
    log.debug({ err: error }, 'the last use of keys was not written')
  }

  return {
    note(id, at) {
      noted.set(id, at)
      timer ??= setTimeout(write, every).unref()
    },
    latest: id => noted.get(id),
    close: write
  }
}
