import { connect } from 'node:net'
import t, { type Test } from 'tap'
import type { ModelGatewayOptions } from '../app.ts'
import { build, hello } from './helper.ts'
import { failure, type Received, redirect, type Script, startUpstream } from './upstream.ts'

// Where calls go stands in the configuration and nowhere else: not in what a client sends, nor in what a provider answers.

/** Every kind of provider with an address, and what may be asked of it. */
const kinds = {
  'openai-compatible': /^\/openai-compatible\/v1\/chat\/completions$/,
  openai: /^\/openai\/v1\/chat\/completions$/,
  anthropic: /^\/anthropic\/v1\/messages$/,
  llamacpp: /^\/llamacpp\/v1\/chat\/completions$/,
  azure: /^\/azure\/openai\/v1\/chat\/completions$/,
  deployments: /^\/deployments\/openai\/deployments\/\w[\w.-]*\/chat\/completions\?api-version=2024-10-21$/,
  gemini: /^\/gemini\/v1beta\/(?:models|tunedModels)\/\w[\w.-]*:(?:generateContent|streamGenerateContent\?alt=sse)$/,
  vertex: /^\/vertex\/.*\/models\/\w[\w.@-]*:(?:(?:streamG|g)enerateContent(?:\?alt=sse)?|(?:streamR|r)awPredict)$/
}
type Kind = keyof typeof kinds
const all = Object.keys(kinds) as Kind[]

/** Without a key nobody who says that he was forwarded gets in at all. */
const keyed: ModelGatewayOptions = { tenants: { acme: { keys: ['key-of-acme'], maxRequestUsd: false } } }
const credential = { authorization: 'Bearer key-of-acme' }

/** A gateway with a provider of every kind at one server, and a server where nobody is to be sent. */
async function start(t: Test, script: Script) {
  const upstream = await startUpstream({ script })
  const decoy = await startUpstream()
  t.teardown(() => Promise.all([upstream.close(), decoy.close()]))
  const { origin, host } = new URL(upstream.url)
  const at = (kind: Kind) => ({ baseUrl: `${origin}/${kind}`, apiKeys: ['key-of-the-provider'] })
  const app = await build(t, {
    providers: {
      'openai-compatible': {
        type: 'openai-compatible',
        ...at('openai-compatible'),
        baseUrl: `${origin}/openai-compatible/v1`
      },
      openai: { type: 'openai', ...at('openai'), baseUrl: `${origin}/openai/v1` },
      anthropic: { type: 'anthropic', ...at('anthropic') },
      llamacpp: { type: 'llamacpp', ...at('llamacpp') },
      azure: { type: 'azure-openai', ...at('azure') },
      deployments: { type: 'azure-openai', ...at('deployments'), apiVersion: '2024-10-21' },
      gemini: { type: 'gemini', ...at('gemini') },
      vertex: { type: 'vertex', ...at('vertex') }
    },
    ...keyed
  })
  const ask = (body: object, headers: Record<string, string> = {}) =>
    app.inject({
      method: 'POST',
      url: '/v1/chat/completions',
      payload: { ...hello, ...body },
      headers: { ...credential, ...headers }
    })
  return { app, upstream, decoy, origin, host, ask }
}

/** A request that arrived, where it has to. */
function isHome(t: Test, kind: Kind, host: string, { url, headers, rawHeaders }: Received): void {
  t.match(url, kinds[kind])
  t.equal(new URL(url, `http://${host}`).pathname, url.split('?')[0], 'there is nothing to resolve in its path')
  t.equal(headers.host, host)
  t.notMatch(rawHeaders.join('\n'), /evil/i)
}

const refusal = failure(400, { message: 'No.' })

/** Names of models that would lead elsewhere if a path were made of them as they are. */
function evilNames(decoy: string): string[] {
  const { host } = new URL(decoy)
  return [
    '..',
    '.',
    '../..',
    '../../evil',
    '..%2f..%2fevil',
    '%2e%2e/evil',
    '%2e%2e%2fevil',
    'm%2f..%2f..%2fevil',
    '..\\..\\evil',
    '..;/evil',
    'm/../../../evil',
    '/evil',
    '//evil',
    `//${host}/v1`,
    `@${host}/v1`,
    `m@${host}`,
    `:x@${host}/`,
    `http://${host}/v1`,
    `${host}/v1`,
    'm#evil',
    'm?evil=1',
    'm?api-version=evil',
    'm&evil=1',
    'm:evil',
    'm:generateContent?evil=',
    'models/m/evil',
    'publishers/evil/models/m',
    'm%0d%0aevil: 1',
    'm%00evil',
    'm;evil',
    'm/chat/completions?evil#'
  ]
}

for (const kind of all) {
  for (const stream of [false, true]) {
    t.test(`no name of a model leads ${kind} elsewhere, stream: ${stream}`, async t => {
      const { upstream, decoy, host, ask } = await start(t, refusal)
      for (const name of evilNames(decoy.url)) {
        const { statusCode, body } = await ask({ model: `${kind}/${name}`, stream })
        t.ok(statusCode === 400 || statusCode === 404, `${name}: ${statusCode} ${body}`)
      }
      await ask({ model: `${kind}/an-honest.name-1`, stream })
      for (const request of upstream.requests) isHome(t, kind, host, request)
      t.ok(upstream.requests.length > 0)
      t.equal(decoy.requests.length, 0)
    })
  }
}

t.test('a name with a line end, a blank or a control character is nobody’s', async t => {
  const { upstream, ask } = await start(t, refusal)
  for (const name of [
    'm\r\nevil: 1',
    'm\nevil',
    'm\rx',
    'm evil',
    'm\tevil',
    'm\0evil',
    'm\u0085',
    'm\u2028evil',
    'ｍ／evil'
  ]) {
    for (const kind of all) {
      const { statusCode, body } = await ask({ model: `${kind}/${name}` })
      t.equal(statusCode, 404, `${encodeURIComponent(name)}: ${encodeURIComponent(body)}`)
    }
  }
  t.equal(upstream.requests.length, 0)
})

t.test('a name that is no provider’s is nobody’s', async t => {
  const { upstream, decoy, ask } = await start(t, refusal)
  const { host } = new URL(decoy.url)
  const prefixes = [
    host,
    `http://${host}`,
    '..',
    '.',
    '',
    '/',
    '%2e%2e',
    'OPENAI',
    'openai%2f',
    'openai@evil',
    '__proto__'
  ]
  for (const prefix of prefixes) {
    t.equal((await ask({ model: `${prefix}/m` })).statusCode, 404, prefix)
  }
  t.equal(upstream.requests.length + decoy.requests.length, 0)
})

/** Fields by which other software lets a caller choose where a call goes. */
const addressFields = [
  'base_url',
  'baseUrl',
  'baseURL',
  'api_base',
  'apiBase',
  'api_url',
  'endpoint',
  'url',
  'host',
  'hostname'
].concat([
  'proxy',
  'upstream',
  'provider',
  'api_type',
  'azure_endpoint',
  'custom_host',
  'extra_headers',
  'path',
  'route'
])

for (const kind of all) {
  t.test(`no field and no header of a request sends ${kind} elsewhere`, async t => {
    const { upstream, decoy, host, ask } = await start(t, refusal)
    const there = new URL(decoy.url)
    const values = [decoy.url, there.host, { url: decoy.url, baseUrl: decoy.url, host: there.host }]
    for (const value of values) {
      await ask({ model: `${kind}/m`, ...Object.fromEntries(addressFields.map(name => [name, value])) })
    }
    const names = ['host', 'x-forwarded-host', 'x-forwarded-server', 'x-host', 'x-original-url', 'x-rewrite-url']
      .concat(['x-base-url', 'x-api-base', 'x-target-url', 'x-gateway-base-url', 'x-portkey-custom-host', 'forwarded'])
      .concat(['x-http-method-override', 'proxy', 'location', 'referer', 'origin', 'x-evil'])
    for (const name of names) await ask({ model: `${kind}/m` }, { [name]: `${there.host}` })
    await ask({ model: `${kind}/m` }, { connection: 'x-evil, host', 'x-evil': '1' })
    t.equal(upstream.requests.length, values.length + names.length + 1, 'every one of them was sent')
    for (const request of upstream.requests) {
      isHome(t, kind, host, request)
      t.notMatch(JSON.stringify(request.headers), new RegExp(there.host))
    }
    t.equal(decoy.requests.length, 0)
  })
}

t.test('a request line that names another host is answered here', async t => {
  const { app, upstream, decoy, host } = await start(t, refusal)
  const url = new URL(await app.listen({ host: '127.0.0.1', port: 0 }))
  const body = JSON.stringify({ ...hello, model: 'openai/m' })
  for (const target of [`${decoy.url}/chat/completions`, '/v1/chat/completions']) {
    const socket = connect(Number(url.port), '127.0.0.1')
    const head = [
      'content-type: application/json',
      `authorization: ${credential.authorization}`,
      `content-length: ${body.length}`,
      'connection: close'
    ]
    socket.write(`POST ${target} HTTP/1.1\r\nhost: ${url.host}\r\n${head.join('\r\n')}\r\n\r\n${body}`)
    let text = ''
    for await (const bytes of socket) text += bytes
    t.match(text, /^HTTP\/1\.1 4\d\d /)
  }
  for (const request of upstream.requests) isHome(t, 'openai', host, request)
  t.ok(upstream.requests.length > 0)
  t.equal(decoy.requests.length, 0)
})

t.test('a header that may go upstream takes neither another address nor a credential with it', async t => {
  const forwardHeaders = ['x-own', 'x-forwarded-host']
  const { upstream, decoy, host, ask, origin } = await start(t, refusal)
  const app = await build(t, {
    providers: {
      openai: { type: 'openai', baseUrl: `${origin}/openai/v1`, apiKeys: ['key-of-the-provider'], forwardHeaders }
    },
    ...keyed
  })
  await ask({ model: 'openai/m' }, { 'x-own': 'not asked for' })
  await app.inject({
    method: 'POST',
    url: '/v1/chat/completions',
    payload: { ...hello, model: 'openai/m' },
    headers: { 'x-own': 'a, b', 'x-forwarded-host': new URL(decoy.url).host, ...credential }
  })
  const [plain, forwarded] = upstream.requests
  t.equal(plain?.headers['x-own'], undefined)
  t.match(forwarded?.headers, { host, 'x-own': 'a, b', authorization: 'Bearer key-of-the-provider' })
  t.match(forwarded?.url, kinds.openai)
  t.equal(decoy.requests.length, 0)
})

// Redirects

for (const status of [301, 302, 303, 307, 308]) {
  t.test(`a redirect with ${status} is followed by nobody`, async t => {
    let location = ''
    const { app, upstream, decoy, host, ask } = await start(t, () => redirect(location, status))
    const there = new URL(decoy.url).host
    for (location of [
      `http://${there}/v1/x`,
      `//${there}/v1/x`,
      '/elsewhere',
      '../evil',
      'http://169.254.169.254/latest'
    ]) {
      for (const kind of all) {
        for (const stream of [false, true]) {
          const before = upstream.requests.length
          const { statusCode, body, headers } = await ask({ model: `${kind}/m-${location.length}`, stream })
          t.equal(statusCode, 502, `${kind}: ${body}`)
          t.equal(upstream.requests.length, before + 1, `${kind}: asked once`)
          t.notOk(headers.location)
          t.notMatch(body, /169\.254|evil|elsewhere/, 'where to is nobody’s business')
        }
      }
    }
    for (const request of upstream.requests) {
      isHome(t, request.url.split('/')[1] as Kind, host, request)
    }
    // Lists of models and health, too.
    await app.inject('/v1/models')
    for (const { health } of app.gateway.providers.list()) await health?.()
    const elsewhere = upstream.requests.filter(({ url }) => /elsewhere|evil|latest|\/x$/.test(url))
    t.strictSame(elsewhere, [])
    t.equal(decoy.requests.length, 0)
  })
}
