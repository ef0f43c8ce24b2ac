// The whole bench; README.md says what it measures and how to read it.
import { execFileSync } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { cpus, loadavg, tmpdir } from 'node:os'
import { join, relative } from 'node:path'
import { parseArgs } from 'node:util'
import { direct, contenders as everybody, launch, missing, relay, startUp } from './contenders.mjs'
import { available, pieces, server } from './gateway.mjs'
import { atRate, memory, perChunk, saturate, wrk } from './measure.mjs'
import { nginx } from './nginx.mjs'
import { cases, paced } from './payloads.mjs'
import { probe } from './probe.mjs'
import { cores, freePort, node, ready, run, start, stopAll, which } from './processes.mjs'
import { allRows, leastRows, scale } from './scale.mjs'
import { measure, median, print } from './table.mjs'

const kinds = [
  'json',
  'sse',
  'latency',
  'chunks',
  'memory',
  'start',
  'ledger',
  'routing',
  'translation',
  'image',
  'observe',
  'otel',
  'signing',
  'scale'
]
const quickKinds = ['json', 'sse', 'latency', 'chunks']
const usage = `node bench/run.mjs [options]

  --quick          about a minute: fewer and shorter rounds, no JSON 10 KB, memory,
                   start-up, ledger, routing, translation, image, observe,
                   otel, signing, scale
  --rounds N       rounds of the throughput rows (7; 2 with --quick)
  --only A,B       of ${kinds.join(', ')}
  --rows N         rows of the ledger in scale (${allRows}, at least ${leastRows})
  --no-portkey     without Portkey's gateway
  --relays         only the variants of the relay, beside each other
  --pieces         what parts of the governed gateway cost: JSON 200 B, without one part or more
  --no-nginx       the Node upstream, even where there is nginx
  --no-wrk         autocannon, even where there is wrk
`

const flags = readFlags()
const version = execFileSync(node, ['-p', 'process.versions.node'], { encoding: 'utf8' }).trim()
const scratch = mkdtempSync(join(tmpdir(), 'gateway-bench-'))
process.on('exit', () => {
  stopAll()
  rmSync(scratch, { recursive: true, force: true, maxRetries: 3 })
})
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.on(signal, () => process.exit(1))
setTimeout(() => {
  console.error('The bench took too long and was ended.')
  process.exit(1)
}, 35 * 60_000).unref()

const upstreams = await startUpstreams()
const who = flags.relays ? relays() : flags.pieces ? parts() : everybody(flags)
const lacking = new Map()
for (const contender of who.filter(({ checked }) => checked)) {
  // A configuration that is refused shows in every row of its contender.
  lacking.set(contender, await missing(contender, scratch).catch(() => []))
}
const measures = []
// What has a table of its own: other contenders, and targets instead of ratios.
const second = { measures: [], contenders: [], notes: [] }
const begun = performance.now()
const others = loadavg()[0]

for (const one of cases.filter(wanted)) await throughput(one)
if (!flags.relays && !flags.pieces) {
  if (flags.only.has('latency')) {
    await latency(cases.find(one => one.name === 'json-10k'))
    await firstByte(paced(10, 10))
  }
  if (flags.only.has('chunks')) await chunks(100, 10)
  if (flags.only.has('memory')) await openStreams(1_000)
  if (flags.only.has('start')) await startUps()
  if (flags.only.has('ledger') && available) await share('ledger', 'kernel with ledger', "the ledger's")
  if (flags.only.has('routing') && available) await share('routing', 'kernel with routing', "routing's")
  if (flags.only.has('translation') && available) await translation()
  if (flags.only.has('image') && available) await image()
  if (flags.only.has('observe') && available) await observers()
  if (flags.only.has('otel') && available) await telemetry()
  if (flags.only.has('signing') && available) await signing()
  if (flags.only.has('scale') && available) await growth()
}
report()
process.exit([...measures, ...second.measures].some(one => one.failures.size > 0) ? 1 : 0)

function readFlags() {
  const options = {
    quick: { type: 'boolean', default: false },
    rounds: { type: 'string' },
    rows: { type: 'string' },
    only: { type: 'string' },
    portkey: { type: 'boolean', default: true },
    relays: { type: 'boolean', default: false },
    pieces: { type: 'boolean', default: false },
    nginx: { type: 'boolean', default: true },
    wrk: { type: 'boolean', default: true },
    help: { type: 'boolean', short: 'h', default: false }
  }
  try {
    const { values } = parseArgs({ options, allowNegative: true })
    if (values.help) {
      console.log(usage)
      process.exit(0)
    }
    const only = new Set(values.only?.split(',') ?? (values.quick ? quickKinds : kinds))
    const unknown = [...only].find(kind => !kinds.includes(kind))
    if (unknown !== undefined) throw new Error(`--only knows ${kinds.join(', ')}, not ${unknown}`)
    const rounds = Number(values.rounds ?? (values.quick ? 2 : 7))
    if (!Number.isInteger(rounds) || rounds < 1) throw new Error('--rounds takes a whole number from 1')
    const rows = Number(values.rows ?? allRows)
    if (!Number.isInteger(rows) || rows < leastRows) throw new Error(`--rows takes a whole number from ${leastRows}`)
    return { ...values, only, rounds, rows }
  } catch (error) {
    console.error(`${error.message}\n${usage}`)
    process.exit(2)
  }
}

function wanted(one) {
  if (flags.pieces) return one.name === 'json-200'
  if (flags.quick && one.name === 'json-10k') return false
  return flags.only.has(one.stream ? 'sse' : 'json')
}

/** Static answers come from nginx where there is one, timed streams always from a Node process. */
async function startUpstreams() {
  const port = await freePort()
  const child = start('upstream', node, [join(import.meta.dirname, 'upstream.mjs'), String(port)])
  await ready(child, `http://127.0.0.1:${port}/health`)
  const timed = one => `http://127.0.0.1:${port}/${one.name}/v1`
  const binary = flags.nginx ? which('nginx') : undefined
  if (binary === undefined) return { fixed: timed, timed, kind: 'Node' }
  const nginxPort = await freePort()
  const server = start('upstream', binary, nginx(scratch, nginxPort))
  await ready(server, `http://127.0.0.1:${nginxPort}/health`)
  return { fixed: one => `http://127.0.0.1:${nginxPort}/${one.name}/v1`, timed, kind: 'nginx' }
}

/** The variants of the bare relay among themselves: `raw-` ones send the body on as it came, the others make it anew. */
function relays() {
  const whole = ['raw-dispatch', 'dispatch', 'raw-text', 'text', 'raw-bytes', 'bytes', 'raw-stream', 'stream', 'send']
  const streamed = ['dispatch', 'stream', 'send', 'web', 'pipeline']
  return [
    ...whole.map(name => ({ ...relay(`json-${name}`, name, name), stream: false })),
    ...streamed.map(name => ({ ...relay(`sse-${name}`, name, 'raw-dispatch', name), stream: true }))
  ]
}

/** The governed gateway with less and less; and what a relay comes to that only works longer, to measure that with. */
function parts() {
  const longer = [10, 20, 40].map(microseconds =>
    relay(`relay-${microseconds}`, `bare relay, ${microseconds} µs longer`, 'text', 'send', String(microseconds))
  )
  return [everybody(flags)[0], ...longer, ...pieces]
}

function add(title, digits) {
  const one = measure(title, digits)
  measures.push(one)
  return one
}

/** Starts everybody before the same upstream; whoever does not start or answers wrongly is out, with the reason. */
async function lineUp(one, upstream, rows) {
  const field = flags.relays ? who.filter(({ stream }) => stream === one.stream) : who
  const targets = await Promise.all(
    field.map(async contender => {
      let target
      try {
        target = await launch(contender, upstream, scratch)
        return { ...target, wire: await probe(target, one) }
      } catch (error) {
        for (const row of rows) row.fail(contender.name, error)
        await target?.stop()
        return null
      }
    })
  )
  return targets.filter(target => target !== null)
}

/** Calls `work` for one contender after the other, round after round. */
async function alternate(targets, rows, rounds, work) {
  for (let round = 0; round < rounds; round++) {
    for (const target of targets) {
      const { name } = target.contender
      if (rows.some(row => row.failures.has(name))) continue
      try {
        await work(target, round)
      } catch (error) {
        for (const row of rows) row.fail(name, error)
      }
    }
  }
}

async function stopped(targets) {
  await Promise.all(targets.map(target => target.stop()))
}

async function throughput(one) {
  progress(one.title)
  const rate = add(`${one.title}, requests/s`)
  const cost = add(`${one.title}, CPU per request, µs`, 1)
  const rows = [rate, cost]
  const targets = await lineUp(one, upstreams.fixed(one), rows)
  const busy = new Map(targets.map(({ contender }) => [contender.name, []]))
  const options = target => ({ scratch, seconds: 1, wire: target.wire })
  // Unmeasured: the first seconds are the compiler's, and whoever has more code needs more of them.
  await alternate(targets, rows, flags.quick ? 1 : 8, target => saturate(target, one, options(target)))
  await alternate(targets, rows, flags.rounds, async target => {
    const { name } = target.contender
    const result = await saturate(target, one, options(target))
    rate.add(name, result.perSecond)
    cost.add(name, result.cpu)
    busy.get(name).push(result.busy)
  })
  for (const [name, values] of busy) {
    const share = values.length > 0 ? median(values) : 1
    if (share < 0.9) rate.note(name, `kept its core only ${Math.round(share * 100)} % busy`)
  }
  await stopped(targets)
}

/** Calls at a fixed rate; `rows` are what to take of a result, as difference to the upstream without anybody between. */
async function added(one, upstream, rows) {
  const targets = await lineUp(one, upstream, rows)
  const straight = direct(upstream)
  // The load is a new process each time, and its own first second is the compiler's.
  const options = { scratch, rate: 500, seconds: flags.quick ? 1 : 4, warm: flags.quick ? 0.25 : 1 }
  let own
  const everyone = [straight, ...targets]
  // Compiler and collector of a contender settle at the rate that is then measured, or its p99 is theirs.
  await alternate(everyone, rows, 1, target => atRate(target, one, { ...options, warm: 0 }))
  await alternate(everyone, rows, flags.quick ? 1 : Math.min(3, flags.rounds), async target => {
    const result = await atRate(target, one, options)
    if (target === straight) own = result
    else for (const row of rows) row.add(target.contender.name, row.of(result) - row.of(own))
    // Half of the calls waited this long: what is measured then is a queue.
    if (result.p50 - own.p50 > 250) for (const row of rows) row.note(target.contender.name, 'fell behind 500/s')
  })
  await stopped(targets)
}

async function latency(one) {
  progress('latency')
  const row = (title, of) => Object.assign(add(`${one.title}, 500/s, ${title}, ms`, 3), { of })
  await added(one, upstreams.fixed(one), [
    row('added p50', result => result.p50),
    row('added p99', result => result.p99)
  ])
}

async function firstByte(one) {
  progress('time to first byte')
  const row = (title, of) => Object.assign(add(`SSE, 500/s, ${title}, ms`, 3), { of })
  const rows = [
    row('added first byte p50', result => result.first50),
    row('added first byte p99', result => result.first99)
  ]
  await added(one, upstreams.timed(one), rows)
}

async function chunks(count, interval) {
  progress('CPU per chunk')
  const one = paced(count, interval)
  const row = add('SSE, CPU per chunk, µs', 1)
  const targets = await lineUp(one, upstreams.timed(one), [row])
  const options = { scratch, streams: 200, repeat: flags.quick ? 1 : 2, chunks: count }
  await alternate(targets, [row], 1, target => perChunk(target, one, { ...options, repeat: 1 }))
  await alternate(targets, [row], flags.quick ? 1 : 2, async target => {
    row.add(target.contender.name, await perChunk(target, one, options))
  })
  await stopped(targets)
}

async function openStreams(streams) {
  progress('memory')
  const idle = add('resident memory idle, MB')
  const open = add(`resident memory, ${streams.toLocaleString('en-US')} open streams, MB`)
  const one = paced(5, 1_000)
  for (const contender of who) {
    let target
    try {
      target = await launch(contender, upstreams.timed(one), scratch)
      const result = await memory(target, one, { scratch, streams })
      idle.add(contender.name, result.idle)
      open.add(contender.name, result.open)
    } catch (error) {
      idle.fail(contender.name, error)
      open.fail(contender.name, error)
    }
    await target?.stop()
  }
}

async function startUps() {
  progress('start-up')
  const row = add('start-up to ready, ms')
  const upstream = upstreams.fixed(cases[0])
  const targets = who.map(contender => ({ contender }))
  await alternate(targets, [row], flags.quick ? 2 : 5, async ({ contender }) => {
    row.add(contender.name, await startUp(contender, upstream, scratch))
  })
}

/** What one part takes of the event loop; ledger.mjs and routing.mjs say how. */
async function share(name, contender, whose) {
  const title = `${whose} event-loop time per request, µs`
  await alone(name, contender, [{ title, says: new RegExp(`${name} adds\\s+(-?[\\d.]+) µs`), below: 3 }])
}

/** What requests and streams cost that are in another language upstream; translation.mjs says how. */
async function translation() {
  const rows = ['anthropic', 'gemini'].flatMap(wire => [
    { title: `${wire}, CPU per request translated, µs`, says: new RegExp(`${wire} request ([\\d.]+) µs`), below: 15 },
    {
      title: `${wire}, CPU per chunk, one a read, µs`,
      says: new RegExp(`${wire} chunk, one .* ([\\d.]+) µs`),
      below: 1
    },
    {
      title: `${wire}, CPU per chunk, 20 a read, µs`,
      says: new RegExp(`${wire} chunk, twenty .* ([\\d.]+) µs`),
      below: 1
    }
  ])
  await alone('translation', 'translation', rows)
}

/** What a large image takes of memory; image.mjs says how. */
async function image() {
  const rows = [{ title: 'an image of 10 MB, memory besides, MB', says: /takes ([\d.]+) MB/, digits: 1, below: 25 }]
  await alone('image', 'gateway', rows)
}

/** What watching costs; observe.mjs says how. */
async function observers() {
  const row = (title, name, below) => ({
    title: `${title}, event-loop time per request, µs`,
    says: new RegExp(`^${name}\\s+\\+(-?[\\d.]+) µs`, 'm'),
    below
  })
  await alone('observe', 'kernel that is watched', [
    row('the log, to a file', 'log, to a file'),
    row('traces', 'traces'),
    row('stats', 'stats'),
    row('metrics', 'metrics'),
    row('events, nobody listens', 'events, nobody listens'),
    row('all of these', 'all of these', 6)
  ])
}

/** What spans cost; otel.mjs says how. */
async function telemetry() {
  const row = (name, below) => ({
    title: `OpenTelemetry ${name}, event-loop time per request over HTTP, µs`,
    says: new RegExp(`^${name} .*\\+\\s+(-?[\\d.]+) over HTTP`, 'm'),
    digits: 1,
    below
  })
  await alone('otel', 'gateway', [row('on, 1 %', 3), row('on, 100 %', 40)])
}

/** What signatures cost; signing.mjs says how. */
async function signing() {
  const row = (name, below) => ({ title: `${name}, µs`, says: new RegExp(`^${name}.* ([\\d.]+) µs`, 'm'), below })
  const rows = [row('signed answer', 10), row('signed chunk, one a read', 5), row('signed chunk, twenty a read', 5)]
  await alone('signing', 'signer', rows)
}

/** Rows of a script that runs in a process of its own: what it `says` is the value, and the target is to be `below`. */
async function alone(name, contender, rows) {
  progress(name)
  second.contenders.push({ name, title: contender })
  const output = run('contender', node, [join(import.meta.dirname, `${name}.mjs`)], 360_000)
  for (const { title, says, digits = 2, below } of rows) {
    const row = measure(title, digits, { single: true })
    second.measures.push(row)
    try {
      const [, text] = says.exec(await output) ?? []
      if (text === undefined) throw new Error(`${name}.mjs said nothing: ${(await output).slice(-200)}`)
      row.add(name, Number(text))
      if (below !== undefined) row.note(name, `target below ${below}: ${Number(text) < below ? 'met' : 'MISSED'}`)
    } catch (error) {
      row.fail(name, error)
    }
  }
}

async function growth() {
  const one = cases.find(({ name }) => name === 'json-10k')
  const { quick, rows } = flags
  const label = what => progress(`scale: ${what}`)
  const result = await scale({ scratch, upstream: upstreams.fixed(one), one, quick, rows, progress: label })
  // The empty database is what the others are compared with.
  second.contenders.unshift(...result.contenders)
  second.measures.push(...result.measures)
  second.notes.push(...result.notes)
}

function progress(what) {
  if (process.stderr.isTTY)
    process.stderr.write(`\r\x1b[K${Math.round((performance.now() - begun) / 1_000)} s: ${what} …`)
}

function report() {
  if (process.stderr.isTTY) process.stderr.write('\r\x1b[K')
  const base = who[0]
  const pinned = cores
    ? `contender on core ${cores.contender}, upstream on ${cores.upstream}, load on ${cores.load}`
    : 'nobody pinned to a core'
  const took = Math.round((performance.now() - begun) / 1_000)
  console.log(
    `Node ${version}; ${cpus()[0]?.model ?? 'unknown CPU'}; upstream ${upstreams.kind}; load ${wrk ? 'wrk' : 'autocannon'};`
  )
  console.log(`${pinned}; ${flags.rounds} alternating rounds of 1 s; ${took} s in all.`)
  if (others > 0.5) {
    console.log(
      `The machine was not idle (load ${others.toFixed(1)} before the start): trust the CPU rows, not requests/s and times.`
    )
  }
  for (const [contender, lacks] of lacking) {
    const without = lacks.length > 0 ? `, without what is not built yet: ${lacks.join(', ')}` : ''
    console.log(`${contender.title}: ${relative(process.cwd(), server)}${without}.`)
  }
  const other = who.find(({ name }) => name === 'portkey')
  if (measures.length > 0) console.log(`\n${print(measures, who, base, other)}\n`)
  if (second.measures.length === 0) return
  for (const note of second.notes) console.log(note)
  console.log(`\n${print(second.measures, second.contenders, second.contenders[0])}\n`)
}
