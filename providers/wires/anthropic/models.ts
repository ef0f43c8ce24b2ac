import type { Abilities } from '../../../schemas/provider.ts'

/** What differs between models, as far as a request has to know. */
export interface Model {
  /** The most tokens of an answer, thoughts included. */
  readonly maxOutput: number
  /** False: `maxOutput` is only what is asked for where nobody says how much. */
  readonly known: boolean
  readonly contextLength?: number
  /** Takes `temperature`, `top_p` and `top_k`. */
  readonly sampling: boolean
  /** Takes `output_config.format` and strict tools. */
  readonly schemas: boolean
  /** How `reasoning_effort` is said: not at all, as a budget of tokens, as an effort. */
  readonly thinking: 'none' | 'budget' | 'effort'
  /** Takes `thinking` of the type `enabled`. */
  readonly budgets: boolean
  /** The least that it thinks: nothing, between its tool calls, or always with low effort. */
  readonly least: 'disabled' | 'between_tools' | 'low'
  /** Knows the effort `xhigh`. */
  readonly xhigh: boolean
  /** Can be made to call a tool. */
  readonly forced: boolean
}

const claude3: Model = {
  maxOutput: 4_096,
  known: true,
  contextLength: 200_000,
  sampling: true,
  schemas: false,
  thinking: 'none',
  budgets: false,
  least: 'disabled',
  xhigh: false,
  forced: true
}
const claude4: Model = { ...claude3, maxOutput: 64_000, thinking: 'budget', budgets: true }
const claude46: Model = {
  ...claude4,
  maxOutput: 128_000,
  contextLength: 1_000_000,
  schemas: true,
  thinking: 'effort'
}
const claude5: Model = { ...claude46, sampling: false, xhigh: true }
const efforts: Model = { ...claude5, budgets: false }

/**
 * Newer ones first. Limits and refusals as in the catalogue of @ai-sdk/anthropic 4.0.105, context lengths as in
 * @pydantic/genai-prices 0.1.8.
 */
const models: ReadonlyArray<readonly [pattern: RegExp, model: Model]> = [
  [/claude-sonnet-5-5/, { ...efforts, least: 'between_tools', forced: false }],
  [/claude-(?:opus-5-5|fable-5-[12])/, { ...efforts, least: 'low', forced: false }],
  [/claude-haiku-5-5/, efforts],
  [/claude-fable-5/, { ...efforts, least: 'low' }],
  [/claude-(?:opus-5|sonnet-5|opus-4-[78])/, claude5],
  [/claude-(?:sonnet|opus)-4-6/, claude46],
  [/claude-(?:sonnet|opus|haiku)-4-5/, { ...claude4, schemas: true }],
  [/claude-opus-4-1/, { ...claude4, maxOutput: 32_000, schemas: true }],
  [/claude-sonnet-4(?:-0|[-@]20\d{6})?$/, claude4],
  [/claude-opus-4(?:-0|[-@]20\d{6})?$/, { ...claude4, maxOutput: 32_000 }],
  [/claude-3-7/, claude4],
  [/claude-3-5/, { ...claude3, maxOutput: 8_192 }],
  [/claude-(?:3(?:$|[-.])|instant|v?2(?:$|[-.:]))/, claude3],
  [/claude-/, { ...claude5, known: false, contextLength: undefined }]
]
/** What speaks this wire and is no Claude. */
const stranger: Model = { ...claude4, maxOutput: 8_192, known: false, contextLength: undefined }

/** What is known of a model by its name: as Anthropic writes it, or Vertex. */
export function modelOf(name: string): Model {
  return models.find(([pattern]) => pattern.test(name))?.[1] ?? stranger
}

/** What all models can do by this wire. */
export const can: Abilities = {
  streaming: true,
  tools: true,
  images: true,
  files: true,
  jsonSchema: true,
  audio: false,
  choices: false,
  logprobs: false
}

/** The same with what is known of one of them by its name. */
export function abilitiesOf(model: string): Abilities {
  return { ...can, contextLength: modelOf(model).contextLength }
}
