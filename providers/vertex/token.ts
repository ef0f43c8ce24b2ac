import { createPrivateKey } from 'node:crypto'
import { readFile } from 'node:fs/promises'
import type { gaxios } from 'google-auth-library'
import { UpstreamError } from '../../schemas/errors.ts'
import { isRecord } from '../../schemas/reader.ts'
import { createTokens, credentialFault, type Token, type Tokens, tokenFault, withoutTokens } from '../tokens.ts'

const scopes = ['https://www.googleapis.com/auth/cloud-platform']

/** The key of a service account, as far as it is used. */
interface ServiceAccount {
  readonly email: string
  readonly key: string
}

/**
 * Tokens of a service account, or of the machine's own identity. Google's library is loaded with the first token; until
 * then nothing is asked, not even whether this machine is one of Google's.
 * @param credentials the path of a key file or its JSON; it is read now, and again for each token, so that a key on disk
 * can be changed
 * @param tokenUrl where to ask in place of Google, for tests
 * @throws Error with one line that does not quote the credentials
 */
export async function createGoogleTokens(credentials?: string, tokenUrl?: string): Promise<Tokens> {
  if (credentials !== undefined) await readAccount(credentials)
  return createTokens(async signal => {
    const account = credentials === undefined ? null : await readAccount(credentials).catch(unusable)
    return await askGoogle(account, tokenUrl, signal)
  })
}

function unusable(error: Error): never {
  throw credentialFault('its credentials cannot be read', error)
}

/** A new client for each token: what it remembers is kept by us already. */
async function askGoogle(
  account: ServiceAccount | null,
  tokenUrl: string | undefined,
  signal: AbortSignal
): Promise<Token> {
  const { gaxios, GoogleAuth, JWT } = await import('google-auth-library')
  const transporter = new gaxios.Gaxios()
  transporter.interceptors.request.add({
    async resolved(request) {
      if (tokenUrl !== undefined) request.url = new URL(tokenUrl)
      return Object.assign(request, { signal, redirect: 'error' as const, retryConfig: { retry: 0 } })
    }
  })
  const client =
    account === null
      ? await new GoogleAuth({ scopes, clientOptions: { transporter } }).getClient().catch(unknown)
      : new JWT({ ...account, scopes, transporter })
  const { token } = await client.getAccessToken().catch(failed)
  if (!token || !/^[\x21-\x7e]+$/.test(token)) throw new UpstreamError('its token endpoint gave no access token.')
  return { value: token, expires: client.credentials.expiry_date ?? Date.now() + unknownLife }
}

/** Of a token whose end nobody tells, in milliseconds. */
const unknownLife = 300_000

// The library's errors hold the request with its signature, so none of them goes on as a cause.

function unknown(error: unknown): never {
  throw credentialFault('Google knows no identity of this gateway', plain(error))
}

function failed(error: unknown): never {
  const { response, status } = isGaxiosError(error) ? error : {}
  if (status !== undefined) throw tokenFault(status, response?.data, withoutTokens)
  throw new UpstreamError('its token endpoint gave no access token.', { cause: plain(error) })
}

function plain(error: unknown): Error {
  return new Error(withoutTokens(error instanceof Error ? error.message : String(error)).slice(0, 500))
}

function isGaxiosError(error: unknown): error is gaxios.GaxiosError {
  return error instanceof Error && 'config' in error
}

/**
 * @throws Error for what is no key of a service account. Where its own `token_uri` leads does not matter, because nobody
 * asks there; one that leads elsewhere than to Google is refused, because somebody may have changed more.
 */
async function readAccount(credentials: string): Promise<ServiceAccount> {
  const text = credentials.trimStart().startsWith('{')
    ? credentials
    : await readFile(credentials, 'utf8').catch(unreadable)
  const { type, client_email: email, private_key: key, token_uri: uri } = fieldsOf(text)
  if (type !== 'service_account') {
    throw new Error(
      'credentials are not the key of a service account. Leave them out for every other kind: the machine finds it.'
    )
  }
  if (typeof email !== 'string' || typeof key !== 'string' || !isKey(key)) {
    throw new Error('credentials lack a client_email or a private_key that can be read.')
  }
  if (uri !== undefined && !isGoogles(uri)) throw new Error('the token_uri of the credentials is not one of Google.')
  return { email, key }
}

function unreadable(error: NodeJS.ErrnoException): never {
  throw new Error(`the file of the credentials cannot be read: ${error.code}.`)
}

/** Errors of JSON.parse quote what they parse. */
function fieldsOf(text: string): Record<string, unknown> {
  try {
    const value: unknown = JSON.parse(text)
    return isRecord(value) ? value : {}
  } catch {
    throw new Error('the credentials are not JSON.')
  }
}

function isKey(key: string): boolean {
  try {
    return createPrivateKey(key).asymmetricKeyType === 'rsa'
  } catch {
    return false
  }
}

function isGoogles(uri: unknown): boolean {
  if (typeof uri !== 'string' || !URL.canParse(uri)) return false
  const { protocol, host } = new URL(uri)
  return (
    protocol === 'https:' &&
    (host === 'googleapis.com' || host.endsWith('.googleapis.com') || host === 'accounts.google.com')
  )
}
