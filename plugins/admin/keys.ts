import type { FastifyInstance } from 'fastify'
import { KeyCreation, KeyRotation, PageQuery } from '../../schemas/admin.ts'
import type { KeyAnswer, List } from '../../schemas/admin-answers.ts'
import { detail, InvalidRequest, KeyNotFound } from '../../schemas/errors.ts'
import type { Gateway } from '../../schemas/gateway.ts'
import type { ApiKey, BudgetLimit, KeyOptions } from '../../schemas/tenants.ts'
import type { Admin } from './index.ts'
import { pageOf, sliced } from './page.ts'
import { keyShape } from './shapes.ts'
import { spendingOf, unspent } from './spending.ts'
import { existing, nanoOrNull } from './tenants.ts'
import { momentOf } from './time.ts'

/** Seconds. */
const defaultOverlap = 86_400
const keyId = /^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$/

type KeyParams = { id: string; keyId: string }

/** Keys of a tenant, also of a configured one: made, listed, rotated, revoked. A secret is in two answers only. */
export function keyRoutes(scope: FastifyInstance, { gateway, now, actor }: Admin): void {
  const { keys, tenants } = gateway
  if (keys === undefined || tenants === undefined) return

  scope.get<{ Params: { id: string }; Querystring: PageQuery }>(
    '/api/tenants/:id/keys',
    { schema: { querystring: PageQuery } },
    async ({ params, query }): Promise<List<KeyAnswer>> => {
      const tenant = await existing(tenants, params.id)
      const { limit, after } = pageOf(query)
      const { rows, next } = sliced(await keys.list(tenant.id, { after, limit: limit + 1 }), limit)
      return { data: await shapes(gateway, rows, now()), next }
    }
  )

  scope.post<{ Params: { id: string }; Body: KeyCreation }>(
    '/api/tenants/:id/keys',
    { schema: { body: KeyCreation } },
    async (request, reply) => {
      const tenant = await existing(tenants, request.params.id)
      const { key, secret } = await keys.create(tenant.id, optionsOf(request.body, now()), actor(request))
      return reply.code(201).send(fresh(key, secret, now()))
    }
  )

  scope.post<{ Params: KeyParams; Body: KeyRotation }>(
    '/api/tenants/:id/keys/:keyId/rotate',
    { schema: { body: KeyRotation } },
    async (request, reply) => {
      const tenant = await existing(tenants, request.params.id)
      const overlap = (request.body.overlap_seconds ?? defaultOverlap) * 1_000
      const made = await keys.rotate(tenant.id, checked(request.params.keyId), overlap, actor(request))
      return reply.code(201).send(fresh(made.key, made.secret, now()))
    }
  )

  scope.delete<{ Params: KeyParams }>('/api/tenants/:id/keys/:keyId', async (request, reply) => {
    const tenant = await existing(tenants, request.params.id)
    await keys.revoke(tenant.id, checked(request.params.keyId), actor(request))
    return reply.code(204).send()
  })
}

/** @throws KeyNotFound for what cannot be the id of one; it is not repeated, it may be the key itself */
function checked(id: string): string {
  if (!keyId.test(id)) throw new KeyNotFound('…')
  return id
}

const uncounted: BudgetLimit = { limit: null, period: 'total' }

/** With the secret. Nothing is read for it: a key that is made and then not shown would be lost. */
function fresh(key: ApiKey, secret: string, now: number): KeyAnswer {
  return { ...keyShape(key, unspent(key.budget ?? uncounted, now), now), key: secret }
}

async function shapes(gateway: Gateway, keys: readonly ApiKey[], now: number): Promise<KeyAnswer[]> {
  const spending = await spendingOf(
    gateway,
    keys.map(({ id, budget }) => ({ scope: `key:${id}`, limit: budget ?? uncounted }))
  )
  return keys.map((key, index) => keyShape(key, spending[index]!, now))
}

/** @throws InvalidRequest */
function optionsOf(body: KeyCreation, now: number): KeyOptions {
  const { budget_usd, period } = body
  if (budget_usd === undefined && period !== undefined) {
    throw detail(new InvalidRequest('period is the period of a budget: send budget_usd too.'), { param: 'period' })
  }
  return {
    ...(body.name !== undefined ? { name: body.name } : {}),
    ...(body.scopes !== undefined ? { scopes: body.scopes } : {}),
    ...(budget_usd === undefined ? {} : { budget: budgetOf(budget_usd, period) }),
    ...(body.requests_per_minute !== undefined ? { requestsPerMinute: body.requests_per_minute } : {}),
    ...(body.tokens_per_minute !== undefined ? { tokensPerMinute: body.tokens_per_minute } : {}),
    ...(body.concurrency !== undefined ? { concurrency: body.concurrency } : {}),
    ...(body.expires_at !== undefined ? { expiresAt: expiryOf(body.expires_at, now) } : {})
  }
}

/** Null without a period: none; with one: spend is counted by it, and not limited. */
function budgetOf(usd: number | null, period: BudgetLimit['period'] | undefined): BudgetLimit | null {
  return usd === null && period === undefined ? null : { limit: nanoOrNull(usd), period: period ?? 'total' }
}

function expiryOf(written: string | number | null, now: number): number | null {
  if (written === null) return null
  const time = momentOf(written, 'expires_at')
  if (time <= now) throw detail(new InvalidRequest('expires_at lies in the past.'), { param: 'expires_at' })
  return time
}
