// What is measured, each a function of a running contender. Every one throws when an answer was not what it has to be.
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { probe } from './probe.mjs'
import { accounted, cpu, node, resident, run, start, which } from './processes.mjs'

export const wrk = process.argv.includes('--no-wrk') ? undefined : which('wrk')
const script = join(import.meta.dirname, 'wrk.lua')
const loader = join(import.meta.dirname, 'load.mjs')

/** Where a request body is kept for the load to read. */
export function bodyFile(scratch, { name, request }) {
  const file = join(scratch, `${name}.request`)
  writeFileSync(file, request)
  return file
}

/** As many calls as the target takes. `wire` is what the probe said of the answer's size. */
export async function saturate(target, one, { scratch, seconds, wire }) {
  const before = spent(target)
  const result = await (wrk
    ? runWrk(target, one, scratch, seconds)
    : runLoad('saturate', target, one, scratch, { seconds, connections: one.connections }))
  const { requests, bytes, microseconds, status, broken, timeouts } = result
  const used = spent(target) - before
  if (status + broken + timeouts > 0)
    throw new Error(`${status} answers were not 200, ${broken} broke, ${timeouts} timed out`)
  if (requests === 0) throw new Error(`no answer within ${seconds} s`)
  // The calls in flight at the end were counted in part; chunked framing depends on how reads fell.
  const least = requests * wire * 0.99
  const most = (requests + one.connections) * wire * 1.01
  if (bytes < least || bytes > most) throw new Error(`${bytes} bytes for ${requests} answers of ${wire} bytes`)
  await probe(target, one)
  return { perSecond: (requests / microseconds) * 1e6, cpu: used / requests, busy: used / microseconds }
}

async function runWrk({ url, headers }, one, scratch, seconds) {
  const args = ['-t1', `-c${one.connections}`, `-d${seconds}s`, '--timeout', '10s', '-s', script, url]
  const extra = Object.entries(headers).flat()
  const output = await run('load', wrk, [...args, '--', bodyFile(scratch, one), ...extra], (seconds + 20) * 1_000)
  return resultOf(output)
}

/** Times of calls at a fixed rate, in milliseconds. A load that was itself kept waiting says nothing of its target: again. */
export async function atRate(target, one, { scratch, rate, seconds, warm }) {
  for (let attempt = 0; attempt < 3; attempt++) {
    const result = await runLoad('rate', target, one, scratch, { rate, seconds, warm, length: one.answer.length })
    if (result.failed > 0) throw new Error(`${result.failed} calls failed: ${result.fault}`)
    if (result.late < 100) return result
  }
  throw new Error('the load could not keep its rate: this machine is too busy')
}

/** CPU time of the target per chunk of a timed stream, in microseconds, its share of the call included. */
export async function perChunk(target, one, { scratch, streams, repeat, chunks }) {
  if (!accounted) return Number.NaN
  const before = spent(target)
  const { failed, fault } = await runLoad('streams', target, one, scratch, {
    streams,
    repeat,
    length: one.answer.length,
    seconds: 30
  })
  if (failed > 0) throw new Error(`${failed} streams failed: ${fault}`)
  return (spent(target) - before) / (streams * repeat * chunks)
}

/** Resident memory in MB, at rest and while `streams` streams are open. */
export async function memory(target, one, { scratch, streams }) {
  if (!accounted) return { idle: Number.NaN, open: Number.NaN }
  await sleep(500)
  const idle = resident(target.pid) / 1e6
  const job = { ...jobOf(target, one, scratch), streams, repeat: 1, length: one.answer.length }
  const child = start('load', node, [loader, 'streams', JSON.stringify(job)])
  const timer = setTimeout(() => child.kill('SIGKILL'), 30_000)
  await new Promise(resolve => {
    child.stdout.on('data', () => child.output.includes('OPEN') && resolve())
    child.ended.then(resolve)
  })
  await sleep(1_000)
  const open = resident(target.pid) / 1e6
  const code = await child.ended
  clearTimeout(timer)
  if (code !== 0) throw new Error(`the load ended with ${code}: ${child.output.slice(-500)}`)
  const { failed, fault } = resultOf(child.output)
  if (failed > 0) throw new Error(`${failed} of ${streams} streams failed: ${fault}`)
  if (!child.output.includes('OPEN')) throw new Error(`it never had ${streams} streams open at once`)
  return { idle, open }
}

/** Resident memory in MB, at rest and after `total` calls with the keys of `keysFile` in turn. */
export async function memoryOfKeys(target, one, { scratch, keysFile, total }) {
  if (!accounted) return { idle: Number.NaN, used: Number.NaN }
  await sleep(500)
  const idle = resident(target.pid) / 1e6
  const job = { keysFile, total, connections: 64, length: one.answer.length, seconds: 60 }
  const { failed, fault } = await runLoad('spread', target, one, scratch, job)
  if (failed > 0) throw new Error(`${failed} of ${total} calls failed: ${fault}`)
  await sleep(1_000)
  return { idle, used: resident(target.pid) / 1e6 }
}

async function runLoad(kind, target, one, scratch, more) {
  const job = { ...jobOf(target, one, scratch), ...more }
  return resultOf(await run('load', node, [loader, kind, JSON.stringify(job)], ((more.seconds ?? 0) + 25) * 1_000))
}

function jobOf({ url, headers }, one, scratch) {
  return { url, headers, bodyFile: bodyFile(scratch, one) }
}

function resultOf(output) {
  const line = /^RESULT (.*)$/m.exec(output)
  if (line === null) throw new Error(`the load said nothing: ${output.slice(-500)}`)
  return JSON.parse(line[1])
}

function spent({ pid }) {
  return pid === null || !accounted ? Number.NaN : cpu(pid)
}
