// What the benches of kernels in one process have in common: gateways whose provider answers out of nothing, and rounds of
// calls in which the CPU time of the main thread is taken.
import Fastify from 'fastify'
import gateway from '../plugins/gateway/index.ts'
import routing from '../plugins/routing/index.ts'

export const quiet = { error: console.error, warn() {}, info() {}, debug() {} }
export const message = { role: 'assistant', content: 'Hello' }
const usage = { prompt_tokens: 20, completion_tokens: 30, total_tokens: 50 }
const choices = [{ index: 0, finish_reason: 'stop', message }]
const body = { id: 'c', object: 'chat.completion', created: 1, model: 'm', choices, usage }
const raw = new Uint8Array(0)
export const request = { model: 'test', messages: [{ role: 'user', content: 'Hello there, how are you?' }] }
export const principal = { tenant: 'acme', key: 'k1', kind: 'key', scopes: ['chat'] }
const concurrency = 64

/** As far away as a provider is: its answer comes with a later turn of the loop. */
export function send() {
  return new Promise(resolve => setImmediate(resolve, { stream: false, raw, body }))
}

/** A host with the alias `test`; not ready yet, so that plugins can be added. */
export async function kernel() {
  const app = Fastify()
  await app.register(gateway, { log: quiet })
  await app.register(routing, { models: { test: { targets: [{ provider: 'up', model: 'm' }] } } })
  app.gateway.providers.register({ name: 'up', capabilities: { dialects: [] }, send })
  return app
}

/** Listens to the end of calls, as some plugin does in every gateway. */
export function listen(app, listener = ignore) {
  app.gateway.intercept('observe', (inference, next) => {
    inference.onSettled(listener)
    return next(inference)
  })
}

export function ignore() {}

/** One call. @param caller what is not as usual about who asks */
export function complete({ gateway }, asked, signal, caller) {
  return gateway.complete(asked, { id: gateway.newId(), principal, signal, origin, ...caller })
}

const origin = { lane: 'http' }

/** Microseconds of this thread for each of so many calls. @param rest milliseconds in which what is told later is done */
export function round(app, calls, { asked = request, rest = 0 } = {}) {
  const { signal } = new AbortController()
  return inTurn(calls, () => complete(app, asked, signal), rest)
}

/** The same of any work, which is given its number. */
export async function inTurn(count, work, rest = 0) {
  let left = count
  async function client() {
    while (left-- > 0) await work(left)
  }
  const before = process.threadCpuUsage()
  await Promise.all(Array.from({ length: concurrency }, client))
  if (rest > 0) await new Promise(resolve => setTimeout(resolve, rest))
  const { user, system } = process.threadCpuUsage(before)
  return (user + system) / count
}
