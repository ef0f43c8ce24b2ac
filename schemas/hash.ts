import { createHash } from 'node:crypto'
import { KindGuard, type TSchema } from '@sinclair/typebox'
import { isRecord } from './reader.ts'

type Entries = Record<string, unknown>

/** Stands for a secret: that there is one counts, which one it is does not. */
const secret = '<secret>'
/** A URL with what may be credentials, wherever it stands. */
const telling = /^[a-z][a-z0-9+.-]*:\/\/.*[@?]/i
const shown = 12

/**
 * What was written without its secrets: texts that the schema hides, all but `env:NAME`. So nobody can find out a secret by
 * trying which one comes to the same hash.
 */
export function withoutSecrets(schema: TSchema, written: Entries): Entries {
  return cleanedEntries(written, [schema], false)
}

/** SHA-256, in hex, of plain data as JSON; the order of keys makes no difference. */
export function hashOf(value: Readonly<Entries>): string {
  const canonical = JSON.stringify(value, (_key, item: unknown) => (isRecord(item) ? inOrder(item) : item))
  return createHash('sha256').update(canonical).digest('hex')
}

/** As much of a hash as is shown and written down with each call. */
export function shortHash(hash: string): string {
  return hash.slice(0, shown)
}

function cleanedEntries(value: Entries, schemas: readonly TSchema[], hidden: boolean): Entries {
  const entries = Object.entries(value).filter(([, item]) => item !== undefined)
  const inside = (key: string) => schemas.flatMap(schema => propertiesOf(schema, key))
  return Object.fromEntries(entries.map(([key, item]) => [key, cleaned(item, inside(key), hidden)]))
}

/** @param schemas all that may be meant at this place: one that hides it is enough */
function cleaned(value: unknown, schemas: readonly TSchema[], hiddenAbove: boolean): unknown {
  const possible = schemas.flatMap(branchesOf)
  const hidden = hiddenAbove || possible.some(schema => schema['hidden'] === true)
  if (typeof value === 'string') {
    return (hidden || telling.test(value)) && !value.startsWith('env:') ? secret : value
  }
  if (isRecord(value)) return cleanedEntries(value, possible, hidden)
  if (!Array.isArray(value)) return value
  const items = possible.flatMap(schema => (KindGuard.IsArray(schema) ? [schema.items] : []))
  return value.map(item => cleaned(item, items, hidden))
}

function branchesOf(schema: TSchema): TSchema[] {
  return KindGuard.IsUnion(schema) ? [schema, ...schema.anyOf.flatMap(branchesOf)] : [schema]
}

function propertiesOf(schema: TSchema, key: string): TSchema[] {
  if (KindGuard.IsRecord(schema)) return Object.values(schema.patternProperties)
  const property = KindGuard.IsObject(schema) && Object.hasOwn(schema.properties, key) ? schema.properties[key] : null
  return property ? [property] : []
}

function inOrder(value: Entries): Entries {
  return Object.fromEntries(Object.entries(value).sort(([one], [other]) => (one < other ? -1 : 1)))
}
