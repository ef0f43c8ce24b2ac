import { buckets, noUsage, type Usage } from '../../schemas/usage.ts'
import type { Row, Value } from './database.ts'

// A usage as the tables inferences and attempts hold it.

const bucketColumns = {
  input: 'input',
  cacheRead: 'cache_read',
  cacheWrite5m: 'cache_write_5m',
  cacheWrite1h: 'cache_write_1h',
  audioInput: 'audio_input',
  output: 'output',
  reasoning: 'reasoning',
  audioOutput: 'audio_output'
} as const satisfies Record<(typeof buckets)[number], string>

export const usageColumns = ['usage_source', ...buckets.map(bucket => bucketColumns[bucket])]

/** In the order of the columns. */
export function usageValues(usage: Usage): Value[] {
  return [usage.source, ...buckets.map(bucket => usage[bucket])]
}

export function usageIn(row: Row): Usage {
  const usage = { ...noUsage }
  for (const bucket of buckets) usage[bucket] = Number(row[bucketColumns[bucket]])
  return { ...usage, source: row['usage_source'] === 'reported' ? 'reported' : 'estimated' }
}
