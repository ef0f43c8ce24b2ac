import t from 'tap'
import type { ChatCompletionChunk, CompletionUsage, Delta } from '../../schemas/chat.ts'
import { chunkFrames, isFinish, isToken, isUsageOnly } from '../../schemas/frames.ts'

const head = { id: 'c1', object: 'chat.completion.chunk' as const, created: 1, model: 'm' }
const usage: CompletionUsage = { prompt_tokens: 1, completion_tokens: 2, total_tokens: 3 }

function of(delta: Delta, reason: string | null = null): ChatCompletionChunk {
  return { ...head, choices: [{ index: 0, delta, finish_reason: reason }] }
}

const bare: ChatCompletionChunk = { ...head, choices: [], usage }
const call = { tool_calls: [{ index: 0, id: 'call_1', type: 'function', function: { name: 'f', arguments: '' } }] }

const chunks: Array<[string, ChatCompletionChunk, { token: boolean; finish: boolean; usageOnly: boolean }]> = [
  ['content', of({ content: 'x' }), { token: true, finish: false, usageOnly: false }],
  ['white space', of({ content: ' ' }), { token: true, finish: false, usageOnly: false }],
  ['a refusal', of({ refusal: 'no' }), { token: true, finish: false, usageOnly: false }],
  ['a tool call', of(call), { token: true, finish: false, usageOnly: false }],
  ['a field that we do not know', of({ reasoning_content: 'hm' }), { token: true, finish: false, usageOnly: false }],
  ['a role', of({ role: 'assistant' }), { token: false, finish: false, usageOnly: false }],
  ['a role with nothing said', of({ role: 'assistant', content: '', refusal: null }), no()],
  ['a role with something said', of({ role: 'assistant', content: 'x' }), { ...no(), token: true }],
  ['an empty delta', of({}), no()],
  ['null content', of({ content: null }), no()],
  ['an empty finish_reason', of({}, ''), no()],
  ['a finish_reason', of({}, 'stop'), { token: true, finish: true, usageOnly: false }],
  ['a finish_reason that we do not know', of({}, 'eos'), { token: true, finish: true, usageOnly: false }],
  ['content with a finish_reason', of({ content: 'x' }, 'length'), { token: true, finish: true, usageOnly: false }],
  ['bare usage', bare, { ...no(), usageOnly: true }],
  ['no choice and no usage', { ...head, choices: [] }, no()],
  ['no choice and null usage', { ...head, choices: [], usage: null }, no()],
  ['usage on a choice', { ...of({ content: 'x' }), usage }, { ...no(), token: true }]
]

function no() {
  return { token: false, finish: false, usageOnly: false }
}

for (const [what, chunk, expected] of chunks) {
  t.test(`${what}: token ${expected.token}, finish ${expected.finish}, usage only ${expected.usageOnly}`, async t => {
    t.strictSame({ token: isToken(chunk), finish: isFinish(chunk), usageOnly: isUsageOnly(chunk) }, expected)
  })
}

t.test('a second choice counts as much as the first', async t => {
  const chunk: ChatCompletionChunk = {
    ...head,
    choices: [
      { index: 0, delta: {}, finish_reason: null },
      { index: 1, delta: {}, finish_reason: 'stop' }
    ]
  }
  t.ok(isToken(chunk))
  t.ok(isFinish(chunk))
})

t.test('frames of chunks', async t => {
  t.test('have no bytes and give their chunks, as often as they are asked', async t => {
    const given = [of({ content: 'a' }), of({ content: 'b' })]
    const frames = chunkFrames(given)
    t.equal(frames.raw, null)
    t.equal(frames.dialect, 'openai')
    t.equal(frames.last, false)
    t.strictSame([...frames], given)
    t.strictSame([...frames], given)
  })

  t.test('know what is in them', async t => {
    t.match(chunkFrames([of({ role: 'assistant' })]), { finished: false, hasToken: false, hasData: true, usage: null })
    t.match(chunkFrames([of({ content: 'x' })]), { finished: false, hasToken: true, hasData: true, usage: null })
    t.match(chunkFrames([of({}, 'stop'), bare]), { finished: true, hasToken: true, usage })
    t.match(chunkFrames([]), { finished: false, hasToken: false, hasData: false, usage: null })
  })

  t.test('count what is said, not roles and ends, and the same words under a second name once', async t => {
    const frames = chunkFrames([
      of({ role: 'assistant', content: '' }),
      of({ content: 'Zürich' }),
      of({ reasoning: 'hm', reasoning_details: [{ type: 'reasoning.text', text: 'hm' }] }),
      of(call),
      of({}, 'stop'),
      bare
    ])
    t.strictSame([frames.pieces, frames.textBytes], [3, 7 + 2 + 1])
  })

  t.test('count nested words without end only so far', async t => {
    const deep = JSON.parse(`${'{"a":'.repeat(50_000)}{"text":"x"}${'}'.repeat(50_000)}`)
    t.equal(chunkFrames([of({ deep })]).pieces, 0)
  })

  t.test('report the last usage', async t => {
    const later = { ...usage, completion_tokens: 9 }
    t.strictSame(chunkFrames([bare, { ...bare, usage: later }, of({})]).usage, later)
    t.strictSame(
      chunkFrames([
        { ...bare, usage: later },
        { ...of({}), usage: null }
      ]).usage,
      later
    )
  })

  t.test('without usage are the same frames when there is none to take', async t => {
    const frames = chunkFrames([of({ content: 'x' })])
    t.equal(frames.withoutUsage(), frames)
    const onChoice = chunkFrames([{ ...of({}, 'stop'), usage }])
    t.equal(onChoice.withoutUsage(), onChoice)
  })

  t.test('without usage keep everything else in its order', async t => {
    const frames = chunkFrames([bare, of({ content: 'a' }), bare, of({}, 'stop'), bare]).withoutUsage()
    t.strictSame([...(frames ?? [])], [of({ content: 'a' }), of({}, 'stop')])
    t.match(frames, { finished: true, usage: null })
  })

  t.test('without usage are null when nothing is left', async t => {
    t.equal(chunkFrames([bare]).withoutUsage(), null)
    t.equal(chunkFrames([bare, bare]).withoutUsage(), null)
  })
})
