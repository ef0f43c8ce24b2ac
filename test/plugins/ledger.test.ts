import t from 'tap'
import { kills } from './ledger/kills.ts'
import { pluginTests } from './ledger/plugin.ts'

// The worker's side, on both databases: ledger/database.test.ts. A hundred kills: test/long.

pluginTests(t)

t.test('a process that is killed loses no call that its caller saw end', async t => kills(t, 10))
