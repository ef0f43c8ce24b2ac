import { randomBytes } from 'node:crypto'
import type { FastifyInstance } from 'fastify'
import fp from 'fastify-plugin'
import { openStore } from './client.ts'

export interface StoreOptions {
  /** `sqlite:FILE`, `sqlite::memory:` or `postgres://user:password@host:port/database`. */
  url: string
  /** Redis is there: several processes may use one PostgreSQL. Default: false, the second one refuses to start. */
  shared?: boolean
  /** Milliseconds to wait at the start for a gateway that is just ending to give up the database. Default: 1,000. */
  lockWait?: number
}

/** The database, behind a worker thread of its own. */
async function store(app: FastifyInstance, { url, shared = false, lockWait = 1_000 }: StoreOptions): Promise<void> {
  const { gateway } = app
  // New with every start. In names of journal files it stands before a dash.
  const instance = randomBytes(8).toString('hex')
  const { store, close } = await openStore({ url, shared, lockWait, instance }, gateway.log)
  // Those who write register later, so Fastify closes them before.
  app.addHook('onClose', close)
  gateway.decorate('store', store)
  gateway.dependency(
    'store',
    () => {
      const { ok, reason, backlog } = store.state
      return { ok, kind: store.kind, backlog, ...(reason !== null && { reason }) }
    },
    store.keys.any
  )
}

export default fp(store, { fastify: '5.x', name: 'store', dependencies: ['gateway'] })
