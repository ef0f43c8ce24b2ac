import type { TenantSettings } from '../../schemas/model-options.ts'
import { nanoOf } from '../../schemas/money.ts'
import { type Tenant, tenantDefaults } from '../../schemas/tenants.ts'
import { allowList } from './allow.ts'

/** A tenant as calls need it. */
export interface Compiled {
  readonly tenant: Tenant
  /** Null: every model. */
  readonly allows: ((alias: string) => boolean) | null
}

export function compile(tenant: Tenant): Compiled {
  return { tenant, allows: tenant.allowModels === null ? null : allowList(tenant.allowModels) }
}

/** A tenant of the configuration file. */
export function configured(id: string, settings: Partial<TenantSettings>): Tenant {
  const { budget, maxRequestUsd } = settings
  return {
    id,
    source: 'config',
    createdAt: 0,
    active: settings.active ?? tenantDefaults.active,
    open: settings.open ?? tenantDefaults.open,
    allowModels: settings.allowModels ?? tenantDefaults.allowModels,
    budget:
      budget === undefined
        ? tenantDefaults.budget
        : budget === false
          ? { limit: null, period: 'total' }
          : { limit: nanoOf(budget.usd), period: budget.period },
    maxRequest:
      maxRequestUsd === undefined ? tenantDefaults.maxRequest : maxRequestUsd === false ? null : nanoOf(maxRequestUsd),
    maxOutputTokens: settings.maxOutputTokens ?? tenantDefaults.maxOutputTokens,
    requestsPerMinute: settings.requestsPerMinute ?? tenantDefaults.requestsPerMinute,
    tokensPerMinute: settings.tokensPerMinute ?? tenantDefaults.tokensPerMinute,
    concurrency: settings.concurrency ?? tenantDefaults.concurrency,
    metadata: settings.metadata ?? tenantDefaults.metadata
  }
}
