import type { Heard, Item, Turn } from '../conformance/conversations.ts'
import type { Speech, Vendor } from '../conformance/provider.ts'
import { json, type ReplyOptions, sse, type Upstream } from '../upstream.ts'

// How Google says things: the script of a Gemini API for the conformance suite and for tests over a gateway.

export const identity = { modelVersion: 'gemini-3-pro-preview', responseId: 'gEmInI-1' }

const statuses: Readonly<Record<number, string>> = {
  ...{ 400: 'INVALID_ARGUMENT', 401: 'UNAUTHENTICATED', 403: 'PERMISSION_DENIED', 404: 'NOT_FOUND' },
  ...{ 429: 'RESOURCE_EXHAUSTED', 500: 'INTERNAL', 503: 'UNAVAILABLE' }
}

/** A body, or an event, with these parts. */
export function saying(parts: readonly object[], more: object = {}, usage: object | null = null) {
  const candidates = [{ content: { parts, role: 'model' }, ...more, index: 0 }]
  return { candidates, ...(usage ? { usageMetadata: usage } : {}), ...identity }
}

/** A call as Gemini 3 makes it. */
export function calling(name: string, args: object, more: object = {}) {
  return { functionCall: { name, args }, ...more }
}

/** As the API sends it: with CRLF, and without a terminator. */
export function events(all: readonly unknown[], options?: ReplyOptions) {
  return sse(
    all.map(event => `data: ${JSON.stringify(event)}\r\n\r\n`),
    { done: false, ...options }
  )
}

function countsOf({ inputTokens, outputTokens, cacheRead, reasoningTokens }: Speech) {
  return {
    promptTokenCount: inputTokens,
    ...(cacheRead ? { cachedContentTokenCount: cacheRead } : {}),
    candidatesTokenCount: outputTokens - (reasoningTokens ?? 0),
    ...(reasoningTokens ? { thoughtsTokenCount: reasoningTokens } : {}),
    totalTokenCount: inputTokens + outputTokens,
    promptTokensDetails: [{ modality: 'TEXT', tokenCount: inputTokens }]
  }
}

function partsOf({ thinking = [], text, calls = [] }: Speech): object[] {
  return [
    ...thinking.map(text => ({ text, thought: true })),
    ...text.map(text => ({ text })),
    // Ids are there or not; arguments are whole, and may be absent.
    ...calls.map(({ name, arguments: pieces }, index) => ({
      functionCall: {
        name,
        ...(pieces.length > 0 ? { args: JSON.parse(pieces.join('')) } : {}),
        ...(index === 1 ? { id: 'fc-own' } : {})
      }
    }))
  ]
}

function finishOf({ finish, filtered }: Speech) {
  return { finishReason: filtered ? 'SAFETY' : finish === 'length' ? 'MAX_TOKENS' : 'STOP' }
}

/** Counts come with every event, and grow. */
function eventsOf(speech: Speech): object[] {
  const parts = partsOf(speech)
  const { promptTokenCount, promptTokensDetails } = countsOf(speech)
  const partial = { promptTokenCount, totalTokenCount: promptTokenCount, promptTokensDetails }
  return [...parts.map(part => saying([part], {}, partial)), saying([{ text: '' }], finishOf(speech), countsOf(speech))]
}

export function geminiVendor(upstream: Upstream): Vendor {
  return {
    upstream,
    says: ['calls', 'thinking', 'cacheRead', 'reasoningTokens', 'filtered'],
    whole: (speech, options) => json(saying(partsOf(speech), finishOf(speech), countsOf(speech)), options),
    stream: (speech, options) => events(eventsOf(speech), options),
    refusal: (status, message) => json(failure(status, message), { status }),
    failing: (speech, message) => events([...eventsOf(speech).slice(0, -1), failure(503, message)]),
    understood,
    models: ids =>
      json({
        models: [
          ...ids.map(id => ({ name: `models/${id}`, supportedGenerationMethods: ['generateContent'] })),
          { name: 'models/embedding-001', supportedGenerationMethods: ['embedContent'] }
        ]
      }),
    count: totalTokens => json({ totalTokens, promptTokensDetails: [{ modality: 'TEXT', tokenCount: totalTokens }] }),
    healthy: () => json({ models: [] })
  }
}

export function failure(code: number, message: string) {
  return { error: { code, message, status: statuses[code] ?? 'UNKNOWN' } }
}

interface Part {
  readonly text?: string
  readonly inlineData?: { readonly mimeType: string; readonly data: string }
  readonly fileData?: { readonly fileUri: string }
  readonly functionCall?: { readonly id?: string; readonly name: string; readonly args: unknown }
  readonly functionResponse?: { readonly id?: string; readonly name: string; readonly response: { output?: string } }
}

interface Body {
  readonly contents: ReadonlyArray<{ readonly role: string; readonly parts: readonly Part[] }>
  readonly systemInstruction?: { readonly parts: ReadonlyArray<{ readonly text: string }> }
  readonly toolConfig?: {
    readonly functionCallingConfig: { readonly mode: string; readonly allowedFunctionNames?: readonly string[] }
  }
  readonly tools?: ReadonlyArray<{ readonly functionDeclarations: ReadonlyArray<{ readonly name: string }> }>
}

/** What a request says, and that it keeps to Google's rules. */
function understood(body: unknown): Heard {
  const { contents, systemInstruction, tools = [], toolConfig } = body as Body
  const turns: Turn[] = contents.map(({ role, parts }, index) => {
    if (parts.length === 0) throw new Error(`contents[${index}] has no parts`)
    if (parts.some(part => part.text === '')) throw new Error(`contents[${index}] has an empty text`)
    checkCalls(contents, index)
    return { role: role === 'model' ? 'assistant' : 'user', items: parts.map(itemOf) }
  })
  if (contents[0]?.role !== 'user') throw new Error('the conversation does not begin with a user')
  return {
    system: (systemInstruction?.parts ?? []).map(({ text }) => text),
    turns,
    tools: tools.flatMap(({ functionDeclarations }) => functionDeclarations.map(({ name }) => name)),
    choice: choiceOf(toolConfig)
  }
}

function choiceOf(config: Body['toolConfig']): string {
  const { mode, allowedFunctionNames: names } = config?.functionCallingConfig ?? { mode: 'AUTO' }
  if (names !== undefined) return names.join()
  return mode === 'ANY' ? 'required' : mode.toLowerCase()
}

/** Calls are followed at once by as many results with the same ids and names in the same order, and by nothing else. */
function checkCalls(contents: Body['contents'], index: number): void {
  const called = contents[index]!.parts.flatMap(({ functionCall: call }) => (call ? [`${call.id} ${call.name}`] : []))
  const next = contents[index + 1]?.parts ?? []
  const results = next.flatMap(({ functionResponse: result }) => (result ? [`${result.id} ${result.name}`] : []))
  if (called.join() !== results.join()) throw new Error(`contents[${index}] calls ${called}, and gets ${results}`)
  if (results.length > 0 && results.length < next.length)
    throw new Error(`contents[${index + 1}] says more than results`)
}

function itemOf(part: Part): Item {
  if (part.functionCall) {
    const { id = '', name, args } = part.functionCall
    return { type: 'call', id, name, arguments: args }
  }
  if (part.functionResponse) {
    const { id = '', response } = part.functionResponse
    return { type: 'result', call: id, text: response.output ?? '' }
  }
  if (part.inlineData) {
    const { mimeType, data } = part.inlineData
    return { type: mimeType === 'application/pdf' ? 'file' : 'image', url: `data:${mimeType};base64,${data}` }
  }
  if (part.fileData) return { type: 'image', url: part.fileData.fileUri }
  return { type: 'text', text: part.text ?? '' }
}
