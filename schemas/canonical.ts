// JSON in the one form of RFC 8785, so that whoever has the same data has the same bytes to hash or to sign.

/** What JSON does not write as it is, and halves of surrogate pairs: left to JSON.stringify. */
const special = /[^ !#-[\]-\ud7ff\ue000-\uffff]/
/** Names of fields as they are written, first and after another one: there are few, and each chunk has the same. */
const firstNames = new Map<string, string>()
const nextNames = new Map<string, string>()
const mostNames = 1_000
const longestName = 64
/** So many fields are sorted faster by hand. */
const few = 16

/**
 * The canonical form of plain data, as text: fields by the UTF-16 units of their names, numbers as ECMAScript writes them,
 * no white space. What JSON.stringify leaves out is left out. Half of a surrogate pair, at which the RFC gives up, is
 * escaped in lower case, as JSON.stringify does.
 * @throws TypeError for numbers that JSON does not have; RangeError for what is nested too deeply
 */
export function canonical(value: unknown): string {
  if (typeof value === 'string') return textOf(value)
  if (typeof value === 'number') return numberOf(value)
  if (typeof value !== 'object' || value === null) return JSON.stringify(value) ?? 'null'
  if (Array.isArray(value)) return listOf(value)
  if (!hasFields(value)) return canonical(JSON.parse(JSON.stringify(value) ?? 'null'))
  return objectOf(value)
}

/** Plain data: not a Date, nor what else says itself how it is written. */
function hasFields(value: object): value is Readonly<Record<string, unknown>> {
  return !('toJSON' in value && typeof value.toJSON === 'function')
}

function textOf(text: string): string {
  return special.test(text) ? JSON.stringify(text) : `"${text}"`
}

function numberOf(number: number): string {
  if (!Number.isFinite(number)) throw new TypeError('JSON has no infinite numbers.')
  return `${number}`
}

function listOf(list: readonly unknown[]): string {
  if (list.length === 0) return '[]'
  let text = `[${canonical(list[0])}`
  for (let index = 1; index < list.length; index++) text += `,${canonical(list[index])}`
  return `${text}]`
}

function objectOf(fields: Readonly<Record<string, unknown>>): string {
  const keys = sorted(Object.keys(fields))
  let text = '{'
  let isFirst = true
  for (let index = 0; index < keys.length; index++) {
    const key = keys[index]!
    const value = fields[key]
    if (value === undefined || typeof value === 'function' || typeof value === 'symbol') continue
    text += (isFirst ? nameOf(firstNames, key, '') : nameOf(nextNames, key, ',')) + canonical(value)
    isFirst = false
  }
  return `${text}}`
}

function sorted(keys: string[]): string[] {
  if (keys.length > few) return keys.sort()
  for (let index = 1; index < keys.length; index++) {
    const key = keys[index]!
    let at = index
    for (; at > 0 && keys[at - 1]! > key; at--) keys[at] = keys[at - 1]!
    keys[at] = key
  }
  return keys
}

function nameOf(names: Map<string, string>, key: string, before: string): string {
  const known = names.get(key)
  if (known !== undefined) return known
  const name = `${before}${textOf(key)}:`
  if (names.size < mostNames && key.length <= longestName) names.set(key, name)
  return name
}
