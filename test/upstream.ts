export * from '../testing/upstream/openai.ts'
export * from '../testing/upstream/replies.ts'
export * from '../testing/upstream/server.ts'
