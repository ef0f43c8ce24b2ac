import type { FastifyInstance } from 'fastify'
import { PageQuery, TenantChange, TenantCreation } from '../../schemas/admin.ts'
import type { List, TenantAnswer } from '../../schemas/admin-answers.ts'
import { tenantName } from '../../schemas/atoms.ts'
import { detail, InvalidRequest, TenantNotFound } from '../../schemas/errors.ts'
import type { Gateway } from '../../schemas/gateway.ts'
import type { LedgerRecord } from '../../schemas/ledger.ts'
import { nanoOf } from '../../schemas/money.ts'
import { type Tenant, type Tenants, tenantDefaults } from '../../schemas/tenants.ts'
import type { Admin } from './index.ts'
import { pageOf, sliced } from './page.ts'
import { recordShape, tenantShape } from './shapes.ts'
import { spendingOf } from './spending.ts'

/** Characters of JSON. */
const longestMetadata = 16_384
const deepestMetadata = 16
const named = new RegExp(tenantName)

/** GET POST /api/tenants, GET PUT DELETE /api/tenants/:id. */
export function tenantRoutes(scope: FastifyInstance, { gateway, now, actor }: Admin): void {
  const { tenants } = gateway
  if (tenants === undefined) return

  scope.get<{ Querystring: PageQuery }>(
    '/api/tenants',
    { schema: { querystring: PageQuery } },
    async ({ query }): Promise<List<TenantAnswer>> => {
      const { limit, after } = pageOf(query)
      const { rows, next } = sliced(await tenants.list({ after, limit: limit + 1 }), limit)
      return { data: await shapes(gateway, rows), next }
    }
  )

  scope.post<{ Body: TenantCreation }>('/api/tenants', { schema: { body: TenantCreation } }, async (request, reply) => {
    const { id } = request.body
    const { budget, ...rest } = changeOf(request.body, tenantDefaults.budget)
    const made: Tenant = {
      ...tenantDefaults,
      ...rest,
      budget: budget ?? tenantDefaults.budget,
      id,
      source: 'api',
      createdAt: now()
    }
    const [shape] = await shapes(gateway, [await tenants.create(made, actor(request))])
    return reply.code(201).send(shape)
  })

  scope.get<{ Params: { id: string } }>('/api/tenants/:id', async ({ params }): Promise<TenantAnswer | undefined> => {
    const tenant = await existing(tenants, params.id)
    const [shape] = await shapes(gateway, [tenant])
    return shape && { ...shape, records: (await recent(gateway, tenant.id)).map(recordShape) }
  })

  scope.put<{ Params: { id: string }; Body: TenantChange }>(
    '/api/tenants/:id',
    { schema: { body: TenantChange } },
    async (request): Promise<TenantAnswer | undefined> => {
      const tenant = await existing(tenants, request.params.id)
      const change = changeOf(request.body, tenant.budget)
      const [shape] = await shapes(gateway, [await tenants.update(tenant.id, change, actor(request))])
      return shape
    }
  )

  scope.delete<{ Params: { id: string } }>('/api/tenants/:id', async (request, reply) => {
    const tenant = await existing(tenants, request.params.id)
    await tenants.remove(tenant.id, actor(request))
    return reply.code(204).send()
  })
}

/** Keys begin so. Where somebody puts one in place of a tenant, it is not repeated. */
const secret = /^gw_/

/** @throws TenantNotFound, also for what cannot be the name of one */
export async function existing(tenants: Tenants, id: string): Promise<Tenant> {
  const tenant = named.test(id) ? await tenants.find(id) : undefined
  if (tenant === undefined) throw new TenantNotFound(secret.test(id) ? '…' : id)
  return tenant
}

async function shapes(gateway: Gateway, tenants: readonly Tenant[]): Promise<TenantAnswer[]> {
  const spending = await spendingOf(
    gateway,
    tenants.map(({ id, budget }) => ({ scope: `tenant:${id}`, limit: budget }))
  )
  return tenants.map((tenant, index) => tenantShape(tenant, spending[index]!))
}

/** The last 200: the store knows those of other processes and former starts too. */
async function recent({ store, ledger }: Gateway, tenant: string): Promise<readonly LedgerRecord[]> {
  if (store === undefined || !store.state.ok) return ledger?.recent(tenant) ?? []
  await store.ledger.folded()
  return (await store.ledger.records({ tenant }, { limit: 200 })).rows
}

/** What a request changes, and nothing else. */
function changeOf(body: TenantChange, budget: Tenant['budget']): Partial<Omit<Tenant, 'id' | 'source' | 'createdAt'>> {
  const { budget_usd, period, max_request_usd, metadata } = body
  return {
    ...(budget_usd !== undefined || period !== undefined
      ? {
          budget: {
            limit: budget_usd === undefined ? budget.limit : nanoOrNull(budget_usd),
            period: period ?? budget.period
          }
        }
      : {}),
    ...(max_request_usd !== undefined ? { maxRequest: nanoOrNull(max_request_usd) } : {}),
    ...(body.max_output_tokens !== undefined ? { maxOutputTokens: body.max_output_tokens } : {}),
    ...(body.requests_per_minute !== undefined ? { requestsPerMinute: body.requests_per_minute } : {}),
    ...(body.tokens_per_minute !== undefined ? { tokensPerMinute: body.tokens_per_minute } : {}),
    ...(body.concurrency !== undefined ? { concurrency: body.concurrency } : {}),
    ...(body.allow_models !== undefined ? { allowModels: body.allow_models } : {}),
    ...(body.active !== undefined ? { active: body.active } : {}),
    ...(body.open !== undefined ? { open: body.open } : {}),
    ...(metadata !== undefined ? { metadata: bounded(metadata) } : {})
  }
}

export function nanoOrNull(usd: number | null): number | null {
  return usd === null ? null : nanoOf(usd)
}

/** @throws InvalidRequest */
function bounded(metadata: Record<string, unknown>): Record<string, unknown> {
  if (isFlat(metadata, deepestMetadata) && JSON.stringify(metadata).length <= longestMetadata) return metadata
  const rule = `metadata must be at most ${longestMetadata} characters of JSON, nested at most ${deepestMetadata} deep.`
  throw detail(new InvalidRequest(rule), { param: 'metadata' })
}

function isFlat(value: unknown, levels: number): boolean {
  if (typeof value !== 'object' || value === null) return true
  return levels > 0 && Object.values(value).every(inner => isFlat(inner, levels - 1))
}
