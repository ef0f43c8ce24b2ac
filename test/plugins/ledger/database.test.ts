import t, { type Test } from 'tap'
import { startPostgres } from '../../services/index.ts'
import { accountTests } from './accounts.ts'
import { type Kind, postgres, sqlite } from './books.ts'
import { foldTests } from './fold.ts'
import { recoveryTests } from './recovery.ts'

function conformance(kind: Kind) {
  return async (t: Test) => {
    t.test('fold', async t => foldTests(t, kind))
    t.test('accounts', async t => accountTests(t, kind))
    t.test('recovery', async t => recoveryTests(t, kind))
  }
}

t.test('on SQLite', conformance(sqlite))

t.test('on PostgreSQL', async t => {
  const server = await startPostgres(t)
  if (server !== null) await conformance(postgres(server.database))(t)
})
