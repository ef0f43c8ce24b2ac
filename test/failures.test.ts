import { readFileSync } from 'node:fs'
import { createServer as createSecureServer } from 'node:https'
import { type AddressInfo, createServer, type Server, type Socket } from 'node:net'
import t, { type Test } from 'tap'
import type { ModelGatewayOptions } from '../app.ts'
import { good, type Scenario, scenarios, theirs } from './failures/scenarios.ts'
import { type Course, type Form, type Row, rowsOf } from './failures/table.ts'
import { build } from './helper.ts'
import { scratch } from './long/money.ts'
import { type Received, startUpstream } from './upstream.ts'

// Every row of the table in docs/routing.md: whole and as a stream, with one target and with a fallback, over HTTP, through
// the whole app with its books on SQLite.

/** What the table has to tell of. */
const faults = [
  'connection refused',
  'DNS name unknown',
  'TLS certificate not trusted',
  'reset before headers',
  'reset after headers',
  'hang before headers',
  'hang after headers',
  'heartbeat-only',
  'garbage body',
  'truncated JSON',
  'truncated stream',
  'wrong content type',
  ...[400, 401, 402, 403, 404, 408, 409, 413, 422, 429, 500, 502, 503, 504, 529].map(String),
  '200 with error inside',
  'redirect'
]

/** Milliseconds. All deadlines but that of the call as a whole, which few are to meet. */
const timeouts = { connect: 130, headers: 150, firstToken: 170, idle: 190, total: 30_000 }
const hurried = 210
const price = { input: 2, output: 10 }
/** USD: 100 input and 50 output tokens at that price. */
const cost = 0.0007
/** Of the breaker, by default. */
const failuresToOpen = 5

const rows = rowsOf(new URL('../docs/routing.md', import.meta.url))
const cases = rows.flatMap(row => row.forms.map(form => ({ row, form })))

t.test('the table has every fault, asked for in either form', t => {
  for (const fault of faults) {
    for (const form of ['whole', 'stream'] as const) {
      const found = cases.some(({ row, form: own }) => row.fault === fault && own === form)
      t.ok(found, `${fault}, ${form}`)
    }
  }
  t.end()
})

t.test('the table is what happens', { timeout: 60_000 }, async t => {
  const decoy = await startUpstream()
  t.teardown(() => decoy.close())
  const scripts = scenarios(`${decoy.url}/chat/completions`)
  t.strictSame(
    Object.keys(scripts).sort(),
    [...new Set(rows.map(({ name }) => name))].sort(),
    'every row has its script'
  )
  const rig = await start(t, scripts)
  for (const { row, form } of cases) {
    await t.test(`${row.name}, ${form}`, async t => {
      await drive(t, rig, row, form, scripts[row.name]!)
    })
  }
  t.equal(decoy.requests.length, 0, 'nobody has followed a redirect')
})

async function drive(t: Test, rig: Rig, row: Row, form: Form, scenario: Scenario): Promise<void> {
  const alone = nameOf(row, form, 'alone')
  const fallback = nameOf(row, form, 'fallback')
  const one = await rig.observe(alone, form)
  t.strictSame(one.course, row.alone, 'with one target')
  const two = await rig.observe(fallback, form)
  t.strictSame(two.course, row.fallback, 'with a fallback')
  t.equal(repeatedOf(one, two), row.repeated, 'what is repeated')
  if (scenario.nowhere === undefined) {
    t.equal(rig.requests(alone), asksOf(one), 'the books have every request that has arrived')
    t.equal(rig.requests(fallback), asksOf(two), 'those with a fallback too')
  }
  t.equal(await keyRest(rig, fallback, form), row.key, 'how long the key rests')
  t.equal(deadlineOf(one), row.deadline, 'which deadline ended it')
  if (row.deadline !== '-') await inTime(t, rig, row, form, one)
  t.equal(await breakerOf(rig, alone, form), row.breaker, 'whether the breaker counts it')
}

/** Within a tenth of its deadline, give or take what a busy machine adds: it may be late once or twice. */
async function inTime(t: Test, rig: Rig, row: Row, form: Form, first: Observed): Promise<void> {
  const after = row.deadline === 'total' ? hurried : timeouts[row.deadline as keyof typeof timeouts]
  const waitedIn = ({ took, idle }: Observed) => (row.deadline === 'idle' ? idle : took)
  let waited = waitedIn(first)
  for (let more = 0; more < 2 && waited > after * 1.1 + 30; more++) {
    waited = waitedIn(await rig.observe(nameOf(row, form, 'alone'), form))
  }
  // Of what is idle the client sees the beginning a little late.
  t.ok(waited >= after * 0.9, `${waited} ms of ${after}`)
  t.ok(waited <= after * 1.1 + 30, `${waited} ms of ${after}`)
}

function nameOf(row: Row, form: Form, kind: 'alone' | 'fallback'): string {
  return `${row.name} ${form} ${kind}`.replace(/[^\w.]+/g, '-')
}

function repeatedOf(alone: Observed, fallback: Observed): string {
  const words = ['no', 'once', 'twice'][asksOf(alone) - 1] ?? String(asksOf(alone))
  return asksOf(alone) === asksOf(fallback) ? words : `${words}, not before a fallback`
}

/** How often the target was asked that fails. */
function asksOf({ attempts }: Observed): number {
  return attempts.filter(({ provider }) => provider !== 'good').length
}

function deadlineOf({ message }: Observed): string {
  const [, what = ''] = /did not answer in time: (no \w+|nothing more|the call took)/.exec(message) ?? []
  const deadlines: Record<string, string> = {
    'no connection': 'connect',
    'no answer': 'headers',
    'no first': 'firstToken',
    'nothing more': 'idle',
    'the call took': 'total'
  }
  return deadlines[what] ?? '-'
}

async function keyRest(rig: Rig, name: string, form: Form): Promise<string> {
  const rest = rig.rest(name)
  if (rest !== null) return rest
  await Promise.all([rig.call(name, form), rig.call(name, form)])
  const third = rig.rest(name)
  return third === null ? 'no' : `${third} after the third`
}

/** Asks until five attempts have failed, with hours in between so that no key rests. */
async function breakerOf(rig: Rig, name: string, form: Form): Promise<string> {
  while (rig.target(name).attempts < failuresToOpen) {
    rig.skip(7_200_000)
    const before = rig.target(name).attempts
    await Promise.all(Array.from({ length: failuresToOpen }, () => rig.call(name, form)))
    if (rig.target(name).attempts === before) throw new Error(`${name} is not asked any more.`)
  }
  return rig.target(name).state === 'closed' ? 'no' : 'counts'
}

// The rig

interface AttemptRow {
  readonly provider: string
  readonly status: string
  readonly error_code: string | null
  readonly cost_usd: number | null
  readonly ttft_ms: number | null
}

/** What a client got. */
interface Got {
  readonly client: string
  readonly status: number
  readonly code: string | null
  readonly message: string
  /** Milliseconds until it ended, and how many of them came after the last token. */
  readonly took: number
  readonly idle: number
}

interface Observed extends Got {
  readonly course: Course
  readonly attempts: readonly AttemptRow[]
}

type Rig = Awaited<ReturnType<typeof start>>

/** One app with an alias for each case, and one upstream that knows by its path what to do. */
async function start(t: Test, scripts: Readonly<Record<string, Scenario>>) {
  const counts = new Map<string, number>()
  const plays = new Map(
    cases.flatMap(({ row, form }) =>
      (['alone', 'fallback'] as const).map(kind => [nameOf(row, form, kind), scripts[row.name]?.[form]] as const)
    )
  )
  const upstream = await startUpstream({ script: request => replyTo(request) })
  t.teardown(() => upstream.close())

  function replyTo({ url, json }: Received) {
    const name = url.split('/')[1]!
    counts.set(name, (counts.get(name) ?? 0) + 1)
    return plays.get(name) ?? good(json.stream === true)
  }

  const addresses = await nowheres(t)
  const origin = new URL(upstream.url).origin
  const base = (name: string, { nowhere }: Scenario) => (nowhere ? addresses[nowhere] : `${origin}/${name}/v1`)

  const providers: ModelGatewayOptions['providers'] = {
    good: { type: 'openai-compatible', baseUrl: `${origin}/good/v1`, apiKeys: ['sk-good'] }
  }
  const models: ModelGatewayOptions['models'] = { good: { targets: [{ provider: 'good', model: 'm', price }] } }
  for (const { row, form } of cases) {
    const scenario = scripts[row.name] ?? {}
    for (const kind of ['alone', 'fallback'] as const) {
      const name = nameOf(row, form, kind)
      providers[name] = { type: 'openai-compatible', baseUrl: base(name, scenario), apiKeys: ['sk-bad'] }
      models[name] = {
        targets: [{ provider: name, model: 'm', price }],
        timeouts: scenario.hurried ? { ...timeouts, total: hurried } : timeouts,
        fallbacks: kind === 'fallback' ? ['good'] : []
      }
    }
  }
  let skipped = 0
  const now = () => performance.timeOrigin + performance.now() + skipped
  const skip = (milliseconds: number) => void (skipped += milliseconds)
  const app = await build(
    t,
    {
      store: `sqlite:${await scratch(t)}/gateway.db`,
      log: { level: 'silent' },
      providers,
      models,
      tenants: { acme: { keys: ['key-of-acme'], budget: { usd: 1_000 }, maxRequestUsd: false } },
      plugins: { auth: { adminToken: 'admin-token' } }
    },
    { now, pause: async milliseconds => skip(milliseconds) }
  )
  const url = await app.listen({ host: '127.0.0.1', port: 0 })

  async function call(model: string, form: Form): Promise<Got> {
    const began = performance.now()
    const response = await fetch(`${url}/v1/chat/completions`, {
      method: 'POST',
      headers: { authorization: 'Bearer key-of-acme', 'content-type': 'application/json' },
      body: JSON.stringify({ model, stream: form === 'stream', messages: [{ role: 'user', content: 'Hello' }] })
    })
    const { status, headers } = response
    if (status === 200 && form === 'stream') return readStream(response, began)
    const body: unknown = await response.json()
    const { error } = body as { error?: { code: string | null; message: string } }
    const code = error?.code ?? null
    const words = [status === 200 ? '200' : `${status} ${code === theirs ? 'as the provider says' : code}`]
    if (headers.get('x-should-retry') === 'false') words.push('no retry')
    if (headers.has('retry-after')) words.push(`retry-after ${headers.get('retry-after')}`)
    const took = performance.now() - began
    return { client: words.join(', '), status, code, message: error?.message ?? '', took, idle: took }
  }

  async function admin(path: string) {
    return (await app.inject({ url: path, headers: { authorization: 'Bearer admin-token' } })).json()
  }

  /** One call and what the books say of it. */
  async function observe(model: string, form: Form): Promise<Observed> {
    const got = await call(model, form)
    const { data } = await admin(`/api/tenants/acme/records?limit=1&model=${model}`)
    const [record] = data
    const attempts: AttemptRow[] = record?.attempts ?? []
    const { reserved_usd: held } = await admin('/api/tenants/acme')
    t.equal(held, 0, `${model}: nothing is held afterwards`)
    t.equal(record?.http_status ?? got.status, got.status, `${model}: the books know what the client got`)
    t.equal(record?.status, got.client === '200' ? 'settled' : 'failed', model)
    // Of a stream that broke, what was delivered costs.
    const paid = attempts.reduce((sum, { cost_usd }) => sum + (cost_usd ?? 0), 0)
    if (got.client === '200') t.equal(paid, cost, `${model}: the answer is paid for, once`)
    else if (got.status === 200) t.ok(paid > 0 && paid < cost, `${model}: what was delivered is paid for`)
    for (const { status, ttft_ms, cost_usd } of attempts) {
      if (status === 'failed' && ttft_ms === null) t.equal(cost_usd, 0, `${model}: failed before it said anything`)
    }
    t.equal(record?.cost_usd, paid)
    return {
      ...got,
      attempts,
      course: { client: got.client, attempts: String(attempts.length), ledger: told(attempts) }
    }
  }

  function target(name: string) {
    const found = app.gateway.targets.list().find(({ provider }) => provider === name)
    if (found === undefined) throw new Error(`There is no target of ${name}.`)
    return found
  }

  /** How many seconds its key rests. */
  function rest(name: string): string | null {
    const until = target(name).keys[0]?.until
    return until ? `${Math.round((Date.parse(until) - now()) / 1_000)} s` : null
  }

  return { call, observe, target, rest, skip, requests: (name: string) => counts.get(name) ?? 0 }
}

/** `failed ×3, settled` */
function told(attempts: readonly AttemptRow[]): string {
  const words: string[] = []
  for (const [index, { status }] of attempts.entries()) {
    if (attempts[index - 1]?.status === status) continue
    let times = 1
    while (attempts[index + times]?.status === status) times++
    words.push(times === 1 ? status : `${status} ×${times}`)
  }
  return words.join(', ')
}

/** A stream whose status was 200, to its end. */
async function readStream(response: Response, began: number): Promise<Got> {
  let text = ''
  let tokens = 0
  let spoke = began
  const decoder = new TextDecoder()
  for await (const bytes of response.body!) {
    text += decoder.decode(bytes, { stream: true })
    const so = text.split('"content":"').length
    if (so > tokens) spoke = performance.now()
    tokens = so
  }
  const ended = performance.now()
  const times = { took: ended - began, idle: ended - spoke }
  const { status } = response
  const last = text.trimEnd().split('\n\n').at(-1)!
  if (last === 'data: [DONE]') return { client: '200', status, code: null, message: '', ...times }
  const { error } = JSON.parse(last.slice('data: '.length))
  return { client: `200, then ${error.code}`, status, code: error.code, message: error.message, ...times }
}

const pem = (name: string) => readFileSync(new URL(`./fixtures/tls/${name}.pem`, import.meta.url), 'utf8')

/** Base URLs where no HTTP is spoken. */
async function nowheres(t: Test) {
  const refused = createServer()
  const port = await listen(t, refused)
  await new Promise(resolve => refused.close(resolve))
  const secure = createSecureServer({ key: pem('key'), cert: pem('cert') })
  secure.on('tlsClientError', () => {})
  return {
    refused: `http://127.0.0.1:${port}/v1`,
    // No label of a name is longer than 63 characters, so nobody has to be asked.
    unknown: `http://${'x'.repeat(64)}.invalid/v1`,
    untrusted: `https://127.0.0.1:${await listen(t, secure)}/v1`,
    // It takes connections, and never answers the handshake.
    mute: `https://127.0.0.1:${await listen(t, createServer())}/v1`
  }
}

async function listen(t: Test, server: Server): Promise<number> {
  const sockets = new Set<Socket>()
  server.on('connection', socket => {
    sockets.add(socket)
    socket.on('error', () => {})
  })
  t.teardown(() => {
    for (const socket of sockets) socket.destroy()
    server.close()
  })
  await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
  return (server.address() as AddressInfo).port
}
