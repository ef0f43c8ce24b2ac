import type { FastifyInstance } from 'fastify'
import fp from 'fastify-plugin'

/** GET /health: the process answers. GET /ready: it takes work, with every dependency by name; 503 when it does not. */
async function health(app: FastifyInstance): Promise<void> {
  const { gateway } = app
  app.register(async scope => {
    gateway.http.prepare(scope, { open: true })
    scope.get('/health', async () => ({ ok: true, time: new Date().toISOString() }))
    scope.get('/ready', async (_request, reply) => {
      const { ok, checks } = await gateway.readiness()
      return reply.code(ok ? 200 : 503).send({ ok, time: new Date().toISOString(), checks })
    })
  })
}

export default fp(health, { fastify: '5.x', name: 'health', dependencies: ['http'] })
