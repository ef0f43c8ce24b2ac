import {
  detail,
  type GatewayError,
  InvalidRequest,
  UpstreamError,
  UpstreamOverloaded,
  UpstreamRateLimited
} from '../../schemas/errors.ts'
import type { Plan } from './plan.ts'

/** Why a call was not tried anywhere: what its request asks for, or what its targets rest from. */
export function nobody(plan: Plan, lacks: readonly string[], now: number): GatewayError {
  const { targets, alias } = plan
  if (lacks.length >= targets.length) {
    return new InvalidRequest(`No target of the model '${alias}' can answer this request: ${lacks.join('; ')}.`)
  }
  const rests = targets.flatMap(({ state }) => state.rest(now) ?? [])
  if (rests.length === 0) return new UpstreamOverloaded()
  if (rests.every(({ why }) => why === 'key')) {
    const words = 'it refuses every key of this gateway. The operator has to look at it.'
    return detail(new UpstreamError(words), { headers: { 'x-should-retry': 'false' } })
  }
  const until = Math.min(...rests.filter(({ why }) => why !== 'key').map(({ until }) => until))
  const headers = { 'retry-after': String(Math.max(1, Math.ceil((until - now) / 1_000))) }
  const limited = rests.every(({ why }) => why !== 'breaker')
  return detail(limited ? new UpstreamRateLimited() : new UpstreamOverloaded(), { headers })
}
