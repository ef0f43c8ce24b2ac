// What routing costs the event loop for each call: `node bench/routing.mjs`. Two kernels in one process: one with routing,
// for an alias with three targets of two keys each, a fallback, breakers and deadlines; one whose dispatch knows a single
// target and only opens, sends and settles. Rounds alternate, CPU time of the main thread only, medians.
import Fastify from 'fastify'
import gateway from '../plugins/gateway/index.ts'
import routing from '../plugins/routing/index.ts'
import { message, quiet, request, round, send } from './kernel.mjs'
import { median } from './table.mjs'

const rounds = Number(process.argv[2] ?? 25)
const calls = 10_000
const timeouts = { connect: 5_000, headers: 60_000, firstToken: 60_000, idle: 30_000, total: 600_000 }

const longer = { ...request, messages: [...request.messages, message, { role: 'user', content: 'And today?' }] }
const provider = { name: 'up', keys: 2, capabilities: { dialects: [] }, send }

async function routed() {
  const app = Fastify()
  await app.register(gateway, { log: quiet })
  const targets = ['a', 'b', 'c'].map(model => ({ provider: 'up', model }))
  const models = {
    test: { targets, fallbacks: ['spare'] },
    ...Object.fromEntries(
      ['priority', 'least-latency', 'least-busy'].map(strategy => [
        strategy,
        { strategy, targets, fallbacks: ['spare'] }
      ])
    ),
    spare: { targets: [{ provider: 'up', model: 'd' }] }
  }
  await app.register(routing, { models })
  app.gateway.providers.register(provider)
  await app.ready()
  return app
}

async function trivial() {
  const app = Fastify()
  await app.register(gateway, { log: quiet })
  const target = { provider, model: 'a', weight: 1, price: null }
  const route = { alias: 'test', targets: [target], timeouts, maxOutputTokens: null, inputTokensPerImage: 1_600 }
  app.gateway.routeWith({
    resolve: () => route,
    async dispatch(inference) {
      const entry = app.gateway.open(inference, target)
      inference.facts.target = target
      inference.facts.attempts++
      const { signal } = inference
      const asked = { ...inference.request, model: target.model }
      const sent = { inference, target, number: 1, key: 0, request: asked, headers: {}, caller: inference, signal }
      const answered = await app.gateway.send({ ...sent, timeouts, entry })
      entry.settle()
      return answered
    }
  })
  await app.ready()
  return app
}

const base = await trivial()
const full = await routed()
const cases = {
  'routing adds': request,
  'from the second turn on': longer,
  priority: { ...request, model: 'priority' },
  'least-latency': { ...request, model: 'least-latency' },
  'least-busy': { ...request, model: 'least-busy' }
}
for (let warm = 0; warm < 5; warm++) {
  await round(base, calls)
  for (const asked of Object.values(cases)) await round(full, calls, { asked })
}
const without = []
const added = Object.fromEntries(Object.keys(cases).map(name => [name, []]))
for (let index = 0; index < rounds; index++) {
  for (const [name, asked] of Object.entries(cases)) {
    const kernel = await round(base, calls, { asked })
    without.push(kernel)
    added[name].push((await round(full, calls, { asked })) - kernel)
  }
}
await Promise.all([base.close(), full.close()])
console.log(`trivial dispatch          ${median(without).toFixed(2)} µs a call`)
for (const [name, values] of Object.entries(added)) {
  console.log(`${name.padEnd(25)} ${median(values).toFixed(2)} µs a call of the event loop (target: under 3)`)
}
