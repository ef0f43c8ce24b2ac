import { hash, randomBytes } from 'node:crypto'
import { InvalidApiKey } from '../../schemas/errors.ts'
import type { Principal } from '../../schemas/gateway.ts'
import { isRecord } from '../../schemas/reader.ts'
import type { Script, Shared } from '../../schemas/shared.ts'
import { parsed } from './item.ts'

/** A ticket stands for whoever has got it, once, and not for long: browsers can send no header with a WebSocket or an EventSource. */
export interface Tickets {
  /** `expiresAt`: milliseconds since 1970. @throws SharedUnavailable */
  give(principal: Principal): Promise<{ ticket: string; expiresAt: number }>
  /** @throws InvalidApiKey, SharedUnavailable */
  take(ticket: string): Promise<Holder>
}

/** Who has got a ticket. `until`: the end of the key that it was got with, in milliseconds since 1970. */
export interface Holder extends Principal {
  readonly until: number | null
}

interface Given {
  readonly holder: Holder
  readonly expiresAt: number
}

const lifetime = 60_000
/** Tickets that nobody has used yet; the oldest go first. */
const most = 1_000
const form = /^[A-Za-z0-9_-]{43}$/

const takeScript: Script = {
  lua: `
local given = redis.call('GET', KEYS[1])
if given then redis.call('DEL', KEYS[1]) end
return given`
}

/** With Redis a ticket is good in every process. Only its hash is kept. */
export function createTickets(shared: Shared | undefined, now: () => number): Tickets {
  const kept = new Map<string, Given>()

  async function takeKept(name: string): Promise<Given | null> {
    if (shared === undefined) {
      const given = kept.get(name) ?? null
      kept.delete(name)
      return given
    }
    const text = await shared.run(takeScript, [name], [])
    return text === null ? null : givenOf(String(text))
  }

  return {
    async give(principal) {
      const ticket = randomBytes(32).toString('base64url')
      const given = { holder: holderOf(principal), expiresAt: now() + lifetime }
      const name = nameOf(ticket)
      if (shared !== undefined) await shared.set(name, JSON.stringify(given), lifetime)
      else {
        kept.set(name, given)
        for (const [other, { expiresAt }] of kept) {
          if (kept.size <= most && now() < expiresAt) break
          kept.delete(other)
        }
      }
      return { ticket, expiresAt: given.expiresAt }
    },
    async take(ticket) {
      const given = form.test(ticket) ? await takeKept(nameOf(ticket)) : null
      if (given === null || now() >= given.expiresAt) {
        throw new InvalidApiKey('This ticket is unknown, used or expired: get a new one with POST /events/ticket.')
      }
      return given.holder
    }
  }
}

function nameOf(ticket: string): string {
  return `t:${hash('sha256', ticket, 'base64url')}`
}

export function isHolder(principal: Principal): principal is Holder {
  return 'until' in principal
}

/** What is needed to know who it is; nothing of the key but its id and its end. */
function holderOf({ tenant, key, kind, scopes, apiKey }: Principal): Holder {
  return { tenant, key, kind, scopes, until: apiKey?.expiresAt ?? null }
}

/** What only ever was a ticket of an administrator. */
function givenOf(text: string): Given | null {
  const given = parsed(text)
  const holder = given?.['holder']
  const expiresAt = given?.['expiresAt']
  if (!isRecord(holder) || typeof expiresAt !== 'number') return null
  const { tenant, key, kind, until } = holder
  if (typeof tenant !== 'string' || (kind !== 'key' && kind !== 'jwt' && kind !== 'admin')) return null
  return {
    holder: {
      tenant,
      key: typeof key === 'string' ? key : null,
      kind,
      scopes: ['admin'],
      until: typeof until === 'number' ? until : null
    },
    expiresAt
  }
}
