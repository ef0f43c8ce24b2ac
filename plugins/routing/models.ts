import type { ChatRequest } from '../../schemas/chat.ts'
import { detail, InvalidRequest, ModelNotFound, UpstreamError } from '../../schemas/errors.ts'
import type { Gateway, Route } from '../../schemas/gateway.ts'
import { shortHash } from '../../schemas/hash.ts'
import type { Provider } from '../../schemas/provider.ts'
import type { RoutingTable } from '../../schemas/routing.ts'
import { checkModels, createCompiler } from './compile.ts'
import type { Discovery } from './discovery.ts'
import type { ModelOptions } from './index.ts'
import { type Candidate, type Plan, printable } from './plan.ts'
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
  /** @throws InvalidRequest, ModelNotFound, UpstreamError (every target switched off) */
  resolve(request: ChatRequest): Route
  /** Puts another table in place of this one, all at once; calls in progress keep theirs. @throws ConfigError: nothing changes */
  replace(table: RoutingTable<ModelOptions>): void
  /** Says what `replace` would say, and does nothing. @throws ConfigError */
  check(table: RoutingTable<ModelOptions>): void
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
export function createModels(context: ModelsContext): Models {
  const { providers, discovery, gateway, targets } = context
  const compiler = createCompiler(context)
  const started = Math.floor(Date.now() / 1000)
  let table: Table = { plans: new Map(), tasks: new Map(), defaultModel: undefined, direct: null, hash: null }

  function replace({ models = {}, tasks = {}, defaultModel, hash }: RoutingTable<ModelOptions>): void {
    const plans = compiler.compile(models, hash === undefined ? null : shortHash(hash))
    table = {
      plans,
      tasks: new Map(Object.entries(tasks)),
      defaultModel,
      direct: context.passThrough || plans.size === 0 ? new Map() : null,
      hash: hash ?? null
    }
    targets.keep(new Set([...plans.values()].flatMap(plan => plan.targets.map(({ state }) => state))))
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
    const slash = name.indexOf('/')
    if (slash <= 0 || slash === name.length - 1 || !printable.test(name)) return undefined
    const provider = providers.get(name.slice(0, slash))
    if (!provider) return undefined
    const plan = compiler.direct(name, provider, name.slice(slash + 1), table.hash && shortHash(table.hash))
    if (table.direct.size >= mostDirect)
      for (const oldest of table.direct.keys()) if (table.direct.delete(oldest)) break
    table.direct.set(name, plan)
    return plan
  }

  async function list(): Promise<ListedModel[]> {
    const aliases = [...table.plans.values()].map(listedPlan)
    if (table.direct === null) return aliases
    const named = [...providers.values()].map(async provider => {
      const models = await discovery.models(provider)
      return models.flatMap(({ id, created }) => listedDirect(`${provider.name}/${id}`, created))
    })
    return [...aliases, ...(await Promise.all(named)).flat()]
  }

  /** Whatever a provider lists has to be a name that a request may say. */
  function listedDirect(id: string, created: number | undefined): ListedModel[] {
    const plan = table.plans.has(id) ? undefined : direct(id)
    return plan === undefined ? [] : [listed(plan, plan.targets[0]?.provider.name ?? '', created ?? started)]
  }

  function listedPlan(plan: Plan): ListedModel {
    return listed(plan, 'fastify-model-gateway', started)
  }

  function listed(plan: Plan, owner: string, created: number): ListedModel {
    const own = plan.steps[0]?.candidates ?? []
    const room = Math.min(...own.map(roomOf))
    const pricing = dearest(own)
    return {
      id: plan.alias,
      object: 'model',
      created,
      owned_by: owner,
      ...(Number.isFinite(room) && { context_length: room }),
      ...(pricing !== null && { pricing })
    }
  }

  function roomOf({ abilities, provider, model }: Candidate): number {
    const room = abilities.contextLength ?? discovery.known(provider, model)?.contextLength
    return room ?? Number.POSITIVE_INFINITY
  }

  /** Rates are whole pico-USD per token. */
  function dearest(candidates: readonly Candidate[]): ListedModel['pricing'] | null {
    let input = 0
    let output = 0
    for (const candidate of candidates) {
      const card = gateway.pricing?.of(candidate)
      if (!card) return null
      input = Math.max(input, card.rates.input / 1_000_000)
      output = Math.max(output, card.rates.output / 1_000_000)
    }
    return candidates.length > 0 ? { input, output } : null
  }

  async function get(id: string): Promise<ListedModel | undefined> {
    const alias = table.plans.get(id)
    if (alias !== undefined) return listedPlan(alias)
    const found = (await list()).find(model => model.id === id)
    if (found !== undefined) return found
    const plan = direct(id)
    return plan && listed(plan, plan.targets[0]?.provider.name ?? '', started)
  }

  return {
    list,
    get,
    resolve,
    replace,
    check: ({ models = {} }) => checkModels(models),
    get hash() {
      return table.hash
    }
  }
}
