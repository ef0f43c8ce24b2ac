import type { Log } from '../../schemas/gateway.ts'
import { encodeSettle } from '../../schemas/journal.ts'
import type { Store } from '../../schemas/store.ts'
import { createWriter } from './writer.ts'

export interface JournalOptions {
  readonly store: Store
  readonly path: string
  /** When a line counts as written: in the file, on the disk, or in the database. */
  readonly durability: 'process' | 'power' | 'store'
  readonly log: Log
  /** Stands in for the writes of tests. */
  readonly write?: Parameters<typeof createWriter>[0]['write']
}

const rotateAt = 64 * 1_048_576
/** How long the end of an answer waits for the database with `durability: store`, and the end of the process for the fold. */
const commitPatience = 5_000

/** The file that lines are written into; the store takes them from there, and gives the next one when it has grown. */
export function createJournal({ store, path, durability, log, write }: JournalOptions) {
  let rotateAfter = rotateAt
  let rotating: Promise<void> | null = null
  let closed = false

  const writer = createWriter({
    path,
    sync: durability === 'power',
    commit: durability === 'store' ? commit : null,
    write,
    grown(size) {
      store.ledger.grown()
      if (size > rotateAfter && rotating === null && !closed) rotating = rotate(size)
    },
    fault(reason) {
      if (reason === null) log.info({}, 'the journal can be written again')
      else log.error({ reason }, 'the journal cannot be written: new calls are refused')
    },
    refusal: id =>
      encodeSettle({
        id,
        status: 'failed',
        httpStatus: 503,
        errorCode: 'ledger_unavailable',
        duration: 0,
        firstToken: null,
        attempts: []
      })
  })

  async function rotate(size: number): Promise<void> {
    try {
      const next = await store.ledger.rotate()
      if (!closed) writer.moveTo(next.path)
      rotateAfter = rotateAt
    } catch (error) {
      rotateAfter = size + rotateAt / 8
      log.warn({ err: error }, 'the journal could not be rotated: it goes on in the same file')
    }
    rotating = null
  }

  /** The database has everything that is in the file. */
  async function commit(): Promise<void> {
    await within(commitPatience, store.ledger.folded())
  }

  async function close(): Promise<void> {
    closed = true
    await rotating
    await writer.close()
    try {
      await within(commitPatience, store.ledger.folded())
    } catch (error) {
      log.warn({ err: error }, 'the journal could not be folded to its end: the next start does it')
    }
  }

  return { writer, close }
}

/** @throws Error when it takes longer */
async function within(patience: number, work: Promise<void>): Promise<void> {
  const late = Promise.withResolvers<void>()
  const timer = setTimeout(() => late.reject(new Error('the database does not answer in time')), patience)
  try {
    await Promise.race([work, late.promise])
  } finally {
    clearTimeout(timer)
  }
}
