import type { StoredAnswer } from '../../schemas/store.ts'
import type { Database } from './database.ts'

/** Rows that one statement deletes, so that nobody waits long for it. */
const batch = 500

export function answerQueries(database: Database) {
  return {
    async 'answers.get'(id: string): Promise<StoredAnswer | null> {
      const sql = 'SELECT fingerprint, stream, body, expires_at FROM answers WHERE id = ? AND expires_at > ?'
      const [row] = await database.all(sql, [id, Date.now()])
      if (row === undefined || !(row['body'] instanceof Uint8Array)) return null
      return {
        id,
        fingerprint: String(row['fingerprint']),
        stream: row['stream'] === 1,
        // A copy of its own: what a view is cut out of would travel with it.
        body: new Uint8Array(row['body']),
        expiresAt: Number(row['expires_at'])
      }
    },

    async 'answers.put'({ id, fingerprint, stream, body, expiresAt }: StoredAnswer): Promise<void> {
      await database.run(
        `INSERT INTO answers (id, fingerprint, stream, body, expires_at) VALUES (?, ?, ?, ?, ?)
          ON CONFLICT (id) DO UPDATE SET fingerprint = excluded.fingerprint, stream = excluded.stream,
            body = excluded.body, expires_at = excluded.expires_at`,
        [id, fingerprint, stream ? 1 : 0, body, expiresAt]
      )
    },

    async 'answers.ids'(limit: number): Promise<string[]> {
      const sql = 'SELECT id FROM answers WHERE expires_at > ? ORDER BY expires_at DESC LIMIT ?'
      return (await database.all(sql, [Date.now(), limit])).map(({ id }) => String(id))
    },

    async 'answers.purge'(now: number): Promise<void> {
      const sql = 'DELETE FROM answers WHERE id IN (SELECT id FROM answers WHERE expires_at <= ? LIMIT ?)'
      while ((await database.run(sql, [now, batch])) === batch);
    }
  }
}
