import t from 'tap'
import { modelOf } from '../../../../providers/wires/anthropic/models.ts'
import { type RequestOptions, toMessages } from '../../../../providers/wires/anthropic/request.ts'
import { lowered } from '../../../../providers/wires/anthropic/schema.ts'
import type { ChatRequest } from '../../../../schemas/chat.ts'

const sonnet45 = 'claude-sonnet-4-5'
const sonnet46 = 'claude-sonnet-4-6'
const opus5 = 'claude-opus-5'
const opus55 = 'claude-opus-5-5'
const sonnet4 = 'claude-sonnet-4-20250514'
const haiku3 = 'claude-3-haiku-20240307'
const hi = [{ role: 'user' as const, content: 'Hi' }]

/** The body as it is sent, with its warnings. */
function sent(request: Partial<ChatRequest>, options: Partial<RequestOptions> = {}) {
  const own = { sampling: true, recollect: () => undefined, ...options }
  const { body, warnings, jsonTool } = toMessages({ model: sonnet45, messages: hi, ...request }, own)
  return { body: JSON.parse(JSON.stringify(body)), warnings, jsonTool }
}

const weather = { type: 'function', function: { name: 'weather', parameters: { type: 'object', properties: {} } } }
const clock = { type: 'function', function: { name: 'clock' } }
const tools = [weather, clock]
const named = (name: string) => ({ type: 'function', function: { name } })
const schema = (own: object, name = 'answer') => ({ type: 'json_schema', json_schema: { name, schema: own } })
const city = {
  type: 'object',
  properties: { city: { type: 'string' } },
  required: ['city'],
  additionalProperties: false
}

t.test('a plain request', async t => {
  t.strictSame(sent({ max_tokens: 100, stream: true }), {
    body: { max_tokens: 100, messages: [{ role: 'user', content: [{ type: 'text', text: 'Hi' }] }], stream: true },
    warnings: [],
    jsonTool: null
  })
})

t.test('the cap is the lower of what was asked for and what the model gives', async t => {
  t.equal(sent({ max_completion_tokens: 7, max_tokens: 9 }).body.max_tokens, 7)
  t.equal(sent({ max_tokens: 9 }).body.max_tokens, 9)
  for (const [model, most] of [
    [sonnet45, 64_000],
    [haiku3, 4_096],
    [opus55, 128_000],
    ['claude-opus-4-1@20250805', 32_000],
    ['claude-of-tomorrow', 128_000],
    ['MiniMax-M3', 8_192]
  ] as const) {
    t.equal(sent({ model }).body.max_tokens, most, model)
  }
  const { body, warnings } = sent({ model: haiku3, max_tokens: 5_000 })
  t.equal(body.max_tokens, 4_096)
  t.same(warnings, ['This model gives at most 4096 output tokens.'])
  const unknown = sent({ model: 'claude-of-tomorrow', max_tokens: 500_000 })
  t.equal(unknown.body.max_tokens, 500_000)
  t.strictSame(unknown.warnings, [])
})

t.test('models are known by their names, as every platform writes them', async t => {
  t.match(modelOf('claude-sonnet-4-20250514'), { schemas: false, thinking: 'budget', maxOutput: 64_000 })
  t.match(modelOf('claude-opus-4@20250514'), { schemas: false, maxOutput: 32_000, contextLength: 200_000 })
  t.match(modelOf('claude-sonnet-4-5@20250929'), { schemas: true, thinking: 'budget', sampling: true })
  t.match(modelOf('claude-3-7-sonnet-latest'), { thinking: 'budget', schemas: false })
  t.match(modelOf('claude-3-5-haiku-20241022'), { thinking: 'none', maxOutput: 8_192 })
  t.match(modelOf('claude-opus-4-8'), { sampling: false, budgets: true, contextLength: 1_000_000 })
  t.match(modelOf('claude-haiku-5-5'), { least: 'disabled', budgets: false, forced: true })
  t.match(modelOf('claude-fable-5'), { least: 'low', budgets: false, forced: true })
  t.match(modelOf('claude-fable-5-1'), { least: 'low', forced: false })
  t.match(modelOf('claude-sonnet-5-5-20261101'), { least: 'between_tools', forced: false })
  t.equal(modelOf('claude-sonnet-4-7').known, false)
  t.equal(modelOf('claude-sonnet-4-7').contextLength, undefined)
})

t.test('sampling parameters are clamped, and left out where they are refused', async t => {
  t.match(sent({ temperature: 0.3 }), { body: { temperature: 0.3 }, warnings: [] })
  t.match(sent({ temperature: 1.7 }), { body: { temperature: 1 }, warnings: [/at most 1/] })
  t.match(sent({ top_p: 0.9, top_k: 5 }).body, { top_p: 0.9, top_k: 5 })
  const both = sent({ temperature: 0.3, top_p: 0.9 })
  t.equal(both.body.top_p, undefined)
  t.match(both.warnings, [/: top_p\.$/])
  const asked = { temperature: 0.3, top_p: 0.9, top_k: 5 }
  for (const { body, warnings } of [
    sent({ ...asked, model: opus5 }),
    sent(asked, { sampling: false }),
    sent({ ...asked, reasoning_effort: 'low' })
  ]) {
    t.notOk('temperature' in body || 'top_p' in body || 'top_k' in body)
    t.match(warnings, [/: top_k, temperature, top_p\.$/])
  }
  t.strictSame(sent({ model: opus5, temperature: 1, top_p: 1 }).warnings, [], 'what it does anyway')
  t.match(sent({ temperature: 1, top_p: 1 }), { body: { temperature: 1, top_p: undefined }, warnings: [] })
})

t.test('stop sequences are a list of what can be said', async t => {
  t.same(sent({ stop: 'END' }).body.stop_sequences, ['END'])
  const { body, warnings } = sent({ stop: ['a', ' ', '', '\n\n', 'b '] })
  t.same(body.stop_sequences, ['a', 'b '])
  t.match(warnings, [/white space/])
  t.notOk('stop_sequences' in sent({ stop: ['\n'] }).body)
  t.notOk('stop_sequences' in sent({ stop: null }).body)
})

t.test('who asks, for which tier, and what to cache', async t => {
  t.same(sent({ user: 'u' }).body.metadata, { user_id: 'u' })
  t.same(sent({ user: 'u', safety_identifier: 's', metadata: { a: 'b' } }).body.metadata, { user_id: 's' })
  t.notOk('metadata' in sent({ metadata: { a: 'b' } }).body)
  for (const [tier, own] of Object.entries({
    auto: 'auto',
    priority: 'auto',
    default: 'standard_only',
    standard_only: 'standard_only'
  }))
    t.equal(sent({ service_tier: tier }).body.service_tier, own)
  t.match(sent({ service_tier: 'flex' }), { body: { service_tier: undefined }, warnings: [/tier/] })
  t.same(sent({ cache_control: { type: 'ephemeral' } }).body.cache_control, { type: 'ephemeral' })
})

t.test('what Claude has no place for is left out in one sentence', async t => {
  const asked = {
    ...{ seed: 1, logprobs: true, top_logprobs: 3, frequency_penalty: 0.5, presence_penalty: 0.5 },
    ...{ logit_bias: { 5: 1 }, prediction: { type: 'content' }, verbosity: 'low', 'odd\r\nname': 1 }
  }
  const { body, warnings } = sent(asked)
  t.same(Object.keys(body), ['max_tokens', 'messages'])
  t.strictSame(warnings, [
    'Left out, for Claude has no such parameter: seed, logprobs, top_logprobs, frequency_penalty, presence_penalty, logit_bias, prediction, verbosity.'
  ])
  const silent = {
    n: 1,
    logprobs: false,
    frequency_penalty: 0,
    seed: null,
    store: true,
    modalities: ['text'],
    prompt_cache_key: 'k'
  }
  t.strictSame(sent(silent).warnings, [])
  const many = Object.fromEntries(Array.from({ length: 50 }, (_, index) => [`field${index}`, 1]))
  t.match(sent(many).warnings, [/field9 and more\.$/])
})

for (const [name, asked, param] of [
  ['several choices', { n: 2 }, 'n'],
  ['audio', { audio: { voice: 'x', format: 'wav' }, modalities: ['text', 'audio'] }, 'audio'],
  ['audio as a modality', { modalities: ['audio'] }, 'modalities'],
  ['functions', { functions: [{ name: 'f' }] }, 'functions'],
  ['a choice of functions', { function_call: 'auto' }, 'function_call'],
  ['a custom tool', { tools: [{ type: 'custom', custom: { name: 'c' } }] }, 'tools[0].type'],
  ['a tool without its function', { tools: [clock, { type: 'function' }] }, 'tools[1].type'],
  ['a choice of a custom tool', { tools, tool_choice: { type: 'custom', custom: { name: 'c' } } }, 'tool_choice'],
  ['a choice of an unknown tool', { tools, tool_choice: named('other') }, 'tool_choice'],
  ['a choice in other words', { tools, tool_choice: 'sometimes' }, 'tool_choice'],
  ['a required tool without tools', { tool_choice: 'required' }, 'tool_choice'],
  ['an unknown effort', { reasoning_effort: 'huge' }, 'reasoning_effort'],
  ['an unknown format', { response_format: { type: 'grammar' } }, 'response_format'],
  [
    'a list as an answer',
    { model: haiku3, response_format: schema({ type: 'array' }) },
    'response_format.json_schema.schema'
  ]
] as Array<[string, Partial<ChatRequest>, string]>) {
  t.test(`${name} is refused by name`, async t => {
    t.throws(() => sent(asked), { message: /^\w.*\.$/, statusCode: 400, param })
  })
}

// Tools

t.test('tools cross with what they need', async t => {
  const cache_control = { type: 'ephemeral' }
  const parameters = { type: 'object', properties: { a: { type: 'string', minLength: 1 } }, required: ['a'] }
  const full = { name: 'full', description: 'Does it.', parameters, cache_control }
  const { body, warnings } = sent({
    tools: [
      { type: 'function', function: full },
      { ...clock, cache_control }
    ]
  })
  t.strictSame(body.tools, [
    {
      name: 'full',
      input_schema: { properties: parameters.properties, type: 'object', required: ['a'] },
      description: 'Does it.',
      cache_control
    },
    { name: 'clock', input_schema: { properties: {}, type: 'object' }, cache_control }
  ])
  t.notOk('tool_choice' in body)
  t.strictSame(warnings, [])
})

for (const [choice, own, left] of [
  [undefined, undefined, 2],
  ['auto', undefined, 2],
  ['none', { type: 'none' }, 2],
  ['required', { type: 'any' }, 2],
  [named('clock'), { type: 'tool', name: 'clock' }, 2],
  [{ type: 'allowed_tools', allowed_tools: { mode: 'auto', tools: [named('clock')] } }, undefined, 1],
  [{ type: 'allowed_tools', allowed_tools: { mode: 'required', tools: [named('clock')] } }, { type: 'any' }, 1]
] as const) {
  t.test(`tool_choice ${JSON.stringify(choice)}`, async t => {
    const { body, warnings } = sent({ tools, tool_choice: choice })
    t.strictSame(body.tool_choice, own)
    t.equal(body.tools.length, left)
    t.strictSame(warnings, [])
    const single = sent({ tools, tool_choice: choice, parallel_tool_calls: false }).body.tool_choice
    const expected = own?.type === 'none' ? own : { type: 'auto', ...own, disable_parallel_tool_use: true }
    t.strictSame(single, expected, 'one at a time')
  })
}

t.test('where no tool can be demanded, one may be called', async t => {
  const required = sent({ model: opus55, tools, tool_choice: 'required' })
  t.match(required.body, { tool_choice: { type: 'auto' }, tools: { length: 2 } })
  t.match(required.warnings, [/cannot be made to call a tool/])
  const one = sent({ model: opus55, tools, tool_choice: named('clock'), parallel_tool_calls: false })
  t.strictSame(one.body.tool_choice, { type: 'auto', disable_parallel_tool_use: true })
  t.match(one.body.tools, [{ name: 'clock' }])
  const thinking = sent({ tools, tool_choice: 'required', reasoning_effort: 'low' })
  t.match(thinking.body, { tool_choice: { type: 'auto' }, thinking: { type: 'enabled' } })
})

t.test('without tools there is no choice', async t => {
  for (const choice of ['auto', 'none'])
    t.notOk('tool_choice' in sent({ tool_choice: choice, parallel_tool_calls: false }).body)
  t.notOk('tools' in sent({ tools: [] }).body)
})

t.test('calls of a conversation without tools are known and not repeated', async t => {
  const call = { id: 'c', type: 'function', function: { name: 'old', arguments: '' } }
  const messages = [
    ...hi,
    { role: 'assistant' as const, tool_calls: [call] },
    { role: 'tool' as const, tool_call_id: 'c', content: 'r' }
  ]
  const { body } = sent({ messages })
  t.strictSame(body.tools, [{ name: 'old', input_schema: { type: 'object', properties: {} } }])
  t.strictSame(body.tool_choice, { type: 'none' })
})

t.test('strict tools are strict where they can be', async t => {
  const strict = (parameters: Record<string, unknown>) => [
    { type: 'function', function: { name: 'f', strict: true, parameters } }
  ]
  const bounded = { ...city, properties: { city: { type: 'string', maxLength: 9 } } }
  const { body, warnings } = sent({ tools: strict(bounded) })
  t.strictSame(body.tools[0], { name: 'f', input_schema: city, strict: true })
  t.strictSame(warnings, ['Keywords of a schema left out (tools): maxLength.'])
  const map = { type: 'object', additionalProperties: { type: 'string' } }
  for (const { body, warnings } of [sent({ tools: strict(map) }), sent({ model: sonnet4, tools: strict(city) })]) {
    t.notOk('strict' in body.tools[0])
    t.match(warnings, [/cannot be strict/])
  }
  t.match(sent({ tools: strict(map) }).body.tools[0].input_schema, map, 'and keeps its schema')
})

// Answers in JSON

t.test('a schema goes in the own way of models that have one', async t => {
  const own = {
    ...city,
    additionalProperties: undefined,
    properties: { city: { type: 'string', pattern: '^[A-Z]' } },
    minProperties: 1
  }
  const { body, warnings, jsonTool } = sent({ response_format: schema(own) })
  t.strictSame(body.output_config, { format: { type: 'json_schema', schema: city } })
  t.strictSame(warnings, ['Keywords of a schema left out (response_format): pattern, minProperties.'])
  t.equal(jsonTool, null)
})

t.test('other models are made to call a tool with it', async t => {
  const { body, warnings, jsonTool } = sent({ model: sonnet4, response_format: schema(city) })
  t.equal(jsonTool, 'json_answer')
  t.match(body.tools, [{ name: 'json_answer', input_schema: city }])
  t.strictSame(body.tool_choice, { type: 'tool', name: 'json_answer', disable_parallel_tool_use: true })
  t.strictSame(warnings, [])
  const among = sent({ model: sonnet4, response_format: schema(city), tools: [...tools, named('json_answer')] })
  t.equal(among.jsonTool, 'json_answer_')
  t.equal(among.body.tools.length, 4)
  t.strictSame(among.body.tool_choice, { type: 'any', disable_parallel_tool_use: true })
  const none = sent({ model: sonnet4, response_format: schema(city), tools, tool_choice: 'none' })
  t.match(none.body, { tools: { length: 1 }, tool_choice: { type: 'tool' } })
})

t.test('so are schemas that the own way would narrow or refuse', async t => {
  const tree = { type: 'object', properties: { next: { $ref: '#' } }, required: ['next'], additionalProperties: false }
  const map = { type: 'object', properties: { tags: { type: 'object', additionalProperties: { type: 'number' } } } }
  for (const own of [tree, map]) t.equal(sent({ response_format: schema(own) }).jsonTool, 'json_answer')
  const asked = sent({ model: opus55, response_format: schema(map) })
  t.strictSame(asked.body.tool_choice, { type: 'auto', disable_parallel_tool_use: true })
  t.match(asked.warnings, [/it was asked to/])
})

t.test('a budget of thoughts gives way to a tool that has to be called', async t => {
  const { body, warnings } = sent({ model: sonnet4, response_format: schema(city), reasoning_effort: 'high' })
  t.notOk('thinking' in body)
  t.match(body.tool_choice, { type: 'tool' })
  t.match(warnings, [/cannot think before an answer in JSON/])
})

t.test('json_object is asked for in words', async t => {
  for (const format of [{ type: 'json_object' }]) {
    const { body, warnings } = sent({
      messages: [{ role: 'system', content: 'Be kind.' }, ...hi],
      response_format: format
    })
    t.match(body.system, [{ text: 'Be kind.' }, { text: /one JSON object/ }])
    t.match(warnings, [/asked for in words/])
  }
  t.notOk('system' in sent({ response_format: { type: 'text' } }).body)
})

// Thinking

for (const [model, effort, expected] of [
  [sonnet45, 'none', {}],
  [sonnet45, 'minimal', { thinking: { type: 'enabled', budget_tokens: 1_024 } }],
  [sonnet45, 'medium', { thinking: { type: 'enabled', budget_tokens: 4_096 } }],
  [sonnet45, 'high', { thinking: { type: 'enabled', budget_tokens: 16_384 } }],
  [sonnet46, 'none', { thinking: { type: 'disabled' } }],
  [sonnet46, 'minimal', { thinking: { type: 'adaptive', display: 'summarized' }, output_config: { effort: 'low' } }],
  [sonnet46, 'high', { thinking: { type: 'adaptive', display: 'summarized' }, output_config: { effort: 'high' } }],
  [opus5, 'xhigh', { thinking: { type: 'adaptive', display: 'summarized' }, output_config: { effort: 'xhigh' } }],
  [opus5, 'none', { thinking: { type: 'disabled' } }]
] as const) {
  t.test(`${model} thinks with effort ${effort}`, async t => {
    const { body, warnings } = sent({ model, reasoning_effort: effort })
    const { thinking, output_config } = body
    t.strictSame(JSON.parse(JSON.stringify({ thinking, output_config })), expected)
    t.strictSame(warnings, [])
  })
}

for (const [model, effort, expected] of [
  [haiku3, 'high', {}],
  [sonnet46, 'xhigh', { thinking: { type: 'adaptive', display: 'summarized' }, output_config: { effort: 'high' } }],
  [opus55, 'none', { output_config: { effort: 'low' } }],
  ['claude-sonnet-5-5', 'none', { thinking: { type: 'between_tools' } }]
] as const) {
  t.test(`${model} cannot do ${effort}, and says so`, async t => {
    const { body, warnings } = sent({ model, reasoning_effort: effort })
    const { thinking, output_config } = body
    t.strictSame(JSON.parse(JSON.stringify({ thinking, output_config })), expected)
    t.equal(warnings.length, 1)
  })
}

t.test('a budget stays below the cap, and the cap stays', async t => {
  for (const cap of [1_025, 1_500, 3_000, 10_000, 40_000, 64_000]) {
    const { body } = sent({ max_tokens: cap, reasoning_effort: 'high' })
    t.equal(body.max_tokens, cap)
    t.ok(body.thinking.budget_tokens >= 1_024 && body.thinking.budget_tokens < cap, `${body.thinking.budget_tokens}`)
  }
  const { body, warnings } = sent({ max_tokens: 1_024, reasoning_effort: 'high' })
  t.notOk('thinking' in body)
  t.match(warnings, [/leaves no room/])
})

t.test("a client may say thinking in Anthropic's words", async t => {
  const enabled = (budget_tokens: number) => ({ type: 'enabled', budget_tokens })
  t.strictSame(sent({ thinking: enabled(2_000), reasoning_effort: 'high' }).body.thinking, enabled(2_000))
  t.strictSame(sent({ thinking: enabled(9_000), max_tokens: 2_000 }).body.thinking, enabled(1_999))
  t.notOk('thinking' in sent({ thinking: enabled(9_000), max_tokens: 1_000 }).body)
  t.strictSame(sent({ model: opus5, thinking: { type: 'adaptive', display: 'omitted' } }).body.thinking, {
    type: 'adaptive',
    display: 'omitted'
  })
  const own = sent({ model: opus55, thinking: enabled(2_000) })
  t.match(own.body.thinking, { type: 'adaptive' })
  t.match(own.warnings, [/decides itself/])
})

t.test('a loop of calls whose thoughts are lost goes on without a budget of them', async t => {
  const call = { id: 'c', type: 'function', function: { name: 'clock', arguments: '' } }
  const messages = [
    ...hi,
    { role: 'assistant' as const, tool_calls: [call] },
    { role: 'tool' as const, tool_call_id: 'c', content: 'r' }
  ]
  const lost = sent({ messages, tools, reasoning_effort: 'low' })
  t.notOk('thinking' in lost.body)
  t.match(lost.warnings, [/thoughts before its tool calls are missing/])
  const recollect = () => [{ type: 'thinking' as const, thinking: 'Hm.', signature: 's' }]
  t.match(sent({ messages, tools, reasoning_effort: 'low' }, { recollect }).body.thinking, { type: 'enabled' })
  t.match(sent({ model: sonnet46, messages, tools, reasoning_effort: 'low' }).body.thinking, { type: 'adaptive' })
})

// Schemas

t.test('a schema is closed, and loses what the vendor does not compile', async t => {
  const { schema, dropped, exact } = lowered(
    {
      $schema: 'https://json-schema.org/draft/2020-12/schema',
      type: 'object',
      properties: {
        at: { type: 'string', format: 'date-time', description: 'When' },
        odd: { type: 'string', format: 'phone' },
        list: { type: 'array', items: { type: 'number', minimum: 0 }, minItems: 1 },
        many: { type: 'array', items: { $ref: '#/$defs/leaf', description: 'gone' }, minItems: 2 },
        one: { oneOf: [{ type: 'object', properties: { pattern: { const: 1 } } }, { type: 'null' }] },
        maxLength: { type: ['object', 'null'], properties: {} }
      },
      required: ['at', 'odd', 'list', 'many', 'one', 'maxLength'],
      $defs: { leaf: { enum: ['a', 'b'] } }
    },
    'x'
  )
  t.strictSame(schema, {
    type: 'object',
    properties: {
      at: { type: 'string', format: 'date-time', description: 'When' },
      odd: { type: 'string' },
      list: { type: 'array', items: { type: 'number' }, minItems: 1 },
      many: { type: 'array', items: { $ref: '#/$defs/leaf' } },
      one: {
        anyOf: [
          { type: 'object', properties: { pattern: { const: 1 } }, additionalProperties: false },
          { type: 'null' }
        ]
      },
      maxLength: { type: ['object', 'null'], properties: {}, additionalProperties: false }
    },
    required: ['at', 'odd', 'list', 'many', 'one', 'maxLength'],
    $defs: { leaf: { enum: ['a', 'b'] } },
    additionalProperties: false
  })
  t.same([...dropped], ['format', 'minimum', 'minItems'])
  t.equal(exact, true)
})

t.test('a schema that would be narrowed, or compiles for too long, is not exact', async t => {
  const exact = (schema: object) => lowered({ ...schema }, 'x').exact
  const properties = (count: number) =>
    Object.fromEntries(Array.from({ length: count }, (_, index) => [`p${index}`, {}]))
  t.ok(exact({ type: 'object', properties: properties(10) }))
  t.notOk(exact({ type: 'object', properties: properties(11) }))
  t.ok(exact({ type: 'object', properties: properties(11), required: Object.keys(properties(11)) }))
  t.notOk(exact({ type: 'object' }))
  t.ok(exact({ type: 'object', additionalProperties: false }))
  t.notOk(exact({ type: 'object', properties: {}, additionalProperties: true }))
  t.notOk(exact({ type: 'object', properties: {}, patternProperties: { x: {} } }))
  const defs = (target: string) => ({
    type: 'object',
    properties: { a: { $ref: '#/$defs/a' } },
    $defs: { a: { anyOf: [{ $ref: target }] }, 'b/c': { type: 'null' } }
  })
  t.notOk(exact(defs('#/$defs/a')))
  t.ok(exact(defs('#/$defs/b~1c')))
  t.ok(exact({ enum: [{ $ref: '#' }] }))
})

t.test('a schema without a bottom is refused', async t => {
  let deep: object = {}
  for (let depth = 0; depth < 100_000; depth++) deep = { items: deep }
  t.throws(() => sent({ response_format: schema(deep) }), {
    message: /64 levels/,
    statusCode: 400,
    param: 'response_format.json_schema.schema'
  })
})
