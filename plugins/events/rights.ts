import type { Hub } from './hub.ts'
import { type Item, parsed } from './item.ts'

const rights: ReadonlySet<string> = new Set(['key.revoked', 'key.rotated', 'tenant.updated', 'tenant.deleted'])

/** Whoever loses the right to listen listens no longer, whichever process has taken it. */
export function revokeBy({ type, data }: Item, hub: Pick<Hub, 'revoke'>, now: number): void {
  if (!rights.has(type)) return
  const said = parsed(data)
  const { key, tenant, active, expires_at: end } = said ?? {}
  if (type === 'key.revoked') hub.revoke(reader => reader.key === key, now)
  if (type === 'key.rotated' && typeof end === 'string') hub.revoke(reader => reader.key === key, Date.parse(end))
  if (type === 'tenant.deleted' || (type === 'tenant.updated' && active === false)) {
    hub.revoke(reader => reader.kind === 'key' && reader.tenant === tenant, now)
  }
}
