import type { FastifyInstance } from 'fastify'
import fp from 'fastify-plugin'
import { ModelNotAllowed, TenantDisabled } from '../../schemas/errors.ts'
import type { Answer, Dispatch, Inference } from '../../schemas/gateway.ts'
import type { TenantSettings } from '../../schemas/model-options.ts'
import type { Tenant } from '../../schemas/tenants.ts'
import type { Compiled } from './compile.ts'
import { createRegistry } from './registry.ts'

export interface TenantsOptions {
  /** Those of the configuration file. `public` exists without being named. */
  tenants?: Readonly<Record<string, Partial<TenantSettings>>>
  /** An administrator, a JWT or a caller in process that names an unknown tenant makes it. Needs the store. */
  createOnDemand?: boolean
  /** What such a tenant gets. What is absent is as in `tenantDefaults`. */
  defaults?: Partial<Omit<Tenant, 'id' | 'source' | 'createdAt'>>
  /** How many stored tenants stay in memory at least. Default 10,000. */
  kept?: number
  /** Milliseconds since 1970. Given by tests. */
  now?: () => number
}

/** Whom calls are counted for, and what they may do: configured tenants and stored ones. */
async function tenants(app: FastifyInstance, options: TenantsOptions): Promise<void> {
  const { gateway } = app
  const registry = createRegistry(gateway, options)
  gateway.decorate('tenants', registry.tenants)

  gateway.intercept('admit', (inference, next) => {
    const known = registry.recall(inference.principal.tenant)
    return known ? admit(known, inference, next) : admitLater(inference, next)
  })

  async function admitLater(inference: Inference, next: Dispatch): Promise<Answer> {
    return admit(await registry.demand(inference.principal), inference, next)
  }
}

function admit({ tenant, allows }: Compiled, inference: Inference, next: Dispatch): Promise<Answer> {
  const { alias } = inference.route
  if (!tenant.active) return Promise.reject(new TenantDisabled(tenant.id))
  if (allows !== null && !allows(alias)) return Promise.reject(new ModelNotAllowed(tenant.id, alias))
  inference.limitOutput(tenant.maxOutputTokens)
  return next(inference)
}

export default fp(tenants, { fastify: '5.x', name: 'tenants', dependencies: ['gateway'] })
