import { detail, UpstreamRejected } from '../../schemas/errors.ts'

export interface Place {
  /** The id of a project; absent for the express mode, which knows none. */
  readonly project?: string
  /** A region, `us` or `eu`, or `global`. */
  readonly location: string
}

/** What is asked of a model. */
export interface Asked {
  readonly publisher: 'google' | 'anthropic'
  /** Without its publisher. */
  readonly model: string
}

/**
 * The origin of a location. `global` has the name without a prefix, the multi-regions have their own.
 * @throws Error for what is no location
 */
export function originOf({ project, location }: Place): string {
  if (!/^[a-z][a-z0-9-]{0,62}$/.test(location)) throw new Error('location is not the name of a location.')
  if (location === 'global' || project === undefined) return 'https://aiplatform.googleapis.com'
  if (location === 'us' || location === 'eu') return `https://aiplatform.${location}.rep.googleapis.com`
  return `https://${location}-aiplatform.googleapis.com`
}

/** What the paths of all models of a place begin with. @throws Error for what is no project */
export function rootOf({ project, location }: Place): string {
  if (project === undefined) return '/v1/publishers'
  // Old projects of a domain are called `example.com:name`.
  if (!/^[a-z0-9][\w.:-]{0,127}$/.test(project)) throw new Error('project is not the id of a project.')
  return `/v1/projects/${project}/locations/${location}/publishers`
}

const named = /^(?:(?:publishers\/)?(google|anthropic)\/(?:models\/)?)?([A-Za-z0-9][\w.@-]{0,127})$/

/**
 * Whose model a name means: Claude is Anthropic's, everything else Google's, unless the name itself says so.
 * @throws UpstreamRejected for other publishers, and for what no path can be made of: names may come from callers
 */
export function askedOf(name: string): Asked {
  const [, publisher, model] = named.exec(name) ?? []
  if (model === undefined) {
    const rejected = new UpstreamRejected('The model is not the name of a model of Google or Anthropic on Vertex AI.')
    throw detail(rejected, { param: 'model', blame: 'target' })
  }
  const isClaude = publisher === undefined ? model.startsWith('claude-') : publisher === 'anthropic'
  return { publisher: isClaude ? 'anthropic' : 'google', model }
}

/** Below `root`. */
export function pathOf({ publisher, model }: Asked, stream: boolean): string {
  if (publisher === 'anthropic') return `/anthropic/models/${model}:${stream ? 'streamRawPredict' : 'rawPredict'}`
  return `/google/models/${model}:${stream ? 'streamGenerateContent?alt=sse' : 'generateContent'}`
}
