import { namesOf } from '../../schemas/call-record.ts'
import type { Inference, Log } from '../../schemas/gateway.ts'

/** Milliseconds between two lines of the log. */
const logEvery = 10_000

/** Counts reports of providers whose details are more than their totals, and says so now and then. */
export function createMismatches(log: Log) {
  let counted = 0
  let told = 0
  let toldAt = 0

  return {
    get counted() {
      return counted
    },
    count(inference: Inference): void {
      counted++
      const now = performance.now()
      if (toldAt !== 0 && now - toldAt < logEvery) return
      const provider = inference.facts.target?.provider.name
      const reports = counted - told
      log.warn({ ...namesOf(inference), provider, reports }, 'a usage report contradicts itself')
      told = counted
      toldAt = now
    }
  }
}
