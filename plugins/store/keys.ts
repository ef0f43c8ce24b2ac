import { isDeepStrictEqual } from 'node:util'
import type { Audit, Page } from '../../schemas/store.ts'
import type { ApiKey } from '../../schemas/tenants.ts'
import { addAudit } from './audits.ts'
import type { Database, Row } from './database.ts'
import { checkId } from './tenants.ts'
import { isStorable } from './text.ts'

const columns = 'id, tenant, body, last_used_at'

export function keyQueries(database: Database) {
  return {
    async 'keys.get'(id: string): Promise<ApiKey | null> {
      if (!isStorable(id)) return null
      const [row] = await database.all(`SELECT ${columns} FROM keys WHERE id = ?`, [id])
      return row ? keyOf(row) : null
    },

    async 'keys.list'(tenant: string, { after = '', limit }: Page): Promise<ApiKey[]> {
      if (!isStorable(tenant)) return []
      const sql = `SELECT ${columns} FROM keys WHERE tenant = ? AND id > ? ORDER BY id LIMIT ?`
      return (await database.all(sql, [tenant, after, limit])).map(keyOf)
    },

    'keys.insert'(key: ApiKey, audit: Audit): Promise<void> {
      check(key)
      return database.transaction(async inside => {
        await insert(inside, key)
        await addAudit(inside, audit)
      })
    },

    'keys.update'(keys: readonly ApiKey[], audit: Audit, expected?: ApiKey): Promise<boolean> {
      keys.forEach(check)
      return database.transaction(async inside => {
        if (expected && !(await claim(inside, expected))) return false
        for (const key of keys) {
          const found = await inside.run('UPDATE keys SET body = ? WHERE id = ? AND tenant = ?', [
            bodyOf(key),
            key.id,
            key.tenant
          ])
          if (found === 0) await insert(inside, key)
        }
        await addAudit(inside, audit)
        return true
      })
    },

    async 'keys.touch'(uses: ReadonlyArray<{ id: string; at: number }>): Promise<void> {
      const sql = 'UPDATE keys SET last_used_at = ? WHERE id = ? AND (last_used_at IS NULL OR last_used_at < ?)'
      await database.transaction(async inside => {
        // In one order everywhere: two processes that use the same keys must not wait for each other.
        for (const { id, at } of uses.toSorted((one, other) => (one.id < other.id ? -1 : 1))) {
          if (isStorable(id)) await inside.run(sql, [at, id, at])
        }
      })
    },

    async 'keys.any'(): Promise<boolean> {
      return (await database.all('SELECT 1 AS one FROM keys LIMIT 1')).length > 0
    }
  }
}

/** Locks a key's row if it is still what somebody has read; when it was last used does not matter. */
async function claim(database: Database, expected: ApiKey): Promise<boolean> {
  const [row] = await database.all(`SELECT ${columns} FROM keys WHERE id = ?`, [expected.id])
  if (row === undefined) return false
  const { lastUsedAt } = expected
  const before: ApiKey = JSON.parse(JSON.stringify(expected))
  if (!isDeepStrictEqual({ ...keyOf(row), lastUsedAt }, { ...before, lastUsedAt })) return false
  const sql = 'UPDATE keys SET body = body WHERE id = ? AND body = ?'
  return (await database.run(sql, [expected.id, row['body'] ?? null])) === 1
}

async function insert(database: Database, key: ApiKey): Promise<void> {
  const values = [key.id, key.tenant, bodyOf(key), key.lastUsedAt]
  await database.run('INSERT INTO keys (id, tenant, body, last_used_at) VALUES (?, ?, ?, ?)', values)
}

function check({ id, tenant }: ApiKey): void {
  checkId(id)
  checkId(tenant)
}

function bodyOf({ id: _, tenant: _tenant, lastUsedAt: _lastUsedAt, ...body }: ApiKey): string {
  return JSON.stringify(body)
}

function keyOf(row: Row): ApiKey {
  const used = row['last_used_at']
  return {
    ...JSON.parse(String(row['body'])),
    id: String(row['id']),
    tenant: String(row['tenant']),
    lastUsedAt: typeof used === 'number' ? used : null
  }
}
