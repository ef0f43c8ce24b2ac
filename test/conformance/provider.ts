import type { Test } from 'tap'
import * as suite from '../../testing/provider.ts'
import type { Subject as AnySubject } from '../../testing/vendor.ts'

export { type AttemptOptions, attemptOf } from '../../testing/attempt.ts'
export { type Manner, openaiVendor } from '../../testing/openai-vendor.ts'
export type { Said, Speech, Started, Vendor } from '../../testing/vendor.ts'
export type Subject = AnySubject<Test>
export const providerConformance: (t: Test, subject: Subject) => Promise<void> = suite.providerConformance
