import t from 'tap'
import { UpstreamError } from '../../../schemas/errors.ts'
import { fails, says, scripted } from '../kernel.ts'
import { at, stage, status } from './kit.ts'

// Bugs that a run of 10,000 calls with faults has found.

t.test('who is limited for longer than the pause has its turn in a later pass', async t => {
  const one = scripted('one', fails(new UpstreamError('broken')))
  const two = scripted('two', fails(status(429, { 'retry-after-ms': '300' })), says('from two'))
  const { run, pauses } = await stage(t, {
    providers: [one, two],
    models: { targets: at('one', 'two'), strategy: 'priority' }
  })
  const { facts } = await run()
  t.equal(facts.target?.provider.name, 'two')
  t.equal(one.attempts.length, 3)
  t.equal(pauses.length, 2)
})

t.test('who was never asked is no repeat: its turn comes when all others have had theirs', async t => {
  const limited = status(429, { 'retry-after-ms': '5000' })
  const one = scripted('one', says('x'), fails(new UpstreamError('broken')))
  const two = scripted('two', fails(limited), says('from two'))
  const { run, clock } = await stage(t, {
    providers: [one, two],
    models: { test: { targets: at('one', 'two'), strategy: 'priority' }, two: { targets: at('two'), retries: 0 } }
  })
  await run()
  await run({ model: 'two', messages: [{ role: 'user', content: 'x' }] }).catch(() => {})
  const start = clock.time
  const { facts } = await run()
  t.equal(facts.target?.provider.name, 'two')
  t.equal(one.attempts.length, 1 + 3, 'one was asked three times by this call')
  t.ok(clock.time - start >= 5_000)
})

t.test('a call that finds everybody limited goes on waiting when others were quicker', async t => {
  // Whenever a limit is over another call has been there already.
  let others = 4
  const up = scripted('up', fails(status(429, { 'retry-after-ms': '1000' })), says('x'))
  const found = await stage(t, {
    providers: [up],
    models: { targets: at('up'), retries: 2 },
    async pause(milliseconds) {
      found.clock.advance(milliseconds)
      if (others-- > 0) found.state('up/m').lanes[0]!.limit(status(429, { 'retry-after-ms': '1000' }), found.clock.time)
    }
  })
  const start = found.clock.time
  await found.run()
  t.equal(up.attempts.length, 2)
  t.ok(found.clock.time - start >= 5_000)
})

t.test('but not for longer than a provider that asks for it would be waited for', async t => {
  const up = scripted('up', fails(status(429, { 'retry-after-ms': '1000' })), says('x'))
  const found = await stage(t, {
    providers: [up],
    models: { targets: at('up'), retries: 2 },
    async pause(milliseconds) {
      found.clock.advance(milliseconds)
      found.state('up/m').lanes[0]!.limit(status(429, { 'retry-after-ms': '1000' }), found.clock.time)
    }
  })
  const start = found.clock.time
  t.match(await found.fail(), { wire: 'upstream_rate_limited' })
  t.equal(up.attempts.length, 1)
  t.ok(found.clock.time - start <= 12_000, String(found.clock.time - start))
})
