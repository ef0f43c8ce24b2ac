// The routing table, and changing it while calls run.

/** What may be changed without a restart: names, and what stands behind them. */
export interface RoutingTable<Model = unknown> {
  /** Aliases. Without any, names of the form `provider/model` are routed. */
  readonly models?: Readonly<Record<string, Model>>
  /** The alias for a request that names neither model nor task. */
  readonly defaultModel?: string
  /** Which alias a request's `task` means. */
  readonly tasks?: Readonly<Record<string, string>>
  /** Of the configuration as it is written, without secrets: SHA-256 in hex. */
  readonly hash?: string
  /** Paths of the configuration that differ too, and only count after a restart. */
  readonly restart?: readonly string[]
}

/** One thing that differs between two tables. `before` or `after` is absent where there is none. */
export interface Change {
  /** `models.chat`, `tasks.vitals`, `defaultModel`. */
  readonly path: string
  readonly before?: unknown
  readonly after?: unknown
}

/** What a change of the table comes to. */
export interface Reloaded {
  readonly changes: readonly Change[]
  /** Paths of the configuration that differ too, and only count after a restart. */
  readonly restart: readonly string[]
  /** Of the new configuration; null where nobody computed one. */
  readonly hash: string | null
  /** False for a dry run, and where nothing differs. */
  readonly applied: boolean
}

/**
 * Reads the table again and puts it in place of the present one; calls in progress keep theirs. `actor` stands in the audit.
 * @throws ConfigError and what reading throws: nothing changes
 */
export type Reload = (options?: { dryRun?: boolean; actor?: string }) => Promise<Reloaded>
