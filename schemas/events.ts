// What happens, as it happens. The kernel owns the bus, plugins tell it what they do, and whoever wants to know listens.

/** Which call an event is about. `key` is the key's id, `model` what was asked for: the alias. */
export interface AboutCall {
  readonly id: string
  readonly tenant: string
  readonly key: string | null
  readonly model: string
  readonly trace_id: string
}

/** Which of its provider calls, counted from 1. `target_model` is the provider's own name. */
export interface AboutAttempt extends AboutCall {
  readonly attempt: number
  readonly provider: string
  readonly target_model: string
}

/** What a call or a provider call took. `usd` is null where nobody knows the price. */
export interface Taken {
  readonly error: string | null
  readonly tokens_in: number
  readonly tokens_out: number
  readonly usage_source: 'reported' | 'estimated'
  readonly usd: number | null
  readonly duration_ms: number
  readonly first_token_ms: number | null
}

/** Who changed something: the id of a key, or the kind of caller. */
export interface Changed {
  readonly actor: string
}

/**
 * The events by their names, open to merging. `data` is what leaves the process as JSON: flat, in snake_case, money in USD,
 * durations in milliseconds, and never a secret or a word of a prompt.
 */
export interface EventTypes {
  /** A call was let in by the kernel. */
  'model.request.start': AboutCall & { readonly stream: boolean }
  /** The same call has ended, however it did. */
  'model.request.complete': AboutCall &
    Taken & {
      readonly stream: boolean
      readonly provider: string | null
      readonly target_model: string | null
      readonly status: 'settled' | 'failed' | 'interrupted'
      readonly http_status: number
      readonly tokens_cached: number
      readonly tokens_reasoning: number
      readonly attempts: number
      readonly retries: number
      readonly fallbacks: number
      readonly cache: 'off' | 'miss' | 'hit'
    }
  /** The first token of a stream is there. */
  'model.streaming.start': AboutCall & {
    readonly provider: string | null
    readonly target_model: string | null
    readonly first_token_ms: number | null
  }
  /** A provider is asked. */
  'model.attempt.start': AboutAttempt
  /** It has answered to the end, or has not. */
  'model.attempt.complete': AboutAttempt & Taken & { readonly status: 'settled' | 'failed' | 'interrupted' }
  /** The same target is asked again. `reason`: the error code of the attempt before. */
  'model.retry': AboutAttempt & { readonly reason: string }
  /** Another target is asked. `from` and `to`: provider/model. `reason` as above; `hedge`: the first one was slow. */
  'model.fallback': AboutCall & {
    readonly attempt: number
    readonly from: string
    readonly to: string
    readonly reason: string
  }
  /** The budget of the whole gateway is nearly used up. Once in a period. */
  'model.budget.warning': {
    readonly scope: string
    readonly period: string
    readonly spent_usd: number
    readonly limit_usd: number
  }
  /**
   * A budget refuses a call, or a further attempt of one. `bound_usd`: what that may cost at most. `reserved_usd`: what calls in
   * flight hold, this one's earlier attempts included.
   */
  'model.budget.exceeded': AboutCall & {
    readonly scope: string
    readonly period: string
    readonly spent_usd: number
    readonly reserved_usd: number
    readonly limit_usd: number
    readonly bound_usd: number
  }
  /** A target is left alone, or asked again. `reason`: the code of the error that it was for. */
  'routing.breaker': {
    readonly provider: string
    readonly target_model: string
    readonly state: 'open' | 'closed'
    readonly reason: string | null
  }
  /** Another routing table counts. `config`: the first characters of its hash. */
  'routing.reloaded': Changed & { readonly changes: number; readonly config: string | null }
  'tenant.created': Changed & { readonly tenant: string }
  'tenant.updated': Changed & { readonly tenant: string; readonly active: boolean }
  'tenant.deleted': Changed & { readonly tenant: string }
  'key.created': Changed & { readonly tenant: string; readonly key: string; readonly expires_at: string | null }
  /** `key` works until `expires_at`; `rotated_to` is the new one. */
  'key.rotated': Changed & {
    readonly tenant: string
    readonly key: string
    readonly rotated_to: string
    readonly expires_at: string | null
  }
  'key.revoked': Changed & { readonly tenant: string; readonly key: string }
  /** So many events of this process could not be written to Redis and are lost. */
  'gateway.events.dropped': { readonly dropped: number }
}

export type EventType = keyof EventTypes

/** The types above: what can be asked for without having happened. */
export const eventTypes = [
  'model.request.start',
  'model.request.complete',
  'model.streaming.start',
  'model.attempt.start',
  'model.attempt.complete',
  'model.retry',
  'model.fallback',
  'model.budget.warning',
  'model.budget.exceeded',
  'routing.breaker',
  'routing.reloaded',
  'tenant.created',
  'tenant.updated',
  'tenant.deleted',
  'key.created',
  'key.rotated',
  'key.revoked',
  'gateway.events.dropped'
] as const satisfies readonly EventType[]

/** A name, or the beginning of one: `model.request.start`, `model.*`, `*`. */
export const eventTypePattern = '^(\\*|[a-z][a-z0-9_]*(\\.[a-z0-9_]+)*(\\.\\*)?)$'

/** One event. `time` in milliseconds since 1970. */
export type GatewayEvent<Type extends EventType = EventType> = {
  readonly [Name in Type]: { readonly type: Name; readonly time: number; readonly data: EventTypes[Name] }
}[Type]

type Listener = (event: GatewayEvent) => unknown

export interface EventBus {
  /** False: nobody listens, so nothing has to be built. */
  readonly heard: boolean
  /** Tells every listener at once. One that throws is logged, and the others hear it all the same. */
  emit<Type extends EventType>(type: Type, data: EventTypes[Type]): void
  /** @returns what ends it */
  on(listener: Listener): () => void
  /** Only events of one type. @returns what ends it */
  on<Type extends EventType>(type: Type, listener: (event: GatewayEvent<Type>) => unknown): () => void
}

/** What becomes of events outside the process, in numbers since its start. */
export interface EventStream {
  /** Of `GET /events`, now. */
  readonly subscribers: number
  /** Subscribers that were let go because they did not read. */
  readonly slow: number
  /** Events that are on their way to Redis. */
  readonly waiting: number
  /** Events that Redis has not got: the buffer was full. */
  readonly dropped: number
}

declare module './gateway.ts' {
  interface Gateway {
    /** Given by the plugin events. */
    eventStream?: EventStream
  }
}

/** @param failed a listener threw */
export function createEventBus(failed: (error: unknown) => void): EventBus {
  let listeners: readonly Listener[] = []

  function add(listener: Listener): () => void {
    const own: Listener = event => listener(event)
    listeners = [...listeners, own]
    return () => {
      listeners = listeners.filter(other => other !== own)
    }
  }

  function on(listener: Listener): () => void
  function on<Type extends EventType>(type: Type, listener: (event: GatewayEvent<Type>) => unknown): () => void
  function on<Type extends EventType>(first: Type | Listener, listener?: (event: GatewayEvent<Type>) => unknown) {
    if (typeof first === 'function') return add(first)
    return add(event => (isOf(event, first) ? listener?.(event) : undefined))
  }

  return {
    get heard() {
      return listeners.length > 0
    },
    emit(type, data) {
      if (listeners.length === 0) return
      const event = eventOf(type, data)
      for (const listener of listeners) {
        try {
          const told = listener(event)
          if (told instanceof Promise) told.catch(failed)
        } catch (error) {
          failed(error)
        }
      }
    },
    on
  }
}

/** A type and the data of the same type: the compiler does not see by itself that they go together. */
function eventOf<Type extends EventType>(type: Type, data: EventTypes[Type]): GatewayEvent
function eventOf(type: EventType, data: EventTypes[EventType]) {
  return { type, time: Date.now(), data }
}

function isOf<Type extends EventType>(event: GatewayEvent, type: Type): event is GatewayEvent & GatewayEvent<Type> {
  return event.type === type
}
