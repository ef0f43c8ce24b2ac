import { KindGuard, type TSchema } from '@sinclair/typebox'

/** Keys and indexes from the root of a configuration. */
export type Path = readonly (string | number)[]

/** Everything that is wrong with a configuration: one line per fault, which are also the lines of the message. */
export class ConfigError extends Error {
  readonly code = 'GATEWAY_INVALID_CONFIG'
  readonly faults: readonly string[]

  constructor(faults: readonly string[]) {
    super(faults.join('\n'))
    this.name = 'ConfigError'
    this.faults = faults
  }
}

/** Collects the lines of one reading. At most one fault per path is kept, the first. */
export interface Report {
  readonly lines: readonly string[]
  readonly count: number
  /** The value at this path comes from the environment and is never shown. */
  hide(path: Path): void
  /** `path: found …; allowed: …`, with the value as far as it may be shown. */
  fault(path: Path, value: unknown, schema: TSchema): void
  /** The same in words of one's own, which are shown as they are. */
  say(path: Path, found: string, allowed: string): void
  /** `path: unknown key; did you mean …?` */
  unknownKey(path: Path, known: readonly string[]): void
}

/** Starts a report; `sourceOf` names the environment variable that set a path. */
export function report(sourceOf: (path: string) => string | undefined = () => undefined): Report {
  const lines = new Map<string, string>()
  const hidden = new Set<string>()
  const add = (path: Path, text: string) => {
    const where = show(path)
    const source = sourceOf(where)
    if (!lines.has(where)) lines.set(where, `${where}${source ? ` (${source})` : ''}: ${text}`)
  }
  const say = (path: Path, found: string, allowed: string) => add(path, `found ${found}; allowed: ${allowed}`)
  return {
    get lines() {
      return [...lines.values()]
    },
    get count() {
      return lines.size
    },
    hide: path => hidden.add(show(path)),
    fault: (path, value, schema) =>
      say(path, hidden.has(show(path)) ? '<hidden>' : foundAt(value, schema), describe(schema)),
    say,
    unknownKey(path, known) {
      const near = nearest(String(path.at(-1)), known)
      const hint = known.length === 0 ? 'no keys are known here' : `known keys: ${known.join(', ')}`
      add(path, `unknown key; ${near ? `did you mean ${near}?` : hint}`)
    }
  }
}

/** A path as a reader would write it: `models["gpt-4.1"].targets[0].weight`. */
export function show(path: Path): string {
  let shown = ''
  for (const step of path) {
    if (typeof step === 'number') shown += `[${step}]`
    else if (/^[\w-]{1,60}$/.test(step)) shown += shown === '' ? step : `.${step}`
    else shown += `[${shorten(step)}]`
  }
  return shown === '' ? 'configuration' : shown
}

/** A text in quotes, shortened; what looks like a URL or an authority with credentials becomes `<hidden>`. */
export function quote(value: string): string {
  return /:\/\/.*[@?]|:[^/\s]+@/.test(value) ? '<hidden>' : shorten(value)
}

/** What a schema allows, in words. */
export function describe(schema: TSchema): string {
  if (typeof schema['allowed'] === 'string') return schema['allowed']
  if (KindGuard.IsUnion(schema)) return [...new Set(schema.anyOf.map(describe))].join(' | ')
  if (KindGuard.IsLiteral(schema)) return String(schema.const)
  if (KindGuard.IsBoolean(schema)) return 'true or false'
  if (KindGuard.IsInteger(schema) || KindGuard.IsNumber(schema)) {
    const { minimum, maximum } = schema
    const kind = KindGuard.IsInteger(schema) ? 'a whole number' : 'a number'
    if (minimum === undefined) return kind
    return maximum === undefined ? `${kind} of at least ${minimum}` : `${kind} from ${minimum} to ${maximum}`
  }
  if (KindGuard.IsArray(schema)) return `a list${schema.minItems ? ' that is not empty' : ''}`
  if (KindGuard.IsString(schema)) return `a text${schema.minLength ? ' that is not empty' : ''}`
  return 'an object'
}

/** The known name with the fewest edits, if it is near enough to be meant. */
export function nearest(name: string, known: readonly string[]): string | undefined {
  const reach = Math.max(1, Math.min(3, Math.floor(name.length / 3)))
  let best: string | undefined
  let least = reach + 1
  for (const candidate of known) {
    const edits = distance(name.toLowerCase().slice(0, 64), candidate.toLowerCase())
    if (edits < least) [best, least] = [candidate, edits]
  }
  return best
}

function foundAt(value: unknown, schema: TSchema): string {
  const kind = kindOf(value)
  if (value === undefined) return kind
  if (schema['hidden'] === true) return typeof value === 'string' ? '<hidden>' : `<hidden> (${kind})`
  // A bare text where an object or a list belongs is often a key in the wrong place: it is named, not shown.
  if (typeof value === 'string') return isStructure(schema) ? kind : quote(value)
  return typeof value === 'number' || typeof value === 'boolean' ? String(value) : kind
}

function shorten(value: string): string {
  return JSON.stringify(value.length > 60 ? `${value.slice(0, 60)}…` : value)
}

function kindOf(value: unknown): string {
  if (value === undefined) return 'nothing'
  if (value === null) return 'null'
  if (Array.isArray(value)) return value.length === 0 ? 'an empty list' : 'a list'
  const kind = typeof value
  if (kind === 'string') return value === '' ? 'an empty text' : 'a text'
  return kind === 'object' ? 'an object' : `a ${kind}`
}

function isStructure(schema: TSchema): boolean {
  if (KindGuard.IsUnion(schema)) return !schema.anyOf.some(KindGuard.IsString) && schema.anyOf.some(isStructure)
  return KindGuard.IsObject(schema) || KindGuard.IsRecord(schema) || KindGuard.IsArray(schema)
}

function distance(from: string, to: string): number {
  let row = Array.from({ length: to.length + 1 }, (_, index) => index)
  for (let i = 1; i <= from.length; i++) {
    const next = [i]
    for (let j = 1; j <= to.length; j++) {
      const swap = row[j - 1]! + (from[i - 1] === to[j - 1] ? 0 : 1)
      next.push(Math.min(swap, row[j]! + 1, next[j - 1]! + 1))
    }
    row = next
  }
  return row[to.length]!
}
