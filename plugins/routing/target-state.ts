import { codeOf, namesOf, wordsOf } from '../../schemas/call-record.ts'
import { detail, type GatewayError, withoutKeys } from '../../schemas/errors.ts'
import type { EventBus } from '../../schemas/events.ts'
import type { Inference, Log } from '../../schemas/gateway.ts'
import type { Provider } from '../../schemas/provider.ts'
import { Breaker, type BreakerOptions } from './breaker.ts'
import { type KeyPool, Lane } from './lane.ts'
import { Places } from './places.ts'
import { Window } from './window.ts'

/** Milliseconds after which news weighs as much as what was known before. */
const memory = 10_000
/** Milliseconds without news after which a third of the latency is left. */
const fading = 60_000
/** More than any latency: who has been asked and has not answered yet is not asked by the next one too. */
const unheard = 1e9

/** Where a target says what becomes of it. */
export interface Told {
  readonly log: Log
  readonly events: EventBus
}

/** Why nobody is let in, and until when, in milliseconds since 1970. */
export interface Rest {
  readonly why: 'breaker' | 'refused' | 'limited'
  readonly until: number
}

/**
 * What is known of one model of one provider, by whatever alias it is reached. It outlives a change of the routing table.
 * A class: it is asked several times a call.
 */
export class TargetState {
  readonly provider: Provider
  readonly model: string
  readonly breaker: Breaker
  readonly lanes: readonly Lane[]
  readonly places = new Places()
  attempts = 0
  /** Attempts that failed for a reason that is not the request's. */
  failures = 0
  /** Milliseconds since 1970 of the last of these, and its words. */
  lastError: { time: number; code: string; message: string } | null = null
  /** Milliseconds of whole answers and streams to their end, and of streams to their first token. */
  readonly latency = new Window()
  readonly firstToken = new Window()
  #log: Log
  #events: EventBus
  #turn = 0
  #average = 0
  #heardAt = 0

  constructor(provider: Provider, model: string, keys: KeyPool, options: BreakerOptions, told: Told) {
    this.provider = provider
    this.model = model
    this.breaker = new Breaker(options)
    this.lanes = keys.map((refused, key) => new Lane(key, refused))
    this.#log = told.log
    this.#events = told.events
  }

  /**
   * Peak EWMA: milliseconds that a further call would probably wait for its answer (its first token, for a stream). Quick to
   * rise and slow to fall; without news it fades, so that a target that was slow once is tried again. 0: unknown.
   */
  load(now: number): number {
    const { taken } = this.places
    if (this.#heardAt === 0) return taken * unheard
    return this.#average * Math.exp((this.#heardAt - now) / fading) * (taken + 1)
  }

  /** With which lane to begin: each in its turn. */
  turn(): number {
    return this.lanes.length === 1 ? 0 : this.#turn++
  }

  /** Whether a call may be sent with this lane. */
  passes(lane: Lane, now: number): boolean {
    return this.breaker.passes(now) && lane.passes(now)
  }

  /** The first that a call may be sent with, beginning with `first`; null: there is none. */
  lane(first: number, now: number): Lane | null {
    const { lanes } = this
    for (let tries = 0; tries < lanes.length; tries++) {
      const lane = lanes[(first + tries) % lanes.length]!
      if (this.passes(lane, now)) return lane
    }
    return null
  }

  /** Why nobody may ask; null: somebody may. */
  rest(now: number): Rest | null {
    if (!this.breaker.passes(now)) return { why: 'breaker', until: this.breaker.openUntil }
    let soonest: Rest | null = null
    for (const lane of this.lanes) {
      const rest = lane.rest(now)
      if (rest === null) return null
      if (soonest === null || rest.until < soonest.until) soonest = rest
    }
    return soonest
  }

  /** A call begins that has a place and may pass. */
  begin(call: object, lane: Lane): void {
    this.attempts++
    this.breaker.enter(call)
    lane.enter(call)
  }

  /** The same call has ended, however it did. */
  end(call: object, lane: Lane): void {
    this.breaker.release(call)
    lane.release(call)
    this.places.leave()
  }

  /** It speaks: `milliseconds` until then. Not yet how its answer ends. */
  answered(lane: Lane, milliseconds: number, now: number): void {
    if (this.breaker.mend(now)) this.#answersAgain()
    lane.succeed(now)
    const past = Math.exp((this.#heardAt - now) / memory)
    this.#average = Math.max(milliseconds, this.#average * past + milliseconds * (1 - past))
    this.#heardAt = now
  }

  /** Its answer is complete. */
  succeeded(now: number): void {
    if (this.breaker.succeed(now)) this.#answersAgain()
  }

  /** Why a call failed, in the provider's own words. */
  explain(error: GatewayError, inference: Inference): void {
    this.#log.debug({ ...namesOf(inference), ...this.#named(), err: error }, 'a provider call failed')
  }

  /** It has failed. `counts`: in a way that says something of its health. */
  failed(call: object, lane: Lane, error: GatewayError, counts: boolean, now: number): void {
    detail(error, { target: `${this.provider.name}/${this.model}` })
    // It refuses the request, so it is there.
    if (error.blame === 'request') this.breaker.mend(now)
    if (error.blame === 'request' || error.blame === null) return
    this.failures++
    this.lastError = { time: now, code: codeOf(error), message: wordsOf(error) }
    if (error.blame === 'limit') this.#limited(lane, error, now)
    if (error.blame === 'key') this.#refused(call, lane, error, now)
    if (counts && this.breaker.fail(call, now)) {
      const { code } = this.lastError
      this.#log.warn({ ...this.#named(), code, reason: wordsOf(error) }, 'a target is left alone for a while')
      this.#tell('open', code)
    }
  }

  #limited(lane: Lane, error: GatewayError, now: number): void {
    lane.limit(error, now)
    this.#log.debug({ ...this.#named(), key: lane.key + 1, retryAfter: error.retryAfter }, 'a key is limited')
  }

  #refused(call: object, lane: Lane, error: GatewayError, now: number): void {
    if (!lane.refuse(call, error, now)) return
    this.#log.error({ ...this.#named(), key: lane.key + 1, reason: wordsOf(error) }, 'a key is refused and rests')
  }

  #answersAgain(): void {
    this.#log.info(this.#named(), 'a target answers again')
    this.#tell('closed', null)
  }

  #tell(state: 'open' | 'closed', reason: string | null): void {
    const { provider, model } = this
    if (!this.#events.heard) return
    this.#events.emit('routing.breaker', { provider: provider.name, target_model: withoutKeys(model), state, reason })
  }

  #named() {
    return { provider: this.provider.name, model: this.model }
  }
}
