import type { ChatRequest } from '../../../schemas/chat.ts'
import { detail, isGatewayError, UpstreamError } from '../../../schemas/errors.ts'
import { isRecord } from '../../../schemas/reader.ts'
import type { Recall } from '../../recall.ts'

/** Google's own word for a call whose signature nobody has (https://ai.google.dev/gemini-api/docs/thought-signatures). */
export const skipSignature = 'skip_thought_signature_validator'

/** The thought signatures of one tenant, by the id of the tool call that they belong to. */
export interface Signatures {
  find(call: string): string | undefined
  keep(call: string, signature: string): void
}

export function signaturesOf(recall: Recall<string>, tenant: string): Signatures {
  return {
    find: call => recall.find(tenant, call),
    keep: (call, signature) => recall.keep(tenant, call, signature, signature.length)
  }
}

/** What a client that keeps fields it does not know brings back: `extra_content.google.thought_signature`. */
export function signatureIn(holder: { readonly [field: string]: unknown }): string | undefined {
  const extra = holder['extra_content']
  const google = isRecord(extra) ? extra['google'] : undefined
  const signature = isRecord(google) ? google['thought_signature'] : undefined
  return typeof signature === 'string' && signature !== '' ? signature : undefined
}

/** Texts have no id: they go by the beginning of their own signature. */
export function textKey(signature: string): string {
  return `text ${signature.slice(0, 64)}`
}

/**
 * A signature is good only where it was made: another project or vendor refuses it. From then on this conversation goes
 * without, and what was a fault of the request becomes one that the next attempt may not have.
 */
export function withoutRefused(error: unknown, request: ChatRequest, signatures: Signatures): unknown {
  if (!isGatewayError(error) || error.statusCode !== 400 || !/thought.?signature/i.test(error.message)) return error
  let changed = false
  const skip = (call: string) => {
    changed ||= signatures.find(call) !== skipSignature
    signatures.keep(call, skipSignature)
  }
  for (const message of request.messages) {
    const own = signatureIn(message)
    if (own !== undefined) skip(textKey(own))
    for (const { id } of message.tool_calls ?? []) if (id !== undefined) skip(id)
  }
  if (!changed) return error
  const fault = new UpstreamError('it does not take back the thought signatures of this conversation.', {
    cause: error
  })
  return detail(fault, { blame: 'provider', upstream: error.upstream })
}
