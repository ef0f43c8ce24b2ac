import { readFileSync } from 'node:fs'
import t from 'tap'
import { toCompletion } from '../../../../providers/wires/anthropic/answer.ts'
import type { Thought } from '../../../../providers/wires/anthropic/messages.ts'
import { messageReader } from '../../../../providers/wires/anthropic/stream.ts'
import type { ChatCompletionChunk, Delta } from '../../../../schemas/chat.ts'
import { usageOf } from '../../../../schemas/usage.ts'
import { type Cut, pieces } from '../../../upstream.ts'
import { event, message, messageEvents } from '../../claude.ts'

const fixture = (name: string) => readFileSync(new URL(`../../../fixtures/anthropic/${name}`, import.meta.url), 'utf8')

/** Everything that a stream comes to, read as it is cut. */
function heard(text: string, { cut = 'none', jsonTool = null }: { cut?: Cut; jsonTool?: string | null } = {}) {
  const kept: Array<[readonly string[], readonly Thought[]]> = []
  const reader = messageReader({}, 1_000_000, text => text, { jsonTool, keep: (...own) => kept.push(own) })
  const chunks: ChatCompletionChunk[] = []
  const reads = []
  let fault: Error | null = null
  let done = false
  const steps = pieces(Buffer.from(text), cut).map(piece => () => reader.read(Buffer.from(piece)))
  for (const step of [...steps, () => reader.end()]) {
    if (done) break
    const read = step()
    if (read.frames !== null) {
      reads.push(read.frames)
      chunks.push(...read.frames)
    }
    done = read.done
    fault = read.fault
  }
  return { chunks, reads, fault, done, kept }
}

/** What a client makes of the chunks. */
function assembled(chunks: readonly ChatCompletionChunk[]) {
  const whole: { [field: string]: unknown; tool_calls?: unknown } = {}
  const calls: Array<{ id?: string; type?: string; function: { name?: string; arguments: string } }> = []
  for (const { delta } of chunks.flatMap(chunk => chunk.choices)) {
    for (const [key, value] of Object.entries(delta)) {
      if (key === 'tool_calls') continue
      whole[key] = typeof value === 'string' && typeof whole[key] === 'string' ? whole[key] + value : value
    }
    for (const { index, id, type, function: own } of delta.tool_calls ?? []) {
      calls[index] ??= { id, type, function: { name: own?.name, arguments: '' } }
      calls[index].function.arguments += own?.arguments ?? ''
    }
  }
  return { ...whole, tool_calls: calls }
}

const deltas = (chunks: readonly ChatCompletionChunk[]): Delta[] =>
  chunks.flatMap(chunk => chunk.choices.map(choice => choice.delta))

t.test('a stream says what the whole message says', async t => {
  const { chunks, fault, done, kept } = heard(fixture('stream.txt'))
  t.equal(fault, null)
  t.equal(done, true)
  const said = JSON.parse(fixture('message.json'))
  const signature = said.content[0].signature
  const thoughts = [{ type: 'thinking', thinking: 'Two cities, so two "calls".\n', signature }, said.content[1]]
  t.strictSame(assembled(chunks), {
    role: 'assistant',
    content: 'I look\tit up in Zürich 🙂.',
    refusal: null,
    reasoning_content: 'Two cities, so two "calls".\n',
    thinking_blocks: thoughts,
    tool_calls: [
      {
        id: said.content[4].id,
        type: 'function',
        function: { name: 'weather', arguments: '{"city": "Zürich", "days": 2}' }
      },
      { id: said.content[5].id, type: 'function', function: { name: 'now', arguments: '{}' } }
    ]
  })
  t.strictSame(kept, [[[said.content[4].id, said.content[5].id], thoughts]])
  const whole = toCompletion(said, 0, { jsonTool: null, keep() {} })
  t.strictSame(chunks.at(-1)?.usage, whole.usage, 'counts overwritten, never added, null is none')
  t.match(usageOf(chunks.at(-1)?.usage), {
    input: 47,
    cacheRead: 300,
    cacheWrite5m: 200,
    cacheWrite1h: 1000,
    output: 28,
    reasoning: 62
  })
})

t.test('its chunks have one form', async t => {
  const { chunks } = heard(fixture('stream.txt'))
  const [first] = chunks
  t.match(first, { id: 'msg_01QDw6Fw4mnSbiZ2rVXB8JTn', object: 'chat.completion.chunk', model: 'claude-sonnet-4-6' })
  t.ok(Number.isInteger(first?.created))
  t.strictSame(first?.choices, [
    { index: 0, delta: { role: 'assistant', content: '', refusal: null }, finish_reason: null }
  ])
  for (const { id, object, created, model } of chunks)
    t.strictSame(
      { id, object, created, model },
      { id: first?.id, object: first?.object, created: first?.created, model: first?.model }
    )
  const reasons = chunks.map(chunk => chunk.choices[0]?.finish_reason)
  t.strictSame(reasons.slice(-2), ['tool_calls', undefined])
  t.ok(reasons.slice(0, -2).every(reason => reason === null))
  t.match(chunks.at(-1), { choices: { length: 0 }, service_tier: 'default' })
  const calls = deltas(chunks).flatMap(delta => delta.tool_calls ?? [])
  t.strictSame(
    calls.map(call => call.index),
    [0, 0, 0, 0, 1, 1]
  )
})

t.test('it is the same however it is cut', async t => {
  const { created, ...rest } = { created: 0 }
  const plain = (cut: Cut) =>
    heard(fixture('stream.txt'), { cut }).chunks.map(chunk => ({ ...chunk, created, ...rest }))
  const whole = plain('none')
  t.strictSame(plain('byte'), whole)
  for (let seed = 1; seed <= 20; seed++) t.strictSame(plain({ seed }), whole)
})

t.test('lines may end in other ways, and fields stand in another order', async t => {
  const reordered = [
    event({ type: 'message_start', message: message([], { content: [] }) }),
    event({ type: 'content_block_start', index: 0, content_block: { text: 'a', type: 'text' } }),
    'data: {"index":0,"delta":{"text":"b","type":"text_delta"},"type":"content_block_delta"}\n\n',
    'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"c","more":"d"}}\n\n',
    'data: {"type": "content_block_delta",\ndata: "index": 0, "delta": {"type": "text_delta", "text": "e"}}\n\n',
    event({ type: 'message_stop' })
  ].join('')
  for (const text of [reordered, reordered.replaceAll('\n', '\r\n')]) {
    const { chunks, fault } = heard(text)
    t.equal(fault, null)
    t.equal(assembled(chunks)['content' as 'tool_calls'], 'abce')
  }
})

t.test('every text crosses, by the short way and by the long one', async t => {
  const texts = [
    'plain',
    '"',
    '\\',
    '\\"',
    'a\nb\t\r\b\f',
    '\u0000\u001f\u007f\u2028',
    '🙂 é',
    '{"type":"error"}',
    '"}}',
    ' } } ',
    'x'.repeat(10_000),
    '\\u0041'
  ]
  const spaced = event({ type: 'content_block_delta', index: 0, delta: { type: 'text_delta', text: 'end"' } }).replace(
    '"}}',
    '"}   }  '
  )
  const all = messageEvents([
    { type: 'text', text: texts },
    { type: 'thinking', thinking: texts, signature: 's' },
    { type: 'tool_use', id: 'a', name: 'f', input: texts }
  ])
  const { chunks } = heard(all.toSpliced(3, 0, spaced).join(''))
  const { content, reasoning_content, tool_calls, thinking_blocks } = assembled(chunks) as Record<string, unknown>
  t.equal(content, `end"${texts.join('')}`)
  t.equal(reasoning_content, texts.join(''))
  t.match(tool_calls, [{ function: { arguments: texts.join('') } }])
  t.match(thinking_blocks, [{ thinking: texts.join('') }])
})

t.test('half a surrogate pair a delta is a whole one at the end', async t => {
  const half = (text: string) =>
    `data: {"type":"content_block_delta","index":0,"delta":{"type":"thinking_delta","thinking":"${text}"}}\n\n`
  const all = messageEvents([{ type: 'thinking', thinking: [], signature: 's' }])
  const { chunks } = heard(all.toSpliced(3, 0, half('\\ud83d'), half('\\ude42')).join(''))
  t.match(assembled(chunks), { thinking_blocks: [{ thinking: '🙂' }] })
})

t.test('escapes that are none are a fault and never sent on', async t => {
  for (const bad of ['\\x', '\\u12', '\t', '\\', 'a"b']) {
    const all = messageEvents([{ type: 'text', text: ['ok'] }])
    const broken = `data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"${bad}"}}\n\n`
    const { chunks, fault, reads } = heard(all.toSpliced(4, 0, broken).join(''))
    t.match(fault, { statusCode: 502 })
    t.equal(
      deltas(chunks)
        .map(delta => delta.content)
        .join(''),
      'ok'
    )
    t.notOk(
      reads.some(read => read.last),
      'what is followed by a fault is not the last'
    )
  }
})

t.test('arguments that come at the start count where no pieces come', async t => {
  const start = (index: number, input: unknown) =>
    event({
      type: 'content_block_start',
      index,
      content_block: { type: 'tool_use', id: `t${index}`, name: 'f', input }
    })
  const piece = event({
    type: 'content_block_delta',
    index: 2,
    delta: { type: 'input_json_delta', partial_json: '{"b":2}' }
  })
  const [begin = '', , ...end] = messageEvents([])
  const stop = (index: number) => event({ type: 'content_block_stop', index })
  const { chunks } = heard(
    [begin, start(0, { a: 1 }), stop(0), start(1, {}), start(2, { a: 1 }), piece, stop(2), stop(2), ...end].join('')
  )
  t.match(
    assembled(chunks),
    {
      tool_calls: [
        { function: { arguments: '{"a":1}' } },
        { function: { arguments: '{}' } },
        { function: { arguments: '{"b":2}' } }
      ]
    },
    'also where a block is never closed'
  )
})

t.test('a refusal says why', async t => {
  const { chunks } = heard(fixture('refusal.txt'))
  t.match(chunks.at(-2)?.choices[0], {
    delta: { refusal: 'This request could enable cyber harm.' },
    finish_reason: 'content_filter'
  })
  t.match(chunks.at(-1)?.usage, { prompt_tokens: 18, completion_tokens: 5 })
})

t.test('the arguments of a made-up tool are the content', async t => {
  const answer = { type: 'tool_use', id: 'a', name: 'json_answer', input: ['{"a"', ':1}'] } as const
  const json = (said: Parameters<typeof messageEvents>[0]) =>
    heard(messageEvents(said).join(''), { jsonTool: 'json_answer' })
  for (const said of [[answer], [{ type: 'text', text: 'Here:' } as const, answer, answer]]) {
    const { chunks } = json(said)
    t.equal(
      deltas(chunks)
        .map(delta => delta.content ?? '')
        .join(''),
      '{"a":1}'
    )
    t.notOk(deltas(chunks).some(delta => delta.tool_calls))
    t.equal(chunks.at(-2)?.choices[0]?.finish_reason, 'stop')
  }
  const plain = json([{ type: 'text', text: ['{"a":', '"b"}'] }])
  t.equal(
    deltas(plain.chunks)
      .map(delta => delta.content ?? '')
      .join(''),
    '{"a":"b"}'
  )
  const empty = json([{ ...answer, input: '' }])
  t.equal(
    deltas(empty.chunks)
      .map(delta => delta.content ?? '')
      .join(''),
    '{}'
  )
})

t.test('a ping, an unknown event and the role are no sign of life', async t => {
  const [begin = '', ping = ''] = messageEvents([])
  const reader = messageReader({}, 1_000_000, text => text, { jsonTool: null, keep() {} })
  t.equal(reader.read(Buffer.from(begin)).frames?.hasToken, false)
  for (const text of [ping, 'event: news\ndata: {"type":"news"}\n\n', ': comment\n\n'])
    t.strictSame(reader.read(Buffer.from(text)), { frames: null, done: false, fault: null })
})

t.test('a second beginning changes nothing', async t => {
  const all = messageEvents([{ type: 'text', text: 'ok' }])
  const second = event({
    type: 'message_start',
    message: { ...message([]), id: 'msg_other', usage: { input_tokens: 99, output_tokens: 1 } }
  })
  const { chunks } = heard(all.toSpliced(1, 0, second).join(''))
  t.ok(chunks.every(chunk => chunk.id === 'msg_01Upstream'))
  t.match(chunks.at(-1)?.usage, { prompt_tokens: 9 })
})

t.test('an unknown event may come first', async t => {
  const { fault, chunks } = heard([event({ type: 'news' }), ...messageEvents([{ type: 'text', text: 'ok' }])].join(''))
  t.equal(fault, null)
  t.equal(chunks.at(-2)?.choices[0]?.finish_reason, 'stop')
})

t.test('a stream without counts has no usage', async t => {
  const events = messageEvents([{ type: 'text', text: 'ok' }], { usage: {} }).join('')
  const { chunks } = heard(events.replaceAll('"output_tokens":1', ''))
  t.ok(chunks.every(chunk => !chunk.usage))
  t.equal(chunks.at(-1)?.choices[0]?.finish_reason, 'stop')
})

t.test('words before any beginning are a fault', async t => {
  const { fault } = heard(
    messageEvents([{ type: 'text', text: 'ok' }])
      .slice(1)
      .join('')
  )
  t.match(fault, { statusCode: 502, message: /does not begin/ })
})

t.test('an end before message_stop is a fault after what came, wherever it is', async t => {
  const all = messageEvents([{ type: 'text', text: ['one', 'two'] }]).join('')
  for (let at = 0; at < all.length - 2; at++) {
    const { chunks, fault, reads } = heard(all.slice(0, at))
    if (!/GATEWAY_UPSTREAM_ERROR/.test(String(Reflect.get(fault ?? {}, 'code')))) t.fail(`cut at ${at}`)
    if (reads.some(read => read.finished || read.last)) t.fail(`finished at ${at}`)
    if (
      !'onetwo'.startsWith(
        deltas(chunks)
          .map(delta => delta.content ?? '')
          .join('')
      )
    )
      t.fail(`said at ${at}`)
  }
  t.equal(heard(all.slice(0, -2)).fault, null, 'only the last line ends are missing')
})

t.test('an error event is a fault after what came before it', async t => {
  const all = messageEvents([{ type: 'text', text: ['one', 'two'] }])
  const error = event({
    type: 'error',
    error: { type: 'overloaded_error', message: 'Overloaded' },
    request_id: 'req_1'
  })
  const { chunks, fault, reads } = heard(all.toSpliced(4, 0, error).join(''))
  t.match(fault, { statusCode: 503, wire: 'upstream_overloaded' })
  t.equal(
    deltas(chunks)
      .map(delta => delta.content)
      .join(''),
    'one'
  )
  t.notOk(reads.some(read => read.finished || read.last))
})

t.test('what follows the end is nobody’s', async t => {
  const all = messageEvents([{ type: 'text', text: 'ok' }])
  const { chunks, reads } = heard([...all, ...all].join(''))
  t.equal(chunks.filter(chunk => chunk.choices[0]?.finish_reason).length, 1)
  t.equal(reads.at(-1)?.last, true)
})
