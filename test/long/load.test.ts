import t from 'tap'
import { isolation, manyStreams, slowReader } from './load.ts'

const MB = 1024 * 1024

t.test('a slow reader of a 2 GB stream keeps the gateway under 150 MB above idle', t => slowReader(t, 2_048 * MB, MB))

t.test('a reader in great gulps does, too', t => slowReader(t, 2_048 * MB, 50 * MB))

t.test('ten times 1,000 concurrent streams complete and leave nothing in memory', t => manyStreams(t, 1_000, 10))

t.test('streams that stand still keep nobody waiting', t => isolation(t, 100, 1_000))
