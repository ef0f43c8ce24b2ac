import assert from 'node:assert/strict'
import { isGatewayError } from '../schemas/errors.ts'
import { errorOf } from './attempt.ts'
import { type Demand, ofVendors } from './demands.ts'
import { bytes, reset, silence } from './upstream/replies.ts'
import { faultOf } from './wire.ts'

const request = { model: 'm', messages: [{ role: 'user' as const, content: 'Hello' }] }

/** What a provider may offer beside answers. */
export const besideDemands: readonly Demand[] = [
  ofVendors(
    'it lists models',
    async (provider, vendor) => {
      vendor.upstream.script(vendor.models!(['small', 'large@2026']))
      const models = await provider.models!()
      assert.deepEqual(
        models.map(({ id }) => id),
        ['small', 'large@2026']
      )
      for (const { created, contextLength } of models) {
        assert.ok(created === undefined || Number.isInteger(created))
        assert.ok(contextLength === undefined || contextLength > 0)
      }
      vendor.upstream.script(vendor.models!([]))
      assert.deepEqual(await provider.models!(), [])
    },
    (vendor, { provider }) => vendor.models && provider.models
  ),

  ofVendors(
    'it counts tokens',
    async (provider, vendor) => {
      vendor.upstream.script(vendor.count!(42))
      assert.equal(await provider.countTokens!(request), 42)
    },
    (vendor, { provider }) => vendor.count && provider.countTokens
  ),

  ofVendors(
    'it knows whether its vendor is well, and never fails over it',
    async (provider, vendor) => {
      vendor.upstream.script(vendor.healthy!())
      assert.deepEqual((await provider.health!()).ok, true)
      for (const reply of [
        vendor.refusal(401, 'No.'),
        vendor.refusal(503, 'Later.'),
        reset(),
        bytes('', { status: 500 })
      ]) {
        vendor.upstream.script(reply)
        const { ok, detail } = await provider.health!()
        assert.equal(ok, false)
        assert.ok(detail, 'it says why')
      }
    },
    (vendor, { provider }) => vendor.healthy && provider.health
  ),

  ...(['models', 'countTokens'] as const).map(name =>
    ofVendors(
      `${name} fails with a fault and ends with its signal`,
      async (provider, { upstream, ...vendor }) => {
        const ask = (signal?: AbortSignal) =>
          name === 'models' ? provider.models!(signal) : provider.countTokens!(request, signal)
        for (const reply of [vendor.refusal(401, 'No.'), vendor.refusal(500, 'No.'), reset(), bytes('<html></html>')]) {
          upstream.script(reply)
          assert.ok((await faultOf(ask())).statusCode >= 500)
        }
        upstream.script(silence())
        const asked = upstream.requests.length
        const controller = new AbortController()
        const call = errorOf(ask(controller.signal))
        const { closed } = await upstream.received(asked + 1)
        controller.abort(new Error('gone'))
        const error = await call
        assert.ok(error === controller.signal.reason || isGatewayError(error), String(error))
        assert.equal((await closed).how, 'aborted')
      },
      (vendor, { provider }) =>
        name === 'models' ? vendor.models && provider.models : vendor.count && provider.countTokens
    )
  )
]
