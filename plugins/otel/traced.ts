import { type Context, INVALID_TRACEID, type Span, trace } from '@opentelemetry/api'
import type { ChatCompletion, ChatCompletionChunk } from '../../schemas/chat.ts'
import type { Frames } from '../../schemas/frames.ts'
import type { Answer } from '../../schemas/gateway.ts'
import type { Served } from '../../schemas/trace.ts'
import type { Heard } from './content.ts'

/** What an answer says of itself besides its content. */
export type Response = Partial<Pick<ChatCompletion, 'id' | 'model' | 'service_tier' | 'system_fingerprint'>> & {
  reasons: string[]
}

/** Answers above so many bytes are not parsed for a span. */
const mostParsed = 262_144
/** Reads that bring the end of a choice and are kept: there is one for each choice, or one for all. */
const mostEnds = 8

/**
 * A span and the context below it, of a request or of a call; of a call also what its answer said, while somebody records
 * it. A class, because of docs/decisions/0008.
 */
export class Traced implements Served {
  readonly span: Span
  readonly recording: boolean
  /** Nothing below it will be recorded. */
  readonly quiet: boolean
  /** The answer as the caller gets it. */
  answer: Answer | null = null
  /** What a stream says, where content is captured. */
  heard: Heard | null = null
  #first: Frames | null = null
  #ends: Frames[] | null = null
  #said: Response | null = null
  /** Whose words these are. */
  #speaker: Answer | null = null
  #above: Context
  #context: Context | null = null

  /** @param decided whoever stands below a span that is not recorded is not recorded either */
  constructor(above: Context, span: Span, decided: boolean) {
    this.#above = above
    this.span = span
    this.recording = span.isRecording()
    this.quiet = decided && !this.recording
  }

  /** With the span in it; made where somebody asks. */
  get context(): Context {
    this.#context ??= trace.setSpan(this.#above, this.span)
    return this.#context
  }

  get traceId(): string | undefined {
    const { traceId } = this.span.spanContext()
    return traceId === INVALID_TRACEID ? undefined : traceId
  }

  /** Notes what of a stream is read once it has ended. */
  see(frames: Frames): void {
    if (this.#first === null && frames.hasData) this.#first = frames
    if (frames.finished && (this.#ends?.length ?? 0) < mostEnds) {
      if (this.#ends === null) this.#ends = [frames]
      else this.#ends.push(frames)
    }
    try {
      this.heard?.hear(frames)
    } catch {
      // What has a form of its own is not told.
      this.heard = null
    }
  }

  /** Null where nothing of an answer is known. */
  response(answer: Answer | null = this.answer): Response | null {
    try {
      if (answer === null || answer.stream) return (this.#said ??= this.#streamed())
      if (answer === this.#speaker) return this.#said
      this.#speaker = answer
      this.#said = wholeOf(answer)
      return this.#said
    } catch {
      // An answer that turns out to be no JSON: whoever has to read it says so.
      return null
    }
  }

  #streamed(): Response | null {
    const [first] = this.#first ?? []
    if (first === undefined) return null
    const reasons: string[] = []
    for (const frames of this.#ends ?? []) {
      for (const { choices } of frames) reasons.push(...reasonsOf(choices))
    }
    const { id, model } = first
    return { id, model, service_tier: first['service_tier'], system_fingerprint: first['system_fingerprint'], reasons }
  }
}

function wholeOf(answer: Extract<Answer, { stream: false }>): Response | null {
  if (answer.raw !== null && answer.raw.length > mostParsed) return null
  const { id, model, service_tier, system_fingerprint, choices } = answer.body
  return { id, model, service_tier, system_fingerprint, reasons: reasonsOf(choices) }
}

function reasonsOf(choices: ReadonlyArray<Pick<ChatCompletionChunk['choices'][number], 'finish_reason'>>): string[] {
  const reasons: string[] = []
  for (const { finish_reason: reason } of choices ?? []) if (typeof reason === 'string' && reason) reasons.push(reason)
  return reasons
}
