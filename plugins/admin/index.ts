import type { FastifyInstance, FastifyRequest } from 'fastify'
import fp from 'fastify-plugin'
import type { Gateway } from '../../schemas/gateway.ts'
import { auditRoutes } from './audit.ts'
import { budgetRoutes } from './budget.ts'
import { keyRoutes } from './keys.ts'
import { recordRoutes } from './records.ts'
import { targetRoutes } from './targets.ts'
import { tenantRoutes } from './tenants.ts'

export interface AdminOptions {
  /** Milliseconds since 1970. */
  now?: () => number
}

/** What the route files share. */
export interface Admin {
  readonly gateway: Gateway
  readonly now: () => number
  /** Who asks, for the audit. */
  actor(request: FastifyRequest): string
}

/** Nothing here outlives its request: what is asked of the store is short, and exports watch their stream. */
const never = new AbortController().signal

/**
 * Tenants, keys, records, budget, audit, targets and the routing table for the administrator. Routes whose plugin
 * is off do not exist, and without authentication none does: there is no telling who the administrator is.
 */
async function admin(app: FastifyInstance, options: AdminOptions): Promise<void> {
  const { gateway } = app
  if (gateway.authenticate === undefined) {
    gateway.log.warn({}, 'the admin routes are off: without the plugin auth anybody would be the administrator')
    return
  }
  const shared: Admin = {
    gateway,
    now: options.now ?? Date.now,
    actor(request) {
      const { principal } = gateway.http.caller(request, never)
      return principal.key ?? principal.kind
    }
  }
  gateway.http.admin(app, scope => {
    tenantRoutes(scope, shared)
    keyRoutes(scope, shared)
    recordRoutes(scope, shared)
    budgetRoutes(scope, shared)
    auditRoutes(scope, shared)
    targetRoutes(scope, shared)
  })
}

export default fp(admin, { fastify: '5.x', name: 'admin', dependencies: ['http'] })
