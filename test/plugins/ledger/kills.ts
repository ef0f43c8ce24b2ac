import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import type { Test } from 'tap'
import { openSqlite } from '../../../plugins/store/sqlite.ts'
import { books, proven, scratch } from './books.ts'

const child = fileURLToPath(new URL('./killed.ts', import.meta.url))

/** Kills a process under load at random moments, and looks for every call that its callers saw end. */
export async function kills(t: Test, rounds: number): Promise<void> {
  const directory = scratch(t)
  const seen: string[] = []
  for (let round = 0; round < rounds; round++) seen.push(...(await lifeOf(directory, 20 + Math.random() * 250)))
  t.ok(seen.length > rounds, `${seen.length} calls ended before a kill`)
  const database = openSqlite({ url: `sqlite:${join(directory, 'gateway.db')}`, lockWait: 5_000 })
  t.teardown(() => database.close())
  const { ledger } = await books(t, database, { directory: join(directory, 'journal') })
  const rows = await database.all('SELECT id, status, cost FROM inferences')
  const settled = new Map(rows.filter(row => row['status'] === 'settled').map(row => [row['id'], row['cost']]))
  t.equal(new Set(rows.map(row => row['id'])).size, rows.length, 'no call is in the books twice')
  t.strictSame(
    seen.filter(id => settled.get(id) !== 21),
    [],
    'every call that was seen to its end is settled'
  )
  t.strictSame(
    rows.filter(row => row['status'] !== 'settled' && row['status'] !== 'interrupted'),
    [],
    'what was cut off is interrupted'
  )
  const [open] = await database.all('SELECT COUNT(*) AS left_open FROM open_calls')
  t.equal(open?.['left_open'], 0)
  await proven(t, ledger)
}

/** The ids of calls whose end was seen. */
async function lifeOf(directory: string, milliseconds: number): Promise<string[]> {
  // Through env(1): tap hands every process it starts a loader of its own.
  const process_ = spawn('env', ['-u', 'NODE_OPTIONS', process.execPath, child, directory], {
    stdio: ['ignore', 'pipe', 'inherit']
  })
  const exited = once(process_, 'exit')
  let text = ''
  const ready = Promise.withResolvers<void>()
  process_.stdout.on('data', piece => {
    text += piece
    if (text.includes('ready\n')) ready.resolve()
  })
  const closed = once(process_, 'close')
  await Promise.race([ready.promise, exited.then(() => Promise.reject(new Error('It did not start.')))])
  await new Promise(resolve => setTimeout(resolve, milliseconds))
  process_.kill('SIGKILL')
  await closed
  return text
    .slice(text.indexOf('ready\n') + 6, text.lastIndexOf('\n'))
    .split('\n')
    .filter(id => id !== '')
}
