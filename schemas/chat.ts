import { type Static, Type } from '@sinclair/typebox'

// The canonical wire is OpenAI's. Requests are checked tightly for what we use and keep every other field; null means unset.

/** Any other field of the wire; it passes through untouched. */
type Open = { [field: string]: unknown }

const nullable = <T extends Parameters<typeof Type.Union>[0][number]>(schema: T) => Type.Union([schema, Type.Null()])
const Text = Type.String()

export const ToolCall = Type.Object({
  id: Type.Optional(Text),
  type: Type.Optional(Text),
  function: Type.Optional(Type.Object({ name: Text, arguments: Type.Optional(Text) }))
})
export type ToolCall = Static<typeof ToolCall> & Open

const Part = Type.Object({
  type: Text,
  text: Type.Optional(Text),
  image_url: Type.Optional(
    Type.Unsafe<{ url: string; detail?: string } | string>({
      type: ['object', 'string'],
      required: ['url'],
      properties: { url: { type: 'string' } }
    })
  )
})
export type ContentPart = Static<typeof Part> & Open

const Content = Type.Unsafe<string | ContentPart[] | null>({
  type: ['string', 'array', 'null'],
  items: Part
})

/** One message. Roles decide what is needed: a tool's answer names its call, everybody but the assistant says something. */
export const Message = Type.Unsafe<{
  role: 'developer' | 'system' | 'user' | 'assistant' | 'tool' | 'function'
  content?: string | ContentPart[] | null
  name?: string | null
  tool_calls?: ToolCall[] | null
  tool_call_id?: string
}>({
  type: 'object',
  required: ['role'],
  properties: {
    role: { type: 'string', enum: ['developer', 'system', 'user', 'assistant', 'tool', 'function'] },
    content: Content,
    name: { type: ['string', 'null'] },
    tool_calls: { type: ['array', 'null'], items: ToolCall },
    tool_call_id: { type: 'string' }
  },
  allOf: [
    {
      if: { required: ['role'], properties: { role: { enum: ['developer', 'system', 'user', 'tool'] } } },
      // biome-ignore lint/suspicious/noThenProperty: a keyword of JSON Schema
      then: { required: ['content'], properties: { content: { type: ['string', 'array'] } } }
    },
    {
      if: { required: ['role'], properties: { role: { const: 'tool' } } },
      // biome-ignore lint/suspicious/noThenProperty: a keyword of JSON Schema
      then: { required: ['tool_call_id'] }
    }
  ]
})
export type Message = Static<typeof Message> & Open

export const Tool = Type.Object({
  type: Text,
  function: Type.Optional(
    Type.Object({
      name: Type.String({ minLength: 1, maxLength: 128 }),
      description: Type.Optional(nullable(Text)),
      parameters: Type.Optional(Type.Unsafe<Open | null>({ type: ['object', 'null'] }))
    })
  )
})
export type Tool = Static<typeof Tool> & Open

const positive = Type.Optional(Type.Unsafe<number | null>({ type: ['integer', 'null'], minimum: 1 }))
const between = (minimum: number, maximum: number) =>
  Type.Optional(Type.Unsafe<number | null>({ type: ['number', 'null'], minimum, maximum }))

/** POST /v1/chat/completions. `tenant`, `task`, `response_schema` and `coerce` are ours and never go upstream. */
export const ChatRequest = Type.Object({
  model: Type.Optional(Type.Unsafe<string | null>({ type: ['string', 'null'], minLength: 1, maxLength: 256 })),
  messages: Type.Array(Message, { minItems: 1 }),
  stream: Type.Optional(Type.Unsafe<boolean | null>({ type: ['boolean', 'null'] })),
  stream_options: Type.Optional(
    Type.Unsafe<({ include_usage?: boolean | null } & Open) | null>({
      type: ['object', 'null'],
      properties: { include_usage: { type: ['boolean', 'null'] } }
    })
  ),
  max_tokens: positive,
  max_completion_tokens: positive,
  temperature: between(0, 2),
  top_p: between(0, 1),
  frequency_penalty: between(-2, 2),
  presence_penalty: between(-2, 2),
  n: Type.Optional(Type.Unsafe<number | null>({ type: ['integer', 'null'], minimum: 1, maximum: 128 })),
  stop: Type.Optional(
    Type.Unsafe<string | string[] | null>({ type: ['string', 'array', 'null'], items: { type: 'string' } })
  ),
  tools: Type.Optional(Type.Unsafe<Tool[] | null>({ type: ['array', 'null'], items: Tool })),
  metadata: Type.Optional(Type.Unsafe<Open | null>({ type: ['object', 'null'] })),
  user: Type.Optional(Type.Unsafe<string | null>({ type: ['string', 'null'] })),
  tenant: Type.Optional(Type.Unsafe<string | null>({ type: ['string', 'null'], minLength: 1, maxLength: 128 })),
  task: Type.Optional(Type.Unsafe<string | null>({ type: ['string', 'null'], minLength: 1, maxLength: 128 })),
  response_schema: Type.Optional(Type.Unsafe<Open | boolean | null>({ type: ['object', 'boolean', 'null'] })),
  coerce: Type.Optional(Type.Unsafe<boolean | null>({ type: ['boolean', 'null'] }))
})
export type ChatRequest = Omit<Static<typeof ChatRequest>, 'messages'> & { messages: Message[] } & Open

/** The fields of a request that are the gateway's own. */
export const ownFields = ['tenant', 'task', 'response_schema', 'coerce'] as const

/** Token counts as OpenAI reports them; the details are parts of the totals. */
export type CompletionUsage = {
  prompt_tokens: number
  completion_tokens: number
  total_tokens: number
  prompt_tokens_details?: ({ cached_tokens?: number; cache_write_tokens?: number; audio_tokens?: number } & Open) | null
  completion_tokens_details?: ({ reasoning_tokens?: number; audio_tokens?: number } & Open) | null
} & Open

export type FinishReason = 'stop' | 'length' | 'tool_calls' | 'content_filter' | 'function_call'

/** A whole answer. */
export type ChatCompletion = {
  id: string
  object: 'chat.completion'
  created: number
  model: string
  choices: Array<
    {
      index: number
      finish_reason: FinishReason
      message: {
        role: 'assistant'
        content: string | null
        refusal?: string | null
        tool_calls?: ToolCall[]
      } & Open
    } & Open
  >
  usage?: CompletionUsage | null
} & Open

/** The part of a message that one chunk brings. */
export type Delta = {
  role?: 'assistant'
  content?: string | null
  refusal?: string | null
  tool_calls?: Array<
    { index: number; id?: string; type?: string; function?: { name?: string; arguments?: string } } & Open
  >
} & Open

/** One event of a streamed answer. */
export type ChatCompletionChunk = {
  id: string
  object: 'chat.completion.chunk'
  created: number
  model: string
  choices: Array<{ index: number; delta: Delta; finish_reason?: string | null } & Open>
  usage?: CompletionUsage | null
} & Open
