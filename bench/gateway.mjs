// This gateway, as `npm run build` leaves it, with one provider and one model; with every plugin off, and with all that
// governs a call on.
import { existsSync, globSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

const root = join(import.meta.dirname, '..')
const key = 'gw_bench_0123456789abcdef0123456789abcdef'
const plenty = 1_000_000_000

/** dist/server.js, or server.ts where there is no build or an old one. */
export const server = (() => {
  const built = join(root, 'dist/server.js')
  const sources = globSync(['*.ts', '{schemas,plugins,providers}/**/*.ts'], { cwd: root })
  const newest = Math.max(0, ...sources.map(file => statSync(join(root, file)).mtimeMs))
  return existsSync(built) && statSync(built).mtimeMs >= newest ? built : join(root, 'server.ts')
})()

/** Absent until there is a gateway to start. */
export const available = existsSync(server)

const off = {
  name: 'gateway',
  title: 'gateway',
  ready: '/health',
  checked: true,
  start: options => start(options, { log: { level: 'silent' }, plugins: withoutPlugins }),
  headers: () => ({})
}

const withoutPlugins = Object.fromEntries(
  [
    'helmet',
    'sensible',
    'rateLimit',
    'auth',
    'budgets',
    'ledger',
    'cache',
    'structuredOutput',
    'opa',
    'otel',
    'metrics',
    'events',
    'signing',
    'insights',
    'realtime'
  ].map(name => [name, false])
)

/** Keys, a tenant with limits and a budget, prices, ledger on SQLite, metrics, traces, events, logs to a file. */
const on = {
  name: 'governed',
  title: 'gateway, governed',
  ready: '/health',
  checked: true,
  start: options =>
    start(options, {
      log: { level: 'info', destination: join(options.directory, 'gateway.log') },
      store: `sqlite:${join(options.directory, 'gateway.db')}`,
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
      },
      budget: { dailyLimitUsd: plenty / 1_000 },
      plugins: {
        rateLimit: { max: plenty, timeWindow: '60s' },
        auth: { anonymousTenant: false, adminToken: 'bench-admin-token-0123456789' },
        budgets: { unpriced: 'deny' },
        ledger: { durability: 'process' },
        structuredOutput: true,
        metrics: true,
        events: true
      }
    }),
  headers: () => ({ authorization: `Bearer ${key}` })
}

export const gateways = [off, on]

function start(options, more) {
  const file = configure(options, more)
  return { args: [server, '--config', file], cwd: options.directory }
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
