import t, { type Test } from 'tap'
import { build, hello, towards } from '../helper.ts'
import { chunks, sse, startUpstream } from '../upstream.ts'

async function injected(t: Test) {
  const upstream = await startUpstream()
  t.teardown(() => upstream.close())
  const target = (model: string) => ({ targets: [{ provider: 'up', model }] })
  const app = await build(t, {
    ...towards(upstream),
    plugins: { tenants: false, budgets: false },
    models: {
      plain: target('m-plain'),
      'vendor/model': target('m-slash'),
      'vendor/model:free': target('m-colon'),
      'a/b/c': target('m-deep'),
      'per%cent': target('m-percent'),
      other: target('m-other')
    }
  })
  const post = (url: string, payload: object = { messages: hello.messages }) =>
    app.inject({ method: 'POST', url, payload })
  return { upstream, app, post }
}

const paths: Array<[string, string]> = [
  ['/proxy/plain', 'm-plain'],
  ['/proxy/vendor/model', 'm-slash'],
  ['/proxy/vendor%2Fmodel', 'm-slash'],
  ['/proxy/vendor%2fmodel', 'm-slash'],
  ['/proxy/vendor/model:free', 'm-colon'],
  ['/proxy/vendor%2Fmodel%3Afree', 'm-colon'],
  ['/proxy/a/b/c', 'm-deep'],
  ['/proxy/a%2Fb/c', 'm-deep'],
  ['/proxy/per%25cent', 'm-percent'],
  ['/proxy/plain?api-version=2026-01-01', 'm-plain']
]
for (const [url, model] of paths) {
  t.test(`POST ${url} asks ${model}`, async t => {
    const { upstream, post } = await injected(t)
    const answer = await post(url)
    t.equal(answer.statusCode, 200)
    t.equal(answer.headers['x-gateway-model'], model)
    t.same(upstream.requests[0]?.json, { messages: hello.messages, model })
  })
}

t.test('the model in the path comes before the one in the body', async t => {
  const { upstream, post } = await injected(t)
  t.equal((await post('/proxy/plain', { ...hello, model: 'other' })).statusCode, 200)
  t.equal((await post('/proxy/plain', { ...hello, model: null })).statusCode, 200)
  t.equal(upstream.requests[0]?.json.model, 'm-plain')
  t.equal(upstream.requests[1]?.json.model, 'm-plain')
})

t.test('streams go the same way', async t => {
  const { upstream, post } = await injected(t)
  upstream.script(sse(chunks('x')))
  const answer = await post('/proxy/vendor%2Fmodel', { messages: hello.messages, stream: true })
  t.equal(answer.headers['content-type'], 'text/event-stream; charset=utf-8')
  t.ok(answer.body.endsWith('data: [DONE]\n\n'))
})

t.test('schema faults are the same', async t => {
  const { post } = await injected(t)
  const answer = await post('/proxy/plain', { messages: [{ role: 'robot', content: '' }] })
  t.equal(answer.statusCode, 400)
  t.equal(answer.json().error.param, 'messages[0].role')
})

for (const url of [
  '/proxy/nope',
  '/proxy/',
  '/proxy/vendor',
  '/proxy/vendor%252Fmodel',
  '/proxy/plain/',
  '/proxy//plain'
]) {
  t.test(`POST ${url} names no model: 404`, async t => {
    const { upstream, post } = await injected(t)
    const answer = await post(url)
    t.equal(answer.statusCode, 404)
    t.match(answer.json(), { error: { type: 'invalid_request_error', code: 'model_not_found', param: 'model' } })
    t.equal(upstream.requests.length, 0)
  })
}

t.test('POST /proxy names nothing: 404 resource_not_found', async t => {
  const { post } = await injected(t)
  const answer = await post('/proxy')
  t.equal(answer.statusCode, 404)
  t.equal(answer.json().error.code, 'resource_not_found')
})

t.test('a name that is no text in UTF-8 is a 400 in our form', async t => {
  const { post } = await injected(t)
  for (const url of ['/proxy/%zz', '/proxy/%ff', '/proxy/a%']) {
    const answer = await post(url)
    t.equal(answer.statusCode, 400)
    t.equal(answer.headers['content-type'], 'application/json; charset=utf-8')
    t.match(answer.json(), { error: { type: 'invalid_request_error', param: null, code: null, message: String } })
  }
})

t.test('a name longer than any is a 4xx in our form', async t => {
  const { post } = await injected(t)
  const answer = await post(`/proxy/${'x'.repeat(3_000)}`)
  t.ok([404, 414].includes(answer.statusCode), String(answer.statusCode))
  t.same(Object.keys(answer.json().error).sort(), ['code', 'message', 'param', 'type'])
})
