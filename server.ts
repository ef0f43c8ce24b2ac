#!/usr/bin/env node
import { randomBytes } from 'node:crypto'
import { closeSync, existsSync, mkdirSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { parseArgs, parseEnv } from 'node:util'
import closeWithGrace from 'close-with-grace'
import type { FastifyInstance } from 'fastify'
import { destination, type Logger, pino } from 'pino'
import { createLogger } from './plugins/request-log/logger.ts'
import { tableOf } from './schemas/changes.ts'
import { type Configuration, type Environment, readConfig, type Settings } from './schemas/config.ts'
import { ConfigError } from './schemas/faults.ts'
import { shortHash } from './schemas/hash.ts'
import { isLoopback } from './schemas/loopback.ts'
import { usdText } from './schemas/money.ts'

const help = `fastify-model-gateway: one OpenAI-compatible gateway between applications and model providers

  npm start                        start with ./gateway.yaml, or without any configuration
  npm start -- --config FILE       start with this file (YAML or JSON); GATEWAY_CONFIG does the same
  npm start -- --check             check the configuration, say every fault, and exit
  npm start -- --verify            compare every balance with the ledger, and exit; on SQLite stop the gateway first
  npm start -- --help              this text

Environment: see .env.example. Configuration: see gateway.example.yaml and docs/configuration.md.
`

/** What stops the start; its message is all that is printed. */
class StartError extends Error {}

try {
  await main()
} catch (error) {
  if (!(error instanceof StartError || error instanceof ConfigError)) throw error
  process.stderr.write(`${error.message}\n`)
  process.exitCode = 1
}

async function main(): Promise<void> {
  const flags = readFlags()
  if (flags.help) {
    process.stdout.write(help)
    return
  }
  const given = { ...process.env }
  Object.assign(process.env, environmentNow(given))
  const named = flags.config ?? (process.env['GATEWAY_CONFIG'] || undefined)
  const file = named ?? 'gateway.yaml'
  let needed = named !== undefined
  const read = async () => {
    // One that has been there once has to be there.
    needed ||= existsSync(file)
    return readConfig(await readFile(file, needed), environmentNow(given))
  }
  const configuration = await read()
  const { settings, notes, hash } = configuration
  if (flags.verify) return verify(settings)
  refuseOpenDoor(settings)
  if (flags.check) {
    for (const note of notes) process.stdout.write(`note: ${note}\n`)
    process.stdout.write(`config: ${shortHash(hash)}\nThe configuration is valid.\n`)
    return
  }
  await start(configuration, read)
}

function readFlags() {
  try {
    const options = {
      config: { type: 'string' },
      check: { type: 'boolean' },
      verify: { type: 'boolean' },
      help: { type: 'boolean', short: 'h' }
    } as const
    return parseArgs({ options, strict: true }).values
  } catch (error) {
    throw new StartError(`${error instanceof Error ? error.message : error}\n\n${help}`)
  }
}

/** What was set when the process began, and what ./.env adds to it now, where there is one. */
function environmentNow(given: Environment): Environment {
  try {
    return { ...parseEnv(readFileSync('.env', 'utf8')), ...given }
  } catch (error) {
    if (isMissing(error)) return given
    throw new StartError(`.env cannot be read: ${error instanceof Error ? error.message : error}`)
  }
}

/** The configuration as written; nothing for a file that is not there and need not be. */
async function readFile(file: string, needed: boolean): Promise<unknown> {
  let text: string
  try {
    text = readFileSync(file, 'utf8')
  } catch (error) {
    if (!needed && isMissing(error)) return {}
    throw new StartError(`${file} cannot be read: ${error instanceof Error ? error.message : error}`)
  }
  const { parse, YAMLParseError } = await import('yaml')
  try {
    return parse(text) ?? {}
  } catch (error) {
    // Not the rest of it: that shows what stands in the file, which may be a secret.
    const [words] = String(error instanceof Error ? error.message : error).split(/ at line |[:"\n]/, 1)
    const [at] = (error instanceof YAMLParseError && error.linePos) || []
    throw new StartError(`${file} is neither YAML nor JSON: ${words}${at ? `, line ${at.line}, column ${at.col}` : ''}`)
  }
}

function isMissing(error: unknown): boolean {
  return error instanceof Error && 'code' in error && error.code === 'ENOENT'
}

/** An address that others can reach needs somebody who may call, or the word of the operator that everybody may. */
function refuseOpenDoor({ server, plugins, tenants }: Settings): void {
  if (isLoopback(server.host)) return
  if (plugins.auth !== false) {
    const { adminToken, anonymousTenant, jwt } = plugins.auth
    const keys = Object.values(tenants).some(tenant => tenant.keys.length > 0)
    if (adminToken !== undefined || keys || jwt || (anonymousTenant !== false && anonymousTenant !== 'auto')) return
  }
  throw new StartError(
    `server.host is ${server.host}, which other machines can reach, and nobody has a key. Set ADMIN_TOKEN, or ` +
      'tenants.<name>.keys, or plugins.auth.anonymousTenant to the tenant that everybody may spend for.'
  )
}

/** Says what differs; exits with 1 if anything does. */
async function verify(settings: Settings): Promise<void> {
  const log = pino({ level: 'warn' }, destination({ dest: 2, sync: true }))
  const { verifyBooks } = await import('./app.ts')
  const { rows, balances, differences } = await verifyBooks(settings, log).catch(error => {
    throw new StartError(`The books cannot be verified: ${error instanceof Error ? error.message : error}`)
  })
  for (const { scope, period, balance, ledger } of differences) {
    process.stdout.write(
      `${scope} ${period}: the balance is $${usdText(balance)}, the ledger says $${usdText(ledger)}\n`
    )
  }
  const verdict = differences.length === 0 ? 'The books are right' : `${differences.length} balances differ`
  process.stdout.write(`${verdict}: ${balances} balances, ${rows} rows.\n`)
  if (differences.length > 0) process.exitCode = 1
}

/** @param read reads the configuration as it is now */
async function start(configuration: Configuration, read: () => Promise<Configuration>): Promise<void> {
  const { settings: written, notes, hash } = configuration
  const { server, plugins } = written
  const terminal = process.stdout.isTTY === true
  const token = plugins.auth && plugins.auth.adminToken === undefined ? generateToken(terminal) : null
  const settings = token === null ? written : withAdminToken(written, token.value)

  const log = await createLogger({ level: settings.log.level, fd: openLog(settings.log.destination, terminal) })
  // What instruments modules has to be there before they are loaded.
  const telemetry = await telemetryFor(settings, log)
  const [{ default: Fastify }, { default: modelGateway, serverOptions }] = await Promise.all([
    import('fastify'),
    import('./app.ts')
  ])
  // Fastify keeps a start time, two listeners and a logger for each request of a server that logs; our lines come from
  // the gateway itself.
  const app = Fastify({ ...serverOptions(server), logger: false })
  const delay = server.shutdownGrace + (telemetry === undefined ? 5_000 : 8_000)
  const grace = closeWithGrace({ delay, logger: log, skip: ['SIGHUP'] }, async ({ signal, err }) => {
    if (err) log.error({ err }, 'closing after an error that nobody caught')
    else log.info({ signal }, 'closing')
    // Who has not taken the end of an answer by then, or not sent the end of a request, is cut off.
    setTimeout(() => app.server.closeAllConnections(), server.shutdownGrace + 1_000)
    await app.close()
    await telemetry?.stop()
  })

  // Whoever asks before everything is there does not ask in vain, and does not end the process.
  const { promise: started, resolve: serves } = Promise.withResolvers<void>()
  const attended = hasTerminal()
  process.on('SIGHUP', () => {
    // The terminal was closed: nobody is left who could end it.
    if (attended && !hasTerminal()) process.kill(process.pid, 'SIGTERM')
    else void started.then(() => reload(app, log))
  })

  try {
    const source = sourceOf(configuration, read)
    const standalone = { settings, hash, source, log, adminTokenGenerated: token !== null, telemetry }
    await app.register(modelGateway, { standalone })
    const url = await app.listen({ host: server.host, port: server.port })
    log.info({ url, config: shortHash(hash) }, 'listening')
    serves()
    for (const note of notes) log.warn(note)
    const banner = await bannerFor(app, url, token)
    // Where stdout is not read by a person it carries log lines, one JSON object each, and nothing else.
    if (terminal) process.stdout.write(banner)
    else process.stderr.write(banner)
  } catch (error) {
    grace.uninstall()
    await app.close()
    await telemetry?.stop()
    throw new StartError(`The gateway cannot start: ${error instanceof Error ? error.message : error}`)
  }
}

function withAdminToken(settings: Settings, adminToken: string): Settings {
  const { plugins } = settings
  return plugins.auth ? { ...settings, plugins: { ...plugins, auth: { ...plugins.auth, adminToken } } } : settings
}

/** Finds out at the start, not with the first line, that a log cannot be written. Null: a person reads it at the terminal. */
function openLog(file: string | undefined, terminal: boolean): number | null {
  if (file === undefined) return terminal ? null : 1
  try {
    mkdirSync(dirname(file), { recursive: true })
    return openSync(file, 'a')
  } catch (error) {
    throw new StartError(`log.destination cannot be written: ${error instanceof Error ? error.message : error}`)
  }
}

/** Starts OpenTelemetry where it is asked for; its packages are loaded only then. */
async function telemetryFor({ plugins }: Settings, log: Logger) {
  if (plugins.otel === false) return undefined
  try {
    const { startTelemetry } = await import('./plugins/otel/sdk.ts')
    return await startTelemetry(plugins.otel, process.env, log)
  } catch (error) {
    throw new StartError(`OpenTelemetry cannot start: ${error instanceof Error ? error.message : error}`)
  }
}

/** The routing table as the same file and the environment say now. What would stop a start is a fault here too. */
function sourceOf(running: Configuration, read: () => Promise<Configuration>) {
  return async () => {
    try {
      const next = await read()
      refuseOpenDoor(next.settings)
      return tableOf(running, next)
    } catch (error) {
      throw error instanceof StartError ? new ConfigError([error.message]) : error
    }
  }
}

/** Whether somebody has started this at a terminal that is still there. */
function hasTerminal(): boolean {
  try {
    closeSync(openSync('/dev/tty', 'r'))
    return true
  } catch {
    return false
  }
}

/** On SIGHUP. Each fault is a line of the log, and the table is what it was. */
async function reload({ gateway }: FastifyInstance, log: Logger): Promise<void> {
  if (gateway.closing) return
  try {
    const { applied, restart } = (await gateway.reload?.({ actor: 'SIGHUP' })) ?? { applied: false, restart: [] }
    if (!applied && restart.length === 0) log.info({}, 'the configuration is what it was')
  } catch (error) {
    const words = 'the configuration cannot be taken, nothing has changed'
    if (!(error instanceof ConfigError)) log.error({ err: error }, words)
    else for (const fault of error.faults) log.error({ fault }, words)
  }
}

/** An admin token for a start without one. It is shown to a person, and otherwise put where only this user can read it. */
function generateToken(terminal: boolean): { value: string; shown: string } {
  const value = randomBytes(32).toString('base64url')
  if (terminal) return { value, shown: value }
  const folder = mkdtempSync(join(tmpdir(), 'fastify-model-gateway-'))
  process.once('exit', () => rmSync(folder, { recursive: true, force: true }))
  const path = join(folder, 'admin-token')
  writeFileSync(path, `${value}\n`, { mode: 0o600, flag: 'wx' })
  return { value, shown: `in ${path}` }
}

async function bannerFor(app: FastifyInstance, url: string, token: { shown: string } | null): Promise<string> {
  const models = (await app.gateway.models.list()).map(model => model.id)
  const unlisted = `${app.gateway.providers.list()[0]?.name ?? 'provider'}/MODEL`
  const model = models[0] ?? unlisted
  const key = '-H "Authorization: Bearer $GATEWAY_KEY" '
  const open = !(app.gateway.authenticate && isClosed(app))
  const body = JSON.stringify({ model, messages: [{ role: 'user', content: 'Hello, gateway' }] })
  return [
    '',
    `  fastify-model-gateway is listening on ${url}`,
    '',
    `  OpenAI SDK    baseURL: ${url}/v1`,
    `  models        ${models.slice(0, 8).join(', ') || `none listed: name them ${unlisted}`}${models.length > 8 ? ', …' : ''}`,
    ...(token === null ? [] : [`  admin token   ${token.shown}`]),
    '',
    '  try it:',
    `  curl ${url}/v1/chat/completions -H 'content-type: application/json' ${open ? '' : key}-d '${body.replaceAll("'", `'\\''`)}'`,
    '',
    ''
  ].join('\n')
}

/** Whether a caller on this machine needs a key. */
function isClosed(app: FastifyInstance): boolean {
  try {
    void app.gateway.authenticate?.({ headers: { host: 'localhost' } })
    return false
  } catch {
    return true
  }
}
