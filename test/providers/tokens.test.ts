import { getEventListeners } from 'node:events'
import { mock } from 'node:test'
import t, { type Test } from 'tap'
import { createTokens, type Token, tokenFault } from '../../providers/tokens.ts'
import { turn } from '../upstream.ts'

const minute = 60_000
const { signal } = new AbortController()

/** Tokens t1, t2, … of an hour each on a clock that stands still; `answers` replaces what is asked for. */
function hourly(t: Test, lifetime = 60 * minute) {
  mock.timers.enable({ apis: ['Date', 'setTimeout'], now: 1_790_000_000_000 })
  t.teardown(() => mock.timers.reset())
  let asked = 0
  let answer = async (_: AbortSignal): Promise<Token> => ({ value: `t${asked}`, expires: Date.now() + lifetime })
  const tokens = createTokens(signal => {
    asked++
    return answer(signal)
  })
  return {
    tokens,
    get asked() {
      return asked
    },
    answerWith(next: typeof answer) {
      answer = next
    }
  }
}

const failing = async () => {
  throw new Error('down')
}

t.test('a token is kept until five minutes before its end', async t => {
  const { tokens } = hourly(t)
  t.equal(await tokens.get(signal), 't1')
  mock.timers.tick(55 * minute - 1)
  t.equal(await tokens.get(signal), 't1')
  mock.timers.tick(1)
  t.equal(await tokens.get(signal), 't1', 'it is still good: nobody waits')
  await turn()
  t.equal(await tokens.get(signal), 't2')
})

t.test('a token whose time is over is not used', async t => {
  const { tokens } = hourly(t)
  await tokens.get(signal)
  mock.timers.tick(60 * minute)
  t.equal(await tokens.get(signal), 't2')
})

t.test('a token that lives shorter than five minutes is kept for half of its life', async t => {
  const own = hourly(t, 4 * minute)
  await own.tokens.get(signal)
  mock.timers.tick(2 * minute - 1)
  await own.tokens.get(signal)
  t.equal(own.asked, 1)
  mock.timers.tick(1)
  await own.tokens.get(signal)
  await turn()
  t.equal(own.asked, 2)
})

t.test('50 that wait ask once', async t => {
  const own = hourly(t)
  const values = await Promise.all(Array.from({ length: 50 }, () => own.tokens.get(signal)))
  t.strictSame(new Set(values), new Set(['t1']))
  t.equal(own.asked, 1)
  t.equal(getEventListeners(signal, 'abort').length, 0)
})

t.test('a refresh that fails is not missed while the old token is good, and not repeated at once', async t => {
  const own = hourly(t)
  await own.tokens.get(signal)
  own.answerWith(failing)
  mock.timers.tick(56 * minute)
  for (let call = 0; call < 10; call++) {
    t.equal(await own.tokens.get(signal), 't1')
    await turn()
  }
  t.equal(own.asked, 2)
  mock.timers.tick(minute)
  t.equal(await own.tokens.get(signal), 't1')
  t.equal(own.asked, 3)
  mock.timers.tick(3 * minute)
  await t.rejects(own.tokens.get(signal), { message: 'down' })
})

t.test('a failure is not kept', async t => {
  const own = hourly(t)
  own.answerWith(failing)
  await t.rejects(own.tokens.get(signal), { message: 'down' })
  own.answerWith(async () => ({ value: 'late', expires: Date.now() + minute }))
  t.equal(await own.tokens.get(signal), 'late')
})

t.test('a token that is refused before its time is replaced, but not more than once a minute', async t => {
  const own = hourly(t)
  own.tokens.refused(await own.tokens.get(signal))
  t.equal(await own.tokens.get(signal), 't1', 'just made: another one would be refused too')
  mock.timers.tick(minute)
  own.tokens.refused('t0')
  t.equal(await own.tokens.get(signal), 't1', 'another one was meant')
  own.tokens.refused('t1')
  t.equal(await own.tokens.get(signal), 't2')
})

t.test('who leaves does not take the request for a token along', async t => {
  const own = hourly(t)
  const { promise, resolve } = Promise.withResolvers<Token>()
  own.answerWith(() => promise)
  const leaving = new AbortController()
  const left = own.tokens.get(leaving.signal)
  const stayed = own.tokens.get(signal)
  const reason = new Error('gone')
  leaving.abort(reason)
  await t.rejects(left, reason)
  await t.rejects(own.tokens.get(leaving.signal), reason)
  resolve({ value: 'one', expires: Date.now() + minute })
  t.equal(await stayed, 'one')
  t.equal(own.asked, 1)
})

t.test('an endpoint that says nothing is given up after ten seconds', async t => {
  const own = hourly(t)
  let told: AbortSignal | undefined
  own.answerWith(signal => {
    told = signal
    return new Promise(() => {})
  })
  const waiting = own.tokens.get(signal)
  mock.timers.tick(10_000)
  const fault = await waiting.catch(error => error)
  t.match(fault, { code: 'GATEWAY_UPSTREAM_TIMEOUT', blame: 'time', message: /no access token within 10000 ms/ })
  t.ok(told?.aborted)
})

t.test('a refusal is the fault of the key, a failure that of the provider', async t => {
  const redact = (text: string) => text.replaceAll('s3cret', '[redacted]')
  for (const status of [400, 401, 403, 404]) {
    const body = { error: 'invalid_client', error_description: 'The secret s3cret is wrong.' }
    const fault = tokenFault(status, body, redact)
    t.match(fault, { blame: 'key', statusCode: 502, headers: { 'x-should-retry': 'false' } })
    t.notMatch(fault.message, 'invalid_client')
    t.match(fault.cause, { message: `${status}: invalid_client: The secret [redacted] is wrong.` })
  }
  for (const status of [200, 302, 408, 429, 500, 503]) {
    t.match(tokenFault(status, null, redact), { blame: 'provider', statusCode: 502 }, String(status))
  }
})
