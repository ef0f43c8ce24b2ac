import { createHmac, createSecretKey, hash } from 'node:crypto'

/** HMAC-SHA256 of a text in UTF-8 under one secret, in lower-case hex. */
export type Mac = (text: string) => string

/** Bytes of a block of SHA-256, and of what it comes to. */
const block = 64
const length = 32
/** Characters of a text that is hashed in place: chunks and most answers. */
const short = 2_048

/**
 * RFC 2104 with both pads made once. Node's own createHmac makes an object and a key schedule for every text, which costs
 * more than hashing a chunk does; above `short` that no longer counts.
 */
export function macOf(secret: string): Mac {
  const given = Buffer.from(secret)
  const key = Buffer.alloc(block)
  key.set(given.length > block ? hash('sha256', given, 'buffer') : given)
  const handle = createSecretKey(given)
  const inner = Buffer.alloc(block + 3 * short)
  const outer = Buffer.alloc(block + length)
  for (const [index, byte] of key.entries()) {
    inner[index] = byte ^ 0x36
    outer[index] = byte ^ 0x5c
  }
  return text => {
    if (text.length > short) return createHmac('sha256', handle).update(text).digest('hex')
    const size = block + inner.write(text, block)
    outer.write(hash('sha256', inner.subarray(0, size), 'latin1'), block, 'latin1')
    return hash('sha256', outer, 'hex')
  }
}
