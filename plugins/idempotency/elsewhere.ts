import { setTimeout as sleep } from 'node:timers/promises'
import type { Log } from '../../schemas/gateway.ts'
import type { Script, Shared } from '../../schemas/shared.ts'
import type { StoredAnswer } from '../../schemas/store.ts'

/** What other processes do under the same keys. */
export interface Elsewhere {
  /**
   * Waits until no other process runs a call under this id. An answer: one of them has given it. A lease: the call is
   * ours to run, and theirs to wait for. Null: Redis cannot be asked, each process is on its own.
   * @throws the signal's reason
   */
  enter(id: string, signal: AbortSignal): Promise<StoredAnswer | Lease | null>
  /** Shows an answer to the others. */
  show(answer: StoredAnswer): Promise<void>
}

/** The right to run a call under an id. It has to be ended, once. */
export interface Lease {
  end(): Promise<void>
}

/** How long a process that died keeps the others waiting, in milliseconds. */
const lease = 15_000
const renewal = 5_000
/** How often those who wait look. */
const patience = 200

const renewScript: Script = {
  lua: `if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('PEXPIRE', KEYS[1], ARGV[2]) end return 0`
}
const endScript: Script = {
  lua: `if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0`
}

export function createElsewhere(shared: Shared, log: Log, now: () => number): Elsewhere {
  let count = 0
  let alone = false

  function failed(error: unknown): void {
    if (!alone) log.warn({ err: error }, 'Redis cannot be asked: an Idempotency-Key holds within one process only')
    alone = true
  }

  async function attempt(id: string, owner: string): Promise<StoredAnswer | Lease | null> {
    const marker = `idempotency-running:${id}`
    const ours = await shared.set(marker, owner, lease, true)
    const bytes = await shared.get(`idempotency:${id}`)
    alone = false
    const answer = bytes === null ? null : decode(id, bytes)
    const known = answer !== null && answer.expiresAt > now() ? answer : null
    if (!ours) return known
    const held = hold(marker, owner)
    if (known === null) return held
    await held.end()
    return known
  }

  function hold(marker: string, owner: string): Lease {
    const timer = setInterval(() => void shared.run(renewScript, [marker], [owner, lease]).catch(failed), renewal)
    timer.unref()
    return {
      async end() {
        clearInterval(timer)
        await shared.run(endScript, [marker], [owner]).catch(failed)
      }
    }
  }

  return {
    async enter(id, signal) {
      const owner = `${shared.instance} ${++count}`
      for (;;) {
        try {
          const found = await attempt(id, owner)
          if (found !== null) return found
        } catch (error) {
          failed(error)
          return null
        }
        signal.throwIfAborted()
        await sleep(patience, undefined, { signal }).catch(() => signal.throwIfAborted())
      }
    },
    async show(answer) {
      const ttl = answer.expiresAt - now()
      if (ttl <= 0) return
      await shared.set(`idempotency:${answer.id}`, encode(answer), Math.ceil(ttl)).catch(failed)
    }
  }
}

/** A line with everything but the bytes, then the bytes. */
function encode({ fingerprint, stream, expiresAt, body }: StoredAnswer): Uint8Array {
  return Buffer.concat([Buffer.from(`${stream ? 'stream' : 'whole'} ${fingerprint} ${expiresAt}\n`), body])
}

function decode(id: string, bytes: Buffer): StoredAnswer {
  const end = bytes.indexOf('\n')
  const [kind, fingerprint = '', expiresAt] = bytes.toString('latin1', 0, end).split(' ')
  return { id, fingerprint, stream: kind === 'stream', expiresAt: Number(expiresAt), body: bytes.subarray(end + 1) }
}
