import { type AttemptRecord, type LedgerRecord, type RecordStatus, sumOf } from '../../schemas/ledger.ts'
import { createRecent } from '../../schemas/recent.ts'
import { noUsage, type Usage } from '../../schemas/usage.ts'

/** An attempt as it goes on. */
export interface RecentAttempt extends AttemptRecord {
  status: RecordStatus
  errorCode: string | null
  duration: number
  firstToken: number | null
  cost: number | null
  usage: Usage
}

/** What stays in memory of a call: nothing of its request but what a row has. A class, so that the kernel can carry it. */
export class Entry {
  readonly id: string
  /** Names it in the journal. */
  readonly line: string
  readonly time: number
  readonly tenant: string
  readonly key: string | null
  readonly model: string
  readonly stream: boolean
  readonly traceId: string | null
  readonly user: string | null
  readonly tags: Readonly<Record<string, unknown>> | null
  readonly config: string | null
  readonly attempts: RecentAttempt[] = []
  status: RecordStatus = 'open'
  httpStatus: number | null = null
  errorCode: string | null = null
  duration: number | null = null
  firstToken: number | null = null
  /** It never came to a provider call after all. */
  refused = false

  constructor(
    about: Pick<
      Entry,
      'id' | 'line' | 'time' | 'tenant' | 'key' | 'model' | 'stream' | 'traceId' | 'user' | 'tags' | 'config'
    >
  ) {
    this.id = about.id
    this.line = about.line
    this.time = about.time
    this.tenant = about.tenant
    this.key = about.key
    this.model = about.model
    this.stream = about.stream
    this.traceId = about.traceId
    this.user = about.user
    this.tags = about.tags
    this.config = about.config
  }
}

interface Ring {
  readonly entries: Entry[]
  /** Where the next one goes. */
  next: number
}

const perTenant = 200
/** Up to twice as many are kept. */
const tenants = 250

/** The last calls of the tenants that were busy last. */
export function createRecents() {
  const rings = createRecent<Ring>(tenants)
  return {
    add(entry: Entry): void {
      let ring = rings.get(entry.tenant)
      if (ring === undefined) {
        ring = { entries: [], next: 0 }
        rings.set(entry.tenant, ring)
      }
      ring.entries[ring.next] = entry
      ring.next = (ring.next + 1) % perTenant
    },
    /** Newest first. */
    of(tenant: string): LedgerRecord[] {
      const ring = rings.get(tenant)
      if (ring === undefined) return []
      const { entries, next } = ring
      const inOrder = entries.slice(next).concat(entries.slice(0, next))
      return inOrder
        .filter(entry => !entry.refused)
        .reverse()
        .map(recordOf)
    }
  }
}

function recordOf(entry: Entry): LedgerRecord {
  const { id, time, tenant, key, model, stream, traceId, user, tags, config } = entry
  const { status, httpStatus, errorCode, duration, firstToken } = entry
  const attempts = entry.attempts.map(attempt => ({
    ...attempt,
    duration: attempt.status === 'open' ? null : attempt.duration
  }))
  const about = { id, time, tenant, key, model, stream, traceId, user, tags, config }
  // What the row will say.
  const { cost, usage } = status === 'open' ? { cost: null, usage: noUsage } : sumOf(entry.attempts)
  return { ...about, status, httpStatus, errorCode, duration, firstToken, cost, usage, attempts }
}
