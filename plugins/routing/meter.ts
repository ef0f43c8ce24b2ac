import type { Frames } from '../../schemas/frames.ts'
import type { Answer, Expense, Inference, Meter } from '../../schemas/gateway.ts'
import { tokensIn } from '../../schemas/tokens.ts'
import { estimatedUsage, type Usage, usageOf } from '../../schemas/usage.ts'
import type { Ticket } from './ticket.ts'

// What an attempt has used: reported by its provider, else estimated from what it delivered. Classes, because one is made
// for every attempt and hangs on its call, see docs/decisions/0008.

/** Bytes of a stream that are kept to be counted, should it end without a report: enough to know how long its events are. */
const sampled = 16_384

/** What a stream has said of itself so far. */
export class Heard implements Meter {
  finished = false
  readonly ticket: Ticket
  #inference: Inference
  /** The frames that spoke of it last, parsed only by those who keep books. */
  #usage: Frames | null = null
  /** Frames made of chunks are counted as they pass. */
  #pieces = 0
  #textBytes = 0
  /** Frames made of bytes are not, which would take longer than forwarding them: the first ones are kept, and the last. */
  #sample: Frames[] = []
  #sampleBytes = 0
  #last: Frames | null = null
  #bytes = 0

  constructor(inference: Inference, ticket: Ticket) {
    this.#inference = inference
    this.ticket = ticket
  }

  ended(expense: Expense): void {
    this.ticket.end(expense)
  }

  hear(frames: Frames, metered: boolean): void {
    if (frames.finished) this.finished = true
    if (frames.hasUsage) this.#usage = frames
    if (!metered) return
    const { raw } = frames
    if (raw === null) {
      this.#pieces += frames.pieces
      this.#textBytes += frames.textBytes
    } else if (this.#sampleBytes < sampled) {
      this.#sample.push(frames)
      this.#sampleBytes += raw.length
    } else {
      this.#last = frames
      this.#bytes += raw.length
    }
  }

  get awaitsUsage(): boolean {
    return this.finished && this.#usage === null
  }

  usage(): Usage {
    const reported = usageOf(this.#usage?.usage)
    if (reported.source === 'reported') return reported
    const { pieces, textBytes } = this.#counted()
    return estimatedUsage(this.#inference.size.estimate, tokensIn(pieces, textBytes))
  }

  /** The sample and the end are counted; what is between them is taken to be like the sample after its head. */
  #counted(): { pieces: number; textBytes: number } {
    let pieces = this.#pieces
    let textBytes = this.#textBytes
    const rate = { pieces: 0, textBytes: 0, bytes: 0 }
    for (const [index, frames] of this.#sample.entries()) {
      const { pieces: own, textBytes: text } = frames
      pieces += own
      textBytes += text
      if (index === 0 && this.#sample.length > 1) continue
      rate.pieces += own
      rate.textBytes += text
      rate.bytes += frames.raw?.length ?? 0
    }
    if (this.#last === null || rate.bytes === 0) return { pieces, textBytes }
    const between = (this.#bytes - (this.#last.raw?.length ?? 0)) / rate.bytes
    return {
      pieces: Math.round(pieces + this.#last.pieces + between * rate.pieces),
      textBytes: Math.round(textBytes + this.#last.textBytes + between * rate.textBytes)
    }
  }
}

/** What a whole answer says. */
export class Whole implements Meter {
  readonly awaitsUsage = false
  #inference: Inference
  #answer: Extract<Answer, { stream: false }>
  #ticket: Ticket

  constructor(inference: Inference, answer: Extract<Answer, { stream: false }>, ticket: Ticket) {
    this.#inference = inference
    this.#answer = answer
    this.#ticket = ticket
  }

  ended(expense: Expense): void {
    this.#ticket.end(expense)
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
