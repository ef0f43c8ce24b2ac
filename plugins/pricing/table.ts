import { readFile } from 'node:fs/promises'
import type { ConditionalPrice, ModelInfo, ModelPrice } from '@pydantic/genai-prices'
import type { Log } from '../../schemas/gateway.ts'
import type { Price } from '../../schemas/model-options.ts'
import type { Provider } from '../../schemas/provider.ts'

/** What a model costs according to the table, at one moment. */
export interface Found {
  /** Null: there is no price that holds now. */
  readonly now: Price | null
  /** Prices that come to hold within a day. */
  readonly soon: readonly Price[]
  /** When this has to be asked again, in milliseconds; Infinity: never. */
  readonly until: number
}

/** The built-in price table. */
export interface Table {
  readonly name: string
  readonly version: string
  /** The day on which it was published. */
  readonly published: string | null
  /** Null: not in the table. */
  find(pricing: NonNullable<Provider['pricing']>, model: string, now: number): Found | null
}

const day = 86_400_000
const packageName = '@pydantic/genai-prices'
/** Its registry dates; the package itself does not say. */
const published: Readonly<Record<string, string>> = { '0.1.8': '2026-09-23' }

/** Loads the table of @pydantic/genai-prices. It is asked for models and their price lists; sums are our own. No network. */
export async function openTable(log: Log): Promise<Table> {
  const { calcPrice, findProvider } = await import('@pydantic/genai-prices')
  const manifest: unknown = JSON.parse(
    await readFile(new URL('../package.json', import.meta.resolve(packageName)), 'utf8')
  )
  const version = versionOf(manifest)

  function vendorOf({ vendor, url }: NonNullable<Provider['pricing']>): string | null {
    if (vendor !== undefined) return findProvider({ providerId: vendor })?.id === vendor ? vendor : null
    const place = placeOf(url)
    const found = place && findProvider({ providerApiUrl: place.origin + place.path })
    return found && owns(found.api_pattern, place) ? found.id : null
  }

  function modelOf(vendor: string, name: string): ModelInfo | null {
    // Without tokens there is nothing to sum: this is the way to the table's own matching of names.
    return calcPrice({}, name, { providerId: vendor })?.model ?? null
  }

  return {
    name: 'genai-prices',
    version,
    published: published[version] ?? null,
    find(pricing, name, now) {
      try {
        const vendor = vendorOf(pricing)
        if (vendor === null) return null
        const model = modelOf(vendor, name) ?? (dated.test(name) ? modelOf(vendor, name.replace(dated, '')) : null)
        return model && foundAt(model, now)
      } catch (error) {
        log.error({ err: error, model: name }, 'the built-in price table cannot tell the price of a model')
        return null
      }
    }
  }
}

function versionOf(manifest: unknown): string {
  const version = typeof manifest === 'object' && manifest !== null && 'version' in manifest ? manifest.version : null
  return typeof version === 'string' ? version : 'unknown'
}

/** The day that stands behind a model's name. */
const dated = /[-@]20\d{2}(?:-\d{2}-\d{2}|\d{4})$/

/** Where a URL leads; null for one with a port of its own, which is nobody's public API. */
function placeOf(url: string | undefined): { origin: string; path: string } | null {
  if (url === undefined || !URL.canParse(url)) return null
  const { protocol, hostname, port, pathname } = new URL(url)
  return port === '' ? { origin: `${protocol}//${hostname}`, path: pathname } : null
}

/**
 * The table's patterns are prefixes with wildcards: here the whole host has to be the vendor's, so that neither
 * `api.openai.com.example` nor `proxy.example/googleapis.com` gets a vendor's prices.
 */
function owns(pattern: string, { origin, path }: { origin: string; path: string }): boolean {
  const anchored = new RegExp(`^(?:${pattern})`)
  const match = anchored.exec(origin + path)?.[0]
  if (match === undefined) return false
  const rest = origin.slice(match.length)
  if (rest !== '') return match.endsWith('.') && /^[a-z]+$/.test(rest)
  return match.length === origin.length || !anchored.test(`https://host.invalid${path}`)
}

function foundAt(model: ModelInfo, now: number): Found {
  const { prices } = model
  if (!Array.isArray(prices)) return { now: priceOf(model, prices), soon: [], until: Number.POSITIVE_INFINITY }
  const turns = turnsOf(prices, now)
  const current = activeAt(prices, now)
  const soon = new Set(turns.filter(turn => turn <= now + day).map(turn => activeAt(prices, turn)))
  soon.delete(current)
  return {
    now: priceOf(model, current),
    soon: [...soon].map(prices => priceOf(model, prices)).filter(price => price !== null),
    // A day before a turn its price begins to count for bounds.
    until: Math.min(...turns, ...turns.map(turn => turn - day).filter(time => time > now))
  }
}

/** The last entry that holds, as the table's own code chooses it; the first one where none does. */
function activeAt(prices: readonly ConditionalPrice[], time: number): ModelPrice {
  const active = prices.findLast(({ constraint }) => {
    if (constraint === undefined) return true
    if (constraint.type === 'start_date') return time >= Date.parse(constraint.start_date)
    const at = ((time % day) + day) % day
    const start = timeOfDay(constraint.start_time)
    const end = timeOfDay(constraint.end_time)
    return end < start ? at >= start || at < end : at >= start && at < end
  })
  return (active ?? prices[0])?.prices ?? {}
}

/** The moments after now at which another entry may hold: every day for times of day, once for dates. */
function turnsOf(prices: readonly ConditionalPrice[], now: number): number[] {
  return prices
    .flatMap(({ constraint }) => {
      if (constraint === undefined) return []
      if (constraint.type === 'start_date') return [Date.parse(constraint.start_date)]
      const today = Math.floor(now / day) * day
      const times = [timeOfDay(constraint.start_time), timeOfDay(constraint.end_time)]
      return times.flatMap(time => [today + time, today + day + time])
    })
    .filter(time => time > now)
}

/** Milliseconds from midnight UTC: `16:30:00Z`, or with an offset. */
function timeOfDay(text: string): number {
  return ((Date.parse(`1970-01-01T${text}`) % day) + day) % day
}

/** Kinds of tokens that no usage tells from plain ones. */
const uncounted = {
  input_mtok: ['input_image_mtok', 'input_video_mtok'],
  output_mtok: ['output_image_mtok', 'output_video_mtok']
} as const
const forSound = /(?:^|[-_./])(?:audio|live|realtime|transcribe|tts|voice)/i

/** An entry of the table as a price list. Null: without prices for text, or with dearer ones for what cannot be counted. */
function priceOf(model: ModelInfo, prices: ModelPrice): Price | null {
  const { input, output, ...extras } = stepAt(prices, 0)
  if (input === undefined || output === undefined) return null
  if (forSound.test(model.id) && extras.audioInput === undefined) return null
  for (const [plain, kinds] of Object.entries(uncounted)) {
    if (kinds.some(kind => most(prices[kind]) > least(prices[plain]))) return null
  }
  const calls = prices['requests_kcount'] ?? 0
  if (typeof calls !== 'number') return null
  const starts = new Set(
    Object.values(prices).flatMap(value => (typeof value === 'object' ? value.tiers.map(tier => tier.start) : []))
  )
  return {
    input,
    output,
    ...extras,
    request: calls / 1_000,
    tiers: [...starts].map(above => ({ above, ...stepAt(prices, above + 1) }))
  }
}

/** All prices of a call with so many input tokens. */
function stepAt(prices: ModelPrice, tokens: number) {
  const at = (name: string) => {
    const value = prices[name]
    if (typeof value !== 'object') return value
    const tiers = value.tiers.filter(tier => tokens > tier.start)
    return tiers.reduce((best, tier) => (tier.start >= best.start ? tier : best), { start: -1, price: value.base })
      .price
  }
  return {
    input: at('input_mtok'),
    output: at('output_mtok'),
    cacheRead: at('cache_read_mtok'),
    cacheWrite: at('cache_write_5m_mtok') ?? at('cache_write_mtok'),
    cacheWrite1h: at('cache_write_1h_mtok'),
    reasoning: at('output_reasoning_mtok'),
    audioInput: at('input_audio_mtok'),
    audioOutput: at('output_audio_mtok')
  }
}

function most(value: ModelPrice[string]): number {
  return typeof value === 'object' ? Math.max(value.base, ...value.tiers.map(tier => tier.price)) : (value ?? 0)
}

function least(value: ModelPrice[string]): number {
  return typeof value === 'object' ? Math.min(value.base, ...value.tiers.map(tier => tier.price)) : (value ?? 0)
}
