import { timingSafeEqual } from 'node:crypto'
import { InvalidApiKey, InvalidRequest, KeyNotFound, StoreUnavailable, TenantNotFound } from '../../schemas/errors.ts'
import type { Gateway, Principal } from '../../schemas/gateway.ts'
import { createKept } from '../../schemas/kept.ts'
import type { Audit, Store } from '../../schemas/store.ts'
import { type ApiKey, type KeyOptions, type Keys, scopes } from '../../schemas/tenants.ts'
import { digestOf } from './credentials.ts'
import { createMint, idOf, isId } from './mint.ts'
import type { Uses } from './uses.ts'

/** A key in memory. */
interface Issued {
  readonly key: ApiKey
  readonly digest: Buffer
  readonly principal: Principal
  /** When its last use was noted. */
  noted: number
}

export interface IssuedKeys {
  readonly keys: Keys
  /** Whose key this is; a promise where it has to be read. @throws InvalidApiKey, StoreUnavailable */
  check(secret: string, digest: Buffer): Principal | Promise<Principal>
  /** Whether there is any key. */
  readonly some: boolean
  /** Ends the keys of a tenant that is gone. */
  forgetTenant(tenant: string): void
}

export interface IssuedOptions {
  /** Of all processes of this gateway. */
  checksumSecret: string
  /** Whether there is any key when this starts. */
  some: boolean
  limit: number
  uses: Uses
  now: () => number
  exists(tenant: string): Promise<boolean>
}

/** The last use is kept to the minute. */
const minute = 60_000
/** How often a change is tried while other processes change the same key. */
const mostTries = 10

/** Keys made over HTTP: in the store, and in memory once they have been used. */
export function createIssuedKeys({ shared, events }: Gateway, store: Store, options: IssuedOptions): IssuedKeys {
  const { now, uses } = options
  const mint = createMint(options.checksumSecret)
  const kept = createKept<Issued>({
    channel: 'key',
    read: async id => {
      const key = await store.keys.get(id)
      return key && issued(key)
    },
    readable: () => store.state.ok,
    limit: options.limit,
    shared,
    now
  })
  let some = options.some
  shared?.subscribe('key', () => {
    some = true
  })

  function check(secret: string, digest: Buffer): Principal | Promise<Principal> {
    const known = kept.recall(idOf(secret))
    if (known !== undefined) return judge(known, digest)
    if (!mint.made(secret)) throw refusal()
    return kept.find(idOf(secret)).then(found => judge(found, digest))
  }

  function judge(found: Issued | null, digest: Buffer): Principal {
    if (found === null || !timingSafeEqual(found.digest, digest)) throw refusal()
    const { key } = found
    const time = now()
    if (hasEnded(key, time)) throw refusal()
    if (time - found.noted >= minute || time < found.noted) {
      found.noted = time
      uses.note(key.id, time)
    }
    return found.principal
  }

  async function create(tenant: string, said: KeyOptions, actor: string) {
    if (!(await options.exists(tenant))) throw new TenantNotFound(tenant)
    const { id, secret } = mint.make()
    const key: ApiKey = { ...rightsOf(said), ...born(id, tenant, secret) }
    await kept.change(id, async () => {
      await store.keys.insert(key, audit(actor, 'key.create', null, key))
      return issued(key)
    })
    some = true
    if (events.heard) events.emit('key.created', { tenant, key: id, expires_at: isoOf(key.expiresAt), actor })
    return { key, secret }
  }

  async function rotate(tenant: string, id: string, overlap: number, actor: string) {
    const { id: next, secret } = mint.make()
    const { made, changed } = await change(tenant, id, async before => {
      const time = now()
      if (before.rotatedTo !== null) throw new InvalidRequest(`The key ${id} has been rotated to ${before.rotatedTo}.`)
      if (hasEnded(before, time)) throw new InvalidRequest(`The key ${id} has ended: make a new one.`)
      const end = Math.min(before.expiresAt ?? Number.POSITIVE_INFINITY, time + Math.max(0, overlap))
      const changed: ApiKey = { ...before, rotatedTo: next, expiresAt: end }
      const account = before.account ?? before.id
      const made: ApiKey = { ...rightsOf(before), ...born(next, tenant, secret), account }
      const done = await store.keys.update([changed, made], audit(actor, 'key.rotate', before, changed), before)
      return { done, changed, made }
    })
    if (events.heard) {
      events.emit('key.rotated', { tenant, key: id, rotated_to: next, expires_at: isoOf(changed.expiresAt), actor })
    }
    return { key: made, secret, old: changed }
  }

  async function revoke(tenant: string, id: string, actor: string): Promise<ApiKey> {
    const { changed } = await change(tenant, id, async before => {
      if (before.revokedAt !== null) return { done: true, changed: before }
      const changed: ApiKey = { ...before, revokedAt: now() }
      return { done: await store.keys.update([changed], audit(actor, 'key.revoke', before, changed), before), changed }
    })
    if (events.heard) events.emit('key.revoked', { tenant, key: id, actor })
    return changed
  }

  /** Changes a key as it stands in the store, again where another process was faster. */
  async function change<Done extends { done: boolean; changed: ApiKey }>(
    tenant: string,
    id: string,
    work: (before: ApiKey) => Promise<Done>
  ): Promise<Done> {
    if (!isId(id)) throw new KeyNotFound('…')
    let last: Done | undefined
    await kept.change(id, async () => {
      for (let tries = 0; tries < mostTries; tries++) {
        const before = await store.keys.get(id)
        if (before === null || before.tenant !== tenant) throw new KeyNotFound(id)
        last = await work(before)
        if (last.done) return issued(last.changed)
      }
      throw new StoreUnavailable(`the key ${id} is changed by too many at once.`)
    })
    if (last === undefined) throw new KeyNotFound(id)
    return last
  }

  /** What every new key has. */
  function born(id: string, tenant: string, secret: string) {
    return {
      id,
      tenant,
      hash: digestOf(secret).toString('base64url'),
      createdAt: now(),
      lastUsedAt: null,
      revokedAt: null,
      rotatedTo: null,
      account: null
    }
  }

  async function list(tenant: string, page: { after?: string; limit: number }): Promise<ApiKey[]> {
    const keys = await store.keys.list(tenant, page)
    return keys.map(key => ({ ...key, lastUsedAt: uses.latest(key.id) ?? key.lastUsedAt }))
  }

  return {
    keys: { create, list, rotate, revoke },
    check,
    get some() {
      return some
    },
    forgetTenant: tenant => kept.forget(({ key }) => key.tenant === tenant)
  }
}

function issued(key: ApiKey): Issued {
  return {
    key,
    digest: Buffer.from(key.hash, 'base64url'),
    principal: { tenant: key.tenant, key: key.id, kind: 'key', scopes: key.scopes, apiKey: key },
    noted: key.lastUsedAt ?? 0
  }
}

function hasEnded({ revokedAt, expiresAt }: ApiKey, time: number): boolean {
  return revokedAt !== null || (expiresAt !== null && time >= expiresAt)
}

/** What a key may do, and until when. */
function rightsOf(said: KeyOptions) {
  for (const scope of said.scopes ?? []) {
    if (!scopes.includes(scope)) throw new InvalidRequest(`A scope is one of ${scopes.join(', ')}.`)
  }
  return {
    name: said.name ?? null,
    scopes: said.scopes ?? (['chat'] as const),
    budget: said.budget ?? null,
    expiresAt: said.expiresAt ?? null,
    requestsPerMinute: said.requestsPerMinute ?? null,
    tokensPerMinute: said.tokensPerMinute ?? null,
    concurrency: said.concurrency ?? null
  }
}

function isoOf(time: number | null): string | null {
  return time === null ? null : new Date(time).toISOString()
}

function refusal() {
  return new InvalidApiKey('This API key is unknown, revoked or expired.')
}

function audit(actor: string, action: string, before: ApiKey | null, after: ApiKey): Audit {
  return { actor, action, subject: after.id, before: before && shown(before), after: shown(after) }
}

function shown({ hash: _, ...key }: ApiKey): object {
  return key
}
