import { type CallRecord, recordOf } from '../../schemas/call-record.ts'
import { InternalError } from '../../schemas/errors.ts'
import type { Inference, Outcome } from '../../schemas/gateway.ts'

/** Listeners get an Error whatever a layer threw; the caller gets what was thrown. */
export function asError(thrown: unknown): Error {
  return thrown instanceof Error ? thrown : new InternalError({ cause: thrown })
}

/** A call that has just ended. */
type Ended = Inference & {
  /** Its caller has left. */
  readonly departed: boolean
}

/** What is done about a listener that fails. */
interface Failing {
  failed(error: unknown, call: Inference): void
}

/** How a call ended. A class, so that its record is made only where somebody reads it, and once. */
export class Ending implements Outcome {
  readonly status: Outcome['status']
  readonly error: Error | null
  readonly duration: number
  readonly departed: boolean
  #call: Ended
  #record: CallRecord | null = null

  constructor(call: Ended, status: Outcome['status'], error: Error | null) {
    this.#call = call
    this.status = status
    this.error = error
    this.duration = performance.now() - call.started
    this.departed = call.departed
  }

  get record(): CallRecord {
    this.#record ??= recordOf(this.#call, this)
    return this.#record
  }
}

/** Hears of the end of a call; what it returns is waited for. */
export type Settled = (outcome: Outcome, inference: Inference) => unknown

/** Tells one listener after the other. One that fails is logged. Undefined when none of them has to be waited for. */
export function tell(
  listeners: Settled[],
  outcome: Outcome,
  call: Inference,
  host: Failing,
  from = 0
): Promise<void> | undefined {
  for (let index = from; index < listeners.length; index++) {
    try {
      const told = listeners[index]!(outcome, call)
      if (isThenable(told)) return goOn(told, listeners, outcome, call, host, index + 1)
    } catch (error) {
      host.failed(error, call)
    }
  }
  return undefined
}

function isThenable(value: unknown): value is PromiseLike<unknown> {
  return typeof value === 'object' && value !== null && 'then' in value
}

async function goOn(
  told: PromiseLike<unknown>,
  listeners: Settled[],
  outcome: Outcome,
  call: Inference,
  host: Failing,
  next: number
): Promise<void> {
  try {
    await told
  } catch (error) {
    host.failed(error, call)
  }
  await tell(listeners, outcome, call, host, next)
}

/** Goes on at once where nobody listened to the end of a call. */
export function whenSettled(settled: Promise<void> | undefined, goOn: () => void): void {
  if (settled === undefined) goOn()
  else settled.then(goOn)
}
