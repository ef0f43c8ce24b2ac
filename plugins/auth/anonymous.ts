import type { FastifyInstance } from 'fastify'
import { InvalidApiKey } from '../../schemas/errors.ts'
import type { Credentials } from '../../schemas/gateway.ts'
import { isLoopback, isLoopbackHost } from '../../schemas/loopback.ts'
import { header } from './credentials.ts'

export const missing = 'Send an API key: Authorization: Bearer <key>.'

/** Lets in without a key: this machine's own programs only, neither a proxy's guests nor web pages. @throws InvalidApiKey */
export function createDoor(app: FastifyInstance, allowedOrigins: readonly string[]) {
  const origins = new Set(allowedOrigins)
  let local: boolean | null = null
  /** The Host that was found to be local last: nearly always the next one too. */
  let lastLocalHost: string | null = null

  return function refuseStrangers({ headers }: Credentials): void {
    local ??= app.server.listening ? app.addresses().every(isLocal) : null
    if (local === false) throw new InvalidApiKey(missing)
    const host = header(headers['host'])
    if (host !== lastLocalHost && !isLoopbackHost(host)) {
      throw new InvalidApiKey(`${missing} Without one, only requests to localhost are served.`)
    }
    lastLocalHost = host ?? null
    for (const name in headers) {
      if (name === 'forwarded' || name.startsWith('x-forwarded-')) {
        throw new InvalidApiKey(`${missing} Without one, requests that came through a proxy are not served.`)
      }
    }
    const origin = header(headers['origin'])
    if (origin !== undefined && !origins.has(origin)) {
      throw new InvalidApiKey(`${missing} Without one, pages of ${origin} are not served: see server.cors.`)
    }
  }
}

/** A page of any origin may send text/plain without asking first, so it takes a key. @throws InvalidApiKey */
export function refuseSimple({ headers }: Credentials): void {
  if (header(headers['content-type'])?.toLowerCase().startsWith('text/plain')) {
    throw new InvalidApiKey('Send application/json, or an API key: text/plain is not accepted without one.')
  }
}

/** A socket file is not: whoever can open it may be a proxy. */
function isLocal(address: ReturnType<FastifyInstance['addresses']>[number]): boolean {
  return typeof address === 'object' && isLoopback(address.address)
}
