import type { Database, Row, Value } from './database.ts'

/** Pieces of a query outside a transaction: a snapshot that lasts as long as somebody takes them. */
export async function* pieces(
  snapshot: (work: (database: Database) => Promise<void>) => Promise<void>,
  sql: string,
  values: readonly Value[],
  size: number
): AsyncGenerator<Row[]> {
  const opened = Promise.withResolvers<Database>()
  const ended = Promise.withResolvers<void>()
  const done = snapshot(database => {
    opened.resolve(database)
    return ended.promise
  })
  done.catch(opened.reject)
  try {
    yield* (await opened.promise).pieces(sql, values, size)
  } finally {
    ended.resolve()
    await done
  }
}
