import assert from 'node:assert/strict'
import type { ChatRequest } from '../schemas/chat.ts'
import { besideDemands } from './beside.ts'
import type { Demand } from './demands.ts'
import { formDemands } from './form.ts'
import { saidDemands, splitDemands } from './said.ts'
import type { Started, Subject, Test } from './vendor.ts'
import { wireDemands } from './wire.ts'

const demands: readonly Demand[] = [...formDemands, ...saidDemands, ...splitDemands, ...wireDemands, ...besideDemands]

/** What every provider has to do, whatever it speaks to. Runs as one test with a part for each demand that applies. */
export async function providerConformance<T extends Test<T>>(t: Test<T>, subject: Subject<T>): Promise<void> {
  const { name, model } = subject
  const start = async (t: T) => asking(await subject.start(t), model)
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

/** The same provider, asked for the model of the subject. */
function asking(started: Started, model: string | undefined): Started {
  if (model === undefined) return started
  const { provider } = started
  const named = (request: ChatRequest) => Object.freeze({ ...request, model })
  return {
    ...started,
    provider: {
      ...provider,
      send: attempt => provider.send({ ...attempt, request: named(attempt.request) }),
      countTokens: provider.countTokens && ((request, signal) => provider.countTokens!(named(request), signal))
    }
  }
}
