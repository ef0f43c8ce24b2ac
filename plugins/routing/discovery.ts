import { isTheirs, wordsOf } from '../../schemas/call-record.ts'
import type { Log } from '../../schemas/gateway.ts'
import type { ModelInfo, Provider } from '../../schemas/provider.ts'
import { inTime, type Pause } from './patience.ts'

/** What providers say of their own models, asked for when somebody wants to know and kept for a while. */
export interface Discovery {
  /** Waits for the first answer of a provider; later ones are fetched while the former list is given. */
  models(provider: Provider): Promise<readonly ModelInfo[]>
  /** What is known of one model without asking. */
  known(provider: Provider, model: string): ModelInfo | undefined
  close(): void
}

export interface DiscoveryOptions {
  /** Milliseconds that a list is good for. */
  readonly kept: number
  readonly log: Log
  readonly now: () => number
  readonly pause: Pause
}

interface Listing {
  models: readonly ModelInfo[]
  byId: ReadonlyMap<string, ModelInfo>
  /** Milliseconds since 1970 from which on it is asked again. */
  until: number
  loading: Promise<void> | null
  /** It was asked once, whatever it said. */
  asked: boolean
}

/** Milliseconds that a provider gets to list its models. */
const patience = 5_000
/** After a failure it is asked again sooner. */
const failedFor = 30_000

export function createDiscovery({ kept, log, now, pause }: DiscoveryOptions): Discovery {
  const listings = new Map<Provider, Listing>()
  const closing = new AbortController()

  function listingOf(provider: Provider): Listing {
    const known = listings.get(provider)
    if (known !== undefined) return known
    const listing: Listing = { models: [], byId: new Map(), until: 0, loading: null, asked: false }
    listings.set(provider, listing)
    return listing
  }

  /** A provider that cannot say what it has does not hide what the others have. */
  async function load(provider: Provider, listing: Listing): Promise<void> {
    try {
      const ask = async (signal: AbortSignal) => (await provider.models?.(signal)) ?? []
      listing.models = await inTime(ask, patience, closing.signal, pause)
      listing.byId = new Map(listing.models.map(model => [model.id, model]))
      listing.until = now() + kept
    } catch (error) {
      listing.until = now() + Math.min(failedFor, kept)
      if (!closing.signal.aborted) complain(provider.name, error)
    }
    listing.asked = true
    listing.loading = null
  }

  function complain(provider: string, error: unknown): void {
    const message = 'a provider could not list its models'
    if (isTheirs(error)) {
      log.warn({ provider, reason: wordsOf(error) }, message)
      log.debug({ err: error, provider }, 'what it said')
    } else log.warn({ err: error, provider }, message)
  }

  return {
    async models(provider) {
      if (provider.models === undefined) return []
      const listing = listingOf(provider)
      if (listing.loading === null && (!listing.asked || now() >= listing.until)) {
        listing.loading = load(provider, listing)
      }
      if (!listing.asked) await listing.loading
      return listing.models
    },
    known: (provider, model) => listings.get(provider)?.byId.get(model),
    close: () => closing.abort()
  }
}
