import { readFileSync } from 'node:fs'
import { Value } from '@sinclair/typebox/value'
import t from 'tap'
import { parse } from 'yaml'
import { Config, ConfigError, readConfig } from '../../schemas/config.ts'
import { report } from '../../schemas/faults.ts'
import { read } from '../../schemas/reader.ts'
import { numbers } from './helper.ts'

type Node = Record<string, unknown> | unknown[]

const example = parse(readFileSync(new URL('../../gateway.example.yaml', import.meta.url), 'utf8'))
const full = {
  ...example,
  redis: 'redis://hunter2@127.0.0.1',
  store: 'postgres://u:hunter2@db/gateway',
  providers: {
    ...example.providers,
    pool: { type: 'openai', apiKeys: ['hunter2-a', 'hunter2-b'], headers: { authorization: 'hunter2' } }
  },
  tenants: { acme: { keys: ['hunter2-c'], open: true } },
  plugins: {
    auth: { adminToken: 'hunter2-d', jwt: { issuer: 'i', audience: 'a', jwksUri: 'https://i.example/jwks?p=1' } },
    signing: { secret: 'hunter2' },
    opa: { url: 'http://opa:8181' },
    otel: {},
    realtime: { iceServers: [{ urls: 'turn:a', username: 'hunter2', credential: 'hunter2' }] },
    helmet: { hsts: { maxAge: 1 } }
  }
}
const circle: Record<string, unknown> = { server: {} }
circle['server'] = circle
circle['list'] = [circle, circle]
const plain = [
  null,
  0,
  1,
  -1,
  1.5,
  2 ** 60,
  '',
  'x',
  '5s',
  '10mb',
  'env:NAME',
  'env:',
  'echo',
  'echo/x',
  true,
  false,
  [],
  {}
]
const strange = [
  undefined,
  Number.NaN,
  Number.POSITIVE_INFINITY,
  10n,
  Symbol('x'),
  () => {},
  new Date(0),
  new Map([['a', 1]]),
  Object.create(null),
  JSON.parse('{"__proto__":{"a":1}}'),
  circle,
  new Array(3),
  'x'.repeat(100_000),
  '\u0000\n\u001b',
  { type: 'echo' },
  [[[[[]]]]],
  /x/,
  Object.create({ port: 1 })
]
const keys = ['type', 'a', 'constructor', '__proto__', 'toString', 'a/b', 'ports', 'enabled', 'targets', '', '\n']

/** A copy with one to four random changes: a key added, removed, or given another value. */
function mutate(config: object, random: () => number, values: readonly unknown[], names: readonly string[]): unknown {
  const copy = structuredClone(config)
  const pick = <T>(list: readonly T[]) => list[Math.floor(random() * list.length)]
  for (let changes = Math.ceil(random() * 4); changes > 0; changes--) {
    const nodes = nodesOf(copy)
    const node = pick(nodes) ?? {}
    const kind = random()
    const key = kind < 0.15 ? pick(names) : pick(Object.keys(node))
    const value = fresh(kind < 0.3 ? pick(nodesOf(example)) : pick(values))
    if (key === undefined) continue
    if (kind > 0.9) Reflect.deleteProperty(node, key)
    else Object.defineProperty(node, key, { value, enumerable: true, configurable: true, writable: true })
  }
  return copy
}

function nodesOf(value: unknown, seen = new Set<unknown>([circle])): Node[] {
  if (typeof value !== 'object' || value === null || seen.has(value)) return []
  if (!Array.isArray(value) && Object.getPrototypeOf(value) !== Object.prototype) return []
  seen.add(value)
  const node = value as Node
  return [node, ...Object.values(node).flatMap(child => nodesOf(child, seen))]
}

/** Containers are copied, so that no round changes the next one's. */
function fresh(value: unknown): unknown {
  return Array.isArray(value) || Object.getPrototypeOf(Object(value)) === Object.prototype
    ? structuredClone(value)
    : value
}

t.test('a full configuration is right', async t => {
  t.ok(readConfig(full, {}).settings)
})

t.test('2,000 broken configurations throw nothing but a ConfigError, and show no secret', async t => {
  const random = numbers(1)
  let broken = 0
  for (let round = 0; round < 2000; round++) {
    const config = mutate(random() < 0.5 ? full : example, random, [...plain, ...strange], keys)
    const env = [undefined, {}, { NAME: 'hunter2', PORT: 'x', OPA_URL: 'http://opa' }][round % 3]
    try {
      const { settings } = readConfig(config, env)
      JSON.stringify(settings)
      const copy = structuredClone(settings)
      if (!Value.Equal(copy, settings)) t.fail('settings are not plain', { round })
    } catch (error) {
      broken++
      if (!(error instanceof ConfigError)) return t.fail('not a ConfigError', { round, error })
      if (error.faults.length === 0 || error.message.includes('hunter2')) return t.fail(error.message, { round })
      if (error.faults.some(line => line.includes('\n') || !/^.+: .+/.test(line)))
        return t.fail(error.message, { round })
    }
  }
  t.ok(broken > 1000 && broken < 2000, `${broken} were broken`)
})

t.test('our verdict is TypeBox’s own', async t => {
  const random = numbers(2)
  const verdicts = { right: 0, wrong: 0 }
  // Where we are stricter on purpose: a plugin that is true is held against its object, numbers that lost their last digits
  // are not whole, and __proto__ is no name at all. TypeBox itself fails at a list that has a `constructor` of its own.
  const values = plain.filter(value => value !== true && value !== 2 ** 60)
  const names = keys.filter(key => key !== '__proto__' && key !== 'constructor')
  for (let round = 0; round < 1000; round++) {
    const config = mutate(full, random, values, names)
    const faults = report()
    read(Config, config, faults)
    const ours = faults.count === 0
    if (ours !== accepts(config)) return t.fail('another verdict', { round, lines: faults.lines })
    verdicts[ours ? 'right' : 'wrong']++
  }
  t.ok(verdicts.right > 20 && verdicts.wrong > 500, JSON.stringify(verdicts))
})

t.test('what we make of a configuration has all that TypeBox decodes', async t => {
  for (const config of [example, full]) {
    const written = structuredClone(config)
    for (const [name, plugin] of Object.entries(written.plugins)) if (plugin === true) written.plugins[name] = {}
    t.has(read(Config, written, report()), Value.Decode(Config, written))
  }
})

function accepts(config: unknown): boolean {
  try {
    Value.Decode(Config, config)
    return true
  } catch {
    return false
  }
}
