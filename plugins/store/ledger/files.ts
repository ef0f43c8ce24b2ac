import {
  appendFileSync,
  closeSync,
  fstatSync,
  fsyncSync,
  mkdirSync,
  openSync,
  readdirSync,
  readSync,
  statSync,
  unlinkSync,
  writeFileSync
} from 'node:fs'
import { join } from 'node:path'

// Journal files: `<instance>-<n>.journal`. The first line says whose books they belong to, so that nobody folds those of
// another gateway that happens to write into the same directory.

const form = /^(.+)-(\d+)\.journal$/
/** No line is longer: what is must be damage. */
const chunkSize = 1_048_576
const lineEnd = 10

/** One journal file as its reader sees it. */
export interface JournalFile {
  /** Without its directory. */
  readonly name: string
  readonly path: string
  readonly instance: string
  readonly number: number
  /** Bytes of the first line. */
  readonly start: number
  /** Bytes that stand in it now. */
  size(): number
  /** Whole lines from `offset` on, as many as fit or only one. */
  read(offset: number, single: boolean): Chunk
  /** Keeps a line that cannot be folded, beside the file. */
  reject(line: string): void
  close(): void
  /** Deletes it for good, also should the power fail. */
  remove(): void
}

export interface Chunk {
  /** Lines without the last one's end; empty: there is none. */
  readonly text: string
  /** Where the next one begins. */
  readonly end: number
}

/** Makes an empty journal. */
export function createJournal(directory: string, books: string, instance: string, number: number): JournalFile {
  mkdirSync(directory, { recursive: true, mode: 0o700 })
  const name = `${instance}-${number}.journal`
  writeFileSync(join(directory, name), headerOf(books, instance), { flag: 'wx', mode: 0o600, flush: true })
  syncDirectory(directory)
  return openJournal(directory, books, name)!
}

/** Null: it belongs to other books, or is gone. A file that was cut off within its first line counts as ours and empty. */
export function openJournal(directory: string, books: string, name: string): JournalFile | null {
  const match = form.exec(name)
  if (match === null) return null
  const [, instance = '', number = ''] = match
  const path = join(directory, name)
  let fd: number
  try {
    fd = openSync(path, 'r')
  } catch (error) {
    if (isMissing(error)) return null
    throw error
  }
  const header = Buffer.from(headerOf(books, instance))
  const first = Buffer.alloc(header.length)
  const read = readSync(fd, first, 0, header.length, 0)
  if (!first.subarray(0, read).equals(header.subarray(0, read))) {
    closeSync(fd)
    return null
  }
  return journalFile(fd, directory, { name, path, instance, number: Number(number), start: header.length })
}

/** Names of all journals in a directory, those of one instance in the order in which they were written. */
export function journalsIn(directory: string): string[] {
  let names: string[]
  try {
    names = readdirSync(directory)
  } catch (error) {
    if (isMissing(error)) return []
    throw error
  }
  return names.filter(name => form.test(name)).sort((one, other) => numberOf(one) - numberOf(other))
}

/** The instance in the name of a journal. */
export function instanceOf(name: string): string {
  return form.exec(name)?.[1] ?? ''
}

/** Milliseconds since 1970 of the last write. */
export function writtenAt(path: string): number {
  return statSync(path).mtimeMs
}

function numberOf(name: string): number {
  return Number(form.exec(name)?.[2])
}

function headerOf(books: string, instance: string): string {
  return `${JSON.stringify(['j', books, instance])}\n`
}

function isMissing(error: unknown): boolean {
  return error instanceof Error && 'code' in error && error.code === 'ENOENT'
}

function journalFile(
  fd: number,
  directory: string,
  about: Pick<JournalFile, 'name' | 'path' | 'instance' | 'number' | 'start'>
): JournalFile {
  let open = true

  function close(): void {
    if (open) closeSync(fd)
    open = false
  }

  return {
    ...about,
    size: () => fstatSync(fd).size,
    read(offset, single) {
      const length = readSync(fd, chunk, 0, chunkSize, offset)
      const bytes = chunk.subarray(0, length)
      const last = single ? bytes.indexOf(lineEnd) : bytes.lastIndexOf(lineEnd)
      // A whole chunk without a line end is no line; less than that is one that is still being written.
      if (last === -1) return { text: '', end: length === chunkSize ? offset + length : offset }
      return { text: bytes.toString('utf8', 0, last), end: offset + last + 1 }
    },
    reject: line => appendFileSync(`${about.path}.rejected`, `${line}\n`, { mode: 0o600 }),
    close,
    remove() {
      close()
      try {
        unlinkSync(about.path)
      } catch (error) {
        if (!isMissing(error)) throw error
      }
      syncDirectory(directory)
    }
  }
}

/** Not every system can. */
function syncDirectory(directory: string): void {
  try {
    const fd = openSync(directory, 'r')
    try {
      fsyncSync(fd)
    } finally {
      closeSync(fd)
    }
  } catch {
    // Then the name of a deleted file may come back with the power; its row says that it has been folded only until then.
  }
}

const chunk = Buffer.allocUnsafeSlow(chunkSize)
