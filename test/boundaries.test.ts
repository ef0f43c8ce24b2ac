import { globSync, readFileSync } from 'node:fs'
import { dirname, join } from 'node:path/posix'
import t from 'tap'

// Who may import whom (design.md, section 2), read from the source itself.

const root = join(import.meta.dirname, '..')
/** Plugins that own routes, and so may speak of requests and replies. */
const transports = ['http', 'chat-completions', 'proxy', 'models', 'health', 'admin', 'metrics', 'events']
/** What providers share, each a file or a folder; besides there are the wires that several vendors speak. */
const shared = ['upstream', 'body', 'endpoint', 'faults', 'stream', 'sse', 'recall', 'media', 'tokens'].map(
  name => `providers/${name}`
)

const comment = /\/\*[\s\S]*?\*\/|\/\/[^\n]*/
const quoted = /'(?:\\.|[^'\\\n])*'|"(?:\\.|[^"\\\n])*"|`(?:\\.|[^`\\])*`/
const pattern = /(?<=[(,=:[!&|?;{}\n]\s*)\/(?![*/])(?:\\.|\[(?:\\.|[^\]\\\n])*\]|[^/\\\n])+\/[a-z]*/
const tokens = new RegExp(`(${comment.source})|(${pattern.source}|${quoted.source})`, 'g')
const imported = /\b(?:from|import|require)\s*\(?\s*(?:'([^']*)'|"([^"]*)"|`([^`]*)`)/g
const computed = /\b(?:import|require)\s*\(\s*[^\s'"`]/

/** What a file of the project, given by its path from the root, does against the rules. */
function faultsOf(file: string, source: string): string[] {
  const code = source.replaceAll(tokens, (whole, isComment) => (isComment === undefined ? whole : ' '))
  const bare = source.replaceAll(tokens, ' ')
  const faults: string[] = []
  for (const [, single, double, template] of code.matchAll(imported)) {
    const name = single ?? double ?? template ?? ''
    const target = name.startsWith('.') ? join(dirname(file), name) : null
    if (target !== null && !mayImport(file, target)) faults.push(`${file} imports ${target}`)
    if (/^(?:node:)?process$/.test(name) && file !== 'server.ts') faults.push(`${file} reads the environment`)
  }
  if (computed.test(bare.replaceAll(/\bimport\s*\(\s*\)/g, ''))) faults.push(`${file} imports a computed name`)
  if (file !== 'server.ts' && readsEnvironment(code)) faults.push(`${file} reads the environment`)
  if (!mayTransport(file) && /\bFastify(?:Request|Reply)\b/.test(bare)) faults.push(`${file} knows requests or replies`)
  if (/(?<![.\w$'-])any(?![\w$(:'-])/.test(bare)) faults.push(`${file} uses any`)
  return faults
}

function mayImport(file: string, target: string): boolean {
  if (file === 'app.ts') return !target.startsWith('testing/')
  if (target.startsWith('schemas/')) return true
  // The log, and the SDK of OpenTelemetry, have to be there before app.ts loads what that may instrument.
  if (file === 'server.ts') {
    const first = ['plugins/otel/sdk.ts', 'plugins/request-log/logger.ts']
    return target === 'app.ts' || first.includes(target)
  }
  if (file.startsWith('plugins/')) return unitOf(file) === unitOf(target)
  if (file.startsWith('providers/wires/')) return isShared(target) || dirname(file) === dirname(target)
  if (isShared(file)) return isShared(target)
  if (file.startsWith('providers/')) {
    return isShared(target) || target.startsWith('providers/wires/') || unitOf(file) === unitOf(target)
  }
  if (file.startsWith('testing/')) return target.startsWith('testing/')
  return false
}

function isShared(file: string): boolean {
  return shared.includes(unitOf(file))
}

/** The plugin or provider that a file belongs to: `plugins/auth`, `providers/openai-compatible`. */
function unitOf(file: string): string {
  return file.split('/').slice(0, 2).join('/').replace(/\.ts$/, '')
}

/** `process.env` however it is written; `code` has its texts, for `process['env']`. */
function readsEnvironment(code: string): boolean {
  return /\bprocess\s*(?:\?\.|\.)\s*env\b|\bprocess\s*(?:\?\.)?\s*\[|\benv\b[^{}]*\}\s*=\s*process\b/.test(code)
}

function mayTransport(file: string): boolean {
  return file.startsWith('plugins/') && transports.includes(unitOf(file).slice('plugins/'.length))
}

const files = globSync(['app.ts', 'server.ts', '{schemas,plugins,providers,testing}/**/*.ts'], { cwd: root }).map(
  file => file.replaceAll('\\', '/')
)

t.test('the source keeps to its boundaries', async t => {
  t.ok(files.length > 30, `${files.length} files`)
  for (const known of [
    'app.ts',
    'server.ts',
    'schemas/gateway.ts',
    'plugins/gateway/call.ts',
    'providers/sse/index.ts'
  ]) {
    t.ok(files.includes(known), known)
  }
  for (const file of files) t.strictSame(faultsOf(file, readFileSync(join(root, file), 'utf8')), [], file)
})

t.test('every transport of the list is there', async t => {
  for (const name of transports)
    t.ok(
      files.some(file => unitOf(file) === `plugins/${name}`),
      name
    )
})

t.test('the imports of a real file are seen', async t => {
  const source = readFileSync(join(root, 'plugins/gateway/index.ts'), 'utf8')
  t.match(faultsOf('plugins/elsewhere.ts', source.replaceAll("'../../", "'../")), [
    'plugins/elsewhere.ts imports plugins/call.ts',
    'plugins/elsewhere.ts imports plugins/dependencies.ts',
    'plugins/elsewhere.ts imports plugins/ending.ts',
    'plugins/elsewhere.ts imports plugins/expense.ts',
    'plugins/elsewhere.ts imports plugins/relay.ts',
    'plugins/elsewhere.ts imports plugins/running.ts'
  ])
})

t.test('forged lines are found', async t => {
  const forged: Array<[string, string, string]> = [
    ['server.ts', "import gateway from './plugins/gateway/index.ts'", 'imports plugins/gateway/index.ts'],
    ['server.ts', "import { seeded } from './test/upstream.ts'", 'imports test/upstream.ts'],
    ['plugins/auth.ts', "import { Call } from './gateway/call.ts'", 'imports plugins/gateway/call.ts'],
    ['plugins/auth.ts', "import './cors.ts'", 'imports plugins/cors.ts'],
    ['plugins/auth.ts', 'import cors from "./cors.ts"', 'imports plugins/cors.ts'],
    ['plugins/auth.ts', "import {\n  type A,\n  b\n} from './cors.ts'", 'imports plugins/cors.ts'],
    ['plugins/auth.ts', "import type { CorsOptions } from './cors.ts'", 'imports plugins/cors.ts'],
    ['plugins/auth.ts', "export * from './cors.ts'", 'imports plugins/cors.ts'],
    ['plugins/auth.ts', "const cors = await import('./cors.ts')", 'imports plugins/cors.ts'],
    ['plugins/auth.ts', 'const cors = await import(`./cors.ts`)', 'imports plugins/cors.ts'],
    ['plugins/auth.ts', "type Cors = import('./cors.ts').CorsOptions", 'imports plugins/cors.ts'],
    ['plugins/auth.ts', 'const cors = await import(name)', 'imports a computed name'],
    ['plugins/auth.ts', "import echo from '../providers/echo.ts'", 'imports providers/echo.ts'],
    ['plugins/auth.ts', "import modelGateway from '../app.ts'", 'imports app.ts'],
    [
      'plugins/gateway/call.ts',
      "import { dispatch } from '../routing/dispatch.ts'",
      'imports plugins/routing/dispatch.ts'
    ],
    ['plugins/gateway/call.ts', "import sse from '../../providers/sse/index.ts'", 'imports providers/sse/index.ts'],
    ['providers/echo.ts', "import routing from '../plugins/routing/index.ts'", 'imports plugins/routing/index.ts'],
    ['providers/echo.ts', "import { tokenFor } from './vertex/token.ts'", 'imports providers/vertex/token.ts'],
    ['providers/vertex/index.ts', "import echo from '../echo.ts'", 'imports providers/echo.ts'],
    ['providers/vertex/index.ts', "import gemini from '../gemini.ts'", 'imports providers/gemini.ts'],
    [
      'providers/upstream.ts',
      "import { toUpstream } from './wires/openai/request.ts'",
      'imports providers/wires/openai/request.ts'
    ],
    [
      'providers/wires/gemini/request.ts',
      "import { toUpstream } from '../openai/request.ts'",
      'imports providers/wires/openai/request.ts'
    ],
    ['providers/wires/gemini/request.ts', "import gemini from '../../gemini.ts'", 'imports providers/gemini.ts'],
    ['schemas/errors.ts', "import { Call } from '../plugins/gateway/call.ts'", 'imports plugins/gateway/call.ts'],
    ['schemas/errors.ts', "import { eventReader } from '../providers/sse/index.ts'", 'imports providers/sse/index.ts'],
    ['schemas/errors.ts', "import modelGateway from '../app.ts'", 'imports app.ts'],
    ['app.ts', "import { seeded } from './testing/index.ts'", 'imports testing/index.ts'],
    ['schemas/errors.ts', "import { seeded } from '../testing/index.ts'", 'imports testing/index.ts'],
    ['providers/echo.ts', "import { seeded } from '../testing/index.ts'", 'imports testing/index.ts'],
    ['testing/provider.ts', "import echo from '../providers/echo.ts'", 'imports providers/echo.ts'],
    ['testing/provider.ts', "import { build } from '../test/helper.ts'", 'imports test/helper.ts'],
    ['app.ts', 'const port = process.env.PORT', 'reads the environment'],
    ['app.ts', "const port = process.env['PORT']", 'reads the environment'],
    ['plugins/auth.ts', "const port = process['env']", 'reads the environment'],
    ['plugins/auth.ts', 'const { env } = process', 'reads the environment'],
    ['plugins/auth.ts', "import { env } from 'node:process'", 'reads the environment'],
    ['plugins/gateway/call.ts', "import type { FastifyRequest } from 'fastify'", 'knows requests or replies'],
    ['schemas/gateway.ts', 'function send(reply: FastifyReply) {}', 'knows requests or replies'],
    ['providers/echo.ts', 'function send(reply: FastifyReply) {}', 'knows requests or replies'],
    ['app.ts', 'const body: any = 5', 'uses any'],
    ['app.ts', 'const body = 5 as any', 'uses any'],
    ['app.ts', 'const body: Record<string, any> = {}', 'uses any'],
    ['app.ts', 'function take(body: any[]): void {}', 'uses any'],
    ['app.ts', '/* a comment */ let body: any', 'uses any'],
    ['app.ts', 'const quote = /[\'"]/\nlet body: any', 'uses any']
  ]
  for (const [file, line, fault] of forged) t.strictSame(faultsOf(file, line), [`${file} ${fault}`], `${file}: ${line}`)
})

t.test('lines that are allowed are not found', async t => {
  const allowed: Array<[string, string]> = [
    ['app.ts', "import echo from './providers/echo.ts'"],
    [
      'server.ts',
      "import modelGateway from './app.ts'\nimport { Config } from './schemas/config.ts'\nconst { PORT } = process.env"
    ],
    ['server.ts', "import Fastify from 'fastify'\nimport { readFile } from 'node:fs/promises'"],
    ['plugins/gateway/index.ts', "import { Call } from './call.ts'"],
    ['plugins/gateway/index.ts', "import { Cancelled } from '../../schemas/errors.ts'"],
    ['plugins/routing/index.ts', "declare module '../../schemas/gateway.ts' {}"],
    ['plugins/auth.ts', "declare module './gateway/index.ts' {}"],
    ['plugins/auth.ts', "import fp from 'fastify-plugin'"],
    ['plugins/auth.ts', "// import cors from './cors.ts'\n/* import './cors.ts' */"],
    ['plugins/health.ts', "import type { FastifyReply, FastifyRequest } from 'fastify'"],
    ['plugins/chat-completions/stream.ts', "import type { FastifyReply } from 'fastify'"],
    ['plugins/gateway/index.ts', '// what FastifyRequest is for others'],
    [
      'providers/echo.ts',
      "import { createUpstream } from './upstream.ts'\nimport { eventReader } from './sse/index.ts'"
    ],
    [
      'providers/vertex/index.ts',
      "import { toGemini } from '../wires/gemini/request.ts'\nimport { t } from './token.ts'"
    ],
    ['providers/wires/gemini/answer.ts', "import { vendorFault } from '../../faults.ts'\nimport './request.ts'"],
    ['providers/upstream.ts', "import { UpstreamError } from '../schemas/errors.ts'\nimport { Pool } from 'undici'"],
    ['schemas/errors.ts', "import { Type } from '@sinclair/typebox'\nimport { Words } from './atoms.ts'"],
    [
      'app.ts',
      "// not any of these\nconst words = 'any'\nawait Promise.any([])\nAbortSignal.any([])\nconst many = `any`"
    ]
  ]
  for (const [file, line] of allowed) t.strictSame(faultsOf(file, line), [], `${file}: ${line}`)
})
