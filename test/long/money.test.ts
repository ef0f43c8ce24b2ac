import t from 'tap'
import { kills } from './kills.ts'
import { contended, mixed, scratch } from './money.ts'
import { deadProcess, postgresAway, redisAway, threeProcesses } from './outages.ts'

t.test('of 100,000 mixed calls the ledger is what the provider computed, to the nano-USD', t => mixed(t, 100_000))

t.test('10,000 calls at once spend no nano-USD more than their budget', async t =>
  contended(t, 10_000, `sqlite:${await scratch(t)}/gateway.db`)
)

t.test('after each of 100 kills the books are what clients have received', t => kills(t, 100))

t.test('PostgreSQL may be away for ten seconds', t => postgresAway(t, 10_000))

t.test('Redis may be stopped, silent and emptied', t => redisAway(t, 5_000))

t.test('three processes spend no more than one budget', t => threeProcesses(t, 3_000))

t.test('the calls of a process that never returns are closed by the others', t => deadProcess(t))
