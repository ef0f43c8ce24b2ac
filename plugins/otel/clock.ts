import type { HrTime } from '@opentelemetry/api'

/** Milliseconds by which the clock of the day may differ before ours is set anew: after a suspend, or by a time server. */
const tolerated = 5

let offset = Date.now() - performance.now()

/**
 * The time of day of a `performance.now()`. The SDK sets each span's clock by itself, to a millisecond: then what ends first
 * may seem to end last. Ours is one for all spans.
 */
export function timeOf(moment: number): HrTime {
  const time = moment + offset
  const seconds = Math.floor(time / 1_000)
  return [seconds, Math.round((time - seconds * 1_000) * 1e6) % 1e9]
}

/** Now. */
export function timeNow(): HrTime {
  const moment = performance.now()
  const wrong = Date.now() - moment - offset
  if (wrong > tolerated || wrong < -tolerated) offset += wrong
  return timeOf(moment)
}
