import { realpathSync } from 'node:fs'
import { basename, dirname, join } from 'node:path'
import { DatabaseSync } from 'node:sqlite'

const busy = 5

/** Lets go of a lock. */
export type Release = () => void

/**
 * Takes a database file for this thread alone, by a lock on the file beside it, `<file>.lock`, which the system gives
 * back even when the process is killed. The database itself stays readable for others.
 *
 * The side file is only ever opened by SQLite: POSIX drops a process's locks on a file as soon as it closes any
 * descriptor of it, and SQLite knows of all of its own.
 * @throws Error with one line for the operator when somebody else has it
 */
export function lockFile(file: string, wait: number): Release {
  const real = realFile(file)
  const lock = new DatabaseSync(`${real}.lock`, { timeout: wait })
  try {
    lock.exec('PRAGMA journal_mode = MEMORY; BEGIN EXCLUSIVE')
  } catch (cause) {
    lock.close()
    if (!(cause instanceof Error && 'errcode' in cause && cause.errcode === busy)) throw cause
    throw new Error(
      `The database ${real} is in use by another gateway. Set store to another file; several gateways on one database ` +
        'need PostgreSQL (DATABASE_URL) and Redis (REDIS_URL).',
      { cause }
    )
  }
  return () => lock.close()
}

/** One name for a file however it is written; it need not be there yet, its folder does. */
export function realFile(file: string): string {
  try {
    return realpathSync(file)
  } catch {
    return join(realpathSync(dirname(file)), basename(file))
  }
}
