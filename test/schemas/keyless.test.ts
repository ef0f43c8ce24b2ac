import t from 'tap'
import { type Config, readConfig } from '../../schemas/config.ts'

const notes = (provider: NonNullable<Config['providers']>[string]) => readConfig({ providers: { x: provider } }).notes
const note = ['providers.x has no apiKeys: its calls go without a credential, and the vendor will refuse them.']
const entra = { tenantId: 'a', clientId: 'b', clientSecret: 'c' }
const azure = 'https://res.openai.azure.com'

t.test('a provider without a key was only found out by its first call', async t => {
  t.strictSame(notes({ type: 'anthropic' }), note)
  t.strictSame(notes({ type: 'gemini' }), note)
  t.strictSame(notes({ type: 'openai' }), note)
  t.strictSame(notes({ type: 'azure-openai', baseUrl: azure }), note)
})

t.test('nothing is said where a call can succeed', async t => {
  t.strictSame(notes({ type: 'anthropic', apiKeys: ['k'] }), [])
  t.strictSame(notes({ type: 'anthropic', enabled: false }), [])
  t.strictSame(notes({ type: 'anthropic', headers: { 'X-API-Key': 'k' } }), [])
  t.strictSame(notes({ type: 'anthropic', baseUrl: 'http://127.0.0.1:1' }), [])
  t.strictSame(notes({ type: 'azure-openai', baseUrl: azure, entra }), [])
  t.strictSame(notes({ type: 'openai-compatible', baseUrl: 'https://llm.example/v1' }), [])
  t.strictSame(notes({ type: 'llamacpp', baseUrl: 'https://llm.example' }), [])
  t.strictSame(notes({ type: 'vertex', project: 'p' }), [])
})
