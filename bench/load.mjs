// The load, each kind a process of its own on the core of the load: `node load.mjs KIND JSON`. Prints one line of JSON.
import { readFileSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { Pool } from 'undici'

const kinds = { rate, streams, saturate, spread }
const [kind, options] = process.argv.slice(2)
const job = JSON.parse(options)
const body = readFileSync(job.bodyFile)
const { origin, pathname } = new URL(job.url)
console.log(`RESULT ${JSON.stringify(await kinds[kind](job))}`)
process.exit(0)

/** One call. Resolves with its times; `ok` only when the answer was 200 and exactly as long as it has to be. */
function call(pool, length, onFirstByte, headers = job.headers) {
  return new Promise(resolve => {
    const started = performance.now()
    let status = 0
    let bytes = 0
    let first = 0
    const end = error => {
      const ok = error === undefined && status === 200 && bytes === length
      const fault = error?.message ?? `status ${status}, ${bytes} bytes`
      resolve({ ok, fault, total: performance.now() - started, first: first - started })
    }
    pool.dispatch(
      { method: 'POST', path: pathname, headers, body },
      {
        onRequestStart() {},
        onResponseStart(_controller, statusCode) {
          status = statusCode
        },
        onResponseData(_controller, chunk) {
          if (bytes === 0) {
            first = performance.now()
            onFirstByte?.()
          }
          bytes += chunk.length
        },
        onResponseEnd() {
          end()
        },
        onResponseError(_controller, error) {
          end(error)
        }
      }
    )
  })
}

/**
 * Calls at a fixed rate, whether or not earlier ones were answered: a slow contender meets as many calls as a fast one
 * (no coordinated omission). The first `warm` seconds are not counted.
 */
async function rate({ rate, seconds, warm, length }) {
  const pool = new Pool(origin, { connections: 512 })
  const every = 1_000 / rate
  const skipped = Math.round(warm * rate)
  const planned = skipped + Math.round(seconds * rate)
  const calls = []
  const start = performance.now()
  while (calls.length < planned) {
    const due = Math.min(planned, Math.floor((performance.now() - start) / every) + 1)
    while (calls.length < due) calls.push(call(pool, length))
    await sleep(Math.max(0, start + calls.length * every - performance.now()))
  }
  const late = performance.now() - start - planned * every
  const answers = (await Promise.all(calls)).slice(skipped)
  const failed = answers.filter(answer => !answer.ok)
  const total = percentiles(answers.map(answer => answer.total))
  const first = percentiles(answers.map(answer => answer.first))
  return {
    failed: failed.length,
    fault: failed[0]?.fault,
    late,
    p50: total.p50,
    p99: total.p99,
    first50: first.p50,
    first99: first.p99
  }
}

function percentiles(values) {
  const sorted = values.toSorted((a, b) => a - b)
  return { p50: sorted[Math.floor(sorted.length * 0.5)], p99: sorted[Math.floor(sorted.length * 0.99)] }
}

/** `streams` calls at a time, `repeat` times. Says OPEN on standard output once all of them are open at once. */
async function streams({ streams, repeat, length }) {
  const pool = new Pool(origin, { connections: streams })
  let open = 0
  let failed = 0
  let fault
  await Promise.all(
    Array.from({ length: streams }, async () => {
      for (let i = 0; i < repeat; i++) {
        const answer = await call(pool, length, () => {
          if (++open === streams) console.log('OPEN')
        })
        open--
        if (answer.ok) continue
        failed++
        fault = answer.fault
      }
    })
  )
  return { failed, fault }
}

/** `total` calls, `connections` at a time, with the keys of `keysFile` in turn. */
async function spread({ keysFile, total, connections, length }) {
  const keys = JSON.parse(readFileSync(keysFile, 'utf8'))
  const pool = new Pool(origin, { connections })
  let begun = 0
  let failed = 0
  let fault
  await Promise.all(
    Array.from({ length: connections }, async () => {
      while (begun < total) {
        const authorization = `Bearer ${keys[begun++ % keys.length]}`
        const answer = await call(pool, length, undefined, { ...job.headers, authorization })
        if (answer.ok) continue
        failed++
        fault = answer.fault
      }
    })
  )
  return { failed, fault }
}

/** As many calls as the contender takes, where there is no wrk. */
async function saturate({ url, headers, connections, seconds }) {
  const { default: autocannon } = await import('autocannon')
  const result = await autocannon({ url, method: 'POST', headers, body, connections, duration: seconds })
  return {
    requests: result.requests.total,
    bytes: result.throughput.total,
    microseconds: result.duration * 1_000_000,
    status: result.non2xx,
    broken: result.errors,
    timeouts: result.timeouts
  }
}
