import { createHmac, randomBytes, randomInt, timingSafeEqual } from 'node:crypto'

/** Makes keys, and tells ours from made-up ones without asking anybody. */
export interface Mint {
  make(): { id: string; secret: string }
  /** Whether a key was made here, or by a process with the same secret. */
  made(secret: string): boolean
}

const letters = '0123456789abcdefghijklmnopqrstuvwxyz'
const idLength = 12
const form = /^gw_[0-9a-z]{12}_[\w-]{43}([\w-]{12})$/

/** Keys that this gateway makes begin so. One that is not known is refused even where anonymous access is open. */
export const prefix = 'gw_'

/** The id inside a key; any text of something that is none. */
export function idOf(secret: string): string {
  return secret.slice(prefix.length, prefix.length + idLength)
}

export function isId(text: string): boolean {
  return text.length === idLength && /^[0-9a-z]+$/.test(text)
}

/**
 * Keys are `gw_<id>_<256 random bits><checksum>`, the checksum by a secret that all processes share: whoever holds a key
 * cannot make another one that would have to be looked up.
 */
export function createMint(checksumSecret: string): Mint {
  const checksum = (body: string) => createHmac('sha256', checksumSecret).update(body).digest('base64url').slice(0, 12)
  return {
    make() {
      const id = Array.from({ length: idLength }, () => letters[randomInt(letters.length)]).join('')
      const body = `${prefix}${id}_${randomBytes(32).toString('base64url')}`
      return { id, secret: body + checksum(body) }
    },
    made(secret) {
      const shown = form.exec(secret)?.[1]
      if (shown === undefined) return false
      return timingSafeEqual(Buffer.from(shown), Buffer.from(checksum(secret.slice(0, -shown.length))))
    }
  }
}
