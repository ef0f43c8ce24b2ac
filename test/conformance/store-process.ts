import Fastify from 'fastify'
import gateway from '../../plugins/gateway/index.ts'
import routing from '../../plugins/routing/index.ts'
import store, { type StoreOptions } from '../../plugins/store/index.ts'
import { tenant } from './store-rows.ts'

// A gateway with nothing but a store, in a process of its own. Says `open` or why not, then does what its parent asks.

const options: StoreOptions = JSON.parse(process.argv[2] ?? '{}')
const app = Fastify()
const say = (message: object) => process.send?.(message)

try {
  await app.register(gateway)
  await app.register(routing, { models: {} })
  await app.register(store, options)
  await app.ready()
  say({ open: true })
} catch (error) {
  say({ refused: error instanceof Error ? error.message : String(error) })
  process.disconnect?.()
}

process.on('message', async (order: { insert?: string; setting?: string; close?: true }) => {
  const books = app.gateway.store!
  if (order.insert !== undefined) {
    const audit = {
      actor: `process ${process.pid}`,
      action: 'tenant.create',
      subject: order.insert,
      before: null,
      after: {}
    }
    say({ inserted: await books.tenants.insert(tenant(order.insert), audit) })
  }
  if (order.setting !== undefined) say({ setting: await books.setting('secret', order.setting) })
  if (order.close) {
    await app.close()
    process.disconnect?.()
  }
})
