import type { Test } from 'tap'
import type { Demand, Limiter } from '../../plugins/limits/limiter.ts'
import { isGatewayError } from '../../schemas/errors.ts'
import type { Admission } from '../../schemas/gateway.ts'
import type { Limits } from '../../schemas/tenants.ts'

/** A limiter that a test runs, and how it lets minutes of the clock pass. */
export interface Subject {
  readonly limiter: Limiter
  pass(minutes: number): Promise<void> | void
}

export const none: Limits = { requestsPerMinute: null, tokensPerMinute: null, concurrency: null }

/** A call of tenant `a` without a key. */
export function demand(limits: Partial<Limits>, rest: Partial<Demand> = {}): Demand {
  return { tenant: 'a', tenantLimits: { ...none, ...limits }, key: '', keyLimits: null, tokens: 0, ...rest }
}

/** What a call came to: let in, or refused with these headers. */
export type Verdict = { headers: Record<string, string | undefined> } & (
  | { admission: Admission; message: null }
  | { admission: null; message: string }
)

export async function attempt(limiter: Limiter, asked: Demand): Promise<Verdict> {
  const list: string[] = []
  try {
    const admission = await limiter.admit(asked, list)
    const headers: Record<string, string> = {}
    for (let index = 0; index < list.length; index += 2) headers[list[index]!] = list[index + 1]!
    return { admission, headers, message: null }
  } catch (error) {
    if (!isGatewayError(error)) throw error
    if (error.wire !== 'rate_limit_exceeded' || error.statusCode !== 429) throw error
    return { admission: null, headers: error.headers, message: error.message }
  }
}

async function admitted(limiter: Limiter, asked: Demand): Promise<Admission> {
  const verdict = await attempt(limiter, asked)
  if (verdict.admission === null) throw new Error(verdict.message)
  return verdict.admission
}

/** What every limiter does, whether it counts in this process or in Redis. */
export function limiterConformance(t: Test, name: string, make: (t: Test) => Promise<Subject>): void {
  t.test(`${name}: from idle exactly as many requests pass as the limit says`, async t => {
    const { limiter } = await make(t)
    const asked = demand({ requestsPerMinute: 5 })
    for (let left = 4; left >= 0; left--) {
      const { headers } = await attempt(limiter, asked)
      t.equal(headers['x-ratelimit-limit-requests'], '5')
      t.equal(headers['x-ratelimit-remaining-requests'], String(left))
      t.match(headers['x-ratelimit-reset-requests'], /^(\d+m)?\d+s$/)
      t.equal(headers['x-ratelimit-limit-tokens'], undefined)
    }
    const refused = await attempt(limiter, asked)
    t.match(refused.message, /^Rate limit reached: the tenant `a` may make 5 requests per minute\. Try again in /)
    t.match(refused.headers['retry-after'], /^[1-9]\d*$/)
    t.equal(refused.headers['retry-after'], String(Math.ceil(Number(refused.headers['retry-after-ms']) / 1_000)))
    t.equal(refused.headers['x-ratelimit-remaining-requests'], '0')
    t.equal(refused.headers['x-should-retry'], undefined)
  })

  t.test(`${name}: a thousand at once are let in up to the limit, not one more`, async t => {
    const { limiter } = await make(t)
    const verdicts = await Promise.all(
      Array.from({ length: 1_000 }, () => attempt(limiter, demand({ requestsPerMinute: 137 })))
    )
    t.equal(verdicts.filter(({ admission }) => admission).length, 137)
  })

  t.test(`${name}: after two minutes everything is free again`, async t => {
    const { limiter, pass } = await make(t)
    const asked = demand({ requestsPerMinute: 3 })
    for (let count = 0; count < 3; count++) await admitted(limiter, asked)
    t.not((await attempt(limiter, asked)).message, null)
    await pass(2)
    t.equal((await attempt(limiter, asked)).headers['x-ratelimit-remaining-requests'], '2')
  })

  t.test(`${name}: tokens are counted as expected, then as they were`, async t => {
    const { limiter } = await make(t)
    const asked = demand({ tokensPerMinute: 10 }, { tokens: 6 })
    const first = await attempt(limiter, asked)
    t.equal(first.headers['x-ratelimit-limit-tokens'], '10')
    t.equal(first.headers['x-ratelimit-remaining-tokens'], '4')
    const refused = await attempt(limiter, asked)
    t.match(
      refused.message,
      /^Rate limit reached: the tenant `a` may use 10 tokens per minute, and this request counts for 6\. Try again in /
    )
    first.admission?.end(2)
    const second = await attempt(limiter, asked)
    t.equal(second.headers['x-ratelimit-remaining-tokens'], '2')
    second.admission?.end(9)
    t.equal((await attempt(limiter, { ...asked, tokens: 1 })).admission, null, '11 of 10 are used')
  })

  t.test(`${name}: a call whose tokens nobody knows keeps what it was counted for`, async t => {
    const { limiter } = await make(t)
    const asked = demand({ tokensPerMinute: 10 }, { tokens: 6 })
    ;(await admitted(limiter, asked)).end(null)
    t.equal((await attempt(limiter, asked)).admission, null)
    t.ok((await attempt(limiter, { ...asked, tokens: 4 })).admission)
  })

  t.test(`${name}: tokens are given back once, and not to a minute that is over`, async t => {
    const { limiter, pass } = await make(t)
    const asked = demand({ tokensPerMinute: 10 }, { tokens: 6 })
    const first = await admitted(limiter, asked)
    await pass(2)
    const second = await admitted(limiter, asked)
    first.end(0)
    t.equal((await attempt(limiter, asked)).admission, null)
    second.end(0)
    second.end(0)
    t.equal((await attempt(limiter, asked)).headers['x-ratelimit-remaining-tokens'], '4')
  })

  t.test(`${name}: tokens are given back to the minute in which they were taken, while it counts`, async t => {
    const { limiter, pass } = await make(t)
    const first = await admitted(limiter, demand({ tokensPerMinute: 10 }, { tokens: 6 }))
    await pass(1)
    t.equal((await attempt(limiter, demand({ tokensPerMinute: 10 }, { tokens: 10 }))).admission, null)
    first.end(0)
    t.ok((await attempt(limiter, demand({ tokensPerMinute: 10 }, { tokens: 10 }))).admission)
  })

  t.test(`${name}: what is larger than a whole minute is refused, and a repeat is called useless`, async t => {
    const { limiter } = await make(t)
    const { headers, message } = await attempt(limiter, demand({ tokensPerMinute: 10 }, { tokens: 11 }))
    t.equal(
      message,
      'This request counts for 11 tokens, more than the tenant `a` may use in a minute: 10. Send less or lower max_tokens.'
    )
    t.equal(headers['x-should-retry'], 'false')
    t.equal(headers['retry-after'], undefined)
    t.equal(headers['x-ratelimit-remaining-tokens'], '10', 'it took nothing')
  })

  t.test(`${name}: calls at once are counted until they end, each once`, async t => {
    const { limiter } = await make(t)
    const asked = demand({ concurrency: 2 })
    const first = await admitted(limiter, asked)
    await admitted(limiter, asked)
    const refused = await attempt(limiter, asked)
    t.equal(
      refused.message,
      'Concurrency limit reached: the tenant `a` may have 2 calls running at the same time. Try again in 1s.'
    )
    t.equal(refused.headers['retry-after'], '1')
    t.equal(refused.headers['retry-after-ms'], '1000')
    first.end(0)
    first.end(0)
    const third = await attempt(limiter, asked)
    t.ok(third.admission)
    t.equal((await attempt(limiter, asked)).admission, null, 'ending twice made room for one')
  })

  t.test(`${name}: a call that runs for minutes still counts as running`, async t => {
    const { limiter, pass } = await make(t)
    const asked = demand({ concurrency: 1 })
    const first = await admitted(limiter, asked)
    await pass(1)
    t.equal((await attempt(limiter, asked)).admission, null)
    await pass(5)
    t.equal((await attempt(limiter, asked)).admission, null)
    first.end(0)
    t.ok((await attempt(limiter, asked)).admission)
  })

  t.test(`${name}: a call that one of its limits refuses takes nothing from the others`, async t => {
    const { limiter } = await make(t)
    const tenantLimits = { requestsPerMinute: 5, tokensPerMinute: 50, concurrency: 5 }
    const keyLimits = { ...none, requestsPerMinute: 1 }
    const asked: Demand = { tenant: 'a', tenantLimits, key: 'k', keyLimits, tokens: 10 }
    await admitted(limiter, asked)
    for (let count = 0; count < 20; count++) {
      const { message, headers } = await attempt(limiter, asked)
      t.match(message, /the key `k` may make 1 request per minute/)
      t.equal(headers['x-ratelimit-limit-requests'], '1', 'the tightest limit')
    }
    const other = await attempt(limiter, { ...asked, key: 'other' })
    t.equal(other.headers['x-ratelimit-limit-tokens'], '50')
    t.equal(other.headers['x-ratelimit-remaining-tokens'], '30')
    t.equal(other.headers['x-ratelimit-remaining-requests'], '0')
    for (const key of ['c', 'd', 'e']) await admitted(limiter, { ...asked, key })
    t.match((await attempt(limiter, { ...asked, key: 'f' })).message, /the tenant `a`/)
  })

  t.test(`${name}: of two limits the headers show the one with less left`, async t => {
    const { limiter } = await make(t)
    const tenantLimits = { ...none, requestsPerMinute: 5, tokensPerMinute: 100 }
    const keyLimits = { ...none, requestsPerMinute: 3, tokensPerMinute: 200 }
    const asked: Demand = { tenant: 'a', tenantLimits, key: 'k', keyLimits, tokens: 1 }
    const { headers } = await attempt(limiter, asked)
    t.equal(headers['x-ratelimit-limit-requests'], '3')
    t.equal(headers['x-ratelimit-remaining-requests'], '2')
    t.equal(headers['x-ratelimit-limit-tokens'], '100')
    t.equal(headers['x-ratelimit-remaining-tokens'], '99')
  })

  t.test(`${name}: a tenant and a key of one name, and two tenants, do not share anything`, async t => {
    const { limiter } = await make(t)
    const limits = { ...none, requestsPerMinute: 1, concurrency: 1 }
    await admitted(limiter, demand(limits))
    await admitted(limiter, demand(limits, { tenant: 'b' }))
    await admitted(limiter, { tenant: 'c', tenantLimits: null, key: 'a', keyLimits: limits, tokens: 0 })
    t.equal((await attempt(limiter, demand(limits))).admission, null)
  })

  t.test(`${name}: what was used survives a change of limits`, async t => {
    const { limiter } = await make(t)
    const running = await admitted(limiter, demand({ requestsPerMinute: 2, concurrency: 9 }))
    await admitted(limiter, demand({ requestsPerMinute: 2, concurrency: 9 }))
    t.equal((await attempt(limiter, demand({ requestsPerMinute: 2 }))).admission, null)
    t.equal((await attempt(limiter, demand({ requestsPerMinute: 4 }))).headers['x-ratelimit-remaining-requests'], '1')
    const lower = await attempt(limiter, demand({ requestsPerMinute: 1, concurrency: 1 }))
    t.equal(lower.headers['x-ratelimit-remaining-requests'], '0')
    running.end(0)
  })

  t.test(`${name}: a limit of nothing lets nobody in, and says that waiting is useless`, async t => {
    const { limiter } = await make(t)
    for (const limits of [{ requestsPerMinute: 0 }, { concurrency: 0 }]) {
      const { admission, headers } = await attempt(limiter, demand(limits))
      t.equal(admission, null)
      t.equal(headers['x-should-retry'], 'false')
    }
  })
}
