import type { FastifyInstance } from 'fastify'
import fp from 'fastify-plugin'
import { shortHash } from '../schemas/hash.ts'

/**
 * GET /health: the process answers. GET /ready: it takes work, with every dependency by name; 503 when it does not. Both say
 * which configuration calls are routed by: the beginning of its hash, null where nobody computed one.
 */
async function health(app: FastifyInstance): Promise<void> {
  const { gateway } = app
  app.register(async scope => {
    gateway.http.prepare(scope, { open: true })
    const now = () => ({
      time: new Date().toISOString(),
      config: gateway.models.hash && shortHash(gateway.models.hash)
    })
    scope.get('/health', async () => ({ ok: true, ...now() }))
    scope.get('/ready', async (_request, reply) => {
      const { ok, checks } = await gateway.readiness()
      return reply.code(ok ? 200 : 503).send({ ok, ...now(), checks })
    })
  })
}

export default fp(health, { fastify: '5.x', name: 'health', dependencies: ['http'] })
