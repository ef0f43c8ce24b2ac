// What OpenTelemetry costs for each call: `node bench/otel.mjs [rounds] [--all]`. Three processes for each way to trace, because
// equal ones differ by up to 9 µs a request in what the compiler has made of them; the same kernel and routes in each, a
// collector that takes everything (gRPC) and the load in this process: bursts of 480 calls and a pause, so that exports keep
// up. The calls that warm everybody name a recorded parent: at 1 % the compiler would need hours to get to what records.
// Rounds alternate, CPU time of the main thread only, exports included; medians of the differences, by round, between the
// medians of three. It takes three minutes; `--all` measures more ways, and takes seven.
import { fork } from 'node:child_process'
import http2 from 'node:http2'
import net from 'node:net'
import { median } from './table.mjs'

const quiet = { error: console.error, warn() {}, info() {}, debug() {} }
const ways = {
  off: null,
  'on, nothing sampled': { sampler: '0' },
  'on, 1 %': { sampler: '0.01' },
  'on, 1 %, no metrics': { sampler: '0.01', metrics: false },
  'on, 100 %': { sampler: '1' },
  'on, 1 %, instrumentation-http': { sampler: '0.01', instrumentation: true },
  'on, 100 %, instrumentation-http': { sampler: '1', instrumentation: true }
}
/** The ways that the goals speak of. */
const usual = ['off', 'on, 1 %', 'on, 100 %']
/** Processes for each way. */
const copies = 3
const calls = 9_600
const concurrency = 32
/** Calls of a burst by each of them, and milliseconds until the next: three spans of each call have room in the queue. */
const burst = 15
const rest = 40
const traceparent = '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01'
const usage = { prompt_tokens: 20, completion_tokens: 30, total_tokens: 50 }
const message = { role: 'assistant', content: 'Hello' }
const choices = [{ index: 0, finish_reason: 'stop', message }]
const body = { id: 'c', object: 'chat.completion', created: 1, model: 'm', choices, usage }
const request = { model: 'test', messages: [{ role: 'user', content: 'Hello there, how are you?' }], max_tokens: 100 }

if (process.send) await serve(JSON.parse(process.argv[2]))
else await compare(Number(process.argv.slice(2).find(text => text !== '--all') ?? 3))

async function serve(way) {
  let telemetry
  if (way !== null) {
    process.env.OTEL_TRACES_SAMPLER = 'parentbased_traceidratio'
    process.env.OTEL_TRACES_SAMPLER_ARG = way.sampler
    // At 1 % an export then carries about as many spans as at 1,000 calls a second with the 5 s of the default.
    process.env.OTEL_BSP_SCHEDULE_DELAY = way.sampler === '1' ? '10' : '400'
    const { startTelemetry } = await import('../plugins/otel/sdk.ts')
    const { endpoint, metrics = true, instrumentation = false } = way
    const settings = { endpoint, protocol: 'grpc', serviceName: 'bench', metrics, instrumentation }
    telemetry = await startTelemetry(settings, process.env, quiet)
  }
  const load = name => import(name).then(module => module.default)
  const app = (await load('fastify'))()
  await app.register(await load('../plugins/gateway/index.ts'), { log: quiet })
  await app.register(await load('../plugins/routing/index.ts'), {
    models: { test: { targets: [{ provider: 'up', model: 'm' }] } }
  })
  if (way !== null)
    await app.register(await load('../plugins/otel/index.ts'), { metrics: way.metrics ?? true, telemetry })
  await app.register(await load('../plugins/http/index.ts'), {})
  await app.register(await load('../plugins/chat-completions/index.ts'), { direct: true })
  // As far away as a provider is, and as one that forwards bytes: `body` is parsed by whoever wants to look into it.
  const raw = Buffer.from(JSON.stringify(body))
  const answer = () => ({
    stream: false,
    raw,
    usage,
    get body() {
      return JSON.parse(raw.toString())
    }
  })
  const send = () => new Promise(resolve => setImmediate(() => resolve(answer())))
  const url = 'https://api.openai.com/v1'
  app.gateway.providers.register({ name: 'up', vendor: 'openai', url, capabilities: { dialects: [] }, send })
  app.gateway.accountWith({ cost: () => 1_000, open() {} })
  app.gateway.intercept('observe', (inference, next) => {
    inference.onSettled(ignore)
    return next(inference)
  })
  await app.listen({ host: '127.0.0.1', port: 0 })
  const { gateway } = app
  const origin = { lane: 'http' }
  const principal = { tenant: 'acme', key: 'k1', kind: 'key', scopes: ['chat'] }
  const { signal } = new AbortController()
  async function client(share, trace) {
    for (let call = 0; call < share; call++) {
      if (call % burst === 0) await pause()
      await gateway.complete(request, { id: gateway.newId(), principal, signal, origin, trace })
    }
  }
  let before
  process.on('message', async say => {
    if (say === 'calls' || say === 'warm') {
      const trace = say === 'warm' ? { traceparent } : undefined
      before = process.threadCpuUsage()
      await Promise.all(Array.from({ length: concurrency }, () => client(calls / concurrency, trace)))
    } else if (say === 'begin') before = process.threadCpuUsage()
    if (say !== 'begin') await new Promise(resolve => setTimeout(resolve, 400))
    const { user, system } = process.threadCpuUsage(before)
    process.send({ cost: (user + system) / calls, dropped: gateway.tracing?.dropped ?? 0 })
  })
  process.once('disconnect', () => process.exit())
  process.send({ port: app.server.address().port })
}

function ignore() {}

function pause() {
  return new Promise(resolve => setTimeout(resolve, rest))
}

async function compare(rounds) {
  const collector = http2.createServer()
  let exports = 0
  collector.on('stream', stream => {
    exports++
    stream.resume().on('end', () => {
      stream.respond({ ':status': 200, 'content-type': 'application/grpc' }, { waitForTrailers: true })
      stream.on('wantTrailers', () => stream.sendTrailers({ 'grpc-status': '0' }))
      stream.end(Buffer.alloc(5))
    })
  })
  await new Promise(resolve => collector.listen(0, '127.0.0.1', resolve))
  const endpoint = `http://127.0.0.1:${collector.address().port}`
  const children = []
  const all = process.argv.includes('--all')
  for (const [name, way] of Object.entries(ways)) {
    if (!all && !usual.includes(name)) continue
    for (let copy = 0; copy < copies; copy++) {
      const child = fork(import.meta.filename, [JSON.stringify(way && { endpoint, ...way })])
      const next = () => new Promise(resolve => child.once('message', resolve))
      const { port } = await next()
      children.push({ name, child, port, next, calls: [], http: [], dropped: 0 })
    }
  }
  for (let round = -2; round < rounds; round++) {
    for (const one of children) {
      one.child.send(round < 0 ? 'warm' : 'calls')
      const inProcess = await one.next()
      one.child.send('begin')
      await one.next()
      await load(one.port, round < 0)
      one.child.send('end')
      const overHttp = await one.next()
      one.dropped = overHttp.dropped
      if (round < 0) continue
      one.calls.push(inProcess.cost)
      one.http.push(overHttp.cost)
    }
  }
  const costs = (name, kind) =>
    Array.from({ length: rounds }, (_, round) =>
      median(children.filter(one => one.name === name).map(one => one[kind][round]))
    )
  const without = { calls: costs('off', 'calls'), http: costs('off', 'http') }
  console.log(
    `without the plugin: ${median(without.calls).toFixed(1)} µs a call in process, ${median(without.http).toFixed(1)} over HTTP`
  )
  for (const name of new Set(children.map(({ name }) => name))) {
    if (name === 'off') continue
    const added = kind => median(costs(name, kind).map((cost, round) => cost - without[kind][round])).toFixed(1)
    const dropped = children.reduce((sum, one) => sum + (one.name === name ? one.dropped : 0), 0)
    console.log(
      `${name.padEnd(34)} + ${added('calls').padStart(5)} in process, + ${added('http').padStart(5)} over HTTP` +
        (dropped > 0 ? `  (${dropped} spans dropped)` : '')
    )
  }
  console.log(`${exports} exports`)
  const ends = children.map(({ child }) => new Promise(resolve => child.once('exit', resolve)))
  for (const { child } of children) child.kill()
  await Promise.all(ends)
  collector.close()
  process.exit()
}

/** Sends the calls over connections that are kept. */
async function load(port, warm) {
  const text = JSON.stringify(request)
  const parent = warm ? `traceparent: ${traceparent}\r\n` : ''
  const head = `POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\nuser-agent: bench/1\r\n${parent}`
  const bytes = `${head}content-length: ${text.length}\r\n\r\n${text}`
  let left = calls
  await Promise.all(
    Array.from({ length: concurrency }, () => {
      return new Promise((resolve, reject) => {
        const socket = net.connect(port, '127.0.0.1').setNoDelay()
        let read = ''
        let call = 0
        const next = async () => {
          if (call++ % burst === 0) await pause()
          if (left-- > 0) socket.write(bytes)
          else {
            socket.destroy()
            resolve()
          }
        }
        socket.on('connect', next).on('error', reject)
        socket.on('data', data => {
          read += data.toString('latin1')
          const end = read.indexOf('\r\n\r\n')
          if (end === -1) return
          const length = Number(/content-length: (\d+)/i.exec(read)?.[1])
          if (!read.startsWith('HTTP/1.1 200')) reject(new Error(read))
          if (read.length < end + 4 + length) return
          read = ''
          next()
        })
      })
    })
  )
}
