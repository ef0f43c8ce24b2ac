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

const on = {
  name: 'governed',
  title: 'gateway, governed',
  ready: '/health',
  checked: true,
  start: options =>
    start(options, {
      ...governing(options),
      tenants: {
        bench: {
          keys: [key],
          allowModels: ['bench'],
          budget: { usd: plenty / 1_000, period: 'day' },
          maxRequestUsd: 1_000,
          maxOutputTokens: 100_000,
          requestsPerMinute: plenty,
          tokensPerMinute: plenty * 1_000,
          concurrency: 100_000
        }
      }
    }),
  headers: () => ({ authorization: `Bearer ${key}` })
}

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
