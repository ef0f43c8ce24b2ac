import { randomBytes } from 'node:crypto'
import type { Log } from '../../schemas/gateway.ts'
import type { Connection, Greeting } from './connection.ts'
import { beat as beatScript, leave as leaveScript } from './script.ts'

type State = { down: string | null; lost: boolean }

export interface MembersOptions {
  readonly connection: Connection
  readonly instance: string
  /** Milliseconds after which a silent process counts as dead. */
  readonly lease: number
  /** No process has worked with these books before: there is nothing to wait for in an empty Redis. */
  readonly first: boolean
  readonly log: Log
}

/** Which processes are alive, by the clock of Redis, and whether Redis still has their data. */
export interface Members {
  readonly down: string | null
  readonly generation: string | null
  readonly instances: readonly string[]
  /** The `maxmemory-policy` by which Redis drops keys; null: it drops none, or does not say. */
  readonly evicting: string | null
  onState(listener: (state: State) => void): void
  onDeath(listener: (instance: string) => void): void
  tell(state: State): void
  start(): Promise<void>
  leave(): Promise<void>
}

const keys = ['generation', 'instances']

export function createMembers({ connection, instance, lease, first, log }: MembersOptions): Members {
  const states: Array<(state: State) => void> = []
  const deaths: Array<(instance: string) => void> = []
  let generation: string | null = null
  let alive: readonly string[] = []
  let server = ''
  let evicting: string | null = null
  let timer: NodeJS.Timeout | null = null
  let beating = false
  let fresh = first
  /** To be told together with the return of the connection. */
  let lost = false

  connection.greet(async greeting => {
    server = await greeting.server()
    notice(await greeting.evicting())
    if (await beat(greeting)) lost = true
  })

  function notice(policy: string | null): void {
    if (policy !== null && policy !== evicting) {
      log.warn({ policy }, 'Redis may drop what gateways share: set its maxmemory-policy to noeviction')
    }
    evicting = policy
  }

  connection.onState(down => {
    tell({ down, lost: down === null && lost })
    lost = false
  })

  /** A sign of life. True: Redis came back without its data. */
  async function beat(through: Pick<Greeting, 'run'>): Promise<boolean> {
    const args = [instance, lease, randomBytes(12).toString('base64url'), fresh ? 0 : lease, server]
    const answer = await through.run(beatScript, keys, args)
    if (!Array.isArray(answer)) throw new Error('it gave an answer that makes no sense')
    const [id, calm, rejoined, ...names] = answer.map(String)
    fresh = false
    const before = generation
    generation = id ?? null
    const gone = calm === '1' ? [] : alive.filter(name => !names.includes(name))
    alive = calm === '1' ? [...new Set([...names, ...alive])] : names
    const changed = before !== null && before !== generation
    for (const name of gone) {
      log.warn({ instance: name }, 'a gateway has been silent for longer than its lease')
      for (const listener of deaths) listener(name)
    }
    if (changed) log.error({}, 'Redis has lost what gateways shared: it is rebuilt')
    if (rejoined === '1' && !changed && before !== null && connection.down === null) tell({ down: null, lost: false })
    return changed
  }

  async function onTimer(): Promise<void> {
    if (beating || connection.down !== null) return
    beating = true
    try {
      if (await beat(connection)) tell({ down: null, lost: true })
    } catch {
      // The connection says why, once.
    } finally {
      beating = false
    }
  }

  function tell(state: State): void {
    for (const listener of states) listener(state)
  }

  return {
    get down() {
      return connection.down
    },
    get generation() {
      return generation
    },
    get instances() {
      return alive
    },
    get evicting() {
      return evicting
    },
    onState: listener => void states.push(listener),
    onDeath: listener => void deaths.push(listener),
    tell,
    async start() {
      await connection.start()
      // Who comes later to an empty Redis may not be the first any more.
      fresh = false
      timer = setInterval(() => void onTimer(), Math.max(10, lease / 3)).unref()
    },
    async leave() {
      if (timer !== null) clearInterval(timer)
      if (connection.down !== null) return
      await connection.run(leaveScript, keys, [instance]).catch(() => {})
    }
  }
}
