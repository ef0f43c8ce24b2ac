import type { Log } from '../../schemas/gateway.ts'
import type { Health, Provider } from '../../schemas/provider.ts'
import { inTime, type Pause } from './patience.ts'
import type { TargetState } from './target-state.ts'
import type { Targets } from './targets.ts'

export interface ProbeOptions {
  /** Milliseconds between two rounds. */
  readonly interval: number
  /** Milliseconds that an answer may take. */
  readonly timeout: number
}

/**
 * Asks providers for their health while targets of theirs are left alone. Those of a provider that is well are open again
 * for calls, on trial: its word is not yet an answer of a model.
 */
export function createProbes({ interval, timeout }: ProbeOptions, targets: Targets, log: Log, pause: Pause) {
  const closing = new AbortController()
  let timer: NodeJS.Timeout | null = null
  let running = false

  /** Rounds do not overlap. */
  async function round(): Promise<void> {
    if (running) return
    running = true
    const down = Map.groupBy(
      targets.states.filter(({ breaker }) => breaker.openUntil !== 0),
      ({ provider }) => provider
    )
    await Promise.all([...down].map(([provider, states]) => probe(provider, states)))
    running = false
  }

  async function probe(provider: Provider, states: readonly TargetState[]): Promise<void> {
    if (provider.health === undefined) return
    const { ok, detail } = await healthOf(provider)
    if (!ok) log.debug({ provider: provider.name, detail }, 'a provider is still not well')
    else
      for (const { breaker, model } of states) {
        if (!breaker.mend(Number.POSITIVE_INFINITY)) continue
        log.info({ provider: provider.name, model }, 'a target is open again: its provider is well')
      }
  }

  async function healthOf(provider: Provider): Promise<Health> {
    try {
      const ask = async (signal: AbortSignal) => (await provider.health?.(signal)) ?? { ok: false }
      return await inTime(ask, timeout, closing.signal, pause)
    } catch (error) {
      return { ok: false, detail: error instanceof Error ? error.message : String(error) }
    }
  }

  return {
    round,
    start() {
      timer = setInterval(() => void round(), interval).unref()
    },
    stop() {
      if (timer !== null) clearInterval(timer)
      closing.abort()
    }
  }
}
