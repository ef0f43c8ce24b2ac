import t, { type Test } from 'tap'
import type { ModelGatewayOptions } from '../../app.ts'
import { conversationsCross } from '../conformance/conversations.ts'
import { openaiVendor, providerConformance, type Subject } from '../conformance/provider.ts'
import { build } from '../helper.ts'
import { startUpstream } from '../upstream.ts'

async function provider(t: Test, options: NonNullable<ModelGatewayOptions['providers']>[string]) {
  const app = await build(t, { providers: { own: options } })
  await app.ready()
  return app.gateway.providers.get('own')!
}

const openaiCompatible: Subject = {
  name: 'openai-compatible',
  async start(t) {
    const upstream = await startUpstream()
    t.teardown(() => upstream.close())
    const keys = ['sk-first-key-of-two', 'pk-other-key-of-two']
    const options = { type: 'openai-compatible' as const, baseUrl: upstream.url, apiKeys: keys }
    return { provider: await provider(t, options), vendor: openaiVendor(upstream), keys }
  }
}

providerConformance(t, openaiCompatible)
conversationsCross(t, openaiCompatible)

providerConformance(t, {
  name: 'echo',
  start: async t => ({ provider: await provider(t, { type: 'echo' }) })
})
