import Fastify from 'fastify'
import modelGateway, { serverOptions } from '../../app.ts'

// A gateway in a process of its own, so that its memory is nobody else's. Started by load.ts, with --expose-gc.

export interface Memory {
  /** heapUsed + external after two collections. */
  readonly held: number
  /** Now, and the most since the last question. */
  readonly rss: number
  readonly peak: number
  readonly running: number
}

const upstream = process.argv[2]!
const app = Fastify(serverOptions({ bodyLimit: 10 * 1024 * 1024, trustProxy: false }))
await app.register(modelGateway, {
  store: false,
  providers: { up: { type: 'openai-compatible', baseUrl: upstream } },
  models: { test: { targets: [{ provider: 'up', model: 'upstream-model', price: { input: 0, output: 0 } }] } },
  plugins: { rateLimit: false }
})
const url = await app.listen({ host: '127.0.0.1', port: 0 })

let peak = 0
setInterval(() => {
  peak = Math.max(peak, process.memoryUsage.rss())
}, 5)

process.on('message', async () => {
  for (let round = 0; round < 2; round++) {
    globalThis.gc?.()
    await new Promise(setImmediate)
  }
  const { heapUsed, external, rss } = process.memoryUsage()
  const memory: Memory = { held: heapUsed + external, rss, peak: Math.max(peak, rss), running: app.gateway.running }
  peak = 0
  process.send?.(memory)
})
process.on('disconnect', () => process.exit())
process.send?.(url)
