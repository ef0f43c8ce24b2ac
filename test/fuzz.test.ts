import { connect } from 'node:net'
import t, { type Test } from 'tap'
import { build, hello, towards } from './helper.ts'
import { completion, json, type Received, seeded, startUpstream } from './upstream.ts'

const rounds = 10_000
const seed = 20_261_121
const path = '/v1/chat/completions'

type Random = () => number

/** Requests that are right, as the ground from which mutations depart. */
const corpus: object[] = [
  hello,
  { ...hello, stream: true, stream_options: { include_usage: true } },
  {
    model: 'test',
    messages: [
      { role: 'system', content: 'Grüße 👋🏽' },
      {
        role: 'user',
        content: [
          { type: 'text', text: 'a' },
          { type: 'image_url', image_url: { url: 'data:,', detail: 'low' } }
        ]
      },
      {
        role: 'assistant',
        content: null,
        tool_calls: [{ id: 'c1', type: 'function', function: { name: 'f', arguments: '{"a": 1}' } }]
      },
      { role: 'tool', tool_call_id: 'c1', content: 'ok' }
    ],
    tools: [
      {
        type: 'function',
        function: { name: 'f', parameters: { type: 'object', properties: { constructor: { type: 'string' } } } }
      }
    ],
    tool_choice: 'auto',
    temperature: 0.5,
    max_tokens: 10
  },
  {
    ...hello,
    response_format: { type: 'json_schema', json_schema: { name: 'x', schema: { type: 'object' } } },
    stop: ['a'],
    logit_bias: { 1: 2 },
    metadata: { a: 'b' },
    tenant: 'public',
    coerce: true
  }
]

/** Values that programs trip over. */
const awkward: unknown[] = [
  null,
  true,
  false,
  0,
  -0,
  -1,
  1.5,
  1e308,
  1e-320,
  2 ** 53 + 2,
  '',
  ' ',
  '0.7',
  '__proto__',
  'constructor',
  '%s%d%o%j',
  '\u0000',
  '\ud800',
  '\uffff',
  '\r\n\r\ndata: [DONE]\r\n\r\n',
  '../../etc/passwd',
  'x'.repeat(300),
  'ü'.repeat(70_000),
  [],
  {},
  [[]],
  [null],
  { a: { b: { c: {} } } },
  { toString: null },
  { length: 4_294_967_296 },
  { constructor: { prototype: {} } },
  Object.fromEntries([['then', 'x']]),
  { toJSON: 1 },
  Array.from({ length: 500 }, (_, index) => index)
]

/** Names for fields that nobody expects; one of a prototype is set by splinters, since no value can own it. */
const names = [
  '',
  'constructor',
  'toString',
  'hasOwnProperty',
  'tenant',
  'task',
  'coerce',
  'error',
  'x'.repeat(300),
  '\u0000'
]

/** Text that no encoder would make. */
const splinters = [
  '{',
  '}',
  '[',
  ']',
  '"',
  ',',
  ':',
  '\\',
  '\\u',
  '\\ud83d',
  'null',
  'NaN',
  '1e999',
  '-',
  '\u0000',
  '\ufeff',
  '"__proto__":',
  '"constructor":{"prototype":',
  '\n',
  '\u2028',
  '{"a":'.repeat(200),
  '['.repeat(3_000)
]

function pick<T>(random: Random, from: readonly T[]): T {
  return from[Math.floor(random() * from.length)]!
}

/** The same value with one place in it replaced, removed, doubled or given a strange key. */
function mutateValue(random: Random, value: unknown, depth = 0): unknown {
  if (typeof value !== 'object' || value === null || random() < depth * 0.1) return pick(random, awkward)
  if (Array.isArray(value)) {
    const copy = [...value]
    const index = Math.floor(random() * copy.length)
    const act = random()
    if (act < 0.15) copy.splice(index, 1)
    else if (act < 0.3) copy.push(copy[index], copy[index])
    else copy[index] = mutateValue(random, copy[index], depth + 1)
    return copy
  }
  const copy: Record<string, unknown> = { ...value }
  const key = pick(random, Object.keys(copy))
  const act = random()
  if (act < 0.15) delete copy[key]
  else if (act < 0.3) copy[pick(random, names)] = pick(random, awkward)
  else copy[key] = mutateValue(random, copy[key], depth + 1)
  return copy
}

function mutateText(random: Random, text: string): string {
  const at = Math.floor(random() * text.length)
  const to = Math.min(text.length, at + Math.floor(random() * 20))
  switch (Math.floor(random() * 5)) {
    case 0:
      return text.slice(0, at)
    case 1:
      return text.slice(0, at) + text.slice(to)
    case 2:
      return text.slice(0, at) + pick(random, splinters) + text.slice(at)
    case 3:
      return text.slice(0, to) + text.slice(at)
    default:
      return text.slice(0, at) + JSON.stringify(pick(random, awkward)) + text.slice(to)
  }
}

/** Random bytes, mutated text or mutated values: what arrives is bytes in any case. */
function mutant(random: Random): Buffer {
  const kind = random()
  if (kind < 0.1)
    return Buffer.from(Array.from({ length: Math.floor(random() * 200) }, () => Math.floor(random() * 256)))
  let value: unknown = pick(random, corpus)
  for (let times = Math.ceil(random() ** 2 * 4); times > 0; times--) value = mutateValue(random, value)
  if (kind < 0.6) return Buffer.from(JSON.stringify(value) ?? '')
  let text = JSON.stringify(kind < 0.8 ? value : pick(random, corpus)) ?? ''
  for (let times = Math.ceil(random() * 3); times > 0; times--) text = mutateText(random, text)
  const bytes = Buffer.from(text)
  if (kind > 0.95 && bytes.length > 0) bytes[Math.floor(random() * bytes.length)] = Math.floor(random() * 256)
  return bytes
}

const types = [
  ...Array.from({ length: 60 }, () => 'application/json'),
  'application/json; charset=utf-8',
  'text/plain',
  'application/x-www-form-urlencoded',
  'multipart/form-data',
  'x/y; =',
  ''
]
const paths = [...Array.from({ length: 40 }, () => path), '/proxy/test', '/proxy/a%2Fb', '/proxy/%00', '/v1/nope']

async function prepared(t: Test) {
  const refusals: string[] = []
  const upstream = await startUpstream({
    // Whatever arrives here has to be a request that a provider could read.
    script: (request: Received) => {
      try {
        const { model, messages, ...rest } = request.json
        if (model !== 'upstream-model' || !Array.isArray(messages) || messages.length === 0)
          throw new Error('no request')
        for (const own of ['tenant', 'task', 'response_schema', 'coerce']) if (own in rest) throw new Error(own)
      } catch (error) {
        refusals.push(`${error}: ${request.rawBody.toString().slice(0, 200)}`)
      }
      return request.json.stream ? streamOf() : json(completion())
    }
  })
  t.teardown(() => upstream.close())
  const app = await build(t, towards(upstream, { defaultModel: 'test', tasks: { b: 'test' } }))
  return { upstream, app, refusals }
}

function streamOf() {
  const chunk = { id: 'x', object: 'chat.completion.chunk', created: 1, model: 'm' }
  const data = JSON.stringify({ ...chunk, choices: [{ index: 0, delta: { content: 'x' }, finish_reason: 'stop' }] })
  return {
    ...json({}),
    headers: { 'content-type': 'text/event-stream' },
    body: () => [Buffer.from(`data: ${data}\n\ndata: [DONE]\n\n`)]
  }
}

/** A promise, or the end of our patience: a request that hangs is a fault. */
function inTime<T>(promise: PromiseLike<T>, what: () => string): Promise<T> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(new Error(`nothing came of ${what()}`)), 10_000)
    promise.then(
      value => {
        clearTimeout(timer)
        resolve(value)
      },
      error => {
        clearTimeout(timer)
        reject(error)
      }
    )
  })
}

t.test(`${rounds} random and mutated bodies: every one is answered, none with a fault of ours`, async t => {
  const { app, refusals } = await prepared(t)
  const random = seeded(seed)
  const split: Record<string, number> = {}
  const wrong: string[] = []
  for (let round = 0; round < rounds; round++) {
    const payload = mutant(random)
    const type = pick(random, types)
    const url = pick(random, paths)
    const answer = await inTime(
      app.inject({ method: 'POST', url, headers: { 'content-type': type }, payload }),
      () => `round ${round}: ${payload}`
    )
    const status = answer.statusCode
    split[status] = (split[status] ?? 0) + 1
    const known = [200, 400, 401, 403, 404, 413, 415].includes(status)
    const told = status === 200 || url === '/v1/nope' || hasErrorBody(answer.body)
    if (!known || !told)
      wrong.push(`round ${round}, ${type}: ${status} ${answer.body.slice(0, 200)} for ${payload.subarray(0, 300)}`)
  }
  t.comment(`statuses: ${JSON.stringify(split)}`)
  t.same(wrong, [])
  t.same(refusals, [])
  t.ok(split['200']! > rounds / 20, 'mutations stay near enough to what is right')
  t.ok(split['400']! > rounds / 4, 'and go far enough from it')
  t.equal(app.gateway.running, 0)
  t.equal(Object.keys(Object.prototype).length, 0)
})

function hasErrorBody(text: string): boolean {
  try {
    const { error } = JSON.parse(text)
    return Object.keys(error).sort().join() === 'code,message,param,type' && typeof error.message === 'string'
  } catch {
    return false
  }
}

t.test('1,000 requests that are broken on the wire: the server answers the next one all the same', async t => {
  const { app } = await prepared(t)
  const random = seeded(seed + 1)
  const { port } = new URL(await app.listen({ host: '127.0.0.1', port: 0 }))
  const statuses: Record<string, number> = {}
  for (let round = 0; round < 1_000; round++) {
    const body = JSON.stringify(pick(random, corpus))
    const whole = `POST ${path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: ${Buffer.byteLength(body)}\r\n\r\n${body}`
    let text = whole
    for (let times = Math.ceil(random() * 3); times > 0; times--) text = mutateText(random, text)
    const status = await inTime(exchange(Number(port), text), () => `round ${round}: ${text}`)
    statuses[status] = (statuses[status] ?? 0) + 1
  }
  t.comment(`statuses: ${JSON.stringify(statuses)}`)
  t.notOk(statuses['500'])
  const answer = await app.inject({ method: 'POST', url: path, payload: hello })
  t.equal(answer.statusCode, 200)
  t.equal(app.gateway.running, 0)
})

/** Sends text as it is and half-closes; the status that comes back, or `none`. */
function exchange(port: number, text: string): Promise<string> {
  return new Promise(resolve => {
    const socket = connect(port, '127.0.0.1')
    let got = ''
    socket.on('data', read => (got += read))
    socket.on('error', () => {})
    socket.once('close', () => resolve(/^HTTP\/1\.1 (\d{3})/.exec(got)?.[1] ?? 'none'))
    socket.end(text)
  })
}

t.test('the same seed makes the same bodies', async t => {
  const [first, second] = [seeded(1), seeded(1)]
  for (let round = 0; round < 50; round++) t.same(mutant(first), mutant(second))
})
