import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import t, { type Test } from 'tap'
import { verifyAnswer, verifyStream } from '../examples/verify/verify.ts'
import signing from '../plugins/signing/index.ts'
import { eventReader } from '../providers/sse/index.ts'
import type { ChatCompletion, ChatCompletionChunk } from '../schemas/chat.ts'
import { chunkFrames, type Frames } from '../schemas/frames.ts'
import type { Answer } from '../schemas/gateway.ts'
import { ask, askStream, host, scripted } from './plugins/kernel.ts'
import { find, skipOrFail } from './services/index.ts'
import { pieces, seeded } from './upstream.ts'

// The verifiers of examples/verify, in both languages, against what the gateway signs: random answers as it writes them, and
// every way of changing them.

const secret = 'a secret that is longer than 32 characters, ü'
const folder = join(import.meta.dirname, '../examples/verify')
const answers = 5_000
const random = seeded(20_261_128)

/** The body of an answer, whole or all the events of a stream. */
interface Body {
  readonly stream: boolean
  readonly text: string
}

/** What a verifier says of a body. `unreadable`: it threw. */
type Verdict = 'valid' | 'forged' | 'truncated' | 'unreadable'

function verdictOf({ stream, text }: Body): Verdict {
  try {
    return stream ? verifyStream(text, secret) : verifyAnswer(text, secret) ? 'valid' : 'forged'
  } catch {
    return 'unreadable'
  }
}

const driver = `
import json, sys
sys.path.insert(0, sys.argv[1])
sys.dont_write_bytecode = True
from verify import verify_answer, verify_stream
for line in sys.stdin:
    stream, text = json.loads(line)
    try:
        verdict = verify_stream(text, sys.argv[2]) if stream else "valid" if verify_answer(text, sys.argv[2]) else "forged"
    except (ValueError, TypeError, AttributeError, RecursionError):
        verdict = "unreadable"
    print(verdict)
`

type Python = (bodies: readonly Body[]) => Promise<string[]>

/** One process that is fed bodies; null, and the test skipped, where there is no Python. */
function startPython(t: Test): Python | null {
  const command = find('python3')
  if (command === null) {
    skipOrFail(t, 'python3')
    return null
  }
  const child = spawn(command, ['-X', 'utf8', '-c', driver, folder, secret], { stdio: ['pipe', 'pipe', 'inherit'] })
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]()
  t.teardown(async () => {
    child.stdin.end()
    if (child.exitCode === null) await once(child, 'exit')
  })
  async function feed(bodies: readonly Body[]): Promise<void> {
    for (const { stream, text } of bodies) {
      if (!child.stdin.write(`${JSON.stringify([stream, text])}\n`)) await once(child.stdin, 'drain')
    }
  }
  return async bodies => {
    const feeding = feed(bodies)
    const verdicts: string[] = []
    while (verdicts.length < bodies.length) {
      const { value, done } = await lines.next()
      if (done) throw new Error('Python has ended.')
      verdicts.push(value)
    }
    await feeding
    // It has started, and has printed its last answer when its input ends.
    return verdicts
  }
}

// answers

function pick<Item>(list: readonly Item[]): Item {
  return list[Math.floor(random() * list.length)]!
}

function times<Item>(count: number, make: () => Item): Item[] {
  return Array.from({ length: count }, make)
}

const scraps = [
  'Grüße',
  ' 東京',
  '👋🏽',
  '"',
  '\\',
  '\n',
  '\u0000',
  '\u2028',
  '/',
  '\ud83d',
  '\udc4b',
  'plain text ',
  '\u007f',
  ''
]

function words(most: number): string {
  return times(Math.floor(random() * most), () => pick(scraps)).join('')
}

function number(): number {
  const kind = random()
  if (kind < 0.3) return Math.floor(random() * 1_000) - 500
  if (kind < 0.5) return random() * 10 ** Math.floor(random() * 50 - 25)
  if (kind < 0.6) return pick([0, -0, 2 ** 53 + 2, -(2 ** 60), 1e21, 1e20, 1e-6, 1e-7, 5e-324, 0.1 + 0.2])
  const bits = Buffer.from(times(8, () => Math.floor(random() * 256)))
  const any = bits.readDoubleBE()
  return Number.isFinite(any) ? any : 1
}

function value(depth: number): unknown {
  const kind = random()
  if (kind < 0.3) return words(6)
  if (kind < 0.6) return number()
  if (kind < 0.75 || depth === 0) return pick([true, false, null])
  if (kind < 0.85) return times(Math.floor(random() * 4), () => value(depth - 1))
  return fields(depth - 1)
}

const oddNames = [
  '',
  '1',
  '10',
  '9',
  '\ufb33',
  '😀',
  'ö',
  '__proto__',
  'signature',
  'logprobs',
  'x"y',
  'Z',
  'a',
  '\r',
  'toJSON'
]

function fields(depth: number): Record<string, unknown> {
  return Object.fromEntries(times(Math.floor(random() * 5), () => [pick(oddNames), value(depth)]))
}

/** JSON in one of the ways in which others write it; at the top with a number beyond what JavaScript holds exactly. */
function written(object: object): string {
  const text = JSON.stringify(object)
  if (random() < 0.7) return text
  return `{"big": 12345678901234567890123, "one":1.0,"e" : 1E5 ,${text.slice(1)}`
}

function completion(): ChatCompletion {
  return {
    id: `chatcmpl-${words(2)}`,
    object: 'chat.completion',
    created: 1_741_569_952,
    model: 'gpt',
    choices: [{ index: 0, finish_reason: 'stop', message: { role: 'assistant', content: words(20), ...fields(1) } }],
    ...(random() < 0.5 && { usage: { prompt_tokens: 1, completion_tokens: 2, total_tokens: 3 } }),
    ...fields(2)
  }
}

/** Most streams say one thing after another in the same words around it. */
function chunksOf(count: number): ChatCompletionChunk[] {
  const head = { id: 'c1', object: 'chat.completion.chunk' as const, created: 1, model: `m${words(1)}` }
  const same = random() < 0.6 ? [fields(1), fields(2)] : null
  const chunks: ChatCompletionChunk[] = times(count, () => {
    const [inside, beside] = same ?? [fields(1), fields(1)]
    const delta = { ...inside, content: words(8), ...(random() < 0.1 && { reasoning: words(3) }) }
    return { ...head, choices: [{ index: 0, delta, finish_reason: null }], ...beside, obfuscation: words(3) }
  })
  return [...chunks, { ...head, choices: [{ index: 0, delta: {}, finish_reason: 'stop' }] }]
}

function wholeAnswer(): Answer {
  const body = completion()
  if (random() < 0.2) return { stream: false, raw: null, body }
  const end = pick(['', '\n', ' \r\n'])
  const raw = Buffer.from(pick([written(body), JSON.stringify(body, null, 1)]) + end)
  return { stream: false, raw, body: JSON.parse(raw.toString()) }
}

async function* framesOf(chunks: readonly ChatCompletionChunk[]): AsyncGenerator<Frames> {
  const kind = random()
  if (kind < 0.2) {
    for (const chunk of chunks) yield chunkFrames([chunk])
    return
  }
  const line = pick(['\n', '\n', '\n', '\r\n', '\r'])
  const comment = kind < 0.4 ? `: PROCESSING${line}${line}` : ''
  const done = random() < 0.8 ? `data: [DONE]${line}${line}` : ''
  const write = random() < 0.7 ? JSON.stringify : written
  const body = chunks.map(chunk => `${comment}data: ${write(chunk)}${line}${line}`).join('') + done
  const reader = eventReader(1_000_000)
  for (const piece of pieces(Buffer.from(body), { seed: Math.floor(random() * 1e9), max: 2_000 })) {
    const { frames } = reader.read(Buffer.from(piece))
    if (frames !== null) yield frames
  }
  const { frames } = reader.end()
  if (frames !== null) yield frames
}

/** A gateway that signs what its provider makes up. */
async function signer(t: Test) {
  const up = scripted('up', async ({ request }) => {
    if (request.stream !== true) return wholeAnswer()
    return { stream: true, frames: framesOf(chunksOf(1 + Math.floor(random() * 6))) }
  })
  const app = await host(t, { providers: [up] })
  await app.register(signing, { secret })
  await app.ready()
  const { gateway } = app
  return async (stream: boolean): Promise<Body> => {
    const answer = await gateway.complete(stream ? askStream : ask, gateway.caller())
    if (!answer.stream) return { stream, text: textOf(answer.raw) }
    let text = ''
    for await (const frames of answer.frames) text += textOf(frames.raw)
    return { stream, text: `${text}data: [DONE]\n\n` }
  }
}

async function shorter(sign: (stream: boolean) => Promise<Body>, stream: boolean, most: number): Promise<Body> {
  let body = await sign(stream)
  while (body.text.length > most) body = await sign(stream)
  return body
}

function textOf(raw: Uint8Array | null): string {
  if (raw === null) throw new Error('It is not in bytes.')
  return Buffer.from(raw).toString()
}

// changes

/** What a receiver reads, as far as it can: by the event reader that the gateway itself reads providers with. */
function meaning({ stream, text }: Body): string {
  if (!stream) return JSON.stringify(JSON.parse(text))
  const reader = eventReader(10_000_000)
  const { frames } = reader.read(Buffer.from(text))
  return JSON.stringify([...(frames ?? [])])
}

/** The same body with one bit of its bytes turned. */
function flipped({ stream, text }: Body, bit: number): Body {
  const bytes = Buffer.from(text)
  bytes[bit >> 3] = bytes[bit >> 3]! ^ (1 << (bit & 7))
  return { stream, text: bytes.toString() }
}

/** False where the change says the same: another case of an exponent, a number beyond what a double holds. */
function differs(one: Body, other: Body): boolean {
  try {
    return meaning(one) !== meaning(other)
  } catch {
    return true
  }
}

function bitsOf({ text }: Body): number {
  return Buffer.byteLength(text) * 8
}

const done = 'data: [DONE]'

function withEvents(events: readonly string[], end = `${done}\n\n`): Body {
  return { stream: true, text: events.map(event => `${event}\n\n`).join('') + end }
}

function eventsIn({ text }: Body): string[] {
  return text.split('\n\n').filter(event => event !== '' && event !== done)
}

/** One of each kind of change to the events of a stream, at a random place. */
function tampered(body: Body): Body[] {
  const events = eventsIn(body)
  const at = Math.floor(random() * events.length)
  const next = Math.floor(random() * (events.length - 1))
  return [
    withEvents(events.toSpliced(at, 1)),
    withEvents(events.toSpliced(next, 2, events[next + 1]!, events[next]!)),
    withEvents(events.toSpliced(at, 0, events[at]!)),
    withEvents(events.slice(0, at)),
    withEvents(events.slice(0, at), ''),
    { stream: true, text: body.text.slice(0, Math.floor(random() * (body.text.length - done.length - 2))) }
  ]
}

// tests

t.test('the verifiers are short', async t => {
  for (const name of ['verify.ts', 'verify.py']) {
    const lines = readFileSync(join(folder, name), 'utf8').split('\n')
    const code = lines.filter(line => !/^\s*($|#|\/\/|\/\*|""")/.test(line))
    t.ok(code.length < 30, `${name}: ${code.length} lines`)
  }
})

t.test('random answers verify, and none that was changed does', async t => {
  const sign = await signer(t)
  const python = startPython(t)
  const bodies: Body[] = []
  for (let index = 0; index < 2 * answers; index++) bodies.push(await sign(index % 2 === 1))
  const changed = bodies.flatMap(body => {
    const flips = [flipped(body, Math.floor(random() * bitsOf(body)))].filter(other => differs(body, other))
    return body.stream ? [...flips, pick(tampered(body))] : flips
  })
  t.equal(bodies.length, 10_000)
  t.ok(changed.length > 12_000, `${changed.length} changes`)
  t.equal(bodies.filter(body => verdictOf(body) !== 'valid').length, 0)
  t.equal(changed.filter(body => verdictOf(body) === 'valid').length, 0)
  if (python === null) return
  t.equal((await python(bodies)).filter(verdict => verdict !== 'valid').length, 0)
  t.equal((await python(changed)).filter(verdict => verdict === 'valid').length, 0)
})

t.test('every single bit counts', async t => {
  const sign = await signer(t)
  const python = startPython(t)
  let flips = 0
  const check = async (bodies: readonly Body[], says: (bodies: readonly Body[]) => Promise<string[]>) => {
    for (const body of bodies) {
      const all = Array.from({ length: bitsOf(body) }, (_, bit) => flipped(body, bit))
      const others = all.filter(other => differs(body, other))
      const verdicts = await says(others)
      flips += others.length
      for (const [index, verdict] of verdicts.entries()) if (verdict === 'valid') t.fail(`${others[index]?.text}`)
    }
  }
  const few = [await shorter(sign, false, 800), await shorter(sign, true, 1_200)]
  const more = [await shorter(sign, false, 1_500), await shorter(sign, true, 2_000), ...few]
  await check(more, async bodies => bodies.map(verdictOf))
  t.ok(flips > 15_000, `${flips} bits`)
  if (python !== null) await check(few, python)
})

t.test('what was done to a stream', async t => {
  const sign = await signer(t)
  const python = startPython(t)
  let body = await sign(true)
  while (eventsIn(body).length < 5) body = await sign(true)
  const events = eventsIn(body)
  const last = events.length - 1
  const error = 'data: {"error":{"message":"it broke","type":"server_error","param":null,"code":null}}'
  const cases: Array<[string, Body, Verdict]> = [
    ['as it came', body, 'valid'],
    ['without [DONE]', withEvents(events, ''), 'valid'],
    ['with heartbeats', withEvents([': heartbeat', ...events.flatMap(event => [event, ': heartbeat'])]), 'valid'],
    ['nothing', withEvents([]), 'truncated'],
    ['not even [DONE]', withEvents([], ''), 'truncated'],
    ['the first dropped', withEvents(events.slice(1)), 'forged'],
    ['one dropped', withEvents(events.toSpliced(1, 1)), 'forged'],
    ['the last dropped', withEvents(events.slice(0, last)), 'truncated'],
    ['the last two dropped', withEvents(events.slice(0, last - 1)), 'truncated'],
    ['two swapped', withEvents(events.toSpliced(1, 2, events[2]!, events[1]!)), 'forged'],
    ['one repeated', withEvents(events.toSpliced(1, 0, events[1]!)), 'forged'],
    ['the last repeated', withEvents([...events, events[last]!]), 'forged'],
    ['more after the last', withEvents([...events, events[1]!]), 'forged'],
    ['more after [DONE]', withEvents(events, `${done}\n\n${events[1]}\n\n`), 'forged'],
    ['the start of more after [DONE]', withEvents(events, `${done}\n\ndata: {"choices":[]}\n`), 'truncated'],
    ['[DONE] too early', withEvents(events.toSpliced(1, 0, done)), 'truncated'],
    ['cut inside [DONE]', withEvents(events, 'data: [DO'), 'truncated'],
    ['broken off by an error', withEvents([...events.slice(0, 2), error], ''), 'truncated'],
    ['an error after the last', withEvents([...events, error], ''), 'forged'],
    ['another event beside', withEvents(events.toSpliced(1, 0, 'event: error')), 'forged'],
    ['a name put before', withEvents(events.with(1, `event: thread.x\n${events[1]}`)), 'forged'],
    ['a chunk hidden behind a comment', withEvents(events.toSpliced(1, 0, ': x\rdata: {"choices":[]}')), 'forged'],
    ['a chunk in another form', withEvents(events.toSpliced(1, 0, 'data:{"choices":[]}')), 'forged'],
    ['a chunk without a signature', withEvents(events.toSpliced(1, 0, 'data: {"choices":[]}')), 'forged'],
    ['cut inside its last event', { stream: true, text: body.text.slice(0, -20) }, 'truncated']
  ]
  const other = eventsIn(await sign(true))
  cases.push(['the start of another one', withEvents([other[0]!, ...events.slice(1)]), 'forged'])
  cases.push(['the end of another one', withEvents([...events.slice(0, -1), other.at(-1)!]), 'forged'])
  for (const [name, body, expected] of cases) t.equal(verdictOf(body), expected, name)
  if (python === null) return
  const verdicts = await python(cases.map(([, body]) => body))
  for (const [index, [name, , expected]] of cases.entries()) t.equal(verdicts[index], expected, `${name}, in Python`)
})

t.test('what is no JSON, and null, is refused as the page says', async t => {
  for (const [text, error] of [
    ['{', SyntaxError],
    ['', SyntaxError],
    ['null', TypeError]
  ] as const) {
    t.throws(() => verifyAnswer(text, secret), error)
    t.throws(() => verifyStream(`data: ${text}\n\n`, secret), error)
  }
  for (const text of ['[]', '1', '"text"']) {
    t.equal(verifyAnswer(text, secret), false)
    t.equal(verifyStream(`data: ${text}\n\n`, secret), 'forged')
  }
})

t.test('another secret, no signature, one of another form', async t => {
  const sign = await signer(t)
  const python = startPython(t)
  const { text } = await sign(false)
  t.equal(verifyAnswer(text, secret), true)
  t.equal(verifyAnswer(text, `${secret}.`), false)
  const { signature, ...rest } = JSON.parse(text)
  const odd = [
    rest,
    ...[[signature], signature.toUpperCase(), '', null, 'é'.repeat(64)].map(signature => ({ ...rest, signature }))
  ]
  const bodies = odd.map(body => ({ stream: false, text: JSON.stringify(body) }))
  for (const body of bodies) t.not(verdictOf(body), 'valid')
  if (python !== null) for (const verdict of await python(bodies)) t.not(verdict, 'valid')
})
