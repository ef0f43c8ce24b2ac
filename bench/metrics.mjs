// What metrics cost: `node bench/metrics.mjs`. Two gateways in one process, one with the plugin and one without; rounds
// alternate, CPU time of the main thread only, medians. Then a scrape with 100 and with 10,000 tenants.
import { IncomingMessage, ServerResponse } from 'node:http'
import http from '../plugins/http/index.ts'
import metrics from '../plugins/metrics/index.ts'
import { complete, ignore, inTurn, kernel, listen, principal, request } from './kernel.mjs'
import { median } from './table.mjs'

const rounds = Number(process.argv[2] ?? 15)
const calls = 10_000
const { signal } = new AbortController()

async function make(options) {
  const app = await kernel()
  await app.register(http)
  if (options) await app.register(metrics, { public: true, ...options })
  // Books are kept and the record is read with or without metrics: others want them too.
  app.gateway.accountWith({ cost: () => 450, open: ignore })
  listen(app, outcome => void outcome.record)
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

/** Calls of so many tenants, in turn. */
function callsOf(app, tenants) {
  const principals = Array.from({ length: tenants }, (_, index) => ({ ...principal, tenant: `tenant-${index}` }))
  const traceId = '0af7651916cd43dd8448eb211c80319c'
  return index => complete(app, request, signal, { principal: principals[index % tenants], traceId })
}

async function compare(bare, full) {
  const differences = []
  for (let round = -4; round < rounds; round++) {
    const without = await inTurn(calls, bare)
    const difference = (await inTurn(calls, full)) - without
    if (round >= 0) differences.push(difference)
  }
  return median(differences).toFixed(2)
}

const bare = await make(null)
const measured = await make({})
console.log(`a call:             ${await compare(callsOf(bare, 50), callsOf(measured, 50))} µs`)
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
  const app = await make({ maxTenants })
  const work = callsOf(app, tenants)
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
