import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as wait } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import type { Test } from 'tap'
import { freePort } from '../services/index.ts'
import { seeded } from '../upstream.ts'
import { scratch } from './money.ts'

// The real server, killed under load. What its clients received whole has to be in its books afterwards, once.

const server = fileURLToPath(new URL('../../server.ts', import.meta.url))
const key = 'kill-test-key'
const adminToken = 'kill-test-admin'
const price = { input: 3.5, output: 15.25 }
const nanoInput = 3_500
const nanoOutput = 15_250

/** A row as GET /api/tenants/:id/records gives it. */
export interface Row {
  id: string
  status: string
  cost_usd: number
  usage_source: string
  tokens_in: number
  tokens_out: number
}

/** An answer that its client has received to the last byte. */
export interface Received {
  id: string
  nano: number
}

export interface Killable {
  store?: string
  redis?: string
  directory?: string
  /** USD of the tenant `acme`. Default 1,000. */
  budget?: number
  /** Of the echo, in milliseconds. */
  delay?: number
  /** Milliseconds. */
  redisTimeout?: number
  plugins?: object
}

/** A server that can be killed and started again on the same data. */
export async function killable(t: Test, more: Killable = {}) {
  const directory = more.directory ?? (await scratch(t))
  const port = await freePort()
  const file = join(directory, `gateway-${port}.json`)
  writeFileSync(
    file,
    JSON.stringify({
      server: { port },
      log: { level: 'warn' },
      store: more.store ?? `sqlite:${directory}/gateway.db`,
      redis: more.redis,
      providers: { echo: { type: 'echo', words: 12, delay: more.delay ?? 2, interval: '1ms' } },
      models: { test: { targets: [{ provider: 'echo', model: 'm', price }] } },
      tenants: { acme: { keys: [key], budget: { usd: more.budget ?? 1_000 }, maxRequestUsd: false } },
      plugins: {
        auth: { adminToken },
        rateLimit: false,
        shared: { lease: '2s', timeout: more.redisTimeout ?? 50 },
        ...more.plugins
      }
    })
  )
  const url = `http://127.0.0.1:${port}`
  let child: ChildProcess | null = null
  let said = ''

  async function start(): Promise<void> {
    // Through env(1), which becomes the server: tap hands every process it starts a loader of its own.
    child = spawn('env', ['-u', 'NODE_OPTIONS', process.execPath, server, '--config', file], {
      cwd: directory,
      env: { PATH: process.env['PATH'] },
      stdio: ['ignore', 'pipe', 'pipe']
    })
    for (const stream of [child.stdout, child.stderr]) stream?.on('data', text => (said = (said + text).slice(-20_000)))
    const exited = once(child, 'exit')
    for (;;) {
      const ready = await Promise.race([
        fetch(`${url}/ready`).then(
          answer => answer.status === 200,
          () => false
        ),
        exited.then(() => Promise.reject(new Error(`The server ended: ${said}`)))
      ])
      if (ready) return
      await wait(20)
    }
  }

  async function kill(): Promise<void> {
    if (child === null || child.exitCode !== null || child.signalCode !== null) return
    const exited = once(child, 'exit')
    child.kill('SIGKILL')
    await exited
  }

  t.teardown(kill)
  await start()

  async function admin<Body>(path: string): Promise<Body> {
    const answer = await fetch(url + path, { headers: { authorization: `Bearer ${adminToken}` } })
    if (answer.status !== 200) throw new Error(`${path}: ${answer.status} ${await answer.text()}`)
    return (await answer.json()) as Body
  }

  /** Every row there is. */
  async function rows(tenant: string): Promise<Row[]> {
    const all: Row[] = []
    for (let next: string | null = ''; next !== null; ) {
      const page: { data: Row[]; next: string | null } = await admin(
        `/api/tenants/${tenant}/records?limit=1000${next ? `&after=${encodeURIComponent(next)}` : ''}`
      )
      all.push(...page.data)
      next = page.next
    }
    return all
  }

  return { url, start, kill, admin, rows, directory, output: () => said }
}

/** Asks for whole answers and streams until it is told to stop; notes what arrived to the last byte. */
export async function load(
  url: string,
  received: Received[],
  stop: AbortSignal,
  seed: number,
  refused?: (status: number, body: string) => void
): Promise<void> {
  const random = seeded(seed)
  const headers = { authorization: `Bearer ${key}`, 'content-type': 'application/json' }
  while (!stop.aborted) {
    const stream = random() < 0.5
    const content = 'some words '.repeat(1 + Math.floor(random() * 10))
    const body = JSON.stringify({
      model: 'test',
      stream,
      stream_options: stream ? { include_usage: true } : undefined,
      messages: [{ role: 'user', content }]
    })
    try {
      const answer = await fetch(`${url}/v1/chat/completions`, { method: 'POST', headers, body })
      const text = await answer.text()
      const id = answer.headers.get('x-request-id')
      if (answer.status !== 200) refused?.(answer.status, text)
      if (answer.status !== 200 || id === null || (stream && !text.includes('[DONE]'))) continue
      const [, input, output] = /"prompt_tokens":(\d+),"completion_tokens":(\d+)/.exec(text) ?? []
      received.push({ id, nano: Number(input) * nanoInput + Number(output) * nanoOutput })
    } catch {
      // The server is gone, or this client broke off.
      await wait(1)
    }
  }
}

/** Kills a server under load as often as it is told, and reads its books after every restart. */
export async function kills(t: Test, rounds: number): Promise<void> {
  const random = seeded(3)
  const server = await killable(t)
  const received: Received[] = []
  let interrupted = 0
  for (let round = 0; round < rounds; round++) {
    const stop = new AbortController()
    const clients = Array.from({ length: 12 }, (_, index) =>
      load(server.url, received, stop.signal, round * 100 + index)
    )
    await wait(20 + Math.floor(random() * 250))
    await server.kill()
    stop.abort()
    await Promise.all(clients)
    await server.start()
    interrupted = await check(t, server, received, `kill ${round + 1}`)
  }
  t.ok(received.length > rounds * 5, `${received.length} answers arrived whole`)
  t.ok(interrupted > 0, `${interrupted} calls were cut off`)
  t.comment(`${rounds} kills, ${received.length} whole answers, ${interrupted} interrupted calls`)
}

/** Holds the books against what clients have received. How many calls are interrupted. */
export async function check(
  t: Test,
  server: Pick<Awaited<ReturnType<typeof killable>>, 'rows' | 'admin'>,
  received: readonly Received[],
  when: string
): Promise<number> {
  const rows = await server.rows('acme')
  const byId = new Map(rows.map(row => [row.id, row]))
  t.equal(byId.size, rows.length, `${when}: no call is in the ledger twice`)
  const wrong = received.filter(({ id, nano }) => {
    const row = byId.get(id)
    return row?.status !== 'settled' || Math.round(row.cost_usd * 1e9) !== nano
  })
  t.strictSame(wrong.slice(0, 3), [], `${when}: ${wrong.length} whole answers are missing or wrong`)
  const others = rows.filter(row => row.status !== 'settled')
  const odd = others.filter(
    row => row.status !== 'interrupted' || row.usage_source !== 'estimated' || row.cost_usd <= 0
  )
  t.strictSame(odd.slice(0, 3), [], `${when}: what was cut off is interrupted, with an estimate`)
  const sum = rows.reduce((total, row) => total + Math.round(row.cost_usd * 1e9), 0)
  const tenant = await server.admin<{ spend_usd: number; reserved_usd: number }>('/api/tenants/acme')
  t.equal(Math.round(tenant.spend_usd * 1e9), sum, `${when}: the budget is the sum of the ledger`)
  t.equal(tenant.reserved_usd, 0, `${when}: nothing is reserved`)
  return others.length
}
