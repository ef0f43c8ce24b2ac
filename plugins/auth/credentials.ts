import { hash } from 'node:crypto'
import { InvalidApiKey } from '../../schemas/errors.ts'
import type { Credentials } from '../../schemas/gateway.ts'

const credentialHeaders = ['authorization', 'x-api-key', 'api-key'] as const

/** The one secret that a request shows, null without any. @throws InvalidApiKey for two different ones */
export function secretOf(headers: Credentials['headers']): string | null {
  let secret: string | null = null
  for (const name of credentialHeaders) {
    const value = headers[name]
    if (value === undefined) continue
    if (typeof value === 'string' && !value.includes(', ')) secret = same(secret, bare(name, value))
    else for (const part of partsOf(name, value)) secret = same(secret, bare(name, part))
  }
  return secret
}

export function digestOf(secret: string): Buffer {
  return hash('sha256', secret, 'buffer')
}

/** The value of a header that may be there once. */
export function header(value: string | string[] | undefined): string | undefined {
  return typeof value === 'string' ? value : undefined
}

function bare(name: string, value: string): string {
  return name === 'authorization' ? value.replace(/^bearer\s+/i, '').trim() : value
}

function same(secret: string | null, found: string): string | null {
  if (found === '') return secret
  if (secret !== null && secret !== found) throw new InvalidApiKey('This request carries two different credentials.')
  return found
}

/** A header that was sent several times: Node, or a proxy, writes them as one list. No credential holds a space. */
function partsOf(name: string, value: string | string[]): string[] {
  const separator = name === 'authorization' ? /, (?=bearer\s)/i : ', '
  return (typeof value === 'string' ? [value] : value).flatMap(line => line.split(separator))
}
