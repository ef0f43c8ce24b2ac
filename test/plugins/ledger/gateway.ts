import { join } from 'node:path'
import type { FastifyInstance } from 'fastify'
import type { Test } from 'tap'
import ledger, { type LedgerOptions } from '../../../plugins/ledger/index.ts'
import store from '../../../plugins/store/index.ts'
import type { Caller, Gateway } from '../../../schemas/gateway.ts'
import type { LedgerRecord } from '../../../schemas/ledger.ts'
import type { Store } from '../../../schemas/store.ts'
import { type HostOptions, host } from '../kernel.ts'
import { scratch } from './books.ts'

// The kernel with the store and the ledger, and nothing else.

export interface Kept {
  readonly app: FastifyInstance
  readonly gateway: Gateway
  readonly store: Store
  readonly directory: string
  /** A caller as a transport makes one. */
  caller(more?: Partial<Caller>): Caller
  /** What the database has. */
  records(): Promise<LedgerRecord[]>
}

export interface KeptOptions extends HostOptions {
  ledger?: Partial<LedgerOptions>
  directory?: string
  url?: string
  before?: (app: FastifyInstance) => void
}

export async function kept(t: Test, options: KeptOptions = {}): Promise<Kept> {
  const directory = options.directory ?? scratch(t)
  const app = await host(t, options)
  await app.register(store, { url: options.url ?? `sqlite:${join(directory, 'gateway.db')}` })
  options.before?.(app)
  await app.register(ledger, {
    durability: 'process',
    onClientGone: 'abort',
    retention: 86_400_000,
    directory: join(directory, 'journal'),
    shared: false,
    lease: 10_000,
    ...options.ledger
  })
  await app.ready()
  const { gateway } = app
  const books = gateway.store!
  return {
    app,
    gateway,
    store: books,
    directory,
    caller: more => ({
      id: gateway.newId(),
      principal: { tenant: 'acme', key: 'k1', kind: 'key', scopes: ['chat'] },
      signal: new AbortController().signal,
      origin: { lane: 'http' },
      ...more
    }),
    async records() {
      await books.ledger.folded()
      return (await books.ledger.records({}, { limit: 1_000 })).rows
    }
  }
}
