import type { ChatRequest } from './chat.ts'
import type { Answer, Caller, Expense, Inference, Target, Timeouts } from './gateway.ts'
import type { Price } from './model-options.ts'

/** What a target can do. Absent means: not known, try. */
export interface Abilities {
  readonly streaming?: boolean
  /** `tools`, and what a conversation says of their calls. */
  readonly tools?: boolean
  readonly images?: boolean
  /** Documents: parts of the type `file`. */
  readonly files?: boolean
  /** `input_audio`, and answers in audio. */
  readonly audio?: boolean
  /** `response_format` of the type `json_schema`. */
  readonly jsonSchema?: boolean
  /** `n` above 1. */
  readonly choices?: boolean
  readonly logprobs?: boolean
  /** Tokens, input and output together. */
  readonly contextLength?: number
}

/** What a provider can do by itself. */
export interface Capabilities extends Abilities {
  /** The wires it speaks without translation. */
  readonly dialects: readonly string[]
}

/** A model as a provider lists it. */
export interface ModelInfo {
  readonly id: string
  /** Unix seconds. */
  readonly created?: number
  readonly ownedBy?: string
  /** Tokens, input and output together. */
  readonly contextLength?: number
  /** As the vendor lists it, for information: what a call costs may depend on more. */
  readonly price?: Price
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
  /** Which of the provider's keys to use, counted from 0; 0 where it has none. */
  readonly key: number
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
  /** What is known of one of its models besides. */
  abilitiesOf?(model: string): Abilities
  /** How many keys it has. Routing says which one an attempt uses, and rests those that the vendor refuses or limits. */
  readonly keys?: number
  /** What a call costs by this adapter's own word, USD per million tokens: the echo is free. */
  readonly price?: Price
  /** Whose wire it speaks (the `type` or `vendor` of its options) and its address; for traces. */
  readonly vendor?: string
  readonly url?: string
  /**
   * Whose price list applies: a vendor by its name in the built-in table, else the one that owns the URL. `charges`: what
   * its usage names as `cost` is what it charges, in USD, and wins over every price.
   */
  readonly pricing?: { readonly vendor?: string; readonly url?: string; readonly charges?: boolean }
  /**
   * Asks the model. A whole answer when `attempt.request.stream` is not true, else frames; resolves with the response's
   * headers and ends with the attempt's signal. What it has to leave out of the request it adds to
   * `attempt.inference.facts.warnings`, each text once.
   * @throws a GatewayError of schemas/errors.ts: UpstreamRejected, UpstreamRateLimited, UpstreamTimeout, UpstreamError, …
   */
  send: Send
  /** Input tokens of a request with the provider's own model name. */
  countTokens?(request: ChatRequest, signal?: AbortSignal): Promise<number>
  models?(signal?: AbortSignal): Promise<ModelInfo[]>
  /** Whether it can be reached and takes our key. Costs nothing. */
  health?(signal?: AbortSignal): Promise<Health>
}
