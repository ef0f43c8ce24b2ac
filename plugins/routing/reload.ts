import { isDeepStrictEqual } from 'node:util'
import type { Gateway } from '../../schemas/gateway.ts'
import { shortHash } from '../../schemas/hash.ts'
import type { Change, Reload, Reloaded, RoutingTable } from '../../schemas/routing.ts'
import type { Audit } from '../../schemas/store.ts'
import type { ModelOptions } from './index.ts'
import type { Models } from './models.ts'

type Table = RoutingTable<ModelOptions>

/** @param source reads the table as it is written now */
export function createReload(
  source: () => Promise<Table>,
  first: Table,
  models: Pick<Models, 'prepare'>,
  gateway: Gateway
): Reload {
  const { log, events } = gateway
  let current = first
  /** One after another: of two at once the later one has to win. */
  let tail: Promise<unknown> = Promise.resolve()

  async function reload(dryRun: boolean, actor: string): Promise<Reloaded> {
    const next = await source()
    const replace = models.prepare(next)
    const changes = changesBetween(current, next)
    const restart = next.restart ?? []
    const before = current.hash ?? null
    const hash = next.hash ?? null
    // What only is written otherwise has another hash too, and it is the one of the file.
    const applied = !dryRun && (changes.length > 0 || hash !== before)
    if (applied) {
      replace()
      current = next
      const config = hash === null ? null : shortHash(hash)
      if (events.heard) events.emit('routing.reloaded', { changes: changes.length, config, actor })
      log.info({ changes: changes.map(({ path }) => path), config, actor }, 'the routing table has changed')
      await writeDown(auditOf(actor, changes, { before, after: hash }))
    }
    if (!dryRun && restart.length > 0) log.warn({ restart }, 'parts of the configuration only change with a restart')
    return { changes, restart, hash, applied }
  }

  /** What has changed is not taken back because the database is away: the log says who it was. */
  async function writeDown(audit: Audit): Promise<void> {
    try {
      await gateway.store?.audits.add(audit)
    } catch (error) {
      log.error({ err: error, actor: audit.actor }, 'a change of the routing table could not be written to the audit')
    }
  }

  return ({ dryRun = false, actor = 'process' } = {}) => {
    const result = tail.then(() => reload(dryRun, actor))
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

/** Which entries were there before and after, and in which configuration: its file has what they said. */
function auditOf(actor: string, changes: readonly Change[], hashes: Record<'before' | 'after', string | null>): Audit {
  const side = (name: 'before' | 'after') => {
    return { config: hashes[name], paths: changes.flatMap(change => (name in change ? [change.path] : [])) }
  }
  return { actor, action: 'routing.reload', subject: 'routing', before: side('before'), after: side('after') }
}
