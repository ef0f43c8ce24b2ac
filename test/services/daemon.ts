import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { accessSync, constants, existsSync, readFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { delimiter, join } from 'node:path'
import type { Test } from 'tap'

/** A real server program on 127.0.0.1 that a test can take away and bring back. */
export interface Daemon {
  readonly port: number
  /** Of the running process; null while it is stopped. */
  readonly pid: number | null
  /** Resolves when it answers; it has the port and the data that it had. */
  start(): Promise<void>
  /** Resolves when it is gone. Connections break, nothing listens any more. */
  stop(): Promise<void>
  /** It keeps its connections and answers nothing. */
  pause(): void
  resume(): void
}

/** Says that a test cannot run here: skipped, but a failure in CI, where everything has to be there. */
export function skipOrFail(t: Test, what: string): void {
  const reason = `${what} is not installed`
  if (process.env['CI'] === 'true') t.fail(reason)
  else t.skip(reason, () => {})
}

/** The path of a program, or null. */
export function find(name: string, folders: readonly string[] = []): string | null {
  for (const folder of [...(process.env['PATH'] ?? '').split(delimiter), ...folders]) {
    const path = join(folder, name)
    try {
      accessSync(path, constants.X_OK)
      return path
    } catch {}
  }
  return null
}

/** A port that nobody listens on. */
export async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  const address = server.address()
  server.close()
  await once(server, 'close')
  if (address === null || typeof address === 'string') throw new Error('There is no port.')
  return address.port
}

export interface Program {
  readonly command: string
  readonly args: (port: number) => string[]
  /** What it prints when it answers. */
  readonly ready: RegExp
  /** Ends it at once and cleanly. */
  readonly signal: NodeJS.Signals
  readonly user?: { uid: number; gid: number }
}

/** Starts a program; it ends with the test, or with the process that runs it. */
export async function startDaemon(t: Test, program: Program): Promise<Daemon> {
  let child: ChildProcess | null = null
  let port = await freePort()
  const kill = () => child?.kill('SIGKILL')

  async function start(): Promise<void> {
    if (child !== null) return
    child = await launch(program, port)
    child.once('exit', () => (child = null))
  }

  async function stop(): Promise<void> {
    if (child === null) return
    child.ref()
    const exited = once(child, 'exit')
    tellAll(child, 'SIGCONT')
    child.kill(program.signal)
    await exited
  }

  process.once('exit', kill)
  t.teardown(async () => {
    process.off('exit', kill)
    await stop()
  })
  await start().catch(async () => {
    // Somebody took the port in between.
    port = await freePort()
    await start()
  })
  return {
    get port() {
      return port
    },
    get pid() {
      return child?.pid ?? null
    },
    start,
    stop,
    pause: () => child && tellAll(child, 'SIGSTOP'),
    resume: () => child && tellAll(child, 'SIGCONT')
  }
}

/** PostgreSQL has a process for each connection, in a group of its own. */
function tellAll(child: ChildProcess, signal: 'SIGSTOP' | 'SIGCONT'): void {
  const children = existsSync('/proc') ? readFileSync(`/proc/${child.pid}/task/${child.pid}/children`, 'utf8') : ''
  child.kill(signal)
  for (const pid of children.split(' ').filter(Boolean)) {
    try {
      process.kill(Number(pid), signal)
    } catch {
      // It has ended meanwhile.
    }
  }
}

async function launch({ command, args, ready, user }: Program, port: number): Promise<ChildProcess> {
  const child = spawn(command, args(port), { ...user, env: { LC_ALL: 'C' }, stdio: ['ignore', 'pipe', 'pipe'] })
  const { promise, resolve, reject } = Promise.withResolvers<void>()
  let said = ''
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding('utf8')
    stream.on('data', text => {
      said = (said + text).slice(-10_000)
      if (ready.test(said)) resolve()
    })
  }
  child.once('error', reject)
  child.once('exit', () => reject(new Error(`${command} ended: ${said}`)))
  await promise
  // A test that has nothing left to do but us is over.
  for (const handle of [child, child.stdout, child.stderr]) if ('unref' in handle) (handle as { unref(): void }).unref()
  guard(child)
  return child
}

/** A test that is killed tears nothing down: another process sees its pipe close, and ends the program. */
function guard(child: ChildProcess): void {
  const watch = spawn('sh', ['-c', `cat; kill -KILL ${child.pid}`], {
    stdio: ['pipe', 'ignore', 'ignore'],
    detached: true
  })
  watch.on('error', () => {})
  watch.unref()
  const { stdin } = watch
  if ('unref' in stdin) (stdin as { unref(): void }).unref()
  child.once('exit', () => watch.kill('SIGKILL'))
}
