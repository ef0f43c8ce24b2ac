import { isRecord } from './reader.ts'

// Reading what others have written, of which nothing is certain.

/** What JSON text, or its bytes in UTF-8, says; undefined for anything else. */
export function jsonOf(text: Buffer | string | null): unknown {
  if (text === null || text.length === 0) return undefined
  try {
    return JSON.parse(text.toString())
  } catch {
    return undefined
  }
}

/** The fields of what should be an object; none of anything else. */
export function fieldsOf(value: unknown): Readonly<Record<string, unknown>> {
  return isRecord(value) ? value : {}
}

/** The items of what should be a list; none of anything else. */
export function listOf<Item>(value: readonly Item[] | null | undefined): readonly Item[]
export function listOf(value: unknown): readonly unknown[]
export function listOf(value: unknown): readonly unknown[] {
  return Array.isArray(value) ? value : []
}
