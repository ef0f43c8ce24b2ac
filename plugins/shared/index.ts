import { randomBytes } from 'node:crypto'
import type { FastifyInstance } from 'fastify'
import fp from 'fastify-plugin'
import { createConnection } from './connection.ts'
import { createMembers } from './members.ts'
import { createMessages } from './messages.ts'

export interface SharedOptions {
  /** `redis://` or `rediss://`, with user, password and database where they are needed. */
  url: string
  /** What happens to budgets and limits while Redis cannot be asked. Default `deny`. */
  onRedisDown?: 'deny' | 'local-share'
  /** Milliseconds that an answer may take. Default 50. */
  timeout?: number
  /** Milliseconds after which a silent process counts as dead. Default 10,000. */
  lease?: number
  /** What stands before every key. Default `gw:`. */
  prefix?: string
}

/** Redis: what several processes share. Not registered without one. */
async function sharedPlugin(app: FastifyInstance, options: SharedOptions): Promise<void> {
  const { gateway } = app
  const { url, onRedisDown = 'deny', timeout = 50, lease = 10_000, prefix = 'gw:' } = options
  const store = gateway.optional('store', 'shared')
  const instance = store?.instance ?? randomBytes(9).toString('base64url')
  const connection = createConnection({ url, timeout, prefix, log: gateway.log })
  // Nobody has ever worked with this database, so nobody can have anything to tell about what Redis has forgotten.
  const first = (await store?.setting('shared.first', instance).catch(() => null)) === instance
  const members = createMembers({ connection, instance, lease, first, log: gateway.log })
  const messages = createMessages(connection, instance, () => members.tell({ down: null, lost: false }))

  gateway.decorate('shared', {
    instance,
    prefix,
    onRedisDown,
    get down() {
      return members.down
    },
    get processes() {
      return Math.max(1, members.instances.length)
    },
    get instances() {
      return members.instances
    },
    get generation() {
      return members.generation
    },
    run: connection.run,
    get: key => connection.send(redis => redis.getBuffer(prefix + key)),
    async set(key, value, ttl, onlyNew = false) {
      const bytes = typeof value === 'string' ? value : Buffer.from(value)
      const done = await connection.send(redis =>
        onlyNew ? redis.set(prefix + key, bytes, 'PX', ttl, 'NX') : redis.set(prefix + key, bytes, 'PX', ttl)
      )
      return done === 'OK'
    },
    async delete(key) {
      await connection.send(redis => redis.del(prefix + key))
    },
    publish: messages.publish,
    subscribe: messages.subscribe,
    onState: members.onState,
    onDeath: members.onDeath
  })

  const state = () => {
    if (members.down !== null) {
      // Before the first answer there is nothing to have a share of.
      const ok = onRedisDown === 'local-share' && members.generation !== null
      return { ok, degraded: true, reason: members.down }
    }
    const { instances, evicting } = members
    const known = { ok: true, processes: instances.length }
    return evicting === null ? known : { ...known, warning: `maxmemory-policy is ${evicting}, not noeviction.` }
  }
  gateway.dependency('redis', state, async () => members.down ?? connection.send(redis => redis.ping()))
  app.addHook('onClose', async () => {
    await members.leave()
    messages.close()
    connection.close()
  })
  await members.start()
}

export default fp(sharedPlugin, { fastify: '5.x', name: 'shared', dependencies: ['gateway'] })
