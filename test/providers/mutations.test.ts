import t from 'tap'
import { streamedAnswer } from '../../providers/stream.ts'
import type { Reads, Reply } from '../../providers/upstream.ts'
import { chunkReader, wholeAnswer } from '../../providers/wires/openai/answer.ts'
import { isGatewayError, UpstreamError } from '../../schemas/errors.ts'
import { build, hello, towards } from '../helper.ts'
import { chunks, completion, pieces, seeded, sse, startUpstream, toolChunks } from '../upstream.ts'
import { randomStream } from './streams.ts'

type Random = () => number

const reply: Reply = { status: 200, headers: { 'content-type': 'text/event-stream' }, body: null, reads: null }
const redact = (text: string) => text
const tokens = [
  '[DONE]',
  'data:',
  '\n\n',
  '\r',
  '"error":1',
  '"usage":{}',
  '"choices":null',
  ':',
  '\0',
  '\ufeff',
  '{',
  ']'
]
const streams = [
  sseText(chunks('Hello Zürich 東京 🙂', { usage: true })),
  sseText(toolChunks([{ name: 'weather', arguments: '{"city":"Zürich"}' }], { usage: true })),
  `: ping\r\n\r\n${sseText(chunks('a b c')).replaceAll('\n', '\r\n')}`,
  `${sseText(chunks('half an'))}data: {"error":{"message":"broke","code":502}}\n\n`
]

function sseText(all: readonly unknown[]): string {
  return `${all.map(chunk => `data: ${JSON.stringify(chunk)}\n\n`).join('')}data: [DONE]\n\n`
}

/** One to four changes: bytes flipped, cut out, doubled, moved, or words of the protocol put where they do not belong. */
function mutate(whole: Buffer, random: Random): Buffer {
  let bytes = whole
  const place = () => Math.floor(random() * (bytes.length + 1))
  for (let count = 1 + Math.floor(random() * 4); count > 0; count--) {
    const [from, to] = [place(), place()].sort((a, b) => a - b) as [number, number]
    const cut = bytes.subarray(from, Math.min(to, from + 80))
    const [head, tail] = [bytes.subarray(0, from), bytes.subarray(from + cut.length)]
    const word = Buffer.from(tokens[Math.floor(random() * tokens.length)]!)
    const kinds = [
      () => Buffer.concat([head, Buffer.from([random() * 256]), tail]),
      () => Buffer.concat([head, tail]),
      () => Buffer.concat([head, cut, cut, tail]),
      () => Buffer.concat([tail, cut, head]),
      () => Buffer.concat([head, word, cut, tail]),
      () => head
    ]
    bytes = kinds[Math.floor(random() * kinds.length)]!()
  }
  return bytes
}

function stream(random: Random): Buffer {
  const sound = random() < 0.3 ? randomStream(random) : Buffer.from(streams[Math.floor(random() * streams.length)]!)
  return mutate(sound, random)
}

/** The reads of a provider that sends these pieces and then ends, or breaks. */
function scripted(input: readonly Uint8Array[], breaks: boolean) {
  const left = [...input]
  const closed: boolean[] = []
  const reads: Reads = {
    async next() {
      const piece = left.shift()
      if (piece !== undefined) return Buffer.from(piece)
      if (breaks) throw new UpstreamError('the connection broke.')
      return null
    },
    progress() {},
    close: complete => void closed.push(complete)
  }
  return { reads, closed }
}

/** Reads an answer as the kernel does, touching everything that can be touched. */
async function consume(reads: Reads): Promise<unknown> {
  try {
    const answer = streamedAnswer(reply, reads, chunkReader(reply, 4_096, redact))
    if (!answer.stream) return new Error('no stream')
    for await (const frames of answer.frames) {
      void [frames.finished, frames.usage, frames.hasToken, frames.hasData, frames.withoutUsage()?.raw, [...frames]]
    }
    return null
  } catch (error) {
    return error
  }
}

t.test('10,000 mutated streams end as answers or as faults of ours, and each gives its connection back', async t => {
  const ends = { answers: 0, faults: 0 }
  for (let seed = 1; seed <= 10_000; seed++) {
    const random = seeded(seed)
    const { reads, closed } = scripted(
      pieces(stream(random), { seed, max: 1 + Math.floor(random() * 300) }),
      random() < 0.1
    )
    const error = await consume(reads)
    if ((error !== null && !isGatewayError(error)) || closed.length === 0) {
      t.fail(`seed ${seed}`, { error, closed })
      return
    }
    ends[error === null ? 'answers' : 'faults']++
  }
  t.ok(ends.answers > 1_000 && ends.faults > 500, JSON.stringify(ends))
})

t.test('10,000 mutated whole answers are handed on as they are or refused as faults of ours', async t => {
  const sound = [
    completion({ content: 'Zürich' }),
    { error: { message: 'no', code: 400 } },
    completion({ error: null })
  ]
  for (let seed = 1; seed <= 10_000; seed++) {
    const random = seeded(seed)
    const body = mutate(Buffer.from(JSON.stringify(sound[seed % sound.length])), random)
    const status = [200, 200, 400, 401, 429, 500][Math.floor(random() * 6)]!
    try {
      const answer = wholeAnswer({ ...reply, status, body }, redact)
      if (!answer.stream && answer.raw !== body) t.fail(`seed ${seed}: other bytes`)
      if (!answer.stream) void answer.body
    } catch (error) {
      if (!isGatewayError(error)) t.fail(`seed ${seed}`, { error })
    }
  }
  t.pass('10,000 answers')
})

t.test('300 mutated streams over real sockets end in an event or an error body, and the gateway goes on', async t => {
  const upstream = await startUpstream()
  t.teardown(() => upstream.close())
  upstream.script(({ index }) => {
    const random = seeded(index)
    return sse(stream(random), { cut: { seed: index, max: 400 }, interval: null })
  })
  const app = await build(t, towards(upstream))
  const url = await app.listen({ host: '127.0.0.1', port: 0 })
  const body = JSON.stringify({ ...hello, stream: true })
  const ask = async () => {
    const response = await fetch(`${url}/v1/chat/completions`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body
    })
    const text = await response.text()
    if (response.status === 200) return text.endsWith('data: [DONE]\n\n') || /data: \{"error":.*\n\n$/.test(text)
    const { error } = JSON.parse(text)
    return response.status !== 500 && typeof error.message === 'string' && error.code !== 'internal_error'
  }
  for (let round = 0; round < 30; round++) {
    const fine = await Promise.all(Array.from({ length: 10 }, ask))
    if (!fine.every(Boolean)) t.fail(`round ${round}`)
  }
  upstream.script(sse(chunks('still here')))
  t.ok(await ask())
  t.equal(app.gateway.running, 0)
})
