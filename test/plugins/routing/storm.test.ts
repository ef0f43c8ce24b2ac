import t from 'tap'
import { UpstreamError } from '../../../schemas/errors.ts'
import type { Send } from '../../../schemas/provider.ts'
import { seeded } from '../../upstream.ts'
import { says, scripted, tokens } from '../kernel.ts'
import { at, type Stage, shares, stage, status } from './kit.ts'

const names = ['one', 'two', 'three']
const usual: Record<string, number> = { one: 0.5, two: 0.3, three: 0.2 }

/** How calls are shared, as long as nobody fails. */
async function spread({ run, clock }: Stage, calls: number): Promise<Record<string, number>> {
  const found: string[] = []
  for (let call = 0; call < calls; call++) {
    clock.advance(1)
    found.push((await run()).facts.target?.provider.name ?? '')
  }
  return shares(found)
}

t.test('10,000 calls over three targets, of which each fails three times in ten', async t => {
  const random = seeded(77)
  let storm = true
  const faults = [status(500), status(503), status(429, { 'retry-after-ms': '50' }), new UpstreamError('broken')]
  const send: Send = async attempt => {
    if (storm && random() < 0.3) throw faults[Math.floor(random() * faults.length)]
    return says('x', tokens(1, 1))(attempt)
  }
  const weights = [5, 3, 2]
  const lines: string[] = []
  const found = await stage(t, {
    providers: names.map(name => scripted(name, send)),
    models: { targets: at(...names).map((target, index) => ({ ...target, weight: weights[index] })) },
    random,
    log: line => lines.push(line)
  })
  const { run, clock, expenses, gateway } = found
  let answered = 0
  let attempts = 0
  for (let call = 0; call < 10_000; call++) {
    clock.advance(1)
    const before = expenses.length
    const ok = await run().then(
      () => true,
      () => false
    )
    const own = expenses.slice(before)
    attempts += own.length
    if (ok) answered++
    if (own.filter(({ status }) => status === 'settled').length !== (ok ? 1 : 0)) t.fail('charged once, if at all')
  }
  t.ok(answered >= 9_990, `${answered} answered`)
  t.ok(attempts < 16_000, `${attempts} attempts`)
  t.strictSame(
    lines.filter(line => line.includes('left alone')),
    [],
    'who answers seven in ten is never left alone'
  )
  t.equal(gateway.targets.list().filter(({ failures }) => failures > 500).length, 3)

  storm = false
  clock.advance(120_000)
  await spread(found, 100)
  t.strictSame(gateway.targets.readiness().down, [], 'and have closed')
  for (const [name, share] of Object.entries(await spread(found, 10_000))) {
    t.ok(Math.abs(share - (usual[name] ?? 0)) < 0.02, `${name}: ${share}`)
  }
})

t.test('a target that dies and comes back has its share again', async t => {
  let dead = false
  const one = scripted('one', async attempt => {
    if (dead) throw new UpstreamError('gone')
    return says('x')(attempt)
  })
  const found = await stage(t, {
    providers: [one, scripted('two'), scripted('three')],
    models: { targets: at(...names), retries: 0 },
    random: seeded(5)
  })
  dead = true
  const without = await spread(found, 2_000)
  t.equal(without['one'], undefined)
  t.ok(one.attempts.length < 15, `${one.attempts.length} calls had to try it`)
  dead = false
  found.clock.advance(60_000)
  const again = await spread(found, 3_000)
  t.ok(Math.abs((again['one'] ?? 0) - 1 / 3) < 0.03, String(again['one']))
})
