import { hash as digestOf, timingSafeEqual } from 'node:crypto'
import type { FastifyInstance } from 'fastify'
import fp from 'fastify-plugin'
import { InvalidApiKey, TenantMismatch, TenantNotFound } from '../schemas/errors.ts'
import type { Credentials, Principal } from '../schemas/gateway.ts'
import { isLoopback, isLoopbackHost } from '../schemas/loopback.ts'

export interface AuthOptions {
  /**
   * Who a caller without a key is. `auto`: `public`, while nothing here is secret and only for this machine's own
   * programs. A name: that tenant, for everybody. False: nobody.
   */
  anonymousTenant?: string | false
  /** Lets its holder do everything, also call models for any tenant. */
  adminToken?: string
  /** Configured: closes anonymous access as a key does. */
  jwt?: object | false
  /** A generated admin token protects the admin routes; only one that somebody set closes anonymous access. */
  adminTokenGenerated?: boolean
  /** Configured tenants: their keys, and whether a caller without a key may name them. */
  tenants?: Readonly<Record<string, { keys?: readonly string[]; open?: boolean }>>
  /** Origins whose pages may call without a key: those of CORS by name, `*` is none. */
  origins?: readonly string[]
}

const credentialHeaders = ['authorization', 'x-api-key', 'api-key'] as const
/** Keys that this gateway makes. One of this form that is not known is refused even where anonymous access is open. */
const ownForm = /^gw_/

/** API keys and the admin token, on every lane; and who a caller without a key is. */
async function auth(app: FastifyInstance, options: AuthOptions): Promise<void> {
  const tenants = new Map(Object.entries(options.tenants ?? {}))
  const keys = new Map<string, Principal>()
  for (const [tenant, { keys: secrets = [] }] of tenants) {
    secrets.forEach((secret, index) => {
      keys.set(hash(secret).toString('base64'), {
        tenant,
        key: `${tenant}#${index + 1}`,
        kind: 'key',
        scopes: ['chat']
      })
    })
  }
  const adminHash = options.adminToken ? hash(options.adminToken) : null
  const admin: Principal = { tenant: 'public', key: 'admin', kind: 'admin', scopes: ['chat', 'admin'] }
  const named = options.anonymousTenant ?? 'auto'
  const closed =
    named === false ||
    (named === 'auto' && (keys.size > 0 || !!options.jwt || (!!adminHash && !options.adminTokenGenerated)))
  const anonymous: Principal = {
    tenant: named === false || named === 'auto' ? 'public' : named,
    key: null,
    kind: 'anonymous',
    scopes: ['chat']
  }
  const origins = new Set(options.origins ?? [])
  let local: boolean | null = null
  /** The Host that was found to be local last: nearly always the next one too. */
  let lastLocalHost: string | null = null

  app.gateway.decorate('authenticate', credentials => {
    const secret = secretOf(credentials.headers)
    if (secret !== null) {
      const digest = hash(secret)
      if (adminHash !== null && timingSafeEqual(digest, adminHash)) return admin
      // The map is searched by digest: what its timing could tell is of no use without the secret.
      const principal = keys.get(digest.toString('base64'))
      if (principal !== undefined) return principal
      if (ownForm.test(secret)) throw new InvalidApiKey('This API key is unknown, revoked or expired.')
    }
    if (closed) throw new InvalidApiKey(secret === null ? missing : 'This API key is not known here.')
    if (named === 'auto') refuseStrangers(credentials)
    refuseSimple(credentials)
    return anonymous
  })

  app.gateway.decorate('actFor', (principal, tenant) => {
    if (tenant === principal.tenant) return principal
    const known = tenants.get(tenant)
    if (known === undefined && tenant !== 'public' && tenant !== anonymous.tenant) throw new TenantNotFound(tenant)
    if (principal.kind !== 'admin' && !(principal.kind === 'anonymous' && known?.open)) throw new TenantMismatch(tenant)
    return { ...principal, tenant }
  })

  /** Without a key: this machine's own programs only, neither a proxy's guests nor web pages. */
  function refuseStrangers({ headers }: Credentials): void {
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

/** A socket file is not: whoever can open it may be a proxy. */
function isLocal(address: ReturnType<FastifyInstance['addresses']>[number]): boolean {
  return typeof address === 'object' && isLoopback(address.address)
}

const missing = 'Send an API key: Authorization: Bearer <key>.'

/** A page of any origin may send text/plain without asking first, so it takes a key. */
function refuseSimple({ headers }: Credentials): void {
  if (header(headers['content-type'])?.toLowerCase().startsWith('text/plain')) {
    throw new InvalidApiKey('Send application/json, or an API key: text/plain is not accepted without one.')
  }
}

/** @throws InvalidApiKey for two different credentials */
function secretOf(headers: Credentials['headers']): string | null {
  let secret: string | null = null
  for (const name of credentialHeaders) {
    const value = header(headers[name])
    if (value === undefined) continue
    const found = name === 'authorization' ? value.replace(/^bearer\s+/i, '').trim() : value
    if (found === '') continue
    if (secret !== null && secret !== found) throw new InvalidApiKey('This request carries two different credentials.')
    secret = found
  }
  return secret
}

function header(value: string | string[] | undefined): string | undefined {
  return typeof value === 'string' ? value : undefined
}

function hash(secret: string): Buffer {
  return digestOf('sha256', secret, 'buffer')
}

export default fp(auth, { fastify: '5.x', name: 'auth', dependencies: ['gateway'] })
