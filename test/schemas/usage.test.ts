import t from 'tap'
import type { CompletionUsage } from '../../schemas/chat.ts'
import { estimatedUsage, inputOf, noUsage, outputOf, type Usage, usageOf } from '../../schemas/usage.ts'
import { numbers } from './helper.ts'

const inputs = ['input', 'cacheRead', 'cacheWrite5m', 'cacheWrite1h', 'audioInput'] as const
const outputs = ['output', 'reasoning', 'audioOutput'] as const

function sum(usage: Usage, buckets: ReadonlyArray<(typeof inputs | typeof outputs)[number]>): number {
  return buckets.reduce((total, bucket) => total + usage[bucket], 0)
}

t.test('totals without details are input and output', async t => {
  t.strictSame(usageOf({ prompt_tokens: 10, completion_tokens: 4, total_tokens: 14 }), {
    ...noUsage,
    input: 10,
    output: 4,
    source: 'reported'
  })
})

t.test(
  'tokens written to a cache for five minutes and for an hour are told apart, whatever they are called',
  async t => {
    const totals = { prompt_tokens: 1_000, completion_tokens: 5, total_tokens: 1_005 }
    const split = { ephemeral_5m_input_tokens: 200, ephemeral_1h_input_tokens: 700 }
    for (const report of [
      { ...totals, cache_creation_input_tokens: 900, cache_read_input_tokens: 40, cache_creation: split },
      {
        ...totals,
        prompt_tokens_details: { cached_tokens: 40, cache_creation_tokens: 900, cache_creation_token_details: split }
      }
    ]) {
      t.match(usageOf(report), { input: 60, cacheRead: 40, cacheWrite5m: 200, cacheWrite1h: 700, mismatch: false })
    }
    t.match(usageOf({ ...totals, cache_creation_input_tokens: 900 }), {
      input: 100,
      cacheWrite5m: 900,
      cacheWrite1h: 0
    })
  }
)

t.test('details are taken out of their totals', async t => {
  const usage = usageOf({
    prompt_tokens: 100,
    completion_tokens: 50,
    total_tokens: 150,
    prompt_tokens_details: { cached_tokens: 60, cache_write_tokens: 20, audio_tokens: 5 },
    completion_tokens_details: { reasoning_tokens: 30, audio_tokens: 8, accepted_prediction_tokens: 3 }
  })
  t.strictSame(usage, {
    input: 15,
    cacheRead: 60,
    cacheWrite5m: 20,
    cacheWrite1h: 0,
    audioInput: 5,
    output: 12,
    reasoning: 30,
    audioOutput: 8,
    source: 'reported',
    charge: null,
    mismatch: false
  })
})

t.test('the buckets add up to what was reported', async t => {
  const random = numbers(11)
  const upTo = (most: number) => Math.floor(random() * (most + 1))
  for (let round = 0; round < 2_000; round++) {
    const prompt = upTo(100_000)
    const completion = upTo(100_000)
    const cached = upTo(prompt)
    const written = upTo(prompt - cached)
    const audio = upTo(prompt - cached - written)
    const reasoning = upTo(completion)
    const usage = usageOf({
      prompt_tokens: prompt,
      completion_tokens: completion,
      total_tokens: prompt + completion,
      prompt_tokens_details: { cached_tokens: cached, cache_write_tokens: written, audio_tokens: audio },
      completion_tokens_details: { reasoning_tokens: reasoning, audio_tokens: upTo(completion - reasoning) }
    })
    if (sum(usage, inputs) !== prompt || sum(usage, outputs) !== completion) t.fail(JSON.stringify(usage))
    if (inputOf(usage) !== prompt || outputOf(usage) !== completion || usage.mismatch) t.fail(JSON.stringify(usage))
  }
  t.pass()
})

t.test('details that are null are none', async t => {
  const reported = { prompt_tokens: 3, completion_tokens: 2, total_tokens: 5 }
  t.strictSame(
    usageOf({ ...reported, prompt_tokens_details: null, completion_tokens_details: null }),
    usageOf(reported)
  )
})

t.test('no bucket is negative where details exceed their total', async t => {
  const usage = usageOf({
    prompt_tokens: 3,
    completion_tokens: 2,
    total_tokens: 5,
    prompt_tokens_details: { cached_tokens: 9 },
    completion_tokens_details: { reasoning_tokens: 9 }
  })
  t.match(usage, { input: 0, cacheRead: 9, output: 0, reasoning: 9, mismatch: true })
})

t.test('reasoning that is not among the completion tokens, but in the total, is counted (xAI)', async t => {
  const usage = usageOf({
    prompt_tokens: 10,
    completion_tokens: 5,
    total_tokens: 215,
    completion_tokens_details: { reasoning_tokens: 200 }
  })
  t.match(usage, { input: 10, output: 5, reasoning: 200, mismatch: false })
})

t.test('cached tokens that are not among the prompt tokens, but in the total, are counted', async t => {
  const usage = usageOf({
    prompt_tokens: 10,
    completion_tokens: 5,
    total_tokens: 115,
    prompt_tokens_details: { cached_tokens: 80, cache_write_tokens: 20 }
  })
  t.match(usage, { input: 10, cacheRead: 80, cacheWrite5m: 20, output: 5, mismatch: false })
})

t.test('a total that nothing explains is counted as thoughts, and said to be odd (Gemini)', async t => {
  const usage = usageOf({ prompt_tokens: 10, completion_tokens: 5, total_tokens: 1015 })
  t.match(usage, { input: 10, output: 5, reasoning: 1000, mismatch: true })
})

t.test('a total that is less than its parts changes nothing', async t => {
  t.match(usageOf({ prompt_tokens: 10, completion_tokens: 5, total_tokens: 0 }), {
    input: 10,
    output: 5,
    mismatch: false
  })
})

t.test('a part that is missing is the rest of the total', async t => {
  const only = (reported: object) => usageOf(reported as CompletionUsage)
  t.match(only({ completion_tokens: 5, total_tokens: 15 }), { input: 10, output: 5, mismatch: false })
  t.match(only({ prompt_tokens: 10, total_tokens: 15 }), { input: 10, output: 5, mismatch: false })
})

t.test('what the provider charged is taken in nano-USD', async t => {
  const counted = { prompt_tokens: 1, completion_tokens: 1, total_tokens: 2 }
  const charge = (own: object) => usageOf({ ...counted, ...own }).charge
  t.equal(charge({}), null)
  t.equal(charge({ cost: 0.00014 }), 140_000)
  t.equal(charge({ cost: 0 }), 0)
  t.equal(charge({ cost: 5e-10 }), 1)
  t.equal(charge({ cost: 0.01, is_byok: false, cost_details: { upstream_inference_cost: 0.5 } }), 10_000_000)
  t.equal(charge({ cost: 0.01, is_byok: true, cost_details: { upstream_inference_cost: 0.5 } }), 510_000_000)
  t.equal(charge({ cost: 0.01, is_byok: true, cost_details: { upstream_inference_cost: null } }), 10_000_000)
  t.equal(charge({ cost: 0.01, is_byok: true, cost_details: null }), 10_000_000)
})

for (const cost of [-1, Number.NaN, Number.POSITIVE_INFINITY, 1e300, 9_007_199, '0.1', null, { total_cost: 1 }, true]) {
  t.test(`a charge of ${typeof cost} ${JSON.stringify(cost)} is none, unless it can be counted`, async t => {
    const { charge } = usageOf({ prompt_tokens: 1, completion_tokens: 1, total_tokens: 2, cost })
    t.equal(charge, cost === 9_007_199 ? 9_007_199_000_000_000 : null)
  })
}

t.test('two charges that are too much together are none', async t => {
  const own = { cost: 9_007_199, is_byok: true, cost_details: { upstream_inference_cost: 9_007_199 } }
  t.equal(usageOf({ prompt_tokens: 1, completion_tokens: 1, total_tokens: 2, ...own }).charge, null)
})

t.test('an absurd count is cut where sums stay exact', async t => {
  const usage = usageOf({ prompt_tokens: 1e308, completion_tokens: 1e308, total_tokens: 1e308 })
  t.ok(Number.isSafeInteger(inputOf(usage) + outputOf(usage)))
})

t.test('an estimate is whole tokens, plain ones, and says that it is one', async t => {
  t.strictSame(estimatedUsage(7, 3), { ...noUsage, input: 7, output: 3 })
  t.strictSame(estimatedUsage(Number.NaN, -1), noUsage)
})

for (const odd of [-5, Number.NaN, Number.POSITIVE_INFINITY, '7', null, undefined, {}]) {
  t.test(`a count of ${JSON.stringify(odd) ?? odd} (${typeof odd}) is 0`, async t => {
    const reported = { prompt_tokens: odd, completion_tokens: 2, total_tokens: 2 } as unknown as CompletionUsage
    t.match(usageOf(reported), { input: 0, output: 2, source: 'reported' })
  })
}

t.test('a broken count loses its fraction', async t => {
  t.match(usageOf({ prompt_tokens: 3.9, completion_tokens: 0.5, total_tokens: 4.4 }), { input: 3, output: 0 })
})

for (const nothing of [null, undefined]) {
  t.test(`${nothing} is estimated, not reported`, async t => {
    t.equal(usageOf(nothing), noUsage)
    t.equal(noUsage.source, 'estimated')
    t.equal(sum(noUsage, inputs) + sum(noUsage, outputs), 0)
    t.ok(Object.isFrozen(noUsage))
  })
}
