// What watching costs the event loop for each call: `node bench/observe.mjs`. Kernels in one process: one where nobody
// watches, and one for each plugin that does, by itself and all together. They take turns, a round each; CPU time of the
// main thread only, and the median of the differences within each turn.
import { closeSync, mkdtempSync, openSync, rmSync } from 'node:fs'
import { hostname, tmpdir } from 'node:os'
import { join } from 'node:path'
import Fastify from 'fastify'
import { destination, pino } from 'pino'
import events from '../plugins/events/index.ts'
import gateway from '../plugins/gateway/index.ts'
import http from '../plugins/http/index.ts'
import metrics from '../plugins/metrics/index.ts'
import { logDestination } from '../plugins/request-log/destination.ts'
import requestLog from '../plugins/request-log/index.ts'
import { callLine } from '../plugins/request-log/line.ts'
import routing from '../plugins/routing/index.ts'
import stats from '../plugins/stats.ts'
import traces from '../plugins/traces.ts'
import { noUsage } from '../schemas/usage.ts'
import { ignore, listen, message, principal, quiet, round } from './kernel.mjs'
import { median } from './table.mjs'

const rounds = Number(process.argv[2] ?? 25)
const calls = 6_000
const directory = mkdtempSync(join(tmpdir(), 'gateway-bench-observe-'))
const fd = openSync(join(directory, 'gateway.log'), 'a')

const choices = [{ index: 0, finish_reason: 'stop', message }]
const answer = {
  stream: false,
  raw: new Uint8Array(0),
  body: { id: 'c', object: 'chat.completion', created: 1, choices }
}
const usage = { ...noUsage, input: 20, output: 30, source: 'reported' }
const meter = { usage: () => usage, awaitsUsage: false }

/** As server.ts makes it. */
function ourLog(level = 'info') {
  const sink = logDestination({ fd })
  const bindings = `,"pid":${process.pid},"hostname":${JSON.stringify(hostname())}`
  const logCall = (level, record) => sink.write(callLine(level, record, bindings))
  return Object.assign(pino({ level }, sink), { logCall })
}

/** What a host gives: pino with a file of its own. */
function hostsLog() {
  return pino(destination({ dest: join(directory, 'host.log'), minLength: 4_096, sync: false }))
}

/** What each kernel has besides: its logger, and plugins. */
const watched = {
  'nobody watches': {},
  'the record of a call': {
    plugins: [async app => listen(app, outcome => outcome.record)]
  },
  'log, to a file': { log: ourLog(), plugins: [requestLog] },
  'log, a host with pino': { log: hostsLog(), plugins: [requestLog] },
  'log, below its level': { log: ourLog('warn'), plugins: [requestLog] },
  traces: { plugins: [traces] },
  stats: { plugins: [stats] },
  metrics: { plugins: [metrics] },
  'events, nobody listens': { plugins: [events] },
  'all of these': { log: ourLog(), plugins: [requestLog, traces, stats, metrics, events] }
}

async function kernel({ log = quiet, plugins = [] }) {
  const app = Fastify()
  await app.register(gateway, { log })
  await app.register(routing, { models: { test: { targets: [{ provider: 'claude', model: 'claude-sonnet-4-5' }] } } })
  // As far away as a provider is: its answer comes with a later turn of the loop.
  const send = attempt => {
    attempt.entry.meter = meter
    return new Promise(resolve => setImmediate(resolve, answer))
  }
  app.gateway.providers.register({ name: 'claude', capabilities: { dialects: [] }, send })
  app.gateway.accountWith({ cost: () => 450_000, open: ignore })
  await app.register(http, {})
  app.gateway.decorate('authenticate', () => principal)
  const totals = () => ({ requests: 0, tokensIn: 0, tokensOut: 0, cost: 0 })
  app.gateway.decorate('ledger', {
    recent: () => [],
    totals,
    sums: async () => totals(),
    refused: new Map(),
    mismatches: 0
  })
  // Some plugin listens to the end of calls in every gateway.
  listen(app)
  for (const plugin of plugins) await app.register(plugin)
  await app.ready()
  return app
}

const kernels = new Map()
for (const [name, parts] of Object.entries(watched)) kernels.set(name, await kernel(parts))
for (let warm = 0; warm < 4; warm++) for (const app of kernels.values()) await round(app, calls)
const taken = new Map(Array.from(kernels.keys(), name => [name, []]))
for (let index = 0; index < rounds; index++) {
  for (const [name, app] of kernels) taken.get(name).push(await round(app, calls))
}
await Promise.all(Array.from(kernels.values(), app => app.close()))
closeSync(fd)
rmSync(directory, { recursive: true, force: true })

const [[first, base], ...others] = taken
console.log(`${first.padEnd(24)} ${median(base).toFixed(2)} µs a call`)
for (const [name, values] of others) {
  const added = median(values.map((value, index) => value - base[index]))
  console.log(`${name.padEnd(24)} +${added.toFixed(2)} µs a call of the event loop`)
}
