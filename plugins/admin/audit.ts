import type { FastifyInstance } from 'fastify'
import { AuditQuery } from '../../schemas/admin.ts'
import type { AuditAnswer, List } from '../../schemas/admin-answers.ts'
import { usdOf } from '../../schemas/money.ts'
import type { AuditRecord } from '../../schemas/store.ts'
import type { Admin } from './index.ts'
import { pageOf, placed } from './page.ts'
import { isoOf } from './time.ts'

/** GET /api/audit: who changed what, newest first. */
export function auditRoutes(scope: FastifyInstance, { gateway }: Admin): void {
  const { store } = gateway
  if (store === undefined) return
  scope.get<{ Querystring: AuditQuery }>(
    '/api/audit',
    { schema: { querystring: AuditQuery } },
    async ({ query }): Promise<List<AuditAnswer>> => {
      const { limit, after } = pageOf(query)
      const { subject } = query
      const { rows, next } = await placed(store.audits.list(subject === undefined ? {} : { subject }, { after, limit }))
      return { data: rows.map(auditShape), next }
    }
  )
}

function auditShape({ id, time, actor, action, subject, before, after }: AuditRecord): AuditAnswer {
  return { id, time: isoOf(time), actor, action, subject, before: shown(before), after: shown(after) }
}

const amounts: Readonly<Record<string, string>> = {
  limit: 'limit_usd',
  maxRequest: 'max_request_usd',
  amount: 'amount_usd',
  spent: 'spend_usd',
  held: 'reserved_usd'
}

/** What the books hold, in the words and units of HTTP. */
function shown(value: object | null): Record<string, unknown> | null {
  if (value === null) return null
  const answer: Record<string, unknown> = {}
  for (const [name, held] of Object.entries(value)) {
    if (name === 'hash') continue
    const amount = Object.hasOwn(amounts, name) ? amounts[name] : undefined
    if (amount !== undefined && (typeof held === 'number' || typeof held === 'bigint')) answer[amount] = usdOf(held)
    else if (amount !== undefined) answer[amount] = held
    else if (name.endsWith('At') && typeof held === 'number') answer[snake(name)] = isoOf(held)
    else if (name !== 'metadata' && isPlain(held)) answer[snake(name)] = shown(held)
    else answer[snake(name)] = held
  }
  return answer
}

function isPlain(value: unknown): value is object {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

function snake(name: string): string {
  return name.replace(/[A-Z]/g, letter => `_${letter.toLowerCase()}`)
}
