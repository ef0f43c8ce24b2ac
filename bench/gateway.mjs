// This gateway, as `npm run build` leaves it, with one provider and one model; with every plugin off, and with all that
// governs a call on.
import { existsSync, globSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { PluginOptions } from '../schemas/plugin-options.ts'

const root = join(import.meta.dirname, '..')
const key = 'gw_bench_0123456789abcdef0123456789abcdef'
export const adminToken = 'bench-admin-token-0123456789'
const plenty = 1_000_000_000
const sampling = { OTEL_TRACES_SAMPLER: 'parentbased_traceidratio', OTEL_TRACES_SAMPLER_ARG: '0.01' }

/** dist/server.js, or server.ts where there is no build or an old one. */
export const server = (() => {
  const built = join(root, 'dist/server.js')
  const sources = globSync(['*.ts', '{schemas,plugins,providers}/**/*.ts'], { cwd: root })
  const newest = Math.max(0, ...sources.map(file => statSync(join(root, file)).mtimeMs))
  return existsSync(built) && statSync(built).mtimeMs >= newest ? built : join(root, 'server.ts')
})()

/** Absent until there is a gateway to start. */
export const available = existsSync(server)

/** What answers stays on; everything else can be switched off. */
const transports = ['chatCompletions', 'proxy', 'models', 'health']
const withoutPlugins = Object.fromEntries(
  Object.keys(PluginOptions.properties)
    .filter(name => !transports.includes(name))
    .map(name => [name, false])
)

const off = {
  name: 'gateway',
  title: 'gateway',
  ready: '/health',
  checked: true,
  start: options => start(options, { log: { level: 'silent' }, store: false, plugins: withoutPlugins }),
  headers: () => ({})
}

/** Keys, tenants with limits and budgets, prices, a ledger on SQLite, metrics, events, traces, spans of 1 %, logs to a file. */
function governing({ directory, upstream }) {
  return {
    log: { level: 'info', destination: join(directory, 'gateway.log') },
    store: `sqlite:${join(directory, 'gateway.db')}`,
    budget: { dailyLimitUsd: plenty / 1_000 },
    plugins: {
      rateLimit: { max: plenty, timeWindow: '60s' },
      auth: { anonymousTenant: false, adminToken },
      tenants: true,
      limits: true,
      pricing: true,
      idempotency: true,
      admin: true,
      budgets: { unpriced: 'deny' },
      ledger: { durability: 'process' },
      structuredOutput: true,
      requestLog: true,
      traces: true,
      stats: true,
      metrics: true,
      events: true,
      // The upstream takes spans and metrics as well.
      otel: { protocol: 'http/protobuf', endpoint: new URL(upstream).origin }
    }
  }
}

const limits = {
  requestsPerMinute: plenty,
  tokensPerMinute: plenty * 1_000,
  concurrency: 100_000
}

/** The governed gateway with a part of it off. `less` is laid over its plugins, `flags` are the runtime's. */
function governed(name, title, less = {}, { flags = [], budgets = true } = {}) {
  return {
    name,
    title,
    ready: '/health',
    start(options) {
      const { plugins, budget, ...more } = governing(options)
      const tenant = {
        keys: less.auth === false ? [] : [key],
        allowModels: ['bench'],
        maxOutputTokens: 100_000,
        ...(less.limits !== false && limits),
        ...(budgets && { maxRequestUsd: 1_000, budget: { usd: plenty / 1_000, period: 'day' } })
      }
      const started = start(options, {
        ...more,
        ...(budgets && { budget }),
        tenants: { bench: tenant },
        plugins: { ...plugins, ...less }
      })
      return { ...started, args: [...flags, ...started.args] }
    },
    headers: () => ({ authorization: `Bearer ${key}` })
  }
}

const on = { ...governed('governed', 'gateway, governed'), checked: true }

const watching = { requestLog: false, traces: false, stats: false, metrics: false, events: false }
const bare = {
  ...watching,
  otel: false,
  rateLimit: false,
  helmet: false,
  limits: false,
  idempotency: false,
  ledger: false
}

/** What parts of the governed gateway cost: each without one of them, and with less and less. */
export const pieces = [
  off,
  on,
  governed('young', 'governed, young generation of 64 MB', {}, { flags: ['--max-semi-space-size=64'] }),
  governed('no-otel', 'governed, without otel', { otel: false }),
  governed('unwatched', 'governed, without otel and what watches', { otel: false, ...watching }),
  governed('bare', 'only keys, tenants, prices, budgets', bare),
  governed('priced', 'only keys, tenants, prices', { ...bare, budgets: false }, { budgets: false }),
  governed('keys', 'only keys, tenants', { ...bare, budgets: false, pricing: false }, { budgets: false })
]

/**
 * The governed gateway with its database in `home`, which outlives the process. Its tenants and keys are made over HTTP:
 * `secret` is the key that it is called with once there is one.
 */
export function settled(name, title, home) {
  return {
    name,
    title,
    ready: '/ready',
    database: join(home, 'gateway.db'),
    secret: '',
    start: options => start(options, governing({ ...options, directory: home })),
    headers() {
      return { authorization: `Bearer ${this.secret}` }
    }
  }
}

export const gateways = [off, on]

function start(options, more) {
  const file = configure(options, more)
  return { args: [server, '--config', file], cwd: options.directory, env: sampling }
}

function configure({ port, upstream, directory }, more) {
  const file = join(directory, 'gateway.json')
  const target = { provider: 'up', model: 'bench-upstream', price: { input: 3, output: 15 } }
  const config = {
    server: { host: '127.0.0.1', port },
    providers: { up: { type: 'openai-compatible', baseUrl: upstream, apiKeys: ['bench'] } },
    models: { bench: { targets: [target], maxOutputTokens: 1_000 } },
    ...more
  }
  writeFileSync(file, JSON.stringify(config))
  return file
}
