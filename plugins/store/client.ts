import { Worker } from 'node:worker_threads'
import type { Log } from '../../schemas/gateway.ts'
import type { Balance, LedgerRecord, RecordFilter } from '../../schemas/ledger.ts'
import type { Store, StoreState } from '../../schemas/store.ts'
import type { Events, Methods } from './methods.ts'
import { callTo } from './rpc.ts'
import type { WorkerOptions } from './worker.ts'

/** Rows of an export that travel at once: reading them holds up the event loop for about a millisecond. */
const exportPiece = 250
/** Milliseconds between two words that the journal has grown: the worker rests longer than that between folds. */
const grownInterval = 40
/** Milliseconds that a worker gets for what it is doing when the gateway closes. */
const closeTimeout = 30_000

export interface StoreClient {
  readonly store: Store
  close(): Promise<void>
}

/**
 * Starts the worker and resolves when its database is there.
 * @throws Error with one line for the operator
 */
export async function openStore(options: WorkerOptions, log: Log): Promise<StoreClient> {
  const file = import.meta.url.endsWith('.ts') ? './worker.ts' : './worker.js'
  // Without the environment: what pg would read there is the configuration's.
  const worker = new Worker(new URL(file, import.meta.url), {
    workerData: options,
    env: {},
    // Nor the loaders and flags of whoever started this process.
    execArgv: [],
    name: 'store'
  })
  const started = Promise.withResolvers<Events['ready']>()
  const foldedListeners: Array<(balances: readonly Balance[]) => void> = []
  const stateListeners: Array<(state: StoreState) => void> = []
  let state: StoreState = { ok: true, reason: null, backlog: 0 }
  let closing: Promise<void> | null = null
  /** Before it was there it cannot go away: a failed start says its own line. */
  let isStarted = false

  const remote = callTo<Methods, Events>(worker, (event, detail) => {
    const happened = { event, detail } as {
      [Name in keyof Events]: { event: Name; detail: Events[Name] }
    }[keyof Events]
    switch (happened.event) {
      case 'ready':
        isStarted = true
        return started.resolve(happened.detail)
      case 'refused':
        return started.reject(new Error(happened.detail.message))
      case 'folded':
        for (const listener of foldedListeners) listener(happened.detail)
        return
      case 'state':
        return change(happened.detail)
      case 'log': {
        const { level, details, message } = happened.detail
        return log[level](details, message)
      }
    }
  })

  worker.on('error', (error: Error) => {
    log.error({ err: error }, 'the worker of the store has failed')
    ended(`its worker has failed: ${error.message}`)
  })
  worker.on('exit', () => ended('its worker has ended'))

  function ended(reason: string): void {
    started.reject(new Error(`The store cannot start: ${reason}.`))
    remote.fail(reason)
    if (closing === null && isStarted) change({ ok: false, reason, backlog: state.backlog })
  }

  function change(next: StoreState): void {
    const before = state
    state = next
    if (next.ok === before.ok && next.reason === before.reason) return
    if (next.ok) log.info({}, 'the store is back')
    else log.error({ reason: next.reason }, 'the store is away')
    for (const listener of stateListeners) listener(next)
  }

  let resting = false
  let grewMeanwhile = false
  let rest: NodeJS.Timeout | null = null

  function grown(): void {
    if (resting) {
      grewMeanwhile = true
      return
    }
    resting = true
    remote.tell('ledger.grown')
    rest ??= setTimeout(looked, grownInterval).unref()
    rest.refresh()
  }

  function looked(): void {
    resting = false
    if (!grewMeanwhile) return
    grewMeanwhile = false
    grown()
  }

  async function* exported(filter: RecordFilter): AsyncGenerator<LedgerRecord[]> {
    let after: string | undefined
    do {
      const { rows, next } = await remote.call('ledger.records', filter, { after, limit: exportPiece })
      if (rows.length > 0) yield rows
      after = next ?? undefined
    } while (after !== undefined)
  }

  async function close(): Promise<void> {
    const given = setTimeout(() => void worker.terminate(), closeTimeout)
    // It may be gone already.
    await remote.call('close').catch(error => log.debug({ err: error }, 'the store did not close by itself'))
    clearTimeout(given)
    if (rest !== null) clearTimeout(rest)
    await worker.terminate()
  }

  const { kind } = await started.promise.catch(async error => {
    closing = Promise.resolve()
    await worker.terminate()
    throw error
  })

  const { call } = remote
  const store: Store = {
    kind,
    instance: options.instance,
    setting: (name, value) => call('setting', name, value),
    tenants: {
      get: id => call('tenants.get', id),
      list: page => call('tenants.list', page),
      insert: (tenant, audit) => call('tenants.insert', tenant, audit),
      update: (tenant, audit, expected) => call('tenants.update', tenant, audit, expected),
      remove: (id, audit) => call('tenants.remove', id, audit)
    },
    keys: {
      get: id => call('keys.get', id),
      list: (tenant, page) => call('keys.list', tenant, page),
      insert: (key, audit) => call('keys.insert', key, audit),
      update: (keys, audit, expected) => call('keys.update', keys, audit, expected),
      touch: uses => call('keys.touch', uses),
      any: () => call('keys.any')
    },
    ledger: {
      open: options => call('ledger.open', options),
      grown,
      folded: () => call('ledger.folded'),
      closed: instance => call('ledger.closed', instance),
      rotate: () => call('ledger.rotate'),
      records: (filter, page) => call('ledger.records', filter, page),
      export: exported,
      balances: of => call('ledger.balances', of),
      recount: (scope, period, from) => call('ledger.recount', scope, period, from),
      adjust: (adjustment, audit) => call('ledger.adjust', adjustment, audit),
      retain: before => call('ledger.retain', before),
      verify: () => call('ledger.verify')
    },
    audits: {
      list: (filter, page) => call('audits.list', filter, page),
      add: audit => call('audits.add', audit)
    },
    answers: {
      get: id => call('answers.get', id),
      // A copy: what a view is cut out of would travel with it.
      put: answer => call('answers.put', { ...answer, body: new Uint8Array(answer.body) }),
      ids: limit => call('answers.ids', limit),
      purge: now => call('answers.purge', now)
    },
    onFolded: listener => void foldedListeners.push(listener),
    onState: listener => void stateListeners.push(listener),
    get state() {
      return state
    }
  }
  return { store, close: () => (closing ??= close()) }
}
