import { spawnSync } from 'node:child_process'
import { readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import Fastify from 'fastify'
import OpenAI from 'openai'
import t, { type Test } from 'tap'
import modelGateway, { type ModelGatewayOptions, readConfig } from '../app.ts'
import { call, run, server } from './server-process.ts'
import { startUpstream } from './upstream.ts'

// The real server reads its configuration again, by SIGHUP and over HTTP, while calls run.

t.jobs = 3

const adminToken = 'the-token-of-the-operator'
const price = { input: 0, output: 0 }
const to = (model: string, provider = 'echo') => ({ retries: 0, targets: [{ provider, model, price }] })
const base = { providers: { echo: { type: 'echo' as const, words: 3 } }, models: { chat: to('echo') } }

/** A server with a configuration that a test writes anew. */
async function start(t: Test, config: object = base, env: Record<string, string> = {}) {
  const gateway = run(t, { files: { 'gateway.yaml': config }, env: { ADMIN_TOKEN: adminToken, ...env } })
  const url = await gateway.url()
  const file = join(gateway.folder, 'gateway.yaml')
  const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: adminToken, maxRetries: 0 })
  /** In place of the one before, all at once. */
  const write = (next: object | string) => {
    writeFileSync(`${file}.new`, typeof next === 'string' ? next : JSON.stringify(next))
    renameSync(`${file}.new`, file)
  }
  let heard = 0
  /** The first line of the log with these words that nobody has waited for. */
  const line = async (words: string): Promise<Record<string, unknown>> => {
    const pattern = new RegExp(`^[\\s\\S]{${heard},}?\\n?(\\{[^\\n]*${words}[^\\n]*\\})\\n`)
    const text = await gateway.until(pattern)
    heard = gateway.said.stdout.indexOf(text, heard) + text.length
    return JSON.parse(text)
  }
  const administer = async (method: string, path: string) => {
    const response = await fetch(`${url}${path}`, { method, headers: { authorization: `Bearer ${adminToken}` } })
    const body: Record<string, unknown> = JSON.parse(await response.text())
    return { status: response.status, body }
  }
  return {
    ...gateway,
    url,
    file,
    client,
    write,
    line,
    administer,
    hangUp: () => gateway.child.kill('SIGHUP'),
    models: async () => (await client.models.list()).data.map(({ id }) => id),
    ask: (model: string) =>
      client.chat.completions
        .create({ model, messages: [{ role: 'user', content: 'Hello' }] })
        .then(({ choices }) => choices[0]?.message.content ?? '')
        .catch(error => String(error.code)),
    health: async (): Promise<string> => JSON.parse((await call(`${url}/health`)).body).config,
    ready: async () => JSON.parse((await call(`${url}/ready`)).body)
  }
}

const applied = 'the routing table has changed'
const refused = 'the configuration cannot be taken, nothing has changed'
const same = 'the configuration is what it was'

/** Of a file as this server reads it. */
const configOf = (config: object) => readConfig(config, { PORT: '0', ADMIN_TOKEN: 'x' }).hash.slice(0, 12)

t.test('SIGHUP: the file is read again and counts for the next call', async t => {
  const gateway = await start(t)
  t.equal(await gateway.health(), configOf(base))
  t.equal((await gateway.ready()).config, configOf(base))
  t.match(await gateway.line('listening'), { config: configOf(base) })
  t.equal(await gateway.ask('more'), 'model_not_found')

  const next = { ...base, models: { ...base.models, more: to('other') }, tasks: { vitals: 'more' } }
  gateway.write(next)
  t.strictSame(await gateway.models(), ['chat'], 'not before somebody says so')
  gateway.hangUp()
  t.match(await gateway.line(applied), {
    level: 30,
    changes: ['models.more', 'tasks.vitals'],
    config: configOf(next),
    actor: 'SIGHUP'
  })
  t.match(await gateway.ask('more'), /^Hello/)
  t.strictSame(await gateway.models(), ['chat', 'more'])
  t.equal(await gateway.health(), configOf(next))
  t.match(await gateway.ready(), { config: configOf(next), checks: { targets: { up: ['echo/echo', 'echo/other'] } } })

  gateway.hangUp()
  t.match(await gateway.line(same), { level: 30 })
  gateway.write(base)
  gateway.hangUp()
  t.match(await gateway.line(applied), { changes: ['models.more', 'tasks.vitals'] })
  t.equal(await gateway.ask('more'), 'model_not_found')

  const { body } = await gateway.administer('GET', '/api/audit')
  t.match(body['data'], [
    { actor: 'SIGHUP', action: 'routing.reload', after: { paths: [] } },
    { actor: 'SIGHUP', before: { paths: [] }, after: { paths: ['models.more', 'tasks.vitals'] } }
  ])
  const records = await gateway.administer('GET', '/api/records')
  t.match(records.body['data'], [{ model: 'more', config_hash: configOf(next) }])
  t.equal(await gateway.stop(), 0, 'it ends as ever')
})

t.test('the hash is the one that --check says of the file', async t => {
  const gateway = await start(t)
  const { stdout } = spawnSync('env', ['-u', 'NODE_OPTIONS', process.execPath, server, '--check'], {
    cwd: gateway.folder,
    env: { PORT: '0', ADMIN_TOKEN: 'another' },
    encoding: 'utf8'
  })
  t.match(stdout, `config: ${await gateway.health()}\nThe configuration is valid.\n`)
  await gateway.stop()
})

t.test('a call in flight keeps its old plan to the end', async t => {
  const upstream = await startUpstream()
  t.teardown(() => upstream.close())
  const up = { type: 'openai-compatible', baseUrl: upstream.url }
  const config = {
    providers: { up, echo: { type: 'echo', words: 30, interval: '30ms' } },
    models: { chat: to('echo') }
  }
  const gateway = await start(t, config)
  const stream = await gateway.client.chat.completions.create({
    model: 'chat',
    messages: [{ role: 'user', content: 'Hello' }],
    stream: true
  })
  const reading = stream[Symbol.asyncIterator]()
  await reading.next()
  const next = { ...config, models: { chat: to('upstream-model', 'up') } }
  gateway.write(next)
  gateway.hangUp()
  await gateway.line(applied)
  t.equal(await gateway.ask('chat'), 'Hello', 'the next one goes elsewhere')
  t.equal(upstream.requests.length, 1)
  let words = 0
  for (let read = await reading.next(); !read.done; read = await reading.next()) {
    if (read.value.choices[0]?.delta.content) words++
  }
  t.ok(words >= 28, `${words} words`)
  const { body } = await gateway.administer('GET', '/api/records')
  t.match(body['data'], [
    { provider: 'up', stream: false, config_hash: configOf(next), status: 'settled' },
    { provider: 'echo', stream: true, config_hash: configOf(config), status: 'settled' }
  ])
  await gateway.stop()
})

t.test('a faulty file changes nothing and says why, a line for each fault', async t => {
  const gateway = await start(t)
  const config = await gateway.health()
  const faulty = { ...base, models: { chat: { ...to('echo'), retries: -1 } }, tasks: { a: 'nowhere' }, nonsense: 1 }
  gateway.write(faulty)
  gateway.hangUp()
  const faults = [await gateway.line(refused), await gateway.line(refused), await gateway.line(refused)]
  t.match(
    faults.map(({ level, fault }) => [level, fault]),
    [
      [50, /^models\.chat\.retries: found -1/],
      [50, /^nonsense: unknown key/],
      [50, /^tasks\.a: found "nowhere"/]
    ]
  )
  t.equal(await gateway.health(), config)
  t.match(await gateway.ask('chat'), /^Hello/)
  const answer = await gateway.administer('POST', '/api/routing/reload')
  t.equal(answer.status, 400)
  t.match(answer.body, { error: { message: faults.map(({ fault }) => fault).join('\n') } })
  gateway.write({ ...base, models: { mended: to('echo') } })
  gateway.hangUp()
  await gateway.line(applied)
  t.strictSame(await gateway.models(), ['mended'])
  t.equal(await gateway.stop(), 0)
})

t.test('a file that cannot be read, or could not be started with, changes nothing', async t => {
  const gateway = await start(t, base, { ADMIN_TOKEN: '' })
  const says = async (words: RegExp) => {
    gateway.hangUp()
    const { fault } = await gateway.line(refused)
    t.match(fault, words)
    t.strictSame(String(fault).split('\n').length, 1)
  }
  gateway.write('models: { chat: sk-secret-1 ')
  await says(/^gateway\.yaml is neither YAML nor JSON: Flow map .+, line 1, column \d+$/)
  gateway.write('a: *sk-secret-2')
  await says(/^gateway\.yaml is neither YAML nor JSON: Unresolved alias/)
  gateway.write({ ...base, server: { host: '0.0.0.0' } })
  await says(/^server\.host is 0\.0\.0\.0, which other machines can reach/)
  gateway.write({ ...base, redis: 'redis://user:sk-secret-3@cache', tenants: { a: { keys: ['sk secret 4'] } } })
  await says(/^tenants\.a\.keys\[0\]: found <hidden>/)
  rmSync(gateway.file)
  await says(/^gateway\.yaml cannot be read: ENOENT/)
  t.notMatch(gateway.said.stdout + gateway.said.stderr, /sk.secret/)
  const models = JSON.parse((await call(`${gateway.url}/v1/models`)).body)
  t.match(models.data, [{ id: 'chat' }])
  t.equal(await gateway.stop(), 0)
})

t.test('a server without a file reads one that has come since', async t => {
  const gateway = run(t)
  const url = await gateway.url()
  writeFileSync(join(gateway.folder, 'gateway.yaml'), JSON.stringify({ models: { chat: to('echo') } }))
  gateway.child.kill('SIGHUP')
  await gateway.until(/the routing table has changed/)
  t.match(JSON.parse((await call(`${url}/v1/models`)).body).data, [{ id: 'chat' }])
  rmSync(join(gateway.folder, 'gateway.yaml'))
  gateway.child.kill('SIGHUP')
  await gateway.until(/gateway\.yaml cannot be read: ENOENT/)
  t.notMatch(gateway.said.stdout, /"restart":/, 'neither the made-up admin token nor anything else waits')
  t.equal(await gateway.stop(), 0)
})

t.test('SIGHUPs at once: the last file counts, and the process goes on', async t => {
  const gateway = await start(t)
  for (let turn = 0; turn < 20; turn++) {
    gateway.write({ ...base, models: { [`m${turn}`]: to('echo') } })
    gateway.hangUp()
    gateway.hangUp()
  }
  const last = { ...base, models: { last: to('echo') } }
  gateway.write(last)
  gateway.hangUp()
  gateway.hangUp()
  while ((await gateway.health()) !== configOf(last));
  t.strictSame(await gateway.models(), ['last'])
  t.notMatch(gateway.said.stdout, /"level":[56]0/)
  t.equal(await gateway.stop(), 0)
})

t.test('what only counts after a restart is named, by SIGHUP and over HTTP, and nothing of it is shown', async t => {
  const providers = {
    ...base.providers,
    up: { type: 'openai-compatible', baseUrl: 'http://127.0.0.1:1', apiKeys: ['sk-one'] }
  }
  const config = { ...base, providers }
  const gateway = await start(t, config)
  const before = await gateway.health()
  const next = {
    ...config,
    providers: { ...providers, up: { ...providers.up, apiKeys: ['sk-two'] }, more: { type: 'echo' } },
    tenants: { acme: { keys: ['gw-plain-key'] } },
    plugins: { limits: false },
    models: { ...base.models, second: to('echo') }
  }
  gateway.write(next)
  const restart = ['providers.up', 'providers.more', 'tenants.acme', 'plugins.limits']
  const dry = await gateway.administer('POST', '/api/routing/reload?dryRun=true')
  t.match(dry, { status: 200, body: { applied: false, restart, changes: [{ path: 'models.second' }] } })
  t.notMatch(JSON.stringify(dry.body), /sk-|plain-key|baseUrl/)
  t.equal(await gateway.health(), before)
  t.strictSame(await gateway.models(), ['chat'])

  gateway.hangUp()
  t.match(await gateway.line(applied), { changes: ['models.second'] })
  t.match(await gateway.line('only change with a restart'), { level: 40, restart })
  t.match(await gateway.ask('second'), /^Hello/)
  t.equal(await gateway.health(), configOf({ ...config, models: next.models }), 'what runs, which is no file')
  t.not(await gateway.health(), configOf(next))
  const again = await gateway.administer('POST', '/api/routing/reload')
  t.match(again.body, { applied: false, changes: [], restart })
  t.notMatch(gateway.said.stdout + gateway.said.stderr, /sk-one|sk-two|plain-key/)
  await gateway.stop()
})

t.test('a target of a provider that has come since is a fault', async t => {
  const gateway = await start(t)
  gateway.write({
    providers: { ...base.providers, more: { type: 'echo' } },
    models: { chat: to('echo'), new: to('m', 'more') }
  })
  const { status, body } = await gateway.administer('POST', '/api/routing/reload')
  t.equal(status, 400)
  t.match(body, {
    error: { message: /^models\.new\.targets\[0\]\.provider: found "more"; allowed: a provider that runs/ }
  })
  t.strictSame(await gateway.models(), ['chat'])
  await gateway.stop()
})

t.test('.env is read again too', async t => {
  const gateway = await start(t)
  const up = { type: 'openai-compatible', baseUrl: 'http://127.0.0.1:1', apiKeys: ['env:NEW_KEY'] }
  gateway.write({ ...base, providers: { ...base.providers, up } })
  gateway.hangUp()
  t.match(await gateway.line(refused), { fault: /^providers\.up\.apiKeys\[0\]: found env:NEW_KEY/ })
  writeFileSync(join(gateway.folder, '.env'), 'NEW_KEY=sk-secret\nADMIN_TOKEN=what-is-set-stays\n')
  gateway.hangUp()
  t.strictSame((await gateway.line('only change with a restart'))['restart'], ['providers.up'])
  t.notMatch(gateway.said.stdout, 'sk-secret')
  await gateway.stop()
})

t.test(
  'on a terminal',
  { skip: spawnSync('script', ['--version']).error ? 'script(1) is not here' : false },
  async t => {
    const command: [string, ...string[]] = ['script', '-qec', `exec '${process.execPath}' '${server}'`, '/dev/null']
    const begin = async (t: Test) => {
      const gateway = run(t, { command, files: { 'gateway.yaml': { ...base, log: { destination: 'gateway.log' } } } })
      const url = await gateway.url()
      const log = () => readFileSync(join(gateway.folder, 'gateway.log'), 'utf8')
      const pid = Number(spawnSync('pgrep', ['-P', String(gateway.child.pid)], { encoding: 'utf8' }).stdout)
      t.ok(pid > 0)
      t.teardown(() => isAlive(pid) && process.kill(pid, 'SIGKILL'))
      return { ...gateway, url, log, pid }
    }

    t.test('SIGHUP reads the configuration again too', async t => {
      const gateway = await begin(t)
      writeFileSync(join(gateway.folder, 'gateway.yaml'), JSON.stringify({ ...base, models: { more: to('echo') } }))
      process.kill(gateway.pid, 'SIGHUP')
      while (!gateway.log().includes(applied)) await new Promise(resolve => setTimeout(resolve, 20))
      t.ok(isAlive(gateway.pid))
    })

    t.test('that is closed it ends, as nobody could end it any more', async t => {
      const gateway = await begin(t)
      gateway.child.kill('SIGKILL')
      while (isAlive(gateway.pid)) await new Promise(resolve => setTimeout(resolve, 20))
      t.match(gateway.log(), '"closing"')
      t.notMatch(gateway.log(), same)
    })
  }
)

function isAlive(pid: number): boolean {
  try {
    return process.kill(pid, 0)
  } catch {
    return false
  }
}

t.test('SIGHUP while it shuts down neither ends it at once nor holds it up', async t => {
  const gateway = await start(t, { ...base, providers: { echo: { type: 'echo', words: 20, interval: '40ms' } } })
  const stream = await gateway.client.chat.completions.create({
    model: 'chat',
    messages: [{ role: 'user', content: 'Hello' }],
    stream: true
  })
  const reading = stream[Symbol.asyncIterator]()
  await reading.next()
  gateway.child.kill('SIGTERM')
  await gateway.line('closing')
  gateway.write({ ...base, models: {} })
  gateway.hangUp()
  let words = 0
  for (let read = await reading.next(); !read.done; read = await reading.next()) {
    if (read.value.choices[0]?.delta.content) words++
  }
  t.ok(words >= 18, `${words} words`)
  t.equal(await gateway.ended, 0)
  t.notMatch(gateway.said.stdout, applied)
})

t.test('an embedder has the hash too, and changes the table by itself', async t => {
  const app = Fastify()
  t.teardown(() => app.close())
  const options = { store: 'sqlite::memory:', ...base, plugins: { auth: { adminToken } } } satisfies ModelGatewayOptions
  await app.register(modelGateway, { prefix: '/llm', ...options })
  await app.ready()
  const shown = async () => (await app.inject('/llm/health')).json().config
  const headers = { authorization: `Bearer ${adminToken}` }
  t.equal(await shown(), readConfig(options).hash.slice(0, 12))
  t.equal((await app.inject({ method: 'POST', url: '/llm/api/routing/reload', headers })).statusCode, 409)

  const { settings, hash } = readConfig({ ...options, models: { more: { ...to('echo'), timeouts: { total: '5s' } } } })
  app.gateway.models.replace({ ...settings, hash })
  t.equal(await shown(), hash.slice(0, 12))
  const messages = [{ role: 'user' as const, content: 'Hello' }]
  await app.gateway.complete({ model: 'more', messages }, app.gateway.caller())
  await t.rejects(app.gateway.complete({ model: 'chat', messages }, app.gateway.caller()), {
    code: 'GATEWAY_MODEL_NOT_FOUND'
  })
  const { data } = (await app.inject({ url: '/llm/api/records', headers })).json()
  t.match(data, [{ model: 'more', config_hash: hash.slice(0, 12) }])

  const broken = { ...base.models, a: { ...to('echo'), fallbacks: ['a'] } }
  t.throws(() => app.gateway.models.replace({ models: broken }), { code: 'GATEWAY_INVALID_CONFIG' })
  t.equal(await shown(), hash.slice(0, 12), 'nothing has changed')
})
