import { randomBytes } from 'node:crypto'
import type { Balance } from '../../../schemas/ledger.ts'
import type { Store, StoreState } from '../../../schemas/store.ts'
import { type Database, isGone } from '../database.ts'
import { adjust, readBalances, recount } from './accounts.ts'
import { Conflict, eager, gentle, type LedgerContext } from './context.ts'
import { createJournal, type JournalFile } from './files.ts'
import { createFold, type Fold } from './fold.ts'
import { createRecovery } from './recovery.ts'
import { retire } from './retention.ts'
import { statementsFor, textIn } from './statements.ts'
import { createTallies } from './tally.ts'
import { verify } from './verification.ts'

/**
 * The worker's side of `Store['ledger']`; `records` and `export` are elsewhere. Rejects with what `isGone` recognises while
 * the database cannot be reached.
 */
export interface StoreLedger
  extends Pick<
    Store['ledger'],
    'open' | 'grown' | 'folded' | 'rotate' | 'balances' | 'recount' | 'adjust' | 'retain' | 'verify'
  > {
  /** Folds what is left, and takes this process out of the books. What cannot be folded now is folded at the next start. */
  close(): Promise<void>
}

interface Journal {
  readonly directory: string
  readonly books: string
  readonly fold: Fold
  /** The one being folded first, the one being written last. */
  readonly files: JournalFile[]
  readonly sweep: (() => Promise<void>) | null
  readonly heartbeat: NodeJS.Timeout | null
}

const firstRetry = 100
const lastRetry = 500
/** More of a backlog than this is folded with shorter rests, so that the disk is not filled. */
const largeBacklog = 256 * 1_048_576
/** The state is told again when the backlog has changed by this. */
const backlogStep = 1_048_576
/** One after another; more of them are no coincidence. */
const mostConflicts = 10
const goesOn = 'it is folded as soon as the database is back'

/** Folds journals into the tables of a database, in the thread that has it. */
export function createLedger(database: Database, context: LedgerContext): StoreLedger {
  const sql = statementsFor(database)
  const tallies = createTallies()
  let journal: Journal | null = null
  let pace = context.pace ?? gentle
  let tail: Promise<unknown> = Promise.resolve()
  let barrier: Promise<void> | null = null
  let timer: NodeJS.Timeout | null = null
  let failures = 0
  let conflicts = 0
  let reason: string | null = null
  let toldBacklog = 0
  let retaining: Promise<number> | null = null
  let closed = false

  /** Folding, sweeping and heartbeats follow each other. */
  function exclusively<T>(work: () => Promise<T>): Promise<T> {
    const result = tail.then(work)
    tail = result.catch(() => {})
    return result
  }

  async function open(options: { directory: string; lease: number; exclusive: boolean }): Promise<{ path: string }> {
    if (journal !== null) throw new Error('The ledger is open already.')
    const { directory, lease, exclusive } = options
    // A lock that hangs on a connection is lost with it; one on a file is not.
    const proven = exclusive && database.kind === 'sqlite'
    if (context.pace === undefined && !proven) pace = eager
    const books = await booksId()
    const recovery = createRecovery({ database, tallies, context, directory, books, lease, proven })
    await register()
    if (exclusive) await recovery.declareOthersDead()
    await recovery.sweep()
    const guard = proven ? async () => {} : beatInside
    const fold = createFold({ database, tallies, context, instance: context.instance, guard })
    const file = createJournal(directory, books, context.instance, 1)
    await fold.load(file)
    const sweep = exclusive ? null : recovery.sweep
    const heartbeat = proven ? null : setInterval(beat, Math.max(50, lease / 3)).unref()
    journal = { directory, books, fold, files: [file], sweep, heartbeat }
    return { path: file.path }
  }

  /** Drawn once for each database. */
  async function booksId(): Promise<string> {
    const id = randomBytes(12).toString('hex')
    await database.run("INSERT INTO settings (name, value) VALUES ('ledger.books', ?) ON CONFLICT (name) DO NOTHING", [
      id
    ])
    const [row] = await database.all("SELECT value FROM settings WHERE name = 'ledger.books'")
    return row === undefined ? id : textIn(row, 'value')
  }

  async function register(): Promise<void> {
    await database.run(
      `INSERT INTO instances (id, started_at, seen_at) VALUES (?, ?, ${sql.now})
        ON CONFLICT (id) DO UPDATE SET seen_at = excluded.seen_at`,
      [context.instance, Date.now()]
    )
  }

  /** A fold is a sign of life, and locks this process against those who would close its calls. */
  async function beatInside(inside: Database): Promise<void> {
    const alive = await inside.run(`UPDATE instances SET seen_at = ${sql.now} WHERE id = ?`, [context.instance])
    if (alive !== 1) throw new Conflict('this process was taken for dead')
  }

  function beat(): void {
    void exclusively(async () => {
      if (closed) return
      await register()
      await journal?.sweep?.()
    }).catch(error => {
      if (!isGone(error)) context.log.error({ err: error }, 'the ledger cannot look after processes that are gone')
    })
  }

  /** Folds the next lines; false: there are none. After a conflict it goes on from what the database says. */
  async function step({ fold, files }: Journal): Promise<boolean> {
    try {
      const more = (await fold.step()) || (await nextFile(fold, files))
      conflicts = 0
      return more
    } catch (error) {
      if (!(error instanceof Conflict) || ++conflicts > mostConflicts) throw error
      context.log.warn({ reason: error.message }, 'the ledger reads again what others have done')
      await register()
      return true
    }
  }

  /** Goes on to the next file once a later one is written to: nothing is added to those before from then on. */
  async function nextFile(fold: Fold, files: JournalFile[]): Promise<boolean> {
    const [current, next] = files
    if (current === undefined || next === undefined) return false
    if (!files.some(file => file !== current && file.size() > file.start)) return false
    // It may have grown between its last read and the first line of the next.
    if (await fold.step()) return true
    await finish(current)
    files.shift()
    await fold.load(next)
    return true
  }

  /** The row goes after the file: a file without its row would count again. */
  async function finish(file: JournalFile): Promise<void> {
    await database.flush()
    file.remove()
    await database.run('DELETE FROM journals WHERE file = ?', [file.name])
  }

  /** Folds everything that stands in the files when it begins. */
  async function foldAll(): Promise<void> {
    if (journal === null) return
    const { fold, files } = journal
    const last = files.at(-1)!
    const goal = last.size()
    try {
      while (files[0] !== last || fold.offset < goal) if (!(await step(journal))) break
      succeeded()
    } catch (error) {
      failed(error)
      schedule(firstRetry)
      throw error
    }
  }

  /** One pass serves all who asked before it began. */
  function folded(): Promise<void> {
    barrier ??= exclusively(() => {
      barrier = null
      return foldAll()
    })
    return barrier
  }

  /** Of its own accord: a batch, then a rest. */
  async function foldSome(): Promise<void> {
    timer = null
    if (journal === null || closed) return
    const before = performance.now()
    try {
      const more = await step(journal)
      succeeded()
      const took = performance.now() - before
      const rest = backlog() > largeBacklog ? Math.min(3, pace.rest) : pace.rest
      if (more) schedule(Math.max(pace.least, took * rest))
    } catch (error) {
      failed(error)
      schedule(Math.min(lastRetry, firstRetry * 2 ** Math.min(failures - 1, 10)))
    }
  }

  function schedule(delay: number): void {
    if (timer === null && !closed) timer = setTimeout(() => void exclusively(foldSome), delay)
  }

  function backlog(): number {
    if (journal === null) return 0
    return (
      journal.files.reduce((sum, file) => sum + file.size() - file.start, 0) - journal.fold.offset + firstStart(journal)
    )
  }

  function succeeded(): void {
    failures = 0
    const changed = reason !== null
    reason = null
    tell(changed)
  }

  function failed(error: unknown): void {
    failures++
    if (failures === 1 || !isGone(error)) context.log.error({ err: error }, `the ledger cannot be folded: ${goesOn}`)
    reason = reasonOf(error)
    tell(true)
  }

  function tell(changed: boolean): void {
    const size = backlog()
    const near = Math.abs(size - toldBacklog) < backlogStep && (size > 0 || toldBacklog === 0)
    if (!changed && near) return
    toldBacklog = size
    const state: StoreState = { ok: reason === null, reason, backlog: size }
    context.state(state)
  }

  /** Reads and changes that rest on everything being folded. */
  async function afterFold<T>(work: () => Promise<T>): Promise<T> {
    await folded()
    return work()
  }

  async function changed(work: () => Promise<Balance>): Promise<Balance> {
    const balance = await afterFold(work)
    context.folded([balance])
    return balance
  }

  async function close(): Promise<void> {
    if (closed) return
    if (timer !== null) clearTimeout(timer)
    if (journal?.heartbeat) clearInterval(journal.heartbeat)
    try {
      await folded()
      await exclusively(leave)
    } catch (error) {
      context.log.warn(
        { reason: reasonOf(error) },
        'the journal could not be folded to its end: the next start does it'
      )
    } finally {
      closed = true
      if (timer !== null) clearTimeout(timer)
      for (const file of journal?.files ?? []) file.close()
    }
  }

  /** Nothing of this process is left, unless calls of it are still open. */
  async function leave(): Promise<void> {
    if (journal === null || journal.fold.open > 0 || backlog() > 0) return
    for (const file of journal.files.splice(0)) await finish(file)
    await database.run('DELETE FROM instances WHERE id = ?', [context.instance])
  }

  return {
    open: options => exclusively(() => open(options)),
    grown() {
      schedule(pace.least)
    },
    folded,
    rotate: () =>
      exclusively(async () => {
        if (journal === null) throw new Error('The ledger is not open.')
        const { directory, books, files } = journal
        const last = files.at(-1)!
        const file = createJournal(directory, books, context.instance, last.number + 1)
        files.push(file)
        schedule(pace.least)
        return { path: file.path }
      }),
    balances: of => afterFold(() => readBalances(database, of)),
    recount: (scope, period, from) => changed(() => recount(database, scope, period, from)),
    adjust: (adjustment, audit) => changed(() => adjust(database, adjustment, audit)),
    retain(before) {
      // Two at once would only wait for each other.
      retaining ??= retire(database, before).finally(() => {
        retaining = null
      })
      return retaining
    },
    verify: () => afterFold(() => verify(database)),
    close
  }
}

function firstStart({ files }: Journal): number {
  return files[0]?.start ?? 0
}

function reasonOf(error: unknown): string {
  return error instanceof Error ? error.message : 'it failed'
}
