import { once } from 'node:events'
import { connect } from 'node:net'
import { Writable } from 'node:stream'
import { mock } from 'node:test'
import Fastify from 'fastify'
import t, { type Test } from 'tap'
import { request } from 'undici'
import modelGateway, { type ModelGatewayOptions, serverOptions } from '../../app.ts'
import gateway from '../../plugins/gateway/index.ts'
import http from '../../plugins/http/index.ts'
import routing from '../../plugins/routing/index.ts'
import { InvalidApiKey } from '../../schemas/errors.ts'
import { build, hello, stack, towards } from '../helper.ts'
import { bytes, chunks, completion, failure, json, type Reply, sse, startUpstream } from '../upstream.ts'

const path = '/v1/chat/completions'
const MiB = 1024 * 1024

/** Sends bytes as they are and collects what comes back until the server closes. */
async function raw(url: string, head: string, body?: (write: (bytes: Buffer) => Promise<boolean>) => Promise<void>) {
  const { port, hostname } = new URL(url)
  const socket = connect(Number(port), hostname)
  let text = ''
  let open = true
  socket.on('data', read => (text += read))
  socket.on('error', () => {})
  const closed = new Promise<void>(resolve =>
    socket.once('close', () => {
      open = false
      resolve()
    })
  )
  socket.write(head)
  /** False once the server has answered or closed: a client would stop here. */
  const write = (bytes: Buffer) =>
    new Promise<boolean>(resolve => socket.write(bytes, error => resolve(!error && open && text === '')))
  await body?.(write)
  await closed
  const [first = '', rest = ''] = text.split('\r\n\r\n')
  const [line = '', ...fields] = first.split('\r\n')
  const headers = Object.fromEntries(
    fields.map(field => [field.slice(0, field.indexOf(':')).toLowerCase(), field.slice(field.indexOf(':') + 2)])
  )
  return { status: Number(line.split(' ')[1]), headers, body: rest }
}

function post(length: number | null, extra = ''): string {
  const framing = length === null ? 'transfer-encoding: chunked' : `content-length: ${length}`
  return `POST ${path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n${framing}\r\n${extra}\r\n`
}

t.test('whoever watches sees every request of ours first, and no other', async t => {
  const app = Fastify()
  t.teardown(() => app.close())
  const seen: string[] = []
  await app.register(async scope => {
    await scope.register(gateway)
    await scope.register(routing, { models: {} })
    await scope.register(http)
    scope.gateway.http.watch(({ method, url }, reply) => seen.push(`${method} ${url} ${reply.sent}`))
    scope.gateway.decorate('authenticate', () => {
      throw new InvalidApiKey('No.')
    })
    scope.register(async inner => {
      scope.gateway.http.prepare(inner, { open: false })
      inner.get('/closed', async () => 'x')
    })
    scope.register(async inner => {
      scope.gateway.http.prepare(inner, { open: true })
      inner.get('/open', async () => 'x')
    })
    scope.get('/host', async () => 'x')
    app.setNotFoundHandler(scope.gateway.http.notFound)
  })
  for (const url of ['/closed', '/open', '/host', '/nowhere']) await app.inject(url)
  t.strictSame(seen, ['GET /closed false', 'GET /open false', 'GET /nowhere false'])
})

const tooLarge = {
  error: {
    message: `The request body is larger than the limit of ${10 * MiB} bytes.`,
    type: 'invalid_request_error',
    param: null,
    code: 'request_too_large'
  }
}

function isOurs(t: Test, text: string) {
  const { error } = JSON.parse(text)
  t.same(Object.keys(error).sort(), ['code', 'message', 'param', 'type'])
  return error
}

// size

t.test('a body that says it has 16 MB is refused before any of it is read', async t => {
  const { upstream, url } = await stack(t)
  // Not a byte of the body is sent: the answer cannot have waited for it.
  const answer = await raw(url, post(16 * MiB))
  t.equal(answer.status, 413)
  t.same(JSON.parse(answer.body), tooLarge)
  t.equal(answer.headers['content-type'], 'application/json; charset=utf-8')
  t.equal(answer.headers['connection'], 'close')
  t.equal(answer.headers['x-should-retry'], 'false')
  t.equal(upstream.requests.length, 0)
})

t.test('a client that sends all of its 16 MB gets the 413, not a broken connection', async t => {
  const { app, url } = await stack(t)
  const body = Buffer.alloc(16 * MiB, ' ')
  for (let round = 0; round < 5; round++) {
    const answer = await request(url + path, { method: 'POST', headers: { 'content-type': 'application/json' }, body })
    t.equal(answer.statusCode, 413)
    t.same(await answer.body.json(), tooLarge)
  }
  t.equal(app.gateway.running, 0)
})

t.test('a client that goes on sending after its 413 is cut off', async t => {
  const { app, url } = await stack(t)
  mock.timers.enable({ apis: ['setTimeout'] })
  t.teardown(() => mock.timers.reset())
  const socket = connect(Number(new URL(url).port), '127.0.0.1')
  const closed = new Promise(resolve => socket.once('close', resolve))
  socket.on('error', () => {})
  socket.write(post(64 * MiB))
  await once(socket, 'data')
  socket.write(Buffer.alloc(MiB))
  t.equal(socket.destroyed, false)
  mock.timers.tick(1_000)
  socket.write(Buffer.alloc(MiB))
  await closed
  t.equal(app.gateway.running, 0)
})

t.test('a chunked body is refused as soon as it passes the limit, however long it would go on', async t => {
  const { upstream, url } = await stack(t)
  const piece = Buffer.concat([Buffer.from('10000\r\n'), Buffer.alloc(65_536, 0x20), Buffer.from('\r\n')])
  let sent = 0
  const answer = await raw(url, post(null), async write => {
    // Without end: only an answer stops it.
    while (await write(piece)) sent += 65_536
  })
  t.equal(answer.status, 413)
  t.same(JSON.parse(answer.body), tooLarge)
  t.ok(sent < 32 * MiB, `${sent} bytes were taken`)
  t.equal(upstream.requests.length, 0)
})

t.test('a body right at the limit is read, one byte more is not', async t => {
  const { url } = await stack(t)
  const shell = { ...hello, padding: '' }
  const padding = 'x'.repeat(10 * MiB - JSON.stringify(shell).length)
  const send = (body: object) =>
    request(url + path, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify(body)
    })
  const fits = await send({ ...shell, padding })
  t.equal(fits.statusCode, 200)
  await fits.body.dump()
  const over = await send({ ...shell, padding: `${padding}x` })
  t.equal(over.statusCode, 413)
  t.same(await over.body.json(), tooLarge)
})

t.test('an image of almost 10 MB passes whole', async t => {
  const { upstream, url } = await stack(t)
  const data = `data:image/png;base64,${Buffer.alloc(7.4 * MiB, 'image').toString('base64')}`
  const messages = [{ role: 'user', content: [{ type: 'image_url', image_url: { url: data, detail: 'high' } }] }]
  const { statusCode, body } = await request(url + path, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ model: 'test', messages })
  })
  await body.dump()
  t.equal(statusCode, 200)
  t.ok(upstream.requests[0]!.rawBody.length > 9.8 * MiB)
  t.same(upstream.requests[0]?.json.messages, messages)
})

t.test('the limit is the configured one', async t => {
  const app = await build(t, { server: { bodyLimit: '1kb' } })
  const answer = await app.inject({ method: 'POST', url: path, payload: { ...hello, padding: 'x'.repeat(1_100) } })
  t.equal(answer.statusCode, 413)
  t.match(answer.json(), { error: { code: 'request_too_large' } })
})

t.test('headers that are too large are 431 in our form', async t => {
  const { url } = await stack(t)
  const answer = await raw(url, post(2, `x-large: ${'x'.repeat(20_000)}\r\n`))
  t.equal(answer.status, 431)
  t.equal(answer.headers['content-type'], 'application/json; charset=utf-8')
  t.equal(answer.headers['x-should-retry'], 'false')
  t.equal(isOurs(t, answer.body).message, 'The headers of this request are too large.')
})

t.test('a URL that is too long is 414 in our form', async t => {
  const { url } = await stack(t)
  const answer = await raw(url, `GET /v1/models/${'x'.repeat(20_000)} HTTP/1.1\r\nhost: localhost\r\n\r\n`)
  t.equal(answer.status, 414)
  t.equal(answer.headers['content-type'], 'application/json; charset=utf-8')
  t.equal(isOurs(t, answer.body).message, 'The URL is too long.')
})

t.test('what is no HTTP is 400 in our form', async t => {
  const { url } = await stack(t)
  const answer = await raw(url, 'hello gateway\r\n\r\n')
  t.equal(answer.status, 400)
  t.equal(isOurs(t, answer.body).message, 'This is not an HTTP request.')
})

t.test('a request with two lengths is refused', async t => {
  const { upstream, url } = await stack(t)
  const answer = await raw(url, post(2, 'transfer-encoding: chunked\r\n'))
  t.equal(answer.status, 400)
  isOurs(t, answer.body)
  t.equal(upstream.requests.length, 0)
})

t.test('a body shorter than it says, from a client that leaves, disturbs nobody', async t => {
  const { upstream, app, url } = await stack(t)
  const { port, hostname } = new URL(url)
  const socket = connect(Number(port), hostname)
  socket.write(`${post(1_000)}{"model":`)
  await new Promise(
    resolve => app.server.once('request', (_, response) => response.once('close', resolve)) && socket.end()
  )
  t.equal(app.gateway.running, 0)
  t.equal(upstream.requests.length, 0)
})

// paths and methods

const unknown: Array<[string, string]> = [
  ['GET', '/nope'],
  ['POST', '/v1/nope'],
  ['GET', path],
  ['PUT', path],
  ['DELETE', path],
  ['PATCH', path],
  ['POST', '/v1/models'],
  ['GET', '/v1/chat/completions/chatcmpl-1'],
  ['POST', `${path}/`],
  ['POST', '/V1/chat/completions'],
  ['POST', '/v1//chat/completions'],
  ['POST', '/chat/completions'],
  ['OPTIONS', path]
]
t.test('unknown paths and methods', async t => {
  const { upstream, url } = await stack(t)
  for (const [method, where] of unknown) {
    await t.test(`${method} ${where}: 404 resource_not_found`, async t => {
      const { statusCode, headers, body } = await request(url + where, { method: method as 'GET' })
      t.equal(statusCode, 404)
      t.match(headers['content-type'], 'application/json')
      t.match(headers['x-request-id'], /^req_/)
      t.equal(headers['x-should-retry'], 'false')
      t.same(await body.json(), {
        error: {
          message: `Unknown path: ${method} ${where}`,
          type: 'invalid_request_error',
          param: null,
          code: 'resource_not_found'
        }
      })
    })
  }
  t.equal(upstream.requests.length, 0)
})

const bodies: Array<[string, string]> = [
  ['application/json', '{"broken":'],
  ['application/json', '{"__proto__":{}}'],
  ['application/json', ''],
  ['application/x-www-form-urlencoded', 'a=b'],
  ['x', 'a=b'],
  ['application/json', 'x'.repeat(11 * MiB)]
]
t.test('unknown paths of a server of our own', async t => {
  const app = Fastify(serverOptions({ bodyLimit: 10 * MiB, trustProxy: false }))
  t.teardown(() => app.close())
  await app.register(modelGateway, { store: false, providers: { echo: { type: 'echo' } } })
  app.gateway.http.catchAll(app)
  const url = await app.listen({ host: '127.0.0.1', port: 0 })
  for (const [type, body] of bodies) {
    await t.test(`POST /nope with ${body.length} bytes of ${type}: in our form`, async t => {
      const answer = await request(`${url}/nope`, {
        method: 'POST',
        reset: true,
        headers: { 'content-type': type },
        body
      })
      t.equal(answer.statusCode, type === 'x' ? 415 : 404)
      t.match(answer.headers['content-type'], 'application/json')
      const { code } = isOurs(t, await answer.body.text())
      t.equal(code, type === 'x' ? 'unsupported_media_type' : 'resource_not_found')
    })
  }
})

t.test('the query of an unknown path is not repeated', async t => {
  const app = await build(t)
  const answer = await app.inject('/nope?api_key=secret')
  t.equal(answer.statusCode, 404)
  t.notMatch(answer.body, /secret/)
})

t.test('HEAD answers without a body where GET answers', async t => {
  const { url } = await stack(t)
  for (const where of ['/v1/models', '/models', '/health', '/ready']) {
    const { statusCode, body } = await request(url + where, { method: 'HEAD' })
    t.equal(statusCode, 200, where)
    t.equal(await body.text(), '')
  }
  const { statusCode, body } = await request(url + path, { method: 'HEAD' })
  t.equal(statusCode, 404)
  t.equal(await body.text(), '')
})

t.test('a query does not keep a path from being found', async t => {
  const { url } = await stack(t)
  const { statusCode, body } = await request(`${url + path}?api-version=1`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify(hello)
  })
  await body.dump()
  t.equal(statusCode, 200)
})

// below a prefix

t.test('below a prefix', async t => {
  const host = Fastify()
  t.teardown(() => host.close())
  await host.register(modelGateway, { prefix: '/llm', store: false, providers: { echo: { type: 'echo' } } })

  await t.test('unknown paths are ours', async t => {
    const answer = await host.inject('/llm/nope')
    t.equal(answer.statusCode, 404)
    t.match(answer.json(), { error: { code: 'resource_not_found', message: 'Unknown path: GET /llm/nope' } })
  })

  await t.test("the others are the host's", async t => {
    t.same((await host.inject('/nope')).json(), {
      message: 'Route GET:/nope not found',
      error: 'Not Found',
      statusCode: 404
    })
  })

  await t.test('a broken body for an unknown path of ours is an error of our form', async t => {
    const answer = await host.inject({
      method: 'POST',
      url: '/llm/nope',
      headers: { 'content-type': 'application/json' },
      payload: '{"broken":'
    })
    t.ok([400, 404].includes(answer.statusCode))
    isOurs(t, answer.body)
  })
})

// what is said of our own faults

/** A gateway that logs everything there is to log, and what it has logged. */
async function logged(t: Test, options: (url: string) => ModelGatewayOptions = url => towards({ url })) {
  const upstream = await startUpstream()
  t.teardown(() => upstream.close())
  const lines: string[] = []
  const stream = new Writable({
    write(line, _encoding, done) {
      lines.push(String(line))
      done()
    }
  })
  const app = Fastify({
    ...serverOptions({ bodyLimit: 10 * MiB, trustProxy: false }),
    logger: { level: 'trace', stream }
  })
  t.teardown(() => app.close())
  await app.register(modelGateway, { store: false, ...options(upstream.url) })
  app.setNotFoundHandler((request, reply) => app.gateway.http.notFound(request, reply))
  return { upstream, app, lines }
}

t.test('a fault of ours is logged with its cause and told without a word of it', async t => {
  const { app, lines } = await logged(t)
  app.gateway.intercept('observe', () => {
    throw new TypeError('the secret plan failed', { cause: new Error('the deeper reason') })
  })
  const answer = await app.inject({ method: 'POST', url: path, payload: hello })
  t.equal(answer.statusCode, 500)
  t.same(answer.json(), {
    error: {
      message: 'The gateway failed to handle this request.',
      type: 'server_error',
      param: null,
      code: 'internal_error'
    }
  })
  t.notMatch(answer.body + JSON.stringify(answer.headers), /plan|reason|TypeError|\.ts/)
  const log = lines.join('')
  t.match(log, 'the secret plan failed')
  t.match(log, 'the deeper reason')
  t.match(log, answer.headers['x-request-id'] as string)
})

t.test('a 5xx in the log did not say which provider and model it came from', async t => {
  for (const stream of [false, true]) {
    const { app, lines } = await logged(t, () => towards({ url: 'http://127.0.0.1:1' }))
    const answer = await app.inject({ method: 'POST', url: path, payload: { ...hello, stream } })
    t.equal(answer.statusCode, 502)
    const [line = ''] = lines.filter(line => line.includes('"err":') && line.includes('"level":50'))
    t.match(JSON.parse(line), { traceId: answer.headers['x-trace-id'] })
    t.match(JSON.parse(line).target, /^\S+\/\S+$/)
    t.notMatch(answer.body, JSON.parse(line).target)
  }
})

t.test('a thrown value that is no error is a 500 without words, too', async t => {
  for (const thrown of ['a string', null, undefined, { statusCode: 418, message: 'tea' }, 7]) {
    const { app } = await logged(t)
    app.gateway.intercept('observe', () => {
      throw thrown
    })
    const answer = await app.inject({ method: 'POST', url: path, payload: hello })
    t.equal(answer.statusCode, 500, JSON.stringify(thrown))
    t.equal(isOurs(t, answer.body).code, 'internal_error')
  }
})

t.test('an error of a layer with a status of its own keeps a 4xx, and loses the words of a 5xx', async t => {
  for (const [statusCode, status, message] of [
    [418, 418, 'I am a teapot'],
    [503, 500, 'The gateway failed to handle this request.'],
    [302, 500, 'The gateway failed to handle this request.']
  ] as const) {
    const { app } = await logged(t)
    app.gateway.intercept('observe', () => {
      throw Object.assign(new Error('I am a teapot'), { statusCode })
    })
    const answer = await app.inject({ method: 'POST', url: path, payload: hello })
    t.equal(answer.statusCode, status)
    t.equal(isOurs(t, answer.body).message, message)
  }
})

t.test('a fault of ours in the middle of a stream is logged, and told without a word of it', async t => {
  const { app, upstream, lines } = await logged(t)
  upstream.script(sse(chunks('one two')))
  app.gateway.intercept('shape', async (inference, next) => {
    const answer = await next(inference)
    if (!answer.stream) return answer
    return {
      stream: true,
      frames: (async function* () {
        yield* answer.frames
        throw new RangeError('the secret plan failed')
      })()
    }
  })
  const answer = await app.inject({ method: 'POST', url: path, payload: { ...hello, stream: true } })
  t.equal(answer.statusCode, 200)
  const last = answer.body.trim().split('\n\n').at(-1)!
  t.same(JSON.parse(last.slice(6)), {
    error: {
      message: 'The gateway failed to handle this request.',
      type: 'server_error',
      param: null,
      code: 'internal_error'
    }
  })
  t.notMatch(answer.body, /\[DONE\]|plan/)
  t.match(lines.join(''), 'the secret plan failed')
})

t.test('no log line holds a secret, a header or a word of the conversation', async t => {
  const { app, upstream, lines } = await logged(t, url => ({
    ...towards({ url }),
    tenants: { public: { keys: ['gw_tenant-secret-1'] } },
    plugins: { auth: { adminToken: 'admin-secret-2-that-is-long-enough' } },
    providers: {
      up: {
        type: 'openai-compatible',
        baseUrl: url,
        apiKeys: ['sk-upstream-secret-3'],
        headers: { 'x-fixed': 'fixed-secret-4' }
      }
    }
  }))
  const send = (
    authorization: string,
    payload: object | string = { ...hello, messages: [{ role: 'user', content: 'words-5' }] }
  ) =>
    app.inject({
      method: 'POST',
      url: `${path}?api_key=query-secret-6`,
      headers: { authorization, 'content-type': 'application/json', cookie: 'cookie-secret-7' },
      payload
    })
  const quoting = { message: 'Incorrect API key provided: sk-upstream-secret-3. Check it.' }
  for (const script of [
    json(completion({ content: 'words-8' })),
    failure(400, quoting),
    failure(401, quoting),
    failure(403, quoting),
    failure(429, quoting),
    failure(500, quoting),
    failure(503, quoting),
    json({ error: quoting }),
    sse([...chunks('words-9').slice(0, 2), { error: quoting }])
  ]) {
    upstream.script(script)
    for (const stream of [false, true]) {
      const answer = await send('Bearer gw_tenant-secret-1', { ...hello, stream })
      t.notMatch(answer.body, /secret-\d/)
    }
  }
  await send('Bearer admin-secret-2-that-is-long-enough')
  await send('Bearer gw_unknown-secret-8')
  await send('Bearer unknown-secret-9')
  await send('Bearer gw_tenant-secret-1', '{"broken-secret-1":')
  await send('Bearer gw_tenant-secret-1', { messages: 'secret-2' })
  await app.inject('/nope?api_key=query-secret-6')
  await app.inject('/%zz?api_key=query-secret-6')
  t.ok(lines.length > 0)
  t.same(
    lines.filter(line => /secret-\d|words-\d/.test(line)),
    []
  )
})

t.test('the log of a 5xx held the words of the provider, which may quote the prompt', async t => {
  const words = { message: 'cannot continue after: the secret plan' }
  const refused = [401, 403, 404, 500, 503, 529].map(
    status => [failure(status, words), /status \d+\.|overloaded/] as const
  )
  for (const [script, ours, stream = false] of [
    ...refused,
    [json({ error: words }), /failed|status/],
    [sse([...chunks('one').slice(0, 2), { error: words }]), /failed|status/, true],
    [bytes('{"error": the secret plan}', { headers: { 'content-type': 'application/json' } }), /no completion/]
  ] as ReadonlyArray<readonly [Reply, RegExp, boolean?]>) {
    const { app, upstream, lines } = await logged(t, url => towards({ url }))
    upstream.script(script)
    await app.inject({ method: 'POST', url: path, payload: { ...hello, model: 'test', stream } })
    const all = lines.map(line => JSON.parse(line))
    const shown = all.filter(({ level }) => level >= 30)
    t.ok(shown.length > 0)
    t.notMatch(JSON.stringify(shown), 'secret plan')
    const line = shown.find(({ level, code }) => level === 50 && code)
    t.match(line, { msg: ours, code: /^GATEWAY_UPSTREAM_/, target: /^up\//, traceId: /./, requestId: /./ })
    if (line.msg.includes('no completion')) continue
    const explained = all.find(({ level, err }) => level === 20 && err)
    t.match(JSON.stringify(explained), 'secret plan', 'at debug it is there')
    t.match(explained, { requestId: line.requestId, traceId: line.traceId, provider: 'up' })
  }
})

t.test('what a provider said of a failure stood nowhere once another attempt had saved the call', async t => {
  const target = { provider: 'up', model: 'm', price: { input: 0, output: 0 } }
  const { app, upstream, lines } = await logged(t, url =>
    towards({ url }, { models: { test: { retries: 1, targets: [target] } } })
  )
  upstream.script(failure(500, { message: 'cannot continue after: the secret plan' }), json(completion()))
  const { statusCode, headers } = await app.inject({ method: 'POST', url: path, payload: { ...hello, model: 'test' } })
  t.equal(statusCode, 200)
  const explained = lines.map(line => JSON.parse(line)).filter(line => JSON.stringify(line).includes('secret plan'))
  t.match(explained, [{ level: 20, msg: 'a provider call failed', requestId: headers['x-request-id'], provider: 'up' }])
})

t.test('faults of the client are no error lines', async t => {
  const { app, lines } = await logged(t)
  await app.inject({ method: 'POST', url: path, payload: { messages: [] } })
  await app.inject({ method: 'POST', url: path, payload: { ...hello, model: 'nope' } })
  await app.inject('/nope')
  t.same(
    lines.filter(line => JSON.parse(line).level >= 40),
    []
  )
})

t.test('every answer has an id of ours, whatever the client sent', async t => {
  const { app, upstream } = await logged(t)
  const ids = new Set<unknown>()
  const send = (payload: object, headers: object = {}) =>
    app.inject({ method: 'POST', url: path, headers: { 'x-request-id': 'mine', ...headers }, payload })
  ids.add((await send(hello)).headers['x-request-id'])
  ids.add((await send({ ...hello, stream: true })).headers['x-request-id'])
  ids.add((await send({})).headers['x-request-id'])
  ids.add((await send({ ...hello, model: 'nope' })).headers['x-request-id'])
  ids.add((await send(hello, { authorization: 'Bearer gw_x' })).headers['x-request-id'])
  ids.add((await app.inject('/nope')).headers['x-request-id'])
  upstream.script(failure(500))
  ids.add((await send(hello)).headers['x-request-id'])
  t.equal(ids.size, 7)
  for (const id of ids) t.match(id, /^req_[A-Za-z0-9]{18}$/)
})

t.test('/health and /ready answer anybody, also where everything else needs a key', async t => {
  const app = await build(t, { plugins: { auth: { anonymousTenant: false } } })
  const health = await app.inject({
    url: '/health',
    headers: { host: 'evil.example', authorization: 'Bearer gw_wrong' }
  })
  t.equal(health.statusCode, 200)
  t.match(health.json(), { ok: true, time: /^\d{4}-\d\d-\d\dT/ })
  const ready = await app.inject({ url: '/ready', headers: { host: 'evil.example' } })
  t.equal(ready.statusCode, 200)
  t.match(ready.json(), { ok: true, checks: { gateway: { ok: true } } })
  t.equal((await app.inject('/v1/models')).statusCode, 401)
  t.equal((await app.inject('/models')).statusCode, 401)
})

t.test('/ready is 503 while a dependency is down, and says which', async t => {
  const app = await build(t)
  app.gateway.dependency('store', () => ({ ok: false, detail: 'gone' }))
  app.gateway.dependency('broken', () => {
    throw new Error('secret words')
  })
  const ready = await app.inject('/ready')
  t.equal(ready.statusCode, 503)
  t.match(ready.json(), { ok: false, checks: { gateway: { ok: true }, store: { ok: false, detail: 'gone' } } })
  t.strictSame(Object.keys(ready.json().checks.broken), ['ok', 'ms'])
})
