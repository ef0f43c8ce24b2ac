import t from 'tap'
import { dataReader, EventFrames, type EventReader, eventReader, type Read } from '../../providers/sse/index.ts'
import type { ChatCompletionChunk, CompletionUsage } from '../../schemas/chat.ts'
import { isGatewayError } from '../../schemas/errors.ts'
import { chunkFrames } from '../../schemas/frames.ts'
import { tokensIn } from '../../schemas/tokens.ts'
import { chunks, pieces, seeded } from '../upstream.ts'
import { randomStream, reference } from './streams.ts'

const limit = 1024 * 1024
const usage = { prompt_tokens: 9, completion_tokens: 2, total_tokens: 11 }

/** Feeds pieces as a provider's reads; stops where the stream says that it is over. */
function readAll(input: readonly Uint8Array[], reader: EventReader = eventReader(limit)) {
  const frames: EventFrames[] = []
  const keep = (read: Read) => {
    if (read.frames !== null) frames.push(read.frames)
    return read.done
  }
  const done = input.some(piece => keep(reader.read(Buffer.from(piece)))) || keep(reader.end())
  const raw = Buffer.concat(frames.map(read => read.raw))
  return { frames, done, raw, text: raw.toString(), chunks: frames.flatMap(read => [...read]) }
}

function only(text: string): EventFrames {
  return new EventFrames(Buffer.from(text))
}

const event = (value: unknown, end = '\n') => `data: ${JSON.stringify(value)}${end}${end}`
const content = (all: ChatCompletionChunk[]) => all.map(chunk => chunk.choices[0]?.delta.content ?? '').join('')
const said = chunks('Zürich 東京 🙂 done', { usage: true })

for (const [name, end] of Object.entries({ LF: '\n', CRLF: '\r\n', CR: '\r' })) {
  const whole = Buffer.from(`${said.map(chunk => event(chunk, end)).join('')}data: [DONE]${end}${end}`)

  t.test(`a stream with ${name} line ends arrives whole whichever byte it is cut at`, async t => {
    for (let at = 1; at < whole.length; at++) {
      const got = readAll(pieces(whole, [at]))
      if (got.done && whole.subarray(0, got.raw.length).equals(got.raw) && got.chunks.length === said.length) continue
      t.fail(`cut at ${at}`, { got: got.text })
    }
    t.pass('every cut')
  })

  t.test(`a stream with ${name} line ends arrives whole byte by byte`, async t => {
    const got = readAll(pieces(whole, 'byte'))
    t.equal(content(got.chunks), 'Zürich 東京 🙂 done')
    t.equal(got.text, said.map(chunk => event(chunk, end)).join(''))
    t.ok(got.done)
  })
}

t.test('line ends may be mixed within one stream', async t => {
  const text =
    'data: {"choices":[]}\r\n\ndata: {"choices":[]}\n\r\ndata: {"choices":[]}\r\r\ndata: {"choices":[]}\r\n\r'
  for (const cut of ['none', 'byte'] as const) {
    const got = readAll(pieces(Buffer.from(text), cut))
    t.equal(got.chunks.length, 4, cut)
    t.ok(got.text.startsWith(text), cut)
  }
})

t.test('a CR at the end of a read is not taken for a line end until its LF could have come', async t => {
  const reader = eventReader(limit)
  t.equal(reader.read(Buffer.from('data: {"choices":[]}\r\n\r')).frames, null)
  t.equal(reader.read(Buffer.from('\n')).frames?.raw.toString(), 'data: {"choices":[]}\r\n\r\n')
})

t.test('only whole events are handed on', async t => {
  const reader = eventReader(limit)
  t.equal(
    reader.read(Buffer.from('data: {"choices":[]}\n\ndata: {"cho')).frames?.raw.toString(),
    'data: {"choices":[]}\n\n'
  )
  t.equal(reader.read(Buffer.from('ices":')).frames, null)
  t.equal(reader.read(Buffer.from('[]}\n\n')).frames?.raw.toString(), 'data: {"choices":[]}\n\n')
  t.equal(reader.end().frames, null)
})

t.test('a byte order mark before the first event is no part of it', async t => {
  for (const cut of ['none', 'byte'] as const) {
    const got = readAll(pieces(Buffer.from(`\ufeff${event(said[1])}data: [DONE]\n\n`), cut))
    t.same(got.chunks, [said[1]])
    t.ok(got.done)
  }
  t.ok(only(`\ufeff${event(said[1])}`).hasData)
})

t.test('a terminator right after a byte order mark ends the stream', async t => {
  const got = readAll([Buffer.from('\ufeffdata: [DONE]\n\n')])
  t.ok(got.done)
  t.equal(got.frames.length, 0)
})

t.test('comments are handed on and carry nothing', async t => {
  const frames = only(': OPENROUTER PROCESSING\n\n:\n\n')
  t.equal(frames.hasData, false)
  t.equal(frames.hasToken, false)
  t.same([...frames], [])
  t.equal(readAll([frames.raw]).text, ': OPENROUTER PROCESSING\n\n:\n\n')
})

t.test('the data lines of one event are one text with line ends between', async t => {
  const pretty = JSON.stringify(said[1], null, 2).split('\n')
  t.same([...only(`${pretty.map(line => `data: ${line}`).join('\n')}\n\n`)], [said[1]])
  t.same([...only(`id: 1\r\n${pretty.map(line => `data:${line}`).join('\r\n')}\r\nretry: 5\r\n\r\n`)], [said[1]])
})

t.test('only one space after the colon is taken off, and none is needed', async t => {
  t.same([...only(`data:${JSON.stringify(said[1])}\n\n`)], [said[1]])
  t.same([...only(`data:  ${JSON.stringify(said[1])}\n\n`)], [said[1]])
})

t.test('fields that only begin like data are none', async t => {
  t.same([...only(`database: ${JSON.stringify(said[1])}\n\nDATA: ${JSON.stringify(said[1])}\n\n data: 1\n\n`)], [])
})

t.test('events that are no JSON are handed on and left alone', async t => {
  const text = `data: {"usage": 1\n\ndata: error\n\ndata\n\ndata:\n\n${event(said[1])}`
  const frames = only(text)
  t.same([...frames], [said[1]])
  t.equal(frames.fault?.error, undefined)
  t.equal(frames.usage, null)
  t.equal(readAll([Buffer.from(text)]).text, text)
})

t.test('the last event counts without its blank line', async t => {
  for (const end of ['', '\n', '\r', '\r\n']) {
    const text = `${event(said[1])}data: ${JSON.stringify(said[2])}${end}`
    const got = readAll(pieces(Buffer.from(text), [40]))
    t.same(got.chunks, [said[1], said[2]])
    t.equal(got.text, `${text}\n\n`)
    t.notOk(got.done)
  }
})

t.test('a last event that is cut in the middle is dropped, even after its finish_reason', async t => {
  const cut = 'data: {"choices":[{"delta":{},"finish_reason":"stop"'
  for (const how of ['none', 'byte'] as const) {
    const got = readAll(pieces(Buffer.from(event(said[1]) + cut), how))
    t.equal(got.text, event(said[1]))
    t.notOk(got.frames.some(frames => frames.finished))
  }
})

t.test('a last event that ends with two CR is handed on as it is', async t => {
  const text = `data: ${JSON.stringify(said[1])}\r\r`
  t.equal(readAll([Buffer.from(text)]).text, text)
})

t.test('a stream that ends on a blank line leaves nothing behind', async t => {
  const reader = eventReader(limit)
  reader.read(Buffer.from(event(said[1])))
  t.same(reader.end(), { frames: null, done: false })
})

for (const end of ['data: [DONE]\n\n', 'data:[DONE]\n\n', 'data: [DONE]\r\n\r\n', 'data: [DONE]\r\r', 'data: [DONE]']) {
  t.test(`${JSON.stringify(end)} ends the stream and is not handed on`, async t => {
    for (const cut of ['none', 'byte', [3], [11]] as const) {
      const alone = readAll(pieces(Buffer.from(end), cut))
      t.ok(alone.done)
      t.equal(alone.frames.length, 0)
      const after = readAll(pieces(Buffer.from(event(said[1]) + end), cut))
      t.ok(after.done)
      t.equal(after.text, event(said[1]))
    }
  })
}

t.test('what follows the terminator is not handed on', async t => {
  const got = readAll([Buffer.from(`${event(said[1])}data: [DONE]\n\n${event(said[2])}`), Buffer.from(event(said[3]))])
  t.equal(got.text, event(said[1]))
})

t.test('other fields and comments in the event of the terminator go with it', async t => {
  const got = readAll([Buffer.from(`${event(said[1])}event: done\n: bye\ndata: [DONE]\nid: 7\n\n`)])
  t.ok(got.done)
  t.equal(got.text, event(said[1]))
})

t.test('a terminator among other data is none', async t => {
  const text = 'data: [DONE]\ndata: more\n\ndata: less\ndata: [DONE]\n\n'
  const got = readAll([Buffer.from(text)])
  t.notOk(got.done)
  t.equal(got.text, text)
})

for (const line of [
  'data: [DONE] ',
  'data:  [DONE]',
  'data: [DONE].',
  'data: "[DONE]"',
  ': data: [DONE]',
  'xdata: [DONE]',
  '[DONE]'
]) {
  t.test(`${JSON.stringify(line)} is not the terminator`, async t => {
    const got = readAll([Buffer.from(`${line}\n\n`)])
    t.notOk(got.done)
    t.equal(got.text, `${line}\n\n`)
  })
}

t.test('content that speaks of [DONE] does not end the stream', async t => {
  const all = chunks(['data: [DONE]', '\n\ndata: [DONE]\n\n', '[DONE]'])
  const got = readAll(pieces(Buffer.from(all.map(chunk => event(chunk)).join('')), { seed: 7 }))
  t.notOk(got.done)
  t.equal(content(got.chunks), 'data: [DONE]\n\ndata: [DONE]\n\n[DONE]')
})

t.test('content that speaks of usage, errors and finish reasons is content', async t => {
  const words = [
    '"usage": {"prompt_tokens": 1}',
    '{"error":{"message":"no"}}',
    '"finish_reason":"stop"',
    '"error": "x"'
  ]
  const frames = only(
    chunks(words, { finish_reason: null })
      .map(chunk => event(chunk))
      .join('')
  )
  t.equal(frames.fault?.error, undefined)
  t.equal(frames.usage, null)
  t.equal(frames.finished, false)
  t.equal(frames.withoutUsage(), frames)
  t.equal(content([...frames]), words.join(''))
})

t.test('one event may not grow over the limit, however it is split', async t => {
  for (const size of [1, 7, 64]) {
    const reader = eventReader(1_000)
    const feed = () => {
      for (let fed = 0; fed < 2_000; fed += size) reader.read(Buffer.alloc(size, 120))
    }
    t.throws(feed, { message: /one event of its stream is larger than 1000 bytes/, statusCode: 502 })
  }
})

t.test('an event as large as the limit passes, and the next one has the whole limit again', async t => {
  const reader = eventReader(1_000)
  for (let round = 0; round < 3; round++) {
    t.equal(reader.read(Buffer.from(`data: ${'x'.repeat(994)}`)).frames, null)
    t.equal(reader.read(Buffer.from('\n\n')).frames?.raw.length, 1_002)
  }
})

t.test('many events in one read may be larger than the limit together', async t => {
  const reader = eventReader(100)
  t.equal(reader.read(Buffer.from('data: 1\n\n'.repeat(50))).frames?.raw.length, 450)
})

t.test('finished tells that a choice has its finish_reason, whatever white space there is', async t => {
  t.ok(only('data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n').finished)
  t.ok(only('data: {"choices":[{"delta":{},"finish_reason" :\t"length"}]}\n\n').finished)
  t.ok(only(`${event({ choices: [{ finish_reason: 'stop' }] })}${event(said[1]).repeat(20)}`).finished)
  t.notOk(only('data: {"choices":[{"delta":{},"finish_reason":null}]}\n\n').finished)
  t.notOk(only('data: {"choices":[{"delta":{},"finish_reason":""}]}\n\n').finished)
  t.notOk(only('data: {"choices":[{"delta":{},"native_finish_reason":"stop"}]}\n\n').finished)
})

t.test('finished sees one choice of several, also before a later null', async t => {
  t.ok(only(event({ choices: [{ finish_reason: 'stop' }, { finish_reason: null }] })).finished)
})

t.test('usage is the last one reported', async t => {
  const frames = only(
    event({ choices: [{ delta: {} }], usage: { ...usage, completion_tokens: 1 } }) + event({ choices: [], usage })
  )
  t.same(frames.usage, usage)
})

t.test('usage is null while it is null, absent, nested, or no object', async t => {
  for (const own of [{ usage: null }, {}, { x_groq: { usage } }, { usage: true }, { usage: 'much' }, { usage: 0 }]) {
    t.equal(only(event({ choices: [], ...own })).usage, null)
  }
})

t.test('an error is found as object and as text, with what came before it apart', async t => {
  for (const error of [{ message: 'no', code: 502 }, 'no', true]) {
    const frames = only(event(said[1]) + event({ error }) + event(said[2]))
    t.same(frames.fault?.error, error)
    t.equal(frames.fault?.before?.raw.toString(), event(said[1]))
    t.equal(frames.fault?.before?.fault, null)
  }
})

t.test('an error in a chunk and one in its choice are errors', async t => {
  const choices = [{ index: 0, delta: { content: '' }, finish_reason: 'error' }]
  t.same(only(event({ choices, error: { code: 502 } })).fault?.error, { code: 502 })
  t.same(only(event({ choices: [{ ...choices[0], error: { code: 429 } }] })).fault?.error, { code: 429 })
})

t.test('an error in the first event has nothing before it', async t => {
  t.equal(only(event({ error: 'no' })).fault?.before, null)
})

t.test('usage before an error is still reported', async t => {
  const frames = only(event({ choices: [], usage }) + event({ error: 'no' }))
  t.same(frames.usage, usage)
})

t.test('null, false, empty and missing errors are none', async t => {
  for (const error of [null, false, '', 0, undefined]) {
    const frames = only(event({ choices: [], error }))
    t.equal(frames.fault, null)
  }
})

t.test('a role, an empty delta and a bare usage are no tokens; anything said and an end are', async t => {
  const silent = [
    { role: 'assistant', content: '' },
    {},
    { content: null, refusal: null },
    { content: '', tool_calls: [] }
  ]
  for (const delta of silent) t.notOk(only(event({ choices: [{ index: 0, delta, finish_reason: null }] })).hasToken)
  t.notOk(only(event({ choices: [], usage })).hasToken)
  t.notOk(only(event({ choices: [{ index: 0 }] })).hasToken)
  const speaking = [{ content: 'a' }, { reasoning_content: 'hm' }, { tool_calls: [{ index: 0 }] }, { refusal: 'no' }]
  for (const delta of speaking) t.ok(only(event({ choices: [{ index: 0, delta }] })).hasToken)
  t.ok(only(event({ choices: [{ index: 0, delta: {}, finish_reason: 'stop' }] })).hasToken)
})

t.test('hasData looks past comments', async t => {
  t.ok(only(': wait\n\ndata: {}\n\n').hasData)
  t.ok(only('event: ping\rdata: {}\r\r').hasData)
  t.notOk(only(': data\n\nid: 1\n\n').hasData)
})

t.test('without usage the events that only report it are gone and the others are the bytes they were', async t => {
  const [first, last] = [
    `: hi\r\n\r\n${event(said[1], '\r\n')}`,
    'data:{"choices" : [{"delta":{},"finish_reason":"stop"}]}\n\n'
  ]
  const frames = only(`${first}${event({ choices: [], usage })}${last}${event({ choices: [], usage })}`)
  t.equal(Buffer.from(frames.withoutUsage()!.raw!).toString(), first + last)
  t.same(frames.usage, usage)
})

t.test('without usage nothing is left of an event that has nothing else', async t => {
  t.equal(only(event({ choices: [], usage })).withoutUsage(), null)
})

t.test('without usage a chunk that says something keeps its usage', async t => {
  const continuous = said.slice(1, 3).map(chunk => event({ ...chunk, usage }))
  const frames = only(continuous.join(''))
  t.equal(frames.withoutUsage(), frames)
  t.same(frames.usage, usage)
})

t.test('without usage an event without choices that reports none stays', async t => {
  const azure = event({ choices: [], prompt_filter_results: [], usage: null })
  const frames = only(azure + event({ choices: [], usage }))
  t.equal(Buffer.from(frames.withoutUsage()!.raw!).toString(), azure)
})

t.test('frames can be iterated again and in part', async t => {
  const frames = only(said.map(chunk => event(chunk)).join(''))
  for (const chunk of frames) {
    t.same(chunk, said[0])
    break
  }
  t.same([...frames], said)
  t.same([...frames], said)
})

/** How much a stream says, however it is cut. */
function heard(all: readonly unknown[], cut: Parameters<typeof pieces>[1]) {
  const { frames } = readAll(pieces(Buffer.from(all.map(chunk => event(chunk)).join('')), cut))
  return {
    pieces: frames.reduce((sum, read) => sum + read.pieces, 0),
    textBytes: frames.reduce((sum, read) => sum + read.textBytes, 0)
  }
}

t.test(
  'every event that says something is a piece, wherever the stream is cut; role, end and usage are none',
  async t => {
    const words = Array.from({ length: 100 }, (_, index) => (index % 7 === 0 ? '東京 🙂 "quoted"\n' : ` word${index}`))
    const all = chunks(words, { usage: true })
    const textBytes = Buffer.byteLength(words.join(''))
    for (let seed = 1; seed <= 200; seed++)
      t.strictSame(heard(all, { seed, max: seed * 3 }), { pieces: 100, textBytes })
    t.strictSame(heard(all, 'byte'), { pieces: 100, textBytes })
  }
)

t.test('what an event says is counted in whatever words it says it', async t => {
  const said: Array<[delta: object, bytes: number]> = [
    [{ content: 'four' }, 4],
    [{ reasoning_content: 'four' }, 4],
    [{ refusal: 'four' }, 4],
    [{ reasoning: 'four', reasoning_details: [{ type: 'reasoning.text', text: 'four' }] }, 4],
    [{ content: [{ type: 'text', text: 'four' }] }, 4],
    [{ tool_calls: [{ index: 0, id: 'call_1', type: 'function', function: { name: 'four', arguments: '' } }] }, 4],
    [{ tool_calls: [{ index: 0, function: { arguments: '{"a":"\\"content\\":\\"x\\""}' } }] }, 25],
    [{ content: 'a "content":"b" \\" \\\\' }, 21],
    [{ content: 'Zürich', reasoning_content: 'x' }, 8]
  ]
  for (const [delta, bytes] of said) {
    const chunk = { ...chunks('x')[1]!, choices: [{ index: 0, delta, finish_reason: null }] }
    const frames = only(event(chunk))
    t.strictSame(
      { pieces: frames.pieces, textBytes: frames.textBytes },
      { pieces: 1, textBytes: bytes },
      JSON.stringify(delta)
    )
  }
  for (const delta of [{}, { role: 'assistant' }, { content: '' }, { content: null }, { tool_calls: [] }]) {
    const frames = only(event({ choices: [{ index: 0, delta, finish_reason: 'stop' }] }))
    t.strictSame([frames.pieces, frames.textBytes], [0, 0], JSON.stringify(delta))
  }
})

t.test('escaped characters count as the bytes that they stand for', async t => {
  const frames = only('data: {"choices":[{"delta":{"content":"\\u6771\\u4eac \\ud83d\\ude42 \\u00fc\\n\\u0041"}}]}\n\n')
  t.equal(frames.textBytes, Buffer.byteLength('東京 🙂 ü\nA'))
})

t.test('a text that is cut off, or megabytes long, is counted without a stack', async t => {
  const long = '\\"\\\\x'.repeat(1_000_000)
  t.equal(only(`data: {"choices":[{"delta":{"content":"${long}"}}]}\n\n`).textBytes, 3_000_000)
  t.equal(only(`data: {"choices":[{"delta":{"content":"${long}`).pieces, 1)
})

t.test('pieces of a token each are counted as tokens, longer ones by their bytes', async t => {
  const text = 'The quick brown fox jumps over the lazy dog, and nobody in the whole village has ever asked it why. '
  const words = text.repeat(5).match(/\s?\S+/g)!
  const single = heard(chunks(words), 'event')
  t.equal(tokensIn(single.pieces, single.textBytes), words.length)
  const packed = heard(chunks(text.repeat(5).match(/.{1,80}/g)!), 'event')
  const tokens = tokensIn(packed.pieces, packed.textBytes)
  t.ok(tokens > words.length && tokens < words.length * 1.5, `${tokens} for ${words.length} words`)
  const sole = heard(chunks([' internationalization']), 'event')
  t.equal(tokensIn(sole.pieces, sole.textBytes), 1)
  t.equal(tokensIn(0, 0), 0)
})

t.test('counting agrees with parsing on 2,000 random streams', async t => {
  for (let seed = 1; seed <= 2_000; seed++) {
    for (const read of readAll([randomStream(seeded(seed))]).frames) {
      const { pieces, textBytes } = chunkFrames([...read])
      if (read.pieces === pieces && read.textBytes === textBytes) continue
      t.strictSame([read.pieces, read.textBytes], [pieces, textBytes], `seed ${seed}: ${read.raw}`)
      return
    }
  }
  t.pass('2,000 streams')
})

t.test('reading agrees with a slow parser written from the specification on 5,000 random streams', async t => {
  for (let seed = 1; seed <= 5_000; seed++) {
    const random = seeded(seed)
    const input = randomStream(random)
    const cuts = pieces(input, random() < 0.1 ? 'byte' : { seed, max: 1 + Math.floor(random() * 200) })
    const difference = compare(input, cuts)
    if (difference === null) continue
    t.fail(`seed ${seed}: ${difference}`, { input: input.toString() })
    return
  }
  t.pass('5,000 streams')
})

/** The first difference between the two parsers, in words. */
function compare(input: Buffer, cuts: Uint8Array[]): string | null {
  const ours = summary(cuts)
  const slow = reference(input)
  if (ours.done !== slow.done) return `done: ${ours.done}`
  if (!isSame(ours.raw, slow.raw)) return `raw: ${ours.raw}`
  if (!isSame(ours.kept, slow.kept)) return `without usage: ${ours.kept}`
  for (const key of ['chunks', 'usage', 'error', 'finished', 'hasToken', 'hasData'] as const) {
    const [a, b] = [JSON.stringify(ours[key]), JSON.stringify(slow[key])]
    if (a !== b) return `${key}: ${a} instead of ${b}`
  }
  return null
}

/** The same bytes, but for blank lines after the last event. */
function isSame(ours: Buffer, slow: Buffer): boolean {
  const [a, b] = [ours, slow].map(bytes => bytes.toString().replace(/^\ufeff?[\r\n]+$|[\r\n]+$/g, ''))
  return a === b
}

/** What a consumer makes of the reads: everything up to the first error. */
function summary(cuts: Uint8Array[]) {
  const { frames, done } = readAll(cuts)
  const raw: Buffer[] = []
  const kept: Buffer[] = []
  const all: ChatCompletionChunk[] = []
  let last: CompletionUsage | null = null
  let error: unknown
  let [finished, hasToken, hasData] = [false, false, false]
  for (const read of frames) {
    last = read.usage ?? last
    const { fault } = read
    error = fault?.error
    const before = fault === null ? read : fault.before
    if (before !== null) {
      raw.push(before.raw)
      kept.push(Buffer.from(before.withoutUsage()?.raw ?? []))
      all.push(...before)
      finished ||= before.finished
      hasToken ||= before.hasToken
      hasData ||= before.hasData
    }
    if (error !== undefined) break
  }
  return {
    done: done && error === undefined,
    raw: Buffer.concat(raw),
    kept: Buffer.concat(kept),
    chunks: all,
    usage: last,
    error,
    finished,
    hasToken,
    hasData
  }
}

t.test('the fault of an event that is too large is a fault of the provider', async t => {
  try {
    eventReader(10).read(Buffer.from('data: more than ten bytes'))
    t.fail('accepted')
  } catch (error) {
    t.ok(isGatewayError(error))
  }
})

// Data of streams that are not OpenAI's

/** All data that a stream of these reads brings. */
function datasOf(reads: Iterable<Uint8Array>, encoding?: 'utf8' | 'latin1'): string[] {
  const reader = dataReader(1_000, encoding)
  return [...Array.from(reads, bytes => reader.read(Buffer.from(bytes))), reader.end()].flat()
}

t.test('data may be read as the bytes that it is, which say the same once they are decoded', async t => {
  const stream = Buffer.from('\ufeffdata: {"a":"Zürich 東京"}\r\n\r\n: hello\n\ndata:1\ndata: 2 🙂\n\ndata: cut')
  const texts = ['{"a":"Zürich 東京"}', '1\n2 🙂', 'cut']
  t.same(datasOf([stream]), texts)
  const raw = texts.map(text => Buffer.from(text).toString('latin1'))
  for (const reads of [[stream], pieces(stream, 'byte')]) t.same(datasOf(reads, 'latin1'), raw)
})

t.test('JSON that is no event is data at the end of a stream, and nothing else is', async t => {
  const events = 'data: 1\n\n'
  const ends: Array<[string, string[]]> = [
    [
      '{\r\n  "error": {\r\n    "message": "é"\r\n  }\r\n}\r\n',
      ['{\r\n  "error": {\r\n    "message": "é"\r\n  }\r\n}']
    ],
    [' [{"error": 1}]', ['[{"error": 1}]']],
    ['<html>', []],
    ['event: ping', []],
    ['data: {"cut', ['{"cut']],
    ['', []]
  ]
  for (const [end, expected] of ends) {
    const stream = Buffer.from(events + end)
    for (const reads of [[stream], pieces(stream, 'byte')]) t.same(datasOf(reads), ['1', ...expected], end)
  }
})
