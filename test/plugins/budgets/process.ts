import { isGatewayError } from '../../../schemas/errors.ts'
import { inputBound, kit } from './kit.ts'

// One of several processes: budgets on a real Redis, told by its parent what to do.

const [, , url = '', prefix = '', lease = '3000'] = process.argv
const tell = (message: object | string) => void process.send?.(message)
const { ask, state, budget, app } = await kit(
  { teardown() {} },
  { shared: { url, prefix, timeout: 2_000, lease: Number(lease) } }
)
budget('acme', 100_000)

process.on('message', async (order: { calls?: number; hold?: boolean; state?: boolean; end?: boolean }) => {
  if (order.calls !== undefined) tell(await spend(order.calls))
  if (order.hold) {
    void ask({ gate: new Promise(() => {}), output: 983 }).catch(() => {})
    tell('held')
  }
  if (order.state) tell(await state('tenant:acme'))
  if (order.end) {
    await app.close()
    process.disconnect?.()
  }
})
// An empty Redis is taken for one that has lost its data: until everybody has had time to say what they hold.
budget('warm', null)
for (;;) {
  const done = await ask({ tenant: 'warm', cost: 0 }).catch(() => null)
  if (done !== null) break
  await new Promise(resolve => setTimeout(resolve, 50))
}
tell('ready')

async function spend(calls: number): Promise<{ spent: number; refused: number; other: number }> {
  const result = { spent: 0, refused: 0, other: 0 }
  await Promise.all(
    Array.from({ length: calls }, async () => {
      const output = Math.floor(Math.random() * 500) + 1
      const cost = Math.floor(Math.random() * (inputBound + output))
      const gate = new Promise(resolve => setTimeout(resolve, Math.random() * 100))
      try {
        await ask({ output, cost, gate })
        result.spent += cost
      } catch (error) {
        if (isGatewayError(error) && error.wire === 'insufficient_quota') result.refused++
        else {
          result.other++
          app.log.error(error)
        }
      }
    })
  )
  return result
}
