import { execFile, spawnSync } from 'node:child_process'
import { existsSync, readdirSync, readFileSync, statSync } from 'node:fs'
import { Agent } from 'node:http'
import { type AddressInfo, connect, createServer } from 'node:net'
import { dirname, join } from 'node:path'
import { DatabaseSync } from 'node:sqlite'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import OpenAI from 'openai'
import t, { type Test } from 'tap'
import { call, type RunOptions, run, server } from './server-process.ts'
import { failure, startUpstream } from './upstream.ts'

t.jobs = 3

const example = (name: string) => fileURLToPath(new URL(`../examples/${name}`, import.meta.url))
const missing = (program: string) => (spawnSync(program, ['--version']).error ? `${program}(1) is not here` : false)

const fast = { providers: { echo: { type: 'echo', words: 3 } } }
const messages = [{ role: 'user' as const, content: 'one two three' }]
const keyed = (url: string, key = 'none') => new OpenAI({ baseURL: `${url}/v1`, apiKey: key, maxRetries: 0 })

async function ask(url: string, key?: string) {
  const answer = await keyed(url, key).chat.completions.create({ model: 'echo/echo', messages })
  return answer.choices[0]?.message.content
}

t.test('without any configuration it serves the echo and says what to paste', async t => {
  const gateway = run(t)
  const url = await gateway.url()
  t.match(url, /^http:\/\/127\.0\.0\.1:\d+$/)
  t.match(gateway.said.stderr, `baseURL: ${url}/v1`)
  t.match(gateway.said.stderr, /models +echo\/echo/)
  const line = /^ *(curl .*)$/m.exec(gateway.said.stderr)?.[1] ?? ''
  t.ok(line.includes(`${url}/v1/chat/completions`))
  await t.test('the curl line works', { skip: missing('curl') }, async t => {
    const { stdout } = await promisify(execFile)('sh', ['-c', `${line} -sS`])
    t.match(JSON.parse(stdout).choices[0].message.content, /^Hello, gateway Hello/)
  })
  t.match(await ask(url), /^one two three/)

  const token = /admin token +in (\S+)/.exec(gateway.said.stderr)?.[1] ?? ''
  t.equal(statSync(token).mode & 0o777, 0o600)
  t.equal(statSync(dirname(token)).mode & 0o777, 0o700)
  t.match(readFileSync(token, 'utf8'), /^[\w-]{43}\n$/)
  t.equal(await ask(url, readFileSync(token, 'utf8').trim()), await ask(url), 'it opens, and closes nothing')
  t.notMatch(gateway.said.stdout + gateway.said.stderr, readFileSync(token, 'utf8').trim(), 'it is not shown')
  t.equal(await gateway.stop(), 0)
  t.notOk(existsSync(token), 'the token is gone')
  t.same(readdirSync(join(gateway.folder, 'tmp')), [])
  t.same(readdirSync(gateway.folder).sort(), ['data', 'tmp'], 'nothing else was written')
})

t.test('the printed line survives a shell whatever the model is called', async t => {
  const models = { "it's-$HOME": { targets: [{ provider: 'echo', model: 'echo' }] } }
  const gateway = run(t, { files: { 'gateway.yaml': { ...fast, models } } })
  await gateway.url()
  const line = /^ *(curl .*)$/m.exec(gateway.said.stderr)?.[1] ?? ''
  const { stdout } = await promisify(execFile)('sh', ['-c', line.replace(/^curl/, "printf '%s\\n'")])
  t.equal(JSON.parse(stdout.trim().split('\n').at(-1) ?? '').model, "it's-$HOME")
  await gateway.stop()
})

t.test('a provider whose models are not known is named in the line', async t => {
  const providers = { up: { type: 'openai-compatible', baseUrl: 'http://127.0.0.1:1' } }
  const gateway = run(t, { files: { 'gateway.yaml': { providers } } })
  await gateway.url()
  t.match(gateway.said.stderr, /models +none listed: name them up\/MODEL\n[\s\S]*"model":"up\/MODEL"/)
  await gateway.stop()
})

t.test('on a terminal the token is shown and the log is for people', { skip: missing('script') }, async t => {
  const gateway = run(t, { command: ['script', '-qec', `exec '${process.execPath}' '${server}'`, '/dev/null'] })
  const url = await gateway.url()
  const token = await gateway.until(/admin token +([\w-]{43})\r?\n/)
  t.equal(await ask(url, token), await ask(url))
  t.same(readdirSync(join(gateway.folder, 'tmp')), [], 'it is in no file')
  await gateway.until(/INFO.*listening/)
  // With its id and that of its trace: what an answer has in its headers is found here.
  await gateway.until(/public: echo\/echo → echo\/echo, 200 in.*requestId.*req_\w+.*traceId.*[0-9a-f]{32}/s)
  t.notMatch(gateway.said.stdout, '{"level"')
  gateway.child.stdin.write('\x03')
  t.equal(await gateway.ended, 0)
  t.match(gateway.said.stdout, /closing/)
})

t.test('--help', async t => {
  for (const flag of ['--help', '-h']) {
    const { ended, said } = run(t, { args: [flag] })
    t.equal(await ended, 0)
    t.match(said.stdout, /--config FILE/)
    t.equal(said.stderr, '')
  }
})

t.test('flags that are not known', async t => {
  for (const args of [['--nonsense'], ['gateway.yaml'], ['--config']]) {
    const { ended, said } = run(t, { args })
    t.equal(await ended, 1, args.join(' '))
    t.match(said.stderr, /--check/, 'the help follows')
    t.notMatch(said.stderr, /^ +at /m, 'no stack')
    t.equal(said.stdout, '')
  }
})

t.test('--verify', async t => {
  const gateway = run(t, { files: { 'gateway.yaml': fast } })
  await ask(await gateway.url())
  t.equal(await gateway.stop(), 0)
  const verify = () => {
    const command = [process.execPath, server, '--verify']
    return spawnSync('env', ['-u', 'NODE_OPTIONS', ...command], { cwd: gateway.folder, env: {}, encoding: 'utf8' })
  }

  t.test('says that the books are right', async t => {
    const { status, stdout, stderr } = verify()
    t.match(stdout, /^The books are right: \d+ balances, 1 rows\.\n$/, stderr)
    t.equal(status, 0)
  })

  t.test('says what differs, and exits with 1', async t => {
    const database = new DatabaseSync(join(gateway.folder, 'data/gateway.db'))
    database.exec("UPDATE balances SET spent = 1500000 WHERE scope = 'tenant:public'")
    database.close()
    const { status, stdout } = verify()
    t.match(stdout, 'tenant:public total: the balance is $0.0015, the ledger says $0\n')
    t.match(stdout, /^1 balances differ/m)
    t.equal(status, 1)
  })

  t.test('needs a database that nobody uses', async t => {
    const other = run(t, { files: { 'gateway.yaml': fast } })
    await other.url()
    const { status, stdout, stderr } = spawnSync('env', ['-u', 'NODE_OPTIONS', process.execPath, server, '--verify'], {
      cwd: other.folder,
      env: {},
      encoding: 'utf8'
    })
    t.match(stderr, /cannot be verified.*in use by another gateway/)
    t.equal(stdout, '')
    t.equal(status, 1)
  })
})

t.test('--check', async t => {
  t.test('valid', async t => {
    const files = { 'gateway.yaml': 'providers: { echo: { type: echo } }\nplugins: { cache: true }\n' }
    const { ended, said, folder } = run(t, { args: ['--check'], files })
    t.equal(await ended, 0)
    t.match(said.stdout, /note: plugins\.cache .*not built yet[\s\S]*The configuration is valid\.\n$/)
    t.same(readdirSync(folder).sort(), ['gateway.yaml', 'tmp'])
  })

  t.test('every fault, with its path, and nothing secret', async t => {
    const files = {
      'gateway.yaml': `
server: { port: 99999, bodyLimit: much }
providers:
  one: { type: openai-compatible, baseUrl: https://one.example, apiKeys: [env:NOT_SET] }
  two: { type: nonsense }
models: { chat: { targets: [{ provider: nobody, model: m }], fallbacks: [chat] } }
defaultModel: missing
plugin: {}
`
    }
    const { ended, said } = run(t, { args: ['--check'], files, env: { ADMIN_TOKEN: 'a token with spaces', PORT: '' } })
    t.equal(await ended, 1)
    t.equal(said.stdout, '')
    const paths = said.stderr
      .trim()
      .split('\n')
      .map(line => line.split(/[: ]/)[0])
    t.same(paths.sort(), [
      'defaultModel',
      'models.chat.fallbacks[0]',
      'models.chat.targets[0].provider',
      'plugin',
      'plugins.auth.adminToken',
      'providers.one.apiKeys[0]',
      'providers.two.type',
      'server.bodyLimit',
      'server.port'
    ])
    t.match(said.stderr, 'env:NOT_SET')
    t.notMatch(said.stderr, 'a token with spaces')
  })

  t.test('an open door is a fault too', async t => {
    const { ended, said } = run(t, { args: ['--check'], env: { HOST: '0.0.0.0' } })
    t.equal(await ended, 1)
    t.match(said.stderr, /ADMIN_TOKEN/)
  })
})

t.test('where the configuration comes from', async t => {
  const provider = (name: string) => ({ providers: { [name]: { type: 'echo' } } })
  const models = async (t: Test, options: RunOptions) => {
    const gateway = run(t, options)
    const { data } = await keyed(await gateway.url()).models.list()
    await gateway.stop()
    return data.map(model => model.id).join()
  }
  const files = {
    'gateway.yaml': 'providers: { from-default: { type: echo } }',
    'named.yaml': '# by the flag\nproviders:\n  from-flag:\n    type: echo\n',
    'deep/variable.json': JSON.stringify(provider('from-variable'), null, '\t')
  }
  const env = { GATEWAY_CONFIG: 'deep/variable.json' }
  t.equal(await models(t, { files }), 'from-default/echo', './gateway.yaml')
  t.equal(await models(t, { files, env: { GATEWAY_CONFIG: '' } }), 'from-default/echo', 'an empty variable is none')
  t.equal(await models(t, { files, env }), 'from-variable/echo', 'GATEWAY_CONFIG, JSON with tabs')
  t.equal(await models(t, { files, env, args: ['--config', 'named.yaml'] }), 'from-flag/echo', '--config')
  t.equal(await models(t, { files: { 'gateway.yaml': '# nothing\n' } }), 'echo/echo', 'an empty file')
})

t.test('a file that cannot be used stops the start with one line', async t => {
  const broken = [
    [{ files: { 'gateway.yaml': 'server: { port: 1' } }, /^gateway\.yaml is neither YAML nor JSON: /],
    [{ files: { 'gateway.yaml': 'a: 1\n---\nb: 2\n' } }, /^gateway\.yaml is neither YAML nor JSON: /],
    [{ files: { 'gateway.yaml': '- a\n- list\n' } }, /^configuration: found a list/],
    [{ files: { 'gateway.yaml/file': '' } }, /^gateway\.yaml cannot be read: EISDIR/],
    [{ args: ['--config', 'nowhere.yaml'] }, /^nowhere\.yaml cannot be read: ENOENT/],
    [{ env: { GATEWAY_CONFIG: 'nowhere.json' } }, /^nowhere\.json cannot be read: ENOENT/],
    [{ env: { PORT: 'eighty' } }, /^server\.port \(PORT\): found "eighty"/]
  ] as Array<[RunOptions, RegExp]>
  for (const [options, words] of broken) {
    const { ended, said } = run(t, options)
    t.equal(await ended, 1)
    t.match(said.stderr, words)
    t.notMatch(said.stderr, /^ +at /m, 'no stack')
    t.equal(said.stdout, '')
  }
})

t.test('a port that is taken', async t => {
  const holder = createServer()
  await new Promise<void>(resolve => holder.listen(0, '127.0.0.1', resolve))
  t.teardown(() => new Promise(resolve => holder.close(resolve)))
  const port = String((holder.address() as AddressInfo).port)
  const { ended, said, folder } = run(t, { env: { PORT: port } })
  t.equal(await ended, 1)
  t.match(said.stderr, new RegExp(`^The gateway cannot start: .*address already in use 127\\.0\\.0\\.1:${port}\n$`))
  t.same(readdirSync(join(folder, 'tmp')), [], 'no token stays behind')
})

t.test('an address that others reach', async t => {
  const open = { env: { HOST: '0.0.0.0' } }
  t.test('is refused while nobody has a key', async t => {
    for (const host of ['0.0.0.0', '::', '192.0.2.1', 'gateway.example']) {
      const { ended, said } = run(t, { env: { HOST: host } })
      t.equal(await ended, 1, host)
      t.match(said.stderr, new RegExp(`^server\\.host is ${host}, which other machines can reach.*ADMIN_TOKEN`))
    }
  })

  t.test('is served with an admin token', async t => {
    const gateway = run(t, { env: { ...open.env, ADMIN_TOKEN: 'the-token-of-this-test' } })
    const url = await gateway.url()
    t.notMatch(gateway.said.stderr, 'admin token', 'none is made up')
    t.match(gateway.said.stderr, '-H "Authorization: Bearer $GATEWAY_KEY"', 'the curl line wants a key')
    await t.rejects(ask(url), /401/)
    t.match(await ask(url, 'the-token-of-this-test'), /^one/)
    await gateway.stop()
  })

  t.test("is served with a tenant's key", async t => {
    const files = { 'gateway.yaml': { ...fast, tenants: { acme: { keys: ['env:ACME_KEY'] } } } }
    const gateway = run(t, { files, env: { ...open.env, ACME_KEY: 'key-of-acme' } })
    const url = await gateway.url()
    await t.rejects(ask(url), /401/)
    t.equal(await ask(url, 'key-of-acme'), 'one two three')
    await gateway.stop()
  })

  t.test('is served for a tenant that everybody may spend for', async t => {
    const files = { 'gateway.yaml': { ...fast, plugins: { auth: { anonymousTenant: 'public' } } } }
    const gateway = run(t, { files, ...open })
    t.equal(await ask(await gateway.url()), 'one two three')
    await gateway.stop()
  })
})

t.test('a key in the environment is a provider', async t => {
  const upstream = await startUpstream()
  t.teardown(() => upstream.close())
  const env = {
    OPENAI_API_KEY: 'sk-of-the-environment',
    OPENAI_BASE: upstream.url,
    OPENROUTER_API_KEY: 'sk-or',
    ANTHROPIC_API_KEY: 'sk-ant',
    LLAMA_CPP_BASE: 'http://127.0.0.1:1'
  }
  // Nobody knows what an upstream of this machine costs.
  const files = { 'gateway.yaml': { plugins: { budgets: { unpriced: 'allow' } } } }
  const gateway = run(t, { env, files })
  const client = keyed(await gateway.url())
  const answer = await client.chat.completions.create({ model: 'openai/gpt', messages })
  t.equal(answer.choices[0]?.message.content, 'one two three')
  // Before it, the start has asked which models there are.
  const asked = upstream.requests.find(({ method }) => method === 'POST')
  t.equal(asked?.headers['authorization'], 'Bearer sk-of-the-environment')
  t.equal(asked?.json.model, 'gpt')
  const known = await client.models.retrieve('openrouter/any/model')
  t.equal(known.owned_by, 'openrouter')
  await gateway.stop()
})

t.test('logs', async t => {
  const secrets = {
    ADMIN_TOKEN: 'secret-admin-token-1',
    TENANT_KEY: 'gw_secret-tenant-key-2',
    UPSTREAM_KEY: 'sk-secret-upstream-key-3'
  }
  const failing = async (t: Test, log: object) => {
    const upstream = await startUpstream()
    t.teardown(() => upstream.close())
    const config = {
      log: { level: 'trace', ...log },
      providers: { up: { type: 'openai-compatible', baseUrl: upstream.url, apiKeys: ['env:UPSTREAM_KEY'] } },
      tenants: { acme: { keys: ['env:TENANT_KEY'] } },
      plugins: { budgets: { unpriced: 'allow' } }
    }
    const gateway = run(t, { files: { 'gateway.yaml': config }, env: secrets })
    const url = await gateway.url()
    upstream.script(
      failure(401, { message: `Incorrect API key provided: ${secrets.UPSTREAM_KEY}` }),
      failure(500, { message: `${secrets.UPSTREAM_KEY} is overloaded` })
    )
    for (const key of [secrets.TENANT_KEY, secrets.ADMIN_TOKEN, 'gw_secret-wrong-4']) {
      await keyed(url, key)
        .chat.completions.create({ model: 'up/m', messages })
        .catch(() => {})
    }
    await gateway.stop()
    return gateway
  }
  const readable = (t: Test, text: string) => {
    const lines = text.trim().split('\n')
    t.ok(lines.length > 4)
    for (const line of lines) t.type(JSON.parse(line).level, 'number')
    t.ok(lines.some(line => JSON.parse(line).code === 'GATEWAY_UPSTREAM_ERROR'))
    t.match(lines.at(-1), '"closing"')
  }

  t.test('are JSON lines on stdout, and nothing else is; no line carries a secret', async t => {
    const { said } = await failing(t, {})
    readable(t, said.stdout)
    t.notMatch(said.stdout + said.stderr, /secret-\w+/)
  })

  t.test('go to a file', async t => {
    const { said, folder } = await failing(t, { destination: 'deep/er/gateway.log' })
    readable(t, readFileSync(join(folder, 'deep/er/gateway.log'), 'utf8'))
    t.equal(said.stdout, '')
    t.notMatch(readFileSync(join(folder, 'deep/er/gateway.log'), 'utf8') + said.stderr, /secret-\w+/)
  })

  t.test('that can be watched while it serves', async t => {
    const gateway = run(t, { files: { 'gateway.yaml': { ...fast, log: { destination: 'gateway.log' } } } })
    await gateway.url()
    const file = join(gateway.folder, 'gateway.log')
    while (!readFileSync(file, 'utf8').includes('listening')) await new Promise(resolve => setTimeout(resolve, 50))
    await gateway.stop()
  })

  t.test('that cannot be written stops the start', async t => {
    const { ended, said } = run(t, { files: { 'gateway.yaml': { ...fast, log: { destination: 'tmp' } } } })
    t.equal(await ended, 1)
    t.match(said.stderr, /^log\.destination cannot be written: EISDIR/)
    t.notMatch(said.stderr, /^ +at /m)
  })
})

const trickle = (words: number, interval: string, shutdownGrace: string) => ({
  server: { shutdownGrace },
  providers: { echo: { type: 'echo', words, interval } }
})

t.test('SIGTERM and SIGINT: no new work, what runs finishes', async t => {
  for (const signal of ['SIGTERM', 'SIGINT'] as const) {
    await t.test(signal, async t => {
      const gateway = run(t, { files: { 'gateway.yaml': trickle(40, '50ms', '30s') } })
      const url = await gateway.url()
      const agent = new Agent({ keepAlive: true, maxSockets: 1 })
      t.teardown(() => agent.destroy())
      t.equal((await call(`${url}/ready`, agent)).status, 200)
      const stream = await keyed(url).chat.completions.create({ model: 'echo/echo', messages, stream: true })
      const reading = stream[Symbol.asyncIterator]()
      await reading.next()
      gateway.child.kill(signal)
      await gateway.until(/"closing"/)

      const refused = await call(`${url}/v1/chat/completions`, agent, { model: 'echo/echo', messages })
      t.equal(refused.status, 503, 'on the connection that was there')
      t.match(JSON.parse(refused.body).error, { code: 'shutting_down', type: 'server_error' })
      const ready = await call(`${url}/ready`)
      t.equal(ready.status, 503, 'on a new one')
      t.equal(JSON.parse(ready.body).ok, false)

      let words = 0
      for (let read = await reading.next(); !read.done; read = await reading.next()) {
        if (read.value.choices[0]?.delta.content) words++
      }
      t.equal(words, 40)
      t.equal(await gateway.ended, 0)
    })
  }
})

t.test('what outlives the grace is told, and cut off', async t => {
  const gateway = run(t, { files: { 'gateway.yaml': trickle(10_000, '20ms', '300ms') } })
  const url = await gateway.url()
  const stream = await keyed(url).chat.completions.create({ model: 'echo/echo', messages, stream: true })
  const reading = stream[Symbol.asyncIterator]()
  await reading.next()

  // A request that never ends.
  const { port } = new URL(url)
  const upload = connect(Number(port), '127.0.0.1')
  upload.on('error', () => {})
  upload.write('POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n')
  upload.write('content-length: 1000\r\n\r\n{"model":')
  const cut = new Promise(resolve => upload.on('close', resolve))

  const before = performance.now()
  gateway.child.kill('SIGTERM')
  await t.rejects(
    async () => {
      for (let read = await reading.next(); !read.done; read = await reading.next());
    },
    { code: 'shutting_down' },
    'the stream ends with an error event'
  )
  t.equal(await gateway.ended, 0)
  await cut
  t.ok(performance.now() - before < 5_300, `nothing outlives the grace by 5 s: ${performance.now() - before} ms`)
})

t.test('a whole answer that outlives the grace is a 503', async t => {
  const config = { server: { shutdownGrace: '200ms' }, providers: { echo: { type: 'echo', delay: '1m' } } }
  const gateway = run(t, { files: { 'gateway.yaml': config } })
  const url = await gateway.url()
  const answering = call(`${url}/v1/chat/completions`, undefined, { model: 'echo/echo', messages })
  while (JSON.parse((await call(`${url}/ready`)).body).checks.gateway.running === 0);
  gateway.child.kill('SIGTERM')
  const answer = await answering
  t.equal(answer.status, 503)
  t.equal(JSON.parse(answer.body).error.code, 'shutting_down')
  t.equal(await gateway.ended, 0)
})

t.test('a second signal ends it at once', async t => {
  const gateway = run(t, { files: { 'gateway.yaml': trickle(10_000, '20ms', '1m') } })
  const url = await gateway.url()
  const stream = await keyed(url).chat.completions.create({ model: 'echo/echo', messages, stream: true })
  const reading = stream[Symbol.asyncIterator]()
  await reading.next()
  gateway.child.kill('SIGTERM')
  await gateway.until(/"closing"/)
  const before = performance.now()
  t.equal(await gateway.stop('SIGINT'), 1)
  t.ok(performance.now() - before < 2_000)
  t.same(readdirSync(join(gateway.folder, 'tmp')), [], 'the token is gone all the same')
  await t.rejects(async () => {
    for (let read = await reading.next(); !read.done; read = await reading.next());
  })
})

t.test('idle, also with connections that are kept alive, it ends soon', async t => {
  const gateway = run(t, { files: { 'gateway.yaml': { ...fast, server: { shutdownGrace: '1m' } } } })
  const url = await gateway.url()
  const agent = new Agent({ keepAlive: true })
  t.teardown(() => agent.destroy())
  t.equal((await call(`${url}/health`, agent)).status, 200)
  const before = performance.now()
  t.equal(await gateway.stop(), 0)
  t.ok(performance.now() - before < 2_000, `${performance.now() - before} ms`)
})

t.test('examples', async t => {
  t.test('server', async t => {
    const env = {
      OPENAI_API_KEY: 'sk-1',
      OPENROUTER_API_KEY: 'sk-2',
      ADMIN_TOKEN: 'token-3',
      SHOP_KEY: 'key-4',
      WIKI_KEY: 'key-5'
    }
    const gateway = run(t, { args: ['--config', example('server/gateway.yaml')], env })
    const client = keyed(await gateway.url(), 'key-4')
    t.same(
      (await client.models.list()).data.map(model => model.id),
      ['chat', 'test']
    )
    const answer = await client.chat.completions.create({ model: 'test', messages })
    t.match(answer.choices[0]?.message.content, /^one two three/)
    t.equal(await gateway.stop(), 0)
  })

  t.test('openai-sdk', async t => {
    const gateway = run(t)
    const env = { GATEWAY_URL: `${await gateway.url()}/v1` }
    const { ended, said } = run(t, { command: [process.execPath, example('openai-sdk.ts')], env })
    t.equal(await ended, 0)
    t.match(said.stdout, /^Hello, gateway Hello, gateway/)
    await gateway.stop()
  })

  t.test('embedding', async t => {
    const { child, ended, until } = run(t, { command: [process.execPath, example('embedding.ts')] })
    const url = await until(/http:\S+/)
    t.match((await call(`${url}/summary?text=all+of+this`)).body, /^Summarise: all of this/)
    t.equal((await call(`${url}/llm/health`)).status, 200)
    child.kill()
    await ended
  })

  t.test('single-plugins', async t => {
    const { ended, said } = run(t, { command: [process.execPath, example('single-plugins.ts')] })
    t.equal(await ended, 0)
    t.equal(said.stdout, 'draft completed: 4 tokens\nHello, kernel Hello, kernel\n')
    t.equal(said.stderr, '')
  })
})
