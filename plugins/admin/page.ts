import type { PageQuery } from '../../schemas/admin.ts'
import { detail, isGatewayError } from '../../schemas/errors.ts'

const defaultLimit = 100

export function pageOf({ limit, after }: PageQuery): { limit: number; after: string | undefined } {
  return { limit: limit === undefined ? defaultLimit : Number(limit), after }
}

/** Cuts off the one row more that was asked for to know whether there is another page. */
export function sliced<Row extends { readonly id: string }>(rows: Row[], limit: number) {
  const kept = rows.slice(0, limit)
  return { rows: kept, next: rows.length > limit ? (kept.at(-1)?.id ?? null) : null }
}

/** Reads a page whose place only the store understands: of what is asked, only `after` can then be wrong. */
export async function placed<Rows>(reading: Promise<Rows>): Promise<Rows> {
  try {
    return await reading
  } catch (error) {
    throw isGatewayError(error) && error.statusCode === 400 ? detail(error, { param: 'after' }) : error
  }
}
