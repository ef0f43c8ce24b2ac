import { InvalidRequest } from '../../schemas/errors.ts'
import type { Audit, AuditRecord, Rows } from '../../schemas/store.ts'
import type { Database, Row } from './database.ts'

/** An index holds no longer text. */
const longestSubject = 500

/** Adds one, inside the transaction of what it is about. */
export async function addAudit(database: Database, audit: Audit): Promise<void> {
  await database.run('INSERT INTO audits (time, actor, action, subject, before, after) VALUES (?, ?, ?, ?, ?, ?)', [
    Date.now(),
    audit.actor,
    audit.action,
    audit.subject.slice(0, longestSubject),
    json(audit.before),
    json(audit.after)
  ])
}

export async function listAudits(
  database: Database,
  { subject }: { subject?: string },
  { after, limit }: { after?: string; limit: number }
): Promise<Rows<AuditRecord>> {
  if (after !== undefined && !/^\d{1,15}$/.test(after)) throw new InvalidRequest('`after` is no place in this list.')
  const conditions = [
    ...(after === undefined ? [] : [{ sql: 'id < ?', value: Number(after) }]),
    ...(subject === undefined ? [] : [{ sql: 'subject = ?', value: subject.slice(0, longestSubject) }])
  ]
  const where = conditions.length === 0 ? '' : `WHERE ${conditions.map(({ sql }) => sql).join(' AND ')}`
  const rows = await database.all(
    `SELECT id, time, actor, action, subject, before, after FROM audits ${where} ORDER BY id DESC LIMIT ?`,
    [...conditions.map(({ value }) => value), limit + 1]
  )
  const page = rows.slice(0, limit).map(auditOf)
  return { rows: page, next: rows.length > limit ? String(page.at(-1)?.id) : null }
}

function auditOf(row: Row): AuditRecord {
  return {
    id: Number(row['id']),
    time: Number(row['time']),
    actor: String(row['actor']),
    action: String(row['action']),
    subject: String(row['subject']),
    before: parsed(row['before']),
    after: parsed(row['after'])
  }
}

function json(value: object | null): string | null {
  return value === null ? null : JSON.stringify(value)
}

function parsed(text: Row[string] | undefined): object | null {
  return typeof text === 'string' ? JSON.parse(text) : null
}
