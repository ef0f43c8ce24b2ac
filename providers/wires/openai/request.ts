import type { ChatRequest } from '../../../schemas/chat.ts'

/** What differs between vendors that speak OpenAI's wire. */
export interface Dialect {
  /** The name under which the vendor takes the cap on output tokens. */
  readonly outputCap: 'max_tokens' | 'max_completion_tokens'
  /** Whether to ask for usage at the end of a stream; false for servers that refuse `stream_options`. */
  readonly streamUsage: boolean
}

/** The body that goes upstream. Fields that we do not know pass through. */
export function toUpstream(request: ChatRequest, dialect: Dialect): ChatRequest {
  const cap = request.max_completion_tokens ?? request.max_tokens
  const other = dialect.outputCap === 'max_tokens' ? 'max_completion_tokens' : 'max_tokens'
  const rename = request[other] !== undefined
  const ask = request.stream === true && dialect.streamUsage
  if (!rename && !ask) return request
  const body: ChatRequest = { ...request }
  if (rename) {
    delete body[other]
    if (cap !== null && cap !== undefined) body[dialect.outputCap] = cap
  }
  if (ask) body.stream_options = { ...request.stream_options, include_usage: true }
  return body
}

/** OpenAI itself refuses `max_tokens` for its reasoning models; older servers know nothing else. */
export function outputCapOf(baseUrl: string): Dialect['outputCap'] {
  return isHost(baseUrl, 'api.openai.com') ? 'max_completion_tokens' : 'max_tokens'
}

/** Whether a URL leads to this host or to one below it, such as a region's. */
export function isHost(baseUrl: string, host: string): boolean {
  const { hostname } = new URL(baseUrl)
  return hostname === host || hostname.endsWith(`.${host}`)
}

/** Base URLs are given with and without `/v1`; the vendor's own path, if there is another one, is kept. */
export function withVersion(baseUrl: string): string {
  const url = new URL(baseUrl)
  const path = url.pathname.replace(/\/+$/, '')
  return path === '' ? `${url.origin}/v1` : url.origin + path
}
