import Fastify, { type FastifyInstance } from 'fastify'
import fp from 'fastify-plugin'
import type { Test } from 'tap'
import budgets, { type BudgetsOptions } from '../../../plugins/budgets/index.ts'
import gatewayPlugin from '../../../plugins/gateway/index.ts'
import routing from '../../../plugins/routing/index.ts'
import shared, { type SharedOptions } from '../../../plugins/shared/index.ts'
import type { Caller, Inference, Principal } from '../../../schemas/gateway.ts'
import type { Balance } from '../../../schemas/ledger.ts'
import type { Provider } from '../../../schemas/provider.ts'
import type { Shared } from '../../../schemas/shared.ts'
import type { Store } from '../../../schemas/store.ts'
import { type ApiKey, type BudgetLimit, type Tenant, tenantDefaults } from '../../../schemas/tenants.ts'
import { inputOf, outputOf } from '../../../schemas/usage.ts'
import { completion, tokens } from '../kernel.ts'

// Budgets with their neighbours played: a token costs one nano-USD, tenants stand in a map, the store is an object.

export interface Kit {
  readonly app: FastifyInstance
  /** A whole call: bound `16 + 1 + output`, true cost `cost`. */
  ask(options: AskOptions): Promise<{ headers: string[]; warnings: string[] }>
  readonly tenants: Map<string, Tenant>
  budget(id: string, limit: number | null, period?: BudgetLimit['period'], rest?: Partial<Tenant>): void
  state(scope: string, limit?: BudgetLimit): Promise<{ spent: number | bigint; held: number; periodKey: string }>
  readonly log: string[]
}

export interface AskOptions {
  readonly tenant?: string
  readonly key?: ApiKey
  readonly output?: number
  /** What the provider says that it used; default: all of the bound. */
  readonly cost?: number
  readonly model?: string
  readonly n?: number
  /** The answer waits for it. */
  readonly gate?: Promise<unknown>
  readonly signal?: AbortSignal
}

/** Input tokens that a request of `ask` is bound by. */
export const inputBound = 17

export interface KitOptions {
  readonly budgets?: BudgetsOptions
  readonly store?: Store
  readonly shared?: SharedOptions
  /** In place of a real Redis. */
  readonly fake?: Shared
  readonly providers?: Provider[]
  /** Each call, as it begins. */
  readonly seen?: (inference: Inference) => void
  /** Settled calls are told to it, as a ledger would write them. */
  readonly book?: (
    charges: ReadonlyArray<readonly [string, string]>,
    tenant: string,
    key: string | null,
    cost: number
  ) => void
}

interface Question {
  cost: number | null
  gate: Promise<unknown> | undefined
}
const questions = new Map<string, Question>()

const teller: Provider = {
  name: 'up',
  capabilities: { dialects: [] },
  async send({ inference, request }) {
    const question = questions.get(inference.id)
    await question?.gate
    const most = inputBound + (request.max_completion_tokens ?? request.max_tokens ?? 0) * (request.n ?? 1)
    return { stream: false, raw: null, body: completion('x', tokens(question?.cost ?? most, 0)) }
  }
}

export async function kit(t: Pick<Test, 'teardown'>, options: KitOptions = {}): Promise<Kit> {
  const log: string[] = []
  const app = Fastify({ logger: { level: 'warn', stream: { write: (line: string) => void log.push(line) } } })
  t.teardown(() => app.close())
  const tenants = new Map<string, Tenant>()
  await app.register(gatewayPlugin)
  await app.register(routing, {
    random: () => 0,
    models: {
      test: { targets: [{ provider: 'up', model: 'm' }] },
      dear: {
        retries: 0,
        targets: [
          { provider: 'up', model: 'm' },
          { provider: 'up', model: 'dear' }
        ]
      },
      secret: { targets: [{ provider: 'up', model: 'unpriced' }] }
    }
  })
  for (const provider of options.providers ?? [teller]) app.gateway.providers.register(provider)
  if (options.store) app.gateway.decorate('store', options.store)
  if (options.shared) await app.register(shared, options.shared)
  if (options.fake) app.gateway.decorate('shared', options.fake)
  app.gateway.decorate('tenants', {
    get: id => tenants.get(id),
    find: async id => tenants.get(id),
    list: async () => [...tenants.values()],
    create: never,
    update: never,
    remove: never,
    allows: () => true,
    onRemoved() {}
  })
  await app.register(pricing)
  const { book, seen } = options
  if (seen !== undefined) {
    app.gateway.intercept('observe', (inference, next) => {
      seen(inference)
      return next(inference)
    })
  }
  if (book !== undefined) {
    app.gateway.decorate('ledger', { recent: () => [], totals: never, sums: never, refused: new Map(), mismatches: 0 })
    app.gateway.intercept('observe', (inference, next) => {
      inference.onSettled(() => {
        const cost = inference.expenses.reduce((sum, expense) => sum + (expense.cost ?? 0), 0)
        const charges = JSON.parse(inference.hold?.charges ?? '[]')
        if (inference.expenses.length > 0) book(charges, inference.principal.tenant, inference.principal.key, cost)
      })
      return next(inference)
    })
  }
  await app.register(budgets, options.budgets ?? {})
  await app.ready()

  const kit: Kit = {
    app,
    log,
    tenants,
    budget(id, limit, period = 'total', rest = {}) {
      tenants.set(id, {
        ...tenantDefaults,
        id,
        source: 'api',
        createdAt: 0,
        maxRequest: null,
        ...rest,
        budget: { limit, period }
      })
    },
    async state(scope, limit) {
      const budget = limit ?? tenants.get(scope.slice(scope.indexOf(':') + 1))?.budget
      if (budget === undefined) throw new Error(`${scope} has no budget`)
      return app.gateway.budgets!.state(scope, budget)
    },
    async ask({ tenant = 'acme', key, output = 83, cost, model = 'test', n, gate, signal }) {
      const principal: Principal = { tenant, key: key?.id ?? null, kind: 'key', scopes: ['chat'], apiKey: key }
      const caller: Caller = { ...app.gateway.caller({ tenant, signal }), principal }
      questions.set(caller.id, { cost: cost ?? null, gate })
      try {
        const request = { model, max_tokens: output, messages: [{ role: 'user' as const, content: 'x' }] }
        const { facts } = await app.gateway.complete(n === undefined ? request : { ...request, n }, caller)
        return facts
      } finally {
        questions.delete(caller.id)
      }
    }
  }
  return kit
}

const pricing = fp(
  async (app: FastifyInstance) => {
    app.gateway.accountWith({
      cost: ({ model }, usage) => (model === 'unpriced' ? null : inputOf(usage) + outputOf(usage))
    })
    app.gateway.decorate('pricing', {
      of: () => null,
      cost: (_, usage) => inputOf(usage) + outputOf(usage),
      bound: ({ model }, input, output) =>
        model === 'unpriced' ? null : (model === 'dear' ? 10 : 1) * (input + output),
      estimate: ({ model }, input, output) =>
        model === 'unpriced' ? null : (model === 'dear' ? 10 : 1) * (input + output),
      table: { name: 'test', version: '1', published: null }
    })
  },
  { fastify: '5.x', name: 'pricing', dependencies: ['gateway'] }
)

export function apiKey(id: string, tenant: string, budget: BudgetLimit | null): ApiKey {
  return {
    id,
    tenant,
    budget,
    name: null,
    scopes: ['chat'],
    hash: '',
    expiresAt: null,
    createdAt: 0,
    lastUsedAt: null,
    revokedAt: null,
    rotatedTo: null,
    account: null,
    requestsPerMinute: null,
    tokensPerMinute: null,
    concurrency: null
  }
}

/** One database for several processes: what they settle waits in their journals until `fold`. */
export class FakeBooks {
  readonly balances = new Map<string, Balance>()
  readonly journals = new Map<string, Array<readonly [string, string, number]>>()
  readonly adjustments: Array<{ amount: bigint; actor: string }> = []
  readonly recounts: string[] = []
  readonly closed = new Set<string>()
  reads = 0
  down = false

  /** What a ledger writes. */
  book(instance: string): NonNullable<KitOptions['book']> {
    const journal: Array<readonly [string, string, number]> = []
    this.journals.set(instance, journal)
    return (charges, tenant, key, cost) => {
      const all: Array<readonly [string, string]> = [['gateway', 'total'], [`tenant:${tenant}`, 'total'], ...charges]
      if (key !== null) all.push([`key:${key}`, 'total'])
      for (const [scope, period] of all) journal.push([scope, period, cost])
    }
  }

  fold(instance: string): Balance[] {
    const lines = this.journals.get(instance)?.splice(0) ?? []
    return lines.map(([scope, period, cost]) => this.add(scope, period, BigInt(cost)))
  }

  add(scope: string, period: string, amount: bigint): Balance {
    const before = this.read(scope, period)
    const after = { ...before, spent: before.spent + amount, version: before.version + 1 }
    this.balances.set(`${scope} ${period}`, after)
    return after
  }

  read(scope: string, period: string): Balance {
    const zero = { scope, period, spent: 0n, requests: 0, tokensIn: 0n, tokensOut: 0n, version: 0 }
    return this.balances.get(`${scope} ${period}`) ?? zero
  }

  store(instance: string): Store {
    const listeners: Array<(balances: readonly Balance[]) => void> = []
    const up = async () => {
      await new Promise(resolve => setImmediate(resolve))
      if (this.down) throw new Error('the database is away')
    }
    const folded = () => {
      const balances = this.fold(instance)
      if (balances.length > 0) for (const listener of listeners) listener(balances)
    }
    const books = this
    return {
      kind: 'sqlite',
      instance,
      setting: async (_, value) => value,
      tenants: { get: never, list: never, insert: never, update: never, remove: never },
      keys: { get: never, list: never, insert: never, update: never, touch: never, any: never },
      ledger: {
        open: never,
        grown() {},
        async folded() {
          await up()
          folded()
        },
        closed: async id => books.closed.has(id),
        rotate: never,
        records: never,
        export: never,
        async balances(of) {
          await up()
          books.reads++
          folded()
          return of.map(({ scope, period }) => books.read(scope, period))
        },
        async recount(scope, period) {
          await up()
          folded()
          books.recounts.push(`${scope} ${period}`)
          const total = books.read(scope, 'total').spent
          return books.add(scope, period, total - books.read(scope, period).spent)
        },
        async adjust({ scope, period, amount, actor }) {
          await up()
          folded()
          books.adjustments.push({ amount, actor })
          return books.add(scope, period, amount)
        },
        retain: never,
        verify: never
      },
      audits: { list: never, add: never },
      answers: { get: never, put: never, ids: never, purge: never },
      onFolded: listener => void listeners.push(listener),
      onState() {},
      state: { ok: true, reason: null, backlog: 0 }
    }
  }
}

function never(): never {
  throw new Error('Not in this test.')
}
