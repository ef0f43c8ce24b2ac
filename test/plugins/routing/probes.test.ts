import t from 'tap'
import { createProbes } from '../../../plugins/routing/probes.ts'
import type { Health, Provider } from '../../../schemas/provider.ts'
import { turn } from '../../upstream.ts'
import { scripted } from '../kernel.ts'
import { at, forever, type Stage, stage } from './kit.ts'

const quiet = { error() {}, warn() {}, info() {}, debug() {} }

/** A provider whose health is what this says. */
function healthy(name: string, health: (signal?: AbortSignal) => Promise<Health>) {
  let asked = 0
  return Object.assign(scripted(name), {
    health(signal?: AbortSignal) {
      asked++
      return health(signal)
    },
    asked: () => asked
  })
}

const models = {
  test: { targets: [...at('up'), { provider: 'up', model: 'n' }], retries: 0 },
  other: { targets: at('two') }
}

function probesOf({ gateway }: Stage, pause = forever) {
  return createProbes({ interval: 10_000, timeout: 5_000 }, gateway.targets, quiet, pause)
}

async function down(t: Parameters<typeof stage>[0], up: Provider): Promise<Stage> {
  const found = await stage(t, { providers: [up, scripted('two')], models })
  for (const name of ['up/m', 'up/n']) {
    for (let failure = 0; failure < 5; failure++) found.state(name).breaker.fail({}, found.clock.time)
  }
  return found
}

t.test('a probe', async t => {
  t.test('opens the targets of a provider that is well again, by one question for all of them', async t => {
    const up = healthy('up', async () => ({ ok: true }))
    const found = await down(t, up)
    await probesOf(found).round()
    t.equal(up.asked(), 1)
    for (const name of ['up/m', 'up/n']) t.equal(found.state(name).breaker.state(found.clock.time), 'closed')
  })

  t.test('opens them on trial: the next failure leaves them alone for longer', async t => {
    const found = await down(
      t,
      healthy('up', async () => ({ ok: true }))
    )
    await probesOf(found).round()
    const { breaker } = found.state('up/m')
    breaker.fail({}, found.clock.time)
    t.equal(breaker.openUntil, found.clock.time + 2_000)
  })

  t.test('asks nobody whose targets are all well', async t => {
    const up = healthy('up', async () => ({ ok: true }))
    const found = await stage(t, { providers: [up, scripted('two')], models })
    await probesOf(found).round()
    t.equal(up.asked(), 0)
  })

  const ill: Record<string, () => Promise<Health>> = {
    'says that it is not well': async () => ({ ok: false, detail: 'starting' }),
    'cannot be asked': async () => Promise.reject(new Error('refused'))
  }
  for (const [what, health] of Object.entries(ill)) {
    t.test(`leaves the targets of a provider alone that ${what}`, async t => {
      const found = await down(t, healthy('up', health))
      await probesOf(found).round()
      t.equal(found.state('up/m').breaker.state(found.clock.time), 'open')
    })
  }

  t.test(
    'leaves the targets of a provider alone that does not answer in time, and asks again in the next round',
    async t => {
      const up = healthy('up', () => new Promise(() => {}))
      const found = await down(t, up)
      const waited: number[] = []
      const probes = probesOf(found, async milliseconds => void waited.push(milliseconds))
      await probes.round()
      t.equal(found.state('up/m').breaker.state(found.clock.time), 'open')
      await probes.round()
      t.equal(up.asked(), 2)
      t.strictSame(waited, [5_000, 5_000])
    }
  )

  t.test('does not ask while the last round lasts', async t => {
    const up = healthy('up', () => new Promise(() => {}))
    const found = await down(t, up)
    const probes = probesOf(found)
    const first = probes.round()
    await probes.round()
    t.equal(up.asked(), 1)
    probes.stop()
    await first
  })

  t.test('ends with the gateway', async t => {
    let given: AbortSignal | undefined
    const up = healthy('up', signal => {
      given = signal
      return new Promise(() => {})
    })
    const found = await down(t, up)
    const probes = probesOf(found)
    probes.start()
    const round = probes.round()
    await turn()
    probes.stop()
    await round
    t.ok(given?.aborted)
  })

  t.test('goes round by itself where it is configured', async t => {
    const up = healthy('up', async () => ({ ok: true }))
    const found = await stage(t, {
      providers: [up, scripted('two')],
      models,
      routing: { probes: { interval: 1, timeout: 1_000 } },
      pause: forever
    })
    found.state('up/m').breaker.open(found.clock.time, 60_000)
    while (found.state('up/m').breaker.openUntil !== 0) await turn()
    t.equal(up.asked() > 0, true)
  })
})
