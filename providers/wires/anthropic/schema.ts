import { isRecord } from '../../../schemas/reader.ts'
import { refuse } from './messages.ts'

/** A JSON Schema as the vendor compiles it. */
export interface Lowered {
  readonly schema: Readonly<Record<string, unknown>>
  /** Keywords that were left out. */
  readonly dropped: ReadonlySet<string>
  /** False where the vendor would refuse it, or could only answer less than it allows. */
  readonly exact: boolean
}

/** More than these take too long to compile (@ai-sdk/anthropic: 13 directly, 11 on Vertex). */
const mostOptional = 10
const deepest = 64
const kept = new Set(['$ref', 'title', 'description', 'default', 'const', 'enum', 'type', 'required'])
const maps = new Set(['$defs', 'definitions', 'properties'])
const lists = new Set(['anyOf', 'allOf', 'oneOf'])
/** Says nothing about values. */
const silent = new Set(['$schema', '$id', '$comment', 'additionalProperties', 'examples'])
const formats = new Set(
  ['date-time', 'time', 'date', 'duration', 'email', 'hostname', 'uri', 'ipv4', 'ipv6', 'uuid'] // of the vendor's SDK
)

/** @throws InvalidRequest for a schema that is nested too deeply */
export function lowered(root: Readonly<Record<string, unknown>>, param: string): Lowered {
  const dropped = new Set<string>()
  let optional = 0
  let open = false

  function lower(value: unknown, depth: number): unknown {
    if (!isRecord(value)) return value
    if (depth > deepest) refuse(`A schema may be nested ${deepest} levels deep.`, param)
    const schema: Record<string, unknown> = {}
    for (const [key, own] of Object.entries(value)) {
      // Beside a reference nothing else may stand but definitions.
      if (typeof value['$ref'] === 'string' && key !== '$ref' && !maps.has(key)) continue
      if (kept.has(key)) schema[key] = own
      else if (maps.has(key) && isRecord(own)) {
        schema[key] = Object.fromEntries(Object.entries(own).map(([name, part]) => [name, lower(part, depth + 1)]))
      } else if (lists.has(key) && Array.isArray(own)) {
        schema[key === 'oneOf' ? 'anyOf' : key] = own.map(part => lower(part, depth + 1))
      } else if (key === 'items' && isRecord(own)) schema[key] = lower(own, depth + 1)
      else if (key === 'format' && formats.has(String(own))) schema[key] = own
      else if (key === 'minItems' && (own === 0 || own === 1)) schema[key] = own
      else if (!silent.has(key)) dropped.add(key)
    }
    if (isObject(value)) {
      const { properties, required, additionalProperties: more } = value
      const names = isRecord(properties) ? Object.keys(properties) : []
      optional += names.filter(name => !(Array.isArray(required) && required.includes(name))).length
      if (more === true || isRecord(more) || isRecord(value['patternProperties'])) open = true
      if (!isRecord(properties) && more !== false) open = true
      schema['additionalProperties'] = false
    }
    return schema
  }

  const schema = lower(root, 0)
  return { schema: isRecord(schema) ? schema : {}, dropped, exact: !open && optional <= mostOptional && !loops(root) }
}

function isObject({ type, properties }: Readonly<Record<string, unknown>>): boolean {
  return type === 'object' || isRecord(properties) || (Array.isArray(type) && type.includes('object'))
}

/** True for a schema that contains itself, which the vendor refuses. */
function loops(root: unknown): boolean {
  const within = new Set<string>()
  const straight = new Set<string>()

  function visit(node: unknown): boolean {
    if (Array.isArray(node)) return node.some(visit)
    if (!isRecord(node)) return false
    const { $ref: ref } = node
    if (typeof ref === 'string' && follows(ref)) return true
    return Object.entries(node).some(
      ([key, part]) => !['$defs', 'definitions', 'enum', 'const', 'default', 'examples'].includes(key) && visit(part)
    )
  }

  function follows(ref: string): boolean {
    if (ref === '#' || within.has(ref)) return true
    if (straight.has(ref)) return false
    within.add(ref)
    const found = visit(targetOf(root, ref))
    within.delete(ref)
    straight.add(ref)
    return found
  }

  return visit(root)
}

/** What a reference inside the schema means; undefined for others. */
function targetOf(root: unknown, ref: string): unknown {
  if (!ref.startsWith('#/')) return undefined
  let node = root
  for (const step of ref.slice(2).split('/')) {
    const name = step.replaceAll('~1', '/').replaceAll('~0', '~')
    node = isRecord(node) && Object.hasOwn(node, name) ? node[name] : undefined
  }
  return node
}
