// A minute that slides by two counters: what came in this minute of the clock, and what is left of the one before.

export const minute = 60_000
/** Sums of fractions may be off by this much without anything being refused for it. */
const tolerance = 1e-6

/** What one tenant or key has used lately. */
export interface Counters {
  /** The minute of the clock that `requests` and `tokens` are of. */
  window: number
  requests: number
  requestsBefore: number
  tokens: number
  tokensBefore: number
  /** Calls in progress. */
  running: number
}

export function createCounters(window: number): Counters {
  return { window, requests: 0, requestsBefore: 0, tokens: 0, tokensBefore: 0, running: 0 }
}

/** Moves on to a minute; an earlier one than it is at changes nothing. */
export function roll(counters: Counters, window: number): void {
  const passed = window - counters.window
  if (passed <= 0) return
  counters.requestsBefore = passed === 1 ? counters.requests : 0
  counters.tokensBefore = passed === 1 ? counters.tokens : 0
  counters.requests = 0
  counters.tokens = 0
  counters.window = window
}

/**
 * Changes the tokens that were counted in a minute. What was too much is given back to that minute, while it counts; what
 * was too little is counted now.
 */
export function correct(counters: Counters, window: number, difference: number): void {
  if (difference > 0 || window === counters.window) counters.tokens = Math.max(0, counters.tokens + difference)
  else if (window === counters.window - 1) counters.tokensBefore = Math.max(0, counters.tokensBefore + difference)
}

/** What counts of two minutes, `elapsed` milliseconds into the second one. */
export function usedOf(current: number, before: number, elapsed: number): number {
  return before === 0 ? current : current + before * (1 - elapsed / minute)
}

/** Whether `cost` more still fits. */
export function fits(limit: number | null, current: number, before: number, elapsed: number, cost: number): boolean {
  return limit === null || usedOf(current, before, elapsed) + cost <= limit + tolerance
}

/** Milliseconds until `cost` fits if nothing else comes; infinite when it never will. */
export function waitFor(limit: number, current: number, before: number, elapsed: number, cost: number): number {
  if (cost > limit) return Number.POSITIVE_INFINITY
  const room = limit - current - cost
  const share = room >= 0 ? 1 - room / Math.max(before, room, 1) : 2 - (limit - cost) / current
  return Math.max(0, share * minute - elapsed)
}

/** Milliseconds until nothing of it counts any more. */
export function resetIn(current: number, before: number, elapsed: number): number {
  if (current > 0) return 2 * minute - elapsed
  return before > 0 ? minute - elapsed : 0
}
