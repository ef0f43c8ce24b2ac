import t, { type Test } from 'tap'
import type { ChatRequest } from '../../../schemas/chat.ts'
import { detail, InvalidRequest, UpstreamError, UpstreamRejected } from '../../../schemas/errors.ts'
import type { Abilities } from '../../../schemas/provider.ts'
import { ask, fails, says, scripted, textOf } from '../kernel.ts'
import { at, stage, status } from './kit.ts'

/** A first target that can do so much, and a second one of which nothing is known. */
async function pair(t: Test, abilities: Abilities) {
  const one = scripted('one')
  const two = scripted('two')
  const targets = [{ provider: 'one', model: 'm', abilities }, ...at('two')]
  const found = await stage(t, { providers: [one, two], models: { strategy: 'priority', targets } })
  return { ...found, one, two }
}

const parts = (...content: Array<Record<string, unknown> & { type: string }>): ChatRequest => ({
  ...ask,
  messages: [{ role: 'user', content }]
})
const tool = { type: 'function', function: { name: 'f' } }

const demands: Array<[keyof Abilities, string, ChatRequest]> = [
  ['streaming', 'does not stream', { ...ask, stream: true }],
  ['tools', 'takes no tools', { ...ask, tools: [tool] }],
  [
    'tools',
    'takes no tools',
    { ...ask, messages: [...ask.messages, { role: 'assistant', tool_calls: [{ id: 'c', function: { name: 'f' } }] }] }
  ],
  ['tools', 'takes no tools', { ...ask, messages: [{ role: 'tool', tool_call_id: 'c', content: '1' }] }],
  ['images', 'takes no images', parts({ type: 'image_url', image_url: { url: 'data:image/png;base64,AAAA' } })],
  ['files', 'takes no files', parts({ type: 'file', file: { file_data: 'data:application/pdf;base64,AAAA' } })],
  ['audio', 'knows no audio', parts({ type: 'input_audio', input_audio: { data: 'AAAA', format: 'wav' } })],
  ['audio', 'knows no audio', { ...ask, audio: { voice: 'alloy', format: 'wav' } }],
  [
    'jsonSchema',
    'answers by no JSON schema',
    { ...ask, response_format: { type: 'json_schema', json_schema: { name: 'x', schema: {} } } }
  ],
  ['choices', 'gives one choice only (n)', { ...ask, n: 2 }],
  ['logprobs', 'gives no logprobs', { ...ask, logprobs: true }]
]

t.test('a target', async t => {
  for (const [ability, lack, request] of demands) {
    const what = JSON.stringify(request).slice(0, 90)
    t.test(`that ${lack} is left out of a request that asks for it: ${what}`, async t => {
      const { run, one, two } = await pair(t, { [ability]: false })
      const answer = await run(request)
      await textOf(answer)
      t.strictSame([one.attempts.length, two.attempts.length], [0, 1])
      t.strictSame(answer.facts.warnings, [`left out: one/m ${lack}`])
    })

    t.test(`that ${lack} is asked when nobody wants ${ability}`, async t => {
      const { run, one } = await pair(t, { [ability]: false })
      const { facts } = await run({
        ...ask,
        n: 1,
        tools: [],
        response_format: { type: 'json_object' },
        logprobs: false
      })
      t.equal(one.attempts.length, 1)
      t.strictSame(facts.warnings, [])
    })

    t.test(`of which is not known whether it ${lack} is asked: ${what}`, async t => {
      const { run, one } = await pair(t, { contextLength: 100_000 })
      await textOf(await run(request))
      t.equal(one.attempts.length, 1)
    })
  }

  t.test('that gives no logprobs is asked for them all the same where no other gives them', async t => {
    const one = scripted('one')
    const targets = [{ provider: 'one', model: 'm', abilities: { logprobs: false } }]
    const { run } = await stage(t, { providers: [one], models: { targets } })
    const { facts } = await run({ ...ask, logprobs: true })
    t.equal(one.attempts.length, 1)
    t.strictSame(facts.warnings, [])
  })

  t.test('is left out where the request is likely to be longer than its context', async t => {
    const { run, one, two } = await pair(t, { contextLength: 100 })
    const { facts } = await run({ ...ask, messages: [{ role: 'user', content: 'x'.repeat(500) }] })
    t.strictSame([one.attempts.length, two.attempts.length], [0, 1])
    t.strictSame(facts.warnings, ['left out: one/m has room for 100 tokens only'])
  })

  t.test('is asked where the request is likely to fit, though it might not', async t => {
    const { run, one } = await pair(t, { contextLength: 100 })
    await run({ ...ask, messages: [{ role: 'user', content: 'x'.repeat(300) }] })
    t.equal(one.attempts.length, 1)
  })

  t.test('can do what its provider says, what it says of the model, and before all what is configured', async t => {
    const up = Object.assign(scripted('up'), {
      capabilities: { dialects: [], tools: false, images: false, files: false },
      abilitiesOf: (model: string) => (model === 'm' ? { tools: true, images: false } : {})
    })
    const { run, fail } = await stage(t, {
      providers: [up],
      models: { targets: [{ provider: 'up', model: 'm', abilities: { images: true } }] }
    })
    await run({ ...ask, tools: [tool] })
    await run(parts({ type: 'image_url', image_url: { url: 'data:,' } }))
    t.match(await fail(parts({ type: 'file', file: {} })), { statusCode: 400 })
    t.equal(up.attempts.length, 2)
  })

  t.test('that refuses a request as too long is followed by the next, which may have room', async t => {
    const fault = detail(new UpstreamRejected('Too long.'), { wire: 'context_length_exceeded', upstream: 400 })
    const { run, fail, state } = await stage(t, {
      providers: [scripted('one', fails(fault)), scripted('two', says('from two'), fails(fault))],
      models: { strategy: 'priority', targets: at('one', 'two') }
    })
    const answer = await run()
    t.equal(await textOf(answer), 'from two')
    t.equal(answer.facts.attempts, 2)
    t.equal(state('one/m').failures, 0, 'which is no failure of it')
    t.equal(await fail(), fault, 'and if nobody has room the client is told')
  })
})

t.test('when no target', async t => {
  t.test('can do what is asked, the answer is a 400 that says why', async t => {
    const up = scripted('up')
    const { fail, expenses } = await stage(t, {
      providers: [up],
      models: {
        test: {
          targets: [
            { provider: 'up', model: 'a', abilities: { tools: false } },
            { provider: 'up', model: 'b', abilities: { tools: false, images: false } }
          ],
          strategy: 'priority',
          fallbacks: ['spare']
        },
        spare: { targets: [{ provider: 'up', model: 'c', abilities: { contextLength: 1 } }] }
      }
    })
    const error = await fail({ ...ask, tools: [tool] })
    t.type(error, InvalidRequest)
    t.match(error, { statusCode: 400 })
    t.equal(
      error.message,
      "No target of the model 'test' can answer this request: " +
        'up/a takes no tools; up/b takes no tools; up/c has room for 1 tokens only.'
    )
    t.equal(expenses.length, 0)
  })

  t.test('that can do it is well, the answer is about those that could', async t => {
    const { fail } = await stage(t, {
      providers: [scripted('one'), scripted('two', fails(status(429, { 'retry-after': '30' })))],
      models: {
        targets: [{ provider: 'one', model: 'm', abilities: { tools: false } }, ...at('two')],
        retries: 0
      }
    })
    await fail({ ...ask, tools: [tool] })
    t.match(await fail({ ...ask, tools: [tool] }), { statusCode: 429, headers: { 'retry-after': '30' } })
  })

  t.test('of the alias can do it, a fallback is asked', async t => {
    const { run } = await stage(t, {
      providers: [scripted('up'), scripted('spare')],
      models: {
        test: { targets: [{ provider: 'up', model: 'm', abilities: { images: false } }], fallbacks: ['spare'] },
        spare: { targets: at('spare') }
      }
    })
    const answer = await run(parts({ type: 'image_url', image_url: { url: 'data:,' } }))
    t.equal(await textOf(answer), 'spare says')
    t.strictSame(answer.facts.warnings, ['left out: up/m takes no images'])
  })

  t.test('that was asked could answer, the fault of the last one is told, not what others lack', async t => {
    const fault = new UpstreamError('broken')
    const { fail } = await stage(t, {
      providers: [scripted('one'), scripted('two', fails(fault))],
      models: { targets: [{ provider: 'one', model: 'm', abilities: { tools: false } }, ...at('two')], retries: 0 }
    })
    t.equal(await fail({ ...ask, tools: [tool] }), fault)
  })
})
