// What books.mjs writes and scale.mjs asks for by name.

/** Models that were asked for, the first far more often than the last. */
export const models = 20
/** Over how long the calls are spread, in milliseconds: less than the ledger keeps. */
export const span = 60 * 86_400_000

export function modelName(i) {
  return `model-${String(i).padStart(2, '0')}`
}

/** The first is the biggest. */
export function tenantName(i) {
  return `tenant-${String(i).padStart(6, '0')}`
}

/** Key `i` of `keys`, which belongs to tenant `i % tenants`: in order, and spread over all ids that there can be. */
export function keyName(i, keys) {
  return Math.floor((36 ** 8 / keys) * i)
    .toString(36)
    .padStart(8, '0')
    .padEnd(12, 'x')
}
