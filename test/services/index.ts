export * from './daemon.ts'
export * from './postgres.ts'
export * from './redis.ts'
