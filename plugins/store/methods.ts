import type { RecordFilter } from '../../schemas/ledger.ts'
import type { Audit, Store } from '../../schemas/store.ts'
import { answerQueries } from './answers.ts'
import { addAudit, listAudits } from './audits.ts'
import type { Driver } from './database.ts'
import { keyQueries } from './keys.ts'
import { records } from './records.ts'
import { setting } from './settings.ts'
import { tenantQueries } from './tenants.ts'

/** The part of the books that is kept by the folder ledger/. */
export interface WorkerLedger extends Omit<Store['ledger'], 'records' | 'export'> {
  /** Stops following the journal; what is not folded waits for the next start. */
  close(): Promise<void>
}

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

export function methodsOf(database: Driver, ledger: WorkerLedger, close: () => Promise<void>) {
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
    'ledger.open': (options: Parameters<WorkerLedger['open']>[0]) => ledger.open(options),
    'ledger.grown': () => ledger.grown(),
    'ledger.folded': () => ledger.folded(),
    'ledger.rotate': () => ledger.rotate(),
    'ledger.balances': (of: Parameters<WorkerLedger['balances']>[0]) => ledger.balances(of),
    'ledger.recount': (scope: string, period: string, from: number) => ledger.recount(scope, period, from),
    'ledger.adjust': (adjustment: Parameters<WorkerLedger['adjust']>[0], audit: Audit) =>
      ledger.adjust(adjustment, audit),
    'ledger.retain': (before: number) => ledger.retain(before),
    'ledger.verify': () => ledger.verify(),
    close
  }
}
