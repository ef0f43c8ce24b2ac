import { isAscii } from 'node:buffer'
import { createHmac, createSecretKey, hash } from 'node:crypto'

/** HMAC-SHA256 of a text in UTF-8 under one secret, in lower-case hex. */
export type Mac = (text: string) => string

/** Bytes of a block of SHA-256, and of what it comes to. */
const block = 64
const length = 32

/**
 * RFC 2104 with both pads made once: Node's own createHmac makes an object and a key schedule for every text, which takes
 * longer than hashing a chunk does. A pad is put before a text as text, so it has to be ASCII, as nearly every secret is.
 */
export function macOf(secret: string): Mac {
  const key = Buffer.from(secret)
  if (key.length > block || !isAscii(key)) {
    const handle = createSecretKey(key)
    return text => createHmac('sha256', handle).update(text).digest('hex')
  }
  const inner = padOf(key, 0x36, block).toString('latin1')
  const outer = padOf(key, 0x5c, block + length)
  return text => {
    outer.write(hash('sha256', inner + text, 'latin1'), block, 'latin1')
    return hash('sha256', outer, 'hex')
  }
}

function padOf(key: Buffer, pad: number, size: number): Buffer {
  const bytes = Buffer.alloc(size)
  for (let index = 0; index < block; index++) bytes[index] = (key[index] ?? 0) ^ pad
  return bytes
}
