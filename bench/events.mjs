// What events cost the event loop for each call: `node bench/events.mjs [rounds] [redis://…]`. Kernels in one process that differ
// only in the plugin and in who listens; rounds alternate, CPU time of the main thread only, medians. Without a URL there is
// no row for Redis.
import { once } from 'node:events'
import { Worker } from 'node:worker_threads'
import Fastify from 'fastify'
import auth from '../plugins/auth/index.ts'
import events from '../plugins/events/index.ts'
import gateway from '../plugins/gateway/index.ts'
import http from '../plugins/http/index.ts'
import routing from '../plugins/routing/index.ts'

const rounds = Number(process.argv[2] ?? 15)
const redis = process.argv[3]
const calls = 6_000
const concurrency = 64
const quiet = { error: console.error, warn() {}, info() {}, debug() {} }

const usage = { prompt_tokens: 20, completion_tokens: 30, total_tokens: 50 }
const message = { role: 'assistant', content: 'Hello' }
const choices = [{ index: 0, finish_reason: 'stop', message }]
const body = { id: 'c', object: 'chat.completion', created: 1, model: 'm', choices, usage }
const raw = new Uint8Array(0)
const request = { model: 'test', messages: [{ role: 'user', content: 'Hello there, how are you?' }] }
const principal = { tenant: 'acme', key: 'k1', kind: 'key', scopes: ['chat'] }

async function kernel(options) {
  const app = Fastify()
  await app.register(gateway, { log: quiet })
  await app.register(routing, { models: { test: { targets: [{ provider: 'up', model: 'm' }] } } })
  // As far away as a provider is: its answer comes with a later turn of the loop.
  const send = () => new Promise(resolve => setImmediate(resolve, { stream: false, raw, body }))
  app.gateway.providers.register({ name: 'up', capabilities: { dialects: [] }, send })
  // Who keeps no books reads no usage and listens to no end: that is not the cost of events.
  app.gateway.accountWith({ open() {} })
  app.gateway.intercept('observe', (inference, next) => {
    inference.onSettled(ignore)
    return next(inference)
  })
  await app.register(http)
  await app.register(auth, { adminToken: 'token' })
  if (options !== null) await app.register(events, options)
  await app.listen({ host: '127.0.0.1', port: 0 })
  return app
}

function ignore() {}

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

/** Microseconds of this thread for each call. */
async function round(app) {
  let left = calls
  const { gateway } = app
  const origin = { lane: 'http' }
  const { signal } = new AbortController()
  async function client() {
    while (left-- > 0) await gateway.complete(request, { id: gateway.newId(), principal, signal, origin })
  }
  const before = process.threadCpuUsage()
  await Promise.all(Array.from({ length: concurrency }, client))
  // What is told later is part of it.
  await new Promise(resolve => setTimeout(resolve, 150))
  const { user, system } = process.threadCpuUsage(before)
  return (user + system) / calls
}

const rows = [
  ['without the plugin', await kernel(null)],
  ['nobody listens', await kernel({})],
  ['one listener in process', await kernel({})],
  ['one reader of server-sent events', await kernel({})]
]
rows[2][1].gateway.events.on(ignore)
const reader = await listenTo(rows[3][1])
if (redis !== undefined) rows.push(['Redis', await kernel({ url: redis, stream: 'bench.events' })])

const found = rows.map(() => [])
for (let warm = 0; warm < 3; warm++) for (const [, app] of rows) await round(app)
for (let count = 0; count < rounds; count++) {
  for (let row = 0; row < rows.length; row++) found[row].push(await round(rows[row][1]))
}
const median = list => list.toSorted((one, other) => one - other)[list.length >> 1]
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
