import assert from 'node:assert/strict'
import { besideDemands } from './beside.ts'
import type { Demand } from './demands.ts'
import { formDemands } from './form.ts'
import { saidDemands, splitDemands } from './said.ts'
import type { Subject, Test } from './vendor.ts'
import { wireDemands } from './wire.ts'

const demands: readonly Demand[] = [...formDemands, ...saidDemands, ...splitDemands, ...wireDemands, ...besideDemands]

/** What every provider has to do, whatever it speaks to. Runs as one test with a part for each demand that applies. */
export async function providerConformance<T extends Test<T>>(t: Test<T>, { name, start }: Subject<T>): Promise<void> {
  await t.test(`${name} conforms`, async t => {
    const applying: Demand[] = []
    await t.test('it starts', async t => {
      const started = await start(t)
      applying.push(...demands.filter(demand => demand.applies(started)))
      assert.ok(applying.length > 0)
    })
    for (const { title, test } of applying) await t.test(title, async t => test(await start(t)))
  })
}
