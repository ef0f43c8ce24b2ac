import type { IncomingMessage } from 'node:http'
import type { FastifyInstance, FastifyRequest } from 'fastify'
import { InvalidApiKey, MissingScope, TenantDisabled } from '../../schemas/errors.ts'
import type { Gateway, Principal } from '../../schemas/gateway.ts'
import type { Scope } from '../../schemas/tenants.ts'

export const principalKey = Symbol('gateway.principal')

declare module 'fastify' {
  interface FastifyRequest {
    [principalKey]: Principal | null
  }
}

/** Who is let in to a scope. */
export interface Guard {
  /** What the credential must allow; with `admin` its tenant must also be switched on, which calls are asked later. */
  scope?: Scope
  /** Another way to say who asks, before the headers are looked at; null: this request does not go it. @throws InvalidApiKey */
  ticket?(request: FastifyRequest): Principal | Promise<Principal> | null
}

/** Asks every request to a scope who sends it, before its body is read. */
export function guard(scope: FastifyInstance, gateway: Gateway, options: Guard): void {
  scope.addHook('onRequest', (request, _reply, done) => {
    if (!gateway.authenticate) return done()
    if (isTwofold(request.raw)) throw new InvalidApiKey('This request carries two different credentials.')
    const principal = options.ticket?.(request) ?? gateway.authenticate({ headers: request.headers })
    if (!(principal instanceof Promise)) {
      request[principalKey] = admitted(principal, options.scope)
      return done()
    }
    principal
      .then(found => {
        request[principalKey] = admitted(found, options.scope)
      })
      .then(() => done(), done)
  })
  if (options.scope !== 'admin') return
  scope.addHook('onRequest', async request => {
    const { kind, tenant } = principalOf(request)
    if (kind === 'key' && (await gateway.tenants?.find(tenant))?.active === false) throw new TenantDisabled(tenant)
  })
}

/** Node keeps the first of several Authorization headers; a proxy before us may have looked at another one. */
function isTwofold(request: IncomingMessage): boolean {
  const { authorization } = request.headers
  if (authorization === undefined) return false
  const raw = request.rawHeaders
  return raw.some((name, index) => index % 2 === 0 && isCredential(name) && raw[index + 1] !== authorization)
}

function isCredential(name: string): boolean {
  return name.length === 13 && name.toLowerCase() === 'authorization'
}

/** @throws InvalidApiKey, MissingScope */
function admitted(principal: Principal, scope: Scope | undefined): Principal {
  if (scope === undefined) return principal
  if (principal.kind === 'anonymous') throw new InvalidApiKey('Send an admin token: Authorization: Bearer <token>.')
  if (!principal.scopes.includes(scope)) throw new MissingScope(scope)
  return principal
}

const everybody: Principal = { tenant: 'public', key: null, kind: 'anonymous', scopes: ['chat'] }

/** Who sent a request, once its scope has let it in. */
export function principalOf(request: FastifyRequest): Principal {
  return request[principalKey] ?? everybody
}
