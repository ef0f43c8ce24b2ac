import { constants, PerformanceObserver, performance } from 'node:perf_hooks'
import type { Distribution, Families, Labels } from './families.ts'

// The process that the gateway runs in. Not prom-client's collectDefaultMetrics: nobody can end what that begins, its
// event loop lag is never less than the interval of its own measurement and begins anew with every scrape, whosever
// it is, and all open handles and files are listed for each.

const none: Labels = {}
/** Milliseconds between looks at how late the event loop is. */
const interval = 20
const delays = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5]
const pauses = [0.001, 0.01, 0.1, 1]
const kinds: Readonly<Record<number, string>> = {
  [constants.NODE_PERFORMANCE_GC_MAJOR]: 'major',
  [constants.NODE_PERFORMANCE_GC_MINOR]: 'minor',
  [constants.NODE_PERFORMANCE_GC_INCREMENTAL]: 'incremental',
  [constants.NODE_PERFORMANCE_GC_WEAKCB]: 'weakcb'
}

/** Begins to measure. @returns what ends it */
export function measureProcess({ read, histogram }: Families): () => void {
  const delay = histogram('gateway_event_loop_delay_seconds', 'By which timers are late.', delays, [])(none)
  let due = performance.now() + interval
  const timer = setInterval(() => {
    const now = performance.now()
    delay.observe(Math.max(0, now - due) / 1_000)
    due = now + interval
  }, interval).unref()

  const collections = histogram('nodejs_gc_duration_seconds', 'Of garbage collections.', pauses, ['kind'])
  const series = new Map<string | undefined, Distribution>(
    Object.values(kinds).map(kind => [kind, collections({ kind })])
  )
  const observer = new PerformanceObserver(list => {
    for (const entry of list.getEntries()) series.get(kindOf(entry))?.observe(entry.duration / 1_000)
  })

  const started = Date.now() / 1_000 - process.uptime()
  read('gauge', 'process_start_time_seconds', 'Seconds since 1970.', [], () => [[none, started]])
  read('counter', 'process_cpu_user_seconds_total', 'CPU time of the process in its own code.', [], () => [
    [none, process.cpuUsage().user / 1e6]
  ])
  read('counter', 'process_cpu_system_seconds_total', 'CPU time of the process in the kernel.', [], () => [
    [none, process.cpuUsage().system / 1e6]
  ])
  read('counter', 'process_cpu_seconds_total', 'CPU time of the process.', [], () => {
    const { user, system } = process.cpuUsage()
    return [[none, (user + system) / 1e6]]
  })
  read('gauge', 'process_resident_memory_bytes', 'Of the process.', [], () => [[none, process.memoryUsage.rss()]])
  read('gauge', 'nodejs_memory_bytes', 'Of V8 and Node, by kind.', ['kind'], () => {
    const { heapTotal, heapUsed, external, arrayBuffers } = process.memoryUsage()
    return [
      [{ kind: 'heap_total' }, heapTotal],
      [{ kind: 'heap_used' }, heapUsed],
      [{ kind: 'external' }, external],
      [{ kind: 'array_buffers' }, arrayBuffers]
    ]
  })
  read('counter', 'nodejs_event_loop_active_seconds_total', 'For which the event loop was not idle.', [], () => [
    [none, performance.eventLoopUtilization().active / 1e3]
  ])
  read('gauge', 'nodejs_version_info', 'The version of Node.', ['version'], () => [[{ version: process.version }, 1]])

  observer.observe({ entryTypes: ['gc'] })
  return () => {
    clearInterval(timer)
    observer.disconnect()
  }
}

function kindOf(entry: object): string | undefined {
  if (!('detail' in entry) || typeof entry.detail !== 'object' || entry.detail === null) return undefined
  const { detail } = entry
  return 'kind' in detail && typeof detail.kind === 'number' ? kinds[detail.kind] : undefined
}
