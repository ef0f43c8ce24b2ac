import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { FastifyInstance } from 'fastify'
import type { Test } from 'tap'
import type { ModelGatewayOptions } from '../../app.ts'
import type { ChatRequest, CompletionUsage } from '../../schemas/chat.ts'
import { isGatewayError, UpstreamError } from '../../schemas/errors.ts'
import { chunkFrames, type Frames } from '../../schemas/frames.ts'
import type { LedgerRecord } from '../../schemas/ledger.ts'
import { nanoOf } from '../../schemas/money.ts'
import type { Provider } from '../../schemas/provider.ts'
import { build } from '../helper.ts'
import { chunk, completion, finish, role, tokens } from '../plugins/kernel.ts'
import { seeded, turn } from '../upstream.ts'

// What the books have to survive, in short (test/money.test.ts) and in full (test/long/money.test.ts).

/** USD per million tokens; chosen so that a token is no whole nano-USD. */
export const price = { input: 0.0375, output: 2.6249 }
const picoInput = 37_500n
const picoOutput = 2_624_900n

/** What the provider computes by itself, without a line of the gateway's: nano-USD, half up. */
export function costOf(input: number, output: number): bigint {
  return (BigInt(input) * picoInput + BigInt(output) * picoOutput + 500n) / 1_000n
}

/** What one provider call should be in the books. */
interface Expected {
  input: number
  output: number
  reported: boolean
}

type Kind = 'whole' | 'silent' | 'zero' | 'refused' | 'broken' | 'left'

const kinds: readonly Kind[] = ['whole', 'whole', 'whole', 'silent', 'zero', 'refused', 'broken', 'left']

/** A directory that ends with the test. */
export async function scratch(t: Test): Promise<string> {
  const directory = await mkdtemp(join(tmpdir(), 'gateway-money-'))
  t.teardown(() => rm(directory, { recursive: true, force: true, maxRetries: 3 }))
  return directory
}

/** Options of a gateway with two targets, the second asked when the first fails, and tenants with room for everything. */
export function twoTargets(store: string | false, tenants: ModelGatewayOptions['tenants']): ModelGatewayOptions {
  return {
    store,
    plugins: { metrics: { legacyNames: ['titan'] } },
    log: { level: 'silent' },
    providers: { first: { type: 'custom' }, second: { type: 'custom' } },
    models: {
      test: {
        targets: [
          { provider: 'first', model: 'm', weight: 1, price },
          { provider: 'second', model: 'm', weight: 0, price }
        ]
      }
    },
    tenants
  }
}

/**
 * JSON answers and streams, some left by their callers at random moments, some failing before and after the first token,
 * some without usage and some with a usage of zero: afterwards the ledger is, to the nano-USD, what the provider computed.
 *
 * @param also what else is to be held to the books
 */
export async function mixed(
  t: Test,
  calls: number,
  concurrency = 64,
  also?: (t: Test, app: FastifyInstance, tenants: readonly string[]) => Promise<void>
): Promise<void> {
  const random = seeded(7)
  const directory = await scratch(t)
  const names = ['a', 'b', 'c', 'd']
  const room = { budget: false as const, maxRequestUsd: false as const, maxOutputTokens: 400 }
  const app = await build(
    t,
    twoTargets(`sqlite:${directory}/gateway.db`, Object.fromEntries(names.map(n => [n, room])))
  )
  /** By the number of the call, which is the request's `user`. */
  const expected = new Map<string, Expected[]>()
  const left = new Set<string>()
  for (const name of ['first', 'second']) app.gateway.providers.register(provider(name))
  await app.ready()

  function provider(name: string): Provider {
    return {
      name,
      capabilities: { dialects: [] },
      async send({ request, number, inference }) {
        const user = String(request.user)
        const attempts = expected.get(user) ?? []
        expected.set(user, attempts)
        const mine: Expected = { input: 0, output: 0, reported: false }
        attempts.push(mine)
        const kind = kindOf(request)
        // The second target always answers.
        if (kind === 'refused' && number === 1) throw new UpstreamError('refused.')
        const words = Math.floor(random() * 40) + 1
        const usage = kind === 'zero' ? tokens(0, 0) : tokens(Math.floor(random() * 60) + 1, words)
        const silent = kind === 'silent' || kind === 'left'
        // A stream that breaks in the middle has not said yet what it used.
        const input = silent || (kind === 'broken' && request.stream) ? inference.size.estimate : usage.prompt_tokens
        if (request.stream !== true) {
          await turn()
          Object.assign(mine, {
            input,
            output: silent ? Math.round((words * 4) / 4) : usage.completion_tokens,
            reported: !silent
          })
          return { stream: false, raw: null, body: completion('word'.repeat(words), silent ? undefined : usage) }
        }
        return { stream: true, frames: frames(mine, kind, words, silent ? null : usage, input) }
      }
    }
  }

  async function* frames(
    mine: Expected,
    kind: Kind,
    words: number,
    usage: CompletionUsage | null,
    input: number
  ): AsyncGenerator<Frames> {
    yield chunkFrames([role()])
    mine.input = input
    for (let word = 0; word < words; word++) {
      if (word % 3 === 0) await turn()
      mine.output++
      yield chunkFrames([chunk(' word')])
      if (kind === 'broken' && word === words >> 1) throw new UpstreamError('broken.')
    }
    if (usage === null) {
      yield chunkFrames([finish()])
      return
    }
    Object.assign(mine, { input: usage.prompt_tokens, output: usage.completion_tokens, reported: true })
    yield chunkFrames([finish(), { ...chunk(''), choices: [], usage }])
  }

  async function call(index: number): Promise<void> {
    const user = String(index)
    const kind = kinds[Math.floor(random() * kinds.length)]!
    const stream = random() < 0.5
    const tenant = names[Math.floor(random() * names.length)]!
    const request: ChatRequest = {
      model: 'test',
      stream,
      user,
      metadata: { kind },
      messages: [{ role: 'user', content: 'words '.repeat(1 + Math.floor(random() * 30)) }]
    }
    const leaving = new AbortController()
    const reads = kind === 'left' ? Math.floor(random() * 30) : Number.POSITIVE_INFINITY
    if (kind === 'left' && (!stream || reads === 0)) setImmediate(() => leaving.abort())
    try {
      const answer = await app.gateway.complete(request, app.gateway.caller({ tenant, signal: leaving.signal }))
      if (!answer.stream) return
      let read = 0
      for await (const _ of answer.frames) if (++read > reads) break
      if (read > reads) left.add(user)
    } catch (error) {
      if (!isGatewayError(error)) throw error
      if (error.wire === 'cancelled') left.add(user)
    }
  }

  let next = 0
  const worker = async () => {
    while (next < calls) await call(next++)
  }
  await Promise.all(Array.from({ length: concurrency }, worker))
  t.equal(app.gateway.running, 0)
  await app.gateway.store!.ledger.folded()

  const rows = new Map<string, LedgerRecord>()
  let repeated = 0
  for await (const piece of app.gateway.store!.ledger.export({})) {
    for (const row of piece) {
      if (rows.has(row.user!)) repeated++
      rows.set(row.user!, row)
    }
  }
  t.equal(repeated, 0, 'no call is in the ledger twice')
  const missing = [...expected.keys()].filter(user => !rows.has(user))
  t.strictSame(missing, [], 'every call that a provider has seen is in it')
  const unseen = [...rows].filter(([user]) => !expected.has(user)).map(([, row]) => row)
  // How many depends on how busy the machine is; most calls have to get through for the sums to mean anything.
  t.ok(unseen.length < calls / 4, `${unseen.length} were left before they were sent`)
  t.ok(unseen.every(row => row.status === 'interrupted' && row.cost === 0))
  const sums = { ledger: 0n, upstream: 0n, input: 0, output: 0, upstreamInput: 0, upstreamOutput: 0 }
  const wrong: unknown[] = []
  for (const [user, row] of rows) {
    const attempts = expected.get(user) ?? []
    const departed = left.has(user)
    if (departed) settleDeparture(row, attempts)
    const cost = attempts.reduce((sum, { input, output }) => sum + costOf(input, output), 0n)
    const input = attempts.reduce((sum, one) => sum + one.input, 0)
    const output = attempts.reduce((sum, one) => sum + one.output, 0)
    sums.ledger += BigInt(row.cost ?? -1)
    sums.upstream += cost
    sums.input += row.usage.input
    sums.output += row.usage.output
    sums.upstreamInput += input
    sums.upstreamOutput += output
    if (BigInt(row.cost ?? -1) !== cost || row.usage.input !== input || row.usage.output !== output) {
      wrong.push({ user, kind: row.tags?.['kind'], stream: row.stream, cost: row.cost, should: cost, attempts })
    }
  }
  t.strictSame(wrong.slice(0, 3), [], `${wrong.length} rows differ from what their provider computed`)
  t.equal(sums.ledger, sums.upstream, `${sums.ledger} nano-USD in the ledger, ${sums.upstream} at the provider`)
  t.strictSame([sums.input, sums.output], [sums.upstreamInput, sums.upstreamOutput], 'tokens likewise')
  const verified = await app.gateway.store!.ledger.verify()
  t.strictSame(verified.differences, [], 'every balance is the sum of its rows')
  const [gateway] = await app.gateway.store!.ledger.balances([{ scope: 'gateway', period: 'total' }])
  t.equal(gateway?.spent, sums.upstream)
  t.equal(gateway?.requests, rows.size)
  await also?.(t, app, names)

  /** Of a stream that was left the provider cannot know how much arrived: at most what it gave, at least all but one piece. */
  function settleDeparture(row: LedgerRecord, attempts: Expected[]): void {
    const last = attempts.at(-1)
    if (last === undefined || last.reported) return
    if (!row.stream) {
      // It left while the answer was made; or the answer was there already.
      if (row.usage.output === 0) Object.assign(last, { input: row.usage.input, output: 0 })
      return
    }
    const { output, input } = row.usage
    if (output <= last.output && output >= last.output - 1) Object.assign(last, { output, input: last.input || input })
  }

  function kindOf(request: ChatRequest): Kind {
    const kind = request.metadata?.['kind']
    return kinds.find(one => one === kind) ?? 'whole'
  }
}

/**
 * Calls of random cost at the same time against one budget: while usage stays within the bound, what is spent never
 * passes the budget, what is refused did not fit, and when all is settled nothing is held.
 */
export async function contended(t: Test, calls: number, store: string | false): Promise<void> {
  const random = seeded(11)
  const limit = 0.15
  const options = twoTargets(store, {
    acme: { budget: { usd: limit, period: 'total' }, maxRequestUsd: false, maxOutputTokens: 1_000 }
  })
  const app = await build(t, options)
  let running = 0
  let most = 0
  let spent = 0n
  for (const name of ['first', 'second']) {
    app.gateway.providers.register({
      name,
      capabilities: { dialects: [] },
      async send({ request, inference, number }) {
        running++
        most = Math.max(most, running)
        for (let turns = Math.floor(random() * 5); turns >= 0; turns--) await turn()
        running--
        // A failed one costs nothing, and the next holds its own.
        if (number === 1 && random() < 0.2) throw new UpstreamError('refused.')
        const cap = request.max_completion_tokens ?? request.max_tokens ?? 0
        const usage = tokens(Math.floor(random() * inference.size.bound), Math.floor(random() * (cap + 1)))
        spent += costOf(usage.prompt_tokens, usage.completion_tokens)
        return { stream: false, raw: null, body: completion('x', usage) }
      }
    })
  }
  await app.ready()
  const budgets = app.gateway.budgets!
  const rule = { limit: nanoOf(limit), period: 'total' } as const
  let refused = 0
  let answered = 0
  let failed = 0
  async function call(): Promise<void> {
    const request: ChatRequest = {
      model: 'test',
      max_tokens: 1 + Math.floor(random() * 1_000),
      messages: [{ role: 'user', content: 'x'.repeat(Math.floor(random() * 500)) }]
    }
    try {
      await app.gateway.complete(request, app.gateway.caller({ tenant: 'acme' }))
      answered++
    } catch (error) {
      if (!isGatewayError(error)) throw error
      if (error.wire === 'insufficient_quota') refused++
      else if (error.wire === 'upstream_error') failed++
      else throw error
    }
    const state = await budgets.state('tenant:acme', rule)
    if (BigInt(state.spent) + BigInt(state.held) > BigInt(rule.limit))
      t.fail(`${state.spent} spent, ${state.held} held`)
  }
  await Promise.all(Array.from({ length: calls }, call))
  t.ok(most > 5, `${most} at the same time`)
  t.ok(answered > 10 && refused > 10, `${answered} answered, ${refused} refused, ${failed} lost their second target`)
  const state = await budgets.state('tenant:acme', rule)
  t.equal(BigInt(state.spent), spent, 'what the provider computed')
  t.ok(spent <= BigInt(rule.limit), `${spent} of ${rule.limit} nano-USD`)
  t.equal(state.held, 0)
}
