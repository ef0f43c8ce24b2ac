// What the ledger costs the event loop for each call: `node bench/ledger.mjs`. Two kernels in one process, one without
// books and one with the ledger on SQLite; rounds alternate, CPU time of the main thread only, medians.
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import ledger from '../plugins/ledger/index.ts'
import store from '../plugins/store/index.ts'
import { ignore, kernel, listen, round } from './kernel.mjs'
import { median } from './table.mjs'

const rounds = Number(process.argv[2] ?? 15)
const calls = 6_000
const directory = mkdtempSync(join(tmpdir(), 'gateway-bench-ledger-'))

async function make(withLedger) {
  const app = await kernel()
  if (withLedger) {
    await app.register(store, { url: `sqlite:${directory}/gateway.db` })
    const settings = {
      durability: 'process',
      onClientGone: 'abort',
      retention: 86_400_000,
      shared: false,
      lease: 10_000
    }
    await app.register(ledger, { ...settings, directory: join(directory, 'journal') })
  } else {
    // Who keeps no books reads no usage either: that is not the ledger's cost.
    app.gateway.accountWith({ open: ignore })
    listen(app)
  }
  await app.ready()
  return app
}

const bare = await make(false)
const kept = await make(true)
for (let warm = 0; warm < 4; warm++) {
  await round(bare, calls)
  await round(kept, calls)
}
const differences = []
const base = []
for (let index = 0; index < rounds; index++) {
  const without = await round(bare, calls)
  const withBooks = await round(kept, calls)
  base.push(without)
  differences.push(withBooks - without)
}
const started = performance.now()
await kept.gateway.store.ledger.folded()
const folded = performance.now() - started
const { differences: wrong, rows } = await kept.gateway.store.ledger.verify()
await Promise.all([bare.close(), kept.close()])
rmSync(directory, { recursive: true, force: true })
if (wrong.length > 0 || rows !== (rounds + 4) * calls) throw new Error(`the books are wrong: ${rows} rows`)
console.log(`kernel without books ${median(base).toFixed(2)} µs a call`)
console.log(`the ledger adds      ${median(differences).toFixed(2)} µs a call of the event loop (target: under 3)`)
console.log(`${rows} rows; the rest of the journal was folded in ${folded.toFixed(0)} ms`)
