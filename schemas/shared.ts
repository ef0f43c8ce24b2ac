// State shared by several processes: Redis, or nothing.

/** What runs atomically in Redis. Compiled once, sent by its hash. */
export interface Script {
  readonly lua: string
}

/** Redis as the other plugins see it. */
export interface Shared {
  /** This process: the store's instance where there is a store. */
  readonly instance: string
  /** What stands before every key. */
  readonly prefix: string
  /** What happens while Redis cannot be asked. */
  readonly onRedisDown: 'deny' | 'local-share'
  /** Null while Redis answers; otherwise why it does not, without secrets. */
  readonly down: string | null
  /** Processes that were alive when Redis last answered, this one too; at least 1. */
  readonly processes: number
  /** Ids of those processes. */
  readonly instances: readonly string[]
  /**
   * Names the data in Redis: another one after Redis came back without it, or with old data. Null before the first answer.
   * Scripts that must not run on other data compare it with the field `id` of the hash `generation`.
   */
  readonly generation: string | null
  /**
   * Runs a script within the deadline; `keys` without the prefix.
   * @throws SharedUnavailable at once while the breaker is open; what was sent may have been done all the same
   */
  run(script: Script, keys: readonly string[], args: ReadonlyArray<string | number>): Promise<unknown>
  get(key: string): Promise<Buffer | null>
  /** False: `onlyNew` and there is one. `ttl` in milliseconds. */
  set(key: string, value: string | Uint8Array, ttl: number, onlyNew?: boolean): Promise<boolean>
  delete(key: string): Promise<void>
  /** Tells every other process; not this one. Lost while Redis is down: whoever listens has to mistrust what it holds then. */
  publish(channel: string, message: string): void
  subscribe(channel: string, listener: (message: string) => void): void
  /**
   * Redis went away (a reason), came back (null), or came back without its data (`lost`). Null is also told when messages
   * of others may have been missed, and when others may have taken this process for dead.
   */
  onState(listener: (state: { down: string | null; lost: boolean }) => void): void
  /** A process has been silent for longer than its lease. Called in every process that is alive. */
  onDeath(listener: (instance: string) => void): void
}

declare module './gateway.ts' {
  interface Gateway {
    /** Absent: a single process. */
    shared?: Shared
  }
}
