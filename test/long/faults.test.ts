import t from 'tap'
import { faulty } from './faults.ts'

t.test('of 10,000 calls with faults 99.9 % are answered, and charged once', t => faulty(t, 10_000))
