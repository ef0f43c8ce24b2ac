import { type Blame, type GatewayError, isGatewayError } from '../../schemas/errors.ts'

// The one point of policy: what a failed attempt means for what is tried next. docs/routing.md is its table, and a test
// holds the two against each other.

/** What may follow a fault. */
export interface Verdict {
  /** Another key, target or fallback may be asked. */
  readonly another: boolean
  /** The same target may be asked again, after a pause. */
  readonly again: boolean
  /** It says something of the target's health. */
  readonly counts: boolean
}

const stop: Verdict = { another: false, again: false, counts: false }

const verdicts: Readonly<Record<Blame, Verdict>> = {
  request: stop,
  key: { another: true, again: false, counts: false },
  limit: { another: true, again: true, counts: false },
  target: { another: true, again: false, counts: true },
  time: { another: true, again: false, counts: true },
  provider: { another: true, again: true, counts: true }
}
/** Not for this target, which is well; the request may be too long for its model. */
const elsewhere: Verdict = { another: true, again: false, counts: false }

/** A fault that is not a provider's is ours, or a layer's: nobody else would do better. */
export function verdictOf(error: unknown): Verdict {
  if (!isGatewayError(error)) return stop
  if (error.wire === 'context_length_exceeded') return elsewhere
  if (error.blame === null) return byStatus(error)
  const { another, again, counts } = verdicts[error.blame]
  return { another, again: again && !isUseless(error), counts: counts && !isClientStatus(error.upstream) }
}

/** The provider says so itself. */
function isUseless({ headers }: GatewayError): boolean {
  return headers['x-should-retry'] === 'false'
}

/** Whoever answers 4xx is well: the request or the set-up is not, and a caller may have brought that about for all. */
function isClientStatus(status: number | null): boolean {
  return status !== null && status >= 400 && status < 500
}

/** Faults that an adapter or an attempt layer has made by itself. */
function byStatus({ code, statusCode }: GatewayError): Verdict {
  if (statusCode === 429) return verdicts.limit
  // An adapter that cannot put a request into its vendor's words sends nothing: another wire may have them.
  return statusCode >= 500 || code === 'GATEWAY_INVALID_REQUEST' ? elsewhere : stop
}

const firstPause = 250
const longestPause = 4_000
/** The longest that a call is kept waiting because a provider asks for it; longer than this the caller is told. */
export const longestWait = 10_000

/** Milliseconds before a repeat, 0 for the first: doubled each time, and between half and all of it. */
export function pauseBefore(repeat: number, random: () => number): number {
  return Math.min(longestPause, firstPause * 2 ** repeat) * (0.5 + random() / 2)
}
