import { type Static, Type } from '@sinclair/typebox'
import { Count, Credential, Flag, modelName, tenantName, Usd, Words } from './atoms.ts'
import { Timeout } from './duration.ts'
import { closed, type Filled, named, oneOf, preset } from './shape.ts'

// `models` and `tenants` of the configuration.

/** An amount that can be counted exactly in nano-USD. */
export const Budget = Type.Number({ minimum: 0, maximum: 9_000_000 })

const extras = {
  cacheRead: Type.Optional(Usd),
  cacheWrite: Type.Optional(Usd),
  cacheWrite1h: Type.Optional(Usd),
  reasoning: Type.Optional(Usd),
  audioInput: Type.Optional(Usd),
  audioOutput: Type.Optional(Usd)
}

/** USD per million tokens, `request` USD per call. What is absent costs what its plain kind costs. */
export const Price = closed({
  input: Usd,
  output: Usd,
  ...extras,
  request: Type.Optional(Usd),
  /** Prices of a call with more than `above` input tokens, cached ones counted; all its tokens cost them. */
  tiers: Type.Optional(
    Type.Array(closed({ above: Count, input: Type.Optional(Usd), output: Type.Optional(Usd), ...extras }))
  )
})
export type Price = Static<typeof Price>

const TargetOptions = closed({
  provider: Words,
  /** The provider's own name of the model. */
  model: Words,
  weight: preset(Usd, 1),
  /** Absent: the built-in table. */
  price: Type.Optional(Price),
  /** What it can do, where the provider does not know it: a request that asks for what is `false` here goes elsewhere. */
  abilities: preset(
    closed({
      streaming: Type.Optional(Flag),
      tools: Type.Optional(Flag),
      images: Type.Optional(Flag),
      files: Type.Optional(Flag),
      audio: Type.Optional(Flag),
      jsonSchema: Type.Optional(Flag),
      choices: Type.Optional(Flag),
      logprobs: Type.Optional(Flag),
      contextLength: Type.Optional(Count)
    }),
    {}
  ),
  /** The most calls at a time; absent: as many as come. */
  concurrency: Type.Optional(Count),
  /** Calls that may wait for one of these, and for how long. */
  queue: preset(closed({ size: preset(Type.Integer({ minimum: 0 }), 100), timeout: preset(Timeout, '10s') }), {})
})

const TimeoutOptions = closed({
  connect: preset(Timeout, '5s'),
  headers: preset(Timeout, '60s'),
  firstToken: preset(Timeout, '60s'),
  idle: preset(Timeout, '30s'),
  total: preset(Timeout, '10m')
})

export const strategies = ['weighted', 'priority', 'least-latency', 'least-busy', 'least-cost'] as const
export type Strategy = (typeof strategies)[number]

export const ModelOptions = closed({
  strategy: preset(oneOf(...strategies), 'weighted'),
  targets: Type.Array(TargetOptions, { minItems: 1 }),
  /** Aliases that are asked, in this order, once no target of this one has answered. */
  fallbacks: preset(Type.Array(Words), []),
  /** Repeats on the same target; moving on to the next one is always allowed. */
  retries: preset(Type.Integer({ minimum: 0, maximum: 10 }), 2),
  /** Asks a second target when the first is silent for `after`, or longer than 19 of 20 of its calls. */
  hedge: preset(
    Type.Union([Type.Literal(false), closed({ after: Type.Optional(Timeout) })], { allowed: 'false or an object' }),
    false
  ),
  timeouts: preset(TimeoutOptions, {}),
  maxOutputTokens: Type.Optional(Count),
  /** Bound used for holds, also for a page of a PDF. */
  inputTokensPerImage: preset(Count, 1600)
})
export const Models = named(modelName, 'a name without spaces, at most 256', ModelOptions)
export const Tasks = named(modelName, 'a name without spaces, at most 256', Words)

/** How all models are routed. */
export const Routing = closed({
  /** Names of the form `provider/model` work beside those of `models`. */
  passThrough: preset(Flag, false),
  /** From its second turn on a conversation stays with its target and key, for the provider's prompt cache. */
  sticky: preset(Flag, true),
  /** How long a provider's own list of models is kept. */
  discovery: preset(Timeout, '5m'),
  /** A target is left alone after so many failures one after another, at first for `openFor`, doubled while it fails. */
  breaker: preset(
    closed({ failures: preset(Count, 5), openFor: preset(Timeout, '1s'), mostOpenFor: preset(Timeout, '60s') }),
    {}
  ),
  /** Asks targets that are left alone for their health, so that no call has to try them. */
  probes: preset(
    Type.Union([Type.Literal(false), closed({ interval: preset(Timeout, '10s'), timeout: preset(Timeout, '5s') })], {
      allowed: 'false or an object'
    }),
    false
  )
})

/** One entry of `models` as it is written, and with its defaults. */
export type ModelOptions = Static<typeof ModelOptions>
export type ModelSettings = Filled<typeof ModelOptions>

export const TenantOptions = closed({
  /** Beside the keys that are made over HTTP. */
  keys: preset(Type.Array(Credential, { hidden: true }), []),
  /** false: its calls are refused. */
  active: preset(Flag, true),
  /** `*` stands for any characters. Absent: every model. */
  allowModels: Type.Optional(Type.Array(Words)),
  /** false: no limit. */
  budget: preset(
    Type.Union(
      [
        Type.Literal(false),
        closed({ usd: preset(Budget, 5), period: preset(oneOf('total', 'hour', 'day', 'week', 'month'), 'total') })
      ],
      { allowed: 'false or an object' }
    ),
    {}
  ),
  /** What one request may be likely to cost; false: no limit. */
  maxRequestUsd: preset(Type.Union([Type.Literal(false), Budget], { allowed: 'false or an amount in USD' }), 0.05),
  maxOutputTokens: preset(Count, 1000),
  requestsPerMinute: Type.Optional(Count),
  tokensPerMinute: Type.Optional(Count),
  concurrency: Type.Optional(Count),
  /** An anonymous caller may name this tenant. */
  open: preset(Flag, false),
  /** Yours; shown with the tenant. */
  metadata: preset(named('^', 'any name', Type.Unknown()), {})
})
export const Tenants = named(tenantName, 'letters, digits, ".", "_", ":", "@" and "-", at most 128', TenantOptions)

/** One entry of `tenants` as it is written, and with its defaults. */
export type TenantOptions = Static<typeof TenantOptions>
export type TenantSettings = Filled<typeof TenantOptions>
