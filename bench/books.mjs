// Fills the database of a gateway that is stopped: `node books.mjs FILE JSON`, with numbers of tenants, keys and rows.
// Prints one line of JSON. The schema is whatever the gateway made of the file; what stands here are bodies and texts.
import { createHash } from 'node:crypto'
import { statSync } from 'node:fs'
import { DatabaseSync } from 'node:sqlite'
import { endOf, periodKey } from '../schemas/periods.ts'
import { tenantDefaults } from '../schemas/tenants.ts'
import { keyName, modelName, models, span, tenantName } from './names.mjs'

/** Rows of a transaction, and of a statement. */
const batch = 200_000
const together = 20
const [file, json] = process.argv.slice(2)
const { tenants, keys, rows } = JSON.parse(json)
const started = performance.now()
const random = generator(20_261_121)
const names = {
  tenants: Array.from({ length: tenants }, (_, i) => tenantName(i)),
  keys: Array.from({ length: keys }, (_, i) => keyName(i, keys)),
  models: Array.from({ length: models }, (_, i) => modelName(i))
}

const db = new DatabaseSync(file)
db.exec('PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF')
db.exec('PRAGMA cache_size = -500000; PRAGMA threads = 2')
withoutIndexes(['tenants', 'keys', 'inferences', 'attempts'], () => {
  fillTenants()
  fillKeys()
  if (rows > 0) fillLedger()
})
db.exec('PRAGMA optimize')
db.close()
console.log(`RESULT ${JSON.stringify({ seconds: (performance.now() - started) / 1_000, bytes: statSync(file).size })}`)

/** An index that is made at the end is sorted once; one that is kept up to date is read and written all over. */
function withoutIndexes(tables, work) {
  const indexes = db
    .prepare("SELECT name, tbl_name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL")
    .all()
    .filter(index => tables.includes(index.tbl_name))
  for (const { name } of indexes) db.exec(`DROP INDEX "${name}"`)
  work()
  for (const { sql } of indexes) db.exec(sql)
}

/** `value(i)` for each row, an object by column. @throws when the table has a column that it says nothing of */
function insert(table, count, value) {
  const columns = db
    .prepare('SELECT name FROM pragma_table_info(?)')
    .all(table)
    .map(({ name }) => name)
  const known = Object.keys(value(0))
  const different = [...columns.filter(name => !known.includes(name)), ...known.filter(name => !columns.includes(name))]
  if (different.length > 0) throw new Error(`bench/books.mjs and the table ${table} differ in ${different.join(', ')}`)
  const columnList = known.map(name => `"${name}"`).join(', ')
  const tuple = `(${known.map(() => '?').join(', ')})`
  const statement = n => db.prepare(`INSERT INTO ${table} (${columnList}) VALUES ${Array(n).fill(tuple).join(', ')}`)
  const many = statement(together)
  const one = statement(1)
  for (let first = 0; first < count; first += batch) {
    const last = Math.min(count, first + batch)
    let i = first
    db.exec('BEGIN')
    while (i + together <= last) {
      const values = []
      for (const end = i + together; i < end; i++) values.push(...Object.values(value(i)))
      many.run(...values)
    }
    while (i < last) one.run(...Object.values(value(i++)))
    db.exec('COMMIT')
  }
}

function fillTenants() {
  const budget = { limit: 1_000_000_000_000_000, period: 'month' }
  const metadata = { plan: 'team', contact: 'somebody@example.com' }
  const body = JSON.stringify({ ...tenantDefaults, budget, metadata })
  insert('tenants', tenants, i => ({ id: names.tenants[i], body, created_at: Date.now() }))
}

function fillKeys() {
  const createdAt = Date.now()
  insert('keys', keys, i => ({
    id: names.keys[i],
    tenant: names.tenants[i % tenants],
    body: JSON.stringify({
      name: `service ${i}`,
      scopes: ['chat'],
      hash: createHash('sha256').update(String(i)).digest('base64url'),
      budget: null,
      requestsPerMinute: null,
      tokensPerMinute: null,
      concurrency: null,
      expiresAt: null,
      createdAt,
      revokedAt: null,
      rotatedTo: null,
      account: null
    }),
    last_used_at: null
  }))
}

/** Calls of the last `span` milliseconds, and the balances that they add up to. */
function fillLedger() {
  const end = Date.now() - 60_000
  const balances = new Map()
  const dayOf = remembered('day')
  const monthOf = remembered('month')
  // The attempts are made by the same numbers again, after the inferences: two tables in turn would lie mixed in the file.
  const numbers = random.state()
  insert('inferences', rows, i => {
    if (i === 0) {
      random.restore(numbers)
      balances.clear()
    }
    const made = call(i, end)
    const { time, tenant, key, status } = made
    const day = dayOf(time)
    const month = monthOf(time)
    charge(balances, 'gateway', 'total', made)
    charge(balances, 'gateway', day, made)
    charge(balances, `tenant:${tenant}`, 'total', made)
    charge(balances, `tenant:${tenant}`, month, made)
    charge(balances, `key:${key}`, 'total', made)
    return {
      seq: i + 1,
      id: `req_5Vt0aQ9xLm2Z${i.toString(36).padStart(6, '0')}`,
      time,
      tenant,
      key,
      model: made.model,
      stream: i & 1,
      status,
      http_status: status === 'settled' ? 200 : status === 'failed' ? 502 : 499,
      error_code: status === 'failed' ? 'upstream_error' : null,
      duration: made.duration,
      first_token: made.first,
      cost: made.cost,
      ...usage(made),
      trace_id: `4bf92f3577b34da6a3ce929d${String(made.trace).padStart(8, '0')}`,
      user: `user-${made.input}`,
      tags: '{"feature":"search","environment":"production"}',
      charges:
        `[["gateway","total"],["gateway","${day}"],["tenant:${tenant}","total"],` +
        `["tenant:${tenant}","${month}"],["key:${key}","total"]]`
    }
  })
  insert('attempts', rows, i => {
    if (i === 0) random.restore(numbers)
    const made = call(i, end)
    return {
      inference: i + 1,
      number: 1,
      provider: 'up',
      model: made.model,
      status: made.status,
      error_code: made.status === 'failed' ? 'upstream_error' : null,
      duration: made.duration,
      first_token: made.first,
      cost: made.cost,
      price_version: 'config',
      ...usage(made)
    }
  })
  const sums = [...balances.values()]
  insert('balances', sums.length, i => sums[i])
}

/** Few tenants and models make most of the calls. The biggest tenant never asks for the last model. */
function call(i, end) {
  const one = random.next()
  const two = random.next()
  const three = random.next()
  const rare = i % 200_000 === 0
  const tenant = rare ? 0 : Math.floor(tenants ** one) - 1
  const model = Math.floor((models + 1) ** two) - 1
  const input = 200 + Math.floor(three * 4_000)
  const output = 20 + Math.floor(two * three * 900)
  const status = rare ? 'interrupted' : i % 100 === 0 ? 'failed' : 'settled'
  return {
    time: Math.floor(end - span + (span / rows) * i),
    tenant: names.tenants[tenant],
    key: names.keys[tenant + tenants * Math.floor(three * Math.floor(keys / tenants))],
    model: names.models[tenant === 0 && model === models - 1 ? 0 : model],
    status,
    duration: Math.round(three * 9_000_000) / 1_000,
    first: Math.round(three * 900_000) / 1_000,
    input,
    output,
    cost: status === 'failed' ? 0 : input * 3_000 + output * 15_000,
    trace: Math.floor(one * 100_000_000)
  }
}

function usage({ input, output }) {
  return {
    usage_source: 'reported',
    input,
    cache_read: 0,
    cache_write_5m: 0,
    cache_write_1h: 0,
    audio_input: 0,
    output,
    reasoning: 0,
    audio_output: 0
  }
}

function charge(balances, scope, period, { cost, input, output }) {
  const name = `${scope} ${period}`
  let sum = balances.get(name)
  if (sum === undefined) {
    sum = { scope, period, spent: 0, requests: 0, tokens_in: 0, tokens_out: 0, version: 1 }
    balances.set(name, sum)
  }
  sum.spent += cost
  sum.requests++
  sum.tokens_in += input
  sum.tokens_out += output
}

/** `periodKey` for times that mostly lie in the same period as the one before. */
function remembered(period) {
  let key = ''
  let ends = 0
  return time => {
    if (time >= ends) {
      key = periodKey(period, time)
      ends = endOf(period, time)
    }
    return key
  }
}

/** Numbers in [0, 1), the same in every run (mulberry32). */
function generator(seed) {
  let state = seed
  return {
    next() {
      state = (state + 0x6d2b79f5) | 0
      let t = Math.imul(state ^ (state >>> 15), 1 | state)
      t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t
      return ((t ^ (t >>> 14)) >>> 0) / 4_294_967_296
    },
    state: () => state,
    restore(kept) {
      state = kept
    }
  }
}
