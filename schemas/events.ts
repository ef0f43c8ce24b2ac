// What happens, as it happens. The kernel owns the bus, plugins tell it what they do, and whoever wants to know listens.

/**
 * The events by their names, open to merging. `data` is what leaves the process as JSON: flat, in snake_case, money in USD,
 * durations in milliseconds, and never a secret or a word of a prompt.
 */
export interface EventTypes {
  /** A call was let in by the kernel. */
  'model.request.start': {
    readonly id: string
    readonly tenant: string
    readonly key: string | null
    readonly model: string
    readonly stream: boolean
    readonly trace_id: string
  }
}

export type EventType = keyof EventTypes

/** One event. `time` in milliseconds since 1970. */
export type GatewayEvent<Type extends EventType = EventType> = {
  readonly [Name in Type]: { readonly type: Name; readonly time: number; readonly data: EventTypes[Name] }
}[Type]

export interface EventBus {
  /** False: nobody listens, so nothing has to be built. */
  readonly heard: boolean
  /** Tells every listener at once. One that throws is logged, and the others hear it all the same. */
  emit<Type extends EventType>(type: Type, data: EventTypes[Type]): void
  /** @returns what ends it */
  on(listener: (event: GatewayEvent) => void): () => void
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
  let listeners: ReadonlyArray<(event: GatewayEvent) => void> = []
  return {
    get heard() {
      return listeners.length > 0
    },
    emit(type, data) {
      if (listeners.length === 0) return
      const event: GatewayEvent = { type, time: Date.now(), data }
      for (const listener of listeners) {
        try {
          listener(event)
        } catch (error) {
          failed(error)
        }
      }
    },
    on(listener) {
      const own = (event: GatewayEvent) => listener(event)
      listeners = [...listeners, own]
      return () => {
        listeners = listeners.filter(other => other !== own)
      }
    }
  }
}
