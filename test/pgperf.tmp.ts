import t from 'tap'
import { startPostgres } from './services/index.ts'
import { backOf } from './conformance/store-rows.ts'
import { openPostgres } from '../plugins/store/postgres.ts'
import { migrate } from '../plugins/store/migrate.ts'
import { records } from '../plugins/store/records.ts'
t.setTimeout(0)
const p = (await startPostgres(t))!
const url = await p.database()
const d = await openPostgres({ url, shared: false, lockWait: 0 }); await migrate(d)
const N = 400000
const b = await backOf(url)
console.time('fill')
await b.run(`INSERT INTO inferences (seq,id,time,tenant,key,model,stream,status,cost,usage_source,input,cache_read,cache_write_5m,cache_write_1h,audio_input,output,reasoning,audio_output,charges)
 SELECT i,'req_'||i,1700000000000+i,CASE WHEN i%2=1 THEN 'big' ELSE 't'||(i%1000) END,CASE WHEN i%3>0 THEN 'bigkey' ELSE NULL END,CASE WHEN i%100000=0 THEN 'rare' ELSE 'm'||(i%7) END,0,CASE WHEN i%50=0 THEN 'failed' ELSE 'settled' END,5,'reported',1,0,0,0,0,1,0,0,'[]' FROM generate_series(1,${N}) i`)
console.timeEnd('fill')
for (const analyze of [true, false]) {
  if (analyze) await b.run('ANALYZE')
  else { await b.run("DELETE FROM pg_statistic WHERE starelid = 'inferences'::regclass") }
  const worst: any[] = []
  for (let round = 0; round < 2; round++)
  for (const tenant of [undefined, 'big', 't2', 'none']) for (const key of [undefined, 'bigkey', 'nokey']) for (const model of [undefined, 'm1', 'rare', 'nomodel']) for (const status of [undefined, 'settled', 'failed'] as const) for (const range of [{}, { from: 1700000000000 + N / 2 }, { to: 1700000000000 + N / 3 }]) {
    const t0 = performance.now(); const r = await records(d, { tenant, key, model, status, ...range } as any, { limit: 50 }); const ms = performance.now() - t0
    worst.push([+ms.toFixed(1), r.rows.length, r.next, JSON.stringify({ tenant, key, model, status, ...range })])
  }
  worst.sort((a, b) => b[0] - a[0]); console.log('analyzed', analyze, worst.length, 'median', worst[worst.length >> 1][0]); for (const w of worst.slice(0, 8)) console.log(...w)
}
await b.close(); await d.close()
