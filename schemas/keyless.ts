import { credentials, type ProviderSettings } from './provider-options.ts'

/** Vendors that answer nobody without a credential. Others may stand in the house and need none. */
const demanding = ['anthropic', 'azure-openai', 'gemini', 'openai']

/** One sentence for each provider in use that has nothing to show its vendor. A server in the house may take calls without. */
export function keylessNotes(providers: Readonly<Record<string, ProviderSettings>>): string[] {
  return Object.entries(providers).flatMap(([name, provider]) => {
    if (!provider.enabled || !demanding.includes(provider.type) || !provider.baseUrl?.startsWith('https:')) return []
    if (provider.apiKeys.length > 0 || ('entra' in provider && provider.entra !== undefined)) return []
    if (Object.keys(provider.headers).some(header => credentials.includes(header.toLowerCase()))) return []
    return [`providers.${name} has no apiKeys: its calls go without a credential, and the vendor will refuse them.`]
  })
}
