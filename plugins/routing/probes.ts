import type { Log } from '../../schemas/gateway.ts'
import type { TargetState } from './target-state.ts'
import type { Targets } from './targets.ts'

export interface ProbeOptions {
  /** Milliseconds between two rounds. */
  readonly interval: number
  /** Milliseconds that an answer may take. */
  readonly timeout: number
}

/** Asks targets that are left alone for their health: the first calls after their recovery then find them open. */
export function createProbes(options: ProbeOptions, targets: Targets, log: Log) {
  let timer: NodeJS.Timeout | null = null
  let running: AbortController | null = null

  async function round(): Promise<void> {
    if (running !== null) return
    running = new AbortController()
    const signal = AbortSignal.any([running.signal, AbortSignal.timeout(options.timeout)])
    // One that does not care for the signal must not end all rounds to come.
    const over = Promise.withResolvers<never>()
    over.promise.catch(() => {})
    signal.addEventListener('abort', () => over.reject(signal.reason))
    await Promise.all([...targets.states].map(state => probe(state, signal, over.promise)))
    running = null
  }

  async function probe(state: TargetState, signal: AbortSignal, over: Promise<never>): Promise<void> {
    const { provider, breaker } = state
    if (breaker.openUntil === 0 || provider.health === undefined) return
    const named = { provider: provider.name, model: state.model }
    try {
      const { ok, detail } = await Promise.race([provider.health(signal), over])
      if (!ok) log.debug({ ...named, detail }, 'a target is still not well')
      else if (breaker.succeed(Number.POSITIVE_INFINITY)) log.info(named, 'a target is well again, says its probe')
    } catch (error) {
      log.debug({ ...named, err: error }, 'a target is still not well')
    }
  }

  return {
    start() {
      timer = setInterval(() => void round(), options.interval).unref()
    },
    stop() {
      if (timer !== null) clearInterval(timer)
      running?.abort()
    }
  }
}
