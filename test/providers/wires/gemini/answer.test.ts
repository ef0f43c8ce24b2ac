import { readFileSync } from 'node:fs'
import t from 'tap'
import {
  completionOf,
  googleFault,
  type Origin,
  usageFrom,
  wholeAnswer
} from '../../../../providers/wires/gemini/answer.ts'
import type { ChatCompletion } from '../../../../schemas/chat.ts'
import { type GatewayError, isGatewayError } from '../../../../schemas/errors.ts'
import { inputOf, outputOf, usageOf } from '../../../../schemas/usage.ts'

const kept = new Map<string, string>()
const origin: Origin = {
  model: 'asked-model',
  id: 'req_1',
  redact: text => text,
  signatures: { keep: (call, signature) => kept.set(call, signature) }
}

function fixture(name: string) {
  return readFileSync(new URL(`../../../fixtures/gemini/${name}`, import.meta.url))
}

/** The fixture as it goes through the provider. */
function answerTo(name: string): ChatCompletion {
  return answered(fixture(name))
}

function answered(body: Buffer | string, status = 200, headers = {}): ChatCompletion {
  const answer = wholeAnswer({ status, headers, body: Buffer.from(body), reads: null }, origin)
  if (answer.stream) throw new Error('It is no stream.')
  return answer.body
}

function faultOf(body: string, status = 200, headers = {}): GatewayError {
  try {
    answered(body, status, headers)
  } catch (error) {
    if (isGatewayError(error)) return error
    throw error
  }
  throw new Error('This should have failed.')
}

const saying = (candidate: object, more: object = {}) => JSON.stringify({ candidates: [candidate], ...more })

t.test('a text', async t => {
  const { created, ...body } = answerTo('text.json')
  t.ok(Number.isInteger(created))
  t.strictSame(body, {
    id: 'chatcmpl-k3mSaY7kH4-2nsEPtextWhole',
    object: 'chat.completion',
    model: 'gemini-2.5-flash',
    choices: [
      {
        index: 0,
        message: { role: 'assistant', content: 'Zürich has 22 degrees.', refusal: null },
        logprobs: null,
        finish_reason: 'stop'
      }
    ],
    usage: {
      prompt_tokens: 12,
      completion_tokens: 7,
      total_tokens: 19,
      prompt_tokens_details: { cached_tokens: 0, audio_tokens: 0 },
      completion_tokens_details: { reasoning_tokens: 0, audio_tokens: 0 }
    }
  })
})

t.test('thoughts are reasoning, and the signature of a text is handed out', async t => {
  t.strictSame(answerTo('thinking.json').choices[0]?.message, {
    role: 'assistant',
    content: 'Hello there.',
    refusal: null,
    reasoning_content: '**Considering**\n\nThe user greets.',
    extra_content: { google: { thought_signature: 'Q2lRQmRHVjRkQT09' } }
  })
})

t.test('usage falls into buckets that do not overlap and add up to what Google counted', async t => {
  const { usage } = answerTo('thinking.json')
  const buckets = usageOf(usage)
  t.match(buckets, {
    // 2,100 of the prompt and 50 of tools, without 2,000 cached ones and the 50 of audio that are not
    input: 100,
    cacheRead: 2_000,
    audioInput: 50,
    output: 30,
    reasoning: 310,
    audioOutput: 10,
    mismatch: false,
    source: 'reported'
  })
  t.equal(inputOf(buckets) + outputOf(buckets), 2_500)
})

t.test('counts that say nothing of tokens are no usage', async t => {
  const body = saying({ content: { parts: [{ text: 'x' }] } }, { usageMetadata: { trafficType: 'ON_DEMAND' } })
  t.equal(answered(body).usage, null)
})

t.test('counts without thoughts, candidates or a total are taken as they are', async t => {
  t.match(usageFrom({ promptTokenCount: 5 }), { prompt_tokens: 5, completion_tokens: 0, total_tokens: 5 })
  t.match(usageFrom({ promptTokenCount: 5, thoughtsTokenCount: 7, totalTokenCount: 12 }), {
    completion_tokens: 7,
    total_tokens: 12,
    completion_tokens_details: { reasoning_tokens: 7 }
  })
})

t.test('calls of tools end an answer as such, with ids, arguments and signatures', async t => {
  const { message, finish_reason } = answerTo('tools.json').choices[0]!
  t.equal(finish_reason, 'tool_calls')
  t.equal(message.content, null)
  const [first, second] = message.tool_calls ?? []
  const signature = 'EpAFCo0FAXLI2nwSignatureOfTheFirst=='
  t.strictSame(first, {
    id: 'fc-7Hq1',
    type: 'function',
    function: { name: 'get_weather', arguments: '{"city":"Zürich","days":3}' },
    extra_content: { google: { thought_signature: signature } }
  })
  t.match(second, { id: /^call_[0-9a-f]{32}$/, type: 'function', function: { name: 'now', arguments: '{}' } })
  t.same([...kept], [['fc-7Hq1', signature]])
})

t.test('a call without arguments has an empty object', async t => {
  const body = saying({ content: { parts: [{ functionCall: { name: 'f' } }] }, finishReason: 'STOP' })
  t.equal(answered(body).choices[0]?.message.tool_calls?.[0]?.function?.arguments, '{}')
})

t.test('a blocked prompt is a refusal', async t => {
  const { choices, usage } = answerTo('blocked.json')
  t.strictSame(choices, [
    {
      index: 0,
      message: { role: 'assistant', content: null, refusal: 'The prompt was blocked: PROHIBITED_CONTENT.' },
      logprobs: null,
      finish_reason: 'content_filter'
    }
  ])
  t.equal(usage?.prompt_tokens, 7)
})

t.test('a candidate may have neither content nor parts', async t => {
  for (const content of [undefined, null, {}, { parts: null }, { parts: [] }, { role: 'model' }]) {
    t.match(answered(saying({ content, finishReason: 'MAX_TOKENS' })).choices[0], {
      message: { content: '', refusal: null },
      finish_reason: 'length'
    })
    t.match(answered(saying({ content, finishReason: 'SAFETY' })).choices[0], {
      message: { content: null, refusal: 'The answer was blocked: SAFETY.' },
      finish_reason: 'content_filter'
    })
  }
})

for (const [reason, expected] of Object.entries({
  STOP: 'stop',
  MAX_TOKENS: 'length',
  CONTINUATION: 'length',
  SAFETY: 'content_filter',
  RECITATION: 'content_filter',
  BLOCKLIST: 'content_filter',
  PROHIBITED_CONTENT: 'content_filter',
  SPII: 'content_filter',
  IMAGE_SAFETY: 'content_filter',
  LANGUAGE: 'stop',
  OTHER: 'stop',
  UNEXPECTED_TOOL_CALL: 'stop',
  A_REASON_OF_TOMORROW: 'stop'
})) {
  t.test(`${reason} is ${expected}`, async t => {
    const [choice] = answered(saying({ content: { parts: [{ text: 'x' }] }, finishReason: reason })).choices
    t.equal(choice?.finish_reason, expected)
    t.equal(choice?.message.content, 'x')
    t.equal(choice?.message.refusal, null)
  })
}

t.test('a call that the model made wrong is a failure of the provider', async t => {
  for (const finishReason of ['MALFORMED_FUNCTION_CALL', 'MALFORMED_RESPONSE']) {
    t.match(faultOf(saying({ finishReason })), { code: 'GATEWAY_UPSTREAM_ERROR', statusCode: 502, blame: 'provider' })
  }
})

t.test('log probabilities have their bytes and their alternatives', async t => {
  t.strictSame(answerTo('logprobs.json').choices[0]?.['logprobs'], {
    content: [
      {
        token: 'é',
        logprob: -0.1,
        bytes: [195, 169],
        top_logprobs: [
          { token: 'é', logprob: -0.1, bytes: [195, 169] },
          { token: 'e', logprob: -2.5, bytes: [101] }
        ]
      },
      { token: '!', logprob: -0.5, bytes: [33], top_logprobs: [{ token: '!', logprob: -0.5, bytes: [33] }] }
    ],
    refusal: null
  })
})

t.test('several candidates are several choices', async t => {
  const of = (text: string, index?: number) => ({ content: { parts: [{ text }] }, finishReason: 'STOP', index })
  const { choices } = completionOf({ candidates: [of('a'), of('b', 1)] }, origin)
  t.same(
    choices.map(({ index, message }) => [index, message.content]),
    [
      [0, 'a'],
      [1, 'b']
    ]
  )
})

t.test('an image in an answer is a data URL', async t => {
  const parts = [{ text: 'Here:' }, { inlineData: { mimeType: 'image/png', data: 'AAAA' } }]
  t.match(answered(saying({ content: { parts }, finishReason: 'STOP' })).choices[0]?.message, {
    content: 'Here:',
    images: [{ type: 'image_url', image_url: { url: 'data:image/png;base64,AAAA' } }]
  })
})

t.test('an answer without a name has that of the call', async t => {
  const body = answered(saying({ content: { parts: [{ text: 'x', tomorrow: {} }, { unknownPart: 1 }] } }))
  t.match(body, { id: 'chatcmpl-req_1', model: 'asked-model', choices: [{ message: { content: 'x' } }] })
})

t.test('what is no answer is a failure of the provider', async t => {
  for (const body of ['', '{', 'null', '5', '<html>', '[]', '{}', '{"candidates":[]}', '{"candidates":{}}']) {
    t.match(faultOf(body), { code: 'GATEWAY_UPSTREAM_ERROR', statusCode: 502 }, body)
  }
  t.match(faultOf('{"candidates":[null]}'), { code: 'GATEWAY_UPSTREAM_ERROR' }, 'whatever is wrong inside')
  t.match(faultOf('{"candidates":[{"content":{"parts":[null]}}]}'), { code: 'GATEWAY_UPSTREAM_ERROR' })
  t.match(faultOf(fixture('text.json').toString(), 200, { 'content-encoding': 'gzip' }), { statusCode: 502 })
})

// Errors

const errors: Record<string, { error: object }> = JSON.parse(fixture('errors.json').toString())

t.test('a used-up quota says when to come back', async t => {
  for (const body of [errors['quota'], [errors['quota']]]) {
    t.match(googleFault(429, body, {}, origin.redact), {
      code: 'GATEWAY_UPSTREAM_RATE_LIMITED',
      blame: 'limit',
      headers: { 'retry-after': '17' },
      retryAfter: 17_000
    })
  }
  t.match(
    googleFault(429, errors['quota'], { 'retry-after': '3' }, origin.redact),
    { retryAfter: 3_000 },
    'the header wins'
  )
})

t.test('a wrong key is the key that is refused, and nobody reads what Google says of it', async t => {
  const fault = googleFault(400, errors['key'], {}, origin.redact)
  t.match(fault, { statusCode: 502, blame: 'key', headers: { 'x-should-retry': 'false' } })
  t.notMatch(fault.message, /API key/)
  const reasonless = { error: { code: 400, message: 'API key expired. Please renew the API key.' } }
  t.match(googleFault(400, reasonless, {}, origin.redact), { statusCode: 502, blame: 'key' })
})

t.test('too long a prompt has the code that clients know', async t => {
  t.match(googleFault(400, errors['context'], {}, origin.redact), {
    statusCode: 400,
    blame: 'request',
    wire: 'context_length_exceeded',
    message: /1048576/
  })
})

t.test('an error without a status is known by its name', async t => {
  const named = (status: string) => googleFault(0, { error: { status, message: 'x' } }, {}, origin.redact)
  t.match(named('UNAVAILABLE'), { code: 'GATEWAY_UPSTREAM_OVERLOADED' })
  t.match(named('RESOURCE_EXHAUSTED'), { code: 'GATEWAY_UPSTREAM_RATE_LIMITED' })
  t.match(named('PERMISSION_DENIED'), { blame: 'key' })
  t.match(named('INVALID_ARGUMENT'), { statusCode: 400, wire: 'INVALID_ARGUMENT' })
  t.match(named('CANCELLED'), { statusCode: 502, blame: 'provider' })
  t.match(named('ANYTHING'), { statusCode: 502, blame: 'provider' })
  t.match(googleFault(499, { error: { code: 499, status: 'CANCELLED' } }, {}, origin.redact), { blame: 'provider' })
})

t.test('an error inside a 200, alone or in an array, is one', async t => {
  t.match(faultOf(JSON.stringify(errors['overloaded'])), { code: 'GATEWAY_UPSTREAM_OVERLOADED' })
  t.match(faultOf(JSON.stringify([errors['overloaded']])), { code: 'GATEWAY_UPSTREAM_OVERLOADED' })
  t.match(faultOf('{"error":"broken"}'), { code: 'GATEWAY_UPSTREAM_ERROR' })
})

t.test('an error page is known by its status', async t => {
  t.match(faultOf('<html>Bad gateway</html>', 502), { code: 'GATEWAY_UPSTREAM_ERROR', statusCode: 502 })
  t.match(faultOf('', 503), { code: 'GATEWAY_UPSTREAM_OVERLOADED' })
})
