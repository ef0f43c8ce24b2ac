import type { Admission } from '../../schemas/gateway.ts'
import type { Limits } from '../../schemas/tenants.ts'

/** What one call asks for. Limits are null where there are none at all. */
export interface Demand {
  readonly tenant: string
  readonly tenantLimits: Limits | null
  readonly key: string
  readonly keyLimits: Limits | null
  /** That it will take, about; 0 where nobody limits tokens. */
  readonly tokens: number
}

/** Counts calls by tenant and key: in this process, or in Redis for all processes. */
export interface Limiter {
  /**
   * Takes a call's part from all its limits, or nothing from any. Adds the `x-ratelimit-*` headers of the tightest limits
   * to `headers`.
   * @throws RateLimitExceeded, LimitsUnavailable
   */
  admit(demand: Demand, headers: string[]): Admission | Promise<Admission>
}
