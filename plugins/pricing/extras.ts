import type { ChatRequest } from '../../schemas/chat.ts'

/**
 * The first field of a request that costs more than its tokens: a dearer tier, searches that are paid apiece, another
 * model that the provider may choose. No report of usage tells what it cost, and no bound covers it. Null: there is none.
 */
export function extraIn(request: ChatRequest): string | null {
  const { service_tier: tier, models, plugins, web_search_options: search, tools } = request
  if (tier === 'priority') return 'service_tier'
  if (Array.isArray(models) && models.length > 0) return 'models'
  if (Array.isArray(plugins) && plugins.length > 0) return 'plugins'
  if (search !== undefined && search !== null) return 'web_search_options'
  if (tools) for (const { type } of tools) if (type !== 'function' && type !== 'custom') return 'tools'
  return null
}
