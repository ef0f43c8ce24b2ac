// What the ledger costs the event loop for each call: `node bench/ledger.mjs`. Two kernels in one process, one without
// books and one with the ledger on SQLite; rounds alternate, CPU time of the main thread only, medians.
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import Fastify from 'fastify'
import gateway from '../plugins/gateway/index.ts'
import ledger from '../plugins/ledger/index.ts'
import routing from '../plugins/routing/index.ts'
import store from '../plugins/store/index.ts'

const rounds = Number(process.argv[2] ?? 15)
const calls = 6_000
const concurrency = 64
const quiet = { error: console.error, warn() {}, info() {}, debug() {} }
const directory = mkdtempSync(join(tmpdir(), 'gateway-bench-ledger-'))

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
const principal = { tenant: 'acme', key: 'k1', kind: 'key', scopes: ['chat'] }

async function kernel(withLedger) {
  const app = Fastify()
  await app.register(gateway, { log: quiet })
  await app.register(routing, { models: { test: { targets: [{ provider: 'up', model: 'm' }] } } })
  // As far away as a provider is: its answer comes with a later turn of the loop.
  const send = () => new Promise(resolve => setImmediate(resolve, { stream: false, raw, body }))
  app.gateway.providers.register({ name: 'up', capabilities: { dialects: [] }, send })
  if (withLedger) {
    await app.register(store, { url: `sqlite:${directory}/gateway.db` })
    const settings = {
      durability: 'process',
      onClientGone: 'abort',
      retention: 86_400_000,
      shared: false,
      lease: 10_000
    }
    await app.register(ledger, { ...settings, directory: join(directory, 'journal') })
  } else {
    // Who keeps no books reads no usage either: that is not the ledger's cost.
    app.gateway.accountWith({ open() {} })
    app.gateway.intercept('observe', (inference, next) => {
      inference.onSettled(ignore)
      return next(inference)
    })
  }
  await app.ready()
  return app
}

function ignore() {}

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
  const { user, system } = process.threadCpuUsage(before)
  return (user + system) / calls
}

const bare = await kernel(false)
const kept = await kernel(true)
for (let warm = 0; warm < 4; warm++) {
  await round(bare)
  await round(kept)
}
const differences = []
const base = []
for (let index = 0; index < rounds; index++) {
  const without = await round(bare)
  const withBooks = await round(kept)
  base.push(without)
  differences.push(withBooks - without)
}
const started = performance.now()
await kept.gateway.store.ledger.folded()
const folded = performance.now() - started
const { differences: wrong, rows } = await kept.gateway.store.ledger.verify()
await Promise.all([bare.close(), kept.close()])
rmSync(directory, { recursive: true, force: true })
if (wrong.length > 0 || rows !== (rounds + 4) * calls) throw new Error(`the books are wrong: ${rows} rows`)
console.log(`kernel without books ${median(base).toFixed(2)} µs a call`)
console.log(`the ledger adds      ${median(differences).toFixed(2)} µs a call of the event loop (target: under 3)`)
console.log(`${rows} rows; the rest of the journal was folded in ${folded.toFixed(0)} ms`)

function median(values) {
  return values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)]
}
