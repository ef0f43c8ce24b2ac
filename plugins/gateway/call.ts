import type { ChatRequest } from '../../schemas/chat.ts'
import { Cancelled, type GatewayError, UpstreamTimeout } from '../../schemas/errors.ts'
import type { Frames } from '../../schemas/frames.ts'
import type {
  Admission,
  Answer,
  Caller,
  Facts,
  Hold,
  Inference,
  Outcome,
  Route,
  Router,
  Target
} from '../../schemas/gateway.ts'
import { type RequestSize, sizeOf } from '../../schemas/tokens.ts'
import { newTraceId, traceIdOf } from '../../schemas/trace.ts'
import { type Usage, usageOf } from '../../schemas/usage.ts'
import { Ending, type Settled, tell, whenSettled } from './ending.ts'
import { type Books, Entry } from './expense.ts'
import type { Linked } from './running.ts'

/** Node turns a longer timer into one of a millisecond. */
const longestTimer = 2 ** 31 - 1

/** Milliseconds that a provider gets to say what a finished answer used once its reader has left. */
const usagePatience = 2_000

/** What a call needs of the kernel that runs it. */
export interface Host {
  readonly router: Router
  readonly books: Books
  /** The call has settled and nothing of it is left. */
  ended(call: Call): void
  /** A listener failed; the call goes on. */
  failed(error: unknown, call: Pick<Inference, 'id' | 'facts'>): void
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
  readonly served
  readonly facts: Facts
  readonly expenses: Entry[] = []
  hold: Hold | null = null
  admission: Admission | null = null
  entry: object | undefined = undefined
  traced: object | undefined = undefined
  /** What the client asked for, whatever layers make of the request. */
  readonly wantsUsage: boolean
  readonly started = performance.now()
  /** Set while somebody waits for this call: how to tell them that it is over. */
  interrupt: ((reason: Error) => void) | null = null
  /** Set once a stream is handed out. */
  relay: { stop(reason: Error): void; drain(): void } | null = null
  /** Its frames have been inspected before they were sealed. */
  tapped = false
  /** The caller has left. */
  departed = false
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
  #size: RequestSize | null = null
  #outputCap: number | null = null
  #outlives = false
  /** Attempts whose hold is being extended. */
  #extending = 0

  constructor(host: Host, request: ChatRequest, caller: Caller) {
    this.#host = host
    this.#caller = caller
    this.#request = request
    this.#route = host.router.resolve(request)
    this.principal = caller.principal
    this.id = caller.id
    this.facts = {
      target: null,
      attempts: 0,
      cache: 'off',
      warnings: [],
      cost: null,
      headers: [],
      firstToken: null,
      traceId: caller.traceId ?? traceIdOf(caller.trace?.traceparent) ?? newTraceId()
    }
    this.trace = caller.trace
    this.deadline = caller.deadline
    this.idempotencyKey = caller.idempotencyKey
    this.origin = caller.origin
    this.served = caller.served
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
      if (this.#outcome === null) this.#timer = this.#arm(this.#outlives ? undefined : this.deadline)
    }
    this.#request = request
    this.#size = null
  }

  get size(): RequestSize {
    this.#size ??= sizeOf(this.#request, this.#route.inputTokensPerImage)
    return this.#size
  }

  get maxOutputTokens(): number | null {
    const { max_completion_tokens: newer, max_tokens: older } = this.#request
    return lower(lower(newer ?? older ?? null, this.#route.maxOutputTokens), this.#outputCap)
  }

  limitOutput(tokens: number): void {
    this.#outputCap = lower(this.#outputCap, tokens)
  }

  outlive(): void {
    this.#outlives = true
    // What the client waits for at most is no limit of a call that goes on without it.
    if (this.deadline !== undefined && this.#outcome === null) this.#timer = this.#arm(undefined)
  }

  get route(): Route {
    return this.#route
  }

  get usage(): Usage {
    const answer = this.#answer
    if (answer === null || answer.stream) return usageOf(this.#reported?.usage)
    return usageOf(answer.usage === undefined ? answer.body.usage : answer.usage)
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
      void tell([listener], this.#outcome, this, this.#host)
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
        this.#host.failed(error, this)
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

  /** Shows frames to listeners and notes the usage that they report, the last word counts; null: nobody asked for the rest. */
  inspect(frames: Frames): Frames | null {
    if (this.frameListeners !== null) this.show(frames)
    if (!frames.hasUsage) return frames
    this.#reported = frames
    return this.wantsUsage ? frames : frames.withoutUsage()
  }

  /** Notes the whole answer, so that its usage can be read if anybody asks. */
  answered(answer: Answer): void {
    this.#answer = answer
  }

  /** The consumer broke off by itself. */
  leave(): void {
    if (this.#outcome !== null || this.departed) return
    this.departed = true
    if (!this.#outlives && !this.#awaitsUsage()) {
      this.abort(new Cancelled())
      return
    }
    this.relay?.drain()
    const interrupt = this.interrupt
    this.interrupt = null
    interrupt?.(new Cancelled())
  }

  /**
   * The answer is there but for its bill: whoever leaves now has got everything, and what it used is about to be said.
   * It is waited for, a little while.
   */
  #awaitsUsage(): boolean {
    // Of two attempts at a time either may have won.
    const awaits = this.expenses.some(({ status, meter }) => status === 'open' && meter?.awaitsUsage === true)
    if (this.relay === null || !awaits) return false
    clearTimeout(this.#timer)
    this.#timer = setTimeout(() => this.abort(new Cancelled()), usagePatience)
    return true
  }

  /** Writes a provider call down before it is sent; what `open` throws refuses it. */
  open(target: Target): Entry | Promise<Entry> {
    const { hold } = this
    const isFirst = this.expenses.length + this.#extending === 0
    if (hold === null || (isFirst && hold.request === this.#request)) return this.#enter(target)
    const held = hold.extend(target)
    return held instanceof Promise ? this.#extended(held, target) : this.#enter(target)
  }

  /** Two may be under way at once. */
  async #extended(held: Promise<void>, target: Target): Promise<Entry> {
    this.#extending++
    try {
      await held
    } finally {
      this.#extending--
    }
    return this.#enter(target)
  }

  #enter(target: Target): Entry | Promise<Entry> {
    const { books } = this.#host
    // The call may have ended while its hold was extended, or a layer may have gone on after its end.
    this.signal.throwIfAborted()
    if (this.#outcome !== null) throw new Cancelled()
    const entry = new Entry(books, this, target, this.expenses.length + 1)
    this.expenses.push(entry)
    if (books.open === null) return entry
    try {
      const opened = books.open(entry)
      return opened instanceof Promise ? this.#entered(opened, entry) : entry
    } catch (error) {
      this.expenses.pop()
      throw error
    }
  }

  async #entered(opened: Promise<void>, entry: Entry): Promise<Entry> {
    try {
      await opened
      return entry
    } catch (error) {
      if (this.expenses.at(-1) === entry) this.expenses.pop()
      throw error
    }
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

  /** Ends the call, once: later words are ignored. Undefined when nobody has to be waited for. */
  settle(status: Outcome['status'], error: Error | null): Promise<void> | undefined {
    if (this.#outcome !== null) return this.#settling
    this.#outcome = new Ending(this, status, error)
    clearTimeout(this.#timer)
    this.#caller.signal.removeEventListener('abort', this.#leave)
    const dropped = this.#closeBooks(error)
    // Layers may have dropped a stream that nobody will ever read: what is still open upstream ends with the call.
    if (status !== 'completed' || dropped || this.facts.attempts > 1) this.#controller.abort(error ?? new Cancelled())
    if (this.#settledListeners !== null) this.#settling = tell(this.#settledListeners, this.#outcome, this, this.#host)
    if (this.#settling === undefined) this.#host.ended(this)
    else this.#settling = this.#settling.then(() => this.#host.ended(this))
    return this.#settling
  }

  /** Every provider call has ended before anybody hears of the end of the call. True: one of them had not. */
  #closeBooks(error: Error | null): boolean {
    let cost: number | null = 0
    let dropped = false
    for (const entry of this.expenses) {
      if (entry.status === 'open') {
        dropped = true
        this.#close(entry, error ?? new Cancelled())
      }
      cost = cost === null || entry.cost === null ? null : cost + entry.cost
    }
    if (this.#host.books.cost !== null) this.facts.cost = cost
    return dropped
  }

  /** Broken off from here, whatever the reason: the provider has read the input and is paid for it. */
  #close(entry: Entry, error: Error): void {
    try {
      entry.interrupt(error)
    } catch (fault) {
      this.#host.failed(fault, this)
      const { meter } = entry
      entry.meter = null
      entry.interrupt(error)
      meter?.ended?.(entry)
    }
  }
}

/** The lower of two caps, of which either may be none. */
function lower(one: number | null, other: number | null): number | null {
  if (one === null) return other
  return other === null ? one : Math.min(one, other)
}

function expire(call: Call, total: number): void {
  call.abort(new UpstreamTimeout(`the call took longer than ${total} ms in all`))
}
