/** An entry of the list, which carries its own neighbours. */
export interface Linked<Entry> {
  before: Entry | null
  after: Entry | null
}

/**
 * Calls in progress, linked to each other. Not a Set: one that thousands of entries pass through every second replaces
 * its table every few dozen of them, V8 lets each old table point to the next, and so a single table that has grown old
 * keeps every later call from being collected cheaply.
 */
export interface Running<Entry extends Linked<Entry>> extends Iterable<Entry> {
  readonly size: number
  add(entry: Entry): void
  /** Takes an entry out that was added, once. */
  remove(entry: Entry): void
}

export function createRunning<Entry extends Linked<Entry>>(): Running<Entry> {
  let first: Entry | null = null
  let size = 0
  return {
    get size() {
      return size
    },
    add(entry) {
      entry.after = first
      if (first !== null) first.before = entry
      first = entry
      size++
    },
    remove(entry) {
      const { before, after } = entry
      if (after !== null) after.before = before
      if (before !== null) before.after = after
      else first = after
      entry.before = null
      entry.after = null
      size--
    },
    *[Symbol.iterator]() {
      const all: Entry[] = []
      for (let entry = first; entry !== null; entry = entry.after) all.push(entry)
      yield* all
    }
  }
}
