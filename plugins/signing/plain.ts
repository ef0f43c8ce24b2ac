import { canonical } from '../../schemas/canonical.ts'
import { UpstreamError } from '../../schemas/errors.ts'

/** What is signed: a body or a chunk without the fields that are ours. */
export interface Plain<Value> {
  readonly value: Value
  /** Its canonical form. */
  readonly text: string
  /** The bytes that it came in say the same. */
  readonly untouched: boolean
}

/** @throws UpstreamError for what is nested too deeply */
export function plainOf<Value extends object>(given: Value, own: readonly string[]): Plain<Value> {
  const value = without(given, own)
  try {
    return written(value, value === given)
  } catch (error) {
    if (!(error instanceof RangeError)) throw error
    throw new UpstreamError('its answer is nested too deeply to be signed.', { cause: error })
  }
}

function written<Value extends object>(value: Value, untouched: boolean): Plain<Value> {
  try {
    return { value, text: canonical(value), untouched }
  } catch (error) {
    if (error instanceof RangeError) throw error
    return finite(value)
  }
}

/** A copy without these fields, should a provider have sent them: ours take their place. */
function without<Value extends object>(value: Value, own: readonly string[]): Value {
  let copy: Value | null = null
  for (const name of own) {
    if (!Object.hasOwn(value, name)) continue
    copy ??= { ...value }
    Reflect.deleteProperty(copy, name)
  }
  return copy ?? value
}

/** Numbers beyond what a receiver can hold, such as 1e400, are null to JSON. */
function finite<Value extends object>(given: Value): Plain<Value> {
  const value: Value = JSON.parse(JSON.stringify(given))
  return { value, text: canonical(value), untouched: false }
}
