import type { Period } from './periods.ts'

/** Limits of a tenant or a key; null: none. */
export interface Limits {
  readonly requestsPerMinute: number | null
  readonly tokensPerMinute: number | null
  /** Calls at the same time. */
  readonly concurrency: number | null
}

/** How much may be spent in a period. `limit` in nano-USD; null: as much as one likes, only counted. */
export interface BudgetLimit {
  readonly limit: number | null
  readonly period: Period
}

/** Whom calls are counted for. Compiled: money in nano-USD, never mutated, replaced as a whole when it changes. */
export interface Tenant extends Limits {
  readonly id: string
  /** `config`: read-only over HTTP. */
  readonly source: 'config' | 'api'
  readonly active: boolean
  /** An anonymous caller may name this tenant. */
  readonly open: boolean
  /** Names of models, `*` stands for any characters; null: every model. */
  readonly allowModels: readonly string[] | null
  readonly budget: BudgetLimit
  /** Nano-USD that one request may be likely to cost; null: no limit. */
  readonly maxRequest: number | null
  /** Forced into every upstream request. */
  readonly maxOutputTokens: number
  readonly metadata: Readonly<Record<string, unknown>>
  /** Milliseconds since 1970; 0 for configured ones. */
  readonly createdAt: number
}

/** Defaults of a tenant that says nothing, in nano-USD. */
export const tenantDefaults = {
  active: true,
  open: false,
  allowModels: null,
  budget: { limit: 5_000_000_000, period: 'total' },
  maxRequest: 50_000_000,
  maxOutputTokens: 1_000,
  requestsPerMinute: null,
  tokensPerMinute: null,
  concurrency: null,
  metadata: {}
} as const satisfies Omit<Tenant, 'id' | 'source' | 'createdAt'>

export const scopes = ['chat', 'admin'] as const
/** What a key may do: call models; use the admin routes. */
export type Scope = (typeof scopes)[number]

/** An API key as the books know it; the secret itself is nowhere. */
export interface ApiKey extends Limits {
  /** The public part of the key, also in logs and ledger rows. */
  readonly id: string
  readonly tenant: string
  readonly name: string | null
  readonly scopes: readonly Scope[]
  /** SHA-256 of the whole key, base64url. */
  readonly hash: string
  /** Its own budget beside its tenant's; null: none. */
  readonly budget: BudgetLimit | null
  /** Milliseconds since 1970; null: never. A rotated key gets the end of its overlap here. */
  readonly expiresAt: number | null
  readonly createdAt: number
  readonly lastUsedAt: number | null
  readonly revokedAt: number | null
  /** The key that replaced this one. */
  readonly rotatedTo: string | null
  /** The first key of the line that this one was rotated out of: budget and limits are counted under it. Null: its own. */
  readonly account: string | null
}

/** The tenants of this gateway. Those in use stay in memory, the others are read when somebody names them. */
export interface Tenants {
  /** One in memory: configured, or used lately. Costs a map lookup. */
  get(id: string): Tenant | undefined
  /** One wherever it is; reads the store for one that is not in memory. @throws GatewayError when the store is gone */
  find(id: string): Promise<Tenant | undefined>
  /** Configured ones first, then the stored ones by id. `after` is the last id of the page before. */
  list(page: { after?: string; limit: number }): Promise<Tenant[]>
  /** @throws TenantExists */
  create(tenant: Tenant, actor: string): Promise<Tenant>
  /** @throws TenantNotFound, TenantReadOnly for a configured one */
  update(id: string, change: Partial<Omit<Tenant, 'id' | 'source' | 'createdAt'>>, actor: string): Promise<Tenant>
  /** Its keys end with it; its rows in the ledger and what it spent stay. @throws TenantNotFound, TenantReadOnly */
  remove(id: string, actor: string): Promise<void>
  /** Whether a tenant in memory is active and may use a model by this name; false for one that is not: `find` it first. */
  allows(id: string, alias: string): boolean
  /** Told of each tenant that has been removed, here or by another process. */
  onRemoved(listener: (id: string) => void): void
}

/** What may be said of a new key. */
export interface KeyOptions extends Partial<Limits> {
  readonly name?: string | null
  readonly scopes?: readonly Scope[]
  readonly budget?: BudgetLimit | null
  readonly expiresAt?: number | null
}

/** Keys made over HTTP. Needs the store. */
export interface Keys {
  /** `secret` is shown this once. The tenant may be a configured one. @throws TenantNotFound */
  create(tenant: string, options: KeyOptions, actor: string): Promise<{ key: ApiKey; secret: string }>
  list(tenant: string, page: { after?: string; limit: number }): Promise<ApiKey[]>
  /** A new key with the same rights; the old one works for `overlap` milliseconds more. @throws KeyNotFound */
  rotate(
    tenant: string,
    id: string,
    overlap: number,
    actor: string
  ): Promise<{ key: ApiKey; secret: string; old: ApiKey }>
  /** At once in this process, within a second in others. @throws KeyNotFound */
  revoke(tenant: string, id: string, actor: string): Promise<ApiKey>
}

declare module './gateway.ts' {
  interface Gateway {
    tenants?: Tenants
    keys?: Keys
  }
}
