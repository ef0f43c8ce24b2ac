import { createRemoteJWKSet, customFetch, errors, type JWTPayload, type JWTVerifyGetKey, jwtVerify } from 'jose'
import { tenantName } from '../../schemas/atoms.ts'
import { AuthUnavailable, InvalidApiKey, isGatewayError } from '../../schemas/errors.ts'
import type { Principal } from '../../schemas/gateway.ts'
import { createRecent } from '../../schemas/recent.ts'
import { scopes } from '../../schemas/tenants.ts'

export interface JwtOptions {
  /** What `iss` has to be. */
  issuer: string
  /** What `aud` has to hold: tokens for others are refused. */
  audience: string
  /** Where the issuer publishes its keys. */
  jwksUri: string
  /** Asymmetric ones only. */
  algorithms?: readonly string[]
  /** The claim that names the tenant. */
  tenantClaim?: string
  /** The claim that lists scopes, as an array or a text with spaces; without it a token may only call models. */
  scopeClaim?: string
}

export interface Tokens {
  /** Whose token this is; a promise for one that was not seen lately. @throws InvalidApiKey, AuthUnavailable */
  check(token: string, digest: Buffer): Principal | Promise<Principal>
}

interface Seen {
  /** Null: refused. */
  readonly principal: Principal | null
  /** Milliseconds since 1970. */
  readonly until: number
}

/** Header, payload and signature. */
const form = /^[\w-]+\.[\w-]+\.[\w-]+$/
const named = new RegExp(tenantName)
const seconds = 1_000
/** How far clocks may differ, in seconds. */
const tolerance = 5
/** A token is checked again after this long at the latest: its issuer may have withdrawn the key. */
const longest = 300 * seconds
const refusedFor = 10 * seconds
/** How long the issuer has to answer, and is left alone when it has failed. */
const patience = 5 * seconds
const pause = seconds
/** Shared secrets would let every service that checks tokens make them too. */
const asymmetric = /^(?:RS|PS|ES)(?:256|384|512)$|^(?:EdDSA|Ed25519)$/

export function isToken(secret: string): boolean {
  return form.test(secret)
}

/** Tokens of one issuer, checked by its published keys. Results are kept for a while, by the hash of the token. */
export function createTokens(
  options: JwtOptions,
  { limit, now, signal }: { limit: number; now: () => number; signal: AbortSignal }
): Tokens {
  const algorithms = [...(options.algorithms ?? ['RS256'])]
  const { tenantClaim = 'tenant', scopeClaim = 'scope' } = options
  const wrong = algorithms.find(algorithm => !asymmetric.test(algorithm))
  if (wrong !== undefined) throw new Error(`auth: jwt.algorithms cannot hold ${wrong}: only asymmetric ones are safe.`)
  if (algorithms.length === 0) throw new Error('auth: jwt.algorithms is empty.')
  if (!options.issuer || !options.audience) throw new Error('auth: jwt.issuer and jwt.audience are required.')
  const accepted = createRecent<Seen>(limit)
  const refused = createRecent<Seen>(limit)
  const keyOf = issuerKeys(new URL(options.jwksUri), signal)

  function check(token: string, digest: Buffer): Principal | Promise<Principal> {
    const id = digest.toString('base64')
    const seen = accepted.get(id) ?? refused.get(id)
    if (seen === undefined || now() >= seen.until) return verify(token, id)
    if (seen.principal === null) throw refusal()
    return seen.principal
  }

  async function verify(token: string, id: string): Promise<Principal> {
    accepted.delete(id)
    try {
      const { payload } = await jwtVerify(token, keyOf, {
        issuer: options.issuer,
        audience: options.audience,
        algorithms,
        clockTolerance: tolerance,
        currentDate: new Date(now()),
        requiredClaims: ['exp']
      })
      const principal = principalOf(payload)
      const end = ((payload.exp ?? 0) + tolerance) * seconds
      accepted.set(id, { principal, until: Math.min(end, now() + longest) })
      return principal
    } catch (error) {
      if (isGatewayError(error) && error.wire === 'auth_unavailable') throw error
      refused.set(id, { principal: null, until: now() + refusedFor })
      throw isGatewayError(error) ? error : refusal()
    }
  }

  function principalOf(payload: JWTPayload): Principal {
    const tenant = claim(payload, tenantClaim)
    if (typeof tenant !== 'string' || !named.test(tenant)) {
      throw new InvalidApiKey('This token names no tenant.')
    }
    return { tenant, key: null, kind: 'jwt', scopes: scopesOf(claim(payload, scopeClaim)) }
  }

  return { check }
}

/** The issuer's keys, fetched when they are needed. @throws AuthUnavailable while they cannot be */
function issuerKeys(url: URL, closing: AbortSignal): JWTVerifyGetKey {
  let failedAt = Number.NEGATIVE_INFINITY
  let failure: unknown
  const keys = createRemoteJWKSet(url, {
    timeoutDuration: patience,
    // An issuer that is down is not asked again for every token that comes.
    [customFetch]: async (href, init) => {
      if (performance.now() - failedAt < pause) throw failure
      try {
        const signal = init.signal ? AbortSignal.any([init.signal, closing]) : closing
        const response = await fetch(href, { ...init, signal })
        if (response.status !== 200) throw new Error(`The issuer answered ${response.status}.`)
        return response
      } catch (error) {
        failedAt = performance.now()
        failure = error
        throw error
      }
    }
  })
  return async (header, token) => {
    try {
      return await keys(header, token)
    } catch (error) {
      if (isTokensFault(error)) throw error
      throw new AuthUnavailable({ cause: error })
    }
  }
}

function isTokensFault(error: unknown): boolean {
  return (
    error instanceof errors.JWKSNoMatchingKey ||
    error instanceof errors.JWKSMultipleMatchingKeys ||
    error instanceof errors.JOSENotSupported
  )
}

function claim(payload: JWTPayload, name: string): unknown {
  return Object.hasOwn(payload, name) ? payload[name] : undefined
}

function scopesOf(claimed: unknown): readonly string[] {
  if (claimed === undefined) return ['chat']
  const given: readonly unknown[] =
    typeof claimed === 'string' ? claimed.split(' ') : Array.isArray(claimed) ? claimed : []
  return scopes.filter(scope => given.includes(scope))
}

function refusal() {
  return new InvalidApiKey('This token is not valid here, or has expired.')
}
