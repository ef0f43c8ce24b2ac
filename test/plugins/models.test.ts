import t from 'tap'
import { build, stack, towards } from '../helper.ts'
import { startUpstream } from '../upstream.ts'

const alias = (model: string) => ({ targets: [{ provider: 'up', model }] })

t.test('GET /v1/models lists the aliases, not what is behind them', async t => {
  const app = await build(
    t,
    towards({ url: 'http://127.0.0.1:1' }, { models: { one: alias('a'), 'org/two': alias('b') } })
  )
  const before = Math.floor(Date.now() / 1000) - 60
  const response = await app.inject('/v1/models')
  t.equal(response.statusCode, 200)
  const { object, data } = response.json()
  t.equal(object, 'list')
  t.match(data, [
    { id: 'one', object: 'model', owned_by: 'fastify-model-gateway' },
    { id: 'org/two', object: 'model', owned_by: 'fastify-model-gateway' }
  ])
  t.equal(data.length, 2)
  t.ok(data.every((model: { created: number }) => Number.isInteger(model.created) && model.created >= before))
})

t.test('GET /models is the same list', async t => {
  const app = await build(t, towards({ url: 'http://127.0.0.1:1' }))
  t.strictSame((await app.inject('/models')).json(), (await app.inject('/v1/models')).json())
})

t.test('GET /v1/models without aliases lists what the providers have, as provider/model', async t => {
  const app = await build(t)
  t.match((await app.inject('/v1/models')).json(), {
    data: [{ id: 'echo/echo', object: 'model', created: 0, owned_by: 'echo' }]
  })
})

t.test('GET /v1/models/:id is one of the list', async t => {
  const app = await build(t, towards({ url: 'http://127.0.0.1:1' }))
  const response = await app.inject('/v1/models/test')
  t.equal(response.statusCode, 200)
  t.match(response.json(), { id: 'test', object: 'model', owned_by: 'fastify-model-gateway' })
})

for (const id of ['org/two', 'org%2Ftwo']) {
  t.test(`GET /v1/models/${id} finds a name with a slash`, async t => {
    const app = await build(t, towards({ url: 'http://127.0.0.1:1' }, { models: { 'org/two': alias('b') } }))
    const response = await app.inject(`/v1/models/${id}`)
    t.equal(response.statusCode, 200, response.body)
    t.equal(response.json().id, 'org/two')
  })
}

t.test('GET /v1/models/:id without aliases knows every model of a provider, listed or not', async t => {
  const app = await build(t)
  t.match((await app.inject('/v1/models/echo/anything')).json(), { id: 'echo/anything', owned_by: 'echo' })
})

for (const id of ['nowhere', 'up/upstream-model', '__proto__', 'constructor']) {
  t.test(`GET /v1/models/${id} is 404 where there is no such alias`, async t => {
    const app = await build(t, towards({ url: 'http://127.0.0.1:1' }))
    const response = await app.inject(`/v1/models/${id}`)
    t.equal(response.statusCode, 404)
    t.match(response.json(), {
      error: { type: 'invalid_request_error', code: 'model_not_found', param: 'model', message: String }
    })
    t.equal(response.headers['x-should-retry'], 'false')
  })
}

for (const url of ['/v1/models', '/v1/models/test', '/models']) {
  t.test(`GET ${url} needs a key where calls do`, async t => {
    const app = await build(
      t,
      towards({ url: 'http://127.0.0.1:1' }, { tenants: { acme: { keys: ['gw_acme-secret'] } } })
    )
    const refused = await app.inject(url)
    t.equal(refused.statusCode, 401)
    t.match(refused.json(), { error: { type: 'invalid_request_error', code: 'invalid_api_key' } })
    const headers = { authorization: 'Bearer gw_acme-secret' }
    t.equal((await app.inject({ url, headers })).statusCode, 200)
  })
}

t.test('the list asks no provider where there are aliases', async t => {
  const upstream = await startUpstream()
  t.teardown(() => upstream.close())
  const app = await build(t, towards(upstream))
  await app.inject('/v1/models')
  t.equal(upstream.requests.length, 0)
})

t.test('the SDK lists and retrieves models', async t => {
  const { client } = await stack(t)
  const ids = []
  for await (const model of client.models.list()) ids.push(model.id)
  t.strictSame(ids, ['test'])
  t.equal((await client.models.retrieve('test')).id, 'test')
})
