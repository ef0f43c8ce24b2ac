import { context, diag, logs, metrics, propagation, trace } from '@opentelemetry/api'
import { NodeSDK } from '@opentelemetry/sdk-node'
import type { Test } from 'tap'

/** What the SDK said of itself: errors and warnings. */
export interface Sdk {
  readonly said: string[]
  /** Resolves with the first thing it says that the pattern finds. */
  until(pattern: RegExp): Promise<string>
  /** Exports what is there and ends. */
  shutdown(): Promise<void>
}

/** OpenTelemetry as an application starts it, by variables of the environment; ended, and forgotten, after the test. */
export function startSdk(t: Test, env: Readonly<Record<string, string>>): Sdk {
  const variables = { OTEL_BSP_SCHEDULE_DELAY: '10', OTEL_LOGS_EXPORTER: 'none', ...env }
  const before = Object.keys(variables).map(name => [name, process.env[name]] as const)
  const said: string[] = []
  const watchers = new Set<() => void>()
  const hear = (...words: unknown[]) => {
    said.push(words.map(String).join(' '))
    for (const check of watchers) check()
  }
  Object.assign(process.env, variables)
  diag.setLogger({ error: hear, warn: hear, info() {}, debug() {}, verbose() {} })
  const sdk = new NodeSDK()
  sdk.start()
  for (const [name, value] of before) {
    if (value === undefined) delete process.env[name]
    else process.env[name] = value
  }
  let ended: Promise<void> | undefined
  // Of what could not be exported it has spoken already.
  const shutdown = () => (ended ??= sdk.shutdown().catch(() => {}))
  t.teardown(async () => {
    await shutdown()
    forgetSdk()
  })

  function until(pattern: RegExp): Promise<string> {
    const { promise, resolve, reject } = Promise.withResolvers<string>()
    const late = setTimeout(() => reject(new Error(`It did not say ${pattern}, but: ${said.join('; ')}`)), 20_000)
    const check = () => {
      const found = said.find(words => pattern.test(words))
      if (found === undefined) return
      watchers.delete(check)
      clearTimeout(late)
      resolve(found)
    }
    watchers.add(check)
    check()
    return promise
  }
  return { said, until, shutdown }
}

/** What is registered belongs to the process; the next test registers its own. */
export function forgetSdk(): void {
  for (const api of [trace, metrics, logs, context, propagation, diag]) api.disable()
}
