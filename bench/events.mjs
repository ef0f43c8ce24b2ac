// What events cost the event loop for each call: `node bench/events.mjs [rounds] [redis://…]`. Kernels in one process that differ
// only in the plugin and in who listens; rounds alternate, CPU time of the main thread only, medians. Without a URL there is
// no row for Redis.
import { once } from 'node:events'
import { Worker } from 'node:worker_threads'
import auth from '../plugins/auth/index.ts'
import events from '../plugins/events/index.ts'
import http from '../plugins/http/index.ts'
import { ignore, kernel, listen, round } from './kernel.mjs'
import { median } from './table.mjs'

const rounds = Number(process.argv[2] ?? 15)
const redis = process.argv[3]
const calls = 6_000
/** Milliseconds in which events are told: that is part of what they cost. */
const rest = 150

async function make(options) {
  const app = await kernel()
  // Who keeps no books reads no usage and listens to no end: that is not the cost of events.
  app.gateway.accountWith({ open: ignore })
  listen(app)
  await app.register(http)
  await app.register(auth, { adminToken: 'token' })
  if (options !== null) await app.register(events, options)
  await app.listen({ host: '127.0.0.1', port: 0 })
  return app
}

/** Reads server-sent events in a thread of its own: what a reader takes to read is not the gateway's cost. */
async function listenTo(app) {
  const { port } = app.server.address()
  const code = `
    const { get } = require('node:http')
    const { parentPort } = require('node:worker_threads')
    const headers = { authorization: 'Bearer token' }
    get({ port: ${port}, host: '127.0.0.1', path: '/events', headers }, response => {
      response.resume()
      response.once('data', () => parentPort.postMessage('ready'))
      response.on('error', () => {})
    }).on('error', () => {})`
  const reader = new Worker(code, { eval: true })
  await once(reader, 'message')
  return reader
}

const rows = [
  ['without the plugin', await make(null)],
  ['nobody listens', await make({})],
  ['one listener in process', await make({})],
  ['one reader of server-sent events', await make({})]
]
rows[2][1].gateway.events.on(ignore)
const reader = await listenTo(rows[3][1])
if (redis !== undefined) rows.push(['Redis', await make({ url: redis, stream: 'bench.events' })])

const found = rows.map(() => [])
for (let warm = 0; warm < 3; warm++) for (const [, app] of rows) await round(app, calls, { rest })
for (let count = 0; count < rounds; count++) {
  for (let row = 0; row < rows.length; row++) found[row].push(await round(rows[row][1], calls, { rest }))
}
const base = median(found[0])
for (let row = 0; row < rows.length; row++) {
  const [name] = rows[row]
  const cost = median(found[row].map((value, index) => value - found[0][index]))
  console.log(
    `${name.padEnd(34)} ${median(found[row]).toFixed(2)} µs per call${row === 0 ? '' : `, ${cost.toFixed(2)} more`}`
  )
}
console.log(`4 events per call; ${rounds} rounds of ${calls} calls; base ${base.toFixed(2)} µs`)
for (const [, app] of rows) await app.close()
await reader.terminate()
