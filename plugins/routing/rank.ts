import type { Message } from '../../schemas/chat.ts'
import type { Gateway, Inference } from '../../schemas/gateway.ts'
import { lackOf } from './abilities.ts'
import { type Candidate, hashOf, mixed, type Step } from './plan.ts'

/** What ranking needs besides the call. */
export interface Ranking {
  readonly gateway: Gateway
  /** 0 <= n < 1 */
  readonly random: () => number
  /** Milliseconds since 1970. */
  readonly now: () => number
  readonly sticky: boolean
}

/** In which order the candidates of a step are asked, best first. */
export interface Order {
  readonly candidates: readonly Candidate[]
  /** A number that is the same for all turns of a conversation; null for its first. Keys are chosen by it too. */
  readonly seed: number | null
}

/** @param refuse is told of each candidate that cannot do what is asked, and what it lacks */
export function rank(
  step: Step,
  inference: Inference,
  ranking: Ranking,
  refuse: (candidate: Candidate, lack: string) => void
): Order {
  let { candidates } = step
  if (step.limited) candidates = able(candidates, inference, refuse)
  const seed = step.choice && ranking.sticky ? seedOf(step.alias, inference) : null
  return { candidates: candidates.length < 2 ? candidates : ordered(candidates, step, inference, seed, ranking), seed }
}

function able(
  candidates: readonly Candidate[],
  inference: Inference,
  refuse: (candidate: Candidate, lack: string) => void
): readonly Candidate[] {
  return candidates.filter(candidate => {
    const lack = candidate.limited ? lackOf(candidate.abilities, inference) : null
    if (lack !== null) refuse(candidate, lack)
    return lack === null
  })
}

function ordered(
  candidates: readonly Candidate[],
  { strategy }: Step,
  inference: Inference,
  seed: number | null,
  { gateway, random, now }: Ranking
): readonly Candidate[] {
  switch (strategy) {
    case 'priority':
      return candidates
    case 'least-cost': {
      const { pricing } = gateway
      const { size, maxOutputTokens } = inference
      return by(candidates, random, candidate => {
        return pricing?.estimate(candidate, size.estimate, maxOutputTokens ?? likelyOutput) ?? Number.MAX_VALUE
      })
    }
    case 'least-latency': {
      if (seed !== null) return rendezvous(candidates, seed)
      const time = now()
      return by(candidates, random, ({ state }) => state.load(time))
    }
    case 'least-busy':
      if (seed !== null) return rendezvous(candidates, seed)
      return by(candidates, random, ({ state, weight }) => (state.inFlight + 1) / (weight || Number.MIN_VALUE))
    default:
      return seed === null ? draw(candidates, random) : rendezvous(candidates, seed)
  }
}

/** Output tokens of a call that nobody has limited, for comparing prices. */
const likelyOutput = 1_000

/** Lowest first; equals in any order. */
function by(
  candidates: readonly Candidate[],
  random: () => number,
  score: (candidate: Candidate) => number
): readonly Candidate[] {
  const scored = candidates.map(candidate => ({ candidate, score: score(candidate), tie: random() }))
  scored.sort((one, other) => one.score - other.score || one.tie - other.tie)
  return scored.map(({ candidate }) => candidate)
}

/** All in the order of a weighted draw without replacement. A weight of 0 is tried last. */
function draw(candidates: readonly Candidate[], random: () => number): readonly Candidate[] {
  const left = [...candidates]
  const order: Candidate[] = []
  while (left.length > 1) {
    let sum = 0
    for (const { weight } of left) sum += weight
    let point = random() * sum
    let index = left.findIndex(({ weight }) => {
      point -= weight
      return point < 0
    })
    // No weight is left, or the sum was rounded up past the last one.
    if (index === -1) index = left.findLastIndex(({ weight }) => weight > 0)
    if (index === -1) index = 0
    order.push(...left.splice(index, 1))
  }
  order.push(...left)
  return order
}

/**
 * Weighted rendezvous hashing: the same seed gives the same order in every process, seeds are spread by weight, and a
 * target that goes or comes moves only its own share. (Schindelhauer and Schomaker, "Weighted distributed hash tables".)
 */
function rendezvous(candidates: readonly Candidate[], seed: number): readonly Candidate[] {
  return by(candidates, zero, ({ hash, weight }) => {
    const uniform = (mixed(seed ^ hash) + 0.5) / 2 ** 32
    return -Math.log(uniform) / (weight || Number.MIN_VALUE)
  })
}

const zero = () => 0

/** Characters of a conversation's beginning that tell it from others: enough, since a provider caches whole prefixes. */
const told = 1_024

/**
 * From its second turn on a conversation stays where it is, so that the provider's prompt cache knows it: what stands
 * before the first answer is the same in all its turns. Or as `prompt_cache_key` says.
 */
function seedOf(alias: string, { request, principal }: Inference): number | null {
  const key = request['prompt_cache_key']
  if (typeof key === 'string' && key !== '') return hashOf(`${principal.tenant} ${alias} k${key}`)
  const { messages } = request
  const answer = messages.findIndex(({ role }) => role === 'assistant')
  if (answer < 1) return null
  const first = messages[0]!
  const last = messages[answer - 1]!
  return hashOf(`${principal.tenant} ${alias} ${answer} ${beginning(first)} ${beginning(last)}`)
}

function beginning({ content }: Message): string {
  if (typeof content === 'string') return `${content.length} ${content.slice(0, told)}`
  const text = content?.find(part => typeof part.text === 'string')?.text ?? ''
  return `${content?.length ?? 0} ${text.slice(0, told)}`
}
