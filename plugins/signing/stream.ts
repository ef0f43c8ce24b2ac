import { createHash, type Hash } from 'node:crypto'
import type { ChatCompletionChunk, CompletionUsage } from '../../schemas/chat.ts'
import { chunkFrames, type Frames } from '../../schemas/frames.ts'
import type { Inference } from '../../schemas/gateway.ts'
import { eventsOf } from './events.ts'
import type { Mac } from './mac.ts'
import { plainOf } from './plain.ts'
import type { Receipt } from './receipt.ts'

type Read = IteratorResult<Frames, undefined>

const end: Read = { done: true, value: undefined }
const noBytes = Buffer.alloc(0)
const own = ['x_signature', 'x_signature_final', 'x_receipt']

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
      if (read.done) return this.#finish(new SignedFrames(null))
      const signed = this.#sign(read.value)
      // Nothing follows: the end goes out with it.
      if (read.value.last && (await this.#endsNow())) return this.#finish(signed)
      if (!signed.isEmpty) return { done: false, value: signed.close(false) }
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

  #sign(frames: Frames): SignedFrames {
    const signed = new SignedFrames(frames)
    for (const { chunk, text } of eventsOf(frames)) {
      const plain = plainOf(chunk, own)
      if (chunk.id) this.#sample = chunk
      this.#hash?.update(`${plain.text}\n`)
      this.#add(signed, plain.value, plain.text, plain.untouched ? text : null)
    }
    return signed
  }

  #add(signed: SignedFrames, chunk: ChatCompletionChunk, canonical: string, text: string | null): void {
    this.#count++
    this.#signature = this.#mac(`${this.#count}\n${this.#signature}\n${canonical}`)
    signed.add(chunk, text ?? canonical, this.#signature)
  }

  #finish(signed: SignedFrames): Read {
    this.#over = true
    const last = this.#lastChunk()
    this.#add(signed, last, plainOf(last, []).text, null)
    signed.final = this.#mac(`final\n${this.#count}\n${this.#signature}`)
    return { done: false, value: signed.close(true) }
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

/** Signed chunks as bytes, and as objects for those who look. */
class SignedFrames implements Frames {
  readonly dialect = 'openai'
  last = false
  raw = noBytes
  /** The signature of the whole stream, in its last chunk. */
  final: string | null = null
  #of: Frames | null
  #text = ''
  #chunks: ChatCompletionChunk[] = []
  #signatures: string[] = []

  constructor(of: Frames | null) {
    this.#of = of
  }

  /** @param text JSON that says what the chunk says */
  add(chunk: ChatCompletionChunk, text: string, signature: string): void {
    this.#chunks.push(chunk)
    this.#signatures.push(signature)
    this.#text += `data: ${text.slice(0, -1)},"x_signature":"${signature}"}\n\n`
  }

  close(last: boolean): this {
    if (this.final !== null) this.#text = `${this.#text.slice(0, -3)},"x_signature_final":"${this.final}"}\n\n`
    this.raw = Buffer.from(this.#text)
    this.last = last
    return this
  }

  get isEmpty(): boolean {
    return this.#chunks.length === 0
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
    const count = this.#chunks.length
    for (let index = 0; index < count; index++) {
      const chunk: ChatCompletionChunk = { ...this.#chunks[index]!, x_signature: this.#signatures[index]! }
      if (this.final !== null && index === count - 1) chunk['x_signature_final'] = this.final
      yield chunk
    }
  }
}
