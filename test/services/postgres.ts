import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { chownSync, globSync, readFileSync } from 'node:fs'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import pg from 'pg'
import type { Test } from 'tap'
import { type Daemon, find, skipOrFail, startDaemon } from './daemon.ts'

export interface TestPostgres extends Daemon {
  /** Of the database `postgres`; `database()` makes an empty one for each test that needs its own. */
  readonly url: string
  /** The URL of a new, empty database of this server. */
  database(): Promise<string>
}

/**
 * A PostgreSQL of its own, started once a test file; ends with the test. Null, and the test skipped, without the
 * program. It does not run as root, so it is started as another user where we are root.
 */
export async function startPostgres(t: Test): Promise<TestPostgres | null> {
  const folders = globSync('/usr/lib/postgresql/*/bin').sort().reverse()
  const command = find('postgres', folders)
  const initdb = find('initdb', folders)
  if (command === null || initdb === null) {
    skipOrFail(t, 'PostgreSQL')
    return null
  }
  const user = process.getuid?.() === 0 ? unprivileged() : undefined
  const directory = await mkdtemp(join(tmpdir(), 'gateway-postgres-'))
  t.teardown(() => rm(directory, { recursive: true, force: true }))
  if (user) chownSync(directory, user.uid, user.gid)
  const flags = ['-D', directory, '-U', 'gateway', '-A', 'trust', '-E', 'UTF8', '--locale=C', '--no-sync']
  const child = spawn(initdb, flags, {
    ...user,
    cwd: directory,
    env: { LC_ALL: 'C' },
    stdio: ['ignore', 'ignore', 'inherit']
  })
  const [code] = await once(child, 'exit')
  if (code !== 0) throw new Error(`initdb ended with ${code}.`)
  const settings = {
    listen_addresses: '127.0.0.1',
    unix_socket_directories: '',
    fsync: 'off',
    synchronous_commit: 'off',
    full_page_writes: 'off',
    shared_buffers: '32MB',
    max_connections: '50',
    logging_collector: 'off'
  }
  const daemon = await startDaemon(t, {
    command,
    args: port => [
      ...['-D', directory, '-p', String(port)],
      ...Object.entries(settings).flatMap(([name, value]) => ['-c', `${name}=${value}`])
    ],
    ready: /database system is ready to accept connections/,
    // Fast shutdown: transactions are broken off, the data is whole.
    signal: 'SIGINT',
    user
  })
  const url = `postgres://gateway@127.0.0.1:${daemon.port}/`
  let count = 0
  return Object.assign(daemon, {
    url: `${url}postgres`,
    async database() {
      const name = `test_${process.pid}_${++count}`
      const client = new pg.Client(`${url}postgres`)
      await client.connect()
      await client.query(`CREATE DATABASE ${name}`)
      await client.end()
      return url + name
    }
  })
}

function unprivileged(): { uid: number; gid: number } {
  for (const name of ['postgres', 'nobody']) {
    const [, , uid, gid] =
      readFileSync('/etc/passwd', 'utf8')
        .match(new RegExp(`^${name}:.*$`, 'm'))?.[0]
        .split(':') ?? []
    if (uid && gid) return { uid: Number(uid), gid: Number(gid) }
  }
  throw new Error('There is no user to run PostgreSQL as.')
}
