import { type AttemptLine, decode, decoded, type JournalLine, type SettleLine } from '../../../schemas/journal.ts'
import type { Balance } from '../../../schemas/ledger.ts'
import { type Database, isGone } from '../database.ts'
import { Conflict, isDataFault, type LedgerContext } from './context.ts'
import { correct } from './corrections.ts'
import { insertEnded } from './ended.ts'
import type { JournalFile } from './files.ts'
import { type OpenCall, openCallOf, openCallText } from './rows.ts'
import { numberIn, statementsFor, textIn } from './statements.ts'
import { balanceOf, type Tallies } from './tally.ts'

/** Follows the journals of one instance, file by file. Nothing in it runs at the same time. */
export interface Fold {
  /** Goes on with this file, from where it was folded to. */
  load(file: JournalFile): Promise<void>
  /**
   * Folds the next lines. False: there are no more for now.
   * @throws Conflict when somebody else has done it, and what the database throws; then nothing is lost, call it again
   */
  step(): Promise<boolean>
  /** Bytes of the file that are folded. */
  readonly offset: number
  /** Calls without an end. */
  readonly open: number
}

export interface FoldOptions {
  readonly database: Database
  readonly tallies: Tallies
  readonly context: LedgerContext
  readonly instance: string
  /** In each transaction, first: makes sure that these journals are ours to fold. @throws Conflict */
  guard(database: Database): Promise<void>
}

/** What a batch of lines comes to. */
interface Plan {
  readonly from: number
  readonly to: number
  readonly finished: Array<{ readonly call: OpenCall; readonly ending: SettleLine }>
  /** New or changed, and open at the end of the batch. */
  readonly opened: ReadonlyMap<string, OpenCall>
  /** Ended, and in the table open_calls. */
  readonly closed: readonly string[]
  /** Lines of calls that nobody knows here. */
  readonly strays: ReadonlyArray<AttemptLine | SettleLine>
  readonly lines: number
  readonly damaged: number
}

export function createFold({ database, tallies, context, instance, guard }: FoldOptions): Fold {
  const sql = statementsFor(database)
  let file: JournalFile | null = null
  let offset = 0
  let calls = new Map<string, OpenCall>()
  /** What stands in the database may not be what is in memory. */
  let doubtful = false
  /** Balances of a transaction of which nobody knows whether it was committed. */
  let untold: ReadonlyArray<readonly [string, string]> = []
  /** Lines to be folded one at a time, because the database refused them together. */
  let singles = 0

  async function load(next: JournalFile): Promise<void> {
    file = next
    await database.run('INSERT INTO journals (file, instance, folded) VALUES (?, ?, ?) ON CONFLICT (file) DO NOTHING', [
      next.name,
      instance,
      next.start
    ])
    await reload(next)
  }

  async function reload({ name }: JournalFile): Promise<void> {
    const [row] = await database.all('SELECT folded FROM journals WHERE file = ?', [name])
    // Only who has finished a file deletes its row.
    if (row === undefined) throw new Error(`The journal ${name} was finished by another process: no line of it counts.`)
    const rows = await database.all('SELECT id, lines FROM open_calls WHERE instance = ?', [instance])
    const known = new Map<string, OpenCall>()
    for (const row of rows) {
      const id = textIn(row, 'id')
      known.set(id, openCallOf(id, textIn(row, 'lines')))
    }
    const balances: Balance[] = []
    for (const pair of untold) {
      const [balance] = await database.all(
        'SELECT scope, period, spent, requests, tokens_in, tokens_out, version FROM balances WHERE scope = ? AND period = ?',
        pair,
        true
      )
      if (balance !== undefined) balances.push(balanceOf(balance))
    }
    offset = numberIn(row, 'folded')
    calls = known
    doubtful = false
    untold = []
    if (balances.length > 0) context.folded(balances)
  }

  async function step(): Promise<boolean> {
    if (file === null) return false
    if (doubtful) await reload(file)
    const { text, end } = file.read(offset, singles > 0)
    if (end === offset) return false
    const plan = planOf(text, offset, end, calls)
    if (plan.damaged > 0) {
      context.log.error({ file: file.name, offset, lines: plan.damaged }, 'damaged lines in the journal are left out')
    }
    try {
      await commit(plan, file)
    } catch (error) {
      if (isGone(error) || error instanceof Conflict || !isDataFault(error)) throw error
      await refused(error, plan, text, file)
    }
    if (singles > 0) singles--
    return true
  }

  async function commit(plan: Plan, { name }: JournalFile): Promise<void> {
    doubtful = true
    const balances = await database.transaction(inside => write(inside, plan, name))
    doubtful = false
    untold = []
    offset = plan.to
    for (const id of plan.closed) calls.delete(id)
    for (const [id, call] of plan.opened) calls.set(id, { ...call, stored: true })
    if (balances.length > 0) context.folded(balances)
  }

  /** The database cannot take these lines, ever: one by one, and the one that is at fault is put aside. */
  async function refused(error: unknown, plan: Plan, text: string, from: JournalFile): Promise<void> {
    if (plan.lines > 1) {
      singles = plan.lines + 1
      return
    }
    context.log.error({ err: error, file: from.name, offset }, 'a line of the journal cannot be stored: put aside')
    from.reject(text)
    const nothing = { ...plan, finished: [], opened: new Map(), closed: [], strays: [] }
    await commit(nothing, from)
  }

  async function write(inside: Database, plan: Plan, name: string): Promise<Balance[]> {
    await guard(inside)
    const moved = await inside.run('UPDATE journals SET folded = ? WHERE file = ? AND folded = ?', [
      plan.to,
      name,
      plan.from
    ])
    if (moved !== 1) throw new Conflict(`${name} was folded by somebody else`)
    if (plan.closed.length > 0) {
      const deleted = await inside.run(`DELETE FROM open_calls WHERE id IN ${sql.ids}`, [JSON.stringify(plan.closed)])
      if (deleted !== plan.closed.length) throw new Conflict('open calls were closed by somebody else')
    }
    if (plan.opened.size > 0) await inside.run(sql.upsertOpenCalls, [openCallsText(plan.opened, instance)])
    const tally = tallies.begin()
    let strays = 0
    for (const line of plan.strays) if (!(await correct(inside, line, tallies, tally))) strays++
    if (strays > 0) context.log.warn({ lines: strays, file: name }, 'lines of calls that never opened are left out')
    await insertEnded(inside, plan.finished, tallies, tally)
    untold = tally.pairs()
    return tally.write(inside)
  }

  return {
    load,
    step,
    get offset() {
      return offset
    },
    get open() {
      return calls.size
    }
  }
}

function planOf(text: string, from: number, to: number, calls: ReadonlyMap<string, OpenCall>): Plan {
  const lines = parse(text)
  const finished: Plan['finished'] = []
  const opened = new Map<string, OpenCall>()
  const closed = new Set<string>()
  const strays: Array<AttemptLine | SettleLine> = []
  let damaged = 0
  for (const line of lines) {
    if (line === null) {
      damaged++
      continue
    }
    if (line.kind === 'open') {
      opened.set(line.id, { open: line, further: [], stored: false })
      continue
    }
    const call = opened.get(line.id) ?? calls.get(line.id)
    if (call === undefined || closed.has(line.id)) strays.push(line)
    else if (line.kind === 'attempt') opened.set(line.id, { ...call, further: [...call.further, line] })
    else {
      finished.push({ call, ending: line })
      opened.delete(line.id)
      if (call.stored) closed.add(line.id)
    }
  }
  return { from, to, finished, opened, closed: [...closed], strays, lines: lines.length, damaged }
}

/** All at once while none is damaged, which is much cheaper. */
function parse(text: string): Array<JournalLine | null> {
  if (text === '') return [null]
  try {
    const lines: unknown = JSON.parse(`[${text.replaceAll('\n', ',')}]`)
    if (Array.isArray(lines) && lines.length === text.split('\n').length) return lines.map(decoded)
  } catch {
    // One of them is: each by itself.
  }
  return text.split('\n').map(decode)
}

function openCallsText(opened: ReadonlyMap<string, OpenCall>, instance: string): string {
  const rows: object[] = []
  for (const [id, call] of opened) {
    rows.push({ id, instance, time: call.open.time, tenant: call.open.tenant, lines: openCallText(call) })
  }
  return JSON.stringify(rows)
}
