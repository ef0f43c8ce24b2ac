import { createPublicKey, hash, type KeyObject, sign } from 'node:crypto'
import { canonical } from '../../schemas/canonical.ts'
import type { ChatRequest } from '../../schemas/chat.ts'
import { InvalidRequest } from '../../schemas/errors.ts'
import type { Gateway, Inference } from '../../schemas/gateway.ts'
import { sumOf } from '../../schemas/ledger.ts'
import { usdText } from '../../schemas/money.ts'
import { privateKeyOf, publicKeyOf } from '../../schemas/signing-keys.ts'
import { bucketNames, buckets, inputOf, outputOf, type Usage } from '../../schemas/usage.ts'

export interface ReceiptOptions {
  /** Ed25519, as PEM or as a JWK. */
  privateKey: string
  /** Public keys of receipts that were given before, still published. */
  previousKeys?: readonly string[]
}

/** What a receipt says, as the payload of its JWS. Hashes are SHA-256 in hex. */
export interface ReceiptClaims {
  /** Seconds since 1970, when it was made. */
  readonly iat: number
  /** The id of the call: `x-request-id`. */
  readonly jti: string
  readonly tenant: string
  /** What the request named. */
  readonly alias: string
  /** What the answer says that it is of; null where it says nothing. */
  readonly model: string | null
  /** Who answered, and by which name it was asked; null for an answer that was given before. */
  readonly provider: string | null
  readonly target: string | null
  /** Of the canonical form of the request as it came in. */
  readonly request: string
  /** Of the canonical form of the answer without `signature`; of a stream see SignedStream. */
  readonly answer: string
  /** Of all provider calls, as in the ledger. */
  readonly usage: Readonly<Record<string, number | string>>
  /** Null: unknown. */
  readonly cost_usd: string | null
  readonly cost_nano_usd: number | null
  readonly price_version: string | null
  readonly policy_version: string | null
  /** The beginning of the hash of the configuration. */
  readonly config: string | null
}

export interface Receipts {
  /** What is published. */
  readonly jwks: { readonly keys: readonly PublicKey[] }
  /** For a call that begins. @throws InvalidRequest for a request that is nested too deeply */
  begin(inference: Inference): Receipt
}

interface PublicKey {
  readonly kty: 'OKP'
  readonly crv: 'Ed25519'
  readonly x: string
  readonly kid: string
  readonly use: 'sig'
  readonly alg: 'EdDSA'
}

/** What makes receipts of calls. */
interface Issuer {
  readonly gateway: Gateway
  readonly key: KeyObject
  /** The first part of each JWS. */
  readonly header: string
  readonly now: () => number
}

/** @throws Error for a key that is not of its kind; it shows nothing of it */
export function createReceipts(options: ReceiptOptions, gateway: Gateway, now: () => number): Receipts {
  const key = privateKeyOf(options.privateKey)
  const current = published(createPublicKey(key))
  const previous = (options.previousKeys ?? []).map(text => published(publicKeyOf(text)))
  const header = encode({ alg: current.alg, kid: current.kid, typ: 'JWT' })
  const issuer: Issuer = { gateway, key, header, now }
  const others = previous.filter(({ kid }, index) => {
    return kid !== current.kid && previous.findIndex(other => other.kid === kid) === index
  })
  return { jwks: { keys: [current, ...others] }, begin: inference => new Receipt(issuer, inference) }
}

/** One call's receipt on its way. */
export class Receipt {
  #issuer: Issuer
  #inference: Inference
  #request: string

  constructor(issuer: Issuer, inference: Inference) {
    this.#issuer = issuer
    this.#inference = inference
    this.#request = hashOf(inference.request)
  }

  /**
   * The JWS.
   * @param answer the hash of what was answered
   * @param model by which name that calls itself
   */
  issue(answer: string, model: string | undefined): string {
    const { gateway, header, key, now } = this.#issuer
    const { id, principal, route, facts, expenses } = this.#inference
    const { target } = facts
    const { usage } = sumOf(expenses)
    const cost = costOf(this.#inference)
    const claims: ReceiptClaims = {
      iat: Math.floor(now() / 1_000),
      jti: id,
      tenant: principal.tenant,
      alias: route.alias,
      model: model ?? null,
      provider: target === null ? null : target.provider.name,
      target: target === null ? null : target.model,
      request: this.#request,
      answer,
      usage: usageShape(usage),
      cost_usd: cost === null ? null : usdText(cost),
      cost_nano_usd: cost,
      price_version: target === null ? null : (gateway.pricing?.of(target)?.version ?? null),
      policy_version: null,
      config: route.config ?? null
    }
    const signed = `${header}.${encode(claims)}`
    return `${signed}.${sign(null, Buffer.from(signed), key).toString('base64url')}`
  }
}

/** Every provider call has to have ended, at a known price: the same as the answer's `x-gateway-cost-usd`. */
function costOf({ expenses }: Inference): number | null {
  let sum: number | null = 0
  for (const { status, cost } of expenses) {
    sum = sum === null || status === 'open' || cost === null ? null : sum + cost
  }
  return sum
}

function usageShape(usage: Usage): ReceiptClaims['usage'] {
  const shape: Record<string, number | string> = {
    tokens_in: inputOf(usage),
    tokens_out: outputOf(usage),
    source: usage.source
  }
  for (const bucket of buckets) if (usage[bucket] > 0) shape[bucketNames[bucket]] = usage[bucket]
  return shape
}

function hashOf(request: ChatRequest): string {
  try {
    return hash('sha256', canonical(request), 'hex')
  } catch (cause) {
    throw new InvalidRequest('The request is nested too deeply, or holds a number that JSON does not have.', { cause })
  }
}

function encode(value: object): string {
  return Buffer.from(JSON.stringify(value)).toString('base64url')
}

/** Under the name that RFC 7638 gives it. */
function published(key: KeyObject): PublicKey {
  const { x = '' } = key.export({ format: 'jwk' })
  const kid = hash('sha256', canonical({ crv: 'Ed25519', kty: 'OKP', x }), 'base64url')
  return { kty: 'OKP', crv: 'Ed25519', x, kid, use: 'sig', alg: 'EdDSA' }
}
