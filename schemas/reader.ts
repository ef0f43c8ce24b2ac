import {
  KindGuard,
  type TArray,
  type TObject,
  type TRecord,
  TransformKind,
  type TSchema,
  type TUnion,
  Type
} from '@sinclair/typebox'
import type { Path, Report } from './faults.ts'
import { type Filled, Toggle } from './shape.ts'

// TypeBox checks, fills in and decodes too, but in three walks and with faults that name no branch of a union, stop at the
// first bad name of a map and show secrets. This is one walk over the same schema. test/schemas/reader.test.ts holds it
// against TypeBox's own verdict.

/**
 * Checks a written value against its schema and answers with defaults filled in and everything decoded, as fresh plain
 * data. What does not fit is told to `report` and left out: the answer counts only while the report is empty.
 */
export function read<S extends TSchema>(schema: S, written: unknown, report: Report): Filled<S> {
  return visit(schema, written, [], report) as Filled<S>
}

/** A plain object: of no class, from any realm. */
export function isRecord(value: unknown): value is Record<string, unknown> {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) return false
  const prototype = Object.getPrototypeOf(value)
  return prototype === null || Object.getPrototypeOf(prototype) === null
}

function visit(schema: TSchema, written: unknown, path: Path, report: Report): unknown {
  const faults = report.count
  const value = visitKind(schema, written, path, report)
  if (!KindGuard.IsTransform(schema) || report.count > faults) return value
  try {
    return schema[TransformKind].Decode(value)
  } catch {
    return report.fault(path, written, schema)
  }
}

function visitKind(schema: TSchema, written: unknown, path: Path, report: Report): unknown {
  if (KindGuard.IsObject(schema) && isRecord(written)) return visitObject(schema, written, path, report)
  if (KindGuard.IsRecord(schema) && isRecord(written)) return visitRecord(schema, written, path, report)
  if (KindGuard.IsArray(schema) && Array.isArray(written)) return visitArray(schema, written, path, report)
  if (KindGuard.IsUnion(schema)) return visitUnion(schema, written, path, report)
  if (KindGuard.IsUnknown(schema)) return visitUnknown(schema, written, path, report)
  return fits(schema, written) ? written : report.fault(path, written, schema)
}

function visitObject(schema: TObject, written: Record<string, unknown>, path: Path, report: Report) {
  const settings: Record<string, unknown> = {}
  for (const [key, property] of Object.entries(schema.properties)) {
    const given = Object.hasOwn(written, key) ? written[key] : undefined
    const value = given === undefined ? property['default'] : given
    if (value !== undefined) settings[key] = visit(property, value, [...path, key], report)
    else if (!KindGuard.IsOptional(property)) report.fault([...path, key], undefined, property)
  }
  for (const key of Object.keys(written)) {
    if (written[key] === undefined || Object.hasOwn(schema.properties, key)) continue
    report.unknownKey([...path, key], Object.keys(schema.properties))
  }
  return settings
}

function visitRecord(schema: TRecord, written: Record<string, unknown>, path: Path, report: Report) {
  const settings: Record<string, unknown> = {}
  for (const [pattern, value] of Object.entries(schema.patternProperties)) {
    const name = new RegExp(pattern)
    for (const key of Object.keys(written)) {
      if (written[key] === undefined) continue
      if (key === '__proto__' || !name.test(key)) report.say([...path, key], 'this name', schema['names'])
      else settings[key] = visit(value, written[key], [...path, key], report)
    }
  }
  return settings
}

function visitArray(schema: TArray, written: readonly unknown[], path: Path, report: Report) {
  if (written.length < (schema.minItems ?? 0)) return report.fault(path, written, schema)
  return Array.from(written, (item, index) => visit(schema.items, item, [...path, index], report))
}

function visitUnion(schema: TUnion, written: unknown, path: Path, report: Report): unknown {
  if (Toggle in schema && written === true) written = {}
  const branches = schema.anyOf.filter(branch => fits(branch, written))
  const [branch] = branches
  if (!branch) return report.fault(path, written, schema)
  if (branches.length === 1 || !KindGuard.IsObject(branch) || !isRecord(written)) {
    return visit(branch, written, path, report)
  }
  // Objects are told apart by `type`; the other branches' faults would only confuse.
  const chosen = branches.find(({ properties }) => properties.type.const === written['type'])
  if (chosen) return visit(chosen, written, path, report)
  const types = Type.Union(branches.map(({ properties }) => properties.type))
  return report.fault([...path, 'type'], written['type'], types)
}

/** True when a value is of the schema's own kind; what is inside an object or a list is not looked at. */
function fits(schema: TSchema, value: unknown): boolean {
  if (KindGuard.IsUnion(schema)) return schema.anyOf.some(branch => fits(branch, value))
  if (KindGuard.IsLiteral(schema)) return value === schema.const
  if (KindGuard.IsBoolean(schema)) return typeof value === 'boolean'
  if (KindGuard.IsObject(schema) || KindGuard.IsRecord(schema)) return isRecord(value)
  if (KindGuard.IsArray(schema)) return Array.isArray(value)
  if (KindGuard.IsString(schema)) {
    if (typeof value !== 'string' || value.length < (schema.minLength ?? 0)) return false
    return schema.pattern === undefined || new RegExp(schema.pattern).test(value)
  }
  if (typeof value !== 'number' || !Number.isFinite(value)) return false
  if (KindGuard.IsInteger(schema) && !Number.isSafeInteger(value)) return false
  return value >= (schema['minimum'] ?? value) && value <= (schema['maximum'] ?? value)
}

/** Options of somebody else's plugin: any plain data without circles, at most 16 levels of it. */
function visitUnknown(schema: TSchema, written: unknown, path: Path, report: Report, above: unknown[] = []): unknown {
  if (written === null || ['string', 'boolean'].includes(typeof written) || Number.isFinite(written)) return written
  if (above.length === 16 || above.includes(written)) return report.say(path, 'too many levels', 'at most 16')
  const below = [...above, written]
  if (Array.isArray(written)) {
    return Array.from(written, (item, index) => visitUnknown(schema, item, [...path, index], report, below))
  }
  if (!isRecord(written)) return report.fault(path, written, { ...schema, allowed: 'plain data' })
  const copy: Record<string, unknown> = {}
  for (const key of Object.keys(written)) {
    if (key === '__proto__') report.say([...path, key], 'this name', 'any other name')
    else if (written[key] !== undefined) copy[key] = visitUnknown(schema, written[key], [...path, key], report, below)
  }
  return copy
}
