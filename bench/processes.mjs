// Processes of the bench: pinned to a core, known by id, measured through /proc, ended on every exit path.
import { execFileSync, spawn } from 'node:child_process'
import { existsSync, readFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { delimiter, join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'

/** The runtime every Node process here runs on: the project's own, unless the bench was started with it anyway. */
const packaged = join(import.meta.dirname, '../node_modules/.bin/node')
export const node = existsSync(packaged)
  ? execFileSync(packaged, ['-p', 'process.execPath'], { encoding: 'utf8' }).trim()
  : process.execPath

// No more of the environment than a process needs: a key or a port that lies about there must not reach a contender.
const { PATH, HOME, TMPDIR } = process.env
const inherited = Object.fromEntries(Object.entries({ PATH, HOME, TMPDIR }).filter(([, value]) => value !== undefined))

const running = new Set()
const guard = spawn(node, [join(import.meta.dirname, 'guard.mjs')], {
  stdio: ['pipe', 'ignore', 'ignore'],
  detached: true
})
guard.on('error', () => {})
guard.stdin.on('error', () => {})
guard.unref()
guard.stdin.unref()

export function which(command) {
  const places = [...process.env.PATH.split(delimiter), '/usr/sbin', '/usr/local/sbin']
  return places.map(place => join(place, command)).find(file => existsSync(file))
}

const taskset = which('taskset')

/** The contender has a core to itself; upstream and load have another, or one each where there are enough. */
export const cores = (() => {
  const list = /Cpus_allowed_list:\s*(\S+)/.exec(
    existsSync('/proc/self/status') ? readFileSync('/proc/self/status', 'utf8') : ''
  )
  if (taskset === undefined || list === null) return null
  const allowed = list[1].split(',').flatMap(range => {
    const [from, to = from] = range.split('-').map(Number)
    return Array.from({ length: to - from + 1 }, (_, i) => from + i)
  })
  if (allowed.length < 2) return null
  return { contender: allowed[0], upstream: allowed[1], load: allowed.length > 3 ? allowed[2] : allowed[1] }
})()

/**
 * Starts a process on the core of its role ('contender', 'upstream' or 'load').
 *
 * @returns the child, with `output` (what it printed, its end) and `ended` (a promise of its exit code)
 */
export function start(role, command, args, options = {}) {
  const pinned = cores === null ? [command, ...args] : [taskset, '-c', String(cores[role]), command, ...args]
  const child = spawn(pinned[0], pinned.slice(1), {
    cwd: options.cwd,
    env: { ...inherited, NODE_ENV: 'production', ...options.env },
    stdio: ['ignore', 'pipe', 'pipe']
  })
  child.output = ''
  const keep = text => {
    child.output = (child.output + text).slice(-20_000)
  }
  child.stdout.setEncoding('utf8').on('data', keep)
  child.stderr.setEncoding('utf8').on('data', keep)
  child.ended = new Promise(resolve => {
    child.on('error', error => {
      keep(String(error))
      resolve(-1)
    })
    child.on('close', (code, signal) => {
      forget(child)
      resolve(code ?? signal)
    })
  })
  if (child.pid !== undefined) {
    running.add(child)
    guard.stdin.write(`+${child.pid}\n`)
  }
  return child
}

function forget(child) {
  if (running.delete(child)) guard.stdin.write(`-${child.pid}\n`)
}

/** Runs a process to its end. @throws when it fails or takes longer than `limit` ms */
export async function run(role, command, args, limit, options) {
  const child = start(role, command, args, options)
  const timer = setTimeout(() => child.kill('SIGKILL'), limit)
  const code = await child.ended
  clearTimeout(timer)
  if (code !== 0) throw new Error(`${command} ended with ${code}: ${child.output.slice(-2_000)}`)
  return child.output
}

/** Ends a process; killed when it takes more than `limit` ms. */
export async function stop(child, limit = 1_500) {
  if (!running.has(child)) return
  child.kill('SIGTERM')
  const timer = setTimeout(() => child.kill('SIGKILL'), limit)
  await child.ended
  clearTimeout(timer)
}

/** Every exit path leads here or, when this process is killed, to the guard. */
export function stopAll() {
  for (const child of running) child.kill('SIGKILL')
}

/** Waits until `url` answers 200. @throws when the process has ended or `limit` ms have passed */
export async function ready(child, url, limit = 20_000, interval = 10) {
  const until = performance.now() + limit
  while (performance.now() < until) {
    if (!running.has(child)) throw new Error(`ended before it was ready: ${child.output.slice(-2_000)}`)
    const response = await fetch(url, { signal: AbortSignal.timeout(1_000) }).catch(() => null)
    await response?.arrayBuffer()
    if (response?.status === 200) return
    await sleep(interval)
  }
  throw new Error(`not ready within ${limit} ms: ${child.output.slice(-2_000)}`)
}

export function freePort() {
  return new Promise((resolve, reject) => {
    const server = createServer().on('error', reject)
    server.listen(0, '127.0.0.1', () => {
      const { port } = server.address()
      server.close(() => resolve(port))
    })
  })
}

/** CPU time of all threads of a process so far, in microseconds, counted by the kernel in steps of 10 ms. */
export function cpu(pid) {
  const fields = readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ')[1].split(' ')
  return (Number(fields[11]) + Number(fields[12])) * 10_000
}

/** Resident memory of a process, in bytes. */
export function resident(pid) {
  return Number(/VmRSS:\s*(\d+)/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))[1]) * 1_024
}

/** Whether `cpu` and `resident` work on this system. */
export const accounted = existsSync('/proc/self/stat')
