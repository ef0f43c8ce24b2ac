import type { Test } from 'tap'
import * as crossing from '../../testing/crossing.ts'

export * from '../../testing/conversations.ts'
export { CONVERSATIONS, crossings, type Missed } from '../../testing/crossing.ts'
export * from '../../testing/heard.ts'
export type ConversationSubject = crossing.ConversationSubject<Test>
export const conversationsCross: (t: Test, subject: ConversationSubject) => Promise<void> = crossing.conversationsCross
