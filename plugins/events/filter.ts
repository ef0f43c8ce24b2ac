import { tenantName } from '../../schemas/atoms.ts'
import { detail, InvalidRequest } from '../../schemas/errors.ts'
import { eventTypePattern, eventTypes } from '../../schemas/events.ts'
import { type Item, idPattern, notices, tenantOf } from './item.ts'

/** What a subscriber asks for. */
export interface Wish {
  readonly filter: Filter
  /** The id of the last event that it has; null: it begins now. */
  readonly after: string | null
}

/** Which events somebody wants. */
export interface Filter {
  /** The same for filters that let the same pass. */
  readonly key: string
  passes(item: Item): boolean
}

const known: ReadonlySet<string> = new Set(['type', 'tenant', 'lastEventId', 'ticket'])
const named = new RegExp(tenantName)
const typePattern = new RegExp(eventTypePattern)
const mostNames = 32

/**
 * Reads the query of GET /events.
 * @param last the header `last-event-id`, which is newer than the URL
 * @param further types that there are beside those of the gateway, or their beginnings
 * @throws InvalidRequest
 */
export function wishOf(
  query: Readonly<Record<string, unknown>>,
  last: string | undefined,
  further: readonly string[]
): Wish {
  for (const name of Object.keys(query)) {
    if (!known.has(name)) throw wrong(name.slice(0, 64), `is no parameter: ${[...known].join(', ')} are.`)
  }
  const types = namesOf(query, 'type', typePattern, 'a list of types such as model.request.complete,key.*')
  const there = [...eventTypes, ...further]
  for (const type of types) {
    if ([...there, ...notices].some(one => meet(type, one))) continue
    throw wrong(
      'type',
      `names ${type}, which does not exist. There are ${there.join(', ')}; model.* stands for a family.`
    )
  }
  const tenants = namesOf(query, 'tenant', named, 'a list of tenants')
  return { filter: filterOf(types, tenants), after: afterOf(last || query['lastEventId']) }
}

function namesOf(query: Readonly<Record<string, unknown>>, name: string, pattern: RegExp, form: string): string[] {
  const value = query[name]
  if (value === undefined) return []
  if (typeof value !== 'string') throw wrong(name, 'may be there once.')
  const names = value.split(',')
  if (names.length > mostNames) throw wrong(name, `names at most ${mostNames}.`)
  if (!names.every(one => pattern.test(one))) throw wrong(name, `must be ${form}.`)
  return names
}

/** Whether two names, or beginnings of names, can mean the same event. */
function meet(one: string, other: string): boolean {
  if (one.endsWith('*') && other.startsWith(one.slice(0, -1))) return true
  return one === other || (other.endsWith('*') && one.startsWith(other.slice(0, -1)))
}

function afterOf(value: unknown): string | null {
  if (value === undefined) return null
  if (typeof value === 'string' && idPattern.test(value)) return value
  throw wrong('lastEventId', 'must be the event_id of an event, such as 1764345600000-0.')
}

function filterOf(types: readonly string[], tenants: readonly string[]): Filter {
  const names = new Set(types.filter(type => !type.endsWith('*')))
  const beginnings = types.filter(type => type.endsWith('*')).map(type => type.slice(0, -1))
  const ofTenants = new Set(tenants)
  return {
    key: `${[...types].sort().join()} ${[...tenants].sort().join()}`,
    passes(item) {
      const { type } = item
      if (types.length > 0 && !names.has(type) && !beginnings.some(beginning => type.startsWith(beginning)))
        return false
      return ofTenants.size === 0 || ofTenants.has(tenantOf(item) ?? '')
    }
  }
}

function wrong(param: string, words: string) {
  return detail(new InvalidRequest(`${param} ${words}`), { param })
}
