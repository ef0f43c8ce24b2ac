import type { ChatCompletion, ChatCompletionChunk, ChatRequest } from './chat.ts'
import type { Frames } from './frames.ts'
import type { Attempt, AttemptLayer, LedgerEntry, Provider } from './provider.ts'
import type { Usage } from './usage.ts'

// The contract of the kernel: who asks (Caller), what is asked (Inference), who stands around it (Layer).

/** Whom a call is counted for. */
export interface Principal {
  readonly tenant: string
  /** Id of the key that was shown, never the key; null without one. */
  readonly key: string | null
  readonly kind: 'anonymous' | 'key' | 'admin' | 'process'
  readonly scopes: readonly string[]
}

/** A W3C trace context as it came in. */
export interface TraceParent {
  readonly traceparent: string
  readonly tracestate?: string
}

/** Where a call came in. `headers` are the client's; a provider forwards only those its configuration lists. */
export interface Origin {
  readonly lane: 'http' | 'realtime' | 'process'
  readonly address?: string
  readonly method?: string
  readonly path?: string
  readonly headers?: Readonly<Record<string, string | string[] | undefined>>
}

/** Who asks, from where, and when they stop caring. Every transport builds one; nothing else crosses into the kernel. */
export interface Caller {
  readonly principal: Principal
  readonly signal: AbortSignal
  /** Always ours; the client's own id is only recorded. */
  readonly id: string
  readonly trace?: TraceParent
  /** When the client gives up, in milliseconds from the start of the call: from `x-stainless-timeout`. */
  readonly deadline?: number
  readonly idempotencyKey?: string
  readonly origin: Origin
}

/** Operations are open to merging: chat now; embeddings, native Anthropic messages and OpenAI responses later. */
export interface Operations {
  chat: { request: ChatRequest; body: ChatCompletion; chunk: ChatCompletionChunk }
}

/** Milliseconds. `connect` to the provider, its `headers`, its `firstToken`, `idle` between tokens, `total` of the call. */
export interface Timeouts {
  readonly connect: number
  readonly headers: number
  readonly firstToken: number
  readonly idle: number
  readonly total: number
}

/** One model of one provider that can answer a route. */
export interface Target {
  readonly provider: Provider
  /** The provider's own name of the model. */
  readonly model: string
  readonly weight: number
}

/** What a model name stands for, resolved before the first stage. */
export interface Route {
  readonly alias: string
  readonly targets: readonly Target[]
  readonly timeouts: Timeouts
  /** The cap on output tokens, or null. */
  readonly maxOutputTokens: number | null
}

/** What headers, logs and callers show of a call. The kernel and dispatch write it. */
export interface Facts {
  target: Target | null
  attempts: number
  cache: 'off' | 'miss' | 'hit'
  readonly warnings: string[]
  /** Nano-USD, null while unknown. */
  cost: number | null
  /** Milliseconds from the start to the first token, null before it and for whole answers. */
  firstToken: number | null
}

/** How a call ended. */
export interface Outcome {
  readonly status: 'completed' | 'failed' | 'cancelled'
  readonly error: Error | null
  /** Milliseconds from the start of the call. */
  readonly duration: number
}

/** A call in progress. */
export interface Inference extends Caller {
  readonly operation: keyof Operations
  /** Replaced, never mutated; another `model` resolves the route again. */
  request: ChatRequest
  readonly route: Route
  readonly facts: Facts
  /** performance.now() at the start. */
  readonly started: number
  /** What the provider reported so far; `estimated` zeros while it has not. */
  readonly usage: Usage
  /** The provider's frames, synchronously, before the client gets them. No listener, no cost. */
  onFrames(listener: (frames: Frames) => void): void
  /** Exactly once, however the call ends; awaited before the last byte leaves. */
  onSettled(listener: (outcome: Outcome) => unknown): void
}

/** What a call comes to. `raw` is the provider's own bytes while nobody has replaced the body. */
export type Answer =
  | { readonly stream: false; readonly body: ChatCompletion; readonly raw: Uint8Array | null }
  | { readonly stream: true; readonly frames: AsyncIterable<Frames> }

/** An answer as `complete` gives it: with what is known of the call. */
export type Completed = { readonly facts: Facts } & (
  | Extract<Answer, { stream: false }>
  | {
      readonly stream: true
      readonly frames: AsyncIterableIterator<Frames, undefined> & { return(): Promise<unknown> }
    }
)

export type Dispatch = (inference: Inference) => Promise<Answer>

/** One ring of the onion: answer yourself, call `next` once, or call it again. */
export type Layer = (inference: Inference, next: Dispatch) => Promise<Answer>

/** Outermost first; the order belongs to the stage, not to who registered first. */
export const stages = ['seal', 'observe', 'admit', 'authorize', 'cache', 'budget', 'shape'] as const
export type Stage = (typeof stages)[number]

/** Where /ready asks. */
export interface Readiness {
  readonly ok: boolean
  readonly [detail: string]: unknown
}

/** Opens the ledger line of an attempt; the default keeps no books. */
export type Accountant = (inference: Inference, target: Target) => LedgerEntry | Promise<LedgerEntry>

/** The innermost part of the onion: names to routes, and the loop that tries their targets. */
export interface Router {
  /** @throws ModelNotFound, InvalidRequest */
  resolve(request: ChatRequest): Route
  dispatch: Dispatch
}

/** What an in-process caller may say of itself; without a tenant it is `public`. */
export interface CallerOptions {
  readonly tenant?: string
  readonly signal?: AbortSignal
  readonly trace?: TraceParent
  /** Milliseconds from the start of the call. */
  readonly deadline?: number
  readonly idempotencyKey?: string
}

/** What plugins and the host see: the kernel and whatever plugins have added, by declaration merging and `decorate`. */
export interface Gateway extends Kernel {}

/** What we need of a logger: pino's form, details first. */
export interface Log {
  error(details: object, message: string): void
  warn(details: object, message: string): void
  info(details: object, message: string): void
  debug(details: object, message: string): void
}

/** The kernel by itself. */
export interface Kernel {
  /** Puts a layer around every call. Refused once the instance is ready; an unknown stage throws. */
  intercept(stage: Stage, layer: Layer): void
  /** Puts a layer around every provider call. Refused once the instance is ready. */
  interceptAttempt(layer: AttemptLayer): void
  /**
   * Runs one call through all stages. The same way in for every transport and for the host's own code.
   * @throws a GatewayError of schemas/errors.ts, or what a layer threw
   */
  complete(request: ChatRequest, caller: Caller): Promise<Completed>
  /** A caller in this process: no network, the same limits and budgets. */
  caller(options?: CallerOptions): Caller
  /** Says who a caller is; the plugin auth gives it, without it everybody is `public`. @throws InvalidApiKey */
  authenticate?(credentials: Credentials): Principal | Promise<Principal>
  /** The same principal, acting for another tenant. @throws TenantNotFound, TenantMismatch */
  actFor?(principal: Principal, tenant: string): Principal
  /** Adds a capability under a name of its own; refuses a name that is taken. */
  decorate<Name extends keyof Gateway>(name: Name, value: Gateway[Name]): void
  /** Takes the innermost part; routing gives it, once. */
  routeWith(router: Router): void
  /** Takes what opens ledger lines; the ledger gives it, once. */
  accountWith(accountant: Accountant): void
  /** Opens the ledger line of an attempt. For dispatch. */
  open: Accountant
  /** Sends an attempt through the attempt layers to its provider. For dispatch. */
  send(attempt: Attempt): Promise<Answer>
  /** Adds a dependency that /ready asks for. */
  dependency(name: string, check: () => Readiness | Promise<Readiness>): void
  /** Asks every dependency. */
  readiness(): Promise<{ ok: boolean; checks: Record<string, Readiness> }>
  /** Where this gateway logs. Lines name a request by its id; nothing secret is ever given to it. */
  readonly log: Log
  /** A new id for a call. */
  newId(): string
  /** True from the moment the host began to close. */
  readonly closing: boolean
  /** Calls in progress. */
  readonly running: number
}

/** What a caller showed of itself, on any lane. */
export interface Credentials {
  readonly headers: Readonly<Record<string, string | string[] | undefined>>
}
