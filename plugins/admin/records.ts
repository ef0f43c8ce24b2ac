import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import { RecordsQuery, TenantRecordsQuery } from '../../schemas/admin.ts'
import type { List, RecordAnswer } from '../../schemas/admin-answers.ts'
import type { RecordFilter } from '../../schemas/ledger.ts'
import type { Store } from '../../schemas/store.ts'
import { type ExportFormat, exportFormats, sendExport } from './export.ts'
import type { Admin } from './index.ts'
import { pageOf, placed } from './page.ts'
import { recordShape } from './shapes.ts'
import { existing } from './tenants.ts'
import { momentOf } from './time.ts'

/**
 * GET /api/tenants/:id/records and GET /api/records: pages as JSON, or everything as JSON lines or CSV. No HEAD, which would
 * read every row of an export for nothing.
 */
export function recordRoutes(scope: FastifyInstance, { gateway, now }: Admin): void {
  const { store, tenants, ledger } = gateway
  if (store === undefined || ledger === undefined) return

  scope.get<{ Querystring: RecordsQuery }>(
    '/api/records',
    { schema: { querystring: RecordsQuery }, exposeHeadRoute: false },
    (request, reply) => answer(store, request, reply, request.query, 'records', now())
  )
  if (tenants === undefined) return
  scope.get<{ Params: { id: string }; Querystring: RecordsQuery }>(
    '/api/tenants/:id/records',
    { schema: { querystring: TenantRecordsQuery }, exposeHeadRoute: false },
    async (request, reply) => {
      const { id } = await existing(tenants, request.params.id)
      return answer(store, request, reply, { ...request.query, tenant: id }, `records-${id}`, now())
    }
  )
}

async function answer(
  { ledger }: Store,
  request: FastifyRequest,
  reply: FastifyReply,
  query: RecordsQuery,
  name: string,
  now: number
): Promise<FastifyReply> {
  const filter = filterOf(query)
  const format = formatOf(query, request.headers.accept)
  const { limit, after } = pageOf(query)
  // What was answered before this request stands in it: the first page and an export wait for the journal.
  if (after === undefined) await ledger.folded()
  if (format !== null) return sendExport(reply, ledger.export(filter), format, `${name}-${day(now)}`)
  const { rows, next } = await placed(ledger.records(filter, { after, limit }))
  const list: List<RecordAnswer> = { data: rows.map(recordShape), next }
  return reply.send(list)
}

function filterOf(query: RecordsQuery): RecordFilter {
  const { tenant, key, model, status, from, to } = query
  return {
    ...(tenant === undefined ? {} : { tenant }),
    ...(key === undefined ? {} : { key }),
    ...(model === undefined ? {} : { model }),
    ...(status === undefined ? {} : { status }),
    ...(from === undefined ? {} : { from: momentOf(from, 'from') }),
    ...(to === undefined ? {} : { to: momentOf(to, 'to') })
  }
}

/** What the query names, else the first that the client accepts; null: JSON, in pages. */
function formatOf({ format }: RecordsQuery, accept: string | undefined): ExportFormat | null {
  if (format !== undefined) return format === 'json' ? null : exportFormats[format]
  for (const part of accept?.split(',') ?? []) {
    const type = part.split(';', 1)[0]?.trim().toLowerCase()
    if (type === 'application/json' || type === '*/*') return null
    for (const known of Object.values(exportFormats)) if (type !== undefined && known.types.includes(type)) return known
  }
  return null
}

function day(time: number): string {
  return new Date(time).toISOString().slice(0, 10)
}
