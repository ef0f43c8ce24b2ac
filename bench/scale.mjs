// The governed gateway with much to govern: start-up, memory and times with many tenants and keys, times with a long
// ledger, and the administrator's queries. Each database is made by the gateway and filled by books.mjs.
import { mkdirSync, statfsSync, writeFileSync } from 'node:fs'
import { Agent, request } from 'node:http'
import { join } from 'node:path'
import { startUp as begin, launch } from './contenders.mjs'
import { adminToken, settled } from './gateway.mjs'
import { atRate, memoryOfKeys } from './measure.mjs'
import { keyName, modelName, models, span, tenantName } from './names.mjs'
import { node, run } from './processes.mjs'
import { measure, median } from './table.mjs'

export const allRows = 10_000_000
/** With fewer, what is asked for is not there. */
export const leastRows = 200_000
const many = { tenants: 100_000, keys: 1_000_000, rows: 0 }
const callers = 5_000
const calls = 20_000
const repeats = 20
/** A gateway with much to write down may take longer to end than others. */
const patience = 15_000
/** Bytes on the disk for a row of the ledger, its indexes and what sorting them takes, and for everything else. */
const perRow = 1_100
const besides = 1e9

/**
 * Measures everything that grows.
 *
 * @returns `measures`, `contenders` in the table's order, and `notes`: sentences about what was made and left out
 */
export async function scale({ scratch, upstream, one, quick, rows, progress }) {
  const notes = []
  const measures = []
  const add = (title, digits, options) => {
    const made = measure(title, digits, options)
    measures.push(made)
    return made
  }
  const at = name => {
    const home = join(scratch, `scale-${name}`)
    mkdirSync(home)
    return home
  }
  const thousands = number => number.toLocaleString('en-US')
  const empty = settled('empty', 'empty database', at('empty'))
  const full = settled('keys', `${thousands(many.tenants)} tenants, ${thousands(many.keys)} keys`, at('keys'))
  const long = settled('rows', `${thousands(rows)} ledger rows`, at('rows'))
  const books = { tenants: 1_000, keys: 3_000, rows }
  const contenders = [empty]

  await make(empty)
  if (room(scratch, 0, notes, full.title)) {
    progress(`filling: ${full.title}`)
    await make(full, many)
    contenders.push(full)
  }
  if (room(scratch, rows, notes, long.title)) {
    progress(`filling: ${long.title}`)
    await make(long, books)
    contenders.push(long)
  }

  await startUps()
  await memories()
  await latency()
  if (contenders.includes(long)) await queries()
  return { measures, contenders, notes }

  /** The gateway makes its database, books.mjs fills it, and the gateway makes a tenant with a key that works. */
  async function make(contender, content) {
    await (await launch(contender, upstream, scratch)).stop(patience)
    if (content !== undefined) {
      const script = join(import.meta.dirname, 'books.mjs')
      const output = await run('load', node, [script, contender.database, JSON.stringify(content)], 900_000)
      const { seconds, bytes } = JSON.parse(/^RESULT (.*)$/m.exec(output)[1])
      notes.push(`${contender.title}: made in ${seconds.toFixed(0)} s, ${(bytes / 1e9).toFixed(1)} GB.`)
    }
    const target = await launch(contender, upstream, scratch)
    const ask = admin(target)
    await ask('POST', '/api/tenants', { id: 'bench', budget_usd: 1_000_000, max_request_usd: null, period: 'day' }, 201)
    contender.secret = (await ask('POST', '/api/tenants/bench/keys', {}, 201)).key
    if (contender === full) {
      const secrets = await inParallel(callers, 16, async i => {
        const tenant = tenantName(Math.floor((many.tenants / callers) * i))
        return (await ask('POST', `/api/tenants/${tenant}/keys`, {}, 201)).key
      })
      writeFileSync(keysFile(full), JSON.stringify(secrets))
    } else writeFileSync(keysFile(contender), JSON.stringify([contender.secret]))
    ask.close()
    await target.stop(patience)
  }

  function keysFile(contender) {
    return join(scratch, `${contender.name}.keys`)
  }

  async function startUps() {
    progress('start-up')
    const row = add('start-up to ready, ms')
    for (let round = 0; round < (quick ? 2 : 5); round++) {
      await each([row], contenders, async contender =>
        row.add(contender.name, await begin(contender, upstream, scratch))
      )
    }
    judge(row, full, 1_000)
  }

  async function memories() {
    progress('memory')
    const idle = add('resident memory idle, MB')
    const used = add(`resident memory after ${thousands(calls)} requests, MB`)
    const present = contenders.filter(contender => contender !== long)
    await each([idle, used], present, async contender => {
      const target = await launch(contender, upstream, scratch)
      try {
        const options = { scratch, keysFile: keysFile(contender), total: calls }
        const result = await memoryOfKeys(target, one, options)
        idle.add(contender.name, result.idle)
        used.add(contender.name, result.used)
      } finally {
        await target.stop(patience)
      }
    })
    judge(idle, full, 300)
    judge(used, full, 300, `with keys of ${thousands(callers)} tenants; `)
  }

  /** Whole calls, the upstream's own time in them. */
  async function latency() {
    progress('latency')
    const rows = [add(`${one.title}, 500/s, p50, ms`, 3), add(`${one.title}, 500/s, p99, ms`, 3)]
    const options = { scratch, rate: 500, seconds: quick ? 1 : 4, warm: quick ? 0.25 : 1 }
    const targets = []
    await each(rows, contenders, async contender => targets.push(await launch(contender, upstream, scratch)))
    for (let round = -1; round < (quick ? 1 : 3); round++) {
      await each(rows, targets, async target => {
        const result = await atRate(target, one, options)
        if (round < 0) return
        rows[0].add(target.contender.name, result.p50)
        rows[1].add(target.contender.name, result.p99)
      })
    }
    await Promise.all(targets.map(target => target.stop(patience)))
  }

  async function queries() {
    progress('admin queries')
    const target = await launch(long, upstream, scratch)
    const ask = admin(target)
    try {
      // The connection, and what the first request of all compiles.
      await ask('GET', '/api/audit?limit=1')
      for (const { title, path, check } of await questions(ask)) {
        const row = add(`${title}, ms`, 1, { single: true })
        try {
          for (let i = 0; i < repeats; i++) {
            const started = performance.now()
            const answer = await ask('GET', path)
            row.add(long.name, performance.now() - started)
            check?.(answer)
          }
          judge(row, long, 50)
        } catch (error) {
          row.fail(long.name, error)
        }
      }
    } finally {
      ask.close()
      await target.stop(patience)
    }
  }

  async function questions(ask) {
    const biggest = `/api/tenants/${tenantName(0)}/records?limit=100`
    const middle = Date.now() - span / 2
    const hour = `from=${middle}&to=${middle + 3_600_000}`
    const common = modelName(0)
    const absent = modelName(models - 1)
    const key = keyName(0, books.keys)
    // A cursor is a place between rows: this one leads into the middle of the list, half of the rows deep.
    const [deep, deepest] = await Promise.all(
      [biggest, '/api/records?limit=100'].map(async list => (await ask('GET', `${list}&to=${middle}`)).next)
    )
    const some = ({ data }) => expect(data.length > 0, 'no rows')
    const none = ({ data, next }) => expect(data.length === 0 && next === null, `${data.length} rows`)
    const hundred = ({ data }) => expect(data.length === 100, `${data.length} rows`)
    const only = (name, value) => answer => {
      some(answer)
      expect(
        answer.data.every(record => record[name] === value),
        `rows of another ${name}`
      )
    }
    const of = `of a tenant with ${thousands(Math.round(rows / 10))} rows`
    return [
      { title: 'tenants, first page', path: '/api/tenants', check: some },
      { title: 'one tenant with its last 200 records', path: `/api/tenants/${tenantName(0)}`, check: recorded },
      { title: `records ${of}`, path: biggest, check: hundred },
      { title: '… of one hour', path: `${biggest}&${hour}`, check: some },
      { title: '… of a common model', path: `${biggest}&model=${common}`, check: only('model', common) },
      { title: '… of a model it never used', path: `${biggest}&model=${absent}`, check: none },
      { title: '… of a key', path: `${biggest}&key=${key}`, check: only('key', key) },
      { title: '… of a key and a common model', path: `${biggest}&key=${key}&model=${common}`, check: some },
      { title: '… of a rare status', path: `${biggest}&status=interrupted`, check: only('status', 'interrupted') },
      { title: '… page in the middle', path: `${biggest}&after=${deep}`, check: hundred },
      { title: 'records of all tenants', path: '/api/records?limit=100', check: hundred },
      { title: '… of a rare status', path: '/api/records?limit=100&status=interrupted', check: some },
      { title: '… of a common model', path: `/api/records?limit=100&model=${common}`, check: only('model', common) },
      { title: '… page in the middle', path: `/api/records?limit=100&after=${deepest}`, check: hundred },
      { title: 'counters', path: '/api/stats', check: counted }
    ]
  }

  function recorded({ records }) {
    expect(records.length === 200, `${records.length} records`)
  }

  /** The balances that books.mjs wrote, and the calls of this bench. */
  function counted({ requests }) {
    expect(requests >= rows && requests < rows + 100_000, `${requests} requests in the books`)
  }
}

/** Whether there is room for the ledger, and for what its indexes are sorted in. */
function room(scratch, rows, notes, title) {
  const { bavail, bsize } = statfsSync(scratch)
  const needed = besides + rows * perRow
  const free = bavail * bsize
  if (free >= needed) return true
  notes.push(
    `${title}: left out, ${scratch} has ${(free / 1e9).toFixed(1)} GB free and needs ${(needed / 1e9).toFixed(1)}.`
  )
  return false
}

/** Says in the note whether the median, and for times all of it, stays below what issue 3 asks for. */
function judge(row, { name }, most, text = '') {
  const values = row.rounds.get(name)
  if (values === undefined) return
  const verdict = Math.max(...values) < most ? 'met' : median(values) < most ? 'met by the median' : 'MISSED'
  row.note(name, `${text}target below ${most.toLocaleString('en-US')}: ${verdict}`)
}

/** Whoever fails is out of these rows. */
async function each(rows, list, work) {
  for (const one of list) {
    const { name } = one.contender ?? one
    if (rows.some(row => row.failures.has(name))) continue
    try {
      await work(one)
    } catch (error) {
      for (const row of rows) row.fail(name, error)
    }
  }
}

/** Asks the admin routes of a target over kept connections; rejects unless the answer has the expected status. */
function admin(target) {
  const agent = new Agent({ keepAlive: true })
  const { origin } = new URL(target.url)
  const ask = (method, path, body, expected = 200) =>
    new Promise((resolve, reject) => {
      const headers = { authorization: `Bearer ${adminToken}`, ...(body ? { 'content-type': 'application/json' } : {}) }
      const call = request(`${origin}${path}`, { method, agent, headers, timeout: 60_000 }, response => {
        let text = ''
        response.setEncoding('utf8').on('data', chunk => {
          text += chunk
        })
        response.on('error', reject)
        response.on('end', () => {
          if (response.statusCode === expected) resolve(JSON.parse(text))
          else reject(new Error(`${method} ${path}: status ${response.statusCode}: ${text.slice(0, 200)}`))
        })
      })
      call.on('timeout', () => call.destroy(new Error(`${method} ${path}: no answer within 60 s`)))
      call.on('error', reject)
      call.end(body && JSON.stringify(body))
    })
  ask.close = () => agent.destroy()
  return ask
}

/** The results of `work(0)` to `work(count - 1)`, so many at a time. */
async function inParallel(count, lanes, work) {
  const results = []
  let next = 0
  await Promise.all(
    Array.from({ length: lanes }, async () => {
      while (next < count) {
        const i = next++
        results[i] = await work(i)
      }
    })
  )
  return results
}

function expect(holds, otherwise) {
  if (!holds) throw new Error(otherwise)
}
