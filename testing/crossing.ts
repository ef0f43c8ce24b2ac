import assert from 'node:assert/strict'
import { isGatewayError } from '../schemas/errors.ts'
import type { Attempt, Provider } from '../schemas/provider.ts'
import { attemptOf } from './attempt.ts'
import { type ConversationOptions, conversation } from './conversations.ts'
import { type Heard, heardIn, lossBetween } from './heard.ts'
import type { Subject, Test, Vendor } from './vendor.ts'

/** How many conversations every provider is asked. */
export const CONVERSATIONS = 2_000

export interface ConversationSubject<T> extends Subject<T>, ConversationOptions {
  /** The share of conversations that it may refuse, from 0 to 1. Default 0. */
  readonly refused?: number
}

/**
 * Asks a provider generated conversations: each arrives without loss or is refused with a 400 that says what of it is in
 * the way. A failure names the seed: `conversation(seed)` makes the same one again.
 */
export async function conversationsCross<T extends Test<T>>(
  t: Test<T>,
  subject: ConversationSubject<T>
): Promise<void> {
  await t.test(`${subject.name}: conversations cross without loss`, async t => {
    const { provider, vendor } = await subject.start(t)
    assert.ok(vendor, 'Conversations need the script of a vendor.')
    const { lost, refused } = await crossings(provider, vendor, subject)
    const some = (missed: readonly Missed[]) =>
      missed.slice(0, 5).map(({ seed, why }) => `\nconversation(${seed}): ${why}`)
    assert.equal(lost.length, 0, `${lost.length} of ${CONVERSATIONS} are lost${some(lost).join('')}`)
    const share = refused.length / CONVERSATIONS
    const most = subject.refused ?? 0
    assert.ok(share <= most, `${refused.length} of ${CONVERSATIONS} are refused${some(refused).join('')}`)
  })
}

/** One conversation that did not arrive. */
export interface Missed {
  readonly seed: number
  readonly why: string
}

/** Asks the conversations of the seeds 1 to `count`, one after the other. */
export async function crossings(
  provider: Provider,
  vendor: Vendor,
  options: ConversationOptions = {},
  count = CONVERSATIONS
): Promise<{ lost: Missed[]; refused: Missed[] }> {
  if (vendor.understood === undefined) throw new Error('The script of the vendor does not say what it understood.')
  const { upstream } = vendor
  const lost: Missed[] = []
  const refused: Missed[] = []
  upstream.script(vendor.whole({ text: ['Yes.'], finish: 'stop', inputTokens: 9, outputTokens: 1 }))
  for (let seed = 1; seed <= count; seed++) {
    const request = conversation(seed, options)
    const sent = heardIn(request)
    const before = upstream.requests.length
    const attempt = attemptOf(provider, { request })
    try {
      await provider.send(attempt)
      const arrived = upstream.requests.slice(before)
      const [only, ...others] = arrived
      const why =
        only === undefined || others.length > 0
          ? `${arrived.length} requests arrived`
          : lossBetween(sent, asWarned(sent, vendor.understood(only.json), attempt))
      if (why !== null) lost.push({ seed, why })
    } catch (error) {
      if (!isGatewayError(error)) lost.push({ seed, why: `failed: ${error instanceof Error ? error.stack : error}` })
      else if (error.statusCode !== 400 || error.message === '' || error.param === null)
        lost.push({ seed, why: `refused unclearly: ${error.statusCode} ${error.message} (param: ${error.param})` })
      else refused.push({ seed, why: `${error.message} (param: ${error.param})` })
    }
  }
  return { lost, refused }
}

/** A vendor that cannot be made to call a tool may be given that one alone, or be asked in vain, if the client is told. */
function asWarned(sent: Heard, heard: Heard, { inference }: Attempt): Heard {
  if (inference.facts.warnings.length === 0) return heard
  const alone = heard.tools.length === 1 && heard.tools[0] === sent.choice
  return { ...heard, choice: undefined, tools: alone ? sent.tools : heard.tools }
}
