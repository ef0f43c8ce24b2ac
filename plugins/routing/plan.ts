import type { Route, Target, Timeouts } from '../../schemas/gateway.ts'
import type { Price, Strategy } from '../../schemas/model-options.ts'
import type { Abilities, Provider } from '../../schemas/provider.ts'
import { isLimited } from './abilities.ts'
import { hashOf } from './hash.ts'
import type { Room } from './places.ts'
import type { TargetState } from './target-state.ts'

/** Names travel in headers: nothing but visible ASCII. */
export const printable = /^[\x21-\x7e]+$/

export const defaultTimeouts: Timeouts = {
  connect: 5_000,
  headers: 60_000,
  firstToken: 60_000,
  idle: 30_000,
  total: 600_000
}

/** One target of an alias. A class, because it is looked at in every call and all of them have one shape. */
export class Candidate implements Target {
  readonly provider: Provider
  readonly model: string
  readonly weight: number
  readonly price: Price | null
  readonly state: TargetState
  readonly timeouts: Timeouts
  /** The cap of its alias, or null. */
  readonly maxOutputTokens: number | null
  readonly abilities: Abilities
  /** Some request could ask too much of it. */
  readonly limited: boolean
  readonly room: Room | null
  /** For drawing the same target for the same conversation in every process. */
  readonly hash: number

  constructor(options: Omit<Candidate, 'limited' | 'hash'>) {
    this.provider = options.provider
    this.model = options.model
    this.weight = options.weight
    this.price = options.price
    this.state = options.state
    this.timeouts = options.timeouts
    this.maxOutputTokens = options.maxOutputTokens
    this.abilities = options.abilities
    this.limited = isLimited(options.abilities)
    this.room = options.room
    this.hash = hashOf(`${options.provider.name}/${options.model}`)
  }
}

/** One alias of a plan: the one that was asked for, then those it falls back on. */
export interface Step {
  readonly alias: string
  readonly strategy: Strategy
  readonly candidates: readonly Candidate[]
  /** Passes over the candidates that failed in a way that may pass, after the first one. */
  readonly retries: number
  /** When a second target is asked while the first is silent: milliseconds, or when it takes longer than 19 of 20 do. */
  readonly hedge: number | 'p95' | null
  /** Some request could ask too much of one of them. */
  readonly limited: boolean
  /** There is more than one target or key to choose from. */
  readonly choice: boolean
}

/** What a name stands for: the route that the kernel and layers see, and how dispatch goes along it. */
export class Plan implements Route {
  readonly alias: string
  readonly steps: readonly Step[]
  readonly targets: readonly Candidate[]
  readonly timeouts: Timeouts
  readonly maxOutputTokens: number | null
  readonly inputTokensPerImage: number

  /** @param steps at least one; its own alias first */
  constructor(
    steps: readonly Step[],
    own: { timeouts: Timeouts; maxOutputTokens: number | null; inputTokensPerImage: number }
  ) {
    this.alias = steps[0]?.alias ?? ''
    this.steps = steps
    this.targets = steps.flatMap(({ candidates }) => candidates)
    this.timeouts = own.timeouts
    this.maxOutputTokens = own.maxOutputTokens
    this.inputTokensPerImage = own.inputTokensPerImage
  }
}
