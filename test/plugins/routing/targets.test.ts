import t from 'tap'
import { UpstreamError } from '../../../schemas/errors.ts'
import { ask, askStream, fails, says, scripted, textOf } from '../kernel.ts'
import { at, keyed, stage, status } from './kit.ts'

const broken = fails(new UpstreamError('broken'))

t.test('what is known of targets', async t => {
  t.test('begins with nothing', async t => {
    const { gateway } = await stage(t, { providers: [keyed('up', 2)], models: { targets: at('up') } })
    t.strictSame(gateway.targets.list(), [
      {
        provider: 'up',
        model: 'm',
        state: 'closed',
        open_until: null,
        in_flight: 0,
        queued: 0,
        attempts: 0,
        failures: 0,
        success_rate: null,
        latency_ms: { p50: null, p95: null },
        first_token_ms: { p50: null, p95: null },
        last_error: null,
        keys: [
          { key: 1, resting: null, until: null },
          { key: 2, resting: null, until: null }
        ]
      }
    ])
  })

  t.test('counts attempts and failures, and keeps the last of them', async t => {
    const up = scripted('up', says('x'), broken, says('x'), says('x'))
    const { run, fail, gateway, clock } = await stage(t, { providers: [up], models: { targets: at('up'), retries: 0 } })
    await run()
    await fail()
    await run()
    await run()
    const [report] = gateway.targets.list()
    t.match(report, {
      attempts: 4,
      failures: 1,
      success_rate: 0.75,
      last_error: {
        time: new Date(clock.time).toISOString(),
        code: 'upstream_error',
        message: 'The provider of this model failed: broken'
      }
    })
    t.type(report?.latency_ms.p50, 'number')
    t.equal(report?.first_token_ms.p50, null, 'there was no stream')
  })

  t.test('two faults in the log: a line had two times, and an error did not say which target it was', async t => {
    const lines: string[] = []
    const { fail } = await stage(t, {
      providers: [scripted('up', broken)],
      models: { targets: at('up'), retries: 0 },
      routing: { breaker: { failures: 1 } },
      log: line => lines.push(line)
    })
    t.match(await fail(), { target: 'up/m' })
    const [line = ''] = lines.filter(line => line.includes('left alone'))
    t.equal(line.split('"time":').length, 2)
    t.match(JSON.parse(line), { provider: 'up', model: 'm', code: 'upstream_error', reason: /broken/ })
  })

  t.test('holds nothing of requests that were refused: neither as a failure nor their words', async t => {
    const up = scripted('up', fails(status(400)))
    const { fail, gateway } = await stage(t, { providers: [up], models: { targets: at('up') } })
    await fail()
    t.match(gateway.targets.list()[0], { attempts: 1, failures: 0, success_rate: 1, last_error: null })
  })

  t.test('holds the time to the first token of streams', async t => {
    const { run, gateway } = await stage(t, { providers: [scripted('up')], models: { targets: at('up') } })
    await textOf(await run(askStream))
    const [report] = gateway.targets.list()
    t.type(report?.first_token_ms.p95, 'number')
    t.type(report?.latency_ms.p95, 'number')
  })

  t.test('says until when a target is left alone, and which keys rest and why', async t => {
    const up = keyed('up', 3, async ({ key }) => {
      if (key === 0) throw status(401)
      if (key === 1) throw status(429, { 'retry-after': '5' })
      throw new UpstreamError('broken')
    })
    const { fail, gateway, clock } = await stage(t, {
      providers: [up],
      models: { targets: at('up'), retries: 0 },
      routing: { breaker: { failures: 1, openFor: 2_000 } }
    })
    await fail()
    const iso = (after: number) => new Date(clock.time + after).toISOString()
    t.match(gateway.targets.list()[0], {
      state: 'open',
      open_until: iso(2_000),
      keys: [
        { key: 1, resting: 'refused', until: iso(60_000) },
        { key: 2, resting: 'limited', until: iso(5_000) },
        { key: 3, resting: null, until: null }
      ]
    })
    clock.advance(2_000)
    t.match(gateway.targets.list()[0], { state: 'half-open' })
  })

  t.test('tells which of them are up, without making the gateway unready', async t => {
    const { fail, gateway } = await stage(t, {
      providers: [scripted('one', broken), scripted('two')],
      models: {
        test: { targets: at('one'), retries: 0 },
        other: { targets: [...at('two'), { provider: 'two', model: 'n' }] }
      },
      routing: { breaker: { failures: 1 } }
    })
    await fail()
    const { ok, checks } = await gateway.readiness()
    t.equal(ok, true)
    const { ms: _ms, ...check } = checks['targets'] ?? {}
    t.strictSame(check, { ok: true, up: ['two/m', 'two/n'], down: ['one/m'] })
  })

  t.test('counts a target whose keys all rest as down', async t => {
    const { fail, gateway, clock } = await stage(t, {
      providers: [keyed('up', 2, fails(status(401)))],
      models: { targets: at('up') }
    })
    await fail()
    t.strictSame(gateway.targets.readiness(), { up: [], down: ['up/m'] })
    clock.advance(60_000)
    t.strictSame(gateway.targets.readiness(), { up: ['up/m'], down: [] })
  })

  t.test('is not mixed up where two names would read alike', async t => {
    const one = scripted('a', broken)
    const two = scripted('a/b')
    const { fail, run, gateway } = await stage(t, {
      providers: [one, two],
      models: {
        test: { targets: [{ provider: 'a', model: 'b/c' }], retries: 0 },
        other: { targets: [{ provider: 'a/b', model: 'c' }] }
      },
      routing: { breaker: { failures: 1 } }
    })
    await fail()
    await run({ ...ask, model: 'other' })
    t.equal(two.attempts.length, 1)
    t.equal(gateway.targets.states.length, 2)
  })
})
