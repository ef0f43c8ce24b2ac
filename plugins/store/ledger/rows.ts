import type { AttemptEnd, AttemptLine, AttemptOpen, OpenLine, SettleLine } from '../../../schemas/journal.ts'
import type { RecordStatus, Sums } from '../../../schemas/ledger.ts'
import { estimatedUsage } from '../../../schemas/usage.ts'
import type { Value } from '../database.ts'
import { usageValues } from '../usage.ts'

// From the lines of one call to its rows.

/** The code of a call whose gateway died. Its row may still turn out to have been settled. */
export const gatewayLost = 'gateway_lost'

/** A call whose end has not been read yet. */
export interface OpenCall {
  readonly open: OpenLine
  readonly further: readonly AttemptLine[]
  /** It is in the table open_calls. */
  readonly stored: boolean
}

/** How an attempt ended; nobody knows how long one took whose gateway died. */
export type Ended = Omit<AttemptEnd, 'duration'> & { readonly duration: number | null }

/** How a call ended. */
export interface Ending {
  readonly status: RecordStatus
  readonly httpStatus: number | null
  readonly errorCode: string | null
  readonly duration: number | null
  readonly firstToken: number | null
  readonly attempts: readonly Ended[]
}

/** The id as the caller knows it: calls of one in-process caller have a mark of their own behind it. */
export function publicId(id: string): string {
  const mark = id.lastIndexOf('~')
  return mark === -1 ? id : id.slice(0, mark)
}

/** How a call ended whose gateway died: what is known of its attempts, and the estimate of those that were open. */
export function lostEnding({ open, further }: OpenCall): Ending {
  const ends = new Map(further.map(({ before }) => [before.number, before]))
  const attempts = [open.attempt, ...further.map(line => line.attempt)].map((attempt): Ended => {
    const end = ends.get(attempt.number)
    return end === undefined || end.status === 'open' ? lostAttempt(attempt) : end
  })
  const unknown = { httpStatus: null, duration: null, firstToken: null }
  return { status: 'interrupted', errorCode: gatewayLost, ...unknown, attempts }
}

/** An attempt that nobody saw end: charged what it was likely to use at most. */
export function lostAttempt({ number, input, output, cost }: AttemptOpen): Ended {
  const unknown = { duration: null, firstToken: null }
  return {
    number,
    status: 'interrupted',
    errorCode: gatewayLost,
    ...unknown,
    cost,
    usage: estimatedUsage(input, output)
  }
}

export function inferenceRow(
  seq: number,
  { open }: OpenCall,
  ending: Ending | SettleLine,
  { cost, usage }: Sums,
  charges: string
): Value[] {
  return [
    seq,
    publicId(open.id),
    open.time,
    open.tenant,
    open.key,
    open.model,
    open.stream ? 1 : 0,
    ending.status,
    ending.httpStatus,
    ending.errorCode,
    ending.duration,
    ending.firstToken,
    cost,
    ...usageValues(usage),
    open.traceId,
    open.user,
    open.tags === null ? null : JSON.stringify(open.tags),
    charges,
    open.config
  ]
}

/** The rows of a call's attempts. One whose beginning was never written down has no row, as it was never sent. */
export function addAttemptRows(rows: Value[][], seq: number, call: OpenCall, ends: readonly Ended[]): void {
  const { open, further } = call
  for (const end of ends) {
    const attempt =
      end.number === open.attempt.number
        ? open.attempt
        : further.find(line => line.attempt.number === end.number)?.attempt
    if (attempt !== undefined) rows.push(attemptRow(seq, attempt, end))
  }
}

export function attemptRow(seq: number, attempt: AttemptOpen, end: Ended): Value[] {
  return [
    seq,
    attempt.number,
    attempt.provider,
    attempt.model,
    end.status,
    end.errorCode,
    end.duration,
    end.firstToken,
    end.cost,
    attempt.priceVersion,
    ...usageValues(end.usage)
  ]
}

/** A call as the table open_calls holds it. */
export function openCallText({ open, further }: OpenCall): string {
  return JSON.stringify([{ ...open, id: publicId(open.id) }, ...further])
}

/** @throws SyntaxError for a damaged row */
export function openCallOf(id: string, text: string): OpenCall {
  const [open, ...further] = JSON.parse(text) as [OpenLine, ...AttemptLine[]]
  // An older gateway has not written its configuration down.
  return { open: { ...open, id, config: open.config ?? null }, further, stored: true }
}
