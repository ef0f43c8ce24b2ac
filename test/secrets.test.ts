import { spawn } from 'node:child_process'
import { generateKeyPairSync } from 'node:crypto'
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import t, { type Test } from 'tap'
import { json, startUpstream } from './upstream.ts'

// What goes through a gateway and must stay nowhere: a whole server is driven through calls, faults and administration, then
// every line, every answer and every file that it wrote is searched for every secret that was used.

const server = fileURLToPath(new URL('../server.ts', import.meta.url))

const adminToken = 'admin-token-5d1c0f6b7e2a4938'
const configKey = 'gw_config-key-93b1d47a60fe'
const upstreamKey = 'sk-upstream-1f2e3d4c5b6a7988'
const secondUpstreamKey = 'sk-upstream-other-77aa66bb55cc'
const signingSecret = 'signing-2b9e7c41d80f5a36e1c74b98'
const receiptKey = String(generateKeyPairSync('ed25519').privateKey.export({ format: 'pem', type: 'pkcs8' }))
/** Credentials of nobody that clients try. */
const wrongKeys = [
  'sk-wrong-0a1b2c3d4e5f60718293',
  'gw_wrongwrong00_abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZabc',
  'gw_aaaaaaaaaaaa_mmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmm',
  'eyJhbGciOiJub25lIn0.eyJzdWIiOiJhdHRhY2tlciJ9.c2lnbmF0dXJlLW9mLW5vYm9keQ',
  'admin-token-5d1c0f6b7e2a4939'
]

async function start(t: Test, config: object) {
  const folder = mkdtempSync(join(tmpdir(), 'gateway-secrets-'))
  mkdirSync(join(folder, 'tmp'))
  writeFileSync(join(folder, 'gateway.yaml'), JSON.stringify(config))
  // Through env(1), which becomes the server: tap hands every process it starts a loader of its own.
  const child = spawn('env', ['-u', 'NODE_OPTIONS', process.execPath, server], {
    cwd: folder,
    env: {
      PATH: process.env['PATH'],
      HOME: folder,
      TMPDIR: join(folder, 'tmp'),
      PORT: '0',
      ADMIN_TOKEN: adminToken,
      UPSTREAM_KEY: upstreamKey
    },
    stdio: 'pipe'
  })
  let said = ''
  const ended = new Promise<void>(resolve => child.on('close', () => resolve()))
  t.teardown(async () => {
    child.kill('SIGKILL')
    await ended
    rmSync(folder, { recursive: true, force: true, maxRetries: 3 })
  })
  const url = await new Promise<string>((resolve, reject) => {
    for (const stream of [child.stdout, child.stderr]) {
      stream.setEncoding('utf8').on('data', text => {
        said += text
        const found = /listening on (http:\S+)[\s\S]*try it/.exec(said)
        if (found) resolve(found[1]!)
      })
    }
    void ended.then(() => reject(new Error(`The server has ended: ${said}`)))
  })
  return {
    url,
    folder,
    said: () => said,
    async stop(signal: NodeJS.Signals) {
      child.kill(signal)
      await ended
    }
  }
}

/** Everything below a folder, as text byte by byte. */
function filesOf(folder: string): Map<string, string> {
  const files = new Map<string, string>()
  for (const name of readdirSync(folder, { recursive: true, encoding: 'utf8' })) {
    const path = join(folder, name)
    if (statSync(path).isFile() && name !== 'gateway.yaml') files.set(name, readFileSync(path, 'latin1'))
  }
  return files
}

t.test('no secret stays in a log, an answer, a row or a file', async t => {
  // An upstream that quotes the key it was sent, in every way it can fail.
  const upstream = await startUpstream({
    script: request => {
      const message = `Incorrect API key provided: ${request.headers.authorization}`
      // A list of models is asked for without a body.
      const wish = request.method === 'POST' ? String(request.json.messages?.[0]?.content) : ''
      const status = Number(/^status (\d+)$/.exec(wish)?.[1])
      if (status) return json({ error: { message, type: 'x', param: message, code: message } }, { status })
      if (wish === 'no json') return json(message, { headers: { 'content-type': 'text/plain' } })
      if (wish === 'error inside') return json({ error: { message } })
      return json({
        id: 'c1',
        object: 'chat.completion',
        created: 1,
        model: 'm',
        choices: [{ index: 0, finish_reason: 'stop', message: { role: 'assistant', content: 'Hello' } }],
        usage: { prompt_tokens: 3, completion_tokens: 1, total_tokens: 4 }
      })
    }
  })
  t.teardown(() => upstream.close())
  const price = { input: 1, output: 1 }
  const gateway = await start(t, {
    log: { level: 'debug' },
    store: 'sqlite:./data/gateway.db',
    providers: {
      up: { type: 'openai-compatible', baseUrl: upstream.url, apiKeys: ['env:UPSTREAM_KEY', secondUpstreamKey] },
      echo: { type: 'echo' },
      gone: { type: 'openai-compatible', baseUrl: 'http://127.0.0.1:9', apiKeys: [upstreamKey] }
    },
    models: {
      test: { targets: [{ provider: 'up', model: 'm', price }], retries: 0 },
      stream: { targets: [{ provider: 'echo', model: 'echo', price }] },
      gone: { targets: [{ provider: 'gone', model: 'm', price }], retries: 0 }
    },
    tenants: { configured: { keys: [configKey] } },
    routing: { passThrough: true },
    plugins: { rateLimit: false, signing: { secret: signingSecret, receipts: { privateKey: receiptKey } } }
  })

  const answers: string[] = []
  /** Asks, and keeps the whole answer for the search unless it may show a key. */
  async function ask(
    route: string,
    secret: string | null,
    body?: unknown,
    headers: Record<string, string> = {},
    shows = false
  ) {
    const [method, path] = route.split(' ')
    const response = await fetch(gateway.url + path, {
      method,
      headers: {
        ...(secret === null ? {} : { authorization: `Bearer ${secret}` }),
        ...(body === undefined ? {} : { 'content-type': 'application/json' }),
        ...headers
      },
      body: body === undefined ? undefined : typeof body === 'string' ? body : JSON.stringify(body)
    })
    const text = await response.text()
    if (!shows) answers.push(`${response.status} ${JSON.stringify([...response.headers])} ${text}`)
    return { status: response.status, text }
  }
  const chat = (content: string, more: object = {}) => ({
    model: 'test',
    messages: [{ role: 'user', content }],
    ...more
  })
  const made: Array<{ id: string; key: string }> = []
  async function make(route: string, body: object = {}): Promise<{ id: string; key: string }> {
    const { status, text } = await ask(route, adminToken, body, {}, true)
    t.equal(status, 201, `${route}: ${text.slice(0, 300).replace(/gw_\w+/g, 'gw_…')}`)
    const key = JSON.parse(text)
    made.push(key)
    return key
  }

  // whoever listens to what happens
  const leaving = new AbortController()
  t.teardown(() => leaving.abort())
  const listening = await fetch(`${gateway.url}/events?lastEventId=0-0`, {
    headers: { authorization: `Bearer ${adminToken}` },
    signal: leaving.signal
  })
  const heard = listening.text()

  // administration
  await ask('POST /api/tenants', adminToken, { id: 'acme', budget_usd: 5 })
  const first = await make('POST /api/tenants/acme/keys', { name: 'first' })
  const second = await make(`POST /api/tenants/acme/keys/${first.id}/rotate`, { overlap_seconds: 0 })
  const third = await make('POST /api/tenants/acme/keys', { scopes: ['chat', 'admin'] })

  // calls and their faults, by every kind of key
  const chatRoute = 'POST /v1/chat/completions'
  for (const key of [second.key, third.key, configKey, adminToken]) {
    t.equal((await ask(chatRoute, key, chat('Hello'))).status, 200)
    t.equal((await ask(chatRoute, key, chat('Hello there', { model: 'stream', stream: true }))).status, 200)
  }
  for (const wish of [
    'status 400',
    'status 401',
    'status 402',
    'status 403',
    'status 404',
    'status 422',
    'status 429',
    'status 500',
    'status 503',
    'no json',
    'error inside'
  ]) {
    t.not((await ask(chatRoute, second.key, chat(wish))).status, 200, wish)
    await ask(chatRoute, second.key, chat(wish, { stream: true }))
  }
  t.ok((await ask(chatRoute, second.key, chat('Hello', { model: 'gone' }))).status >= 500)
  await ask(chatRoute, second.key, '{"messages": [')
  await ask(chatRoute, second.key, chat('Hello', { model: 'nothing' }))
  for (const name of [second.key, `echo/${second.key}`, `gone/${second.key}`]) {
    await ask(chatRoute, second.key, chat('Hello', { model: name }), {}, true)
    await ask(chatRoute, second.key, chat('Hello', { model: name, stream: true }), {}, true)
  }
  await ask(chatRoute, second.key, chat('Hello', { tenant: 'configured' }))
  await ask(chatRoute, second.key, chat('Hello'), { 'idempotency-key': 'once' })
  await ask(chatRoute, second.key, chat('Hello'), { 'idempotency-key': 'once' })

  // credentials that are wrong, misplaced, doubled or over
  const misplaced = [first.key, ...wrongKeys]
  for (const key of misplaced) {
    for (const route of [chatRoute, 'GET /v1/models', 'GET /api/tenants', 'GET /budget/stats']) {
      const body = route === chatRoute ? chat('Hello') : undefined
      t.equal((await ask(route, key, body)).status, 401, route)
      await ask(route, null, body, { 'x-api-key': key })
      await ask(route, null, body, { 'api-key': key })
      await ask(route, second.key, body, { 'x-api-key': key })
    }
  }
  await ask('GET /api/tenants', second.key)
  for (const key of [second.key, adminToken]) {
    await ask(`GET /v1/nothing?api_key=${key}`, key)
    await ask(`GET /api/tenants?after=${key}&key=${key}`, adminToken)
    await ask(`GET /api/tenants/acme/records?limit=${key}`, adminToken)
    await ask(`DELETE /api/tenants/acme/keys/${key}`, adminToken)
    await ask(`POST /api/tenants/acme/keys/${key}/rotate`, adminToken, {})
    await ask('POST /api/tenants', adminToken, { id: { key }, budget_usd: 1 })
    await ask('POST /api/tenants', adminToken, { id: 'x', budget_usd: 1, key })
    await ask('POST /api/tenants', adminToken, `{"id": "x", "budget_usd": ${key}`)
    await ask('POST /api/tenants/acme/keys', adminToken, { expires_at: key })
  }
  await ask(`GET /api/tenants/${second.key}`, adminToken)
  await ask(`DELETE /api/tenants/acme/keys/${third.id}`, adminToken)
  t.equal((await ask(chatRoute, third.key, chat('Hello'))).status, 401, 'revoked')

  // everything that can be read
  for (const path of [
    '/api/tenants',
    '/api/tenants/acme',
    '/api/tenants/acme/keys',
    '/api/tenants/acme/records',
    '/api/records?limit=1000',
    '/api/records?format=csv',
    '/api/records?format=jsonl',
    '/api/audit?limit=1000',
    '/api/stats',
    '/api/traces',
    '/api/health',
    '/budget/stats'
  ]) {
    t.equal((await ask(`GET ${path}`, adminToken)).status, 200, path)
  }
  await ask('GET /ready', null)
  await ask('GET /health', null)
  await ask('GET /metrics', adminToken)

  const running = filesOf(gateway.folder)
  await gateway.stop('SIGTERM')
  const stopped = filesOf(gateway.folder)

  const places: Array<[string, string]> = [
    ['the log', gateway.said()],
    ['the events', await heard],
    ...answers.map((text, index): [string, string] => [`answer ${index}: ${text.slice(0, 3)}`, text]),
    ...[...running].map(([name, text]): [string, string] => [`${name} while running`, text]),
    ...[...stopped].map(([name, text]): [string, string] => [`${name} after the end`, text])
  ]
  const all = places.map(([, text]) => text).join('\n')

  await t.test('the search finds what is there', async t => {
    for (const { id } of made) {
      t.ok(
        answers.some(text => text.includes(id)),
        'ids of keys are in answers'
      )
      t.ok(
        [...stopped.values()].some(text => text.includes(id)),
        'and in the database'
      )
    }
    t.ok(gateway.said().includes('GATEWAY_INVALID_API_KEY'), 'refusals are in the log')
    t.match(await heard, /"model\.request\.complete"[\s\S]*"key\.revoked"/, 'calls and changes are events')
    t.ok(answers.length > 100)
    t.ok(running.size > 1 && stopped.size > 0)
  })

  // A piece of a secret is as bad as all of it: what is left of a key without its public part, in either half.
  const secrets = [
    adminToken,
    configKey,
    upstreamKey,
    secondUpstreamKey,
    signingSecret,
    receiptKey.split('\n')[1]!,
    ...wrongKeys,
    ...made.flatMap(({ key, id }) => {
      const secret = key.slice(`gw_${id}_`.length)
      return [key, secret.slice(0, 24), secret.slice(-24)]
    })
  ]
  for (const [index, secret] of secrets.entries()) {
    const forms = [secret, Buffer.from(secret).toString('base64').replace(/=+$/, ''), encodeURIComponent(secret)]
    const found = forms.some(form => all.includes(form))
      ? places.filter(([, text]) => forms.some(form => text.includes(form))).map(([name]) => name)
      : []
    t.strictSame(found, [], `secret ${index} is nowhere`)
  }
})
