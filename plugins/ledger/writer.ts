import { closeSync, fdatasync, fdatasyncSync, fstatSync, ftruncateSync, openSync, writeSync } from 'node:fs'
import { LedgerUnavailable } from '../../schemas/errors.ts'

export interface WriterOptions {
  /** The journal as the store has made it. */
  readonly path: string
  /** Waits for the disk before a line counts as written. */
  readonly sync: boolean
  /** Waits for more before a line counts as written; absent: nothing. */
  readonly commit: (() => Promise<void>) | null
  /** The file has grown to so many bytes. */
  grown(size: number): void
  /** Writing began to fail (a reason), or works again (null). */
  fault(reason: string | null): void
  /** The line that closes a call whose open line was written but that was refused all the same. */
  refusal(id: string): string
  readonly write?: typeof writeSync
}

/** Appends lines to the journal: those of one turn of the event loop with one write. */
export interface Writer {
  /**
   * A call or an attempt opens. Resolves when the line is in the file.
   * @throws LedgerUnavailable at once while nothing can be written; rejects with it when that turns out
   */
  open(line: string, id: string): Promise<void>
  /** A call ends. Resolves when the line is in the file; while nothing can be written it is kept, and nobody waits. */
  settle(line: string): Promise<void> | undefined
  /** Writes to another file from now on. */
  moveTo(path: string): void
  /** Why nothing can be written; null: it can. */
  readonly fault: string | null
  /** Writes what is left. */
  close(): Promise<void>
}

interface Turn {
  readonly opened: PromiseWithResolvers<void>
  readonly ended: PromiseWithResolvers<void>
  /** Ids of the calls whose open lines are in it, in order. */
  readonly opening: string[]
}

const lineEnd = 10
const retryAfter = 500
const openMark = '["o"'
const settleMark = '["s"'

export function createWriter(options: WriterOptions): Writer {
  const write = options.write ?? writeSync
  let fd = openSync(options.path, 'a')
  /** Bytes that are whole lines. */
  let size = fstatSync(fd).size
  /** Half a line stands at the end and could not be taken away. */
  let torn = false
  let pending = ''
  let turn: Turn | null = null
  let fault: string | null = null
  let retry: NodeJS.Timeout | null = null
  let waiting: PromiseWithResolvers<void> | null = null
  let syncing: Promise<void> | null = null
  let closed = false

  function add(line: string): Turn {
    pending += line
    if (turn === null) {
      turn = { opened: Promise.withResolvers(), ended: Promise.withResolvers(), opening: [] }
      // Nobody may wait for one of them.
      turn.opened.promise.catch(ignore)
      setImmediate(flush)
    }
    return turn
  }

  function flush(): void {
    const ending = turn
    turn = null
    if (closed) return
    const text = torn ? `\n${pending}` : pending
    pending = ''
    if (text !== '' && !written(text, ending)) return
    if (ending !== null) confirm(ending)
  }

  function written(text: string, ending: Turn | null): boolean {
    let length = 0
    try {
      length = write(fd, text)
      const whole = Buffer.byteLength(text)
      if (length === whole) {
        size += length
        torn = false
        if (fault !== null) change(null)
        options.grown(size)
        return true
      }
    } catch (error) {
      failed(text, ending, reasonOf(error))
      return false
    }
    failed(text, ending, 'the disk took only a part')
    return false
  }

  /** Keeps the whole lines that made it into the file, takes half a line away, and keeps the ends of calls for later. */
  function failed(text: string, ending: Turn | null, reason: string): void {
    const bytes = Buffer.from(text)
    const there = Math.min(bytes.length, Math.max(0, sizeNow() - size))
    const kept = bytes.lastIndexOf(lineEnd, there - 1) + 1
    const whole = there === 0 ? 0 : kept
    torn = !truncated(size + whole) && there > whole
    size += whole
    const inFile = bytes.toString('utf8', 0, whole)
    const lost = bytes.toString('utf8', whole)
    const opened = inFile.split('\n').filter(line => line.startsWith(openMark)).length
    const refusals = (ending?.opening ?? []).slice(0, opened).map(options.refusal)
    const ends = lost.split('\n').filter(line => line.startsWith(settleMark))
    pending = [...ends.map(line => `${line}\n`), ...refusals].join('') + pending
    if (whole > 0) options.grown(size)
    change(reason)
    ending?.opened.reject(new LedgerUnavailable(`${reason}.`))
    ending?.ended.resolve()
  }

  function sizeNow(): number {
    try {
      return fstatSync(fd).size
    } catch {
      return size
    }
  }

  function truncated(length: number): boolean {
    try {
      ftruncateSync(fd, length)
      return true
    } catch {
      return false
    }
  }

  function change(reason: string | null): void {
    const before = fault
    fault = reason
    if ((before === null) !== (reason === null)) options.fault(reason)
    if (reason === null) {
      if (retry !== null) clearTimeout(retry)
      retry = null
    } else retry ??= setTimeout(tryAgain, retryAfter).unref()
  }

  /** With nothing to write the next call is the trial. */
  function tryAgain(): void {
    retry = null
    if (closed || fault === null) return
    if (pending === '') change(null)
    else flush()
    if (fault !== null) retry ??= setTimeout(tryAgain, retryAfter).unref()
  }

  function confirm(ending: Turn): void {
    if (!options.sync && options.commit === null) {
      ending.opened.resolve()
      ending.ended.resolve()
    } else void safe(ending)
  }

  async function safe(ending: Turn): Promise<void> {
    try {
      if (options.sync) await synced()
      if (options.commit !== null) await options.commit()
      ending.opened.resolve()
    } catch (error) {
      const reason = reasonOf(error)
      // What was written of the calls that are now refused has an end too.
      for (const id of ending.opening) if (!closed) add(options.refusal(id))
      ending.opened.reject(new LedgerUnavailable(`${reason}.`))
    }
    ending.ended.resolve()
  }

  /** One sync serves all who asked before it began. */
  function synced(): Promise<void> {
    waiting ??= Promise.withResolvers()
    const { promise } = waiting
    syncing ??= syncAll()
    return promise
  }

  async function syncAll(): Promise<void> {
    while (waiting !== null) {
      const served = waiting
      waiting = null
      await new Promise<void>(resolve => {
        fdatasync(fd, error => {
          if (error) served.reject(error)
          else served.resolve()
          resolve()
        })
      })
    }
    syncing = null
  }

  return {
    open(line, id) {
      if (fault !== null) throw new LedgerUnavailable(`${fault}.`)
      const { opening, opened } = add(line)
      if (line.startsWith(openMark)) opening.push(id)
      return opened.promise
    },
    settle(line) {
      if (fault === null) return add(line).ended.promise
      pending += line
      return undefined
    },
    moveTo(path) {
      const before = fd
      fd = openSync(path, 'a')
      size = fstatSync(fd).size
      torn = false
      if (options.sync) fdatasyncSync(before)
      if (syncing === null) closeSync(before)
      else void syncing.then(() => closeSync(before))
    },
    get fault() {
      return fault
    },
    async close() {
      flush()
      closed = true
      if (retry !== null) clearTimeout(retry)
      await syncing
      closeSync(fd)
    }
  }
}

function ignore(): void {}

function reasonOf(error: unknown): string {
  if (error instanceof Error && 'code' in error && error.code === 'ENOSPC') return 'the disk of the journal is full'
  return error instanceof Error ? error.message : 'the journal cannot be written'
}
