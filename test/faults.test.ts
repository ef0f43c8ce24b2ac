import t from 'tap'
import { faulty } from './long/faults.ts'

// A longer run of the same: test/long/faults.test.ts.

t.test('of 1,000 calls with faults 99.9 % are answered, and charged once', t => faulty(t, 1_000))
