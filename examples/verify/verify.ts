// Checks that an answer is as the gateway signed it. docs/plugins/signing.md says what is signed.
import { createHmac, timingSafeEqual } from 'node:crypto'

/** RFC 8785. */
function canonical(value: unknown): string {
  if (typeof value !== 'object' || value === null) return typeof value === 'string' ? JSON.stringify(value) : `${value}`
  if (Array.isArray(value)) return `[${value.map(canonical).join()}]`
  const fields = Object.entries(value).sort(([one], [other]) => (one < other ? -1 : 1))
  return `{${fields.map(([name, part]) => `${canonical(name)}:${canonical(part)}`).join()}}`
}

function fits(secret: string, given: unknown, text: string): boolean {
  const own = createHmac('sha256', secret).update(text).digest()
  return typeof given === 'string' && /^[0-9a-f]{64}$/.test(given) && timingSafeEqual(Buffer.from(given, 'hex'), own)
}

/** A whole answer, the text of its body. @throws SyntaxError for what is no JSON, TypeError for null */
export function verifyAnswer(body: string, secret: string): boolean {
  const { signature, ...answer } = JSON.parse(body)
  return fits(secret, signature, canonical(answer))
}

/** A streamed answer, the text of all its server-sent events. @throws as above */
export function verifyStream(body: string, secret: string): 'valid' | 'forged' | 'truncated' {
  let [count, previous, final]: [number, unknown, unknown] = [0, '', undefined]
  for (const event of body.split('\n\n').slice(0, -1)) {
    if (event === 'data: [DONE]' && final === undefined) break
    if (/^(:[^\r\n]*|data: \[DONE\])?$/.test(event)) continue
    if (final !== undefined || !/^data: [^\r\n]*$/.test(event)) return 'forged'
    const { x_signature, x_signature_final, ...chunk } = JSON.parse(event.slice(6))
    if (x_signature === undefined && chunk.error) return 'truncated'
    if (!fits(secret, x_signature, `${++count}\n${previous}\n${canonical(chunk)}`)) return 'forged'
    ;[previous, final] = [x_signature, x_signature_final]
  }
  if (final === undefined || !body.endsWith('\n\n')) return 'truncated'
  return fits(secret, final, `final\n${count}\n${previous}`) ? 'valid' : 'forged'
}
