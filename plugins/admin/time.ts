import { detail, InvalidRequest } from '../../schemas/errors.ts'

const iso = /^\d{4}-\d\d-\d\d(?<clock>T\d\d:\d\d(?::\d\d(?:\.\d{1,9})?)?(?<zone>Z|[+-]\d\d:?\d\d)?)?$/
/** The last moment that a date can name. */
const last = 8_640_000_000_000_000

/** Milliseconds since 1970 of a time as it was sent: ISO 8601, UTC where it names no zone, or milliseconds. @throws InvalidRequest */
export function momentOf(written: string | number, param: string): number {
  const time = parse(String(written).replace(' ', '+'))
  if (!(time >= 0 && time <= last)) {
    throw detail(new InvalidRequest(`${param} must be a time as ISO 8601 or in milliseconds since 1970.`), { param })
  }
  return time
}

/** A plus in a query is a space by the time it comes here; no form of ours has one. */
function parse(text: string): number {
  if (/^\d{1,16}$/.test(text)) return Number(text)
  const parts = iso.exec(text)?.groups
  if (parts === undefined) return Number.NaN
  return Date.parse(parts['clock'] !== undefined && parts['zone'] === undefined ? `${text}Z` : text)
}

/** A time as it is shown. */
export function isoOf(time: number): string {
  return new Date(time).toISOString()
}

export function isoOrNull(time: number | null): string | null {
  return time === null ? null : isoOf(time)
}
