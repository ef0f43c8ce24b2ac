import { Type } from '@sinclair/typebox'
import { type Path, quote, type Report, show } from './faults.ts'
import { fieldsOf, listOf } from './json.ts'
import { defaultProviders } from './provider-options.ts'
import { isRecord } from './reader.ts'

type Entries = Readonly<Record<string, unknown>>

// What one key of the configuration says about another. This looks at what was written, not at settings, so that a fault
// elsewhere hides none of these; what is of the wrong kind has its own fault already and is passed over.

/** Tells `report` of names that name nothing, loops, weights that add up to 0, keys that two have, `*` with credentials. */
export function checkReferences(config: unknown, report: Report): void {
  const root = fieldsOf(config)
  const models = fieldsOf(root['models'])
  const direct = Object.keys(models).length === 0 || fieldsOf(root['routing'])['passThrough'] === true
  const model = modelCheck(root, report, direct)
  const fallback = modelCheck(root, report, false)
  model(root['defaultModel'], ['defaultModel'])
  for (const [task, name] of Object.entries(fieldsOf(root['tasks']))) model(name, ['tasks', task])
  for (const [name, tenant] of Object.entries(fieldsOf(root['tenants']))) {
    for (const [index, allowed] of listOf(fieldsOf(tenant)['allowModels']).entries()) {
      if (!isGlob(allowed)) model(allowed, ['tenants', name, 'allowModels', index])
    }
  }
  for (const [alias, options] of Object.entries(models)) {
    for (const [index, name] of listOf(fieldsOf(options)['fallbacks']).entries()) {
      fallback(name, ['models', alias, 'fallbacks', index])
    }
    checkTargets(fieldsOf(options), ['models', alias], root['providers'] ?? defaultProviders, report)
  }
  checkLoops(models, report)
  for (const [name, provider] of Object.entries(fieldsOf(root['providers']))) {
    checkProvider(fieldsOf(provider), ['providers', name], report)
  }
  checkKeys(root, report)
  checkSwitches(root, report)
  const cors = fieldsOf(fieldsOf(root['server'])['cors'])
  if (cors['credentials'] === true && listOf(cors['origin']).includes('*')) {
    report.say(['server', 'cors', 'origin'], '* with credentials', 'origins by name where credentials is true')
  }
}

/** What is switched off must not take along, unsaid, what somebody counts on. */
function checkSwitches(root: Entries, report: Report): void {
  const plugins = fieldsOf(root['plugins'])
  if (plugins['pricing'] === false && plugins['budgets'] !== false) {
    report.say(['plugins', 'pricing'], 'false', 'true, or plugins.budgets false too: budgets need prices')
  }
  if (plugins['budgets'] === false && root['budget'] !== undefined && root['budget'] !== null) {
    report.say(['budget'], 'a limit while plugins.budgets is false', 'nothing, or plugins.budgets true')
  }
}

/** What one key of a provider makes of another. */
function checkProvider(provider: Entries, path: Path, report: Report): void {
  const { type, baseUrl, apiVersion, entra, project, credentials } = provider
  const hasKeys = listOf(provider['apiKeys']).length > 0
  if (type === 'azure-openai' && entra !== undefined && hasKeys) {
    report.say([...path, 'entra'], 'apiKeys beside it', 'one of the two')
  }
  const isDeployment = typeof baseUrl === 'string' && baseUrl.includes('/deployments/')
  if (type === 'azure-openai' && apiVersion === undefined && isDeployment) {
    report.say([...path, 'apiVersion'], 'nothing', 'a date, as 2024-10-21, for the URL of a deployment')
  }
  if (type === 'vertex' && project === undefined && !hasKeys) {
    report.say([...path, 'project'], 'nothing', 'the id of a project, or apiKeys for the express mode')
  }
  if (type === 'vertex' && hasKeys && (project !== undefined || credentials !== undefined)) {
    report.say([...path, 'apiKeys'], 'a project or credentials beside them', 'apiKeys alone, for the express mode')
  }
}

/** A pattern may be there for models to come. */
function isGlob(name: unknown): boolean {
  return typeof name === 'string' && name.includes('*')
}

/** A name of a model is an alias or, where `direct` names are taken, `provider/model` with a known provider. */
function modelCheck(root: Entries, report: Report, direct: boolean): (name: unknown, path: Path) => void {
  const models = root['models'] ?? {}
  const providers = root['providers'] ?? defaultProviders
  if (!isRecord(models) || !isRecord(providers)) return () => {}
  const hasAliases = Object.keys(models).length > 0
  const allowed = hasAliases
    ? `a name of models: ${list(models)}`
    : `provider/model with a provider of this file: ${list(providers)}`
  return (name, path) => {
    if (typeof name !== 'string') return
    const slash = name.indexOf('/')
    const named = slash < name.length - 1 && Object.hasOwn(providers, name.slice(0, Math.max(slash, 0)))
    const known = Object.hasOwn(models, name) || (direct && named)
    if (!known) report.fault(path, name, Type.String({ allowed }))
  }
}

function checkTargets(model: Entries, path: Path, providers: unknown, report: Report): void {
  const targets = listOf(model['targets']).map(fieldsOf)
  if (!isRecord(providers)) return
  for (const [index, { provider }] of targets.entries()) {
    if (typeof provider !== 'string' || Object.hasOwn(providers, provider)) continue
    const allowed = `a name of providers: ${list(providers)}`
    report.fault([...path, 'targets', index, 'provider'], provider, Type.String({ allowed }))
  }
  const weights = targets.map(({ weight }) => weight ?? 1)
  if ((model['strategy'] ?? 'weighted') === 'weighted' && weights.length > 0 && weights.every(weight => weight === 0)) {
    report.say([...path, 'targets'], 'weights that add up to 0', 'at least one weight above 0 under weighted')
  }
}

/** Each loop of fallbacks is told once, at the fallback that closes it. */
function checkLoops(models: Entries, report: Report): void {
  const done = new Set<string>()
  for (const alias of Object.keys(models)) follow(alias, [])

  function follow(alias: string, trail: readonly string[]): void {
    if (done.has(alias) || !Object.hasOwn(models, alias)) return
    const below = [...trail, alias]
    for (const [index, next] of listOf(fieldsOf(models[alias])['fallbacks']).entries()) {
      if (typeof next !== 'string') continue
      const start = below.indexOf(next)
      if (start < 0) {
        follow(next, below)
        continue
      }
      const loop = [...below.slice(start), next].map(name => quote(name)).join(' → ')
      report.say(['models', alias, 'fallbacks', index], `a loop, ${loop}`, 'fallbacks that come to an end')
    }
    done.add(alias)
  }
}

/** A key stands for one tenant, and never for the administrator too. */
function checkKeys(root: Entries, report: Report): void {
  const owners = new Map<unknown, string>()
  const token = fieldsOf(fieldsOf(root['plugins'])['auth'])['adminToken']
  if (token !== undefined) owners.set(token, 'plugins.auth.adminToken')
  for (const [name, tenant] of Object.entries(fieldsOf(root['tenants']))) {
    for (const [index, key] of listOf(fieldsOf(tenant)['keys']).entries()) {
      const path = ['tenants', name, 'keys', index]
      const owner = owners.get(key)
      if (owner !== undefined) report.say(path, `the key of ${owner}`, 'a key of its own')
      else owners.set(key, show(path))
    }
  }
}

function list(names: Entries): string {
  const known = Object.keys(names)
  if (known.length === 0) return 'there are none'
  return known.length > 12 ? `${known.slice(0, 12).join(', ')}, …` : known.join(', ')
}
