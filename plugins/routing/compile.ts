import type { Log } from '../../schemas/gateway.ts'
import type { Abilities, Provider } from '../../schemas/provider.ts'
import type { ModelOptions, TargetOptions } from './index.ts'
import type { Room } from './places.ts'
import { Candidate, defaultTimeouts, Plan, printable, type Step } from './plan.ts'
import type { TargetState } from './target-state.ts'

/** The most that an image counts for where nothing else is configured. */
const defaultTokensPerImage = 1600
const defaultRetries = 2
const defaultQueue = { size: 100, timeout: 10_000 }

/** Gives what is known of a target. */
export type StateOf = (provider: Provider, model: string) => TargetState

export interface Compiled {
  readonly plans: ReadonlyMap<string, Plan>
  /** The targets of all plans, and how many calls each takes at a time: the least that any alias says. */
  readonly rooms: ReadonlyMap<TargetState, Room | null>
}

/**
 * Makes a plan of each alias. Changes nothing besides.
 * @throws Error for a model that cannot be named, a fallback that is not there, fallbacks that go in a circle
 */
export function compile(
  models: Readonly<Record<string, ModelOptions>>,
  providers: ReadonlyMap<string, Provider>,
  stateOf: StateOf,
  log: Log
): Compiled {
  const steps = new Map(Object.entries(models).map(([alias, options]) => [alias, stepOf(alias, options)]))
  const plans = new Map<string, Plan>()
  const checked = new Set<string>()
  for (const [alias, options] of Object.entries(models)) {
    refuseCircles(alias, models, [], checked)
    const along = follow(alias, models)
    const taken = along.flatMap(name => steps.get(name) ?? [])
    plans.set(alias, planOf(options, taken, Math.max(...along.map(name => tokensPerImage(models[name])))))
  }
  return { plans, rooms: roomsOf([...steps.values()].flatMap(({ candidates }) => candidates)) }

  function stepOf(alias: string, options: ModelOptions): Step {
    const { strategy = 'weighted', retries = defaultRetries, hedge } = options
    const candidates = options.targets.flatMap(target => candidatesOf(alias, options, target))
    const hasKeys = candidates.some(({ state }) => state.lanes.length > 1)
    return {
      alias,
      strategy,
      candidates,
      retries,
      hedge: hedge ? (hedge.after ?? 'p95') : null,
      limited: candidates.some(({ limited }) => limited),
      choice: hasKeys || (candidates.length > 1 && strategy !== 'priority')
    }
  }

  function candidatesOf(alias: string, options: ModelOptions, target: TargetOptions): Candidate[] {
    if (!printable.test(target.model)) throw new Error(`models.${alias}: '${target.model}' is not a model name.`)
    const provider = providers.get(target.provider)
    if (provider) return [candidateOf(provider, target, options, stateOf(provider, target.model))]
    log.warn({ alias, provider: target.provider }, 'a target is left out: its provider is switched off or not there')
    return []
  }
}

/** A plan for one model of one provider that nobody has configured. */
export function directPlan(alias: string, provider: Provider, model: string, state: TargetState): Plan {
  const candidate = candidateOf(provider, { model }, {}, state)
  const step: Step = {
    alias,
    strategy: 'weighted',
    candidates: [candidate],
    retries: defaultRetries,
    hedge: null,
    limited: candidate.limited,
    choice: state.lanes.length > 1
  }
  return planOf({}, [step], defaultTokensPerImage)
}

function candidateOf(
  provider: Provider,
  target: Omit<TargetOptions, 'provider'>,
  options: Omit<ModelOptions, 'targets'>,
  state: TargetState
): Candidate {
  const { concurrency, queue = defaultQueue } = target
  return new Candidate({
    provider,
    model: target.model,
    weight: target.weight ?? 1,
    price: target.price ?? null,
    state,
    timeouts: { ...defaultTimeouts, ...options.timeouts },
    maxOutputTokens: options.maxOutputTokens ?? null,
    abilities: abilitiesOf(provider, target.model, target.abilities),
    room: concurrency === undefined ? null : { concurrency, queue }
  })
}

/** What the configuration says wins over what the provider knows of the model, and that over what holds for all of its models. */
export function abilitiesOf(provider: Provider, model: string, configured: Abilities = {}): Abilities {
  const { dialects: _, ...own } = provider.capabilities
  return { ...own, ...provider.abilitiesOf?.(model), ...configured }
}

function planOf(own: Omit<ModelOptions, 'targets'>, steps: readonly Step[], inputTokensPerImage: number): Plan {
  return new Plan(steps, {
    timeouts: { ...defaultTimeouts, ...own.timeouts },
    maxOutputTokens: own.maxOutputTokens ?? null,
    inputTokensPerImage
  })
}

function tokensPerImage(options: ModelOptions | undefined): number {
  return options?.inputTokensPerImage ?? defaultTokensPerImage
}

/** A target has one number of places, by whatever alias it is reached. */
function roomsOf(candidates: readonly Candidate[]): Map<TargetState, Room | null> {
  const rooms = new Map<TargetState, Room | null>()
  for (const { state, room } of candidates) {
    const known = rooms.get(state) ?? null
    rooms.set(state, known === null || (room !== null && room.concurrency < known.concurrency) ? room : known)
  }
  return rooms
}

/** @param checked aliases from which no way leads back to them, nor to what is not there */
function refuseCircles(
  alias: string,
  models: Readonly<Record<string, ModelOptions>>,
  trail: readonly string[],
  checked: Set<string>
): void {
  if (checked.has(alias)) return
  const where = `models.${trail.at(-1)}.fallbacks`
  if (trail.includes(alias)) throw new Error(`${where}: '${alias}' leads back to itself.`)
  if (!Object.hasOwn(models, alias)) throw new Error(`${where}: there is no model '${alias}'.`)
  for (const next of models[alias]?.fallbacks ?? []) refuseCircles(next, models, [...trail, alias], checked)
  checked.add(alias)
}

/** An alias and all that it falls back on, each once: its own fallbacks in their order, then theirs. */
function follow(alias: string, models: Readonly<Record<string, ModelOptions>>): string[] {
  const found = new Set([alias])
  // A set is walked to its end, also to what is added meanwhile.
  for (const name of found) for (const next of models[name]?.fallbacks ?? []) found.add(next)
  return [...found]
}
