export * from './upstream/openai.ts'
export * from './upstream/replies.ts'
export * from './upstream/server.ts'
