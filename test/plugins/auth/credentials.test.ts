import { connect } from 'node:net'
import { text } from 'node:stream/consumers'
import t from 'tap'
import { build } from '../../helper.ts'
import { fakeStore, refusedKey, start } from './kit.ts'

const tenants = { acme: { keys: ['gw_acme-key', 'odd,key'] }, globex: { keys: ['gw_globex-key'] } }
const twofold = { ...refusedKey, message: 'This request carries two different credentials.' }

t.test('a header that was sent twice counts as one credential only if both are the same', async t => {
  const { authenticate } = await start(t, { tenants: { tenants } })
  for (const name of ['x-api-key', 'api-key']) {
    t.throws(() => authenticate({ [name]: 'gw_acme-key, gw_globex-key' }), twofold)
    t.throws(() => authenticate({ [name]: ['gw_acme-key', 'gw_globex-key'] }), twofold)
    t.throws(() => authenticate({ [name]: 'sk-not-ours, gw_globex-key' }), twofold)
    t.match(authenticate({ [name]: 'gw_acme-key, gw_acme-key' }), { tenant: 'acme' })
    t.match(authenticate({ [name]: ['gw_acme-key', 'gw_acme-key'] }), { tenant: 'acme' })
  }
  t.throws(() => authenticate({ authorization: 'Bearer gw_acme-key, Bearer gw_globex-key' }), twofold)
  t.throws(() => authenticate({ authorization: ['Bearer gw_acme-key', 'Bearer gw_globex-key'] }), twofold)
  t.match(authenticate({ authorization: 'Bearer gw_acme-key, bearer gw_acme-key' }), { tenant: 'acme' })
  t.match(authenticate({ 'x-api-key': 'odd,key' }), { tenant: 'acme' }, 'a comma without a space is part of a key')
})

t.test('two different ones are refused where access is open, too', async t => {
  const { authenticate } = await start(t, { auth: { anonymousTenant: 'public' } })
  t.throws(() => authenticate({ 'x-api-key': 'one, two' }), twofold)
  t.match(authenticate({ authorization: 'Digest username="a", realm="b"' }), { kind: 'anonymous' })
})

const hostile: Array<[string, string]> = [
  ['10 kB', `gw_${'x'.repeat(10_000)}`],
  ['10 kB of underscores', `gw_${'_'.repeat(10_000)}`],
  ['the right length', `gw_${'a'.repeat(12)}_${'A'.repeat(55)}`],
  ['NUL', 'gw_acme-key\0'],
  ['NUL in the middle', 'gw_acme\0-key'],
  ['unicode', 'gw_ключ'],
  ['half a character', 'gw_\ud800'],
  ['full width', 'gw_ａｃｍｅ-key'],
  ['nothing after the prefix', 'gw_'],
  ['SQL', "gw_' OR 1=1 --"],
  ['a path', 'gw_../../etc/passwd'],
  ['a line end', 'gw_acme-key\r\nx-api-key: b'],
  ['an inherited name', 'gw___proto__']
]

t.test('hostile keys are refused without a read', async t => {
  const store = fakeStore()
  const { authenticate } = await start(t, { store, auth: { anonymousTenant: 'public' } })
  const before = store.asked.length
  for (const [what, secret] of hostile) {
    for (const name of ['x-api-key', 'api-key', 'authorization']) {
      t.throws(() => authenticate({ [name]: secret }), refusedKey, `${what} in ${name}`)
    }
  }
  t.equal(store.asked.length, before)
})

t.test('an error never repeats what was sent', async t => {
  const { authenticate } = await start(t, { store: fakeStore(), auth: { anonymousTenant: false } })
  for (const secret of ['gw_secret-part', 'sk-secret-part', 'secret-part.secret-part.secret-part']) {
    try {
      authenticate({ authorization: `Bearer ${secret}` })
      t.fail()
    } catch (error) {
      t.notMatch(`${error}${JSON.stringify(error)}`, 'secret-part')
    }
  }
})

t.test('raw requests with several credentials are refused', async t => {
  const app = await build(t, { tenants, providers: { echo: { type: 'echo' } } })
  const { port } = new URL(await app.listen({ host: '127.0.0.1', port: 0 }))
  const send = async (...headers: string[]) => {
    const socket = connect(Number(port), '127.0.0.1')
    socket.end(['GET /v1/models HTTP/1.1', 'Host: localhost', 'Connection: close', ...headers, '', ''].join('\r\n'))
    return Number((await text(socket)).split(' ')[1])
  }
  t.equal(await send('Authorization: Bearer gw_acme-key'), 200)
  t.equal(await send('Authorization: Bearer gw_acme-key', 'Authorization: Bearer gw_globex-key'), 401)
  t.equal(await send('x-api-key: gw_acme-key', 'x-api-key: gw_globex-key'), 401)
  t.equal(await send('x-api-key: gw_acme-key', 'X-API-Key: gw_acme-key'), 200)
  t.equal(await send('x-api-key: gw_acme-key', 'api-key: gw_globex-key'), 401)
  t.equal(await send('x-api-key: gw_acme-key\0'), 400)
  t.equal(await send(`x-api-key: ${'k'.repeat(10_000)}`), 401)
})
