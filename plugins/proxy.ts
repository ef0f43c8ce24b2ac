import type { FastifyInstance } from 'fastify'
import fp from 'fastify-plugin'
import { ChatRequest } from '../schemas/chat.ts'

/** POST /proxy/:model: a chat completion with the model in the path. Names may hold slashes, encoded or not. */
async function proxy(app: FastifyInstance): Promise<void> {
  const { gateway } = app
  app.register(async scope => {
    gateway.http.prepare(scope, { open: false, fixed: false })
    scope.post<{ Body: ChatRequest; Params: { '*': string } }>(
      '/proxy/*',
      { schema: { body: ChatRequest }, bodyLimit: gateway.http.bodyLimit },
      (request, reply) => gateway.chat(request, reply, request.body, request.params['*'])
    )
  })
}

export default fp(proxy, { fastify: '5.x', name: 'proxy', dependencies: ['chat-completions'] })
