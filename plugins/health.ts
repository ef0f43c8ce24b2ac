import { setImmediate } from 'node:timers/promises'
import type { FastifyInstance } from 'fastify'
import fp from 'fastify-plugin'
import type { HealthAnswer } from '../schemas/admin-answers.ts'
import { shortHash } from '../schemas/hash.ts'

/** Shares of a second and less say more of the question than of the process: until then the last figures stand. */
const shortest = 1_000

/**
 * GET /health: the process answers. GET /ready: it takes work, with every dependency by name; 503 when it does not. Both say
 * which configuration calls are routed by: the beginning of its hash, null where nobody computed one. GET /api/health, for
 * the administrator: the same with an answer of each dependency, and what the process uses.
 */
async function health(app: FastifyInstance): Promise<void> {
  const { gateway } = app
  const usage = createUsage()
  const now = () => ({
    time: new Date().toISOString(),
    config: gateway.models.hash && shortHash(gateway.models.hash)
  })
  app.register(async scope => {
    gateway.http.prepare(scope, { open: true })
    scope.get('/health', async () => ({ ok: true, ...now() }))
    scope.get('/ready', async (_request, reply) => {
      const { ok, checks } = await gateway.readiness()
      return reply.code(ok ? 200 : 503).send({ ok, ...now(), checks })
    })
  })
  gateway.http.admin(app, scope => {
    scope.get('/api/health', async (): Promise<HealthAnswer> => {
      const before = performance.now()
      await setImmediate()
      const turn = performance.now() - before
      const { ok, checks } = await gateway.readiness(true)
      return { ok, ...now(), checks, process: { ...usage(), event_loop_turn_ms: rounded(turn, 100) } }
    })
  })
}

/** What the process uses. `cpu_percent` (of one core) and `event_loop_percent` are since the last question. */
function createUsage() {
  let since = performance.now()
  let cpu = process.cpuUsage()
  let loop = performance.eventLoopUtilization()
  let shares = { cpu_percent: 0, event_loop_percent: 0 }
  let known = false

  return () => {
    const passed = performance.now() - since
    if (passed >= shortest || !known) {
      const { user, system } = process.cpuUsage(cpu)
      const { utilization } = performance.eventLoopUtilization(loop)
      shares = {
        cpu_percent: rounded((user + system) / 10 / passed, 10),
        event_loop_percent: rounded(utilization * 100, 10)
      }
      known = true
      since = performance.now()
      cpu = process.cpuUsage()
      loop = performance.eventLoopUtilization()
    }
    const { rss, heapUsed, heapTotal, external } = process.memoryUsage()
    const memory = { rss_bytes: rss, heap_used_bytes: heapUsed, heap_total_bytes: heapTotal, external_bytes: external }
    return { pid: process.pid, node: process.version, uptime_s: Math.round(process.uptime()), ...memory, ...shares }
  }
}

function rounded(value: number, parts: number): number {
  return Math.round(value * parts) / parts
}

export default fp(health, { fastify: '5.x', name: 'health', dependencies: ['http'] })
