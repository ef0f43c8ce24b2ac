import type { MessagePort, Worker } from 'node:worker_threads'
import { type GatewayError, InvalidRequest, isGatewayError, StoreUnavailable } from '../../schemas/errors.ts'
import { isGone } from './database.ts'

// Calls over a message port. What is sent has to survive structured cloning; functions and classes do not.

/** Functions by name, as one side offers and the other calls them. */
export type Functions = Record<string, (...args: never[]) => unknown>

interface Request {
  /** Null: nobody waits for an answer. */
  readonly id: number | null
  readonly method: string
  readonly args: readonly unknown[]
}

type Response = { readonly id: number; readonly result: unknown } | { readonly id: number; readonly error: Failure }

/** What was thrown, in transit. `code`: of a fault of schemas/errors.ts. */
interface Failure {
  readonly code: string | null
  readonly message: string
  readonly stack: string | undefined
}

interface Happening<Events, Name extends keyof Events = keyof Events> {
  readonly event: Name
  readonly detail: Events[Name]
}

const faults = { GATEWAY_STORE_UNAVAILABLE: StoreUnavailable, GATEWAY_INVALID_REQUEST: InvalidRequest }

export interface Remote<Offered extends Functions> {
  /** @throws StoreUnavailable when the other side is gone, or the database behind it */
  call<Name extends keyof Offered & string>(
    method: Name,
    ...args: Parameters<Offered[Name]>
  ): Promise<Awaited<ReturnType<Offered[Name]>>>
  /** Without waiting; nobody hears of a fault. */
  tell<Name extends keyof Offered & string>(method: Name, ...args: Parameters<Offered[Name]>): void
  /** From now on every call is refused; those that wait are rejected. */
  fail(reason: string): void
}

/** The side that calls. */
export function callTo<Offered extends Functions, Events>(
  worker: Worker,
  happened: <Name extends keyof Events>(event: Name, detail: Events[Name]) => void
): Remote<Offered> {
  const waiting = new Map<number, { resolve(result: never): void; reject(error: Error): void }>()
  let count = 0
  let failed: string | null = null

  worker.on('message', (message: Response | Happening<Events>) => {
    if ('event' in message) {
      happened(message.event, message.detail)
      return
    }
    const caller = waiting.get(message.id)
    waiting.delete(message.id)
    if ('error' in message) caller?.reject(thrown(message.error))
    else caller?.resolve(message.result as never)
  })

  return {
    call(method, ...args) {
      if (failed !== null) return Promise.reject(new StoreUnavailable(failed))
      return new Promise((resolve, reject) => {
        const id = count++
        worker.postMessage({ id, method, args } satisfies Request)
        waiting.set(id, { resolve, reject })
      })
    },
    tell(method, ...args) {
      if (failed === null) worker.postMessage({ id: null, method, args } satisfies Request)
    },
    fail(reason) {
      failed ??= reason
      const rejected = [...waiting.values()]
      waiting.clear()
      for (const { reject } of rejected) reject(new StoreUnavailable(failed))
    }
  }
}

/** The side that answers; each call begins as it comes in and ends when it does. */
export function answerOn(port: MessagePort, offered: Functions): void {
  port.on('message', async ({ id, method, args }: Request) => {
    try {
      const work = Object.hasOwn(offered, method) ? offered[method] : undefined
      if (work === undefined) throw new TypeError(`The store has no method ${method}.`)
      const result = await work(...(args as never[]))
      if (id !== null) port.postMessage({ id, result } satisfies Response)
    } catch (error) {
      if (id !== null) port.postMessage({ id, error: failure(error) } satisfies Response)
    }
  })
}

/** Tells the calling side something that it did not ask for. */
export function teller<Events>(port: MessagePort) {
  return <Name extends keyof Events>(event: Name, detail: Events[Name]): void => {
    port.postMessage({ event, detail } satisfies Happening<Events, Name>)
  }
}

function failure(error: unknown): Failure {
  if (isGone(error)) return { code: 'GATEWAY_STORE_UNAVAILABLE', message: error.message, stack: undefined }
  if (isGatewayError(error)) return { code: error.code, message: error.message, stack: undefined }
  if (error instanceof Error) return { code: null, message: error.message, stack: error.stack }
  return { code: null, message: String(error), stack: undefined }
}

function thrown({ code, message, stack }: Failure): Error {
  const known = code !== null && code in faults ? (code as keyof typeof faults) : null
  if (known === null) return Object.assign(new Error(message), { stack })
  const error: GatewayError = new faults[known](message)
  return error
}
