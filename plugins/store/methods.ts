import type { RecordFilter } from '../../schemas/ledger.ts'
import type { Audit, Store } from '../../schemas/store.ts'
import { answerQueries } from './answers.ts'
import { addAudit, listAudits } from './audits.ts'
import type { Driver } from './database.ts'
import { keyQueries } from './keys.ts'
import type { StoreLedger } from './ledger/index.ts'
import { records } from './records.ts'
import { setting } from './settings.ts'
import { tenantQueries } from './tenants.ts'

/** What the event loop may ask of the worker. */
export type Methods = ReturnType<typeof methodsOf>

/** What the worker tells by itself. */
export interface Events {
  ready: { kind: 'sqlite' | 'postgres' }
  /** The start failed: one line for the operator. */
  refused: { message: string }
  folded: Parameters<Parameters<Store['onFolded']>[0]>[0]
  state: Store['state']
  log: { level: 'error' | 'warn' | 'info' | 'debug'; details: object; message: string }
}

export function methodsOf(database: Driver, ledger: StoreLedger, close: () => Promise<void>) {
  return {
    setting: (name: string, value: string) => setting(database, name, value),
    ...tenantQueries(database),
    ...keyQueries(database),
    ...answerQueries(database),
    'audits.list': (filter: { subject?: string }, page: { after?: string; limit: number }) =>
      listAudits(database, filter, page),
    'audits.add': (audit: Audit) => addAudit(database, audit),
    'ledger.records': (filter: RecordFilter, page: { after?: string; limit: number }) =>
      records(database, filter, page),
    'ledger.open': (options: Parameters<StoreLedger['open']>[0]) => ledger.open(options),
    'ledger.grown': () => ledger.grown(),
    'ledger.folded': () => ledger.folded(),
    'ledger.closed': (instance: string) => isClosed(database, instance),
    'ledger.rotate': () => ledger.rotate(),
    'ledger.balances': (of: Parameters<StoreLedger['balances']>[0]) => ledger.balances(of),
    'ledger.recount': (scope: string, period: string, from: number) => ledger.recount(scope, period, from),
    'ledger.adjust': (adjustment: Parameters<StoreLedger['adjust']>[0], audit: Audit) =>
      ledger.adjust(adjustment, audit),
    'ledger.retain': (before: number) => ledger.retain(before),
    'ledger.verify': () => ledger.verify(),
    close
  }
}

/** Closing its calls and striking out a process is one transaction, after the last of its lines. */
async function isClosed(database: Driver, instance: string): Promise<boolean> {
  const sql =
    'SELECT 1 AS one FROM instances WHERE id = ? UNION ALL SELECT 1 FROM open_calls WHERE instance = ? LIMIT 1'
  return (await database.all(sql, [instance, instance])).length === 0
}
