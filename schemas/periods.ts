// Periods of budgets, in UTC.

export const periods = ['total', 'hour', 'day', 'week', 'month'] as const
export type Period = (typeof periods)[number]

/** Names the period in which a moment (milliseconds) lies: `total`, `day:2026-11-21`, `week:2026-11-16` (its Monday). */
export function periodKey(period: Period, time: number): string {
  if (period === 'total') return 'total'
  const text = new Date(startOf(period, time)).toISOString()
  return `${period}:${text.slice(0, { hour: 13, day: 10, week: 10, month: 7 }[period])}`
}

/** When the period in which a moment lies began, in milliseconds; 0 for `total`. */
export function startOf(period: Period, time: number): number {
  const date = new Date(time)
  const [year, month, day] = [date.getUTCFullYear(), date.getUTCMonth(), date.getUTCDate()]
  switch (period) {
    case 'total':
      return 0
    case 'hour':
      return Date.UTC(year, month, day, date.getUTCHours())
    case 'day':
      return Date.UTC(year, month, day)
    case 'week':
      return Date.UTC(year, month, day - ((date.getUTCDay() + 6) % 7))
    case 'month':
      return Date.UTC(year, month)
  }
}

/** When the next one begins; Infinity for `total`. */
export function endOf(period: Period, time: number): number {
  const date = new Date(startOf(period, time))
  switch (period) {
    case 'total':
      return Number.POSITIVE_INFINITY
    case 'hour':
      return date.getTime() + 3_600_000
    case 'day':
      return date.getTime() + 86_400_000
    case 'week':
      return date.getTime() + 7 * 86_400_000
    case 'month':
      return Date.UTC(date.getUTCFullYear(), date.getUTCMonth() + 1)
  }
}
