import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { FastifyInstance } from 'fastify'
import fp from 'fastify-plugin'
import { endingOf, namesOf } from '../../schemas/call-record.ts'
import { LedgerUnavailable, withoutKeys } from '../../schemas/errors.ts'
import type { Expense, Inference, Outcome } from '../../schemas/gateway.ts'
import { encodeAttempt, encodeOpen, encodeSettle } from '../../schemas/journal.ts'
import type { Store } from '../../schemas/store.ts'
import { inputOf, outputOf } from '../../schemas/usage.ts'
import { attemptOf, endOf, fill, recentOf } from './attempt.ts'
import { createJournal } from './journal.ts'
import { createMismatches } from './mismatches.ts'
import { createRecents, Entry } from './recents.ts'
import { everything, nothing, totalsOf } from './totals.ts'
import type { createWriter } from './writer.ts'

export interface LedgerOptions {
  /** When a line counts as written: in the file, on the disk, or in the database. */
  durability?: 'process' | 'power' | 'store'
  /** What becomes of a call whose client has left: its provider is aborted, or it is read to its end. */
  onClientGone?: 'abort' | 'drain'
  /** Milliseconds that rows are kept. */
  retention?: number
  /** Where the journal is written, before `directory`. */
  journal?: string
  /** Where the journal is written: a folder on a disk that stays. Absent: one that goes with the process, as a database in memory does. */
  directory?: string
  /** Other processes write into the same database; without it whatever they left behind is theirs no more. */
  shared?: boolean
  /** Milliseconds after which a silent process counts as dead. */
  lease?: number
  /** Stands in for the writes of tests. */
  write?: Parameters<typeof createWriter>[0]['write']
}

/** What is not said. */
const defaults = {
  durability: 'process',
  onClientGone: 'abort',
  retention: 90 * 86_400_000,
  shared: false,
  lease: 10_000
} as const satisfies LedgerOptions

const longestUser = 512
const longestTags = 16_384
/** Longer ones are only in the store. */
const longestRecentTags = 1_024
const retainEvery = 3_600_000

/** Writes every provider call down: before it is sent, and when the call it belongs to has ended. */
async function ledger(app: FastifyInstance, given: LedgerOptions): Promise<void> {
  const options = { ...defaults, ...given }
  const { gateway } = app
  const store = storeOf(gateway.store)
  const { log } = gateway
  const recents = createRecents()
  const refused = new Map<string, number>()
  const { path } = await store.ledger.open({
    directory: options.journal ?? options.directory ?? temporary(app),
    lease: options.lease,
    exclusive: !options.shared
  })
  const [before] = await store.ledger.balances(everything)
  const counts = { ...nothing }
  const mismatches = createMismatches(log)
  const { writer, close } = createJournal({ store, path, durability: options.durability, write: options.write, log })
  let calls = 0

  function open(expense: Expense): Promise<void> {
    if (options.durability === 'store' && !store.state.ok) {
      throw new LedgerUnavailable(store.state.reason ?? 'the database is away')
    }
    const { inference, number } = expense
    const attempt = attemptOf(expense, gateway.pricing)
    const recent = recentOf(attempt)
    if (number > 1 && inference.entry instanceof Entry) {
      const { attempts, line } = inference.entry
      const last = attempts[number - 2]
      const written = writer.open(encodeAttempt({ id: line, before: endOf(inference, last, number), attempt }), line)
      attempts[number - 1] = recent
      return written
    }
    const { request, principal, lane, traceId } = aboutCall(inference)
    const tagsText = tagsOf(request.metadata)
    const entry = new Entry({
      id: inference.id,
      // One caller of this process may make many calls.
      line: lane === 'http' ? inference.id : `${inference.id}~${store.instance}.${calls++}`,
      time: Date.now(),
      tenant: principal.tenant,
      key: principal.key,
      model: withoutKeys(inference.route.alias),
      stream: request.stream === true,
      traceId,
      user: typeof request.user === 'string' ? request.user.slice(0, longestUser) : null,
      tags: tagsText !== null && tagsText.length <= longestRecentTags ? (request.metadata ?? null) : null,
      config: inference.route.config ?? null
    })
    const line = encodeOpen({
      id: entry.line,
      time: entry.time,
      tenant: entry.tenant,
      key: entry.key,
      model: entry.model,
      stream: entry.stream,
      user: entry.user,
      tags: tagsText,
      traceId,
      charges: inference.hold?.charges ?? '[]',
      attempt,
      config: entry.config
    })
    const written = writer.open(line, entry.line)
    entry.attempts.push(recent)
    inference.entry = entry
    counts.running++
    recents.add(entry)
    return written
  }

  /** One function for all calls: it is given everything. */
  function settle(outcome: Outcome, inference: Inference): Promise<void> | undefined {
    const { entry, expenses } = inference
    const { status, httpStatus, error: errorCode } = endingOf(outcome, inference.facts.firstToken)
    if (expenses.length === 0 || !(entry instanceof Entry)) {
      // An answer that was kept from an earlier call is no refusal.
      if (outcome.status !== 'completed') refuse(errorCode ?? 'none', inference)
      return undefined
    }
    const { attempts } = entry
    attempts.length = expenses.length
    for (let index = 0; index < expenses.length; index++) {
      const expense = expenses[index]!
      fill(attempts[index]!, expense)
      const { usage } = expense
      counts.tokensIn += inputOf(usage)
      counts.tokensOut += outputOf(usage)
      counts.cost += expense.cost ?? 0
      if (usage.mismatch) mismatches.count(inference)
    }
    entry.status = status
    entry.httpStatus = httpStatus
    entry.errorCode = errorCode
    entry.duration = outcome.duration
    entry.firstToken = inference.facts.firstToken
    counts.running--
    counts.requests++
    const { duration } = outcome
    const { firstToken } = entry
    return writer.settle(
      encodeSettle({ id: entry.line, status, httpStatus, errorCode, duration, firstToken, attempts })
    )
  }

  /** Refused before its first provider call: no row, or anybody could fill the disk. */
  function refuse(code: string, inference: Inference): void {
    const { entry } = inference
    if (entry instanceof Entry && !entry.refused) {
      entry.refused = true
      counts.running--
    }
    refused.set(code, (refused.get(code) ?? 0) + 1)
    log.debug({ ...namesOf(inference), code }, 'a call ended before its first provider call')
  }

  function retain(): void {
    store.ledger.retain(Date.now() - options.retention).then(
      rows => rows > 0 && log.info({ rows }, 'rows of the ledger have reached their age and are gone'),
      error => log.warn({ err: error }, 'old rows of the ledger could not be deleted: tried again in an hour')
    )
  }

  gateway.accountWith({ open })
  gateway.intercept('observe', (inference, next) => {
    inference.onSettled(settle)
    if (options.onClientGone === 'drain') inference.outlive()
    return next(inference)
  })
  gateway.decorate('ledger', {
    recent: recents.of,
    totals: () => totalsOf(before, counts),
    async sums() {
      const [balance] = await store.ledger.balances(everything)
      return totalsOf(balance, { ...nothing, running: counts.running })
    },
    refused,
    get mismatches() {
      return mismatches.counted
    }
  })
  gateway.dependency('ledger', () => {
    const away = options.durability === 'store' && !store.state.ok
    const reason = writer.fault ?? (away ? store.state.reason : null)
    return { ok: writer.fault === null && !away, durability: options.durability, ...(reason !== null && { reason }) }
  })

  let timer: NodeJS.Timeout | null = null
  app.addHook('onReady', async () => {
    retain()
    timer = setInterval(retain, retainEvery).unref()
  })
  app.addHook('onClose', async () => {
    if (timer !== null) clearInterval(timer)
    await close()
  })
}

function storeOf(store: Store | undefined): Store {
  if (store === undefined) throw new Error('The plugin ledger needs the plugin store: register it before.')
  return store
}

function aboutCall({ request, principal, origin, facts }: Inference) {
  return { request, principal, lane: origin.lane, traceId: facts.traceId }
}

/** As JSON; null for what is too long, or nested too deep to be written. */
function tagsOf(metadata: Readonly<Record<string, unknown>> | null | undefined): string | null {
  if (metadata === undefined || metadata === null) return null
  try {
    const text = JSON.stringify(metadata)
    return text.length <= longestTags ? text : null
  } catch {
    return null
  }
}

function temporary(app: FastifyInstance): string {
  const directory = mkdtempSync(join(tmpdir(), 'gateway-journal-'))
  app.addHook('onClose', async () => rmSync(directory, { recursive: true, force: true }))
  return directory
}

export default fp(ledger, { fastify: '5.x', name: 'ledger', dependencies: ['gateway', 'store', 'routing'] })
