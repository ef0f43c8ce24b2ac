// What metrics cost: `node bench/metrics.mjs`. Two gateways in one process, one with the plugin and one without; rounds
// alternate, CPU time of the main thread only, medians. Then a scrape with 100 and with 10,000 tenants.
import { IncomingMessage, ServerResponse } from 'node:http'
import Fastify from 'fastify'
import gateway from '../plugins/gateway/index.ts'
import http from '../plugins/http/index.ts'
import metrics from '../plugins/metrics/index.ts'
import routing from '../plugins/routing/index.ts'

const rounds = Number(process.argv[2] ?? 15)
const calls = 10_000
const concurrency = 64
const quiet = { error: console.error, warn() {}, info() {}, debug() {} }
const usage = { prompt_tokens: 20, completion_tokens: 30, total_tokens: 50 }
const message = { role: 'assistant', content: 'Hello' }
const body = {
  id: 'c',
  object: 'chat.completion',
  created: 1,
  model: 'm',
  choices: [{ index: 0, finish_reason: 'stop', message }],
  usage
}
const raw = new Uint8Array(0)
const request = { model: 'test', messages: [{ role: 'user', content: 'Hello there, how are you?' }] }
const { signal } = new AbortController()

async function kernel(options) {
  const app = Fastify()
  await app.register(gateway, { log: quiet })
  await app.register(routing, { models: { test: { targets: [{ provider: 'up', model: 'm' }] } } })
  // As far away as a provider is: its answer comes with a later turn of the loop.
  const send = () => new Promise(resolve => setImmediate(resolve, { stream: false, raw, body }))
  app.gateway.providers.register({ name: 'up', capabilities: { dialects: [] }, send })
  await app.register(http)
  if (options) await app.register(metrics, { public: true, ...options })
  // Books are kept and the record is read with or without metrics: others want them too.
  app.gateway.accountWith({ cost: () => 450, open() {} })
  app.gateway.intercept('observe', (inference, next) => {
    inference.onSettled(outcome => void outcome.record)
    return next(inference)
  })
  app.register(async scope => {
    app.gateway.http.prepare(scope, { open: true })
    scope.get('/nothing', (_request, reply) => {
      reply.hijack()
      reply.raw.emit('finish')
      reply.raw.emit('close')
    })
  })
  await app.ready()
  return app
}

async function inTurn(work) {
  let left = calls
  const client = async () => {
    while (left-- > 0) await work(left)
  }
  const before = process.threadCpuUsage()
  await Promise.all(Array.from({ length: concurrency }, client))
  const { user, system } = process.threadCpuUsage(before)
  return (user + system) / calls
}

function complete(app, tenants) {
  const principals = Array.from({ length: tenants }, (_, index) => {
    return { tenant: `tenant-${index}`, key: 'k1', kind: 'key', scopes: ['chat'] }
  })
  const origin = { lane: 'http' }
  return index =>
    app.gateway.complete(request, {
      id: app.gateway.newId(),
      principal: principals[index % tenants],
      signal,
      origin,
      traceId: '0af7651916cd43dd8448eb211c80319c'
    })
}

async function compare(bare, full) {
  const differences = []
  for (let round = -4; round < rounds; round++) {
    const without = await inTurn(bare)
    const difference = (await inTurn(full)) - without
    if (round >= 0) differences.push(difference)
  }
  return median(differences).toFixed(2)
}

const bare = await kernel(null)
const measured = await kernel({})
console.log(`a call:             ${await compare(complete(bare, 50), complete(measured, 50))} µs`)
/** No socket and no inject, which remembers every answer: what is left is Fastify's own part of a request. */
const get = app => () => {
  const request = new IncomingMessage(null)
  Object.assign(request, { method: 'GET', url: '/nothing', headers: { host: 'x' } })
  app.routing(request, new ServerResponse(request))
}
console.log(`an answer over HTTP ${await compare(get(bare), get(measured))} µs`)

for (const [tenants, maxTenants] of [
  [100, 100],
  [10_000, 100],
  [10_000, 1_000],
  [10_000, 10_000]
]) {
  const app = await kernel({ maxTenants })
  const work = complete(app, tenants)
  for (let index = 0; index < tenants; index++) await work(index)
  const times = []
  let text = ''
  for (let scrape = 0; scrape < 40; scrape++) {
    const started = performance.now()
    text = await app.gateway.metrics.registry.metrics()
    times.push(performance.now() - started)
  }
  const lines = text.split('\n').filter(line => line !== '' && !line.startsWith('#')).length
  console.log(
    `a scrape with ${tenants} tenants, maxTenants ${maxTenants}: ${median(times).toFixed(2)} ms (the first ` +
      `${times[0].toFixed(2)} ms), ${lines} series, ${(text.length / 1024).toFixed(0)} KiB`
  )
  await app.close()
}
await Promise.all([bare.close(), measured.close()])

function median(values) {
  return values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)]
}
