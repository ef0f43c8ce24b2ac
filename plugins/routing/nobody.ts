import {
  detail,
  type GatewayError,
  InvalidRequest,
  UpstreamError,
  UpstreamOverloaded,
  UpstreamRateLimited
} from '../../schemas/errors.ts'
import { inWords, type Unable } from './abilities.ts'
import type { Plan } from './plan.ts'
import type { Rest } from './target-state.ts'

/** Why a call was not tried anywhere: what its request asks for, or what its targets rest from. */
export function nobody({ targets, alias }: Plan, unable: readonly Unable[], now: number): GatewayError {
  if (unable.length === targets.length) {
    const lacks = unable.map(inWords).join('; ')
    const words = `No target of the model '${alias}' can answer this request: ${lacks}.`
    return detail(new InvalidRequest(words), { param: unable[0]?.param ?? null })
  }
  const able = targets.filter(target => !unable.some(({ candidate }) => candidate === target))
  const rests = able.flatMap(({ state }) => state.rest(now) ?? [])
  // The others had no place free.
  if (rests.length < able.length) return new UpstreamOverloaded()
  if (rests.every(({ why }) => why === 'refused')) {
    const words = 'it refuses every key of this gateway. The operator has to look at it.'
    return detail(new UpstreamError(words), { headers: { 'x-should-retry': 'false' } })
  }
  const limited = rests.every(({ why }) => why !== 'breaker')
  return detail(limited ? new UpstreamRateLimited() : new UpstreamOverloaded(), { headers: comeBack(rests, now) })
}

/** When the first of them may be asked again. An operator who has to look at keys is not waited for. */
function comeBack(rests: readonly Rest[], now: number): Record<string, string> {
  const until = Math.min(...rests.filter(({ why }) => why !== 'refused').map(({ until }) => until))
  return { 'retry-after': String(Math.max(1, Math.ceil((until - now) / 1_000))) }
}
