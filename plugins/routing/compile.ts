import { ConfigError } from '../../schemas/faults.ts'
import type { Abilities, Provider } from '../../schemas/provider.ts'
import type { ModelOptions, TargetOptions } from './index.ts'
import type { ModelsContext } from './models.ts'
import { Candidate, defaultTimeouts, Plan, printable, type Step } from './plan.ts'
import type { TargetState } from './target-state.ts'

/** The most that an image counts for where nothing else is configured. */
const defaultTokensPerImage = 1600
const defaultRetries = 2
const defaultQueue = { size: 100, timeout: 10_000 }

/** Makes plans of what is configured. */
export function createCompiler({ providers, targets, gateway }: ModelsContext) {
  /** @param config names the configuration that these models stand in. @throws ConfigError, before anything has changed */
  function compile(models: Readonly<Record<string, ModelOptions>>, config: string | null): Map<string, Plan> {
    checkModels(models)
    const steps = new Map(Object.entries(models).map(([alias, options]) => [alias, compileStep(alias, options)]))
    // What limits an alias counts wherever its targets are reached from, so the last word is the configuration's.
    for (const { candidates } of steps.values()) for (const { state, room } of candidates) state.room = room
    const plans = new Map<string, Plan>()
    for (const [alias, options] of Object.entries(models)) {
      const along = follow(alias, models, [])
      plans.set(
        alias,
        planOf(
          options,
          along.flatMap(name => steps.get(name) ?? []),
          along.map(name => models[name]!),
          config
        )
      )
    }
    return plans
  }

  function compileStep(alias: string, options: ModelOptions): Step {
    const candidates = options.targets.flatMap(target => compileTarget(alias, options, target))
    const { hedge } = options
    return {
      alias,
      strategy: options.strategy ?? 'weighted',
      candidates,
      retries: options.retries ?? defaultRetries,
      hedge: hedge ? (hedge.after ?? 'p95') : null,
      limited: candidates.some(({ limited }) => limited),
      choice: candidates.length > 1 || candidates.some(({ state }) => state.lanes.length > 1)
    }
  }

  function compileTarget(alias: string, options: ModelOptions, target: TargetOptions): Candidate[] {
    const provider = providers.get(target.provider)
    if (provider) return [candidateOf(provider, target, options, targets.state(provider, target.model))]
    gateway.log.warn(
      { alias, provider: target.provider },
      'a target is left out: its provider is switched off or not there'
    )
    return []
  }

  function candidateOf(
    provider: Provider,
    target: Omit<TargetOptions, 'provider'>,
    options: Omit<ModelOptions, 'targets'>,
    state: TargetState
  ) {
    const { concurrency, queue = defaultQueue } = target
    return new Candidate({
      provider,
      model: target.model,
      weight: target.weight ?? 1,
      price: target.price ?? null,
      state,
      timeouts: { ...defaultTimeouts, ...options.timeouts },
      maxOutputTokens: options.maxOutputTokens ?? null,
      abilities: abilitiesOf(provider, target),
      room: concurrency === undefined ? null : { concurrency, queue }
    })
  }

  /** A plan for one model of one provider that nobody has configured. */
  function direct(alias: string, provider: Provider, model: string, config: string | null): Plan {
    const candidate = candidateOf(provider, { model }, {}, targets.passing(provider, model))
    const step: Step = {
      alias,
      strategy: 'weighted',
      candidates: [candidate],
      retries: defaultRetries,
      hedge: null,
      limited: candidate.limited,
      choice: candidate.state.lanes.length > 1
    }
    return planOf({}, [step], [], config)
  }

  return { compile, direct }
}

function planOf(
  own: Omit<ModelOptions, 'targets'>,
  steps: readonly Step[],
  along: readonly ModelOptions[],
  config: string | null
): Plan {
  return new Plan(steps, {
    config,
    timeouts: { ...defaultTimeouts, ...own.timeouts },
    maxOutputTokens: own.maxOutputTokens ?? null,
    inputTokensPerImage: Math.max(
      own.inputTokensPerImage ?? defaultTokensPerImage,
      ...along.map(({ inputTokensPerImage }) => inputTokensPerImage ?? defaultTokensPerImage)
    )
  })
}

/** What the configuration says wins over what the provider knows of the model, and that over what holds for all of its models. */
function abilitiesOf(provider: Provider, { model, abilities }: Omit<TargetOptions, 'provider'>): Abilities {
  const { dialects: _, ...own } = provider.capabilities
  return { ...own, ...provider.abilitiesOf?.(model), ...abilities }
}

/** @throws ConfigError for models that cannot be named, fallbacks that are not there, fallbacks that go in a circle */
export function checkModels(models: Readonly<Record<string, ModelOptions>>): void {
  const faults: string[] = []
  for (const [alias, { targets }] of Object.entries(models)) {
    for (const { model } of targets) {
      if (!printable.test(model)) faults.push(`models.${alias}: '${model}' is not a model name.`)
    }
    try {
      follow(alias, models, [])
    } catch (error) {
      faults.push(error instanceof Error ? error.message : String(error))
    }
  }
  if (faults.length > 0) throw new ConfigError([...new Set(faults)])
}

/** An alias and all it falls back on, each once: its fallbacks, then theirs. */
function follow(alias: string, models: Readonly<Record<string, ModelOptions>>, trail: readonly string[]): string[] {
  const options = models[alias]
  if (options === undefined) throw new Error(`models.${trail.at(-1)}.fallbacks: there is no model '${alias}'.`)
  if (trail.includes(alias)) throw new Error(`models.${trail.at(-1)}.fallbacks: '${alias}' leads back to itself.`)
  const below = [...trail, alias]
  const found = [alias, ...(options.fallbacks ?? []).flatMap(name => follow(name, models, below))]
  return [...new Set(found)]
}
