import type { TSchema } from '@sinclair/typebox'
import Ajv from 'ajv'
import Fastify, { type FastifyInstance } from 'fastify'
import type { Test } from 'tap'
import admin from '../../../plugins/admin/index.ts'
import gateway from '../../../plugins/gateway/index.ts'
import http from '../../../plugins/http/index.ts'
import { serverOptions } from '../../../plugins/http/server.ts'
import routing, { type RoutingOptions } from '../../../plugins/routing/index.ts'
import type { BudgetState, Budgets } from '../../../schemas/budgets.ts'
import {
  InvalidApiKey,
  KeyNotFound,
  StoreUnavailable,
  TenantExists,
  TenantNotFound,
  TenantReadOnly
} from '../../../schemas/errors.ts'
import type { Gateway, Log, Principal } from '../../../schemas/gateway.ts'
import type { Ledger, LedgerRecord, RecordFilter } from '../../../schemas/ledger.ts'
import type { Provider } from '../../../schemas/provider.ts'
import type { Audit, AuditRecord, Store } from '../../../schemas/store.ts'
import { type ApiKey, type Keys, type Tenant, type Tenants, tenantDefaults } from '../../../schemas/tenants.ts'
import { noUsage } from '../../../schemas/usage.ts'

// The admin routes by themselves: everything behind them is a few arrays.

export const now = Date.UTC(2026, 10, 21, 12)

export interface Books {
  tenants: Tenant[]
  keys: ApiKey[]
  records: LedgerRecord[]
  audits: AuditRecord[]
  held: Map<string, number>
  gatewayBudget: Awaited<ReturnType<Budgets['gateway']>>
  /** Who did what, as the capabilities were told. */
  actors: string[]
  /** How often the store was asked for balances, and pieces of an export. */
  balanceReads: number
  pieces: number
  /** Exports that were read to their end or broken off. */
  exportsClosed: number
  /** What the store throws. */
  failure: Error | null
  filters: RecordFilter[]
  /** What every piece of an export waits for. */
  gate: Promise<void> | null
}

export const token = 'admin-token-of-these-tests'
const principals: Readonly<Record<string, Principal>> = {
  [token]: { tenant: 'public', key: 'admin', kind: 'admin', scopes: ['chat', 'admin'] },
  gw_chat: { tenant: 'acme', key: 'chat-key', kind: 'key', scopes: ['chat'] },
  gw_admin: { tenant: 'acme', key: 'admin-key', kind: 'key', scopes: ['chat', 'admin'] }
}

export function tenant(id: string, own: Partial<Tenant> = {}): Tenant {
  return { ...tenantDefaults, id, source: 'api', createdAt: now, ...own }
}

export function key(id: string, own: Partial<ApiKey> = {}): ApiKey {
  return {
    id,
    tenant: 'acme',
    name: null,
    scopes: ['chat'],
    hash: 'a-hash-that-nobody-sees',
    budget: null,
    requestsPerMinute: null,
    tokensPerMinute: null,
    concurrency: null,
    expiresAt: null,
    createdAt: now,
    lastUsedAt: null,
    revokedAt: null,
    rotatedTo: null,
    account: null,
    ...own
  }
}

export function record(id: string, own: Partial<LedgerRecord> = {}): LedgerRecord {
  return {
    id,
    time: now,
    tenant: 'acme',
    key: 'k1',
    model: 'test',
    stream: false,
    status: 'settled',
    httpStatus: 200,
    errorCode: null,
    duration: 12.5,
    firstToken: null,
    cost: 450_000,
    usage: { ...noUsage, input: 3, cacheRead: 2, output: 5, reasoning: 1, source: 'reported' },
    traceId: null,
    user: null,
    tags: null,
    config: '0123456789ab',
    attempts: [
      {
        number: 1,
        provider: 'up',
        model: 'upstream-model',
        status: 'settled',
        errorCode: null,
        duration: 12,
        firstToken: null,
        cost: 450_000,
        priceVersion: 'v1',
        usage: { ...noUsage, input: 3, cacheRead: 2, output: 5, reasoning: 1, source: 'reported' }
      }
    ],
    ...own
  }
}

export function books(own: Partial<Books> = {}): Books {
  return {
    tenants: [tenant('public', { source: 'config', createdAt: 0 }), tenant('acme')],
    keys: [],
    records: [],
    audits: [],
    held: new Map(),
    gatewayBudget: null,
    actors: [],
    balanceReads: 0,
    pieces: 0,
    exportsClosed: 0,
    failure: null,
    filters: [],
    gate: null,
    ...own
  }
}

/** What calls are routed by, and whom they are routed to. */
export interface Routed {
  routing?: RoutingOptions
  providers?: Provider[]
  log?: Log
}

/** A listening-ready host with the admin routes over `books`; `without` leaves capabilities out. */
export async function host(t: Test, held: Books = books(), without: Array<keyof Gateway> = [], routed: Routed = {}) {
  const app = Fastify(serverOptions({ bodyLimit: 10 * 1024 * 1024, trustProxy: false }))
  t.teardown(() => app.close())
  await app.register(gateway, { log: routed.log })
  await app.register(routing, routed.routing ?? {})
  for (const provider of routed.providers ?? []) app.gateway.providers.register(provider)
  await app.register(http, {})
  if (!without.includes('authenticate'))
    app.gateway.decorate('authenticate', ({ headers }) => {
      const secret = String(headers['authorization'] ?? '').replace(/^Bearer /, '')
      if (secret === '') return { tenant: 'public', key: null, kind: 'anonymous', scopes: ['chat'] }
      const principal = Object.hasOwn(principals, secret) ? principals[secret] : undefined
      if (principal === undefined) throw new InvalidApiKey('This API key is unknown, revoked or expired.')
      return principal
    })
  const given = { tenants: tenantsOf(held), keys: keysOf(held), ledger: ledgerOf(held), budgets: budgetsOf(held) }
  if (!without.includes('tenants')) app.gateway.decorate('tenants', given.tenants)
  if (!without.includes('keys')) app.gateway.decorate('keys', given.keys)
  if (!without.includes('ledger')) app.gateway.decorate('ledger', given.ledger)
  if (!without.includes('budgets')) app.gateway.decorate('budgets', given.budgets)
  if (!without.includes('store')) app.gateway.decorate('store', storeOf(held))
  await app.register(admin, { now: () => now })
  app.gateway.http.catchAll(app)
  return { app, books: held, ask: asker(app) }
}

export interface Question {
  body?: unknown
  /** Sent as it is, as JSON. */
  text?: string
  headers?: Record<string, string>
  /** Null: none. */
  secret?: string | null
}

/** Asks as the administrator. */
export function asker(app: FastifyInstance, adminToken = token) {
  return async (route: string, { body, text, headers, secret = adminToken }: Question = {}) => {
    const [method = 'GET', url = ''] = route.split(' ')
    const payload = text ?? (body === undefined ? undefined : JSON.stringify(body))
    return app.inject({
      method: method as 'GET',
      url,
      headers: {
        ...(secret === null ? {} : { authorization: `Bearer ${secret}` }),
        ...(payload === undefined ? {} : { 'content-type': 'application/json' }),
        ...headers
      },
      ...(payload === undefined ? {} : { payload })
    })
  }
}

const ajv = new Ajv.Ajv({ strict: false, strictNumbers: true })

/** Says that an answer is exactly what its schema describes. */
export function fits(t: Test, schema: TSchema, value: unknown): void {
  const check = ajv.compile(schema)
  t.ok(check(value), ajv.errorsText(check.errors))
}

function tenantsOf(books: Books): Tenants {
  const at = (id: string) => books.tenants.findIndex(tenant => tenant.id === id)
  function writable(id: string): number {
    const index = at(id)
    if (index === -1) throw new TenantNotFound(id)
    if (books.tenants[index]!.source === 'config') throw new TenantReadOnly(id)
    return index
  }
  return {
    get: id => books.tenants[at(id)],
    find: async id => books.tenants[at(id)],
    async list({ after, limit }) {
      const start = after === undefined ? 0 : at(after) + 1
      return books.tenants.slice(start, start + limit)
    },
    async create(made, actor) {
      if (at(made.id) !== -1) throw new TenantExists(made.id)
      books.actors.push(`${actor} creates ${made.id}`)
      books.tenants.push(made)
      return made
    },
    async update(id, change, actor) {
      const index = writable(id)
      books.actors.push(`${actor} updates ${id}`)
      const updated = { ...books.tenants[index]!, ...change }
      books.tenants[index] = updated
      return updated
    },
    async remove(id, actor) {
      books.tenants.splice(writable(id), 1)
      books.actors.push(`${actor} removes ${id}`)
    },
    allows: () => true,
    onRemoved() {}
  }
}

function keysOf(books: Books): Keys {
  function own(tenant: string, id: string): ApiKey {
    const found = books.keys.find(key => key.id === id && key.tenant === tenant)
    if (found === undefined) throw new KeyNotFound(id)
    return found
  }
  function change(before: ApiKey, after: ApiKey): ApiKey {
    books.keys[books.keys.indexOf(before)] = after
    return after
  }
  return {
    async create(tenant, options, actor) {
      const made = key(`k${books.keys.length + 1}`, { ...options, tenant })
      books.keys.push(made)
      books.actors.push(`${actor} creates key ${made.id}`)
      return { key: made, secret: `gw_${made.id}_secret` }
    },
    async list(tenant, { after, limit }) {
      const all = books.keys.filter(key => key.tenant === tenant)
      const start = all.findIndex(key => key.id === after) + 1
      return all.slice(start, start + limit)
    },
    async rotate(tenant, id, overlap, actor) {
      const before = own(tenant, id)
      const made = { ...before, id: `${id}-new` }
      const old = change(before, { ...before, expiresAt: now + overlap, rotatedTo: made.id })
      books.keys.push(made)
      books.actors.push(`${actor} rotates ${id}`)
      return { key: made, secret: `gw_${made.id}_secret`, old }
    },
    async revoke(tenant, id, actor) {
      const before = own(tenant, id)
      books.actors.push(`${actor} revokes ${id}`)
      return change(before, { ...before, revokedAt: now })
    }
  }
}

function ledgerOf(books: Books): Ledger {
  return {
    recent: tenant => books.records.filter(record => record.tenant === tenant).slice(0, 200),
    totals: () => ({ requests: books.records.length, tokensIn: 7, tokensOut: 8, cost: 9_007_199_254_740_993_000n }),
    sums: async () => Promise.reject(new StoreUnavailable('no database in these tests')),
    refused: new Map([['insufficient_quota', 3]]),
    mismatches: 4
  }
}

function budgetsOf(books: Books): Budgets {
  return {
    async state(scope, { limit, period }): Promise<BudgetState> {
      const held = books.held.get(scope) ?? 0
      return { scope, period, periodKey: 'total', limit, spent: 0, held, resetsAt: null }
    },
    known: () => null,
    gateway: async () => books.gatewayBudget,
    async reset(actor) {
      if (books.gatewayBudget === null) throw new Error('There is nothing to reset.')
      books.actors.push(`${actor} resets`)
      books.gatewayBudget = { ...books.gatewayBudget, spent: 0 }
      return books.gatewayBudget
    },
    counters: { overrun: 1, unpriced: 2, refused: 3 }
  }
}

/** What the routes need of it; the rest is not there. */
function storeOf(books: Books): Store {
  const asked = () => {
    if (books.failure !== null) throw books.failure
  }
  const fitting = ({ tenant, model, status }: RecordFilter) =>
    books.records.filter(
      record =>
        (tenant === undefined || record.tenant === tenant) &&
        (model === undefined || record.model === model) &&
        (status === undefined || record.status === status)
    )
  const part = {
    kind: 'sqlite',
    instance: 'test',
    state: { ok: true, reason: null, backlog: 0 },
    ledger: {
      async folded() {
        asked()
      },
      async records(filter: RecordFilter, { after, limit }: { after?: string; limit: number }) {
        asked()
        books.filters.push(filter)
        const all = fitting(filter)
        const start = after === undefined ? 0 : Number(after)
        const end = start + limit
        return { rows: all.slice(start, end), next: end < all.length ? String(end) : null }
      },
      export(filter: RecordFilter) {
        books.filters.push(filter)
        const all = fitting(filter)
        let at = 0
        let closed = false
        const close = () => {
          if (!closed) books.exportsClosed++
          closed = true
        }
        return {
          [Symbol.asyncIterator]: () => ({
            async next() {
              asked()
              await books.gate
              if (at >= all.length) {
                close()
                return { done: true, value: undefined }
              }
              books.pieces++
              const value = all.slice(at, at + 1_000)
              at += 1_000
              return { done: false, value }
            },
            async return() {
              close()
              return { done: true, value: undefined }
            }
          })
        }
      },
      async balances(of: ReadonlyArray<{ scope: string; period: string }>) {
        asked()
        books.balanceReads++
        return of.map(({ scope, period }) => {
          const rows = books.records.filter(record => `tenant:${record.tenant}` === scope)
          return {
            scope,
            period,
            spent: rows.reduce((sum, { cost }) => sum + BigInt(cost ?? 0), 0n),
            requests: rows.length,
            tokensIn: 5n * BigInt(rows.length),
            tokensOut: 6n * BigInt(rows.length),
            version: rows.length
          }
        })
      }
    },
    audits: {
      async list({ subject }: { subject?: string }, { limit }: { limit: number }) {
        asked()
        const rows = books.audits.filter(audit => subject === undefined || audit.subject === subject)
        return { rows: rows.slice(0, limit), next: null }
      },
      async add(audit: Audit) {
        asked()
        books.audits.unshift({ ...audit, id: books.audits.length + 1, time: now })
      }
    }
  }
  return part as unknown as Store
}
