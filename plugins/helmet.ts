import fastifyHelmet, { type FastifyHelmetOptions } from '@fastify/helmet'
import Fastify, { type FastifyInstance } from 'fastify'
import fp from 'fastify-plugin'

/** For an API: nothing of an answer is to be rendered, so nothing may be loaded by it. */
const apiDefaults: FastifyHelmetOptions = {
  contentSecurityPolicy: {
    useDefaults: false,
    directives: { 'default-src': ["'none'"], 'frame-ancestors': ["'none'"] }
  },
  crossOriginResourcePolicy: { policy: 'cross-origin' }
}

/**
 * @fastify/helmet's headers. They never change between requests, so they are taken once from an answer that helmet
 * itself has made: running it for every request costs a fifth of the throughput.
 */
async function helmet(app: FastifyInstance, options: FastifyHelmetOptions): Promise<void> {
  const probe = Fastify()
  await probe.register(fastifyHelmet, Object.assign({}, apiDefaults, options))
  probe.get('/', async () => '')
  const { headers } = await probe.inject('/')
  await probe.close()
  const own = new Set(['content-type', 'content-length', 'date', 'connection'])
  const fixed = Object.entries(headers).filter(([name]) => !own.has(name))
  app.gateway.http.fix(Object.fromEntries(fixed.map(([name, value]) => [name, String(value)])))
}

export default fp(helmet, { fastify: '5.x', name: 'helmet', dependencies: ['http'] })
