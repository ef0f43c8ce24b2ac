import type { Log } from '../../schemas/gateway.ts'
import type { ModelInfo, Provider } from '../../schemas/provider.ts'

/** What providers say of their own models, asked for when somebody wants to know and kept for a while. */
export interface Discovery {
  /** Waits for the first answer of a provider; later ones are fetched while the former list is given. */
  models(provider: Provider): Promise<readonly ModelInfo[]>
  /** What is known of one model without asking. */
  known(provider: Provider, model: string): ModelInfo | undefined
  close(): void
}

interface Listing {
  models: readonly ModelInfo[]
  byId: ReadonlyMap<string, ModelInfo>
  /** Milliseconds since 1970 when it was asked for last. */
  at: number
  loading: Promise<void> | null
}

/** Milliseconds that a provider gets to list its models. */
const patience = 5_000
/** After a failure it is asked again sooner. */
const failedFor = 30_000

/** @param kept milliseconds that a list is good for */
export function createDiscovery(kept: number, log: Log, now: () => number): Discovery {
  const listings = new Map<Provider, Listing>()
  const closing = new AbortController()

  function listingOf(provider: Provider): Listing {
    const known = listings.get(provider)
    if (known !== undefined) return known
    const listing: Listing = { models: [], byId: new Map(), at: Number.NEGATIVE_INFINITY, loading: null }
    listings.set(provider, listing)
    return listing
  }

  /** A provider that cannot say what it has does not hide what the others have. */
  async function load(provider: Provider, listing: Listing): Promise<void> {
    const signal = AbortSignal.any([closing.signal, AbortSignal.timeout(patience)])
    try {
      listing.models = (await provider.models?.(signal)) ?? []
      listing.byId = new Map(listing.models.map(model => [model.id, model]))
      listing.at = now()
    } catch (error) {
      listing.at = now() - kept + Math.min(failedFor, kept)
      if (!closing.signal.aborted)
        log.warn({ err: error, provider: provider.name }, 'a provider could not list its models')
    } finally {
      listing.loading = null
    }
  }

  return {
    async models(provider) {
      if (provider.models === undefined) return []
      const listing = listingOf(provider)
      const first = listing.at === Number.NEGATIVE_INFINITY
      if (listing.loading === null && now() - listing.at >= kept) listing.loading = load(provider, listing)
      if (first) await listing.loading
      return listing.models
    },
    known: (provider, model) => listings.get(provider)?.byId.get(model),
    close: () => closing.abort()
  }
}
