import type { ChatRequest } from '../../schemas/chat.ts'
import { detail, InvalidRequest, ModelNotFound, UpstreamError } from '../../schemas/errors.ts'
import type { Log, Route, Target } from '../../schemas/gateway.ts'
import type { ModelInfo, Provider } from '../../schemas/provider.ts'
import { defaultTimeouts, type ModelOptions, type RoutingOptions } from './index.ts'

/** A model as `GET /v1/models` lists it. */
export interface ListedModel {
  readonly id: string
  readonly object: 'model'
  /** Unix seconds; when this process started, for an alias. */
  readonly created: number
  readonly owned_by: string
}

export interface Models {
  /** What a request may name. */
  list(): Promise<ListedModel[]>
  /** One of them. */
  get(id: string): Promise<ListedModel | undefined>
  /** @throws InvalidRequest, ModelNotFound, UpstreamError (every target switched off) */
  resolve(request: ChatRequest): Route
}

/** The most that an image counts for where nothing else is configured. */
const defaultTokensPerImage = 1600

/** Names travel in headers: nothing but visible ASCII. */
export const printable = /^[\x21-\x7e]+$/

/** The routing table. Aliases are compiled once, when all providers are registered; nothing of it changes afterwards. */
export function createModels(
  options: RoutingOptions,
  providers: ReadonlyMap<string, Provider>,
  log: Log
): Models & { compile(): void } {
  const routes = new Map<string, Route>()
  const tasks = new Map(Object.entries(options.tasks ?? {}))
  const aliases = Object.entries(options.models ?? {})
  const started = Math.floor(Date.now() / 1000)

  function compile(): void {
    for (const [alias, model] of aliases) {
      const targets = model.targets.flatMap(target => compileTarget(alias, target))
      routes.set(alias, {
        alias,
        targets,
        timeouts: { ...defaultTimeouts, ...model.timeouts },
        maxOutputTokens: model.maxOutputTokens ?? null,
        inputTokensPerImage: model.inputTokensPerImage ?? defaultTokensPerImage
      })
    }
  }

  function compileTarget(alias: string, options: ModelOptions['targets'][number]): Target[] {
    const provider = providers.get(options.provider)
    if (!printable.test(options.model)) throw new Error(`models.${alias}: '${options.model}' is not a model name.`)
    if (provider) return [{ provider, model: options.model, weight: options.weight ?? 1, price: options.price ?? null }]
    log.warn({ alias, provider: options.provider }, 'a target is left out: its provider is switched off or not there')
    return []
  }

  function resolve(request: ChatRequest): Route {
    const name = request.model ?? taskModel(request.task) ?? options.defaultModel
    if (name === undefined || name === null) {
      throw detail(new InvalidRequest('Name a model: this gateway has no default one.'), { param: 'model' })
    }
    const route = routes.get(name) ?? (aliases.length === 0 ? direct(name) : undefined)
    if (route === undefined) throw detail(new ModelNotFound(name), { param: 'model' })
    if (route.targets.length === 0) throw new UpstreamError('every target of this model is switched off.')
    return route
  }

  function taskModel(task: string | null | undefined): string | undefined {
    if (task === null || task === undefined) return undefined
    const model = tasks.get(task)
    if (model !== undefined) return model
    const known = [...tasks.keys()].join(', ') || 'none'
    throw detail(new InvalidRequest(`Unknown task '${task}'; configured tasks: ${known}. Or name a model.`), {
      param: 'task'
    })
  }

  /** `provider/model`, for a gateway without aliases. */
  function direct(name: string): Route | undefined {
    const slash = name.indexOf('/')
    if (slash <= 0 || slash === name.length - 1 || !printable.test(name)) return undefined
    const provider = providers.get(name.slice(0, slash))
    if (!provider) return undefined
    const target = { provider, model: name.slice(slash + 1), weight: 1, price: null }
    return {
      alias: name,
      targets: [target],
      timeouts: defaultTimeouts,
      maxOutputTokens: null,
      inputTokensPerImage: defaultTokensPerImage
    }
  }

  async function list(): Promise<ListedModel[]> {
    if (aliases.length > 0) return aliases.map(([id]) => listed(id, 'fastify-model-gateway', started))
    const named = [...providers.values()].map(async provider => {
      const models = await listedBy(provider)
      return models.map(({ id, created }) => listed(`${provider.name}/${id}`, provider.name, created ?? started))
    })
    return (await Promise.all(named)).flat()
  }

  /** A provider that cannot say what it has does not hide what the others have. */
  async function listedBy(provider: Provider): Promise<ModelInfo[]> {
    try {
      return (await provider.models?.()) ?? []
    } catch (error) {
      log.warn({ err: error, provider: provider.name }, 'a provider could not list its models')
      return []
    }
  }

  async function get(id: string): Promise<ListedModel | undefined> {
    const models = await list()
    const found = models.find(model => model.id === id)
    if (found || aliases.length > 0) return found
    const route = direct(id)
    return route && listed(id, route.targets[0]!.provider.name, started)
  }

  return { compile, resolve, list, get }
}

function listed(id: string, owner: string, created: number): ListedModel {
  return { id, object: 'model', created, owned_by: owner }
}
