import { setTimeout as wait } from 'node:timers/promises'
import { Redis } from 'ioredis'
import type { Test } from 'tap'
import { startPostgres, startRedis } from '../services/index.ts'
import { check, killable, load, type Received } from './kills.ts'
import { scratch } from './money.ts'

// What happens to the books while what they stand on goes away and comes back.

/** Clients that ask until they are stopped, and what they were told. */
function clients(urls: readonly string[], count: number) {
  const received: Received[] = []
  const refusals = new Map<string, number>()
  const stop = new AbortController()
  const running = Array.from({ length: count }, (_, index) =>
    load(urls[index % urls.length]!, received, stop.signal, index, (status, body) => {
      const what = `${status} ${/"code":"(\w+)"/.exec(body)?.[1]}`
      refusals.set(what, (refusals.get(what) ?? 0) + 1)
    })
  )
  return {
    received,
    refusals,
    async stop() {
      stop.abort()
      await Promise.all(running)
    }
  }
}

/** Waits until something holds; false: it did not within ten seconds. */
async function until(holds: () => Promise<boolean>): Promise<boolean> {
  for (const end = performance.now() + 10_000; performance.now() < end; await wait(50)) {
    if (await holds().catch(() => false)) return true
  }
  return false
}

async function readiness(url: string): Promise<{ status: number; checks: Record<string, { ok: boolean }> }> {
  const answer = await fetch(`${url}/ready`)
  const { checks } = (await answer.json()) as { checks: Record<string, { ok: boolean }> }
  return { status: answer.status, checks }
}

/** PostgreSQL is stopped under load and comes back: every call is answered, and nothing is missing afterwards. */
export async function postgresAway(t: Test, milliseconds: number): Promise<void> {
  const postgres = await startPostgres(t)
  if (postgres === null) return
  const server = await killable(t, { store: await postgres.database() })
  const load = clients([server.url], 8)
  await wait(300)
  await postgres.stop()
  const before = load.received.length
  await wait(milliseconds)
  const during = load.received.length - before
  const away = await readiness(server.url)
  t.equal(away.checks['store']?.ok, false, '/ready says so')
  await postgres.start()
  t.ok(await until(async () => (await readiness(server.url)).status === 200), 'it is ready again')
  await wait(200)
  await load.stop()
  t.ok(during > 5, `${during} calls were answered while the database was away`)
  t.strictSame([...load.refusals], [], 'none was refused')
  await check(t, server, load.received, 'afterwards')
}

/** Redis is stopped, then slow, then flushed: calls are refused with the reason, and nothing is lost or charged twice. */
export async function redisAway(t: Test, milliseconds: number): Promise<void> {
  const redis = await startRedis(t)
  const postgres = redis && (await startPostgres(t))
  if (redis === null || postgres === null) return
  const store = await postgres.database()
  const directory = await scratch(t)
  const servers = [
    await killable(t, { store, redis: redis.url, directory }),
    await killable(t, { store, redis: redis.url, directory })
  ]
  const urls = servers.map(({ url }) => url)
  const load = clients(urls, 8)
  const answering = async () => {
    const before = load.received.length
    await wait(200)
    return load.received.length > before + 3
  }
  await until(answering)

  await redis.stop()
  await wait(milliseconds)
  const away = await readiness(urls[0]!)
  t.equal(away.status, 503)
  const stoppedAt = load.received.length
  await wait(200)
  t.equal(load.received.length, stoppedAt, 'while Redis is stopped no call is let in')
  t.ok((load.refusals.get('503 limits_unavailable') ?? 0) > 0, [...load.refusals].join('; '))
  t.equal(load.refusals.size, 1, `nothing else was said: ${[...load.refusals].join('; ')}`)
  await redis.start()
  t.ok(await until(answering), 'after it came back, without its data, calls are let in')

  redis.pause()
  await wait(milliseconds)
  const paused = load.received.length
  await wait(200)
  t.equal(load.received.length, paused, 'while it does not answer no call is let in, and none hangs')
  redis.resume()
  t.ok(await until(answering), 'after it answers again calls are let in')

  const client = new Redis(redis.url)
  await client.flushall()
  client.disconnect()
  // What was let in before it was emptied is answered by then.
  await wait(300)
  t.ok(await until(answering), 'after it lost its data calls are let in')
  await load.stop()
  t.equal(load.refusals.size, 1, `nothing else was ever said: ${[...load.refusals].join('; ')}`)
  await allFolded(servers)
  for (const server of servers) await check(t, server, load.received, 'afterwards')
}

/**
 * Each process carries its own journal into the database before it answers a question about rows, and knows nothing of
 * what the others still have: each is asked, until none of them sees an open call.
 */
async function allFolded(servers: ReadonlyArray<Awaited<ReturnType<typeof killable>>>): Promise<void> {
  await until(async () => {
    const seen = []
    for (const server of servers) seen.push(...(await server.rows('acme')))
    return seen.every(({ status }) => status !== 'open')
  })
}

/** Three processes, one budget: together they spend no nano-USD more. */
export async function threeProcesses(t: Test, calls: number): Promise<void> {
  const redis = await startRedis(t)
  const postgres = redis && (await startPostgres(t))
  if (redis === null || postgres === null) return
  const directory = await scratch(t)
  const options = {
    store: await postgres.database(),
    redis: redis.url,
    directory,
    budget: 0.05,
    delay: 5,
    redisTimeout: 2_000
  }
  const servers = [await killable(t, options), await killable(t, options), await killable(t, options)]
  await until(async () => (await readiness(servers[2]!.url)).status === 200)
  const answers = await Promise.all(
    Array.from({ length: calls }, async (_, index) => {
      const answer = await fetch(`${servers[index % 3]!.url}/v1/chat/completions`, {
        method: 'POST',
        headers: { authorization: 'Bearer kill-test-key', 'content-type': 'application/json' },
        body: JSON.stringify({
          model: 'test',
          max_tokens: 1 + (index % 12),
          messages: [{ role: 'user', content: 'word '.repeat(1 + (index % 50)) }]
        })
      })
      return { status: answer.status, text: await answer.text() }
    })
  )
  const count = (status: number) => answers.filter(answer => answer.status === status).length
  const others = answers.filter(({ status }) => status !== 200 && status !== 429)
  t.strictSame(others.slice(0, 3), [], 'each was answered or did not fit')
  t.ok(count(200) > 10 && count(429) > 10, `${count(200)} answered, ${count(429)} refused`)
  t.ok(
    answers.every(({ status, text }) => status === 200 || text.includes('insufficient_quota')),
    'what is refused is told why'
  )
  await wait(300)
  await allFolded(servers)
  for (const server of servers) {
    const tenant = await server.admin<{ spend_usd: number; reserved_usd: number }>('/api/tenants/acme')
    t.ok(tenant.spend_usd <= 0.05, `${tenant.spend_usd} of 0.05 USD`)
    t.equal(tenant.reserved_usd, 0)
  }
  const rows = await servers[0]!.rows('acme')
  t.equal(rows.length, count(200))
  const sum = rows.reduce((total, row) => total + Math.round(row.cost_usd * 1e9), 0)
  t.ok(sum <= 50_000_000, `${sum} nano-USD in the ledger`)
}

/** One of three processes is killed and never returns: the others close its calls, and never a living one's. */
export async function deadProcess(t: Test): Promise<void> {
  const redis = await startRedis(t)
  const postgres = redis && (await startPostgres(t))
  if (redis === null || postgres === null) return
  const directory = await scratch(t)
  const options = { store: await postgres.database(), redis: redis.url, directory, delay: 400, redisTimeout: 2_000 }
  const [one, two, three] = [
    await killable(t, options),
    await killable(t, options),
    await killable(t, options)
  ] as const
  await until(async () => (await readiness(three.url)).status === 200)
  const load = clients([one.url, two.url, three.url], 12)
  await wait(600)
  await three.kill()
  await until(async () => (await one.rows('acme')).some(({ status }) => status === 'interrupted'))
  const cutOff = (await one.rows('acme')).filter(({ status }) => status === 'interrupted')
  t.ok(cutOff.length > 0 && cutOff.length <= 4, `${cutOff.length} calls of the dead process are closed`)
  await wait(500)
  await load.stop()
  await allFolded([one, two])
  for (const server of [one, two]) await check(t, server, load.received, 'afterwards')
}
