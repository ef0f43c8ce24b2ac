import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Test } from 'tap'
import { type Daemon, find, skipOrFail, startDaemon } from './daemon.ts'

export interface RedisOptions {
  /** More settings: `['--maxmemory', '10mb']`. */
  readonly args?: readonly string[]
}

export interface TestRedis extends Daemon {
  readonly url: string
}

/** A Redis of its own, empty after each start; ends with the test. Null, and the test skipped, without the program. */
export async function startRedis(t: Test, options: RedisOptions = {}): Promise<TestRedis | null> {
  const command = find('redis-server')
  if (command === null) {
    skipOrFail(t, 'redis-server')
    return null
  }
  const directory = await mkdtemp(join(tmpdir(), 'gateway-redis-'))
  // Teardowns run last first: the folder goes after the program.
  t.teardown(() => rm(directory, { recursive: true, force: true }))
  const daemon = await startDaemon(t, {
    command,
    args: port => [
      ...['--port', String(port), '--bind', '127.0.0.1', '--dir', directory],
      ...['--save', '', '--appendonly', 'no', ...(options.args ?? [])]
    ],
    ready: /Ready to accept connections/,
    signal: 'SIGKILL'
  })
  return Object.assign(daemon, { url: `redis://127.0.0.1:${daemon.port}` })
}
