import { type TTransform, type TUnion, Type } from '@sinclair/typebox'

type Amount = TTransform<TUnion<[ReturnType<typeof Type.Integer>, ReturnType<typeof Type.String>]>, number>

const time = { ms: 1, s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000 }
const volume = { b: 1, kb: 1024, mb: 1024 ** 2, gb: 1024 ** 3 }
/** Node turns a longer timer into one of a millisecond. */
const longestTimer = 2 ** 31 - 1

/** Milliseconds, written as a whole number or with a unit: '250ms', '5s', '10m', '24h', '90d', '1.5s'. */
export const Duration: Amount = amount(
  time,
  0,
  Number.MAX_SAFE_INTEGER,
  'a duration such as 250ms, 5s, 10m, 24h or 90d'
)
/** A duration that a timer can wait for: 0 to 24 days. */
export const Delay: Amount = amount(time, 0, longestTimer, 'a duration such as 250ms, 5s or 10m, at most 24d')
/** A duration that a timer can wait for, at least 1 ms. */
export const Timeout: Amount = amount(
  time,
  1,
  longestTimer,
  'a duration such as 250ms, 5s or 10m, above 0, at most 24d'
)
/** Bytes, written as a whole number or with a unit: '512b', '512kb', '10mb', '1gb' (1 kb = 1,024 bytes); at least 1. */
export const Size: Amount = amount(volume, 1, Number.MAX_SAFE_INTEGER, 'a size such as 512kb or 10mb, above 0')

function amount(units: Record<string, number>, minimum: number, maximum: number, allowed: string): Amount {
  const form = new RegExp(`^(\\d+(?:\\.\\d+)?)(${Object.keys(units).join('|')})$`, 'i')
  return Type.Transform(Type.Union([Type.Integer(), Type.String()], { allowed }))
    .Decode(written => {
      const value = typeof written === 'number' ? written : parse(written)
      if (value >= minimum && value <= maximum) return value
      throw new RangeError(allowed)
    })
    .Encode(value => value)

  function parse(written: string): number {
    const [, digits, unit] = form.exec(written) ?? []
    return Math.round(Number(digits) * (units[unit?.toLowerCase() ?? ''] ?? Number.NaN))
  }
}
