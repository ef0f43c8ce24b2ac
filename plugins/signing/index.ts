import { hash, timingSafeEqual } from 'node:crypto'
import type { FastifyInstance } from 'fastify'
import fp from 'fastify-plugin'
import { canonical } from '../../schemas/canonical.ts'
import type { Inference, Log } from '../../schemas/gateway.ts'
import { type Mac, macOf } from './mac.ts'
import { createReceipts, type Receipt, type ReceiptOptions, type Receipts } from './receipt.ts'
import { SignedStream } from './stream.ts'
import { SignedWhole } from './whole.ts'

declare module '../../schemas/gateway.ts' {
  interface Gateway {
    signing?: Signing
  }
}

/** What signed answers are checked with in this process. */
export interface Signing {
  /** Of the secret that signs: `x-gateway-key-id`. */
  readonly keyId: string
  /** Whether a whole answer, as it was parsed, was signed here, with the secret or a previous one. */
  verify(answer: object): boolean
  /** The public keys of receipts; null without receipts. */
  readonly jwks: Receipts['jwks'] | null
}

export interface SigningOptions {
  secret: string
  /** Default: derived from the secret. */
  keyId?: string
  /** Secrets that signed before. */
  previous?: readonly string[]
  receipts?: ReceiptOptions | false
  /** Milliseconds since 1970. Given by tests. */
  now?: () => number
}

/** Below it somebody who has an answer can find the secret by trying. */
const fewCharacters = 32

/** Signs every answer, whole or chunk by chunk, outside of everything that may change it. */
async function signing(app: FastifyInstance, options: SigningOptions): Promise<void> {
  const { gateway } = app
  for (const secret of [options.secret, ...(options.previous ?? [])]) {
    if (typeof secret === 'string' && secret !== '') continue
    throw new Error(
      'The plugin signing needs the option `secret`, a text, and such texts as `previous`: make one with openssl rand -hex 32.'
    )
  }
  const mac = macOf(options.secret)
  const keyId = options.keyId ?? keyIdOf(mac)
  const macs = [mac, ...(options.previous ?? []).map(macOf)]
  const receipts = options.receipts ? createReceipts(options.receipts, gateway, options.now ?? Date.now) : null
  warnOf(options.secret, gateway.log)
  gateway.decorate('signing', { keyId, jwks: receipts?.jwks ?? null, verify: answer => verify(answer, macs) })

  gateway.intercept('seal', async (inference, next) => {
    const receipt = receipts === null ? null : receipts.begin(inference)
    const answer = await next(inference)
    inference.facts.headers.push('x-gateway-key-id', keyId)
    if (answer.stream) return { stream: true, frames: new SignedStream(inference, answer.frames, mac, receipt) }
    const signed = new SignedWhole(answer, mac)
    if (receipt !== null) hand(receipt, signed, inference)
    return signed
  })

  const http = receipts === null ? undefined : gateway.optional('http', 'signing')
  if (receipts !== null && http !== undefined) {
    app.register(async scope => {
      http.prepare(scope, { open: true })
      scope.get('/.well-known/jwks.json', (_request, reply) => {
        reply.header('cache-control', 'public, max-age=300')
        return reply.send(receipts.jwks)
      })
    })
  }
}

/** At once, unless a provider call that did not win is still ending: what it costs belongs to the call. */
function hand(receipt: Receipt, { plain }: SignedWhole, inference: Inference): void {
  const answer = hash('sha256', plain.text, 'hex')
  const { model } = plain.value
  const push = () => void inference.facts.headers.push('x-gateway-receipt', receipt.issue(answer, model))
  if (inference.expenses.some(({ status }) => status === 'open')) inference.onSettled(push)
  else push()
}

/** Says nothing of the secret that a signature does not say. */
function keyIdOf(mac: Mac): string {
  return mac('x-gateway-key-id').slice(0, 16)
}

function warnOf(secret: string, log: Log): void {
  if (secret.length >= fewCharacters) return
  log.warn(
    {},
    `signing.secret is shorter than ${fewCharacters} characters: who has one answer can find it by trying. Make one with: openssl rand -hex 32`
  )
}

function verify(answer: unknown, macs: readonly Mac[]): boolean {
  if (typeof answer !== 'object' || answer === null) return false
  const { signature, ...rest }: { signature?: unknown } = answer
  if (typeof signature !== 'string') return false
  const text = canonicalOrNull(rest)
  if (text === null) return false
  const given = Buffer.from(signature)
  return macs.some(mac => {
    const expected = Buffer.from(mac(text))
    return given.length === expected.length && timingSafeEqual(given, expected)
  })
}

/** Null: it has no canonical form, so nobody has signed it. It is nested too deeply, say, or holds an infinite number. */
function canonicalOrNull(value: object): string | null {
  try {
    return canonical(value)
  } catch {
    return null
  }
}

export default fp(signing, { fastify: '5.x', name: 'signing', dependencies: ['gateway'] })
