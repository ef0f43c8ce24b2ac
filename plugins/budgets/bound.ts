import { ModelUnpriced, RequestCostExceeded } from '../../schemas/errors.ts'
import type { Gateway, Inference, Target } from '../../schemas/gateway.ts'
import { mostNano, usdText } from '../../schemas/money.ts'
import type { Pricing } from '../../schemas/pricing.ts'
import type { Tenant } from '../../schemas/tenants.ts'

export interface BoundOptions {
  readonly pricing: Pricing
  /** What happens to a call that may reach a target without a known price. */
  readonly unpriced: 'deny' | 'allow'
  /** Output tokens of a call that nobody has limited. */
  readonly defaultOutputTokens: number
  /** Counts the calls whose price nobody knew. */
  readonly counters: { unpriced: number }
}

/** The most that a call can cost, in nano-USD. */
export function createBound({ pricing, unpriced, defaultOutputTokens, counters }: BoundOptions) {
  /** The bound at the dearest target that the call can reach. @throws ModelUnpriced, RequestCostExceeded */
  function dearest(inference: Inference, tenant: Tenant | undefined): number {
    const { targets, alias } = inference.route
    if (inference.maxOutputTokens === null) inference.limitOutput(defaultOutputTokens)
    const output = outputOf(inference)
    const input = inference.size.bound
    let most = 0
    let unknown = false
    for (const target of targets) {
      const bound = pricing.bound(target, input, output)
      if (bound === null) unknown = true
      else if (bound > most) most = bound
    }
    if (unknown) {
      // Which target answers is decided later: one without a price must not be reachable at all.
      if (unpriced === 'deny') throw new ModelUnpriced(alias)
      counters.unpriced++
    }
    const limit = tenant?.maxRequest ?? null
    if (limit !== null && most > limit) checkEstimate(inference, output, limit)
    return Math.min(most, Number.MAX_SAFE_INTEGER)
  }

  function outputOf({ maxOutputTokens, request }: Inference): number {
    const { n } = request
    const choices = typeof n === 'number' && n > 1 ? Math.ceil(n) : 1
    return (maxOutputTokens ?? defaultOutputTokens) * choices
  }

  /** No estimate is higher than its bound, so it is only made where the bound is too high. */
  function checkEstimate(inference: Inference, output: number, limit: number): void {
    let likely = 0
    for (const target of inference.route.targets) {
      likely = Math.max(likely, pricing.estimate(target, inference.size.estimate, output) ?? 0)
    }
    if (likely > limit) throw new RequestCostExceeded(usdText(Math.min(likely, mostNano)), usdText(limit))
  }

  /** The most that the request, as it is now, can cost at a target. @throws ModelUnpriced */
  function boundAt(inference: Inference, target: Target): number {
    const bound = pricing.bound(target, inference.size.bound, outputOf(inference))
    if (bound === null && unpriced === 'deny') throw new ModelUnpriced(inference.route.alias)
    return Math.min(bound ?? 0, Number.MAX_SAFE_INTEGER)
  }

  /** Otherwise nobody learns of it before the first call is refused, and then it is the caller. */
  function warnOfUnpriced({ models, log }: Pick<Gateway, 'models' | 'log'>): void {
    for (const { alias, targets } of models.routes()) {
      const unknown = targets.filter(target => pricing.bound(target, 1, 1) === null)
      if (unknown.length === 0) continue
      const names = unknown.map(({ provider, model }) => `${provider.name}/${model}`)
      log.warn({ model: alias, targets: names }, 'every call of this model is refused: give these targets a price')
    }
  }

  return { dearest, boundAt, warnOfUnpriced }
}
