// Money is counted in whole nano-USD (1e-9) and prices in whole pico-USD (1e-12) per token, so that sums are exact.

/** The most nano-USD that one number may hold: 9,000,000 USD. Totals over time are bigint. */
export const mostNano = 9_000_000_000_000_000

/** Nano-USD of an amount in USD, rounded half up. Read from its decimal text: 0.1 is not 0.1000000000000000055. @throws RangeError */
export function nanoOf(usd: number | string): number {
  return scaled(usd, 9)
}

/** Pico-USD per token of a price in USD per million tokens, rounded half up. @throws RangeError */
export function picoOf(usdPerMillion: number | string): number {
  return scaled(usdPerMillion, 6)
}

/** USD of nano-USD, as a JSON number. */
export function usdOf(nano: number | bigint): number {
  return Number(`${nano}e-9`)
}

/** USD of nano-USD as a plain decimal text, without an exponent: `0.00045`. */
export function usdText(nano: number | bigint): string {
  const digits = String(nano < 0 ? -nano : nano).padStart(10, '0')
  const point = digits.length - 9
  let end = digits.length
  while (end > point && digits[end - 1] === '0') end--
  const whole = digits.slice(0, point)
  return `${nano < 0 ? '-' : ''}${whole}${end === point ? '' : `.${digits.slice(point, end)}`}`
}

/** Shifts the decimal point of a written number and rounds half up. */
function scaled(value: number | string, places: number): number {
  const match = /^(\d*)\.?(\d*)(?:e([+-]?\d{1,3}))?$/i.exec(String(value).trim())
  if (match === null || (match[1] === '' && match[2] === '')) {
    throw new RangeError(`'${String(value).slice(0, 40)}' is not an amount of USD.`)
  }
  const [, whole = '', fraction = '', exponent = '0'] = match
  const shift = places + Number(exponent)
  const digits = whole + fraction
  const point = whole.length + shift
  const kept = point <= 0 ? '0' : digits.slice(0, point).padEnd(point, '0')
  const next = point < 0 ? '0' : (digits[point] ?? '0')
  const result = Number(kept) + (next >= '5' ? 1 : 0)
  if (!Number.isSafeInteger(result)) {
    throw new RangeError(`${String(value).slice(0, 40)} USD is more than can be counted exactly.`)
  }
  return result
}
