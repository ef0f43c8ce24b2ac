import type { ChatCompletion, CompletionUsage } from '../../schemas/chat.ts'
import type { Answer } from '../../schemas/gateway.ts'
import type { Mac } from './mac.ts'
import { type Plain, plainOf } from './plain.ts'

export type Whole = Extract<Answer, { stream: false }>

const field = 'signature'
const own = [field]
const openBrace = 123
const closeBrace = 125

/** A whole answer with its signature. A class, because the kernel keeps it on the call, see docs/decisions/0008. */
export class SignedWhole {
  readonly stream = false
  readonly signature: string
  readonly raw: Uint8Array
  readonly plain: Plain<ChatCompletion>
  #answer: Whole
  #body: ChatCompletion | null = null

  /** @throws UpstreamError where it turns out to be no JSON, or cannot be signed */
  constructor(answer: Whole, mac: Mac) {
    this.#answer = answer
    this.plain = plainOf(answer.body, own)
    this.signature = mac(this.plain.text)
    const { raw } = answer
    const spliced = raw !== null && this.plain.untouched ? splice(raw, this.signature) : null
    this.raw = spliced ?? Buffer.from(withField(this.plain.text, this.signature))
  }

  get body(): ChatCompletion {
    this.#body ??= { ...this.plain.value, signature: this.signature }
    return this.#body
  }

  get usage(): CompletionUsage | null | undefined {
    return this.#answer.usage
  }
}

/** The bytes as they came with the field before their last brace; null: they do not end in one. */
function splice(raw: Uint8Array, signature: string): Buffer | null {
  const end = lastMark(raw, raw.length - 1)
  if (raw[end] !== closeBrace) return null
  const isEmpty = raw[lastMark(raw, end - 1)] === openBrace
  const tail = `${isEmpty ? '' : ','}"${field}":"${signature}"}`
  const bytes = Buffer.allocUnsafe(end + tail.length)
  bytes.set(raw.subarray(0, end))
  bytes.write(tail, end, 'latin1')
  return bytes
}

/** The last position up to `from` that is not white space. */
function lastMark(raw: Uint8Array, from: number): number {
  let at = from
  while (at > 0 && raw[at]! <= 32) at--
  return at
}

function withField(text: string, signature: string): string {
  return `${text.slice(0, -1)}${text === '{}' ? '' : ','}"${field}":"${signature}"}`
}
