import type { FastifyInstance } from 'fastify'
import fp from 'fastify-plugin'
import { detail, InvalidRequest } from '../../schemas/errors.ts'
import type { Log, Target } from '../../schemas/gateway.ts'
import type { Price } from '../../schemas/model-options.ts'
import type { PriceCard, Pricing } from '../../schemas/pricing.ts'
import type { Provider } from '../../schemas/provider.ts'
import { cardOf } from './card.ts'
import { extraIn } from './extras.ts'
import { boundOf, costOf, estimateOf, type Sheet, sheetOf } from './sums.ts'
import { openTable, type Table } from './table.ts'

export interface PricingOptions {
  /** Look up models without a price of their own in the built-in table. */
  table: boolean
  /** Fields that cost more than their tokens, which nobody here can count: refused, or let through unpriced. Default `deny`. */
  extras?: 'deny' | 'allow'
  /** Milliseconds since 1970. Given by tests. Default Date.now. */
  now?: () => number
}

/** A price ready for use. */
interface Priced {
  readonly card: PriceCard
  readonly sheet: Sheet
  /** What it may cost within a day besides. */
  readonly soon: readonly Sheet[]
}

/** What the table said of a model, and until when that holds. */
interface Answer {
  readonly priced: Priced | null
  readonly until: number
}

const day = 86_400_000
/** How many models of one provider are remembered: names come from callers where there are no aliases. */
const mostModels = 1_000

/** Says what targets cost: by their configuration, by their provider's word, or by the built-in table. */
async function pricingPlugin(app: FastifyInstance, options: PricingOptions): Promise<void> {
  const { gateway } = app
  const now = options.now ?? Date.now
  const table = options.table ? await openTable(gateway.log) : null
  const pricing = createPricing(table, gateway.log, now)
  gateway.decorate('pricing', pricing)
  gateway.accountWith({ cost: pricing.cost })
  if (options.extras !== 'allow') {
    gateway.intercept('budget', (inference, next) => {
      const field = extraIn(inference.request)
      return field === null ? next(inference) : Promise.reject(unpricedField(field))
    })
  }
  gateway.dependency('pricing', () => ({ ok: true, ...detailsOf(table, now()) }))
  app.addHook('onReady', async () => {
    gateway.log.info(detailsOf(table, now()), table ? 'the built-in price table' : 'the built-in price table is off')
  })
}

function unpricedField(field: string): Error {
  const words = `\`${field}\` costs more than its tokens, which this gateway cannot count. Leave it out, or have the operator set plugins.pricing.extras to allow.`
  return detail(new InvalidRequest(words), { param: field })
}

function detailsOf(table: Table | null, now: number): Record<string, string | number | null> {
  if (table === null) return { table: null }
  const { name, version, published } = table
  const age = published === null ? null : Math.floor((now - Date.parse(published)) / day)
  return { table: name, version, published, ageInDays: age }
}

function createPricing(table: Table | null, log: Log, now: () => number): Pricing {
  // By the objects themselves: configured prices and providers live as long as the gateway, targets may not.
  const written = new WeakMap<Price, Priced | null>()
  const looked = new WeakMap<Provider, Map<string, Answer>>()

  function find(target: Target): Priced | null {
    const price = target.price ?? target.provider.price
    if (price === undefined) return table === null ? null : lookUp(table, target)
    const known = written.get(price)
    if (known !== undefined) return known
    const priced =
      price === target.price ? compile(price, [], 'target', 'config') : compile(price, [], 'provider', 'provider')
    if (priced === null) log.error({ provider: target.provider.name, model: target.model }, 'a price is out of range')
    written.set(price, priced)
    return priced
  }

  function lookUp(table: Table, { provider, model }: Target): Priced | null {
    let models = looked.get(provider)
    if (models === undefined) {
      models = new Map()
      looked.set(provider, models)
    }
    const known = models.get(model)
    if (known !== undefined && (known.until === Number.POSITIVE_INFINITY || known.until > now())) return known.priced
    const found = provider.pricing ? table.find(provider.pricing, model, now()) : null
    const version = `${table.name}@${table.version}`
    const priced = found?.now ? compile(found.now, found.soon, 'table', version) : null
    if (models.size >= mostModels) for (const oldest of models.keys()) if (models.delete(oldest)) break
    models.set(model, { priced, until: found?.until ?? Number.POSITIVE_INFINITY })
    return priced
  }

  return {
    table,
    of: target => find(target)?.card ?? null,
    cost(target, usage) {
      if (usage.charge !== null && target.provider.pricing?.charges === true) return usage.charge
      const priced = find(target)
      return priced === null ? null : costOf(priced.sheet, usage)
    },
    bound(target, input, output) {
      const priced = find(target)
      if (priced === null) return null
      let most = boundOf(priced.sheet, input, output)
      for (const sheet of priced.soon) most = Math.max(most, boundOf(sheet, input, output))
      return most
    },
    estimate(target, input, output) {
      const priced = find(target)
      return priced === null ? null : estimateOf(priced.sheet, input, output)
    }
  }
}

/** Null: an amount that cannot be counted. */
function compile(price: Price, soon: readonly Price[], source: PriceCard['source'], version: string): Priced | null {
  try {
    const card = cardOf(price, source, version)
    return { card, sheet: sheetOf(card), soon: soon.map(later => sheetOf(cardOf(later, source, version))) }
  } catch {
    return null
  }
}

export default fp(pricingPlugin, { fastify: '5.x', name: 'pricing', dependencies: ['routing'] })
