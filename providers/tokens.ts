import { detail, type GatewayError, UpstreamError, UpstreamTimeout } from '../schemas/errors.ts'
import type { Redact } from './faults.ts'

/** An access token that is over after a while. */
export interface Token {
  readonly value: string
  /** Milliseconds since 1970. */
  readonly expires: number
}

/** Where a provider without a fixed key gets its credential. */
export interface Tokens {
  /**
   * A token that is good now.
   * @param signal ends the wait for one, not the request for it: others wait for the same
   */
  get(signal?: AbortSignal): Promise<string>
  /** The provider has refused this one, though its time is not over. */
  refused(value: string): void
}

/** How long before its end a token is replaced, in milliseconds; one that lives shorter, after half of its life. */
const early = 300_000
/** A token with less time left is not used any more. */
const last = 10_000
/** How long a failed replacement, or a refused token, is left alone. */
const pause = 60_000

/**
 * Keeps a token for its time, and asks once however many wait for it. While the old one is good, nobody waits for its
 * successor.
 * @param ask gets a new token; its signal ends with the deadline
 * @param patience milliseconds
 */
export function createTokens(ask: (signal: AbortSignal) => Promise<Token>, patience = 10_000): Tokens {
  let held: (Token & { since: number; replaceAt: number }) | null = null
  let asking: Promise<string> | null = null
  let pausedUntil = 0

  async function replace(): Promise<string> {
    const deadline = new AbortController()
    const timer = setTimeout(
      () => deadline.abort(new UpstreamTimeout(`no access token within ${patience} ms.`)),
      patience
    )
    try {
      const token = await until(ask(deadline.signal), deadline.signal)
      const since = Date.now()
      held = { ...token, since, replaceAt: token.expires - Math.min(early, (token.expires - since) / 2) }
      return token.value
    } catch (error) {
      pausedUntil = Date.now() + pause
      throw error
    } finally {
      clearTimeout(timer)
      asking = null
    }
  }

  return {
    async get(signal) {
      signal?.throwIfAborted()
      const now = Date.now()
      if (held !== null && now < held.replaceAt) return held.value
      if (held === null || now >= held.expires - last) return until((asking ??= replace()), signal)
      if (asking === null && now >= pausedUntil) {
        asking = replace()
        asking.catch(() => {})
      }
      return held.value
    },
    refused(value) {
      if (held?.value === value && Date.now() >= held.since + pause) held = null
    }
  }
}

/** The same result, unless the signal comes first. */
async function until<T>(promise: Promise<T>, signal?: AbortSignal): Promise<T> {
  if (signal === undefined) return await promise
  let abort = () => {}
  const aborted = new Promise<never>((_, reject) => {
    abort = () => reject(signal.reason)
    signal.addEventListener('abort', abort)
  })
  try {
    return await Promise.race([promise, aborted])
  } finally {
    signal.removeEventListener('abort', abort)
  }
}

/**
 * What an OAuth token endpoint answered in place of a token (RFC 6749, 5.2), in our words; theirs are in the cause.
 * @param body parsed
 * @param redact takes secrets out of their words
 */
export function tokenFault(status: number, body: unknown, redact: Redact): GatewayError {
  const said = typeof body === 'object' && body !== null ? body : {}
  const words = ['error' in said && said.error, 'error_description' in said && said.error_description]
    .filter(word => typeof word === 'string')
    .map(word => redact(word.slice(0, 500)))
  const cause = new Error(`the token endpoint answered ${[status, ...words].join(': ')}`)
  if (status >= 400 && status < 500 && status !== 408 && status !== 429) {
    return credentialFault('its token endpoint refused the credentials of this gateway', cause)
  }
  return new UpstreamError('its token endpoint gave no access token.', { cause })
}

/** A credential that cannot get a token, however often it is asked. */
export function credentialFault(what: string, cause: Error): GatewayError {
  return detail(new UpstreamError(`${what}. The operator has to look at it.`, { cause }), {
    headers: { 'x-should-retry': 'false' },
    blame: 'key'
  })
}

/** Takes access tokens out of a text: those of Google, and everything that is a signed JWT. */
export function withoutTokens(text: string): string {
  return text.replace(/\bya29\.[\w.-]+|\bey[\w-]+\.[\w-]+\.[\w-]*/g, '[redacted]')
}
