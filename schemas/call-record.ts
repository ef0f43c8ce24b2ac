import { isGatewayError, withoutKeys } from './errors.ts'
import type { Expense, Inference, Origin, Outcome, Principal } from './gateway.ts'
import { type RecordStatus, sumOf } from './ledger.ts'
import { inputOf, outputOf, type Usage } from './usage.ts'

/**
 * One call from its end, for those who show what happened: the log, traces, events, metrics. Nothing of its request but
 * who asked for which model. Money in nano-USD, durations in milliseconds.
 */
export interface CallRecord {
  readonly id: string
  /** Milliseconds since 1970, at the start. */
  readonly time: number
  readonly tenant: string
  /** The key's id. */
  readonly key: string | null
  readonly caller: Principal['kind']
  readonly lane: Origin['lane']
  /** What was asked for: the alias. Callers may write anything where a name belongs: keys are taken out of both. */
  readonly model: string
  readonly stream: boolean
  /** Of the target that answered, or was tried last; null where none was. */
  readonly provider: string | null
  /** The provider's own name of the model. */
  readonly target: string | null
  readonly status: Exclude<RecordStatus, 'open'>
  /** What the caller got; 499 for one that left. */
  readonly httpStatus: number
  /** The code of the error, or null. */
  readonly error: string | null
  /** The same in words of ours: without keys, and without what a provider says, which may quote the prompt. */
  readonly message: string | null
  /** Provider calls, and how many of them repeated the last target or moved on to another one. */
  readonly attempts: number
  readonly retries: number
  readonly fallbacks: number
  readonly cache: 'off' | 'miss' | 'hit'
  readonly usage: Usage
  readonly tokensIn: number
  readonly tokensOut: number
  /** Null: nobody knows the price. */
  readonly cost: number | null
  readonly duration: number
  /** Null for whole answers, and for streams without one. */
  readonly firstToken: number | null
  readonly traceId: string
  /** The configuration that it was routed by; see Route. */
  readonly config: string | null
}

/** Reads a call that has ended. */
export function recordOf(inference: Inference, outcome: Omit<Outcome, 'record'>): CallRecord {
  const { principal, facts, expenses } = inference
  const { status, httpStatus, error } = endingOf(outcome, facts.firstToken)
  // Without books nobody counts what a provider call has used: then what was reported is all that is known.
  const { usage } = expenses.at(-1)?.metered === false ? inference : sumOf(expenses)
  const { retries, fallbacks } = movesOf(expenses)
  const target = facts.target ?? expenses.at(-1)?.target ?? null
  return {
    id: inference.id,
    time: Date.now() - outcome.duration,
    tenant: principal.tenant,
    key: principal.key,
    caller: principal.kind,
    lane: inference.origin.lane,
    model: withoutKeys(inference.route.alias),
    stream: inference.request.stream === true,
    provider: target === null ? null : target.provider.name,
    target: target === null ? null : withoutKeys(target.model),
    status,
    httpStatus,
    error,
    message: outcome.error === null || status === 'settled' ? null : wordsOf(outcome.error),
    attempts: expenses.length,
    retries,
    fallbacks,
    cache: facts.cache,
    usage,
    tokensIn: inputOf(usage),
    tokensOut: outputOf(usage),
    cost: facts.cost,
    duration: outcome.duration,
    firstToken: facts.firstToken,
    traceId: facts.traceId,
    config: inference.route.config ?? null
  }
}

/** What the books and the caller are told of an end. `firstToken` as in Facts. */
export function endingOf(
  { status, error, departed }: Omit<Outcome, 'record'>,
  firstToken: number | null
): Pick<CallRecord, 'status' | 'httpStatus' | 'error'> {
  if (status === 'completed') return { status: 'settled', httpStatus: departed ? 499 : 200, error: null }
  if (status === 'cancelled') return { status: 'interrupted', httpStatus: 499, error: 'cancelled' }
  const ownStatus = isGatewayError(error) ? error.statusCode : 500
  // With the first token of a stream its status leaves; what goes wrong afterwards is an event in it.
  return { status: 'failed', httpStatus: firstToken === null ? ownStatus : 200, error: codeOf(error) }
}

/** A code, and not a sentence that some vendor has put in its place. */
const word = /^[\w.:-]{1,64}$/

/** The code that stands in the error's body, else the one of its kind. */
export function codeOf(error: unknown): string {
  if (!isGatewayError(error)) return 'internal_error'
  return error.wire !== null && word.test(error.wire) ? error.wire : error.code
}

/** How a line of the log names a call. */
export function namesOf({ id, facts }: Pick<Inference, 'id' | 'facts'>): { requestId: string; traceId: string } {
  return { requestId: id, traceId: facts.traceId }
}

const mostWords = 500

/** Whether a fault, or its cause, holds what a provider said: it may quote the prompt, so the log has it at debug only. */
export function isTheirs(error: unknown): boolean {
  return isGatewayError(error) && (error.quotes || error.upstream !== null)
}

/** A fault in words of ours. Of one that is not ours nobody knows what its own hold; those of a provider may quote the prompt. */
export function wordsOf(error: unknown): string {
  if (!isGatewayError(error)) return 'The gateway failed.'
  if (!error.quotes) return withoutKeys(error.message).slice(0, mostWords)
  return `The provider of this model ${error.upstream === null ? 'failed' : `answered with status ${error.upstream}`}.`
}

function movesOf(expenses: readonly Expense[]): { retries: number; fallbacks: number } {
  let retries = 0
  for (let index = 1; index < expenses.length; index++) {
    if (expenses[index]!.target === expenses[index - 1]!.target) retries++
  }
  return { retries, fallbacks: Math.max(0, expenses.length - 1 - retries) }
}
