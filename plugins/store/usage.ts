import { bucketNames, buckets, noUsage, type Usage } from '../../schemas/usage.ts'
import type { Row, Value } from './database.ts'

// A usage as the tables inferences and attempts hold it.

export const usageColumns = ['usage_source', ...buckets.map(bucket => bucketNames[bucket])]

/** In the order of the columns. */
export function usageValues(usage: Usage): Value[] {
  return [usage.source, ...buckets.map(bucket => usage[bucket])]
}

export function usageIn(row: Row): Usage {
  const usage = { ...noUsage }
  for (const bucket of buckets) usage[bucket] = Number(row[bucketNames[bucket]])
  return { ...usage, source: row['usage_source'] === 'reported' ? 'reported' : 'estimated' }
}
