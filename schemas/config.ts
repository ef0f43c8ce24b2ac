import { type Static, Type } from '@sinclair/typebox'
import { Flag, Words } from './atoms.ts'
import { Size, Timeout } from './duration.ts'
import { type Environment, resolveSecrets, variableOf, withEnvironment } from './environment.ts'
import { ConfigError, report } from './faults.ts'
import { hashOf, withoutSecrets } from './hash.ts'
import { keylessNotes } from './keyless.ts'
import { Budget, Models, Routing, Tasks, Tenants } from './model-options.ts'
import { PluginOptions } from './plugin-options.ts'
import { defaultProviders, Providers } from './provider-options.ts'
import { isRecord, read } from './reader.ts'
import { checkReferences } from './references.ts'
import { closed, type Filled, oneOf, preset, text } from './shape.ts'
import { notesOf } from './unbuilt.ts'

// The configuration file, and what every part of the gateway is given of it.

export { type Environment, environmentNames, resolveSecrets, withEnvironment } from './environment.ts'
export { ConfigError } from './faults.ts'
export { unbuilt } from './unbuilt.ts'

const Cors = closed({
  origin: Type.Array(text('^(\\*|[a-z][a-z0-9+.-]*://[^/\\s]+)$', 'an origin such as https://app.example, or *'), {
    minItems: 1
  }),
  credentials: preset(Flag, false)
})

const Server = closed({
  host: preset(text('^\\S+$', 'an address to listen on'), '127.0.0.1'),
  /** 0: any free port. */
  port: preset(Type.Integer({ minimum: 0, maximum: 65535 }), 8080),
  bodyLimit: preset(Size, '10mb'),
  /** As Fastify's. */
  trustProxy: preset(Type.Union([Flag, Type.Integer({ minimum: 0 }), Words, Type.Array(Words)]), false),
  cors: preset(Type.Union([Type.Literal(false), Cors], { allowed: 'false or an object' }), false),
  /** false: streams are refused. `headersAfter`: of silence; `heartbeat`: between them from then on. */
  sse: preset(
    Type.Union(
      [Type.Literal(false), closed({ heartbeat: preset(Timeout, '15s'), headersAfter: preset(Timeout, '10s') })],
      { allowed: 'false or an object' }
    ),
    {}
  ),
  shutdownGrace: preset(Timeout, '10s')
})

const Log = closed({
  level: preset(oneOf('fatal', 'error', 'warn', 'info', 'debug', 'trace', 'silent'), 'info'),
  /** A file; absent: stdout. */
  destination: Type.Optional(Words)
})

/** The whole file. */
export const Config = closed({
  server: preset(Server, {}),
  log: preset(Log, {}),
  /** false: nothing is stored; budgets are forgotten with the process, and there are no keys over HTTP and no ledger. */
  store: preset(
    Type.Union(
      [
        Type.Literal(false),
        text('^(sqlite:.+|postgres(ql)?://.+)$', 'sqlite:FILE or a postgres:// URL', { hidden: true })
      ],
      { allowed: 'false, sqlite:FILE or a postgres:// URL', hidden: true }
    ),
    'sqlite:./data/gateway.db'
  ),
  /** Absent: a single process. */
  redis: Type.Optional(text('^rediss?://.+$', 'a redis:// or rediss:// URL', { hidden: true })),
  providers: preset(Providers, defaultProviders),
  /** Without models, names of the form `provider/model` work. */
  models: preset(Models, {}),
  /** For requests that name no model; absent: those are refused. */
  defaultModel: Type.Optional(Words),
  tasks: preset(Tasks, {}),
  routing: preset(Routing, {}),
  tenants: preset(Tenants, {}),
  /** Of the whole gateway; absent: none. */
  budget: Type.Optional(
    closed({
      dailyLimitUsd: Budget,
      hardStop: preset(Flag, true),
      warningThreshold: preset(Type.Number({ minimum: 0, maximum: 1 }), 0.8)
    })
  ),
  plugins: preset(PluginOptions, {})
})

/** What a user writes, in a file or as options of the plugin. */
export type Config = Static<typeof Config>
/** What the gateway works with: every default filled in, durations in milliseconds, sizes in bytes, plain data. */
export type Settings = Filled<typeof Config>

/** A configuration that was read. */
export interface Configuration {
  readonly settings: Settings
  /** One sentence for each configured thing that is not built yet, and for each provider that will refuse its calls. */
  readonly notes: string[]
  /** As it was written, with the environment laid over it: `env:NAME` has stayed, other secrets are left out. */
  readonly written: Readonly<Record<string, unknown>>
  /** Of `written`: SHA-256 in hex. */
  readonly hash: string
}

/**
 * Makes settings from what was written. With `env`, the variables of `environmentNames` are laid over it and every
 * `env:NAME` is resolved; without, none may remain.
 * @throws ConfigError with every fault there is, one line each; no line shows a secret.
 */
export function readConfig(input: unknown, env?: Environment): Configuration {
  const faults = report(path => env && variableOf(path, env))
  const given = withoutEmpty(input)
  const laid = env ? withEnvironment(given, env) : given
  const resolved = withPublic(resolveSecrets(laid, env, faults))
  const settings = read(Config, resolved, faults)
  checkReferences(resolved, faults)
  if (faults.count > 0) throw new ConfigError(faults.lines)
  // Providers that nobody names count as written: with an environment they are.
  const entries = isRecord(laid) ? laid : {}
  const written = withoutSecrets(Config, { ...entries, providers: entries['providers'] ?? defaultProviders })
  return { settings, notes: [...notesOf(laid), ...keylessNotes(settings.providers)], written, hash: hashOf(written) }
}

/** A key of the file with nothing below it, `models:`, is null in YAML and counts as absent; so does an empty file. */
function withoutEmpty(input: unknown): unknown {
  if (input === undefined || input === null) return {}
  return isRecord(input) ? Object.fromEntries(Object.entries(input).filter(([, value]) => value !== null)) : input
}

/** The tenant `public` exists without being named. */
function withPublic(config: unknown): unknown {
  if (!isRecord(config)) return config
  const tenants = config['tenants'] ?? {}
  return isRecord(tenants) ? { ...config, tenants: { public: {}, ...tenants } } : config
}
