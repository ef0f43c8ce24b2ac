import { setTimeout as sleep } from 'node:timers/promises'
import type { Test } from 'tap'
import type { ModelGatewayOptions } from '../../app.ts'
import type { ChatRequest } from '../../schemas/chat.ts'
import { isGatewayError } from '../../schemas/errors.ts'
import type { Completed } from '../../schemas/gateway.ts'
import type { LedgerRecord } from '../../schemas/ledger.ts'
import { nanoOf } from '../../schemas/money.ts'
import { build } from '../helper.ts'
import {
  chunks,
  close,
  completion,
  failure,
  json,
  type Received,
  type Reply,
  reset,
  seeded,
  silence,
  sse,
  startUpstream,
  type Upstream
} from '../upstream.ts'
import { costOf, price, scratch } from './money.ts'

// Three targets of which each fails three times in ten, and one of which is gone for a while: in short
// (test/faults.test.ts) and in full (test/long/faults.test.ts).

const weights = { one: 5, two: 3, three: 2 }
type Name = keyof typeof weights
const names = Object.keys(weights) as Name[]
/** Several, because a limited one rests. */
const keysOf = (name: Name) => ['a', 'b', 'c', 'd'].map(key => `sk-of-target-${name}-${key}`)

/** What happens to a provider call, and how often: together 30 %. */
const faults = {
  500: 0.05,
  503: 0.045,
  529: 0.045,
  reset: 0.05,
  hang: 0.02,
  truncated: 0.06,
  limited: 0.015,
  limitedFor: 0.015
}
type Kind = keyof typeof faults | 'good' | 'broken'

/** One call in so many is a stream that breaks after its first token, which nobody can hide. */
const brokenEach = 4_000
/** How much faster the time of routing goes. */
const pace = 20
/** Milliseconds between two calls, and until one that hangs is given up. */
const interval = 1.7
const patience = 500
/** After which part of the calls the target `two` is gone, and for how many of them: a tenth, but so many at least. */
const outage = { after: 0.3, lasts: 0.1, least: 250 }
/** Longer than anybody rests. */
const calm = 120_000
const concurrency = 32
const budget = 1_000

/** What the upstream has done for one provider call. */
interface Served {
  readonly kind: Kind
  /** Nano-USD: of its answer, and of what a failing one has reported. */
  readonly cost: bigint
}

/**
 * `calls` calls, whole and as streams, through the whole app and over the network: nearly all are answered, the ledger is what
 * the upstreams computed, breakers open and close, and what recovers has its share again.
 */
export async function faulty(t: Test, calls: number): Promise<void> {
  const time = fastTime()
  const served = new Map<string, Served[]>()
  let stormy = true
  let draw = seeded(31)
  const upstreams = new Map<Name, Upstream>()
  const script = (request: Received) => reply(request)
  for (const name of names) upstreams.set(name, await startUpstream({ script }))
  t.teardown(() => Promise.all([...upstreams.values()].map(upstream => upstream.close())))

  /** The same call meets the same faults, in whatever order calls are served. */
  function reply({ json: asked }: Received): Reply {
    const user = String(asked['user'])
    const before = served.get(user) ?? []
    served.set(user, before)
    const random = seeded(Number(user) * 64 + before.length)
    const kind = kindOf(Number(user), random())
    const usage = { prompt_tokens: 1 + Math.floor(random() * 900), completion_tokens: 1 + Math.floor(random() * 200) }
    const { answer, cost } = play(kind, `${user}-${before.length}`, asked.stream === true, usage)
    before.push({ kind, cost })
    return answer
  }

  function kindOf(call: number, drawn: number): Kind {
    if (!stormy) return 'good'
    if (isBroken(call)) return 'broken'
    let left = drawn
    for (const kind in faults) {
      left -= faults[kind as keyof typeof faults]
      if (left < 0) return kind as Kind
    }
    return 'good'
  }

  const app = await build(t, optionsFor(upstreams, `sqlite:${await scratch(t)}/gateway.db`), {
    now: time.now,
    pause: time.pause,
    random: () => draw()
  })
  await app.ready()
  const { gateway } = app
  const breakers = watch([...gateway.targets.states], time.now)

  const got: Array<{ user: string; target: string; id: string | null }> = []
  async function call(index: number): Promise<void> {
    const user = String(index)
    const request: ChatRequest = {
      model: 'test',
      stream: isBroken(index) || index % 2 === 0,
      user,
      messages: [{ role: 'user', content: 'How do you do?' }]
    }
    try {
      const answer = await gateway.complete(request, gateway.caller({ tenant: 'acme' }))
      got.push({ user, target: answer.facts.target?.provider.name ?? '', id: await idOf(answer) })
    } catch (error) {
      if (!isGatewayError(error)) throw error
      got.push({ user, target: '', id: null })
    }
  }

  const start = Math.floor(calls * outage.after)
  const end = start + Math.max(outage.least, Math.floor(calls * outage.lasts))
  let leaving: Promise<void> | undefined
  const port = upstreams.get('two')!.port
  await all(calls, interval, async index => {
    breakers.look()
    if (index === start) leaving = goAway(upstreams.get('two')!)
    if (index === end) await leaving
    if (index === end) upstreams.set('two', await startUpstream({ script, port }))
    await call(index)
  })
  const storm = got.splice(0)
  const during = [...served.values()].flat()
  const injected = during.filter(({ kind }) => kind !== 'good').length
  const rows = await rowsOf(app)

  t.comment(
    `${calls} calls, ${during.length} provider calls arrived, ${percent(injected / during.length)} of them failed`
  )
  t.ok(injected / during.length > 0.28, 'three in ten fail')
  const answered = storm.filter(({ id }) => id !== null).length
  t.comment(`${answered} answered: ${percent(answered / calls)}`)
  t.ok(answered >= calls * 0.999, `${answered} of ${calls} are answered`)

  checkBooks(t, rows, storm, served)
  const { spent, held } = await gateway.budgets!.state('tenant:acme', { limit: nanoOf(budget), period: 'total' })
  t.equal(
    BigInt(spent),
    [...rows.values()].reduce((sum, { cost }) => sum + BigInt(cost ?? 0), 0n)
  )
  t.equal(held, 0, 'nothing is held')
  const { differences } = await gateway.store!.ledger.verify()
  t.strictSame(differences, [], 'every balance is the sum of its rows')

  const gone = attemptsOn('two', rows, start, end)
  t.comment(`${gone} of ${end - start} calls asked the target that was gone`)
  t.ok(gone < (end - start) * 0.25, 'a target that is gone is left alone')
  const back = sharesOf(storm.filter(({ user }) => Number(user) >= calls * 0.7))
  t.comment(`it answered ${percent(back.two)} of the last three in ten calls of the storm, its weight is 30 %`)
  // A probe may fail as well, so that this takes its time.
  if ((calls - end) * interval * pace > 60_000) t.ok(back.two > 0.1, 'and is asked again when it is back')

  stormy = false
  time.skip(calm)
  await all(300, 0, index => call(calls + index))
  time.skip(calm)
  t.strictSame(gateway.targets.readiness().down, [], 'all are well again')
  breakers.look()
  t.comment(`breakers opened ${breakers.opened} times and closed ${breakers.closed} times`)
  t.ok(breakers.opened > 0 && breakers.closed === breakers.opened, 'breakers open and close')
  got.length = 0
  // The same draws in every run.
  draw = seeded(56)
  await all(Math.max(calls / 2, 2_000), 0, index => call(calls + 300 + index))
  const shares = sharesOf(got)
  for (const name of names) {
    const weight = weights[name] / 10
    t.comment(`${name}: ${percent(shares[name])} of the calls after it, its weight is ${percent(weight)}`)
    t.ok(Math.abs(shares[name] - weight) < 0.02, `${name} has its share`)
  }

  /** All of them in their time, and so many at once at most. */
  async function all(count: number, every: number, run: (index: number) => Promise<void>): Promise<void> {
    const start = performance.now()
    let next = 0
    const worker = async () => {
      for (let index = next++; index < count; index = next++) {
        const early = start + index * every - performance.now()
        if (early >= 1) await sleep(early)
        await run(index)
      }
    }
    await Promise.all(Array.from({ length: concurrency }, worker))
  }

  async function rowsOf({ gateway: { store } }: typeof app): Promise<Map<string, LedgerRecord>> {
    const found = new Map<string, LedgerRecord>()
    await store!.ledger.folded()
    for await (const piece of store!.ledger.export({})) {
      for (const row of piece) {
        if (found.has(row.user!)) t.fail(`the call ${row.user} is in the ledger twice`)
        found.set(row.user!, row)
      }
    }
    return found
  }
}

/** Who is being answered is answered; from then on connections are refused. */
async function goAway(upstream: Upstream): Promise<void> {
  upstream.script(reset())
  await upstream.until(({ requests }) => requests === 0)
  await upstream.close()
}

function isBroken(call: number): boolean {
  return call % brokenEach === brokenEach - 1
}

function optionsFor(upstreams: ReadonlyMap<Name, Upstream>, store: string): ModelGatewayOptions {
  return {
    store,
    log: { level: 'silent' },
    providers: Object.fromEntries(
      names.map(name => [
        name,
        { type: 'openai-compatible', baseUrl: upstreams.get(name)!.url, apiKeys: keysOf(name) } as const
      ])
    ),
    models: {
      test: {
        targets: names.map(name => ({ provider: name, model: 'm', weight: weights[name], price })),
        timeouts: { connect: 1_000, headers: patience, firstToken: patience, idle: 5_000, total: 600_000 }
      }
    },
    // Three probes in ten fail, and each doubles the time until the next one.
    routing: { breaker: { mostOpenFor: '15s' } },
    tenants: { acme: { budget: { usd: budget }, maxRequestUsd: false, maxOutputTokens: 1_000 } }
  }
}

/** What an upstream answers, and what it charges for that. */
function play(
  kind: Kind,
  id: string,
  stream: boolean,
  usage: { prompt_tokens: number; completion_tokens: number }
): { answer: Reply; cost: bigint } {
  const { prompt_tokens: input, completion_tokens: output } = usage
  const total = { ...usage, total_tokens: input + output }
  const said = chunks(['one', ' two', ' three'], { id, usage: total })
  const free = (answer: Reply) => ({ answer, cost: 0n })
  switch (kind) {
    case 'reset':
      return free(reset())
    case 'hang':
      return free(input % 2 === 0 ? silence() : silence('headers'))
    case 'limited':
      return free(failure(429))
    case 'limitedFor':
      return free(failure(429, {}, { headers: { 'retry-after': '1' } }))
    case 'truncated': {
      if (!stream) return free(close(json(completion({ id, usage: total })), 40))
      // Some report from the first event on.
      const reports = input % 2 === 0
      const first = { ...said[0]!, usage: reports ? { ...total, completion_tokens: 0, total_tokens: input } : null }
      return { answer: close(sse([first], { done: false })), cost: reports ? costOf(input, 0) : 0n }
    }
    case 'broken': {
      const events = said.slice(0, 2).map(event => ({ ...event, usage: total }))
      return { answer: close(sse(events, { done: false })), cost: costOf(input, output) }
    }
    case 'good':
      return { answer: stream ? sse(said) : json(completion({ id, usage: total })), cost: costOf(input, output) }
    default:
      return free(failure(Number(kind)))
  }
}

/** The id of an answer, read to its end. @throws what broke it */
async function idOf(answer: Completed): Promise<string> {
  if (!answer.stream) return answer.body.id
  let id = ''
  for await (const frames of answer.frames) for (const chunk of frames) id = chunk.id
  return id
}

/** Every call costs the answer that has arrived, and what failing attempts have reported: no more and no less. */
function checkBooks(
  t: Test,
  rows: ReadonlyMap<string, LedgerRecord>,
  got: ReadonlyArray<{ user: string; id: string | null }>,
  served: ReadonlyMap<string, readonly Served[]>
): void {
  const sums = { ledger: 0n, upstream: 0n }
  const wrong: unknown[] = []
  for (const { user, id } of got) {
    const row = rows.get(user)
    const calls = served.get(user) ?? []
    const failed = calls.reduce((sum, { kind, cost }) => (kind === 'good' ? sum : sum + cost), 0n)
    const arrived = id === null ? 0n : (calls[Number(id.split('-')[1])]?.cost ?? -1n)
    const settled = row?.attempts.filter(({ status }) => status === 'settled').length ?? 0
    sums.ledger += BigInt(row?.cost ?? 0)
    sums.upstream += failed + arrived
    if (BigInt(row?.cost ?? 0) === failed + arrived && settled === (id === null ? 0 : 1)) continue
    wrong.push({ user, id, calls: calls.map(({ kind, cost }) => `${kind} ${cost}`), cost: row?.cost, settled })
  }
  t.strictSame(wrong.slice(0, 3), [], `${wrong.length} rows differ from what the upstreams computed`)
  t.equal(sums.ledger, sums.upstream)
  t.comment(`${sums.ledger} nano-USD in the ledger, ${sums.upstream} at the upstreams`)
}

/** How many of these calls have asked a target at least once. */
function attemptsOn(name: Name, rows: ReadonlyMap<string, LedgerRecord>, from: number, to: number): number {
  let found = 0
  for (let call = from; call < to; call++) {
    if (rows.get(String(call))?.attempts.some(({ provider }) => provider === name)) found++
  }
  return found
}

function sharesOf(got: ReadonlyArray<{ target: string }>): Record<Name, number> {
  const share = (name: Name) => got.filter(({ target }) => target === name).length / got.length
  return { one: share('one'), two: share('two'), three: share('three') }
}

function percent(share: number): string {
  return `${(share * 100).toFixed(2)} %`
}

interface Watched {
  readonly breaker: { state(now: number): string }
}

/** Counts how often breakers open and close, as seen between calls. */
function watch(states: readonly Watched[], now: () => number) {
  const open = new Set<Watched>()
  const counts = { opened: 0, closed: 0, look }
  function look(): void {
    for (const state of states) {
      const isOpen = state.breaker.state(now()) !== 'closed'
      if (isOpen && !open.has(state)) counts.opened++
      if (!isOpen && open.delete(state)) counts.closed++
      if (isOpen) open.add(state)
    }
  }
  return counts
}

/** Time that is so many times as fast as everybody else's, so that rests, pauses and deadlines keep their proportions. */
function fastTime() {
  const start = performance.now()
  let skipped = 1_800_000_000_000
  return {
    now: () => skipped + (performance.now() - start) * pace,
    pause: async (milliseconds: number, signal: AbortSignal) => {
      await sleep(milliseconds / pace, undefined, { signal })
    },
    skip: (milliseconds: number) => void (skipped += milliseconds)
  }
}
