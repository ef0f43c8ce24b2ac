import fastifySensible, { type FastifySensibleOptions } from '@fastify/sensible'
import type { FastifyInstance } from 'fastify'
import fp from 'fastify-plugin'

/** @fastify/sensible inside our scope. Where a host has a decorator or a schema of the same name, the host's stays. */
async function sensible(app: FastifyInstance, options: FastifySensibleOptions): Promise<void> {
  const polite: FastifyInstance = Object.create(app, {
    decorate: { value: (name: string, value: unknown) => app.hasDecorator(name) || app.decorate(name, value) },
    decorateRequest: {
      value: (name: string, value: unknown) => app.hasRequestDecorator(name) || app.decorateRequest(name, value)
    },
    decorateReply: {
      value: (name: string, value: unknown) => app.hasReplyDecorator(name) || app.decorateReply(name, value)
    },
    addSchema: { value: (schema: { $id: string }) => app.getSchema(schema.$id) || app.addSchema(schema) }
  })
  await new Promise<void>((resolve, reject) => {
    fastifySensible(polite, options, error => (error ? reject(error) : resolve()))
  })
}

export default fp(sensible, { fastify: '5.x', name: 'sensible' })
