import t from 'tap'
import { isolation, manyStreams, slowReader } from './long/load.ts'

// Longer runs of the same: test/long/load.test.ts.

const MB = 1024 * 1024

t.test('a slow reader of a 200 MB stream keeps the gateway under 150 MB above idle', t =>
  slowReader(t, 200 * MB, 5 * MB)
)

t.test('1,000 concurrent streams complete and leave nothing in memory', t => manyStreams(t, 1_000))

t.test('streams that stand still keep nobody waiting', t => isolation(t, 10, 100))
