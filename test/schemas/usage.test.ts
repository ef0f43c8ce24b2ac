import t from 'tap'
import type { CompletionUsage } from '../../schemas/chat.ts'
import { noUsage, type Usage, usageOf } from '../../schemas/usage.ts'
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
    source: 'reported'
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
  t.match(usage, { input: 0, cacheRead: 9, output: 0, reasoning: 9 })
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
