import { tenantName } from '../../schemas/atoms.ts'
import {
  InvalidRequest,
  isGatewayError,
  StoreUnavailable,
  TenantExists,
  TenantNotFound,
  TenantReadOnly
} from '../../schemas/errors.ts'
import type { Gateway, Principal } from '../../schemas/gateway.ts'
import { createKept } from '../../schemas/kept.ts'
import type { Audit, Store, StoredTenant } from '../../schemas/store.ts'
import { type Tenant, type Tenants, tenantDefaults } from '../../schemas/tenants.ts'
import { type Compiled, compile, configured } from './compile.ts'
import type { TenantsOptions } from './index.ts'

const named = new RegExp(tenantName)
/** Who may make a tenant by naming it. */
const founders: ReadonlySet<Principal['kind']> = new Set(['admin', 'jwt', 'process'])

/** How often a change is tried while other processes change the same tenant. */
const mostTries = 10

export interface Registry {
  readonly tenants: Tenants
  /** One that is known without waiting; null: known not to exist. */
  recall(id: string): Compiled | null | undefined
  /** That of a caller, read or made where it has to be. @throws TenantNotFound, StoreUnavailable */
  demand(principal: Principal): Promise<Compiled>
}

export function createRegistry(gateway: Gateway, options: TenantsOptions): Registry {
  const store = gateway.optional('store', 'tenants')
  const shared = gateway.optional('shared', 'tenants')
  const { events } = gateway
  const now = options.now ?? Date.now
  const fixed = new Map<string, Compiled>()
  for (const [id, settings] of Object.entries({ public: {}, ...options.tenants })) {
    fixed.set(id, compile(configured(id, settings)))
  }
  const kept = createKept<Compiled>({
    channel: 'tenant',
    read: async id => {
      const tenant = await store?.tenants.get(id)
      return tenant ? compile(tenant) : null
    },
    readable: () => store?.state.ok !== false,
    limit: options.kept ?? 10_000,
    shared,
    now
  })
  const listeners: Array<(id: string) => void> = []
  shared?.subscribe('tenant-removed', removed)

  function removed(id: string): void {
    for (const listener of listeners) listener(id)
  }

  function recall(id: string): Compiled | null | undefined {
    return fixed.get(id) ?? kept.recall(id)
  }

  async function find(id: string): Promise<Compiled | null> {
    const known = fixed.get(id)
    if (known !== undefined) return known
    return named.test(id) ? kept.find(id) : null
  }

  async function demand(principal: Principal): Promise<Compiled> {
    const id = principal.tenant
    const found = await find(id)
    if (found !== null) return found
    if (!options.createOnDemand || store === undefined || !founders.has(principal.kind) || !named.test(id)) {
      throw new TenantNotFound(id)
    }
    try {
      return await create(
        { ...tenantDefaults, ...options.defaults, id, source: 'api', createdAt: now() },
        principal.key ?? principal.kind
      )
    } catch (error) {
      if (!isGatewayError(error) || error.wire !== 'tenant_exists') throw error
      // Somebody else was faster.
      const made = await find(id)
      if (made === null) throw new TenantNotFound(id)
      return made
    }
  }

  function create(tenant: Tenant, actor: string): Promise<Compiled> {
    const { id } = tenant
    if (!named.test(id)) throw new InvalidRequest(`A tenant's id is letters, digits, ".", "_", ":", "@" and "-".`)
    if (fixed.has(id)) throw new TenantExists(id)
    const stored: StoredTenant = { ...tenant, source: 'api' }
    return kept.change(id, async () => {
      const made = await storeOf(store).tenants.insert(stored, audit(actor, 'tenant.create', id, null, stored))
      if (!made) throw new TenantExists(id)
      if (events.heard) events.emit('tenant.created', { tenant: id, actor })
      return compile(stored)
    })
  }

  async function update(id: string, change: Partial<Tenant>, actor: string): Promise<Compiled> {
    const { tenants } = writable(id)
    const said: Partial<Tenant> = Object.fromEntries(Object.entries(change).filter(([, value]) => value !== undefined))
    return kept.change(id, async () => {
      for (let tries = 0; tries < mostTries; tries++) {
        const before = await tenants.get(id)
        if (before === null) throw new TenantNotFound(id)
        const after: StoredTenant = { ...before, ...said, id, source: 'api', createdAt: before.createdAt }
        if (!(await tenants.update(after, audit(actor, 'tenant.update', id, before, after), before))) continue
        if (events.heard) events.emit('tenant.updated', { tenant: id, active: after.active, actor })
        return compile(after)
      }
      throw new StoreUnavailable(`the tenant ${id} is changed by too many at once.`)
    })
  }

  async function remove(id: string, actor: string): Promise<void> {
    const { tenants } = writable(id)
    await kept.change(id, async () => {
      const before = await tenants.get(id)
      if (before === null || !(await tenants.remove(id, audit(actor, 'tenant.remove', id, before, null)))) {
        throw new TenantNotFound(id)
      }
      removed(id)
      if (events.heard) events.emit('tenant.deleted', { tenant: id, actor })
      return null
    })
    shared?.publish('tenant-removed', id)
  }

  async function list({ after, limit }: { after?: string; limit: number }): Promise<Tenant[]> {
    const ids = [...fixed.keys()]
    const start = after === undefined ? 0 : ids.indexOf(after) + 1
    const found: Tenant[] = []
    if (after === undefined || start > 0) {
      for (const id of ids.slice(start, start + limit)) found.push(fixed.get(id)!.tenant)
    }
    let last = start > 0 ? undefined : after
    while (store !== undefined && found.length < limit) {
      const wanted = limit - found.length
      const page = await store.tenants.list({ after: last, limit: wanted })
      // A tenant that was stored before it was configured is hidden by the configuration.
      found.push(...page.filter(tenant => !fixed.has(tenant.id)))
      if (page.length < wanted) break
      last = page.at(-1)?.id
    }
    return found
  }

  /** The store, for a change of a tenant that may be changed. */
  function writable(id: string): Store {
    if (fixed.has(id)) throw new TenantReadOnly(id)
    if (!named.test(id)) throw new TenantNotFound(id)
    return storeOf(store)
  }

  return {
    recall,
    demand,
    tenants: {
      get: id => (fixed.get(id) ?? kept.peek(id))?.tenant,
      find: async id => (await find(id))?.tenant,
      list,
      create: async (tenant, actor) => (await create(tenant, actor)).tenant,
      update: async (id, change, actor) => (await update(id, change, actor)).tenant,
      remove,
      allows(id, alias) {
        const known = fixed.get(id) ?? kept.peek(id)
        return known?.tenant.active === true && (known.allows === null || known.allows(alias))
      },
      onRemoved: listener => void listeners.push(listener)
    }
  }
}

function storeOf(store: Store | undefined): Store {
  if (store === undefined) throw new StoreUnavailable('there is none, see `store` in the configuration.')
  return store
}

function audit(actor: string, action: string, subject: string, before: object | null, after: object | null): Audit {
  return { actor, action, subject, before, after }
}
