import type { FastifyInstance } from 'fastify'
import fp from 'fastify-plugin'
import { detail, ModelNotFound } from '../schemas/errors.ts'

/** GET /v1/models, /v1/models/:id and /models: what a request may name. */
async function models(app: FastifyInstance): Promise<void> {
  const { gateway } = app
  const list = async () => ({ object: 'list', data: await gateway.models.list() })
  app.register(async scope => {
    gateway.http.prepare(scope, { open: false })
    scope.get('/v1/models', list)
    scope.get('/models', list)
    scope.get<{ Params: { '*': string } }>('/v1/models/*', async request => {
      const id = request.params['*']
      const model = await gateway.models.get(id)
      if (model === undefined) throw detail(new ModelNotFound(id), { param: 'model' })
      return model
    })
  })
}

export default fp(models, { fastify: '5.x', name: 'models', dependencies: ['http', 'routing'] })
