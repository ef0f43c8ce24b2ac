import type { ChatRequest } from './chat.ts'
import type { Answer, Caller, Expense, Inference, Target, Timeouts } from './gateway.ts'
import type { Price } from './model-options.ts'

/** What a provider can do by itself. Absent means: not known, try. */
export interface Capabilities {
  /** The wires it speaks without translation. */
  readonly dialects: readonly string[]
  readonly streaming?: boolean
  readonly tools?: boolean
  readonly images?: boolean
  readonly jsonSchema?: boolean
  readonly contextLength?: number
}

/** A model as a provider lists it. */
export interface ModelInfo {
  readonly id: string
  /** Unix seconds. */
  readonly created?: number
  readonly ownedBy?: string
  readonly contextLength?: number
}

export interface Health {
  readonly ok: boolean
  readonly detail?: string
}

/** One try at one target. Only dispatch makes one, together with its ledger entry. */
export interface Attempt {
  readonly inference: Inference
  readonly target: Target
  /** 1 for the first. */
  readonly number: number
  /** What to ask: the target's own model name, our own fields gone, the output cap applied. */
  readonly request: ChatRequest
  /** Headers to send upstream, writable by attempt layers; credentials are the provider's own business. */
  readonly headers: Record<string, string>
  readonly caller: Pick<Caller, 'origin'>
  readonly signal: AbortSignal
  readonly timeouts: Timeouts
  /** Proof that somebody accounts for this provider call: only the kernel can make one. */
  readonly entry: Expense
}

export type Send = (attempt: Attempt) => Promise<Answer>

/** Around each provider.send: spans, traceparent, ledger, metrics. */
export type AttemptLayer = (attempt: Attempt, next: Send) => Promise<Answer>

/** One vendor's wire. Implement `send`; everything else is optional. */
export interface Provider {
  readonly name: string
  readonly capabilities: Capabilities
  /** What a call costs by this adapter's own word, USD per million tokens: the echo is free. */
  readonly price?: Price
  /** Whose price list applies: a vendor by its name in the built-in table, else the one that owns the URL. */
  readonly pricing?: { readonly vendor?: string; readonly url?: string }
  /**
   * Asks the model. A whole answer when `attempt.request.stream` is not true, else frames; resolves with the response's
   * headers and ends with the attempt's signal.
   * @throws a GatewayError of schemas/errors.ts: UpstreamRejected, UpstreamRateLimited, UpstreamTimeout, UpstreamError, …
   */
  send: Send
  countTokens?(request: ChatRequest): Promise<number>
  models?(): Promise<ModelInfo[]>
  health?(): Promise<Health>
}
