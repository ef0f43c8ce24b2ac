import { type MessagePort, parentPort, workerData } from 'node:worker_threads'
import type { Log } from '../../schemas/gateway.ts'
import type { Driver } from './database.ts'
import { createLedger } from './ledger/index.ts'
import { type Events, methodsOf } from './methods.ts'
import { migrate } from './migrate.ts'
import { openPostgres } from './postgres.ts'
import { answerOn, teller } from './rpc.ts'
import { openSqlite } from './sqlite.ts'

/** What the plugin gives its worker. */
export interface WorkerOptions {
  readonly url: string
  readonly shared: boolean
  readonly instance: string
  readonly lockWait: number
}

if (parentPort !== null) await serve(parentPort, workerData)

/** Owns the database: everything that reads or writes it happens on this thread. */
async function serve(port: MessagePort, { url, shared, instance, lockWait }: WorkerOptions): Promise<void> {
  const tell = teller<Events>(port)
  let driver: Driver | null = null
  try {
    driver = url.startsWith('sqlite:') ? openSqlite({ url, lockWait }) : await openPostgres({ url, shared, lockWait })
    await migrate(driver)
  } catch (error) {
    await driver?.close()
    tell('refused', { message: error instanceof Error ? error.message : String(error) })
    return
  }
  const database = driver
  let reach = { ok: true, reason: null as string | null }
  let fold = { ok: true, reason: null as string | null, backlog: 0 }
  const state = () =>
    tell('state', { ok: reach.ok && fold.ok, reason: reach.reason ?? fold.reason, backlog: fold.backlog })
  database.onState(next => {
    reach = next
    state()
  })
  const ledger = createLedger(database, {
    instance,
    log: logTo(tell),
    folded: balances => tell('folded', balances),
    state(next) {
      fold = next
      state()
    }
  })
  const methods = methodsOf(database, ledger, async () => {
    await ledger.close()
    await database.close()
    // The port alone would keep the thread.
    setImmediate(() => port.close())
  })
  answerOn(port, methods)
  tell('ready', { kind: database.kind })
}

function logTo(tell: ReturnType<typeof teller<Events>>): Log {
  const at = (level: Events['log']['level']) => (details: object, message: string) =>
    tell('log', { level, details, message })
  return { error: at('error'), warn: at('warn'), info: at('info'), debug: at('debug') }
}
