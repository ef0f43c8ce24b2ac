import { type ChatRequest, ownFields } from '../../schemas/chat.ts'
import type { Answer, Expense, Gateway, Inference } from '../../schemas/gateway.ts'
import type { Attempt } from '../../schemas/provider.ts'
import { untilToken } from './frames.ts'
import type { Lane } from './lane.ts'
import { Heard, Whole } from './meter.ts'
import type { Candidate } from './plan.ts'
import { Ticket } from './ticket.ts'

/** What kept an attempt from being sent: the caller's budget, the books, or that its call has ended. */
export class Refusal {
  readonly reason: unknown
  constructor(reason: unknown) {
    this.reason = reason
  }
}

/** An answer, a stream up to its first token, and what the books say of it. */
export interface Answered {
  readonly answer: Answer
  readonly entry: Expense
}

/**
 * One provider call: opened in the books, sent, and ended in them. A place of the candidate has been taken for it.
 * @throws Refusal where it was not sent
 */
export async function attempt(
  gateway: Gateway,
  inference: Inference,
  candidate: Candidate,
  lane: Lane,
  signal: AbortSignal,
  now: () => number
): Promise<Answered> {
  const ticket = new Ticket(candidate, lane, now)
  let entry: Expense | null = null
  try {
    const opened = gateway.open(inference, candidate)
    entry = opened instanceof Promise ? await opened : opened
    // It may have been broken off while its line was written.
    signal.throwIfAborted()
  } catch (refusal) {
    entry?.fail(refusal)
    ticket.drop()
    throw new Refusal(refusal)
  }
  const heard = new Heard(inference, ticket)
  entry.meter = heard
  try {
    const sent = mint(inference, candidate, lane, entry, signal)
    const answer = await gateway.send(sent)
    if (answer.stream) return { answer: { stream: true, frames: await untilToken(sent, answer.frames, heard) }, entry }
    // Whoever keeps books reads the usage now, and finds out here that an answer is no JSON after all.
    entry.meter = new Whole(inference, answer, ticket)
    entry.settle()
    return { answer, entry }
  } catch (error) {
    // Whatever a provider makes of being broken off.
    const fault = signal.aborted ? signal.reason : error
    entry.meter = heard
    entry.fail(fault)
    throw fault
  }
}

/** The only place where an attempt comes to be, together with its ledger line. */
function mint(inference: Inference, target: Candidate, lane: Lane, entry: Expense, signal: AbortSignal): Attempt {
  inference.facts.target = target
  inference.facts.attempts++
  return {
    inference,
    target,
    number: entry.number,
    key: lane.key,
    request: requestFor(target, inference.request, lower(inference.maxOutputTokens, target.maxOutputTokens)),
    headers: {},
    caller: inference,
    signal,
    timeouts: target.timeouts,
    entry
  }
}

/** What the target is asked: its own name of the model, our fields gone, the cap on output forced. */
function requestFor(target: Candidate, request: ChatRequest, cap: number | null): ChatRequest {
  const asked: ChatRequest = { ...request, model: target.model }
  for (const field of ownFields) if (field in asked) delete asked[field]
  if (cap === null) return asked
  const { max_completion_tokens: newer, max_tokens: older } = asked
  const wanted = newer ?? older
  const fits = typeof wanted === 'number' && wanted <= cap
  if (fits && wanted === (older ?? wanted)) return asked
  delete asked.max_tokens
  asked.max_completion_tokens = fits ? wanted : cap
  return asked
}

function lower(one: number | null, other: number | null): number | null {
  if (one === null) return other
  return other === null ? one : Math.min(one, other)
}
