import t from 'tap'
import { consumed } from '../plugins/events/group.ts'
import { everybodyGetsEverything } from '../plugins/events/load.ts'

t.test('a consumer group reads every event of 10,000 calls once, in order', t => consumed(t, 10_000))

t.test('1,000 WebSockets get everything, and one that never reads is let go', t =>
  everybodyGetsEverything(t, 1_000, 100)
)
