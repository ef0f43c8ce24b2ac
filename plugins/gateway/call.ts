import type { ChatRequest } from '../../schemas/chat.ts'
import { Cancelled, type GatewayError, InternalError, UpstreamTimeout } from '../../schemas/errors.ts'
import type { Frames } from '../../schemas/frames.ts'
import type { Answer, Caller, Facts, Inference, Outcome, Route, Router } from '../../schemas/gateway.ts'
import { type Usage, usageOf } from '../../schemas/usage.ts'
import type { Linked } from './running.ts'

type Settled = (outcome: Outcome) => unknown

/** Node turns a longer timer into one of a millisecond. */
const longestTimer = 2 ** 31 - 1

/** What a call needs of the kernel that runs it. */
export interface Host {
  readonly router: Router
  /** The call has settled and nothing of it is left. */
  ended(call: Call): void
  /** A listener failed; the call goes on. */
  failed(error: unknown): void
}

/**
 * One inference from entry to settlement. A class, because its identity is its state: whoever ends it first (the answer,
 * the client, a deadline, the shutdown) decides the outcome, and everybody after that finds it decided.
 */
export class Call implements Inference, Linked<Call> {
  before: Call | null = null
  after: Call | null = null
  readonly operation = 'chat'
  readonly principal
  readonly id
  readonly trace
  readonly deadline
  readonly idempotencyKey
  readonly origin
  readonly facts: Facts = { target: null, attempts: 0, cache: 'off', warnings: [], cost: null, firstToken: null }
  /** What the client asked for, whatever layers make of the request. */
  readonly wantsUsage: boolean
  readonly started = performance.now()
  /** Set while somebody waits for this call: how to tell them that it is over. */
  interrupt: ((reason: Error) => void) | null = null
  /** Set once a stream is handed out. */
  relay: { stop(reason: Error): void } | null = null
  frameListeners: Array<(frames: Frames) => void> | null = null

  #host: Host
  #caller: Caller
  #controller = new AbortController()
  #request: ChatRequest
  #route: Route
  #timer: NodeJS.Timeout | undefined
  #leave = () => this.leave()
  #settledListeners: Settled[] | null = null
  #outcome: Outcome | null = null
  #settling: Promise<void> | undefined
  #reported: Frames | null = null
  #answer: Answer | null = null

  constructor(host: Host, request: ChatRequest, caller: Caller) {
    this.#host = host
    this.#caller = caller
    this.#request = request
    this.#route = host.router.resolve(request)
    this.principal = caller.principal
    this.id = caller.id
    this.trace = caller.trace
    this.deadline = caller.deadline
    this.idempotencyKey = caller.idempotencyKey
    this.origin = caller.origin
    this.wantsUsage = request.stream_options?.include_usage === true
    this.#timer = this.#arm(caller.deadline)
    caller.signal.addEventListener('abort', this.#leave)
  }

  get signal(): AbortSignal {
    return this.#controller.signal
  }

  get request(): ChatRequest {
    return this.#request
  }

  set request(request: ChatRequest) {
    if (request.model !== this.#request.model || request.task !== this.#request.task) {
      this.#route = this.#host.router.resolve(request)
      if (this.#outcome === null) this.#timer = this.#arm(this.deadline)
    }
    this.#request = request
  }

  get route(): Route {
    return this.#route
  }

  get usage(): Usage {
    if (this.#answer !== null && !this.#answer.stream) return usageOf(this.#answer.body.usage)
    return usageOf(this.#reported?.usage)
  }

  get outcome(): Outcome | null {
    return this.#outcome
  }

  onFrames(listener: (frames: Frames) => void): void {
    this.frameListeners ??= []
    this.frameListeners.push(listener)
  }

  onSettled(listener: Settled): void {
    if (this.#outcome !== null) {
      void this.#notify([listener], this.#outcome)
      return
    }
    this.#settledListeners ??= []
    this.#settledListeners.push(listener)
  }

  /** Shows frames to their listeners. One that throws is logged and hears no more. */
  show(frames: Frames): void {
    for (const listener of this.frameListeners ?? []) {
      try {
        listener(frames)
      } catch (error) {
        this.frameListeners = this.frameListeners?.filter(other => other !== listener) ?? null
        this.#host.failed(error)
      }
    }
  }

  /** A stream is handed out: its client counted its own limit only until now, the route's goes on. */
  delivered(): void {
    if (this.deadline !== undefined) this.#timer = this.#arm(undefined)
  }

  /** The time limit of the whole call, of which some may have passed. */
  #arm(deadline: number | undefined): NodeJS.Timeout {
    clearTimeout(this.#timer)
    const total = Math.min(this.#route.timeouts.total, deadline ?? longestTimer, longestTimer)
    const passed = this.#timer === undefined ? 0 : performance.now() - this.started
    return setTimeout(expire, Math.max(0, total - passed), this, total)
  }

  /** Notes the frames in which a stream spoke of its usage, to be read if anybody asks; the last word counts. */
  report(frames: Frames): void {
    this.#reported = frames
  }

  /** Notes the whole answer, so that its usage can be read if anybody asks. */
  answered(answer: Answer): void {
    this.#answer = answer
  }

  /** The consumer broke off by itself. */
  leave(): void {
    this.abort(new Cancelled())
  }

  /** Ends the call from outside: whoever waits is told, the provider is aborted, the books are closed. */
  abort(reason: GatewayError): void {
    if (this.#outcome !== null) return
    this.#controller.abort(reason)
    this.relay?.stop(reason)
    const settled = this.settle(reason instanceof Cancelled ? 'cancelled' : 'failed', reason)
    const interrupt = this.interrupt
    this.interrupt = null
    if (interrupt !== null) whenSettled(settled, () => interrupt(reason))
  }

  /** Ends the call, once: later words are ignored. Undefined when nobody listens, so that nobody has to wait. */
  settle(status: Outcome['status'], error: Error | null): Promise<void> | undefined {
    if (this.#outcome !== null) return this.#settling
    this.#outcome = { status, error, duration: performance.now() - this.started }
    clearTimeout(this.#timer)
    this.#caller.signal.removeEventListener('abort', this.#leave)
    // Layers may have dropped a stream that nobody will ever read: what is still open upstream ends with the call.
    if (status !== 'completed' || this.facts.attempts > 1) this.#controller.abort(error ?? new Cancelled())
    if (this.#settledListeners === null) this.#host.ended(this)
    else this.#settling = this.#finish(this.#settledListeners, this.#outcome)
    return this.#settling
  }

  async #finish(listeners: Settled[], outcome: Outcome): Promise<void> {
    await this.#notify(listeners, outcome)
    this.#host.ended(this)
  }

  async #notify(listeners: Settled[], outcome: Outcome): Promise<void> {
    for (const listener of listeners) {
      try {
        await listener(outcome)
      } catch (error) {
        this.#host.failed(error)
      }
    }
  }
}

/** Listeners get an Error whatever a layer threw; the caller gets what was thrown. */
export function asError(thrown: unknown): Error {
  return thrown instanceof Error ? thrown : new InternalError({ cause: thrown })
}

/** Goes on at once where nobody listened to the end of a call. */
export function whenSettled(settled: Promise<void> | undefined, goOn: () => void): void {
  if (settled === undefined) goOn()
  else settled.then(goOn)
}

function expire(call: Call, total: number): void {
  call.abort(new UpstreamTimeout(`the call took longer than ${total} ms in all`))
}
