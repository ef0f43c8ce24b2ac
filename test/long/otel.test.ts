import { existsSync } from 'node:fs'
import t from 'tap'
import type { Conduct } from '../otlp/receiver.ts'
import { type Fared, fare } from './otel.ts'

// The short form, in which only answers are counted: test/plugins/otel/collector.test.ts.

const calls = 20_000
const conducts: Array<Conduct | 'absent'> = ['take', 'absent', { slow: 3_000 }, 'refuse', 'reject', 'hang', 'break']
const skip = existsSync('/proc/self/status') ? false : 'memory is read from /proc'

for (const protocol of ['grpc', 'http/protobuf'] as const) {
  t.test(`callers do not notice what a collector does, over ${protocol}`, { skip }, async t => {
    const none = await fare(t, { protocol, conduct: null, calls })
    t.comment(line('no collector', none))
    let healthy = none
    for (const conduct of conducts) {
      const name = typeof conduct === 'object' ? 'slow' : conduct
      const fared = await fare(t, { protocol, conduct, calls })
      t.comment(line(name, fared))
      if (conduct === 'take') healthy = fared
      t.equal(fared.failed, 0, `${name}: every call is answered`)
      t.ok(fared.p99 < healthy.p99 * 1.5 + 5, `${name}: p99 ${fared.p99} ms, beside ${healthy.p99} ms`)
      t.ok(fared.grown < 64, `${name}: the second half of the calls took ${fared.grown} MB`)
      t.ok(fared.end < 10_000, `${name}: it ended after ${fared.end} ms`)
    }
  })
}

function line(name: string, { p50, p99, memory, grown, end }: Fared): string {
  const ms = (value: number) => `${value.toFixed(2)} ms`
  return `${name}: p50 ${ms(p50)}, p99 ${ms(p99)}, ${memory.toFixed()} MB ${grown < 0 ? '' : '+'}${grown.toFixed()}, end ${ms(end)}`
}
