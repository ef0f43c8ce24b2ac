import type { ChatRequest, ContentPart, Message } from '../../schemas/chat.ts'
import type { Inference } from '../../schemas/gateway.ts'
import type { Abilities } from '../../schemas/provider.ts'
import type { Candidate, Step } from './plan.ts'

type Ability = Exclude<keyof Abilities, 'contextLength'>

/** What a request asks of a target. */
interface Demand {
  readonly ability: Ability
  /** The end of the sentence "It …". */
  readonly lack: string
  /** The field that asks for it. */
  readonly param: string
  readonly by: (request: ChatRequest) => boolean
}

const demands: readonly Demand[] = [
  { ability: 'streaming', lack: 'does not stream', param: 'stream', by: ({ stream }) => stream === true },
  {
    ability: 'tools',
    lack: 'takes no tools',
    param: 'tools',
    by: ({ tools, messages }) => Boolean(tools?.length) || messages.some(isOfTools)
  },
  { ability: 'images', lack: 'takes no images', param: 'messages', by: request => holds(request, 'image_url') },
  { ability: 'files', lack: 'takes no files', param: 'messages', by: request => holds(request, 'file') },
  {
    ability: 'audio',
    lack: 'knows no audio',
    param: 'messages',
    by: request => isGiven(request['audio']) || holds(request, 'input_audio')
  },
  {
    ability: 'jsonSchema',
    lack: 'answers by no JSON schema',
    param: 'response_format',
    by: ({ response_format: format }) => typeOf(format) === 'json_schema'
  },
  { ability: 'choices', lack: 'gives one choice only (n)', param: 'n', by: ({ n }) => typeof n === 'number' && n > 1 }
]
/** What an answer can do without: others are preferred, and where nobody has it the provider warns that it was left out. */
const wish: Demand = {
  ability: 'logprobs',
  lack: 'gives no logprobs',
  param: 'logprobs',
  by: request => request['logprobs'] === true
}

/** True for a target that some request could ask too much of. */
export function isLimited(abilities: Abilities): boolean {
  return abilities.contextLength !== undefined || [...demands, wish].some(({ ability }) => abilities[ability] === false)
}

/** A candidate that cannot do what is asked: the end of the sentence "It …". */
export interface Unable extends Pick<Demand, 'lack' | 'param'> {
  readonly candidate: Candidate
}

/** Those of a step that can do what is asked; the others are added to `unable`. */
export function able({ candidates, limited }: Step, inference: Inference, unable: Unable[]): readonly Candidate[] {
  if (!limited) return candidates
  const fit = candidates.filter(candidate => {
    const lack = candidate.limited ? lackOf(candidate.abilities, inference) : null
    if (lack !== null) unable.push({ candidate, ...lack })
    return lack === null
  })
  if (!wish.by(inference.request)) return fit
  const best = fit.filter(({ abilities }) => abilities[wish.ability] !== false)
  if (best.length === 0) return fit
  for (const candidate of fit) if (!best.includes(candidate)) unable.push({ candidate, ...wish })
  return best
}

/** In words: which target, and what it cannot do. */
export function inWords({ candidate, lack }: Unable): string {
  return `${candidate.provider.name}/${candidate.model} ${lack}`
}

/** Null: nothing is known against it. */
function lackOf(abilities: Abilities, inference: Inference): Pick<Demand, 'lack' | 'param'> | null {
  const { request, size } = inference
  for (const demand of demands) if (abilities[demand.ability] === false && demand.by(request)) return demand
  const room = abilities.contextLength
  // The estimate, not the bound: whoever may fit is asked, and says so if not.
  if (room !== undefined && size.estimate > room) return { lack: `has room for ${room} tokens only`, param: 'messages' }
  return null
}

/** The call of a tool, or what one answered. */
function isOfTools({ role, tool_calls: calls }: Message): boolean {
  return role === 'tool' || Boolean(calls?.length)
}

function holds({ messages }: ChatRequest, type: ContentPart['type']): boolean {
  return messages.some(({ content }) => Array.isArray(content) && content.some(part => part?.type === type))
}

function isGiven(value: unknown): boolean {
  return value !== undefined && value !== null
}

function typeOf(value: unknown): unknown {
  return typeof value === 'object' && value !== null && 'type' in value ? value.type : undefined
}
