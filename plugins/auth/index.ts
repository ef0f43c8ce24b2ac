import { randomBytes, timingSafeEqual } from 'node:crypto'
import type { FastifyInstance } from 'fastify'
import fp from 'fastify-plugin'
import { InvalidApiKey, MissingScope, TenantMismatch, TenantNotFound } from '../../schemas/errors.ts'
import type { Answer, Dispatch, Inference, Principal } from '../../schemas/gateway.ts'
import type { Store } from '../../schemas/store.ts'
import { createDoor, missing, refuseSimple } from './anonymous.ts'
import { digestOf, secretOf } from './credentials.ts'
import { createTokens, isToken, type JwtOptions, type Tokens } from './jwt.ts'
import { createIssuedKeys, type IssuedKeys } from './keys.ts'
import { prefix } from './mint.ts'
import { createUses } from './uses.ts'

export interface AuthOptions {
  /**
   * Who a caller without a key is. `auto`: `public`, while nothing here is secret and only for this machine's own
   * programs. A name: that tenant, for everybody. False: nobody.
   */
  anonymousTenant?: string | false
  /** Lets its holder do everything, also call models for any tenant. */
  adminToken?: string
  /** Tokens of an issuer of yours. Configured, they close anonymous access as a key does. */
  jwt?: JwtOptions | false
  /** A generated admin token protects the admin routes; only one that somebody set closes anonymous access. */
  adminTokenGenerated?: boolean
  /** Configured tenants: their keys, and whether a caller without a key may name them. */
  tenants?: Readonly<Record<string, { keys?: readonly string[]; open?: boolean }>>
  /** Origins whose pages may call without a key: those of CORS by name, `*` is none. */
  origins?: readonly string[]
  /** How many stored keys and tokens stay in memory at least. Default 10,000. */
  kept?: number
  /** Milliseconds for which uses of keys are gathered before they are written. Default 10,000. */
  usesEvery?: number
  /** Milliseconds since 1970. Given by tests. */
  now?: () => number
}

/** API keys, tokens and the admin token, on every lane; and who a caller without a key is. */
async function auth(app: FastifyInstance, options: AuthOptions): Promise<void> {
  const { gateway } = app
  const configured = new Map(Object.entries(options.tenants ?? {}))
  const keys = configuredKeys(configured)
  const limit = options.kept ?? 10_000
  const now = options.now ?? Date.now
  const adminDigest = options.adminToken ? digestOf(options.adminToken) : null
  const admin: Principal = { tenant: 'public', key: 'admin', kind: 'admin', scopes: ['chat', 'admin'] }
  const named = options.anonymousTenant ?? 'auto'
  const closed =
    named === false ||
    (named === 'auto' && (keys.size > 0 || !!options.jwt || (!!adminDigest && !options.adminTokenGenerated)))
  const anonymous: Principal = {
    tenant: named === false || named === 'auto' ? 'public' : named,
    key: null,
    kind: 'anonymous',
    scopes: ['chat']
  }
  const refuseStrangers = createDoor(app, options.origins ?? [])
  gateway.optional('shared', 'auth')
  const store = gateway.optional('store', 'auth')
  const issued = store ? await startKeys(store) : null
  const tokens = options.jwt ? startTokens(options.jwt) : null
  if (issued !== null) gateway.decorate('keys', issued.keys)

  gateway.decorate('authenticate', credentials => {
    const secret = secretOf(credentials.headers)
    if (secret !== null) {
      const digest = digestOf(secret)
      if (adminDigest !== null && timingSafeEqual(digest, adminDigest)) return admin
      // The map is searched by digest: what its timing could tell is of no use without the secret.
      const principal = keys.size > 0 ? keys.get(digest.toString('base64')) : undefined
      if (principal !== undefined) return principal
      if (secret.startsWith(prefix)) {
        if (issued !== null) return issued.check(secret, digest)
        throw new InvalidApiKey('This API key is unknown, revoked or expired.')
      }
      if (tokens !== null && isToken(secret)) return tokens.check(secret, digest)
    }
    if (closed || (named === 'auto' && issued?.some)) {
      throw new InvalidApiKey(secret === null ? missing : 'This API key is not known here.')
    }
    if (named === 'auto') refuseStrangers(credentials)
    refuseSimple(credentials)
    return anonymous
  })

  gateway.decorate('actFor', (principal, tenant) => {
    if (tenant === principal.tenant) return principal
    // Whether that tenant exists is none of their business.
    if (principal.kind === 'key' || principal.kind === 'jwt') throw new TenantMismatch(tenant)
    const known = gateway.tenants ? gateway.tenants.get(tenant) : configured.get(tenant)
    // With the plugin tenants, one that is not in memory is looked for when the call is admitted.
    const exists = known !== undefined || gateway.tenants || tenant === 'public' || tenant === anonymous.tenant
    if (!exists) throw new TenantNotFound(tenant)
    const shut = known ? !known.open : !gateway.tenants
    if (principal.kind === 'anonymous' && shut) throw new TenantMismatch(tenant)
    return { ...principal, tenant }
  })

  gateway.intercept('admit', (inference, next) => {
    const { kind, tenant, scopes } = inference.principal
    if (!scopes.includes('chat')) return Promise.reject(new MissingScope('chat'))
    if (kind === 'anonymous' && tenant !== anonymous.tenant) return admitGuest(inference, next)
    return next(inference)
  })

  /** An anonymous caller that names a tenant which was not in memory, or is not open any more. */
  async function admitGuest(inference: Inference, next: Dispatch): Promise<Answer> {
    const { tenant } = inference.principal
    const found = gateway.tenants ? await gateway.tenants.find(tenant) : configured.get(tenant)
    if (found === undefined) throw new TenantNotFound(tenant)
    if (!found.open) throw new TenantMismatch(tenant)
    return next(inference)
  }

  async function startKeys(store: Store): Promise<IssuedKeys> {
    const checksumSecret = await store.setting('key_checksum', randomBytes(32).toString('base64url'))
    const uses = createUses(store, gateway.log, options.usesEvery ?? 10_000)
    const issued = createIssuedKeys(gateway, store, {
      checksumSecret,
      some: await store.keys.any(),
      limit,
      uses,
      now,
      exists
    })
    app.addHook('onReady', async () => gateway.tenants?.onRemoved(issued.forgetTenant))
    app.addHook('onClose', () => uses.close())
    return issued
  }

  async function exists(tenant: string): Promise<boolean> {
    if (gateway.tenants) return (await gateway.tenants.find(tenant)) !== undefined
    return configured.has(tenant) || tenant === 'public' || tenant === anonymous.tenant
  }

  function startTokens(jwt: JwtOptions): Tokens {
    const closing = new AbortController()
    app.addHook('onClose', async () => closing.abort())
    return createTokens(jwt, { limit, now, signal: closing.signal })
  }
}

/** Principals by the digest of their key. */
function configuredKeys(tenants: ReadonlyMap<string, { keys?: readonly string[] }>): Map<string, Principal> {
  const keys = new Map<string, Principal>()
  for (const [tenant, { keys: secrets = [] }] of tenants) {
    secrets.forEach((secret, index) => {
      const key = `${tenant}#${index + 1}`
      keys.set(digestOf(secret).toString('base64'), { tenant, key, kind: 'key', scopes: ['chat'] })
    })
  }
  return keys
}

export default fp(auth, { fastify: '5.x', name: 'auth', dependencies: ['gateway'] })
