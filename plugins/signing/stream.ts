import { createHash, type Hash } from 'node:crypto'
import { canonical } from '../../schemas/canonical.ts'
import type { ChatCompletionChunk, CompletionUsage } from '../../schemas/chat.ts'
import { chunkFrames, type Frames } from '../../schemas/frames.ts'
import type { Inference } from '../../schemas/gateway.ts'
import { Event, EventReader } from './events.ts'
import type { Mac } from './mac.ts'
import type { Receipt } from './receipt.ts'

type Read = IteratorResult<Frames, undefined>

const end: Read = { done: true, value: undefined }

/**
 * A stream in which each chunk is signed together with its number and the signature before it, and at whose end one more
 * chunk signs the whole. It ends without that one when it breaks off. A class for the reason of docs/decisions/0008.
 */
export class SignedStream implements AsyncIterableIterator<Frames, undefined> {
  #inference: Inference
  #source: AsyncIterator<Frames>
  #mac: Mac
  #receipt: Receipt | null
  /** What a receipt says of the stream: its canonical chunks, each with a line feed behind it. */
  #hash: Hash | null
  #events = new EventReader()
  #count = 0
  #signature = ''
  /** The last chunk that said whose it is. */
  #sample: ChatCompletionChunk | null = null
  /** A read that has been asked for already. */
  #ahead: Promise<IteratorResult<Frames>> | null = null
  #over = false

  constructor(inference: Inference, frames: AsyncIterable<Frames>, mac: Mac, receipt: Receipt | null) {
    this.#inference = inference
    this.#source = frames[Symbol.asyncIterator]()
    this.#mac = mac
    this.#receipt = receipt
    this.#hash = receipt === null ? null : createHash('sha256')
  }

  [Symbol.asyncIterator](): this {
    return this
  }

  async next(): Promise<Read> {
    while (!this.#over) {
      const reading = this.#ahead ?? this.#source.next()
      this.#ahead = null
      const read = await reading
      if (read.done) return this.#finish(null, [], '')
      const frames = read.value
      const events = this.#events.read(frames)
      const text = this.#sign(events)
      // Nothing follows: the end goes out with it.
      if (frames.last && (await this.#endsNow())) return this.#finish(frames, events, text)
      if (events.length > 0) return { done: false, value: new SignedFrames(frames, events, text, null) }
    }
    return end
  }

  async return(): Promise<Read> {
    this.#over = true
    await this.#source.return?.()
    return end
  }

  /** What it fails with instead is for the next read to say. */
  #endsNow(): Promise<boolean> {
    this.#ahead = this.#source.next()
    return this.#ahead.then(
      ({ done }) => done === true,
      () => false
    )
  }

  /** Signs each, and writes them. */
  #sign(events: readonly Event[]): string {
    let written = ''
    for (const event of events) {
      event.signature = this.#next(event.canonical)
      // One that was not parsed is of the same stream as the one before.
      if (event.parsed?.id) this.#sample = event.parsed
      this.#hash?.update(`${event.canonical}\n`)
      written += `data: ${open(event.text)},"x_signature":"${event.signature}"}\n\n`
    }
    return written
  }

  #next(text: string): string {
    this.#count++
    this.#signature = this.#mac(`${this.#count}\n${this.#signature}\n${text}`)
    return this.#signature
  }

  #finish(frames: Frames | null, events: Event[], before: string): Read {
    this.#over = true
    const chunk = this.#lastChunk()
    const text = canonical(chunk)
    const last = new Event(text, text, chunk)
    events.push(last)
    last.signature = this.#next(text)
    const final = this.#mac(`final\n${this.#count}\n${this.#signature}`)
    const signatures = `"x_signature":"${last.signature}","x_signature_final":"${final}"`
    const written = `${before}data: ${open(text)},${signatures}}\n\n`
    return { done: false, value: new SignedFrames(frames, events, written, final) }
  }

  #lastChunk(): ChatCompletionChunk {
    const { id, route, started } = this.#inference
    const created = Math.floor((performance.timeOrigin + started) / 1_000)
    const chunk: ChatCompletionChunk = {
      id: this.#sample?.id ?? id,
      object: 'chat.completion.chunk',
      created: this.#sample?.created ?? created,
      model: this.#sample?.model ?? route.alias,
      choices: []
    }
    const hash = this.#hash?.digest('hex')
    if (hash !== undefined) chunk['x_receipt'] = this.#receipt?.issue(hash, this.#sample?.model)
    return chunk
  }
}

/** An object of JSON, to which more can be added. */
function open(text: string): string {
  return text.slice(0, -1)
}

/** Signed chunks as bytes, and as objects for those who look. */
class SignedFrames implements Frames {
  readonly dialect = 'openai'
  readonly raw: Buffer
  readonly last: boolean
  #of: Frames | null
  #events: readonly Event[]
  #final: string | null

  /**
   * @param of what was signed
   * @param text how it is written
   * @param final the signature of the whole stream, for the last of the events; null: more follows
   */
  constructor(of: Frames | null, events: readonly Event[], text: string, final: string | null) {
    this.raw = Buffer.from(text)
    this.last = final !== null
    this.#of = of
    this.#events = events
    this.#final = final
  }

  get finished(): boolean {
    return this.#of?.finished ?? false
  }

  get hasUsage(): boolean {
    return this.#of?.hasUsage ?? false
  }

  get usage(): CompletionUsage | null {
    return this.#of?.usage ?? null
  }

  get hasToken(): boolean {
    return this.#of?.hasToken ?? false
  }

  get hasData(): boolean {
    return true
  }

  get pieces(): number {
    return this.#of?.pieces ?? 0
  }

  get textBytes(): number {
    return this.#of?.textBytes ?? 0
  }

  /** A chain that lacks a link is broken: for those who want the text alone. */
  withoutUsage(): Frames | null {
    return chunkFrames([...this]).withoutUsage()
  }

  *[Symbol.iterator](): Generator<ChatCompletionChunk> {
    for (const event of this.#events) {
      const chunk: ChatCompletionChunk = { ...event.chunk, x_signature: event.signature }
      if (this.#final !== null && event === this.#events.at(-1)) chunk['x_signature_final'] = this.#final
      yield chunk
    }
  }
}
