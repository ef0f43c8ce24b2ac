import { readdirSync, readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import type { Database } from './database.ts'

interface Migration {
  readonly version: number
  readonly name: string
  readonly sql: string
}

/** Held to the end of each migration: several processes may start at once. */
const lock = "SELECT pg_advisory_xact_lock(hashtextextended('fastify-model-gateway migrations', 0))"

/**
 * Brings a database to what this code expects: forward only, each step in a transaction of its own.
 * @throws Error with one line for the operator when a newer gateway has been here
 */
export async function migrate(database: Database): Promise<void> {
  const migrations = migrationsFor(database.kind)
  const newest = migrations.at(-1)?.version ?? 0
  let version = -1
  while (version < newest) {
    version = await database.transaction(async inside => {
      if (inside.kind === 'postgres') await inside.all(lock)
      await inside.script(
        'CREATE TABLE IF NOT EXISTS migrations (version INTEGER PRIMARY KEY, name TEXT NOT NULL, applied_at BIGINT NOT NULL)'
      )
      const [row] = await inside.all('SELECT max(version) AS version FROM migrations')
      const current = Number(row?.['version'] ?? 0)
      if (current > newest) {
        throw new Error(
          `The database is of version ${current}, this gateway knows versions up to ${newest}: a newer gateway has used ` +
            'it. Start that one, or set store (DATABASE_URL) to another database.'
        )
      }
      const next = migrations.find(migration => migration.version > current)
      if (next === undefined) return newest
      await inside.script(next.sql)
      await inside.run('INSERT INTO migrations (version, name, applied_at) VALUES (?, ?, ?)', [
        next.version,
        next.name,
        Date.now()
      ])
      return next.version
    })
  }
}

/** `migrations/<kind>/0001-initial.sql`, in order. */
function migrationsFor(kind: Database['kind']): Migration[] {
  const folder = fileURLToPath(new URL(`./migrations/${kind}/`, import.meta.url))
  return readdirSync(folder)
    .flatMap(file => {
      const [, version, name] = /^(\d{4})-(.+)\.sql$/.exec(file) ?? []
      return version && name ? [{ version: Number(version), name, sql: readFileSync(folder + file, 'utf8') }] : []
    })
    .sort((one, other) => one.version - other.version)
}
