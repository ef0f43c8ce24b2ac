import assert from 'node:assert/strict'
import { getEventListeners } from 'node:events'
import type { ChatRequest } from '../schemas/chat.ts'
import { drain, errorOf, open, outcomeOf, outcomeOfChunks, rest, streamed, whole } from './attempt.ts'
import { type Demand, ofAll, reasons } from './demands.ts'

/** What every provider has to do, whatever it speaks to. */
export const formDemands: readonly Demand[] = [
  ofAll('it has a name and says what it can do', async provider => {
    assert.match(provider.name, /^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/)
    assert.ok(Array.isArray(provider.capabilities.dialects))
  }),

  ofAll('a whole answer has the form of a completion', async provider => {
    const { body, raw } = await whole(provider)
    assert.equal(body.object, 'chat.completion')
    assert.ok(typeof body.id === 'string' && body.id !== '')
    assert.equal(typeof body.model, 'string')
    assert.ok(Number.isInteger(body.created))
    const [choice] = body.choices
    assert.equal(choice?.index, 0)
    assert.equal(choice.message.role, 'assistant')
    assert.equal(typeof choice.message.content, 'string')
    assert.ok(reasons.has(choice.finish_reason), `finish_reason is ${choice.finish_reason}`)
    assert.ok(body.usage, 'it has usage')
    assert.equal(body.usage.total_tokens, body.usage.prompt_tokens + body.usage.completion_tokens)
    if (raw !== null) assert.deepEqual(JSON.parse(Buffer.from(raw).toString()), body, 'its bytes say the same')
  }),

  ofAll('a stream has the form of chunks and says what a whole answer says', async provider => {
    const { chunks, frames, error } = await streamed(provider)
    assert.equal(error, null)
    assert.ok(chunks.every(chunk => chunk.object === 'chat.completion.chunk'))
    for (const key of ['id', 'created', 'model'] as const)
      assert.equal(new Set(chunks.map(chunk => chunk[key])).size, 1, `every chunk has the same ${key}`)
    assert.ok(Number.isInteger(chunks[0]?.created))
    assert.equal(outcomeOfChunks(chunks).text, outcomeOf((await whole(provider)).body).text)
    const deltas = chunks.flatMap(chunk => chunk.choices)
    assert.equal(deltas[0]?.delta.role, 'assistant')
    assert.ok(deltas.every(({ index }) => index === 0))
    const ends = deltas.flatMap(choice => choice.finish_reason ?? [])
    assert.equal(ends.length, 1)
    assert.ok(reasons.has(ends[0]), `finish_reason is ${ends[0]}`)
    assert.ok(frames.some(read => read.hasToken))
    assert.ok(frames.every(read => read.dialect !== ''))
  }),

  ofAll('frames know whether they finish and what they report, and can be read again', async provider => {
    const { frames } = await streamed(provider)
    for (const read of frames) {
      const chunks = [...read]
      assert.deepEqual([...read], chunks)
      assert.equal(
        read.finished,
        chunks.some(chunk => chunk.choices.some(choice => choice.finish_reason))
      )
      assert.deepEqual(read.usage, chunks.findLast(chunk => chunk.usage)?.usage ?? null)
      const kept = chunks.filter(chunk => chunk.choices.length > 0 || !chunk.usage)
      assert.deepEqual([...(read.withoutUsage() ?? [])], kept)
    }
  }),

  ofAll('the request it is given stays as it is', async provider => {
    const request: ChatRequest = {
      model: 'm',
      messages: [
        { role: 'system', content: 'Be brief.' },
        { role: 'user', content: [{ type: 'text', text: 'Hi' }] },
        {
          role: 'assistant',
          content: null,
          tool_calls: [{ id: 'call_1', type: 'function', function: { name: 'f', arguments: '{}' } }]
        },
        { role: 'tool', tool_call_id: 'call_1', content: 'done' }
      ],
      tools: [{ type: 'function', function: { name: 'f', parameters: { type: 'object', properties: {} } } }],
      max_tokens: 3,
      max_completion_tokens: 3
    }
    for (const stream of [true, false]) {
      const frozen = deepFreeze({ ...request, stream, stream_options: stream ? { include_usage: false } : undefined })
      await drain(provider, { request: frozen })
    }
  }),

  ofAll('calls at the same time do not disturb each other', async provider => {
    const expected = outcomeOf((await whole(provider)).body).text
    const calls = Array.from({ length: 20 }, async (_, call) => {
      if (call % 2 === 0) return outcomeOf((await whole(provider)).body).text
      return outcomeOfChunks((await streamed(provider)).chunks).text
    })
    for (const text of await Promise.all(calls)) assert.equal(text, expected)
  }),

  ofAll('an attempt that was aborted before it began fails with the reason', async provider => {
    const reason = new Error('gone')
    for (const stream of [true, false]) {
      const call = drain(provider, { request: { stream }, signal: AbortSignal.abort(reason) })
      assert.equal(await errorOf(call), reason)
    }
  }),

  ofAll('a stream whose reader leaves is over', async provider => {
    const frames = await open(provider)
    await frames.next()
    await frames.return?.()
    assert.deepEqual(await frames.next(), { done: true, value: undefined })
  }),

  ofAll('no listener stays on the signal', async provider => {
    const { signal } = new AbortController()
    await whole(provider, { signal })
    await streamed(provider, { signal })
    const frames = await open(provider, { signal })
    await frames.next()
    await frames.return?.()
    assert.equal(getEventListeners(signal, 'abort').length, 0)
  }),

  ofAll('a stream that is aborted half way fails with the reason', async provider => {
    const controller = new AbortController()
    const reason = new Error('gone')
    const frames = await open(provider, { signal: controller.signal })
    const first = await frames.next()
    controller.abort(reason)
    assert.ok(!first.done)
    // What had arrived before the abort may still be delivered, its end included.
    const error = await errorOf(rest(frames))
    if (error !== null) assert.equal(error, reason)
  })
]

function deepFreeze<T>(value: T): T {
  if (typeof value === 'object' && value !== null) for (const inner of Object.values(value)) deepFreeze(inner)
  return Object.freeze(value)
}
