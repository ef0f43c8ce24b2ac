import { readFileSync } from 'node:fs'
import t from 'tap'
import { redacting } from '../../../../providers/faults.ts'
import {
  faultOf,
  toCompletion,
  toFinishReason,
  toUsage,
  wholeMessage
} from '../../../../providers/wires/anthropic/answer.ts'
import { inputOf, outputOf, usageOf } from '../../../../schemas/usage.ts'
import { message } from '../../claude.ts'

const fixture = (name: string) =>
  JSON.parse(readFileSync(new URL(`../../../fixtures/anthropic/${name}`, import.meta.url), 'utf8'))
const nothing = { jsonTool: null, keep() {} }
const redact = redacting(['sk-ant-secret-key-0001'], [])
const reply = (status: number, body: string, headers = {}) => ({
  status,
  headers,
  body: Buffer.from(body),
  reads: null
})

t.test('a message is a completion', async t => {
  const kept: unknown[] = []
  const said = fixture('message.json')
  const completion = toCompletion(said, 1_790_000_000, { ...nothing, keep: (...own) => kept.push(own) })
  const [thinking, redacted] = said.content
  t.strictSame(completion, {
    id: 'msg_01QDw6Fw4mnSbiZ2rVXB8JTn',
    object: 'chat.completion',
    created: 1_790_000_000,
    model: 'claude-sonnet-4-6',
    choices: [
      {
        index: 0,
        message: {
          role: 'assistant',
          content: 'I look it up in Zürich.',
          refusal: null,
          reasoning_content: 'Two cities, so two calls.',
          thinking_blocks: [thinking, redacted],
          tool_calls: [
            {
              id: 'toolu_01T1x1fJ34qAmk2tNTrN7Up6',
              type: 'function',
              function: { name: 'weather', arguments: '{"city":"Zürich","days":2}' }
            },
            { id: 'toolu_01NRLabsLyVHZPKxbKvkfSMn', type: 'function', function: { name: 'now', arguments: '{}' } }
          ]
        },
        logprobs: null,
        finish_reason: 'tool_calls'
      }
    ],
    usage: {
      prompt_tokens: 1547,
      completion_tokens: 90,
      total_tokens: 1637,
      prompt_tokens_details: {
        cached_tokens: 300,
        cache_write_tokens: 1200,
        cache_creation_token_details: { ephemeral_5m_input_tokens: 200, ephemeral_1h_input_tokens: 1000 }
      },
      completion_tokens_details: { reasoning_tokens: 62 }
    },
    service_tier: 'default'
  })
  t.same(kept, [
    [
      ['toolu_01T1x1fJ34qAmk2tNTrN7Up6', 'toolu_01NRLabsLyVHZPKxbKvkfSMn'],
      [thinking, redacted]
    ]
  ])
})

t.test('its usage falls into buckets that sum to what the vendor counted', async t => {
  const usage = usageOf(toUsage(fixture('message.json').usage))
  t.match(usage, {
    ...{ input: 47, cacheRead: 300, cacheWrite5m: 200, cacheWrite1h: 1000, output: 28, reasoning: 62 },
    ...{ source: 'reported', mismatch: false }
  })
  t.equal(inputOf(usage), 47 + 1200 + 300)
  t.equal(outputOf(usage), 90)
})

t.test('counts that are null or missing are none', async t => {
  const bare = {
    input_tokens: 3,
    output_tokens: 4,
    cache_creation_input_tokens: null,
    cache_read_input_tokens: null,
    cache_creation: null,
    output_tokens_details: null
  }
  const usage = usageOf(toUsage(bare))
  t.match(usage, { input: 3, output: 4, cacheRead: 0, cacheWrite5m: 0, reasoning: 0, mismatch: false })
  t.match(usageOf(toUsage({ input_tokens: 3, output_tokens: 4, cache_creation_input_tokens: 9 })), {
    input: 3,
    cacheWrite5m: 9
  })
})

t.test('a message without counts has no usage: nothing is not reported as zero', async t => {
  for (const usage of [undefined, null, {}, { input_tokens: null, service_tier: 'standard' }]) {
    t.equal(toCompletion({ ...message([]), usage }, 0, nothing).usage, null)
  }
})

t.test('what a compaction took is counted, an advisor of another price is not', async t => {
  const { usage, choices } = toCompletion(fixture('compaction.json'), 0, nothing)
  t.match(usage, { prompt_tokens: 50_300, completion_tokens: 820 })
  t.equal(choices[0]?.message.content, 'Sunny.')
  const iterations = [
    { type: 'message', input_tokens: 10, output_tokens: 0 },
    { type: 'fallback_message', input_tokens: 12, output_tokens: 30 }
  ]
  t.match(toUsage({ input_tokens: 12, output_tokens: 30, iterations }), { prompt_tokens: 12, completion_tokens: 30 })
})

t.test('a refusal says why', async t => {
  const { choices } = toCompletion(fixture('refusal.json'), 0, nothing)
  t.match(choices[0], {
    finish_reason: 'content_filter',
    message: { content: null, refusal: 'This request could enable cyber harm.' }
  })
})

t.test('reasons to stop', async t => {
  for (const [reason, expected] of Object.entries({
    end_turn: 'stop',
    stop_sequence: 'stop',
    max_tokens: 'length',
    model_context_window_exceeded: 'length',
    tool_use: 'tool_calls',
    refusal: 'content_filter',
    pause_turn: 'stop',
    of_tomorrow: 'stop'
  }))
    t.equal(toFinishReason(reason, true), expected, reason)
  t.equal(toFinishReason(null, false), 'stop')
})

t.test('the call of a made-up tool is the content', async t => {
  const said = message([
    { type: 'text', text: 'Here it is:' },
    { type: 'tool_use', id: 'a', name: 'json_answer', input: '{"a":1}' },
    { type: 'tool_use', id: 'b', name: 'json_answer', input: '{"a":2}' }
  ])
  const expected = { ...nothing, jsonTool: 'json_answer' }
  t.match(toCompletion(said, 0, expected).choices[0], {
    finish_reason: 'stop',
    message: { content: '{"a":1}', tool_calls: undefined }
  })
  const plain = message([{ type: 'text', text: '{"a":3}' }])
  t.match(toCompletion(plain, 0, expected).choices[0], { finish_reason: 'stop', message: { content: '{"a":3}' } })
  const other = message([{ type: 'tool_use', id: 'c', name: 'weather', input: '' }])
  t.match(toCompletion(other, 0, expected).choices[0], {
    finish_reason: 'tool_calls',
    message: { content: null, tool_calls: [{ id: 'c' }] }
  })
})

t.test('blocks that are odd are passed over', async t => {
  const content = [
    null,
    'x',
    { type: 'of_tomorrow' },
    { type: 'text' },
    { type: 'thinking', thinking: 'Hm.', signature: '' },
    { type: 'tool_use', id: 'a', name: 'f' }
  ]
  const { choices } = toCompletion({ ...message([]), content }, 0, nothing)
  t.strictSame(choices[0]?.message, {
    role: 'assistant',
    content: null,
    refusal: null,
    reasoning_content: 'Hm.',
    tool_calls: [{ id: 'a', type: 'function', function: { name: 'f', arguments: '{}' } }]
  })
})

t.test('what is no message is a fault', async t => {
  for (const body of ['', '{"content":[', '[]', '"x"', '{}', '{"content":"x"}'])
    t.throws(
      () => wholeMessage(reply(200, body), redact, nothing),
      { statusCode: 502, code: 'GATEWAY_UPSTREAM_ERROR' },
      body
    )
  const compressed = reply(200, JSON.stringify(message([])), { 'content-encoding': 'gzip' })
  t.throws(() => wholeMessage(compressed, redact, nothing), { message: /compressed/, statusCode: 502 })
})

t.test('an error inside a 200 is an error', async t => {
  const body = { type: 'error', error: { type: 'overloaded_error', message: 'Overloaded' } }
  t.throws(() => wholeMessage(reply(200, JSON.stringify(body)), redact, nothing), {
    message: /overloaded/,
    statusCode: 503
  })
})

// Failures

const [unanswered, long, credit, spending, rate, overloaded, large, late] = fixture('errors.json')
for (const [name, [status, body], expected] of [
  [
    'a refused request keeps its words',
    unanswered,
    { statusCode: 400, blame: 'request', message: unanswered[1].error.message, wire: null }
  ],
  [
    'a prompt that is too long has the code of OpenAI',
    long,
    { statusCode: 400, blame: 'request', wire: 'context_length_exceeded' }
  ],
  ['an account without credit is the fault of the key', credit, { statusCode: 502, blame: 'key' }],
  ['a limit on spending is one too', spending, { statusCode: 502, blame: 'key' }],
  ['a limit on the rate passes', rate, { statusCode: 429, blame: 'limit', retryAfter: 7_000 }],
  [
    '529 is an overloaded provider',
    overloaded,
    { statusCode: 503, blame: 'provider', wire: 'upstream_overloaded', retryAfter: 7_000 }
  ],
  ['413 stays', large, { statusCode: 413, blame: 'request' }],
  ['504 is a provider that took too long', late, { statusCode: 504, blame: 'time' }]
] as const) {
  t.test(name, async t => {
    t.match(faultOf(status, body, { 'retry-after': '7' }, redact), expected)
  })
}

t.test('the words about our own account stay here, and keys in others are cut out', async t => {
  t.notMatch(faultOf(credit[0], credit[1], {}, redact).message, /credit/)
  const quoting = { error: { type: 'invalid_request_error', message: 'Not with sk-ant-secret-key-0001 here.' } }
  t.equal(faultOf(400, quoting, {}, redact).message, 'Not with [redacted] here.')
})

t.test('an error without a status has that of its type', async t => {
  for (const [type, status] of Object.entries({
    ...{ invalid_request_error: 400, authentication_error: 502, permission_error: 502, not_found_error: 502 },
    ...{ request_too_large: 413, rate_limit_error: 429, api_error: 502, timeout_error: 504, overloaded_error: 503 },
    ...{ of_tomorrow: 502 }
  }))
    t.equal(faultOf(0, { type: 'error', error: { type, message: 'x' } }, {}, redact).statusCode, status, type)
})

t.test("Google's errors are read as well, and those of anybody", async t => {
  const google = { error: { code: 400, message: 'Invalid model.', status: 'INVALID_ARGUMENT' } }
  for (const body of [google, [google]])
    t.match(faultOf(400, body, {}, redact), { statusCode: 400, message: 'Invalid model.', wire: null })
  for (const body of [undefined, 'x', {}, [], { error: 'x' }])
    t.match(faultOf(500, body, {}, redact), { statusCode: 502 })
})
