import { type Environment, readConfig } from '../../schemas/config.ts'
import { ConfigError } from '../../schemas/faults.ts'

/** The fault lines of a configuration, none when it is right. Anything but a ConfigError is thrown on. */
export function faultsOf(config: unknown, env?: Environment): readonly string[] {
  try {
    readConfig(config, env)
    return []
  } catch (error) {
    if (error instanceof ConfigError && error.message === error.faults.join('\n')) return error.faults
    throw error
  }
}

/** Numbers from 0 to below 1, the same for the same seed. */
export function numbers(seed: number): () => number {
  let state = seed
  return () => {
    state = (state + 0x6d2b79f5) | 0
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state)
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32
  }
}
