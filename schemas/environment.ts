import type { Path, Report } from './faults.ts'
import { defaultProviders } from './provider-options.ts'
import { isRecord } from './reader.ts'

/** What `process.env` is; only server.ts reads that one. */
export type Environment = Readonly<Record<string, string | undefined>>

/**
 * Where a variable goes and how its text is taken: `secret` as `env:NAME`, `detail` only where its plugin is switched on,
 * `switch` as true or false, `provider` see `providersOf`, `none` not at all.
 */
interface Variable {
  readonly doc: string
  readonly as: 'text' | 'number' | 'secret' | 'detail' | 'switch' | 'servers' | 'provider' | 'none'
  readonly sets: string
}

/** Every variable the gateway knows, in the order in which they are laid over the file. */
export const environmentNames = {
  HOST: { as: 'text', sets: 'server.host', doc: 'Address to listen on.' },
  PORT: { as: 'number', sets: 'server.port', doc: 'Port to listen on; 0 takes any free one.' },
  GATEWAY_CONFIG: { as: 'none', sets: '', doc: 'The configuration file. `--config` wins over it.' },
  NODE_ENV: { as: 'none', sets: '', doc: 'Accepted; changes nothing.' },
  ADMIN_TOKEN: {
    as: 'secret',
    sets: 'plugins.auth.adminToken',
    doc: 'Opens the admin routes. Absent: one is generated.'
  },
  OPENAI_API_KEY: { as: 'provider', sets: 'providers.openai', doc: 'Adds the provider `openai`.' },
  OPENAI_BASE: { as: 'provider', sets: 'providers.openai.baseUrl', doc: 'Its base URL, with OPENAI_API_KEY.' },
  OPENROUTER_API_KEY: { as: 'provider', sets: 'providers.openrouter', doc: 'Adds the provider `openrouter`.' },
  ANTHROPIC_API_KEY: { as: 'provider', sets: 'providers.anthropic', doc: 'Adds the provider `anthropic`.' },
  LLAMA_CPP_BASE: {
    as: 'provider',
    sets: 'providers.llamacpp.baseUrl',
    doc: 'Adds the provider `llamacpp` at this URL.'
  },
  LLAMACPP_URL: { as: 'provider', sets: 'providers.llamacpp.baseUrl', doc: 'The same; LLAMA_CPP_BASE wins over it.' },
  DATABASE_URL: { as: 'secret', sets: 'store', doc: 'PostgreSQL in place of SQLite.' },
  REDIS_URL: { as: 'secret', sets: 'redis', doc: 'Redis, for several processes.' },
  RATE_LIMIT_MAX_REQUESTS: { as: 'number', sets: 'plugins.rateLimit.max', doc: 'Requests per address and window.' },
  RATE_LIMIT_WINDOW_MS: { as: 'number', sets: 'plugins.rateLimit.timeWindow', doc: 'That window in milliseconds.' },
  ENABLE_RATE_LIMIT: { as: 'switch', sets: 'plugins.rateLimit', doc: 'false: no limit per address.' },
  ENABLE_STREAMING: { as: 'switch', sets: 'server.sse', doc: 'false: streams are refused.' },
  OPA_URL: { as: 'text', sets: 'plugins.opa.url', doc: 'Open Policy Agent; switches the policy on.' },
  OPA_PATH: { as: 'detail', sets: 'plugins.opa.path', doc: 'The rule that is asked.' },
  HMAC_SECRET: { as: 'secret', sets: 'plugins.signing.secret', doc: 'Signs answers; switches signing on.' },
  OTEL_EXPORTER_OTLP_ENDPOINT: { as: 'text', sets: 'plugins.otel.endpoint', doc: 'Collector; switches tracing on.' },
  OTEL_EXPORTER_OTLP_PROTOCOL: {
    as: 'detail',
    sets: 'plugins.otel.protocol',
    doc: 'grpc or http/protobuf.'
  },
  OTEL_SERVICE_NAME: { as: 'detail', sets: 'plugins.otel.serviceName', doc: 'The name that traces carry.' },
  OTEL_EXPORTER_OTLP_HEADERS: { as: 'none', sets: '', doc: 'Headers for the collector, `name=value` with commas.' },
  OTEL_TRACES_SAMPLER: {
    as: 'none',
    sets: '',
    doc: 'Which traces are recorded, for example parentbased_traceidratio.'
  },
  OTEL_TRACES_SAMPLER_ARG: { as: 'none', sets: '', doc: 'Its share, for example 0.01.' },
  OTEL_RESOURCE_ATTRIBUTES: {
    as: 'none',
    sets: '',
    doc: 'What else traces say of this process, `name=value` with commas.'
  },
  ICE_SERVERS: {
    as: 'servers',
    sets: 'plugins.realtime.iceServers',
    doc: 'STUN and TURN, a JSON list or URLs with commas; switches the realtime lane on.'
  },
  ENABLE_WEBRTC: {
    as: 'switch',
    sets: 'plugins.realtime',
    doc: 'true: the realtime lane; false: not even with ICE_SERVERS.'
  }
} as const satisfies Record<string, Variable>

type Name = keyof typeof environmentNames

const names = Object.keys(environmentNames).filter((name): name is Name => Object.hasOwn(environmentNames, name))

/** The variable that is set and sets this path, as `show` writes paths. */
export function variableOf(path: string, env: Environment): string | undefined {
  return names.find(
    name => env[name] && environmentNames[name].as !== 'provider' && environmentNames[name].sets === path
  )
}

/**
 * Lays the environment over what was written and answers with a new value. It wins over the file, also over a plugin that
 * is `false`. Secrets arrive as `env:NAME`. What is not an object where one belongs is left for validation.
 */
export function withEnvironment(config: unknown, env: Environment): unknown {
  let result: unknown = config ?? {}
  if (isRecord(result) && !isGiven(result['providers'])) result = { ...result, providers: providersOf(env) }
  for (const name of names) {
    const text = env[name]
    if (text) result = withVariable(result, name, text)
  }
  return result
}

/**
 * Replaces every `env:NAME` by the variable, except in providers that are off, and tells `report` which are missing or,
 * without an environment, that there are any. Values that were replaced are hidden in the report.
 */
export function resolveSecrets(config: unknown, env: Environment | undefined, report: Report): unknown {
  return resolve(config, [], [])

  function resolve(value: unknown, path: Path, above: readonly unknown[]): unknown {
    if (typeof value === 'string') return value.startsWith('env:') ? lookUp(value, path) : value
    if (above.length > 32 || above.includes(value)) return value
    const below = [...above, value]
    if (Array.isArray(value)) return Array.from(value, (item, index) => resolve(item, [...path, index], below))
    if (!isRecord(value) || (path.length === 2 && path[0] === 'providers' && value['enabled'] === false)) return value
    // fromEntries, because an assignment to `__proto__` would set a prototype.
    return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, resolve(item, [...path, key], below)]))
  }

  function lookUp(reference: string, path: Path): string {
    const name = /^env:([A-Za-z_]\w*)$/.exec(reference)?.[1]
    const value = env && name ? env[name] : undefined
    if (name === undefined) report.say(path, '<hidden>', 'env:NAME, of letters, digits and _')
    else if (!env) report.say(path, reference, 'the value itself; only server.ts resolves env:NAME')
    else if (typeof value !== 'string' || value === '')
      report.say(path, reference, 'a variable that is set and not empty')
    else {
      report.hide(path)
      return value
    }
    return reference
  }
}

function withVariable(config: unknown, name: Name, text: string): unknown {
  const { as, sets } = environmentNames[name]
  const path = sets.split('.')
  switch (as) {
    case 'text':
      return put(config, path, () => text)
    case 'number':
      return put(config, path, () => (/^\d+$/.test(text) ? Number(text) : text))
    case 'secret':
      return put(config, path, () => `env:${name}`)
    case 'detail':
      return isOn(config, path.slice(0, -1)) ? put(config, path, () => text) : config
    case 'switch':
      return put(config, path, current => switched(text, current))
    case 'servers':
      return put(config, path, () => iceServers(text))
    default:
      return config
  }
}

/** A copy with the value at `path` replaced. Only plugins have keys at the third level: true or false there is an object. */
function put(config: unknown, path: readonly string[], replace: (current: unknown) => unknown, level = 0): unknown {
  const [key, ...rest] = path
  if (key === undefined) return replace(config)
  const parent = isGiven(config) && !(level === 2 && typeof config === 'boolean') ? config : {}
  return isRecord(parent) ? { ...parent, [key]: put(parent[key], rest, replace, level + 1) } : config
}

function isGiven(value: unknown): boolean {
  return value !== undefined && value !== null
}

function isOn(config: unknown, path: readonly string[]): boolean {
  const [key, ...rest] = path
  if (key === undefined) return config === true || isRecord(config)
  return isRecord(config) && isOn(config[key], rest)
}

function switched(text: string, current: unknown): unknown {
  if (/^(true|1|yes|on)$/i.test(text)) return isRecord(current) ? current : {}
  return /^(false|0|no|off)$/i.test(text) ? false : text
}

function iceServers(text: string): unknown {
  if (!/^\s*[[{]/.test(text)) return text.split(',').map(url => ({ urls: url.trim() }))
  try {
    return [JSON.parse(text)].flat()
  } catch {
    return text
  }
}

/** The providers of a start without any in the file: those whose variable is set, and the echo. */
function providersOf(env: Environment): Record<string, unknown> {
  const providers: Record<string, unknown> = {}
  const keyed = (name: Name) => ({ apiKeys: [`env:${name}`] })
  if (env['OPENAI_API_KEY']) {
    const base = env['OPENAI_BASE'] ? { baseUrl: env['OPENAI_BASE'] } : {}
    const type = isElsewhere(env['OPENAI_BASE']) ? 'openai-compatible' : 'openai'
    providers['openai'] = { type, ...base, ...keyed('OPENAI_API_KEY') }
  }
  if (env['OPENROUTER_API_KEY']) {
    const baseUrl = 'https://openrouter.ai/api/v1'
    providers['openrouter'] = { type: 'openai-compatible', baseUrl, ...keyed('OPENROUTER_API_KEY') }
  }
  if (env['ANTHROPIC_API_KEY']) providers['anthropic'] = { type: 'anthropic', ...keyed('ANTHROPIC_API_KEY') }
  const baseUrl = env['LLAMA_CPP_BASE'] || env['LLAMACPP_URL']
  if (baseUrl) providers['llamacpp'] = { type: 'llamacpp', baseUrl }
  return { ...providers, ...defaultProviders }
}

/** Another server under OpenAI's variable: it speaks the wire, but may not know what OpenAI itself does. */
function isElsewhere(baseUrl: string | undefined): boolean {
  if (!baseUrl || !URL.canParse(baseUrl)) return false
  return !/(?:^|\.)api\.openai\.com$/.test(new URL(baseUrl).hostname)
}
