import { writeSync } from 'node:fs'

export interface LogDestination {
  /** Takes one line with its end. It leaves with others, at the latest after `delay`, and at once when many wait. */
  write(line: string): void
  /** Writes what waits, for up to a second where it is not taken at once. For the end of the process. */
  end(): void
  /** Lines that nobody will ever see. */
  readonly dropped: number
}

export interface LogDestinationOptions {
  /** An open file, which is not closed here; a pipe has to be one that does not block, as process.stdout makes it. */
  readonly fd: number
  /** Told when lines can be written again, with how many were dropped meanwhile. */
  readonly recovered?: (dropped: number) => void
  /** Milliseconds that a line waits for others. Default 100. */
  readonly delay?: number
  /** Characters that may wait while nothing can be written. Default 1,048,576. */
  readonly most?: number
  /** Stands in for the writes of tests. */
  readonly write?: (fd: number, bytes: Buffer) => number
}

/** Characters with which a piece is written before its time. */
const batch = 16_384
/** Milliseconds until what was not taken is tried again: at first, as a reader that reads makes room soon, and at most. */
const firstRetry = 1
const lastRetry = 200
const endPatience = 1_000

/**
 * Where log lines go: a file or stdout. They are written many at a time and without waiting for the reader of a pipe. What
 * cannot be written, because a disk is full or a reader takes nothing, is kept up to `most`; beyond it whole lines are
 * dropped and counted. Nothing of this stops the process or ends it. No line is cut, and their order is kept.
 */
export function logDestination(options: LogDestinationOptions): LogDestination {
  const { fd, recovered, delay = 100, most = 1_048_576, write = writeSync } = options
  /** What waits, and the end of a piece of which only the beginning was taken. */
  let text = ''
  let rest: Buffer | null = null
  let timer: NodeJS.Timeout | null = null
  let blocked = false
  let retry = firstRetry
  let dropped = 0
  let told = 0

  function flush(): void {
    if (timer !== null) clearTimeout(timer)
    timer = null
    blocked = !drained()
    if (blocked) {
      timer = setTimeout(flush, retry).unref()
      retry = Math.min(2 * retry, lastRetry)
    } else if (dropped > told) {
      const lost = dropped - told
      told = dropped
      recovered?.(lost)
    }
  }

  /** False: what is left has to be tried again. */
  function drained(): boolean {
    while (rest !== null || text !== '') {
      const bytes: Buffer = rest ?? Buffer.from(text)
      if (rest === null) text = ''
      rest = bytes
      try {
        const taken = write(fd, bytes)
        rest = taken < bytes.length ? bytes.subarray(taken) : null
        if (taken === 0) return false
        retry = firstRetry
      } catch {
        return false
      }
    }
    return true
  }

  return {
    write(line) {
      if (text.length + line.length + (rest === null ? 0 : rest.length) > most) {
        dropped++
        return
      }
      text += line
      if (blocked) return
      if (text.length >= batch) flush()
      else if (timer === null) timer = setTimeout(flush, delay).unref()
    },
    end() {
      const until = performance.now() + endPatience
      while (!drained() && performance.now() < until) Atomics.wait(pause, 0, 0, 20)
    },
    get dropped() {
      return dropped
    }
  }
}

/** Nobody ever changes it: to wait for it is to sleep. */
const pause = new Int32Array(new SharedArrayBuffer(4))
