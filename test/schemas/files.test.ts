import { readFileSync } from 'node:fs'
import { parseEnv } from 'node:util'
import type { TSchema } from '@sinclair/typebox'
import t from 'tap'
import { parse } from 'yaml'
import { Config, environmentNames, readConfig } from '../../schemas/config.ts'
import { PluginOptions } from '../../schemas/plugin-options.ts'
import { faultsOf } from './helper.ts'

const read = (name: string) => readFileSync(new URL(`../../${name}`, import.meta.url), 'utf8')
const names = Object.keys(environmentNames).sort()
const example = parse(read('gateway.example.yaml'))
const documentation = read('docs/configuration.md')

t.test('.env.example has every variable, and changes nothing as it is', async t => {
  const env = parseEnv(read('.env.example'))
  t.strictSame(Object.keys(env).sort(), names)
  t.strictSame(readConfig({}, env).settings, readConfig({}).settings)
})

t.test('gateway.example.yaml starts without any variable', async t => {
  t.strictSame(faultsOf(example, {}), [])
  t.strictSame(faultsOf(example), [], 'also as options of an embedder')
})

t.test('gateway.example.yaml shows the defaults and every plugin', async t => {
  const { settings } = readConfig(example, {})
  const defaults = readConfig({}).settings
  for (const key of ['server', 'log', 'store', 'plugins'] as const) t.strictSame(settings[key], defaults[key], key)
  t.strictSame(Object.keys(example.plugins), Object.keys(PluginOptions.properties))
  const {
    targets: _targets,
    fallbacks: _fallbacks,
    maxOutputTokens: _cap,
    ...model
  } = settings.models['chat-default'] ?? {}
  t.strictSame(model, {
    strategy: 'weighted',
    retries: 2,
    hedge: false,
    timeouts: { connect: 5000, headers: 60_000, firstToken: 60_000, idle: 30_000, total: 600_000 },
    inputTokensPerImage: 1600
  })
  t.match(settings.tenants['public'], defaults.tenants['public'])
})

t.test('with its providers switched on, gateway.example.yaml lacks nothing but their variables', async t => {
  const switched = structuredClone(example)
  for (const name of Object.keys(switched.providers)) switched.providers[name].enabled = true
  const allowed = 'a variable that is set and not empty'
  t.strictSame(faultsOf(switched, {}), [
    `providers.openai.apiKeys[0]: found env:OPENAI_API_KEY; allowed: ${allowed}`,
    `providers.openrouter.apiKeys[0]: found env:OPENROUTER_API_KEY; allowed: ${allowed}`,
    `providers.claude.apiKeys[0]: found env:ANTHROPIC_API_KEY; allowed: ${allowed}`,
    `providers.claude.apiKeys[1]: found env:ANTHROPIC_API_KEY_2; allowed: ${allowed}`,
    `providers.azure.apiKeys[0]: found env:AZURE_API_KEY; allowed: ${allowed}`,
    `providers.google.apiKeys[0]: found env:GEMINI_API_KEY; allowed: ${allowed}`,
    `providers.vertex.credentials: found env:GOOGLE_APPLICATION_CREDENTIALS; allowed: ${allowed}`
  ])
})

t.test('the comments of gateway.example.yaml are right too', async t => {
  const text = read('gateway.example.yaml')
    .replace(/enabled: false/g, 'enabled: true')
    .replace(/^(\s*)# (redis:|destination:|keys:|adminToken:|- \{)/gm, '$1$2')
    .replace(/^( {2}(?:opa|otel|signing|realtime):) false +# (\{.*\})$/gm, '$1 $2')
  const env = Object.fromEntries([...text.matchAll(/env:(\w+)/g)].map(([, name], index) => [name, `secret-${index}`]))
  const { settings } = readConfig(parse(text), env)
  t.equal(settings.models['chat-default']?.targets.length, 4)
  t.strictSame(settings.tenants['public']?.keys, [env['PUBLIC_KEY']])
  t.ok(settings.redis && settings.log.destination)
  const { opa, otel, signing, realtime, auth } = settings.plugins
  t.ok(opa && otel && signing && realtime)
  t.equal(auth ? auth.adminToken : undefined, env['ADMIN_TOKEN'])
})

t.test('docs/configuration.md has every variable', async t => {
  const table = [...documentation.matchAll(/^\| `([A-Z_]+)` \|/gm)].map(([, name]) => name)
  t.strictSame(table.sort(), names)
  for (const { doc } of Object.values(environmentNames)) t.ok(documentation.includes(doc), doc)
})

t.test('docs/configuration.md has every key and shows the defaults', async t => {
  for (const key of keysOf(Config)) t.match(documentation, new RegExp(`\\b${key}: ?|\`${key}\``), key)
  const blocks = [...documentation.matchAll(/```yaml\n(.*?)```/gs)].map(([, text]) => parse(text ?? ''))
  t.equal(blocks.length, 1)
  const { settings } = readConfig(blocks[0], {})
  const defaults = readConfig({}).settings
  t.strictSame(settings.server, defaults.server)
  t.strictSame(settings.providers['echo'], defaults.providers['echo'])
  t.has(settings.tenants['public'], { ...defaults.tenants['public'], keys: ['gw-example'] })
  const examples = ['auth', 'opa', 'otel', 'signing', 'realtime']
  for (const [name, plugin] of Object.entries(defaults.plugins)) {
    if (!examples.includes(name)) t.strictSame(Reflect.get(settings.plugins, name), plugin, name)
  }
  t.match(settings.plugins, { opa: { path: 'v1/data/rtt/allow', timeout: 500, onError: 'deny' } })
  t.strictSame(settings.plugins.otel, readConfig({ plugins: { otel: true } }).settings.plugins.otel)
})

function keysOf(schema: TSchema): string[] {
  const branches = [
    ...(schema['anyOf'] ?? []),
    ...Object.values(schema['patternProperties'] ?? {}),
    schema['items'] ?? []
  ].flat()
  const properties = Object.entries<TSchema>(schema['properties'] ?? {})
  return [...properties.flatMap(([key, property]) => [key, ...keysOf(property)]), ...branches.flatMap(keysOf)]
}
