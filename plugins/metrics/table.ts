/** Stands for every name beyond the limit. */
export const other = 'other'

/** Entries by names that come from outside: the first that are let in get one of their own, the rest share one. */
export interface Table<Entry> {
  /** The entry of a name that was let in, else undefined. */
  get(name: string): Entry | undefined
  /** Lets a name in, while there is room; its entry is made when somebody asks for it. */
  reserve(name: string): void
  /** The same, and gives its entry, or that of all others. */
  admit(name: string): Entry
  readonly rest: Entry
  /** Those with an entry of their own, in the order in which they came. */
  names(): string[]
}

/** @param most how many names get an entry of their own */
export function createTable<Entry>(most: number, make: (name: string) => Entry): Table<Entry> {
  const entries = new Map<string, Entry | null>()
  let shared: Entry | null = null

  function rest(): Entry {
    shared ??= make(other)
    return shared
  }

  function get(name: string): Entry | undefined {
    const entry = entries.get(name)
    if (entry !== null) return entry
    const made = make(name)
    entries.set(name, made)
    return made
  }

  function reserve(name: string): void {
    // Somebody may be called like the rest: there is one line for both.
    if (name !== other && entries.size < most && !entries.has(name)) entries.set(name, null)
  }

  return {
    get,
    reserve,
    admit(name) {
      reserve(name)
      return get(name) ?? rest()
    },
    get rest() {
      return rest()
    },
    names: () => [...entries].flatMap(([name, entry]) => (entry === null ? [] : [name]))
  }
}
