import { calcPrice, findProvider, type ModelInfo } from '@pydantic/genai-prices'
import t, { type Test } from 'tap'
import { cardOf } from '../../plugins/pricing/card.ts'
import pricing from '../../plugins/pricing/index.ts'
import { boundOf, costOf, sheetOf } from '../../plugins/pricing/sums.ts'
import echo from '../../providers/echo.ts'
import openaiCompatible from '../../providers/openai-compatible.ts'
import type { Target } from '../../schemas/gateway.ts'
import type { Price } from '../../schemas/model-options.ts'
import { mostNano } from '../../schemas/money.ts'
import type { PriceCard, Pricing } from '../../schemas/pricing.ts'
import type { Provider } from '../../schemas/provider.ts'
import { estimatedUsage, inputOf, noUsage, type Usage } from '../../schemas/usage.ts'
import { build } from '../helper.ts'
import { numbers } from '../schemas/helper.ts'
import { ask, host, says, scripted, tokens } from './kernel.ts'

const today = Date.parse('2026-11-21T12:00:00Z')
const api = {
  openai: 'https://api.openai.com/v1',
  anthropic: 'https://api.anthropic.com/v1',
  google: 'https://generativelanguage.googleapis.com/v1beta/openai',
  deepseek: 'https://api.deepseek.com',
  perplexity: 'https://api.perplexity.ai',
  openrouter: 'https://openrouter.ai/api/v1',
  moonshotai: 'https://api.moonshot.ai/v1'
}

/** The plugin by itself, in a gateway that is ready; `clock` moves its time. */
async function priced(t: Test, options: { table?: boolean } = {}) {
  const clock = { now: today }
  const app = await host(t)
  await app.register(pricing, { table: options.table ?? true, now: () => clock.now })
  await app.ready()
  const { pricing: known } = app.gateway
  if (!known) throw new Error('gateway.pricing is missing.')
  return { app, clock, pricing: known }
}

function provider(own: Partial<Provider> = {}): Provider {
  return { ...scripted('up'), ...own }
}

function at(url: string, model: string): Target {
  return { provider: provider({ pricing: { url } }), model, weight: 1, price: null }
}

function costing(price: Price, own: Partial<Provider> = {}): Target {
  return { provider: provider(own), model: 'm', weight: 1, price }
}

const used = (usage: Partial<Usage>): Usage => ({ ...noUsage, source: 'reported', ...usage })
const million = 1_000_000

t.test(
  'a price of the configuration is whole pico-USD a token; what it leaves out costs what its plain kind costs',
  async t => {
    const { pricing } = await priced(t)
    const plain = { input: 3, output: 15 }
    t.strictSame(pricing.of(costing(plain)), {
      source: 'target',
      version: 'config',
      request: 0,
      tiers: [],
      rates: {
        input: 3_000_000,
        cacheRead: 3_000_000,
        cacheWrite5m: 3_000_000,
        cacheWrite1h: 3_000_000,
        audioInput: 3_000_000,
        output: 15_000_000,
        reasoning: 15_000_000,
        audioOutput: 15_000_000
      }
    })
    t.match(pricing.of(costing({ ...plain, cacheWrite: 3.75 }))?.rates, {
      cacheWrite5m: 3_750_000,
      cacheWrite1h: 3_750_000
    })
    const all = { cacheRead: 0.3, cacheWrite: 3.75, cacheWrite1h: 6, audioInput: 40, reasoning: 20, audioOutput: 80 }
    t.match(pricing.of(costing({ ...plain, ...all, request: 0.005 })), {
      request: 5_000_000_000,
      rates: {
        cacheRead: 300_000,
        cacheWrite5m: 3_750_000,
        cacheWrite1h: 6_000_000,
        audioInput: 40_000_000,
        reasoning: 20_000_000,
        audioOutput: 80_000_000
      }
    })
  }
)

t.test('every bucket costs its own rate, and a call its fee', async t => {
  const { pricing } = await priced(t)
  const target = costing({
    input: 1,
    cacheRead: 2,
    cacheWrite: 3,
    cacheWrite1h: 4,
    audioInput: 5,
    output: 6,
    reasoning: 7,
    audioOutput: 8,
    request: 9
  })
  const rates = {
    input: 1,
    cacheRead: 2,
    cacheWrite5m: 3,
    cacheWrite1h: 4,
    audioInput: 5,
    output: 6,
    reasoning: 7,
    audioOutput: 8
  }
  for (const [bucket, usd] of Object.entries(rates)) {
    t.equal(pricing.cost(target, used({ [bucket]: million })), (usd + 9) * 1e9, bucket)
  }
  t.equal(pricing.cost(target, used({})), 9e9)
})

t.test('a cost is exact and rounded half up once', async t => {
  const { pricing } = await priced(t)
  const cost = (price: Price, usage: Partial<Usage>) => pricing.cost(costing(price), used(usage))
  t.equal(cost({ input: 0.0025, output: 0 }, { input: 1 }), 3, '2.5 nano-USD')
  t.equal(cost({ input: 0.0024, output: 0 }, { input: 1 }), 2)
  t.equal(cost({ input: 0.0004, output: 0.0004 }, { input: 1, output: 1 }), 1, 'not 0 + 0')
  t.equal(cost({ input: 0.0006, output: 0.0006 }, { input: 1, output: 1 }), 1, 'not 1 + 1')
  t.equal(cost({ input: 0.000001, output: 0 }, { input: 499 }), 0)
  t.equal(cost({ input: 0.000001, output: 0 }, { input: 500 }), 1)
  t.equal(cost({ input: 0.1, output: 0.2 }, { input: 3, output: 3 }), 900)
})

t.test('costs beyond 2^53 pico-USD are exact too, and none is more than one number may hold', async t => {
  const { pricing } = await priced(t)
  const target = costing({ input: 0.000001, output: 1_000_000 })
  t.equal(pricing.cost(target, used({ input: 500, output: 8_999_999 })), 8_999_999_000_000_001)
  t.equal(pricing.cost(target, used({ input: 499, output: 8_999_999 })), 8_999_999_000_000_000)
  t.equal(pricing.cost(target, used({ output: 9_000_001 })), mostNano)
  t.equal(pricing.cost(target, used({ output: 1e308 })), mostNano)
  t.equal(pricing.cost(target, used({ output: Number.POSITIVE_INFINITY })), mostNano)
  t.equal(pricing.cost(target, used({ output: Number.NaN })), mostNano)
  t.equal(pricing.bound(target, 1, 8_999_999), 8_999_999_000_000_001, 'rounded up')
  t.equal(pricing.bound(target, 1, Number.POSITIVE_INFINITY), mostNano)
  t.equal(pricing.bound(target, Number.NaN, 1), mostNano)
  t.equal(pricing.estimate(target, 1, 8_999_999), 8_999_999_000_000_000)
})

t.test('above a tier all tokens cost its rates, cached ones are counted, and the limit itself is below', async t => {
  const { pricing } = await priced(t)
  const target = costing({
    input: 1,
    output: 10,
    cacheRead: 0.1,
    tiers: [
      { above: 400_000, input: 4, output: 40, cacheRead: 0.4 },
      { above: 200_000, input: 2, output: 20, cacheRead: 0.2 }
    ]
  })
  t.equal(pricing.cost(target, used({ input: 200_000, output: 10 })), 200_000_000 + 100_000)
  t.equal(pricing.cost(target, used({ input: 200_001, output: 10 })), 400_002_000 + 200_000)
  t.equal(pricing.cost(target, used({ input: 1, cacheRead: 200_000, output: 10 })), 2_000 + 40_000_000 + 200_000)
  t.equal(pricing.cost(target, used({ input: 400_000 })), 800_000_000)
  t.equal(pricing.cost(target, used({ input: 400_001 })), 1_600_004_000)
  t.equal(pricing.cost(target, used({ output: 500_000 })), 5_000_000_000, 'output opens no tier')
  t.strictSame(
    pricing.of(target)?.tiers.map(({ above }) => above),
    [200_000, 400_000]
  )
})

t.test(
  'what a tier leaves out costs its plain kind, or what it costs below where the tier does not name that',
  async t => {
    const tier = (own: object) =>
      cardOf({ input: 1, output: 10, cacheRead: 0.1, reasoning: 12, tiers: [{ above: 5, ...own }] }, 'target', 'config')
        .tiers[0]?.rates
    t.match(tier({ input: 2 }), { input: 2e6, cacheRead: 2e6, cacheWrite5m: 2e6, output: 10e6, reasoning: 12e6 })
    t.match(tier({ output: 20 }), { input: 1e6, cacheRead: 1e5, output: 20e6, reasoning: 20e6, audioOutput: 20e6 })
    t.match(tier({ cacheWrite: 3 }), { input: 1e6, cacheRead: 1e5, cacheWrite5m: 3e6, cacheWrite1h: 3e6 })
    t.match(tier({}), { input: 1e6, cacheRead: 1e5, output: 10e6, reasoning: 12e6 })
  }
)

t.test('no usage within a bound costs more than it', async t => {
  const random = numbers(31)
  const upTo = (most: number) => Math.floor(random() ** 3 * (most + 1))
  const usd = () =>
    random() < 0.2 ? 0 : Number((random() * 10 ** (2 - Math.floor(random() * 8))).toPrecision(1 + upTo(6)))
  const maybe = (name: string) => (random() < 0.5 ? { [name]: usd() } : {})
  const extras = () => ({
    ...maybe('cacheRead'),
    ...maybe('cacheWrite'),
    ...maybe('cacheWrite1h'),
    ...maybe('reasoning'),
    ...maybe('audioInput'),
    ...maybe('audioOutput')
  })
  for (let round = 0; round < 20_000; round++) {
    const tiers = Array.from({ length: upTo(3) }, () => ({
      above: 1 + upTo(100_000),
      ...maybe('input'),
      ...maybe('output'),
      ...extras()
    }))
    const price: Price = { input: usd(), output: usd(), ...extras(), ...maybe('request'), tiers }
    const sheet = sheetOf(cardOf(price, 'target', 'config'))
    const [input, output] = [upTo(200_000), upTo(200_000)]
    const bound = boundOf(sheet, input, output)
    let [left, leftOut] = [input, output]
    const part = () => {
      const taken = random() < 0.3 ? left : upTo(left)
      left -= taken
      return taken
    }
    const partOut = () => {
      const taken = random() < 0.3 ? leftOut : upTo(leftOut)
      leftOut -= taken
      return taken
    }
    const usage = used({
      cacheRead: part(),
      audioInput: part(),
      cacheWrite1h: part(),
      cacheWrite5m: part(),
      input: part(),
      reasoning: partOut(),
      audioOutput: partOut(),
      output: partOut()
    })
    const cost = costOf(sheet, usage)
    if (cost <= bound && Number.isSafeInteger(cost) && cost === slowCost(cardOf(price, 'target', 'config'), usage))
      continue
    t.fail(`${cost} > ${bound}`, { price, usage })
    return
  }
  t.pass('20,000 prices')
})

/** The same sum in bigint. */
function slowCost(card: PriceCard, usage: Usage): number {
  const all = usage.input + usage.cacheRead + usage.cacheWrite5m + usage.cacheWrite1h + usage.audioInput
  const rates = card.tiers.findLast(({ above }) => all > above)?.rates ?? card.rates
  let pico = BigInt(card.request)
  for (const name of Object.keys(rates) as Array<keyof typeof rates>) pico += BigInt(usage[name]) * BigInt(rates[name])
  return Number((pico + 500n) / 1_000n)
}

t.test('an estimate is plain input and output in the right tier', async t => {
  const { pricing } = await priced(t)
  const target = costing({ input: 1, output: 2, cacheWrite: 9, request: 0.5, tiers: [{ above: 100, input: 3 }] })
  t.equal(pricing.estimate(target, 100, 10), 500_000_000 + 100_000 + 20_000)
  t.equal(pricing.estimate(target, 101, 10), 500_000_000 + 303_000 + 20_000)
})

t.test("the provider's own charge wins over every price, and is known where no price is", async t => {
  const { pricing } = await priced(t)
  const charged = used({ input: million, charge: 7 })
  const charging = { pricing: { url: 'http://localhost:8000/v1', charges: true } }
  t.equal(pricing.cost(costing({ input: 1, output: 1 }, charging), charged), 7)
  t.equal(pricing.cost({ ...at('', 'llama'), provider: provider(charging) }, charged), 7)
  t.equal(pricing.cost(costing({ input: 1, output: 1 }, charging), used({ input: million, charge: 0 })), 0)
})

t.test('a cost that a provider names is no charge where the provider is not known to charge by it', async t => {
  const { pricing } = await priced(t)
  const charged = used({ input: million, charge: 7 })
  t.equal(pricing.cost(costing({ input: 1, output: 1 }), charged), 1e9)
  t.equal(pricing.cost(at('http://localhost:8000/v1', 'llama'), charged), null)
})

t.test("the target's price wins over the provider's word, that over the table", async t => {
  const { pricing } = await priced(t)
  const own = { price: { input: 2, output: 2 }, pricing: { url: api.openai } }
  const target = { ...costing({ input: 1, output: 1 }, own), model: 'gpt-4o' }
  t.match(pricing.of(target), { source: 'target', version: 'config', rates: { input: 1e6 } })
  t.match(pricing.of({ ...target, price: null }), { source: 'provider', version: 'provider', rates: { input: 2e6 } })
  t.match(pricing.of(at(api.openai, 'gpt-4o')), {
    source: 'table',
    version: 'genai-prices@0.1.8',
    rates: { input: 2.5e6 }
  })
})

t.test('the echo costs nothing, and says so itself', async t => {
  const app = await host(t, { providers: [], routing: {} })
  await app.register(echo, {})
  await app.register(pricing, { table: false })
  await app.ready()
  const target = app.gateway.models.resolve({ ...ask, model: 'echo/any' }).targets[0]!
  t.match(app.gateway.pricing?.of(target), { source: 'provider' })
  t.equal(app.gateway.pricing?.cost(target, estimatedUsage(million, million)), 0)
  t.equal(app.gateway.pricing?.bound(target, million, million), 0)
  const answer = await app.gateway.complete({ ...ask, model: 'echo/any' }, app.gateway.caller())
  t.equal(answer.facts.cost, 0)
})

t.test('a price that cannot be counted is none, and is told', async t => {
  const lines: string[] = []
  const app = await host(t, { log: line => lines.push(line) })
  await app.register(pricing, { table: true })
  await app.ready()
  const target = costing({ input: 1e300, output: 1 }, { pricing: { url: api.openai } })
  t.equal(app.gateway.pricing?.of(target), null)
  t.equal(app.gateway.pricing?.of(target), null)
  t.equal(app.gateway.pricing?.of(costing({ input: 1, output: 1, request: 8_000_000 })), null)
  t.equal(lines.filter(line => line.includes('a price is out of range')).length, 2, 'once for each')
})

t.test('the kernel asks here what its calls cost', async t => {
  const app = await host(t, {
    providers: [scripted('up', says('Hello', tokens(1_000, 100)))],
    routing: { models: { test: { targets: [{ provider: 'up', model: 'm', price: { input: 3, output: 15 } }] } } }
  })
  await app.register(pricing, { table: false })
  await app.ready()
  const { facts } = await app.gateway.complete(ask, app.gateway.caller())
  t.equal(facts.cost, 3_000_000 + 1_500_000)
})

t.test('without the table only prices of our own are known', async t => {
  const { app, pricing } = await priced(t, { table: false })
  t.equal(pricing.table, null)
  t.equal(pricing.of(at(api.openai, 'gpt-4o')), null)
  const { ms, ...check } = (await app.gateway.readiness()).checks['pricing'] ?? {}
  t.type(ms, 'number')
  t.strictSame(check, { ok: true, table: null })
})

t.test('/ready names the table, its version and its age', async t => {
  const { app, clock } = await priced(t)
  async function check() {
    const { ms: _ms, ...check } = (await app.gateway.readiness()).checks['pricing'] ?? {}
    return check
  }
  t.strictSame(await check(), {
    ok: true,
    table: 'genai-prices',
    version: '0.1.8',
    published: '2026-09-23',
    ageInDays: 59
  })
  clock.now += 86_400_000
  t.match(await check(), { ageInDays: 60 })
})

for (const [what, url] of Object.entries({
  'a server in the house': 'http://localhost:8000/v1',
  'an address': 'http://127.0.0.1:11434/v1',
  'a host that begins like a vendor': 'https://api.openai.com.proxy.example/v1',
  'a host that ends like a vendor': 'https://notapi.openai.com.example/v1',
  'a path that looks like a vendor': 'https://proxy.example/api.openai.com/v1',
  'a path that a wildcard would take': 'https://proxy.example/x.googleapis.com/v1',
  'a vendor with a port': 'https://api.openai.com:8443/v1',
  'a vendor without TLS': 'http://api.openai.com/v1',
  'credentials that look like a vendor': 'https://api.openai.com@proxy.example/v1',
  'a moonshot elsewhere': 'https://api.moonshot.proxy.example/v1',
  'no URL': 'nonsense'
})) {
  t.test(`${what} gets nobody's prices: ${url}`, async t => {
    const { pricing } = await priced(t)
    for (const model of ['gpt-4o', 'gemini-2.5-pro', 'kimi-k2', 'claude-sonnet-4-5'])
      t.equal(pricing.of(at(url, model)), null, model)
    t.equal(pricing.cost(at(url, 'gpt-4o'), used({ input: 1 })), null)
    t.equal(pricing.bound(at(url, 'gpt-4o'), 1, 1), null)
    t.equal(pricing.estimate(at(url, 'gpt-4o'), 1, 1), null)
  })
}

t.test('a provider that says nothing of prices has none, whatever it is called', async t => {
  const { pricing } = await priced(t)
  for (const name of ['openai', 'anthropic']) {
    t.equal(pricing.of({ provider: { ...provider(), name }, model: 'gpt-4o', weight: 1, price: null }), null)
  }
})

t.test('a vendor is known by its exact name, wherever its API is', async t => {
  const { pricing } = await priced(t)
  const by = (vendor: string) =>
    pricing.of({
      provider: provider({ pricing: { vendor, url: 'https://proxy.example' } }),
      model: 'gpt-4o',
      weight: 1,
      price: null
    })
  t.match(by('openai'), { rates: { input: 2.5e6 } })
  for (const vendor of ['my-openai', 'OpenAI', '', 'nobody']) t.equal(by(vendor), null, vendor)
})

t.test('the openai-compatible provider tells where its API is', async t => {
  const app = await host(t, { providers: [], routing: {} })
  await app.register(openaiCompatible, { name: 'one' })
  await app.register(openaiCompatible, { name: 'two', baseUrl: 'http://127.0.0.1:1' })
  await app.register(pricing, { table: true })
  await app.ready()
  const price = (model: string) => app.gateway.pricing?.of(app.gateway.models.resolve({ ...ask, model }).targets[0]!)
  t.match(price('one/gpt-4o'), { source: 'table' })
  t.equal(price('two/gpt-4o'), null)
})

t.test('dated names cost what their model costs, unless the table knows better; other names are unknown', async t => {
  const { pricing } = await priced(t)
  const input = (url: string, model: string) => pricing.of(at(url, model))?.rates.input
  t.equal(input(api.openai, 'gpt-4o-2024-08-06'), 2.5e6)
  t.equal(input(api.openai, 'gpt-4o-2024-05-13'), 5e6)
  t.equal(input(api.openai, 'gpt-4.1-2099-01-01'), input(api.openai, 'gpt-4.1'))
  t.equal(input(api.anthropic, 'claude-sonnet-4-5-20250929'), 3e6)
  for (const model of [
    'gpt-4o-tuned',
    'my-gpt-4o',
    'ft:gpt-4o:org',
    '',
    ' ',
    'x'.repeat(10_000),
    '__proto__',
    '2024-01-01'
  ]) {
    t.equal(pricing.of(at(api.openai, model)), null, model.slice(0, 20))
  }
})

t.test('cache, tiers and fees of the table are taken over', async t => {
  const { pricing } = await priced(t)
  t.match(pricing.of(at(api.anthropic, 'claude-sonnet-4-5')), {
    rates: { input: 3e6, cacheRead: 3e5, cacheWrite5m: 3.75e6, cacheWrite1h: 6e6, output: 15e6, reasoning: 15e6 },
    tiers: [
      { above: 200_000, rates: { input: 6e6, cacheRead: 6e5, cacheWrite5m: 7.5e6, cacheWrite1h: 12e6, output: 22.5e6 } }
    ]
  })
  const gemini = at(api.google, 'gemini-2.5-pro')
  t.equal(pricing.cost(gemini, used({ input: 200_000 })), 250_000_000)
  t.equal(pricing.cost(gemini, used({ input: 200_001 })), 500_002_500)
  t.match(pricing.of(at(api.google, 'gemini-2.5-flash')), { rates: { input: 3e5, audioInput: 1e6 } })
  t.match(pricing.of(at(api.perplexity, 'sonar-deep-research')), { rates: { output: 8e6, reasoning: 3e6 } })
  t.equal(pricing.of(at(api.perplexity, 'sonar'))?.request, 12_000_000_000)
})

t.test('models without a price for text, or with dearer ones for what nobody counts, are unknown', async t => {
  const { pricing } = await priced(t)
  t.equal(pricing.of(at(api.openrouter, 'meta-llama/llama-3.3-70b-instruct:free')), null, 'empty prices')
  t.equal(pricing.of(at(api.openai, 'text-embedding-3-small')), null, 'no output')
  t.equal(pricing.of(at(api.openai, 'whisper-1')), null, 'by the hour')
  t.equal(pricing.of(at(api.google, 'gemini-2.5-flash-image')), null, 'dearer images')
  t.equal(pricing.of(at(api.openai, 'gpt-4o-audio-preview')), null, 'sound without a price')
  t.ok(pricing.of(at(api.openai, 'gpt-4o-realtime-preview')))
})

t.test('a price that changes with the time of day is the one of the moment, and bounds hold for the day', async t => {
  const { pricing, clock } = await priced(t)
  const target = at(api.deepseek, 'deepseek-v4-pro')
  const moment = (time: string) => {
    clock.now = Date.parse(`2026-11-22T${time}Z`)
    return pricing.of(target)?.rates.input ?? 0
  }
  const night = moment('00:59:59.999')
  const peak = moment('01:00:00')
  t.ok(peak > night && night > 0, `${night} and ${peak}`)
  t.strictSame(
    [moment('03:59:59.999'), moment('04:00:00'), moment('06:00:00'), moment('10:00:00')],
    [peak, night, peak, night]
  )
  t.equal(pricing.bound(target, million, 0), (peak * million) / 1_000, 'dearest of the day')
  t.equal(pricing.cost(target, used({ input: million })), (night * million) / 1_000)
})

t.test('a price that begins on a day counts for bounds from a day before, and for calls from then on', async t => {
  const { pricing, clock } = await priced(t)
  const target = at(api.google, 'gemini-3.8-flash')
  const rate = () => pricing.of(target)?.rates.output ?? 0
  const bound = () => (pricing.bound(target, 0, million) ?? 0) / 1_000
  const before = rate()
  clock.now = Date.parse('2027-01-01T00:00:00Z')
  const after = rate()
  t.not(before, after)
  const fresh = await priced(t)
  const found = fresh.pricing
  fresh.clock.now = Date.parse('2026-12-30T23:59:59.999Z')
  t.equal((found.bound(target, 0, million) ?? 0) / 1_000, before)
  fresh.clock.now = Date.parse('2026-12-31T00:00:00Z')
  t.equal((found.bound(target, 0, million) ?? 0) / 1_000, Math.max(before, after))
  t.equal(found.of(target)?.rates.output, before)
  fresh.clock.now = Date.parse('2027-01-01T00:00:00Z')
  t.equal(found.of(target)?.rates.output, after)
  t.equal(bound(), after)
})

t.test('a clock that jumps backwards does no harm', async t => {
  const { pricing, clock } = await priced(t)
  const target = at(api.deepseek, 'deepseek-v4-pro')
  const before = pricing.of(target)
  clock.now -= 400 * 86_400_000
  t.strictSame(pricing.of(target), before)
})

t.test('every price of the table costs what the table itself says', async t => {
  const { pricing, clock } = await priced(t)
  const random = numbers(41)
  const upTo = (most: number) => Math.floor(random() * most)
  let compared = 0
  for (const vendor of [
    'openai',
    'anthropic',
    'google',
    'deepseek',
    'mistral',
    'groq',
    'x-ai',
    'openrouter',
    'perplexity',
    'together',
    'aws',
    'azure'
  ]) {
    const known: readonly ModelInfo[] = findProvider({ providerId: vendor })?.models ?? []
    const from = provider({ pricing: { vendor } })
    for (const { id } of known) {
      clock.now = today + upTo(100 * 86_400_000)
      const target: Target = { provider: from, model: id, weight: 1, price: null }
      if (pricing.of(target) === null) continue
      const usage = used({
        input: upTo(300_000),
        cacheRead: upTo(100_000),
        cacheWrite5m: upTo(50_000),
        output: upTo(50_000)
      })
      const theirs = calcPrice(
        {
          input_tokens: usage.input + usage.cacheRead + usage.cacheWrite5m,
          cache_read_tokens: usage.cacheRead,
          cache_write_tokens: usage.cacheWrite5m,
          output_tokens: usage.output
        },
        id,
        { providerId: vendor, timestamp: new Date(clock.now) }
      )
      const ours = pricing.cost(target, usage) ?? 0
      compared++
      // The table has a few prices that are no whole pico-USD a token: 0.08333333333333334 USD a million.
      const rounding = 0.5e-12 * (inputOf(usage) + usage.output)
      if (Math.abs(ours / 1e9 - (theirs?.total_price ?? -1)) > 1e-9 + rounding) {
        t.fail(`${vendor}/${id}: ${ours / 1e9} instead of ${theirs?.total_price}`, { usage })
      }
      if ((pricing.bound(target, 450_000, 50_000) ?? 0) < ours) t.fail(`${vendor}/${id}: bound`)
    }
  }
  t.ok(compared > 900, `${compared} prices`)
})

t.test('names that callers make up are remembered up to a limit, and known ones stay right', async t => {
  const { pricing } = await priced(t)
  const from = provider({ pricing: { url: api.openai } })
  const named = (model: string): Target => ({ provider: from, model, weight: 1, price: null })
  const first = pricing.of(named('gpt-4o'))
  for (let index = 0; index < 3_000; index++) t.notOk(pricing.of(named(`made-up-${index}`)) !== null || undefined)
  t.strictSame(pricing.of(named('gpt-4o')), first)
})

t.test('the plugin needs routing before it', async t => {
  const { default: Fastify } = await import('fastify')
  const app = Fastify()
  t.teardown(() => app.close())
  await t.rejects(async () => app.register(pricing, { table: false }), /routing/)
})

t.test('the type of what is added is the contract', async t => {
  const { pricing: known } = await priced(t)
  const same: Pricing = known
  t.equal(same, known)
})

t.test('a field that costs more than its tokens is refused, and named', async t => {
  const fields: Array<[string, unknown]> = [
    ['service_tier', 'priority'],
    ['models', ['dear/model']],
    ['plugins', [{ id: 'web' }]],
    ['web_search_options', {}],
    ['tools', [{ type: 'web_search' }]]
  ]
  const app = await build(t)
  const post = (body: object) =>
    app.inject({
      method: 'POST',
      url: '/v1/chat/completions',
      payload: { model: 'echo/echo', messages: [{ role: 'user', content: 'Hello' }], ...body }
    })
  for (const [field, value] of fields) {
    const answer = await post({ [field]: value })
    t.equal(answer.statusCode, 400, field)
    t.match(answer.json(), { error: { param: field, message: /plugins\.pricing\.extras/ } })
  }
  const harmless = { service_tier: 'auto', models: [], plugins: null, web_search_options: null, tools: [] }
  t.equal((await post(harmless)).statusCode, 200)
})

t.test('such a field is let through where that is allowed', async t => {
  const app = await build(t, { plugins: { pricing: { extras: 'allow' } } })
  const answer = await app.inject({
    method: 'POST',
    url: '/v1/chat/completions',
    payload: { model: 'echo/echo', service_tier: 'priority', messages: [{ role: 'user', content: 'Hello' }] }
  })
  t.equal(answer.statusCode, 200)
})
