import { isDeepStrictEqual } from 'node:util'
import type { Log } from '../../schemas/gateway.ts'
import type { Change, Reload, RoutingTable } from '../../schemas/routing.ts'
import type { ModelOptions } from './index.ts'
import type { Models } from './models.ts'

type Table = RoutingTable<ModelOptions>

/** @param source reads the table as it is written now */
export function createReload(
  source: () => Promise<Table>,
  first: Table,
  models: Pick<Models, 'prepare'>,
  log: Log
): Reload {
  let current = first
  /** One after another: of two at once the later one has to win. */
  let tail: Promise<unknown> = Promise.resolve()

  async function reload(dryRun: boolean) {
    const next = await source()
    const changes = changesBetween(current, next)
    const applied = !dryRun && changes.length > 0
    const replace = models.prepare(next)
    if (applied) {
      replace()
      current = next
      log.info({ changes: changes.map(({ path }) => path), hash: next.hash }, 'the routing table has changed')
    }
    const restart = next.restart ?? []
    if (!dryRun && restart.length > 0) log.warn({ restart }, 'parts of the configuration only change with a restart')
    return { changes, restart, hash: next.hash ?? null, applied }
  }

  return ({ dryRun = false } = {}) => {
    const result = tail.then(() => reload(dryRun))
    tail = result.catch(() => {})
    return result
  }
}

function changesBetween(before: Table, after: Table): Change[] {
  return [
    ...entryChanges('models', before.models ?? {}, after.models ?? {}),
    ...entryChanges('tasks', before.tasks ?? {}, after.tasks ?? {}),
    ...valueChange('defaultModel', before.defaultModel, after.defaultModel)
  ]
}

function entryChanges(
  path: string,
  before: Readonly<Record<string, unknown>>,
  after: Readonly<Record<string, unknown>>
): Change[] {
  const names = new Set([...Object.keys(before), ...Object.keys(after)])
  return [...names].flatMap(name => valueChange(`${path}.${name}`, before[name], after[name]))
}

function valueChange(path: string, before: unknown, after: unknown): Change[] {
  if (isDeepStrictEqual(before, after)) return []
  return [{ path, ...(before !== undefined && { before }), ...(after !== undefined && { after }) }]
}
