import type { Balance } from '../../../schemas/ledger.ts'
import type { Database } from '../database.ts'
import { Conflict, type LedgerContext } from './context.ts'
import { insertEnded } from './ended.ts'
import { instanceOf, type JournalFile, journalsIn, openJournal, writtenAt } from './files.ts'
import { createFold } from './fold.ts'
import { lostEnding, openCallOf } from './rows.ts'
import { numberIn, statementsFor, textIn } from './statements.ts'
import type { Tallies } from './tally.ts'

export interface RecoveryOptions {
  readonly database: Database
  readonly tallies: Tallies
  readonly context: LedgerContext
  readonly directory: string
  /** Names the books that a journal belongs to. */
  readonly books: string
  /** Milliseconds after which a silent process counts as dead. */
  readonly lease: number
  /** Others are proven dead, so that their files can go at once. */
  readonly proven: boolean
}

/** A process that was only stalled may still write into its file: it stays for so long after the last write. */
const kept = 86_400_000

/** Takes over what dead processes left behind. */
export function createRecovery(options: RecoveryOptions) {
  const { database, tallies, context, directory, books, lease, proven } = options
  const sql = statementsFor(database)
  /** Files that were folded to this size: nothing is left in them unless they grow. */
  const finished = new Map<string, number>()

  /** Every process that has been silent for longer than its lease, and every journal here that nobody owns. */
  async function sweep(): Promise<void> {
    const rows = await database.all(
      `SELECT id, CASE WHEN seen_at < ${sql.now} - ? THEN 1 ELSE 0 END AS dead FROM instances WHERE id <> ?`,
      [lease, context.instance]
    )
    const dead = new Set(rows.filter(row => numberIn(row, 'dead') === 1).map(row => textIn(row, 'id')))
    const known = new Set(rows.map(row => textIn(row, 'id'))).add(context.instance)
    const files = Map.groupBy(journalsIn(directory), instanceOf)
    for (const instance of files.keys()) if (!known.has(instance)) dead.add(instance)
    for (const instance of dead) {
      await takeOver(instance, files.get(instance) ?? [], known.has(instance)).catch(error => {
        if (!(error instanceof Conflict)) throw error
      })
    }
  }

  /** They are all dead: nobody else can have this database. */
  async function declareOthersDead(): Promise<void> {
    await database.transaction(async inside => {
      await inside.run('UPDATE instances SET seen_at = 0 WHERE id <> ?', [context.instance])
      await inside.run(
        `INSERT INTO instances (id, started_at, seen_at)
          SELECT DISTINCT instance, 0, 0 FROM open_calls WHERE instance NOT IN (SELECT id FROM instances)`
      )
    })
  }

  async function takeOver(instance: string, names: readonly string[], registered: boolean): Promise<void> {
    const files: JournalFile[] = []
    try {
      for (const name of names) {
        const file = openJournal(directory, books, name)
        if (file !== null) files.push(file)
      }
      const grown = files.some(file => finished.get(file.name) !== file.size())
      if (registered || grown) await close(instance, files)
      await discard(files)
    } finally {
      for (const file of files) file.close()
    }
  }

  async function close(instance: string, files: readonly JournalFile[]): Promise<void> {
    await database.run('INSERT INTO instances (id, started_at, seen_at) VALUES (?, 0, 0) ON CONFLICT (id) DO NOTHING', [
      instance
    ])
    const guard = (inside: Database) => proveDead(inside, instance)
    const fold = createFold({ database, tallies, context, instance, guard })
    const sizes = files.map(file => file.size())
    for (const file of files) {
      await fold.load(file)
      while (await fold.step());
    }
    const { balances, calls } = await database.transaction(inside => interrupt(inside, instance))
    for (const [index, file] of files.entries()) finished.set(file.name, sizes[index] ?? 0)
    if (calls > 0) context.log.warn({ instance, calls }, 'closed the open calls of a gateway that is gone')
    if (balances.length > 0) context.folded(balances)
  }

  async function proveDead(inside: Database, instance: string): Promise<void> {
    const [row] = await inside.all(
      `SELECT id FROM instances WHERE id = ? AND seen_at < ${sql.now} - ? ${sql.forUpdate}`,
      [instance, lease]
    )
    if (row === undefined) throw new Conflict(`${instance} lives, or was closed by somebody else`)
  }

  /** Its open calls become rows, and it is no more. */
  async function interrupt(inside: Database, instance: string): Promise<{ balances: Balance[]; calls: number }> {
    await proveDead(inside, instance)
    const lost = await inside.all('DELETE FROM open_calls WHERE instance = ? RETURNING id, lines', [instance])
    await inside.run('DELETE FROM instances WHERE id = ?', [instance])
    if (lost.length === 0) return { balances: [], calls: 0 }
    const tally = tallies.begin()
    const calls = lost.map(row => {
      const call = openCallOf(textIn(row, 'id'), textIn(row, 'lines'))
      return { call, ending: lostEnding(call) }
    })
    await insertEnded(inside, calls, tallies, tally)
    return { balances: await tally.write(inside), calls: lost.length }
  }

  /**
   * Deletes files that nobody writes any more, then their rows: a file without its row would count again. The row of one
   * whose writer may still be stalled stays, so that it knows how far it was folded.
   */
  async function discard(files: readonly JournalFile[]): Promise<void> {
    const done = files.filter(file => proven || writtenAt(file.path) < Date.now() - kept)
    if (done.length === 0) return
    await database.flush()
    for (const file of done) {
      file.remove()
      finished.delete(file.name)
      if (proven) await database.run('DELETE FROM journals WHERE file = ?', [file.name])
    }
  }

  return { sweep, declareOthersDead }
}
