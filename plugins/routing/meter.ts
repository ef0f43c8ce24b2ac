import type { Frames } from '../../schemas/frames.ts'
import type { Answer, Inference, Meter } from '../../schemas/gateway.ts'
import { tokensIn } from '../../schemas/tokens.ts'
import { estimatedUsage, type Usage, usageOf } from '../../schemas/usage.ts'

// What an attempt has used: reported by its provider, else estimated from what it delivered. Classes, because one is made
// for every attempt and hangs on its call, see docs/decisions/0008.

/** What a stream has said of itself so far. */
export class Heard implements Meter {
  finished = false
  #inference: Inference
  /** The frames that spoke of it last, parsed only by those who keep books. */
  #usage: Frames | null = null
  #pieces = 0
  #bytes = 0

  constructor(inference: Inference) {
    this.#inference = inference
  }

  hear(frames: Frames, metered: boolean): void {
    if (frames.finished) this.finished = true
    if (frames.hasUsage) this.#usage = frames
    if (!metered) return
    this.#pieces += frames.pieces
    this.#bytes += frames.textBytes
  }

  usage(): Usage {
    const reported = usageOf(this.#usage?.usage)
    if (reported.source === 'reported') return reported
    return estimatedUsage(this.#inference.size.estimate, tokensIn(this.#pieces, this.#bytes))
  }
}

/** What a whole answer says. */
export class Whole implements Meter {
  #inference: Inference
  #answer: Extract<Answer, { stream: false }>

  constructor(inference: Inference, answer: Extract<Answer, { stream: false }>) {
    this.#inference = inference
    this.#answer = answer
  }

  /** @throws UpstreamError where the answer turns out to be no JSON */
  usage(): Usage {
    const { usage } = this.#answer
    const reported = usageOf(usage === undefined ? this.#answer.body.usage : usage)
    if (reported.source === 'reported') return reported
    return estimatedUsage(this.#inference.size.estimate, Math.round(textBytes(this.#answer) / 4))
  }
}

/** Bytes of everything that the choices say: texts, refusals, reasoning, arguments of tools. */
function textBytes({ body }: Extract<Answer, { stream: false }>): number {
  let bytes = 0
  for (const { message } of body.choices ?? []) {
    for (const name in message) {
      const value = message[name]
      if (name === 'role' || value === null || value === undefined) continue
      bytes += Buffer.byteLength(typeof value === 'string' ? value : JSON.stringify(value))
    }
  }
  return bytes
}
