/**
 * What a vendor wants to get back with the tool calls it made (signatures, encrypted thoughts), for clients that drop the
 * field in which we hand it out. By tenant and id of the call. The oldest go first; all of it goes with the process.
 */
export interface Recall<Value> {
  /** @param bytes about what the value takes */
  keep(tenant: string, call: string, value: Value, bytes: number): void
  find(tenant: string, call: string): Value | undefined
}

/** Ids are the vendor's: no honest one is longer. */
const longestId = 256
/** About what an entry takes besides its value and the characters of its key, in bytes. */
const perEntry = 128

/** @param mostBytes of all of it together, keys too: callers choose ids, and a value may be small */
export function createRecall<Value>(mostBytes = 16 * 1024 * 1024): Recall<Value> {
  const kept = new Map<string, { value: Value; bytes: number }>()
  let total = 0

  function remove(key: string, bytes: number): void {
    kept.delete(key)
    total -= bytes
  }

  return {
    keep(tenant, call, value, bytes) {
      const key = `${tenant} ${call}`
      const size = bytes + key.length + perEntry
      if (call.length > longestId || size > mostBytes) return
      const known = kept.get(key)
      if (known !== undefined) remove(key, known.bytes)
      kept.set(key, { value, bytes: size })
      total += size
      for (const [oldest, { bytes: freed }] of kept) {
        if (total <= mostBytes) break
        remove(oldest, freed)
      }
    },
    find: (tenant, call) => kept.get(`${tenant} ${call}`)?.value
  }
}
