import { isDeepStrictEqual } from 'node:util'
import type { Configuration, Settings } from './config.ts'
import { ConfigError, type Path, quote, type Report, report, show } from './faults.ts'
import { hashOf } from './hash.ts'
import type { ModelSettings } from './model-options.ts'
import { isRecord } from './reader.ts'
import type { RoutingTable } from './routing.ts'

// What a configuration that is read again means for a gateway that runs.

/** What counts at once. All other keys only count from the next start on. */
const table = ['models', 'tasks', 'defaultModel'] as const

/**
 * The routing table of `next`, for a gateway that was started with `running`. Its hash is that of the configuration that
 * runs then: that of `next` if nothing has to wait for a restart.
 * @throws ConfigError for names that would only work after a restart
 */
export function tableOf(running: Configuration, next: Configuration): RoutingTable<ModelSettings> {
  const faults = report()
  checkNames(running.settings, next.settings, faults)
  if (faults.count > 0) throw new ConfigError(faults.lines)
  const { models, tasks, defaultModel } = next.settings
  return { models, tasks, defaultModel, hash: hashThen(running, next), restart: restartsOf(running, next) }
}

function checkNames(running: Settings, { providers, models, tasks, defaultModel }: Settings, faults: Report): void {
  const runs = (name: string) => Object.hasOwn(running.providers, name) && running.providers[name]?.enabled === true
  // A provider that is off in the file is left out now as it is at a start.
  const waits = (name: string) => providers[name]?.enabled === true && !runs(name)
  const direct = running.routing.passThrough || Object.keys(models).length === 0
  const allowed = 'a provider that runs; one that is new, or has been switched on, needs a restart'

  for (const [alias, { targets }] of Object.entries(models)) {
    for (const [index, { provider }] of targets.entries()) {
      if (waits(provider)) faults.say(['models', alias, 'targets', index, 'provider'], quote(provider), allowed)
    }
  }
  const check = (path: Path, name: string) => {
    if (Object.hasOwn(models, name)) return
    if (!direct) faults.say(path, quote(name), 'a name of models; routing.passThrough needs a restart')
    else if (waits(name.split('/', 1)[0] ?? '')) faults.say(path, quote(name), allowed)
  }
  for (const [task, name] of Object.entries(tasks)) check(['tasks', task], name)
  if (defaultModel !== undefined) check(['defaultModel'], defaultModel)
}

function hashThen(running: Configuration, next: Configuration): string {
  const written = { ...running.written }
  for (const key of table) delete written[key]
  const entries = table.flatMap(key => (key in next.written ? [[key, next.written[key]] as const] : []))
  return hashOf({ ...written, ...Object.fromEntries(entries) })
}

/** `server.port`, `providers.openai`, `store`: what differs, two keys deep. Settings are compared, so secrets count. */
function restartsOf(running: Configuration, next: Configuration): string[] {
  return differences([], without(running.settings), without(next.settings))
}

function without({ models: _, tasks: __, defaultModel: ___, ...others }: Settings): Record<string, unknown> {
  return others
}

function differences(path: readonly string[], before: unknown, after: unknown): string[] {
  if (isDeepStrictEqual(before, after)) return []
  if (path.length === 2 || !isRecord(before) || !isRecord(after)) return [show(path)]
  const names = new Set([...Object.keys(before), ...Object.keys(after)])
  return [...names].flatMap(name => differences([...path, name], before[name], after[name]))
}
