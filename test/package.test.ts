import { type ExecFileException, execFile, spawn } from 'node:child_process'
import {
  accessSync,
  constants,
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  realpathSync,
  rmSync,
  symlinkSync,
  writeFileSync
} from 'node:fs'
import { builtinModules, isBuiltin } from 'node:module'
import { tmpdir } from 'node:os'
import { join, relative } from 'node:path'
import { fileURLToPath } from 'node:url'
import t, { type Test } from 'tap'

const root = fileURLToPath(new URL('..', import.meta.url))
const runtime = join(root, 'node_modules/node/bin')
const manifest = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'))
const lock = JSON.parse(readFileSync(join(root, 'package-lock.json'), 'utf8'))
const folder = realpathSync(mkdtempSync(join(tmpdir(), 'gateway-package-test-')))
t.teardown(() => rmSync(folder, { recursive: true, force: true }))

/** Of env(1), which becomes the program: tap hands every process it starts a loader of its own. */
const bare = ['-u', 'NODE_OPTIONS']

interface Ran {
  code: number
  stdout: string
  stderr: string
}

/** Runs a program on the packaged runtime, with an environment of its own. */
function run(cwd: string, program: string, args: string[]): Promise<Ran> {
  // npm's cache and the address of the registry stay those of the user.
  const { HOME, npm_config_cache, npm_config_registry, HTTPS_PROXY, NODE_EXTRA_CA_CERTS } = process.env
  const env = { HOME, npm_config_cache, npm_config_registry, HTTPS_PROXY, NODE_EXTRA_CA_CERTS }
  const PATH = `${runtime}:${process.env['PATH']}`
  return new Promise(resolve => {
    execFile(
      'env',
      [...bare, program, ...args],
      { cwd, env: { ...env, PATH } },
      (error: ExecFileException | null, stdout, stderr) => {
        resolve({ code: error === null ? 0 : Number(error.code ?? -1), stdout, stderr })
      }
    )
  })
}

const quiet = ['--no-audit', '--no-fund', '--loglevel=error', '--prefer-offline', '--fetch-retries=0']

/** Why nothing can be installed here, or false. Where it has to be possible, the tests fail instead. */
async function offline(): Promise<string | false> {
  if (process.env['CI']) return false
  const { code, stderr } = await run(folder, 'npm', ['view', 'fastify', 'version', '--fetch-timeout=10000', ...quiet])
  return code !== 0 && `the registry cannot be reached: ${/E[A-Z]{4,}/.exec(stderr)?.[0] ?? stderr}`
}

async function install(cwd: string, args: string[]): Promise<void> {
  const { code, stdout, stderr } = await run(cwd, 'npm', [...args, ...quiet])
  if (code !== 0) throw new Error(`npm ${args[0]} failed: ${stdout}${stderr}`)
}

/** What `npm pack` puts into the tarball, from a copy: its build must not pull dist/ away from under others. */
async function pack() {
  const source = join(folder, 'source')
  mkdirSync(source)
  const left = new Set(['node_modules', 'dist', 'test', 'bench', 'data', '.git', '.tap', 'coverage'])
  for (const name of readdirSync(root)) {
    if (!left.has(name)) cpSync(join(root, name), join(source, name), { recursive: true })
  }
  symlinkSync(join(root, 'node_modules'), join(source, 'node_modules'))
  const { code, stdout, stderr } = await run(source, 'npm', ['pack', '--json', '--pack-destination', folder])
  if (code !== 0) throw new Error(`npm pack failed: ${stdout}${stderr}`)
  const [packed] = Object.values<{ filename: string; files: Array<{ path: string; mode: number }> }>(
    JSON.parse(stdout.slice(stdout.search(/^[[{]/m)))
  )
  return { source, tarball: join(folder, packed!.filename), files: packed!.files }
}

t.test('the manifest and the lock', async t => {
  for (const kind of ['dependencies', 'devDependencies']) {
    for (const [name, version] of Object.entries<string>(manifest[kind])) t.match(version, /^\d+\.\d+\.\d+$/, name)
  }
  t.same(manifest.peerDependencies, { fastify: '^5.12.0' })
  t.notMatch(readFileSync(join(root, '.npmrc'), 'utf8') + JSON.stringify(manifest), 'ignore-scripts')
  t.notMatch(readFileSync(join(root, 'package-lock.json'), 'utf8'), '"resolved"', 'the lock names no registry')
  const { name, version, license, bin, engines, dependencies, devDependencies, peerDependencies } = manifest
  const declared = { name, version, license, bin, engines, dependencies, devDependencies, peerDependencies }
  t.same(lock.packages[''], declared, 'they say the same')
  t.notOk(lock.packages['node_modules/fastify'].dev, 'an install without development dependencies has its fastify')
})

t.test('the package', async t => {
  const { source, tarball, files } = await pack()
  const paths = files.map(file => file.path)

  t.test('holds what is needed and nothing else', async t => {
    for (const path of paths) {
      t.match(
        path,
        /^(dist\/.*\.(js|d\.ts)|dist\/plugins\/store\/migrations\/\w+\/\d{4}-[\w-]+\.sql|docs\/.*|README\.md|CHANGELOG\.md|LICENSE|package\.json|gateway\.example\.yaml|\.env\.example)$/
      )
    }
    for (const path of ['LICENSE', 'package.json', 'gateway.example.yaml', '.env.example'])
      t.ok(paths.includes(path), path)
    const program = join(source, manifest.bin['fastify-model-gateway'])
    t.ok(readFileSync(program, 'utf8').startsWith('#!/usr/bin/env node\n'))
    t.doesNotThrow(() => accessSync(program, constants.X_OK))
    const listed = Object.values<{ types: string; default: string } | string>(manifest.exports)
    for (const target of listed.flatMap(entry => (typeof entry === 'string' ? entry : [entry.types, entry.default]))) {
      t.ok(paths.includes(target.replace('./', '')), target)
    }
  })

  t.test('exports every plugin and every provider by its name', async t => {
    for (const kind of ['plugins', 'providers']) {
      for (const name of readdirSync(join(root, kind))) {
        if (name === 'wires') continue
        t.ok(manifest.exports[`./${kind}/${name.replace('.ts', '')}`], `${kind}/${name}`)
      }
    }
  })

  t.test('imports nothing that it does not declare', async t => {
    const known = new Set([
      ...builtinModules,
      ...Object.keys({ ...manifest.dependencies, ...manifest.peerDependencies })
    ])
    for (const path of paths.filter(path => /\.(js|d\.ts)$/.test(path))) {
      const code = readFileSync(join(source, path), 'utf8')
      for (const [, from = ''] of code.matchAll(/(?:from |import |import\(|declare module )['"]([^'".][^'"]*)['"]/g)) {
        const name = from
          .replace('node:', '')
          .split('/', from.startsWith('@') ? 2 : 1)
          .join('/')
        if (!known.has(name) && !isBuiltin(from)) t.fail(`${path} imports ${from}`)
      }
    }
  })

  const consumer = join(folder, 'consumer')
  mkdirSync(consumer)
  writeFileSync(join(consumer, 'package.json'), JSON.stringify({ private: true, type: 'module' }))
  const { version } = lock.packages['node_modules/fastify']
  const types = `@types/node@${manifest.devDependencies['@types/node']}`
  const skip = await offline()
  if (!skip) await install(consumer, ['install', tarball, `fastify@${version}`, '@fastify/redis@9.0.0', types])

  t.test('installed into an empty project', { skip }, async t => {
    const home = join(consumer, 'node_modules/fastify-model-gateway')
    const names = Object.keys(manifest.exports).map(name => name.replace(/^\./, manifest.name))

    t.test('has every export', async t => {
      const script = `
        const found = {}
        for (const name of ${JSON.stringify(names)}) {
          const given = name.endsWith('.json') ? { with: { type: 'json' } } : {}
          found[name] = { at: import.meta.resolve(name), keys: Object.keys(await import(name, given)) }
        }
        console.log(JSON.stringify(found))`
      writeFileSync(join(consumer, 'exports.js'), script)
      const { code, stdout, stderr } = await run(consumer, 'node', ['exports.js'])
      t.equal(code, 0, stderr)
      for (const [name, { at, keys }] of Object.entries<{ at: string; keys: string[] }>(JSON.parse(stdout))) {
        t.notMatch(relative(home, fileURLToPath(at)), /^\.\./, name)
        if (/\/(plugins|providers\/(echo|openai-compatible))/.test(name))
          t.ok(keys.includes('default'), `${name} is a plugin`)
      }
      const inside = await run(consumer, 'node', ['-e', `import('fastify-model-gateway/dist/app.js')`])
      t.match(inside.stderr, 'ERR_PACKAGE_PATH_NOT_EXPORTED', 'what is not listed is private')
      t.notOk(existsSync(join(home, 'node_modules/fastify')), 'there is one fastify')
    })

    cpSync(join(root, 'examples/provider'), join(consumer, 'provider'), { recursive: true })

    t.test('type-checks', async t => {
      writeFileSync(join(consumer, 'host.ts'), host)
      for (const [module, moduleResolution] of [
        ['nodenext', 'nodenext'],
        ['esnext', 'bundler']
      ]) {
        const compilerOptions = {
          module,
          moduleResolution,
          target: 'es2024',
          types: ['node'],
          strict: true,
          noEmit: true,
          allowImportingTsExtensions: true
        }
        const files = ['host.ts', 'provider/provider.ts', 'provider/provider.test.ts']
        writeFileSync(join(consumer, 'tsconfig.json'), JSON.stringify({ compilerOptions, files }))
        const { code, stdout } = await run(consumer, join(root, 'node_modules/.bin/tsc'), ['-p', '.'])
        t.equal(code, 0, `${moduleResolution}: ${stdout}`)
      }
    })

    t.test('runs as a program', async t => {
      const program = join(consumer, 'node_modules/.bin/fastify-model-gateway')
      t.match((await run(consumer, program, ['--help'])).stdout, '--config FILE')
      t.match((await run(consumer, program, ['--check'])).stdout, 'The configuration is valid.')
      await serves(t, program, [], consumer)
    })

    t.test('runs the examples', async t => {
      for (const name of ['embedding', 'single-plugins']) {
        const code = readFileSync(join(root, `examples/${name}.ts`), 'utf8')
        const inPackage = (path: string) => path.replace(/^\.\.\/app\.ts$/, '..').replace(/(\/index)?\.ts$/, '')
        const published = code.replace(
          /from '(\.\.\/[^']+)'/g,
          (_, path) => `from '${inPackage(path).replace('..', manifest.name)}'`
        )
        t.notMatch(published, "from '.")
        writeFileSync(join(consumer, `${name}.ts`), published)
      }
      const single = await run(consumer, 'node', ['single-plugins.ts'])
      t.equal(single.code, 0, single.stderr)
      t.match(single.stdout, 'Hello, kernel')
      await serves(t, 'node', ['embedding.ts'], consumer, '/llm')
    })
  })

  t.test('a provider of somebody else', { skip }, async t => {
    const folder = join(consumer, 'provider')
    for (const name of ['provider.ts', 'provider.test.ts'])
      for (const [, from = ''] of readFileSync(join(folder, name), 'utf8').matchAll(/ from '([^']+)'/g))
        t.match(from, /^(fastify-model-gateway(\/|$)|fastify$|node:|\.\/provider\.ts$)/, name)
    const [, smallest = ''] =
      /```ts\n(.*?)```/s.exec(readFileSync(join(root, 'docs/writing-a-provider.md'), 'utf8')) ?? []
    writeFileSync(join(folder, 'smallest.ts'), smallest)
    t.equal((await run(folder, 'node', ['smallest.ts'])).stdout, 'HELLO\n', 'the smallest of the page')
    const { code, stdout } = await run(folder, 'node', ['--test', '--test-reporter=tap'])
    t.equal(code, 0, code === 0 ? 'it passes' : stdout)
    t.match(stdout, /^# pass [5-9]\d$/m, 'it runs the suite')
    t.match(stdout, 'ok 1 - acme conforms')
    t.match(stdout, 'ok 2 - acme: conversations cross without loss')
  })

  const production = join(folder, 'production')
  mkdirSync(production)
  for (const name of ['package.json', 'package-lock.json', '.npmrc']) cpSync(join(root, name), join(production, name))
  cpSync(join(source, 'dist'), join(production, 'dist'), { recursive: true })
  if (!skip) await install(production, ['ci', '--omit=dev'])

  t.test('a production install', { skip }, async t => {
    const installed = JSON.parse(readFileSync(join(production, 'node_modules/fastify/package.json'), 'utf8'))
    t.equal(installed.version, lock.packages['node_modules/fastify'].version)
    for (const name of Object.keys(manifest.dependencies))
      t.ok(existsSync(join(production, 'node_modules', name)), name)
    for (const name of ['tap', 'typescript', 'node']) t.notOk(existsSync(join(production, 'node_modules', name)), name)
    await serves(t, 'node', ['dist/server.js'], production)
  })
})

/** Starts a program on any free port, asks it once and ends it. */
async function serves(t: Test, program: string, args: string[], cwd: string, prefix = '') {
  const env = { PATH: `${runtime}:${process.env['PATH']}`, PORT: '0', TMPDIR: folder }
  const child = spawn('env', [...bare, program, ...args], { cwd, env, stdio: ['ignore', 'pipe', 'pipe'] })
  t.teardown(() => child.kill('SIGKILL'))
  const ended = new Promise(resolve => child.on('close', code => resolve(code)))
  let said = ''
  const url = await new Promise<string>((resolve, reject) => {
    child.on('close', () => reject(new Error(`ended: ${said}`)))
    for (const stream of [child.stdout, child.stderr]) {
      stream.setEncoding('utf8').on('data', text => {
        said += text
        const found = /http:\/\/[\w.[\]:]+:\d+/.exec(said)
        if (found) resolve(found[0])
      })
    }
  })
  const answer = await fetch(`${url}${prefix}/v1/chat/completions`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ model: 'echo/echo', messages: [{ role: 'user', content: 'packed' }] })
  })
  t.match(await answer.text(), 'packed packed')
  child.kill('SIGTERM')
  await ended
}

/** What somebody writes who has installed the package: everything here has to compile, or not to. */
const host = `
import fastifyRedis from '@fastify/redis'
import Fastify from 'fastify'
import modelGateway, { ConfigError, modelGateway as named, readConfig, serverOptions } from 'fastify-model-gateway'
import type { Caller, Completed, Config, Gateway, ModelGatewayOptions, Provider } from 'fastify-model-gateway'
import auth from 'fastify-model-gateway/plugins/auth'
import chatCompletions from 'fastify-model-gateway/plugins/chat-completions'
import gateway from 'fastify-model-gateway/plugins/gateway'
import http from 'fastify-model-gateway/plugins/http'
import routing, { type RoutingOptions } from 'fastify-model-gateway/plugins/routing'
import echo from 'fastify-model-gateway/providers/echo'
import openaiCompatible from 'fastify-model-gateway/providers/openai-compatible'
import type { ChatRequest } from 'fastify-model-gateway/schemas/chat'
import { isGatewayError, UpstreamError } from 'fastify-model-gateway/schemas/errors'
import { chunkFrames } from 'fastify-model-gateway/schemas/frames'
import { stages } from 'fastify-model-gateway/schemas/gateway'

declare module 'fastify' {
  interface FastifyInstance {
    llm: Gateway
    tenants: string[]
    to: string
  }
  interface FastifyRequest {
    principal: string
  }
}
declare module 'fastify-model-gateway/schemas/gateway' {
  interface Gateway {
    mine: { count: number }
  }
}

const options: ModelGatewayOptions = { prefix: '/llm', providers: { echo: { type: 'echo', delay: '5ms' } } }
const wrong: Config = {
  // @ts-expect-error There is no such key.
  nonsense: true
}

export const app = Fastify(serverOptions({ bodyLimit: 1, trustProxy: false }))
await app.register(fastifyRedis, { host: '127.0.0.1' })
await app.register(modelGateway, options)
await app.register(named, { name: 'llm', ...wrong })
readConfig({}).settings.server.port.toFixed()
// @ts-expect-error The model of a target is a text.
await app.register(modelGateway, { models: { a: { targets: [{ provider: 'echo', model: 1 }] } } })

const request: ChatRequest = { model: 'echo/echo', messages: [{ role: 'user', content: 'hi' }], top_k: 5 }
const caller: Caller = app.gateway.caller({ tenant: 'acme' })
const answer: Completed = await app.gateway.complete(request, caller)
if (answer.stream) for await (const frames of answer.frames) for (const chunk of frames) chunk.id.length
else answer.body.choices[0]?.message.content?.length
app.llm.providers.list().map((provider: Provider) => provider.name)
app.gateway.models.list().then(models => models[0]?.id)
app.gateway.http.notFound
app.gateway.decorate('mine', { count: 1 })
app.llm.mine.count.toFixed()
await app.redis.get('key')
app.to.length + app.tenants.length
// @ts-expect-error Nobody has added this.
app.gateway.nonsense
// @ts-expect-error What our own scope uses of @fastify/sensible is not the host's.
app.httpErrors
// @ts-expect-error There is no such stage.
app.gateway.intercept('nowhere', (inference, next) => next(inference))
app.gateway.intercept(stages[0], async (inference, next) => {
  inference.onSettled(outcome => outcome.duration)
  const given = await next(inference)
  return given.stream ? given : { ...given, raw: null }
})
app.gateway.providers.register({
  name: 'own',
  capabilities: { dialects: [] },
  async send(attempt) {
    if (attempt.number > 1) throw new UpstreamError('it is closed.')
    async function* frames() {
      yield chunkFrames([])
    }
    return { stream: true, frames: frames() }
  }
})

const single = Fastify()
const route: RoutingOptions = { defaultModel: 'echo/echo' }
await single.register(gateway, { shutdownGrace: 5 })
await single.register(routing, route)
await single.register(echo, { words: 3 })
await single.register(openaiCompatible, { name: 'openai', apiKeys: ['sk'] })
await single.register(http, { bodyLimit: 5 })
await single.register(auth, { adminToken: 'token' })
await single.register(chatCompletions, { sse: false })
export const known = (error: unknown) => isGatewayError(error) || error instanceof ConfigError || wrong
`
