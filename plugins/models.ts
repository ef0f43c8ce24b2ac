import type { FastifyInstance, FastifyRequest } from 'fastify'
import fp from 'fastify-plugin'
import { detail, ModelNotFound } from '../schemas/errors.ts'

/** GET /v1/models, /v1/models/:id and /models: what the caller may name in a request. */
async function models(app: FastifyInstance): Promise<void> {
  const { gateway } = app

  /** Whether the caller's tenant may use a model; an administrator sees all. */
  async function allowance(request: FastifyRequest): Promise<(id: string) => boolean> {
    const { tenants } = gateway
    const { tenant, kind } = gateway.http.principal(request)
    if (tenants === undefined || kind === 'admin') return () => true
    await tenants.find(tenant)
    return id => tenants.allows(tenant, id)
  }

  async function list(request: FastifyRequest) {
    const allows = await allowance(request)
    return { object: 'list', data: (await gateway.models.list()).filter(({ id }) => allows(id)) }
  }

  app.register(async scope => {
    gateway.http.prepare(scope, { open: false })
    scope.get('/v1/models', list)
    scope.get('/models', list)
    scope.get<{ Params: { '*': string } }>('/v1/models/*', async request => {
      const id = request.params['*']
      const allows = await allowance(request)
      const model = allows(id) ? await gateway.models.get(id) : undefined
      if (model === undefined) throw detail(new ModelNotFound(id), { param: 'model' })
      return model
    })
  })
}

export default fp(models, { fastify: '5.x', name: 'models', dependencies: ['http', 'routing'] })
