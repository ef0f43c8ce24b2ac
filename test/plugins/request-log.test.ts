import { closeSync, openSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import Fastify from 'fastify'
import { pino } from 'pino'
import t, { type Test } from 'tap'
import modelGateway, {
  logDestination as exportedDestination,
  callLine as exportedLine,
  type ModelGatewayOptions,
  serverOptions
} from '../../app.ts'
import gateway from '../../plugins/gateway/index.ts'
import { type LogDestinationOptions, logDestination } from '../../plugins/request-log/destination.ts'
import requestLog from '../../plugins/request-log/index.ts'
import { callDetails, callLine, callMessage, callSummary } from '../../plugins/request-log/line.ts'
import routing, { type RoutingOptions } from '../../plugins/routing/index.ts'
import type { CallRecord } from '../../schemas/call-record.ts'
import {
  InsufficientQuota,
  ModelNotAllowed,
  ShuttingDown,
  UpstreamError,
  UpstreamRateLimited,
  UpstreamTimeout
} from '../../schemas/errors.ts'
import type { CallLevel, Log } from '../../schemas/gateway.ts'
import type { Provider } from '../../schemas/provider.ts'
import { noUsage } from '../../schemas/usage.ts'
import { hello, towards } from '../helper.ts'
import { type RunOptions, run } from '../server-process.ts'
import { completion, failure, json, startUpstream } from '../upstream.ts'
import { ask, askStream, fails, says, scripted, tokens } from './kernel.ts'

t.jobs = 4

const hex = /^[0-9a-f]{32}$/
const whole: CallRecord = {
  id: 'req_1',
  time: 0,
  tenant: 'acme',
  key: 'k1',
  caller: 'key',
  lane: 'http',
  model: 'chat',
  stream: false,
  provider: 'claude',
  target: 'claude-sonnet-4-5',
  status: 'settled',
  httpStatus: 200,
  error: null,
  message: null,
  attempts: 1,
  retries: 0,
  fallbacks: 0,
  cache: 'off',
  usage: { ...noUsage, source: 'reported' },
  tokensIn: 20,
  tokensOut: 30,
  cost: 450_000,
  duration: 812.5123,
  firstToken: null,
  traceId: '0af7651916cd43dd8448eb211c80319c',
  config: '0123456789ab'
}

interface Line extends Record<string, unknown> {
  level: number
  msg: string
}

/** The plugin alone, with a logger that keeps its lines. */
async function alone(
  t: Test,
  { providers, routing: routes, level = 'info' }: { providers?: Provider[]; routing?: RoutingOptions; level?: string }
) {
  const lines: Line[] = []
  const stream = { write: (line: string) => void lines.push(JSON.parse(line)) }
  const app = Fastify({ logger: { level, stream } })
  t.teardown(() => app.close())
  await app.register(gateway)
  await app.register(routing, {
    pause: async () => {},
    ...(routes ?? { models: { test: { targets: [{ provider: 'up', model: 'm' }], retries: 0 } } })
  })
  for (const provider of providers ?? [scripted('up')]) app.gateway.providers.register(provider)
  await app.register(requestLog)
  return { app, lines, calls: () => lines.filter(({ msg }) => /^a call (was|failed)/.test(msg)) }
}

t.test('a call is one line with everything that is known of it', async t => {
  const { app, calls } = await alone(t, { providers: [scripted('up', says('Hello', tokens(7, 5)))] })
  await app.ready()
  const { gateway } = app
  const { facts } = await gateway.complete(ask, { ...gateway.caller({ tenant: 'acme' }), id: 'req_mine' })
  const { time, pid, hostname, durationMs, ...line }: Record<string, unknown> = calls()[0] ?? {}
  t.ok(pid !== undefined && hostname !== undefined)
  t.strictSame(line, {
    level: 30,
    requestId: 'req_mine',
    traceId: facts.traceId,
    tenant: 'acme',
    key: null,
    caller: 'process',
    lane: 'process',
    model: 'test',
    stream: false,
    provider: 'up',
    upstreamModel: 'm',
    status: 'settled',
    httpStatus: 200,
    errorCode: null,
    errorMessage: null,
    tokensIn: 7,
    tokensOut: 5,
    usageSource: 'reported',
    costUsd: null,
    firstTokenMs: null,
    attempts: 1,
    retries: 0,
    fallbacks: 0,
    cache: 'off',
    config: null,
    msg: 'a call was answered'
  })
  t.match(facts.traceId, hex)
  t.ok(Math.abs(Number(time) - Date.now()) < 60_000)
  t.ok(Number(durationMs) >= 0)
  t.equal(calls().length, 1)
})

t.test('tokens and cost are there where somebody counts', async t => {
  const { app, calls } = await alone(t, { providers: [scripted('up', says('Hello', tokens(7, 5)))] })
  app.gateway.accountWith({ cost: (_target, usage) => usage.input * 1_000 + usage.output })
  app.gateway.interceptAttempt((attempt, next) => {
    attempt.entry.meter ??= {
      usage: () => ({ ...noUsage, input: 7, output: 5, source: 'reported' }),
      awaitsUsage: false
    }
    return next(attempt)
  })
  await app.ready()
  await app.gateway.complete(ask, app.gateway.caller())
  t.match(calls(), [{ tokensIn: 7, tokensOut: 5, usageSource: 'reported', costUsd: 0.000007005 }])
})

t.test('levels mean something', async t => {
  const two = {
    models: {
      test: {
        strategy: 'priority' as const,
        retries: 0,
        targets: [
          { provider: 'up', model: 'm' },
          { provider: 'other', model: 'm' }
        ]
      }
    }
  }
  const refusing = (error: Error) => async (t: Test) => {
    const made = await alone(t, {})
    made.app.gateway.intercept('admit', () => {
      throw error
    })
    return made
  }
  const failing = (error: Error) => (t: Test) => alone(t, { providers: [scripted('up', fails(error))] })
  const cases: Record<string, [level: number, msg: string, (t: Test) => ReturnType<typeof alone>, Partial<Line>?]> = {
    'answered is info': [30, 'a call was answered', t => alone(t, {})],
    'saved by another target is a warning': [
      40,
      'a call was answered',
      t => alone(t, { routing: two, providers: [scripted('up', fails(new UpstreamError('no'))), scripted('other')] }),
      { attempts: 2, fallbacks: 1, provider: 'other', httpStatus: 200 }
    ],
    'what the caller may not do is info': [
      30,
      'a call was refused',
      refusing(new ModelNotAllowed('acme', 'test')),
      { httpStatus: 403, errorCode: 'model_not_allowed', attempts: 0, provider: null, upstreamModel: null }
    ],
    'a budget that is used up is a warning': [
      40,
      'a call was refused',
      refusing(new InsufficientQuota('Nothing is left.')),
      { httpStatus: 429, errorCode: 'insufficient_quota', errorMessage: 'Nothing is left.' }
    ],
    'a provider that limits is a warning': [
      40,
      'a call failed',
      failing(new UpstreamRateLimited()),
      { httpStatus: 429 }
    ],
    'a provider that fails is an error': [50, 'a call failed', failing(new UpstreamError('no')), { httpStatus: 502 }],
    'a provider that is silent is an error': [
      50,
      'a call failed',
      failing(new UpstreamTimeout('after 5 ms')),
      { httpStatus: 504, errorCode: 'upstream_timeout' }
    ],
    'the end of the gateway is a warning': [40, 'a call failed', failing(new ShuttingDown()), { httpStatus: 503 }],
    'a fault of the gateway is an error without its words': [
      50,
      'a call was refused',
      refusing(new TypeError('sk-secret')),
      { httpStatus: 500, errorCode: 'internal_error', errorMessage: 'The gateway failed.' }
    ]
  }
  for (const [name, [level, msg, make, more]] of Object.entries(cases)) {
    t.test(name, async t => {
      const { app, calls } = await make(t)
      await app.ready()
      await app.gateway.complete(ask, app.gateway.caller()).catch(() => {})
      t.match(calls(), [{ level, msg, ...more }])
      t.equal(calls().length, 1)
    })
  }

  t.test('a caller that leaves is info', async t => {
    const { app, calls } = await alone(t, { providers: [scripted('up', says('one two three'))] })
    await app.ready()
    const answer = await app.gateway.complete(askStream, app.gateway.caller())
    if (!answer.stream) return t.fail('no stream')
    await answer.frames.next()
    await answer.frames.return()
    t.match(calls(), [
      { level: 30, msg: 'a call was broken off', status: 'interrupted', httpStatus: 499, stream: true }
    ])
    t.type(calls()[0]?.['firstTokenMs'], 'number')
  })
})

t.test('above its level nothing is built', async t => {
  const { app, lines } = await alone(t, { level: 'warn' })
  let read = 0
  app.gateway.intercept('observe', (inference, next) => {
    inference.onSettled(outcome => {
      Object.defineProperty(outcome, 'record', { get: () => void read++ })
    })
    return next(inference)
  })
  await app.ready()
  await app.gateway.complete(ask, app.gateway.caller())
  t.strictSame([lines, read], [[], 0])
})

t.test('a logger that is switched off is not given anything', async t => {
  const app = Fastify({ logger: false })
  t.teardown(() => app.close())
  await app.register(gateway)
  await app.register(routing, { models: { test: { targets: [{ provider: 'up', model: 'm' }] } } })
  app.gateway.providers.register(scripted('up'))
  await app.register(requestLog)
  let listeners = 0
  app.gateway.intercept('shape', (inference, next) => {
    inference.onSettled = () => void listeners++
    return next(inference)
  })
  await app.ready()
  await app.gateway.complete(ask, app.gateway.caller())
  t.equal(listeners, 0)
})

t.test('a logger that knows no levels gets every line', async t => {
  const said: Array<[CallLevel | 'debug', object, string]> = []
  const teller =
    (level: CallLevel | 'debug') =>
    (details: object, message: string): void =>
      void said.push([level, details, message])
  const log: Log = { error: teller('error'), warn: teller('warn'), info: teller('info'), debug: teller('debug') }
  const app = Fastify()
  t.teardown(() => app.close())
  await app.register(gateway, { log })
  await app.register(routing, { models: { test: { targets: [{ provider: 'up', model: 'm' }] } } })
  app.gateway.providers.register(scripted('up'))
  await app.register(requestLog)
  await app.ready()
  await app.gateway.complete(ask, app.gateway.caller())
  t.match(said, [['info', { model: 'test' }, 'a call was answered']])
})

t.test('the text of a line is what its details are', async t => {
  const odd = 'a"b\\c\n\u0000\u2028é\ud800👋'
  const records: CallRecord[] = [
    whole,
    { ...whole, tenant: odd, key: odd, model: odd, provider: odd, target: odd, message: odd, config: odd, error: odd },
    { ...whole, key: null, provider: null, target: null, cost: null, config: null, firstToken: 1.25, stream: true },
    { ...whole, cost: 0 },
    { ...whole, cost: 9_007_199_254_740_991, tokensIn: 1e12, duration: 1e9 },
    { ...whole, cost: 1, duration: 0.04, status: 'failed', attempts: 0, error: 'x', message: 'words' },
    { ...whole, model: 'm'.repeat(100_000), target: '"'.repeat(100_000) }
  ]
  for (const record of records) {
    for (const level of ['info', 'warn', 'error'] as const) {
      const text = callLine(level, record, ',"pid":1,"hostname":"h"')
      t.ok(text.endsWith('}\n') && text.indexOf('\n') === text.length - 1, 'one line')
      const { time, ...said } = JSON.parse(text)
      t.ok(Math.abs(time - Date.now()) < 60_000)
      t.strictSame(said, {
        level: pino.levels.values[level],
        pid: 1,
        hostname: 'h',
        ...callDetails(record),
        msg: callMessage(record)
      })
      t.ok(text.length < 8_000, 'no name makes it long')
    }
  }
})

t.test('for a person it is a sentence, in which nothing moves the cursor', async t => {
  t.equal(callSummary(whole), 'acme: chat → claude/claude-sonnet-4-5, 200 in 812.5 ms, 20 + 30 tokens, $0.00045')
  t.equal(
    callSummary({
      ...whole,
      provider: null,
      target: null,
      attempts: 0,
      cost: 0,
      httpStatus: 403,
      error: 'e',
      message: 'No.'
    }),
    'acme: chat, 403 in 812.5 ms, e: No.'
  )
  t.match(callSummary({ ...whole, attempts: 2, firstToken: 3 }), 'first token after 3 ms, 2 attempts')
  t.notMatch(callSummary({ ...whole, model: 'a\u001b[2J\r\nb\u202e' }), /\p{Cc}|\p{Cf}/u)
})

/** The gateway in a host with a logger of its own. */
async function embedded(t: Test, options: (url: string) => ModelGatewayOptions = url => towards({ url })) {
  const upstream = await startUpstream()
  t.teardown(() => upstream.close())
  const lines: Line[] = []
  const stream = { write: (line: string) => void lines.push(JSON.parse(line)) }
  const app = Fastify({
    ...serverOptions({ bodyLimit: 10_000, trustProxy: false }),
    logger: { level: 'trace', base: { service: 'host' }, stream }
  })
  t.teardown(() => app.close())
  const config = options(upstream.url)
  await app.register(modelGateway, {
    store: false,
    ...config,
    plugins: { budgets: { unpriced: 'allow' }, ...config.plugins }
  })
  const post = (payload: object, headers = {}) =>
    app.inject({ method: 'POST', url: '/v1/chat/completions', payload, headers })
  return { upstream, app, lines, post }
}

t.test('a server of your own could not import what the page tells it to', async t => {
  t.equal(exportedLine, callLine)
  t.equal(exportedDestination, logDestination)
})

t.test('embedded, lines go to the logger of the host, in its form', async t => {
  const { upstream, lines, post } = await embedded(t)
  upstream.script(json(completion({ content: 'Hello' })))
  const answer = await post(hello)
  const calls = lines.filter(({ msg }) => msg === 'a call was answered')
  t.match(calls, [
    {
      service: 'host',
      requestId: answer.headers['x-request-id'],
      traceId: answer.headers['x-trace-id'],
      lane: 'http',
      caller: 'anonymous',
      tenant: 'public',
      costUsd: 0,
      usageSource: 'reported'
    }
  ])
  t.equal(calls.length, 1)
})

t.test('plugins.requestLog: false writes none', async t => {
  const { upstream, lines, post } = await embedded(t, url => towards({ url }, { plugins: { requestLog: false } }))
  upstream.script(json(completion({ content: 'Hello' })))
  t.equal((await post(hello)).statusCode, 200)
  t.strictSame(
    lines.filter(({ requestId }) => requestId !== undefined),
    []
  )
})

t.test('nothing of a request, an answer or a credential gets there', async t => {
  const marks = [
    'prompt',
    'answer',
    'header',
    'bearer',
    'user',
    'tag',
    'tool',
    'vendor',
    'code',
    'param',
    'cookie'
  ].map(name => `mark-${name}-7c1e`)
  const [prompt, said, header, bearer, user, tag, tool, vendor, code, param, cookie] = marks
  const { upstream, lines, post } = await embedded(t)
  upstream.script(
    json(completion({ content: said! })),
    failure(400, { message: `${vendor} ${prompt}`, code: `${code} ${prompt}`, param: param! }),
    failure(500, { message: `${vendor} ${prompt}`, code: code! }),
    failure(403, { message: `${vendor} ${prompt}` }),
    json({ error: { message: `${vendor} ${prompt}` } })
  )
  const request = {
    ...hello,
    messages: [{ role: 'user', content: prompt }],
    user,
    metadata: { tag },
    tools: [{ type: 'function', function: { name: tool, parameters: {} } }]
  }
  const headers = { 'x-own': header!, authorization: `Bearer ${bearer}`, cookie: cookie! }
  const statuses = []
  for (let call = 0; call < 5; call++) statuses.push((await post(request, headers)).statusCode)
  t.strictSame(statuses.slice(0, 4), [200, 400, 502, 502])
  const calls = lines.filter(({ msg }) => /^a call (was|failed)/.test(msg))
  t.equal(calls.length, 5)
  t.match(calls[1], {
    level: 30,
    httpStatus: 400,
    errorMessage: 'The provider of this model answered with status 400.'
  })
  t.match(calls[2], {
    level: 50,
    httpStatus: 502,
    errorMessage: 'The provider of this model answered with status 500.'
  })
  t.match(calls[3], { level: 50, errorMessage: /refused this gateway with status 403/ }, 'our own words stay')
  const text = JSON.stringify(calls)
  for (const mark of marks) t.notMatch(text, mark, mark)
})

t.test('every line of a call names its request and its trace, each by one name', async t => {
  const { upstream, app, lines, post } = await embedded(t, url => ({
    ...towards({ url }),
    store: 'sqlite::memory:',
    models: {
      test: { retries: 0, targets: [{ provider: 'up', model: 'm', price: { input: 1, output: 1 } }] }
    },
    tenants: { public: { budget: { usd: 0.02 }, maxRequestUsd: false } }
  }))
  app.gateway.intercept('observe', (inference, next) => {
    inference.onSettled(() => {
      throw new Error('a listener')
    })
    return next(inference)
  })
  const odd = { prompt_tokens: 1, completion_tokens: 1, total_tokens: 2, prompt_tokens_details: { cached_tokens: 5 } }
  upstream.script(
    json({ ...completion({ content: 'Hello' }), usage: odd }),
    failure(500, { message: 'no' }),
    json({
      ...completion({ content: 'Hello' }),
      usage: { prompt_tokens: 1, completion_tokens: 1e6, total_tokens: 1e6 + 1 }
    })
  )
  const answers = []
  for (let call = 0; call < 4; call++) answers.push(await post(hello))
  t.strictSame(
    answers.map(({ statusCode }) => statusCode),
    [200, 502, 200, 429]
  )
  answers.push(await post({ ...hello, model: 'nobody' }), await app.inject('/v1/models/nobody'))
  const traces = new Map(answers.map(({ headers }) => [headers['x-request-id'], headers['x-trace-id']]))
  const named = lines.filter(line => 'requestId' in line || 'traceId' in line || 'id' in line)
  for (const { msg, requestId, traceId, id } of named) {
    t.equal(id, undefined, msg)
    t.ok(traces.has(String(requestId)), msg)
    t.equal(traceId, traces.get(String(requestId)), msg)
  }
  const words = new Set(named.map(({ msg }) => msg))
  for (const expected of [
    'a call was answered',
    'a call failed',
    'a call was refused',
    'a listener of a call failed',
    'a usage report contradicts itself',
    'a call cost more than could be foreseen',
    'a call ended before its first provider call'
  ]) {
    t.ok(words.has(expected), expected)
  }
  t.ok(
    [...words].some(word => /model `nobody` does not exist/.test(word)),
    'faults of requests that became no call'
  )
})

t.test('the destination', async t => {
  /** One whose writes a test decides. */
  function sink(options: Partial<LogDestinationOptions> & { take: (bytes: Buffer) => number }) {
    let text = ''
    let writes = 0
    const destination = logDestination({
      fd: -1,
      ...options,
      write(_fd, bytes) {
        writes++
        const taken = options.take(bytes)
        text += bytes.toString('latin1', 0, taken)
        return taken
      }
    })
    return { destination, text: () => text, writes: () => writes }
  }
  const refused = () => {
    throw Object.assign(new Error('no room'), { code: 'ENOSPC' })
  }

  t.test('writes many lines at once, soon', async t => {
    const { destination, text, writes } = sink({ take: bytes => bytes.length })
    for (let line = 0; line < 10; line++) destination.write(`${line}\n`)
    t.equal(text(), '')
    await until(() => text() !== '')
    t.equal(text(), '0\n1\n2\n3\n4\n5\n6\n7\n8\n9\n')
    t.equal(writes(), 1)
  })

  t.test('writes at once when many wait', async t => {
    const { destination, text } = sink({ take: bytes => bytes.length })
    destination.write(`${'x'.repeat(16_384)}\n`)
    t.equal(text().length, 16_385)
  })

  t.test('goes on where it was cut, so that no line is', async t => {
    let room = 7
    const { destination, text } = sink({
      take(bytes) {
        if (room === 0) refused()
        const taken = Math.min(room, bytes.length)
        room -= taken
        return taken
      },
      delay: 1
    })
    for (let line = 0; line < 5; line++) destination.write(`line ${line}\n`)
    await until(() => text().length === 7)
    room = 1_000
    await until(() => text().length === 35)
    t.equal(text(), 'line 0\nline 1\nline 2\nline 3\nline 4\n')
  })

  t.test('drops whole lines beyond what it keeps, counts them, and says so when it can write again', async t => {
    let full = true
    const lost: number[] = []
    const { destination, text } = sink({
      take: bytes => (full ? refused() : bytes.length),
      most: 100,
      delay: 1,
      recovered: dropped => lost.push(dropped)
    })
    for (let line = 0; line < 50; line++) destination.write('123456789\n')
    t.equal(destination.dropped, 40)
    full = false
    await until(() => lost.length > 0)
    t.strictSame(lost, [40])
    t.equal(text(), '123456789\n'.repeat(10))
    destination.write('after\n')
    await until(() => text().endsWith('after\n'))
    t.equal(destination.dropped, 40)
  })

  t.test('once a pipe had been full, it never caught up with a reader that reads, and dropped most lines', async t => {
    let room = 65_536
    const { destination, text } = sink({
      take(bytes) {
        const taken = Math.min(room, bytes.length)
        room -= taken
        if (taken > 0) return taken
        // It is empty again when the next write comes.
        room = 65_536
        return refused()
      }
    })
    const line = `${'x'.repeat(999)}\n`
    for (let count = 0; count < 40; count++) {
      for (let lines = 0; lines < 50; lines++) destination.write(line)
      await new Promise(resolve => setTimeout(resolve, 5))
    }
    t.equal(destination.dropped, 0)
    await until(() => text().length === 2_000_000)
  })

  t.test('at the end writes what waits, and gives up after a second', async t => {
    const { destination, text } = sink({ take: bytes => bytes.length })
    destination.write('last\n')
    destination.end()
    t.equal(text(), 'last\n')
    const stuck = sink({ take: refused })
    stuck.destination.write('lost\n')
    const before = performance.now()
    stuck.destination.end()
    const took = performance.now() - before
    t.ok(took >= 1_000 && took < 3_000, `${took} ms`)
  })

  t.test('a full disk ended the process', { skip: canOpen('/dev/full') }, async t => {
    const fd = openSync('/dev/full', 'w')
    t.teardown(() => closeSync(fd))
    const destination = logDestination({ fd, delay: 1, most: 1_000 })
    const log = pino({}, destination)
    for (let line = 0; line < 100; line++) log.info('nobody will see this')
    await new Promise(resolve => setTimeout(resolve, 20))
    t.ok(destination.dropped > 0)
  })
})

/** False, or why not. */
function canOpen(file: string): string | false {
  try {
    closeSync(openSync(file, 'w'))
    return false
  } catch {
    return `${file} is not here`
  }
}

async function until(check: () => boolean): Promise<void> {
  for (let tries = 0; !check(); tries++) {
    if (tries > 5_000) throw new Error(`It never came to this: ${check}`)
    await new Promise(resolve => setTimeout(resolve, 2))
  }
}

const config = { providers: { echo: { type: 'echo', words: 3 } }, store: false, plugins: { rateLimit: false } }

async function chat(url: string, messages = hello.messages): Promise<Response> {
  return fetch(`${url}/v1/chat/completions`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ model: 'echo/echo', messages })
  })
}

function serve(t: Test, log: object, options: RunOptions = {}) {
  return run(t, { ...options, files: { 'gateway.yaml': { ...config, log } } })
}

t.test('the server writes JSON to stdout, all of it before it ends', async t => {
  const server = serve(t, {})
  const url = await server.url()
  const answers = await Promise.all(Array.from({ length: 50 }, () => chat(url)))
  t.equal(await server.stop(), 0)
  const lines: Line[] = server.said.stdout
    .trim()
    .split('\n')
    .map(line => JSON.parse(line))
  const calls = lines.filter(({ msg }) => msg === 'a call was answered')
  t.strictSame(
    calls.map(({ requestId }) => requestId).sort(),
    answers.map(({ headers }) => headers.get('x-request-id')).sort()
  )
  const started = lines.find(({ msg }) => msg === 'listening')
  t.strictSame(Object.keys(calls[0]!).slice(0, 4), Object.keys(started!).slice(0, 4), 'both forms begin alike')
  t.match(calls[0], { pid: started?.['pid'], hostname: started?.['hostname'] })
  t.equal(lines.at(-1)?.msg, 'closing')
})

t.test('the server writes to a file, and below its level nothing', async t => {
  const server = serve(t, { destination: 'logs/gateway.log' })
  await chat(await server.url())
  t.equal(await server.stop(), 0)
  t.match(readFileSync(join(server.folder, 'logs/gateway.log'), 'utf8'), /^\{.*"msg":"a call was answered"\}$/m)
  const quiet = serve(t, { destination: 'gateway.log', level: 'warn' })
  await chat(await quiet.url())
  t.equal(await quiet.stop(), 0)
  t.notMatch(readFileSync(join(quiet.folder, 'gateway.log'), 'utf8'), 'a call was answered')
})

t.test('what an uncaught error leaves behind is in the log', async t => {
  const plugin = `process.on('SIGUSR2', () => { throw new Error('out of the blue') })`
  const server = run(t, {
    files: { 'gateway.yaml': { ...config, log: { destination: 'gateway.log' } }, 'crash.mjs': plugin },
    command: [process.execPath, '--import', './crash.mjs', new URL('../../server.ts', import.meta.url).pathname]
  })
  await chat(await server.url())
  server.child.kill('SIGUSR2')
  t.equal(await server.ended, 1)
  const text = readFileSync(join(server.folder, 'gateway.log'), 'utf8')
  t.match(text, 'a call was answered')
  t.match(text, 'out of the blue')
})

t.test('on a terminal a call is one line to read', { skip: process.platform !== 'linux' }, async t => {
  const file = new URL('../../server.ts', import.meta.url).pathname
  const server = run(t, {
    files: { 'gateway.yaml': config },
    command: ['script', '-qec', `exec '${process.execPath}' '${file}'`, '/dev/null']
  })
  await chat(await server.url())
  const line = await server.until(/^.*public: echo\/echo.*$/m)
  t.match(line, /INFO.*public: echo\/echo → echo\/echo, 200 in [\d.]+ ms, \d+ \+ \d+ tokens/)
  server.child.stdin.write('\x03')
  await server.ended
})

t.test('a reader of stdout that hangs does not stop the server', async t => {
  const server = serve(t, { level: 'info' })
  const url = await server.url()
  server.child.stdout.pause()
  // More than a pipe, what Node reads ahead and what the destination keeps.
  const calls = 4_000
  let answered = 0
  const started = performance.now()
  await Promise.all(
    Array.from({ length: 20 }, async () => {
      for (let call = 0; call < calls / 20; call++) if ((await chat(url)).ok) answered++
    })
  )
  t.equal(answered, calls)
  t.comment(`${calls} calls in ${(performance.now() - started).toFixed(0)} ms while nobody read the log`)
  server.child.stdout.resume()
  await until(() => server.said.stdout.includes('lines of the log are lost'))
  t.equal(await server.stop(), 0)
  const lines: Line[] = server.said.stdout
    .trim()
    .split('\n')
    .map(line => JSON.parse(line))
  const lost = Number(lines.find(({ msg }) => msg.startsWith('lines of the log are lost'))?.['lines'])
  t.ok(lost > 0)
  t.equal(lines.filter(({ msg }) => msg === 'a call was answered').length + lost, calls)
})
