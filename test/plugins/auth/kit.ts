import type { FastifyInstance } from 'fastify'
import type { Test } from 'tap'
import auth, { type AuthOptions } from '../../../plugins/auth/index.ts'
import tenants, { type TenantsOptions } from '../../../plugins/tenants/index.ts'
import { StoreUnavailable } from '../../../schemas/errors.ts'
import type { Principal } from '../../../schemas/gateway.ts'
import type { Shared } from '../../../schemas/shared.ts'
import type { Audit, Store, StoredTenant } from '../../../schemas/store.ts'
import { type ApiKey, type Tenant, tenantDefaults } from '../../../schemas/tenants.ts'
import { type HostOptions, host } from '../kernel.ts'

/** Tenants, keys, settings and audits in memory, as the database holds them, with switches that a database lacks. */
export interface FakeStore extends Store {
  readonly rows: { tenants: Map<string, string>; keys: Map<string, string> }
  readonly log: Audit[]
  /** What was asked, in order: `keys.get abc`. */
  readonly asked: string[]
  readonly touched: Array<ReadonlyArray<{ id: string; at: number }>>
  /** False: everything is refused. */
  up: boolean
  state: { ok: boolean; reason: string | null; backlog: number }
  /** Set: reads wait for it after they have read, changes after they are committed. */
  gate: Promise<void> | null
}

export function fakeStore(): FakeStore {
  const rows = { tenants: new Map<string, string>(), keys: new Map<string, string>() }
  const settings = new Map<string, string>()

  async function done<Value>(what: string, work: () => Value): Promise<Value> {
    store.asked.push(what)
    await null
    if (!store.up) throw new StoreUnavailable('it was stopped.')
    const value = work()
    if (store.gate) await store.gate
    return value
  }
  const parse = (text: string | undefined) => (text === undefined ? null : JSON.parse(text))
  const page = <Row extends { id: string }>(found: Row[], { after = '', limit }: { after?: string; limit: number }) =>
    found
      .filter(({ id }) => id > after)
      .sort((a, b) => (a.id < b.id ? -1 : 1))
      .slice(0, limit)
  const unused = () => {
    throw new Error('The fake store has no such part.')
  }

  const store: FakeStore = {
    kind: 'sqlite',
    instance: 'fake',
    rows,
    log: [],
    asked: [],
    touched: [],
    up: true,
    gate: null,
    state: { ok: true, reason: null, backlog: 0 },
    setting: (name, value) =>
      done(`setting ${name}`, () => {
        if (!settings.has(name)) settings.set(name, value)
        return settings.get(name)!
      }),
    tenants: {
      get: id => done(`tenants.get ${id}`, (): StoredTenant | null => parse(rows.tenants.get(id))),
      list: wanted => done('tenants.list', () => page([...rows.tenants.values()].map(parse), wanted)),
      insert: (tenant, audit) =>
        done(`tenants.insert ${tenant.id}`, () => {
          if (rows.tenants.has(tenant.id)) return false
          rows.tenants.set(tenant.id, JSON.stringify(tenant))
          store.log.push(audit)
          return true
        }),
      update: (tenant, audit, expected) =>
        done(`tenants.update ${tenant.id}`, () => {
          const text = rows.tenants.get(tenant.id)
          if (text === undefined || (expected && text !== JSON.stringify(expected))) return false
          rows.tenants.set(tenant.id, JSON.stringify(tenant))
          store.log.push(audit)
          return true
        }),
      remove: (id, audit) =>
        done(`tenants.remove ${id}`, () => {
          if (!rows.tenants.delete(id)) return false
          for (const [key, text] of rows.keys) if (parse(text).tenant === id) rows.keys.delete(key)
          store.log.push(audit)
          return true
        })
    },
    keys: {
      get: id => done(`keys.get ${id}`, (): ApiKey | null => parse(rows.keys.get(id))),
      list: (tenant, wanted) =>
        done('keys.list', () =>
          page(
            [...rows.keys.values()].map(parse).filter(key => key.tenant === tenant),
            wanted
          )
        ),
      insert: (key, audit) =>
        done(`keys.insert ${key.id}`, () => {
          rows.keys.set(key.id, JSON.stringify(key))
          store.log.push(audit)
        }),
      update: (keys, audit, expected) =>
        done(`keys.update ${keys.map(({ id }) => id)}`, () => {
          if (expected && rows.keys.get(expected.id) !== JSON.stringify(expected)) return false
          for (const key of keys) rows.keys.set(key.id, JSON.stringify(key))
          store.log.push(audit)
          return true
        }),
      touch: uses =>
        done('keys.touch', () => {
          store.touched.push(uses)
          for (const { id, at } of uses) {
            const key = parse(rows.keys.get(id))
            if (key) rows.keys.set(id, JSON.stringify({ ...key, lastUsedAt: at }))
          }
        }),
      any: () => done('keys.any', () => rows.keys.size > 0)
    },
    ledger: {
      open: unused,
      grown: unused,
      folded: unused,
      rotate: unused,
      records: unused,
      export: unused,
      balances: unused,
      recount: unused,
      adjust: unused,
      retain: unused,
      verify: unused
    },
    audits: { list: unused, add: unused },
    answers: { get: unused, put: unused, ids: unused, purge: unused },
    onFolded: unused,
    onState: unused
  }
  return store
}

export interface FakeShared extends Shared {
  down: string | null
  /** Cuts this process off. */
  cut(): void
  /** Brings it back; what was said meanwhile is lost. */
  mend(): void
  readonly said: string[]
}

/** One Redis for several processes: messages arrive at once, or never. */
export function fakeRedis(): () => FakeShared {
  const everybody: Array<{ shared: FakeShared; hear(channel: string, message: string): void }> = []
  const unused = () => {
    throw new Error('The fake Redis has no such part.')
  }
  return () => {
    const listeners: Array<{ channel: string; listener: (message: string) => void }> = []
    const states: Array<(state: { down: string | null; lost: boolean }) => void> = []
    const shared: FakeShared = {
      instance: `fake-${everybody.length}`,
      prefix: '',
      onRedisDown: 'deny',
      generation: null,
      down: null,
      processes: 1,
      instances: [],
      said: [],
      run: unused,
      get: unused,
      set: unused,
      delete: unused,
      publish(channel, message) {
        if (shared.down !== null) return
        shared.said.push(`${channel} ${message}`)
        for (const other of everybody) {
          if (other.shared !== shared && other.shared.down === null) other.hear(channel, message)
        }
      },
      subscribe: (channel, listener) => void listeners.push({ channel, listener }),
      onState: listener => void states.push(listener),
      onDeath: unused,
      cut() {
        shared.down = 'it was cut off'
        for (const listener of states) listener({ down: shared.down, lost: false })
      },
      mend() {
        shared.down = null
        for (const listener of states) listener({ down: null, lost: false })
      }
    }
    everybody.push({
      shared,
      hear(channel, message) {
        for (const one of listeners) if (one.channel === channel) one.listener(message)
      }
    })
    return shared
  }
}

/** A clock that stands still until a test moves it. */
export function fakeClock(start = Date.UTC(2026, 10, 21)) {
  const clock = { time: start, now: () => clock.time }
  return clock
}

export interface ProcessOptions extends HostOptions {
  store?: Store
  shared?: Shared
  auth?: AuthOptions | false
  tenants?: TenantsOptions | false
  now?: () => number
}

/** One process of a gateway: the kernel, auth and tenants, on a store and a Redis of the test's choice. Not ready yet. */
export async function start(t: Test, options: ProcessOptions = {}) {
  const app: FastifyInstance = await host(t, options)
  const { gateway } = app
  if (options.store) gateway.decorate('store', options.store)
  if (options.shared) gateway.decorate('shared', options.shared)
  const { now } = options
  const configured = options.tenants ? options.tenants.tenants : undefined
  if (options.auth !== false) await app.register(auth, { now, tenants: configured, ...options.auth })
  if (options.tenants !== false) await app.register(tenants, { now, ...options.tenants })
  const authenticate = (headers: Record<string, string | string[]>) =>
    gateway.authenticate!({ headers: { host: 'localhost', ...headers } })
  return {
    app,
    gateway,
    /** What a request with these headers is, at once or after a read. */
    authenticate,
    /** The same by its key. */
    by: async (secret: string): Promise<Principal> => authenticate({ authorization: `Bearer ${secret}` })
  }
}

export function tenant(id: string, more: Partial<Tenant> = {}): Tenant {
  return { ...tenantDefaults, id, source: 'api', createdAt: 1, ...more }
}

export const refusedKey = { code: 'GATEWAY_INVALID_API_KEY', statusCode: 401, wire: 'invalid_api_key' }
