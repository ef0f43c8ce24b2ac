import type { Checked, Gateway, Log, Readiness } from '../../schemas/gateway.ts'

/** Milliseconds that a check may take: less than those wait who ask /ready. */
const patience = 500

type Check = () => Readiness | Promise<Readiness>

interface Dependency {
  readonly check: Check
  readonly full: Check
}

/** What /ready asks for, by name. */
export function createDependencies(log: Log) {
  const all = new Map<string, Dependency>()
  /** Checks that have not ended: nobody begins a second one, so that one that hangs is one. */
  const pending = new Map<Check, Promise<Checked>>()
  /** Those that were not well when they were asked last: anybody may ask, and each is a line of the log once. */
  const unwell = new Set<string>()

  const add: Gateway['dependency'] = (name, check, ping) => {
    if (all.has(name)) throw new Error(`gateway.dependency: '${name}' is taken.`)
    all.set(name, { check, full: ping === undefined ? check : () => pinged(check, ping) })
  }

  /** All at once; none throws, and none takes longer than `patience`. */
  async function ask(ping: boolean): Promise<Record<string, Checked>> {
    const asked = Array.from(
      all,
      async ([name, { check, full }]) => [name, await inTime(name, ping ? full : check)] as const
    )
    return Object.fromEntries(await Promise.all(asked))
  }

  async function inTime(name: string, check: Check): Promise<Checked> {
    const late = Promise.withResolvers<Checked>()
    const timer = setTimeout(() => {
      warn(name, { patience }, 'a dependency does not answer')
      late.resolve({ ok: false, reason: `It does not answer within ${patience} ms.`, ms: patience })
    }, patience)
    try {
      return await Promise.race([begun(name, check), late.promise])
    } finally {
      clearTimeout(timer)
    }
  }

  function begun(name: string, check: Check): Promise<Checked> {
    const known = pending.get(check)
    if (known !== undefined) return known
    const asked = run(name, check).finally(() => pending.delete(check))
    pending.set(check, asked)
    return asked
  }

  async function run(name: string, check: Check): Promise<Checked> {
    const started = performance.now()
    const took = () => Math.round((performance.now() - started) * 10) / 10
    try {
      const known = await check()
      unwell.delete(name)
      return { ...known, ms: took() }
    } catch (error) {
      warn(name, { err: error }, 'a readiness check failed')
      return { ok: false, ms: took() }
    }
  }

  function warn(name: string, details: object, words: string): void {
    if (!unwell.has(name)) log.warn({ dependency: name, ...details }, words)
    unwell.add(name)
  }

  return { add, ask }
}

async function pinged(check: Check, ping: () => Promise<unknown>): Promise<Readiness> {
  const known = await check()
  if (known.ok) await ping()
  return known
}
