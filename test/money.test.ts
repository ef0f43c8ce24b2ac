import t from 'tap'
import { kills } from './long/kills.ts'
import { contended, mixed, scratch } from './long/money.ts'
import { deadProcess, postgresAway, redisAway, threeProcesses } from './long/outages.ts'

// Longer runs of the same: test/long/money.test.ts.

t.test('of 3,000 mixed calls the ledger is what the provider computed, to the nano-USD', t => mixed(t, 3_000))

t.test('1,000 calls at once spend no nano-USD more than their budget', async t => {
  await t.test('in memory', t => contended(t, 1_000, false))
  await t.test('with a store', async t => contended(t, 1_000, `sqlite:${await scratch(t)}/gateway.db`))
})

t.test('after each of 5 kills the books are what clients have received', t => kills(t, 5))

t.test('PostgreSQL may be away', t => postgresAway(t, 1_500))

t.test('Redis may be stopped, silent and emptied', t => redisAway(t, 1_000))

t.test('three processes spend no more than one budget', t => threeProcesses(t, 1_000))

t.test('the calls of a process that never returns are closed by the others', t => deadProcess(t))
