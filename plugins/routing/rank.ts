import type { Gateway, Inference } from '../../schemas/gateway.ts'
import { mixed } from './hash.ts'
import type { Candidate, Step } from './plan.ts'

/** What ranking needs besides the call. */
export interface Ranking {
  readonly gateway: Gateway
  /** 0 <= n < 1 */
  readonly random: () => number
  /** Milliseconds since 1970. */
  readonly now: () => number
}

/**
 * In which order candidates are asked, best first. Who has no weight comes last, but where the order is the operator's.
 *
 * @param conversation a number that keeps a conversation where it is; null where there is nothing to keep
 */
export function rank(
  candidates: readonly Candidate[],
  { strategy }: Step,
  conversation: number | null,
  inference: Inference,
  { gateway, random, now }: Ranking
): readonly Candidate[] {
  if (candidates.length < 2) return candidates
  switch (strategy) {
    case 'priority':
      return candidates
    case 'least-cost':
      return cheapest(candidates, conversation, inference, gateway, random)
    case 'least-latency': {
      if (conversation !== null) return rendezvous(candidates, conversation)
      const time = now()
      return by(candidates, ({ state, weight }) => (weight === 0 ? last : state.load(time)), random)
    }
    case 'least-busy':
      if (conversation !== null) return rendezvous(candidates, conversation)
      return by(candidates, ({ state, weight }) => (weight === 0 ? last : (state.places.taken + 1) / weight), random)
    default:
      return conversation === null ? draw(candidates, random) : rendezvous(candidates, conversation)
  }
}

const last = Number.POSITIVE_INFINITY
/** After all prices, before those without a weight. */
const unknown = Number.MAX_VALUE
/** Output tokens of a call that nobody has limited, for comparing prices. */
const likelyOutput = 1_000

/** Cheapest first; a conversation stays where it is as long as nobody is cheaper. */
function cheapest(
  candidates: readonly Candidate[],
  conversation: number | null,
  { size, maxOutputTokens }: Inference,
  { pricing }: Gateway,
  random: () => number
): readonly Candidate[] {
  const output = maxOutputTokens ?? likelyOutput
  const tie = conversation === null ? random : ({ hash }: Candidate) => mixed(conversation ^ hash)
  return by(
    candidates,
    candidate => {
      if (candidate.weight === 0) return last
      return pricing?.estimate(candidate, size.estimate, output) ?? unknown
    },
    tie
  )
}

/** Lowest score first, then lowest tie. */
function by(
  candidates: readonly Candidate[],
  score: (candidate: Candidate) => number,
  tie: (candidate: Candidate) => number
): readonly Candidate[] {
  const scored = candidates.map(candidate => ({ candidate, score: score(candidate), tie: tie(candidate) }))
  scored.sort((one, other) => (one.score === other.score ? one.tie - other.tie : one.score < other.score ? -1 : 1))
  return scored.map(({ candidate }) => candidate)
}

/** All in the order of a weighted draw without replacement. */
function draw(candidates: readonly Candidate[], random: () => number): readonly Candidate[] {
  const order = candidates.slice()
  for (let at = 0; at < order.length - 1; at++) {
    const index = drawn(order, at, random())
    const candidate = order[index]!
    for (let later = index; later > at; later--) order[later] = order[later - 1]!
    order[at] = candidate
  }
  return order
}

/** Which of those from `from` on a number between 0 and 1 means. */
function drawn(candidates: readonly Candidate[], from: number, share: number): number {
  let sum = 0
  let weighted = from
  for (let index = from; index < candidates.length; index++) {
    const { weight } = candidates[index]!
    sum += weight
    // The last one that has a weight, should the sum have been rounded up past it.
    if (weight > 0) weighted = index
  }
  let point = share * sum
  for (let index = from; index < candidates.length; index++) {
    point -= candidates[index]!.weight
    if (point < 0) return index
  }
  return weighted
}

/**
 * Weighted rendezvous hashing: the same number gives the same order in every process, numbers are spread by weight, and a
 * target that goes or comes moves only its own share. (Schindelhauer and Schomaker, "Weighted distributed hash tables".)
 */
function rendezvous(candidates: readonly Candidate[], conversation: number): readonly Candidate[] {
  return by(
    candidates,
    ({ hash, weight }) => (weight === 0 ? last : -Math.log((mixed(conversation ^ hash) + 0.5) / 2 ** 32) / weight),
    () => 0
  )
}
