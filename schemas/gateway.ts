import type { CallRecord } from './call-record.ts'
import type { ChatCompletion, ChatCompletionChunk, ChatRequest, CompletionUsage } from './chat.ts'
import type { EventBus } from './events.ts'
import type { Frames } from './frames.ts'
import type { Price } from './model-options.ts'
import type { Attempt, AttemptLayer, Provider } from './provider.ts'
import type { ApiKey } from './tenants.ts'
import type { RequestSize } from './tokens.ts'
import type { Served } from './trace.ts'
import type { Usage } from './usage.ts'

// The contract of the kernel: who asks (Caller), what is asked (Inference), who stands around it (Layer).

/** Whom a call is counted for. */
export interface Principal {
  readonly tenant: string
  /** Id of the key that was shown, never the key; null without one. */
  readonly key: string | null
  readonly kind: 'anonymous' | 'key' | 'jwt' | 'admin' | 'process'
  readonly scopes: readonly string[]
  /** What the store knows of the key: its limits and its budget. */
  readonly apiKey?: ApiKey
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
  /** The trace that it belongs to, 32 hex digits. Absent: that of `trace`, else a new one. */
  readonly traceId?: string
  /** When the client gives up, in milliseconds from the start of the call: from `x-stainless-timeout`. */
  readonly deadline?: number
  readonly idempotencyKey?: string
  readonly origin: Origin
  /** What tracing remembers of the request that it came with. */
  readonly served?: Served
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
  /** USD as configured; null: the provider's own or the built-in table. */
  readonly price: Price | null
}

/** What a model name stands for, resolved before the first stage. */
export interface Route {
  readonly alias: string
  readonly targets: readonly Target[]
  readonly timeouts: Timeouts
  /** The cap on output tokens, or null. */
  readonly maxOutputTokens: number | null
  /** The most tokens that an image or a page counts for. */
  readonly inputTokensPerImage: number
  /** The configuration that it stands in, by the first characters of its hash; null or absent where nobody computed one. */
  readonly config?: string | null
}

/** What headers, logs and callers show of a call. The kernel and dispatch write it. */
export interface Facts {
  target: Target | null
  attempts: number
  cache: 'off' | 'miss' | 'hit'
  readonly warnings: string[]
  /** Nano-USD of all attempts once the call has settled; null while it runs, and where nobody knows a price. */
  cost: number | null
  /** What layers want the answer to carry besides: name, value, name, value; ASCII. */
  readonly headers: string[]
  /** Milliseconds from the start to the first token, null before it and for whole answers. */
  firstToken: number | null
  /** 32 hex digits; by it the call is found again in traces, logs and records. */
  traceId: string
}

/** How a call ended. */
export interface Outcome {
  readonly status: 'completed' | 'failed' | 'cancelled'
  readonly error: Error | null
  /** Milliseconds from the start of the call. */
  readonly duration: number
  /** The caller was gone before the end; the call may have been completed all the same, see `outlive`. */
  readonly departed: boolean
  /** The call as those show it who tell what happened. Read on first touch, from the end of the call on. */
  readonly record: CallRecord
}

/** Money held for a call. It ends with the call: the plugin that took it listens to the end. */
export interface Hold {
  /** What it was taken for: a first attempt at another request holds anew. */
  readonly request: ChatRequest
  /** Holds as much again for a further attempt. @throws what refuses it */
  extend(target: Target): void | Promise<void>
  /** What the call is charged to besides the totals: `[["tenant:acme","day:2026-11-21"],…]`, JSON. */
  readonly charges: string
}

/** A place among the calls that limits count. It ends with the call, once: the plugin that gave it listens to the end. */
export interface Admission {
  /** Gives the place back and corrects the tokens that were counted for it; null: nobody knows how many it took. */
  end(tokens: number | null): void
}

/** What a stream or an answer has used so far: reported, else estimated from what was delivered. */
export interface Meter {
  usage(): Usage
  /** The answer is complete, and what it used has not been said yet. */
  readonly awaitsUsage: boolean
  /** Told once, when the provider call has ended in the books. */
  ended?(expense: Expense): void
}

/** One provider call as the books see it. The kernel makes it before anything is sent, and ends it exactly once. */
export interface Expense {
  readonly inference: Inference
  readonly target: Target
  /** 1 for the first. */
  readonly number: number
  /** performance.now() when it was opened. */
  readonly started: number
  /** `interrupted`: the caller left, or the call was ended from outside. */
  readonly status: 'open' | 'settled' | 'failed' | 'interrupted'
  /** Zeros until it has ended. */
  readonly usage: Usage
  /** Nano-USD; null until it has ended, and where nobody knows the price. */
  readonly cost: number | null
  readonly error: unknown
  /** Milliseconds; null until it has ended. */
  readonly duration: number | null
  /** Milliseconds from its start, for streams. */
  firstToken: number | null
  /** Network reads in which a stream said something, from the one with its first token on. */
  reads: number
  /** Given by dispatch when it sends; without one nothing was sent, and nothing is charged. */
  meter: Meter | null
  /** False: nobody keeps books, so nothing has to be counted. */
  readonly metered: boolean
  /** It brought its whole answer. */
  settle(): void
  /** It failed or was given up. */
  fail(error: unknown): void
  /** Told once, when it has ended: a stream when the stream has. */
  onEnded(listener: (expense: Expense) => void): void
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
  /** The request's tokens, counted on first touch and again when it is replaced. */
  readonly size: RequestSize
  /** The most output tokens of one choice that goes upstream: the lowest of the request's own, the route's and layers'. */
  readonly maxOutputTokens: number | null
  /** Lowers that cap. */
  limitOutput(tokens: number): void
  /** What budgets holds for this call. */
  hold: Hold | null
  /** What limits counts for this call. */
  admission?: Admission | null
  /** What the ledger remembers of it. */
  entry?: object
  /** What tracing remembers of it. */
  traced?: object
  /** Its provider calls so far. */
  readonly expenses: readonly Expense[]
  /** The call goes on after its caller has left, to its end and its true usage. */
  outlive(): void
  /** The provider's frames, synchronously, before they are sealed and the client gets them. No listener, no cost. */
  onFrames(listener: (frames: Frames) => void): void
  /**
   * Exactly once, however the call ends, in the order of the stages; a promise is awaited before the last byte leaves.
   * A listener that needs nothing but the call is best a plain function: it is given it.
   */
  onSettled(listener: (outcome: Outcome, inference: Inference) => unknown): void
}

/**
 * What a call comes to. `raw` is the provider's own bytes while nobody has replaced the body; `usage` is what the body
 * reports, where that can be had without parsing it: absent is not none.
 */
export type Answer =
  | {
      readonly stream: false
      readonly body: ChatCompletion
      readonly raw: Uint8Array | null
      readonly usage?: CompletionUsage | null
    }
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

/** `ms`: what the check took. */
export type Checked = Readiness & { readonly ms: number }

/** What the kernel asks of those who keep books. Each part is given once, by one plugin or by several. */
export interface Accountant {
  /** Nano-USD of a provider call that has ended; null: nobody knows the price. */
  cost?(target: Target, usage: Usage): number | null
  /** Writes down that an attempt begins, before it is sent. Throwing refuses it. */
  open?(expense: Expense): void | Promise<void>
}

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

/** How grave the line of a call is. */
export type CallLevel = 'info' | 'warn' | 'error'

/** What we need of a logger: pino's form, details first. */
export interface Log {
  error(details: object, message: string): void
  warn(details: object, message: string): void
  info(details: object, message: string): void
  debug(details: object, message: string): void
  /** False: lines of this level go nowhere. Absent: nobody knows. */
  isLevelEnabled?(level: string): boolean
  /** Writes the line of a call in a form of its own; absent: an ordinary line with details. Its level is enabled. */
  logCall?(level: CallLevel, record: CallRecord): void
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
  /**
   * Told of each call that is refused before its first stage: an unknown model, a gateway that closes. Such a call has no
   * Outcome. While plugins load.
   */
  onRefused(listener: (error: unknown) => void): void
  /** A caller in this process: no network, the same limits and budgets. */
  caller(options?: CallerOptions): Caller
  /** Says who a caller is; the plugin auth gives it, without it everybody is `public`. @throws InvalidApiKey */
  authenticate?(credentials: Credentials): Principal | Promise<Principal>
  /** The same principal, acting for another tenant. @throws TenantNotFound, TenantMismatch */
  actFor?(principal: Principal, tenant: string): Principal
  /** Adds a capability under a name of its own; refuses a name that is taken. */
  decorate<Name extends keyof Gateway>(name: Name, value: Gateway[Name]): void
  /**
   * What another plugin has added, or undefined where it is not used. Adding it later throws, naming both: whoever looks
   * for it looks once. While plugins load.
   */
  optional<Name extends keyof Gateway>(name: Name, by: string): Gateway[Name] | undefined
  /** Takes the innermost part; routing gives it, once. */
  routeWith(router: Router): void
  /** Takes what prices attempts or writes them down; each part once. */
  accountWith(accountant: Accountant): void
  /** Holds money for an attempt and writes it down. For dispatch. */
  open(inference: Inference, target: Target): Expense | Promise<Expense>
  /** Sends an attempt through the attempt layers to its provider. For dispatch. */
  send(attempt: Attempt): Promise<Answer>
  /**
   * Adds a dependency that /ready asks for. `check` says what is known of it; `ping` really asks it something, for the
   * administrator only: whoever may ask without a key is not to put load on it.
   */
  dependency(name: string, check: () => Readiness | Promise<Readiness>, ping?: () => Promise<unknown>): void
  /** Asks every dependency at once, with `ping` for an answer of its own; each has half a second. */
  readiness(ping?: boolean): Promise<{ ok: boolean; checks: Record<string, Checked> }>
  /** What happens, as it happens. */
  readonly events: EventBus
  /** Where this gateway logs. Lines of a call have `requestId` and `traceId`; nothing secret is ever given to it. */
  readonly log: Log
  /** A new id for a call. */
  newId(): string
  /** True from the moment the host began to close. */
  readonly closing: boolean
  /** Calls in progress. */
  readonly running: number
  /** Those calls, the newest first. For who looks at them at once: none is to be kept. */
  calls(): Iterable<Inference>
}

/** What a caller showed of itself, on any lane. */
export interface Credentials {
  readonly headers: Readonly<Record<string, string | string[] | undefined>>
}
