import type { Item } from './item.ts'

/** Where the events of subscribers come from: this process, or Redis. */
export interface Source {
  /** Id of the last event that was shown, or the place from where they are shown; null until that is known. */
  readonly last: string | null
  /** Somebody subscribes. */
  start(): void
  /** Nobody does any more. */
  stop(): void
  /** Resolves when `last` is known. */
  ready(): Promise<void>
  /** Events after one id and up to another, oldest first; fewer than `count`: these are all. */
  between(after: string, upTo: string, count: number): Promise<Item[]>
  /** Whether this or a later event has happened, shown here or not yet. */
  reaches(id: string): Promise<boolean>
  /** Whether events that came after an id may be gone. */
  misses(after: string): Promise<boolean>
  close(): void
}
