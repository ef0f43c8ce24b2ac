import { DatabaseSync } from 'node:sqlite'
import pg from 'pg'
import type { LedgerRecord, RecordFilter, RecordStatus } from '../../schemas/ledger.ts'
import type { Audit, StoredTenant } from '../../schemas/store.ts'
import { type ApiKey, tenantDefaults } from '../../schemas/tenants.ts'

export function tenant(id: string, over: Partial<StoredTenant> = {}): StoredTenant {
  return { ...tenantDefaults, id, source: 'api', createdAt: 1_700_000_000_000, ...over }
}

export function apiKey(id: string, tenant: string, over: Partial<ApiKey> = {}): ApiKey {
  return {
    id,
    tenant,
    name: null,
    scopes: ['chat'],
    hash: 'hash',
    budget: null,
    requestsPerMinute: null,
    tokensPerMinute: null,
    concurrency: null,
    expiresAt: null,
    createdAt: 1_700_000_000_000,
    lastUsedAt: null,
    revokedAt: null,
    rotatedTo: null,
    account: null,
    ...over
  }
}

export function audit(
  action: string,
  subject: string,
  before: object | null = null,
  after: object | null = null
): Audit {
  return { actor: 'admin', action, subject, before, after }
}

/** What the tests of the ledger's pages know of a row. */
export interface Seed {
  readonly seq: number
  readonly id: string
  readonly time: number
  readonly tenant: string
  readonly key: string | null
  readonly model: string
  readonly status: RecordStatus
}

export function seed(seq: number, over: Partial<Seed> = {}): Seed {
  return {
    seq,
    id: `req_${String(seq).padStart(8, '0')}`,
    time: 1_000_000 + seq,
    tenant: 'acme',
    key: null,
    model: 'm',
    status: 'settled',
    ...over
  }
}

/** What a filter keeps, worked out without a database: newest first. */
export function expected(seeds: readonly Seed[], filter: RecordFilter): string[] {
  return seeds
    .filter(
      one =>
        (filter.tenant ?? one.tenant) === one.tenant &&
        (filter.key ?? one.key) === one.key &&
        (filter.model ?? one.model) === one.model &&
        (filter.status ?? one.status) === one.status &&
        one.time >= (filter.from ?? one.time) &&
        one.time < (filter.to ?? Number.POSITIVE_INFINITY)
    )
    .toSorted((one, other) => other.time - one.time || other.seq - one.seq)
    .map(({ id }) => id)
}

export const ids = (records: readonly LedgerRecord[]): string[] => records.map(({ id }) => id)

/** A way into the tables beside the store. */
export interface Back {
  run(sql: string, ...values: Array<string | number | null>): Promise<void>
  close(): Promise<void>
}

export async function backOf(url: string): Promise<Back> {
  if (url.startsWith('sqlite:')) {
    const db = new DatabaseSync(url.slice('sqlite:'.length), { timeout: 5_000 })
    return { run: async (sql, ...values) => void db.prepare(sql).run(...values), close: async () => db.close() }
  }
  const client = new pg.Client(url)
  await client.connect()
  return {
    async run(sql, ...values) {
      let count = 0
      await client.query(
        sql.replaceAll('?', () => `$${++count}`),
        values
      )
    },
    close: () => client.end()
  }
}

const zeros = "'reported', 3, 0, 0, 0, 0, 5, 0, 0"

export async function addRows(back: Back, seeds: readonly Seed[]): Promise<void> {
  await back.run('BEGIN')
  for (const { seq, id, time, tenant, key, model, status } of seeds) {
    await back.run(
      `INSERT INTO inferences (seq, id, time, tenant, key, model, stream, status, cost, usage_source, input, cache_read,
        cache_write_5m, cache_write_1h, audio_input, output, reasoning, audio_output, charges)
        VALUES (?, ?, ?, ?, ?, ?, 0, ?, 7, ${zeros}, '[]')`,
      ...[seq, id, time, tenant, key, model, status]
    )
    await back.run(
      `INSERT INTO attempts (inference, number, provider, model, status, cost, usage_source, input, cache_read,
        cache_write_5m, cache_write_1h, audio_input, output, reasoning, audio_output)
        VALUES (?, 1, 'up', ?, ?, 7, ${zeros})`,
      ...[seq, model, status]
    )
  }
  await back.run('COMMIT')
}

/** A running call. */
export async function addOpen(back: Back, { id, time, tenant, key, model }: Seed): Promise<void> {
  const attempt = { number: 1, provider: 'up', model: 'm', priceVersion: null, input: 1, output: 1, cost: 1 }
  const about = { kind: 'open', id, time, tenant, key, model, stream: true, user: null, tags: null, traceId: null }
  await back.run(
    "INSERT INTO open_calls (id, instance, time, tenant, lines) VALUES (?, 'other', ?, ?, ?)",
    ...[id, time, tenant, JSON.stringify([{ ...about, charges: [], attempt }])]
  )
}

/** A running call that has ended. */
export async function settle(back: Back, seed: Seed): Promise<void> {
  await back.run('DELETE FROM open_calls WHERE id = ?', seed.id)
  await addRows(back, [seed])
}
