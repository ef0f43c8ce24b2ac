import type { ChatRequest } from '../../schemas/chat.ts'
import { detail, InvalidRequest, ModelNotFound, UpstreamError } from '../../schemas/errors.ts'
import type { Gateway, Route, Target } from '../../schemas/gateway.ts'
import { shortHash } from '../../schemas/hash.ts'
import type { Abilities, Provider } from '../../schemas/provider.ts'
import type { RoutingTable } from '../../schemas/routing.ts'
import { abilitiesOf, compile, directPlan } from './compile.ts'
import type { Discovery } from './discovery.ts'
import type { ModelOptions } from './index.ts'
import { type Plan, printable } from './plan.ts'
import type { Targets } from './targets.ts'

/** A model as `GET /v1/models` lists it. */
export interface ListedModel {
  readonly id: string
  readonly object: 'model'
  /** Unix seconds; when this process started, for an alias. */
  readonly created: number
  readonly owned_by: string
  /** Tokens, of the target that has the least room; absent where nobody knows. */
  readonly context_length?: number
  /** USD per million tokens, of the dearest target; absent where a price is not known. */
  readonly pricing?: { readonly input: number; readonly output: number }
}

export interface Models {
  /** What a request may name. */
  list(): Promise<ListedModel[]>
  /** One of them. */
  get(id: string): Promise<ListedModel | undefined>
  /** What each alias stands for now. */
  routes(): Iterable<Route>
  /** @throws InvalidRequest, ModelNotFound, UpstreamError (every target switched off) */
  resolve(request: ChatRequest): Route
  /**
   * Makes a table ready; what it gives puts it in place of the present one, all at once. Calls in progress keep theirs.
   * @throws ConfigError with all that is wrong with it: nothing changes
   */
  prepare(table: RoutingTable<ModelOptions>): () => void
  /** Both at once. @throws ConfigError: nothing changes */
  replace(table: RoutingTable<ModelOptions>): void
  /** Of the configuration that the table was read from: SHA-256 in hex; null where nobody computed one. */
  readonly hash: string | null
}

export interface ModelsContext {
  readonly passThrough: boolean
  readonly providers: ReadonlyMap<string, Provider>
  readonly targets: Targets
  readonly discovery: Discovery
  readonly gateway: Gateway
}

/** A target as far as a list speaks of it. */
type Described = Target & { readonly abilities: Abilities }

/** Names of the form `provider/model` that are kept ready; they come from callers. */
const mostDirect = 1_000

/** One state of the table: made whole, then put in place. */
interface Table {
  readonly plans: ReadonlyMap<string, Plan>
  readonly tasks: ReadonlyMap<string, string>
  readonly defaultModel: string | undefined
  /** Names of the form `provider/model` are taken. */
  readonly direct: Map<string, Plan> | null
  readonly hash: string | null
}

/** Names to routes. Plans are compiled when a table comes; nothing of one changes afterwards. */
export function createModels({ passThrough, providers, discovery, gateway, targets }: ModelsContext): Models {
  const started = Math.floor(Date.now() / 1000)
  let table: Table = { plans: new Map(), tasks: new Map(), defaultModel: undefined, direct: null, hash: null }

  function prepare({ models = {}, tasks = {}, defaultModel, hash }: RoutingTable<ModelOptions>): () => void {
    const config = hash === undefined ? null : shortHash(hash)
    const { plans, rooms } = compile(models, config, providers, targets.draft(), gateway.log)
    const direct = passThrough || plans.size === 0 ? new Map() : null
    const next: Table = { plans, tasks: new Map(Object.entries(tasks)), defaultModel, direct, hash: hash ?? null }
    return () => {
      table = next
      targets.keep(rooms)
    }
  }

  function resolve(request: ChatRequest): Route {
    const name = request.model ?? taskModel(request.task) ?? table.defaultModel
    if (name === undefined || name === null) {
      throw detail(new InvalidRequest('Name a model: this gateway has no default one.'), { param: 'model' })
    }
    const plan = table.plans.get(name) ?? direct(name)
    if (plan === undefined) throw detail(new ModelNotFound(name), { param: 'model' })
    if (plan.targets.length === 0) throw new UpstreamError('every target of this model is switched off.')
    return plan
  }

  function taskModel(task: string | null | undefined): string | undefined {
    if (task === null || task === undefined) return undefined
    const model = table.tasks.get(task)
    if (model !== undefined) return model
    const known = [...table.tasks.keys()].join(', ') || 'none'
    throw detail(new InvalidRequest(`Unknown task '${task}'; configured tasks: ${known}. Or name a model.`), {
      param: 'task'
    })
  }

  /** `provider/model`, where it is taken. */
  function direct(name: string): Plan | undefined {
    const known = table.direct?.get(name)
    if (known !== undefined || table.direct === null) return known
    const named = directName(name)
    if (named === null) return undefined
    const { provider, model } = named
    const plan = directPlan(
      name,
      provider,
      model,
      targets.passing(provider, model),
      table.hash && shortHash(table.hash)
    )
    if (table.direct.size >= mostDirect)
      for (const oldest of table.direct.keys()) if (table.direct.delete(oldest)) break
    table.direct.set(name, plan)
    return plan
  }

  /** What a name of that form means, known or not; null where it means nothing. */
  function directName(name: string): { provider: Provider; model: string } | null {
    const slash = name.indexOf('/')
    if (table.direct === null || slash <= 0 || slash === name.length - 1 || !printable.test(name)) return null
    const provider = providers.get(name.slice(0, slash))
    return provider === undefined ? null : { provider, model: name.slice(slash + 1) }
  }

  async function list(): Promise<ListedModel[]> {
    const aliases = [...table.plans.values()].map(listedPlan)
    if (table.direct === null) return aliases
    const direct = await Promise.all([...providers.values()].map(listedOf))
    return [...aliases, ...direct.flat()]
  }

  /** Whatever a provider lists has to be a name that a request may say, and not one that means something else. */
  async function listedOf(provider: Provider): Promise<ListedModel[]> {
    const models = await discovery.models(provider)
    return models.flatMap(({ id }) => {
      const name = `${provider.name}/${id}`
      return table.plans.has(name) || directName(name)?.provider !== provider ? [] : [listedDirect(name, provider, id)]
    })
  }

  async function get(id: string): Promise<ListedModel | undefined> {
    const alias = table.plans.get(id)
    if (alias !== undefined) return listedPlan(alias)
    const named = directName(id)
    if (named === null) return undefined
    await discovery.models(named.provider)
    return listedDirect(id, named.provider, named.model)
  }

  function listedDirect(id: string, provider: Provider, model: string): ListedModel {
    const abilities = abilitiesOf(provider, model)
    const created = discovery.known(provider, model)?.created ?? started
    return { ...head(id, provider.name, created), ...known([{ provider, model, weight: 1, price: null, abilities }]) }
  }

  function listedPlan({ alias, steps }: Plan): ListedModel {
    return { ...head(alias, 'fastify-model-gateway', started), ...known(steps[0]?.candidates ?? []) }
  }

  function head(id: string, owner: string, created: number) {
    return { id, object: 'model', created, owned_by: owner } as const
  }

  /** What all of these can do, and cost at most. */
  function known(targets: ReadonlyArray<Described>): Pick<ListedModel, 'context_length' | 'pricing'> {
    const room = Math.min(...targets.map(roomOf))
    const pricing = dearest(targets)
    return { ...(Number.isFinite(room) && { context_length: room }), ...(pricing !== null && { pricing }) }
  }

  function roomOf({ abilities, provider, model }: Described): number {
    const room = abilities.contextLength ?? discovery.known(provider, model)?.contextLength
    return room ?? Number.POSITIVE_INFINITY
  }

  /** Rates are whole pico-USD per token. Null: one of them is not known. */
  function dearest(targets: readonly Described[]): ListedModel['pricing'] | null {
    let input = 0
    let output = 0
    for (const target of targets) {
      const card = gateway.pricing?.of(target)
      if (!card) return null
      input = Math.max(input, card.rates.input / 1_000_000)
      output = Math.max(output, card.rates.output / 1_000_000)
    }
    return targets.length > 0 ? { input, output } : null
  }

  return {
    list,
    get,
    routes: () => table.plans.values(),
    resolve,
    prepare,
    replace: given => prepare(given)(),
    get hash() {
      return table.hash
    }
  }
}
