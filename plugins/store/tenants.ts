import { isDeepStrictEqual } from 'node:util'
import { InvalidRequest } from '../../schemas/errors.ts'
import type { Audit, Page, StoredTenant } from '../../schemas/store.ts'
import { addAudit } from './audits.ts'
import type { Database, Row } from './database.ts'
import { isStorable } from './text.ts'

const columns = 'id, body, created_at'
/** Bytes; an index holds no longer ones. */
const longestId = 500

export function tenantQueries(database: Database) {
  return {
    async 'tenants.get'(id: string): Promise<StoredTenant | null> {
      if (!isStorable(id)) return null
      const [row] = await database.all(`SELECT ${columns} FROM tenants WHERE id = ?`, [id])
      return row ? tenantOf(row) : null
    },

    async 'tenants.list'({ after = '', limit }: Page): Promise<StoredTenant[]> {
      const sql = `SELECT ${columns} FROM tenants WHERE id > ? ORDER BY id LIMIT ?`
      return (await database.all(sql, [after, limit])).map(tenantOf)
    },

    'tenants.insert'(tenant: StoredTenant, audit: Audit): Promise<boolean> {
      checkId(tenant.id)
      return database.transaction(async inside => {
        const sql = 'INSERT INTO tenants (id, body, created_at) VALUES (?, ?, ?) ON CONFLICT (id) DO NOTHING'
        if ((await inside.run(sql, [tenant.id, bodyOf(tenant), tenant.createdAt])) === 0) return false
        await addAudit(inside, audit)
        return true
      })
    },

    async 'tenants.update'(tenant: StoredTenant, audit: Audit, expected?: StoredTenant): Promise<boolean> {
      if (!isStorable(tenant.id)) return false
      return database.transaction(async inside => {
        const [row] = await inside.all(`SELECT ${columns} FROM tenants WHERE id = ?`, [tenant.id])
        if (row === undefined || (expected && !isDeepStrictEqual(tenantOf(row), plain(expected)))) return false
        // Whoever came in between has changed the text.
        const sql = 'UPDATE tenants SET body = ? WHERE id = ? AND body = ?'
        if ((await inside.run(sql, [bodyOf(tenant), tenant.id, row['body'] ?? null])) === 0) return false
        await addAudit(inside, audit)
        return true
      })
    },

    async 'tenants.remove'(id: string, audit: Audit): Promise<boolean> {
      if (!isStorable(id)) return false
      return database.transaction(async inside => {
        if ((await inside.run('DELETE FROM tenants WHERE id = ?', [id])) === 0) return false
        await inside.run('DELETE FROM keys WHERE tenant = ?', [id])
        await addAudit(inside, audit)
        return true
      })
    }
  }
}

/** @throws InvalidRequest for one that cannot be stored as it is */
export function checkId(id: string): void {
  if (id === '' || !isStorable(id) || Buffer.byteLength(id) > longestId) {
    throw new InvalidRequest(`An id is a text of 1 to ${longestId} bytes without NUL.`)
  }
}

/** As it comes back from the database: without what JSON leaves out. */
function plain(tenant: StoredTenant): StoredTenant {
  return JSON.parse(JSON.stringify(tenant))
}

function bodyOf({ id: _, source: _source, createdAt: _createdAt, ...body }: StoredTenant): string {
  return JSON.stringify(body)
}

function tenantOf(row: Row): StoredTenant {
  return {
    ...JSON.parse(String(row['body'])),
    id: String(row['id']),
    source: 'api',
    createdAt: Number(row['created_at'])
  }
}
