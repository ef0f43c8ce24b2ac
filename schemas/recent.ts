/** A map of bounded size that forgets what has not been used lately. */
export interface Recent<Value> {
  get(id: string): Value | undefined
  set(id: string, value: Value): void
  delete(id: string): void
  clear(): void
  /** Each once, in no order. */
  entries(): Iterable<[string, Value]>
}

/**
 * Keeps at least the `limit` entries that were used last and at most twice as many. Two generations instead of a list in
 * the order of use: a hit writes nothing, so that the tables grow old in peace (docs/decisions/0008).
 */
export function createRecent<Value>(limit: number): Recent<Value> {
  let young = new Map<string, Value>()
  let old = new Map<string, Value>()

  function set(id: string, value: Value): void {
    young.set(id, value)
    if (young.size < limit) return
    old = young
    young = new Map()
  }

  return {
    get(id) {
      const found = young.get(id)
      if (found !== undefined) return found
      const older = old.get(id)
      if (older !== undefined) set(id, older)
      return older
    },
    set,
    delete(id) {
      young.delete(id)
      old.delete(id)
    },
    clear() {
      young = new Map()
      old = new Map()
    },
    *entries() {
      for (const entry of young) yield entry
      for (const entry of old) if (!young.has(entry[0])) yield entry
    }
  }
}
