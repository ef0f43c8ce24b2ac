import { UpstreamTimeout } from '../schemas/errors.ts'
import type { Attempt, Health } from '../schemas/provider.ts'
import { bodyOf } from './body.ts'
import { type Redact, redacting } from './faults.ts'
import { createUpstream, type Reply } from './upstream.ts'

/** What every provider with an address may be told. */
export interface EndpointOptions {
  name: string
  baseUrl?: string
  /** A pool: routing says which of them an attempt uses. */
  apiKeys?: readonly string[]
  /** Sent with every request. */
  headers?: Readonly<Record<string, string>>
  /** Headers of the client that may go upstream. */
  forwardHeaders?: readonly string[]
  /** The most sockets to the provider. Default 1024. */
  connections?: number
  /** The most bytes of one event. Default 8 MiB. */
  maxEvent?: number
  /** Milliseconds for everything that is no call of a model: lists, health, counts. Default 10,000. */
  patience?: number
}

/** A provider's address and its credentials. */
export interface Endpoint {
  /** How many keys there are to choose from. */
  readonly keys: number
  readonly maxEvent: number
  readonly redact: Redact
  /**
   * Sends an attempt as JSON, with the attempt's own key, deadlines and signal.
   * @param more headers besides the provider's own, which win: name, value, name, value, names in lower case
   */
  post(attempt: Attempt, path: string, body: object, more?: readonly string[]): Promise<Reply>
  /**
   * Asks for something besides an answer of a model (a list, a count) with the first key; small and soon, or not at all.
   * @param question sent as JSON by POST; absent: a GET
   * @param more headers besides the provider's own, as for `post`
   * @throws UpstreamError, UpstreamTimeout, or the signal's reason
   */
  ask(path: string, signal?: AbortSignal, question?: object, more?: readonly string[]): Promise<Reply>
  /** Asks a path that costs nothing: healthy is a 200. @throws the signal's reason */
  probe(path: string, signal?: AbortSignal, more?: readonly string[]): Promise<Health>
  close(): Promise<void>
}

/** Statuses that are about the key. */
const refusesKey: ReadonlySet<number> = new Set([401, 402, 403])
/** What a list or a count may come to, in bytes. */
const largestReply = 16 * 1024 * 1024

/** Headers that are the provider's own business, whatever the options say. */
const neverForwarded = new Set([
  'accept-encoding',
  'api-key',
  'authorization',
  'connection',
  'content-length',
  'cookie',
  'host',
  'transfer-encoding',
  'x-api-key',
  'x-goog-api-key'
])

/**
 * @param baseUrl as the provider wants it, with the path that all its routes share
 * @param credential how a key travels: the name of its header, in lower case, and its value
 */
export function createEndpoint(
  options: EndpointOptions,
  baseUrl: string,
  credential: (key: string) => readonly [name: string, value: string]
): Endpoint {
  const keys = options.apiKeys ?? []
  const upstream = createUpstream({ baseUrl, connections: options.connections ?? 1024 })
  const given = Object.entries(options.headers ?? {}).map(([name, value]) => [name.toLowerCase(), value] as const)
  const statics = new Map([['content-type', 'application/json'], ...given])
  // A key of the pool wins over one among the headers.
  for (const key of keys) statics.delete(credential(key)[0])
  const fixed = [...statics].flat()
  const perKey = keys.map(key => [...fixed, ...credential(key)])
  const forward = (options.forwardHeaders ?? [])
    .map(name => name.toLowerCase())
    .filter(name => !statics.has(name) && !neverForwarded.has(name))

  function ownHeaders(key: number): string[] {
    return perKey[key] ?? perKey[0] ?? fixed
  }

  function headersFor(attempt: Attempt, more: readonly string[]): string[] {
    const own = more.length === 0 ? ownHeaders(attempt.key) : [...ownHeaders(attempt.key), ...more]
    if (forward.length === 0) return withLayered(own, attempt.headers)
    // Our own win over those of layers, theirs over the client's; each name goes out once.
    const headers = new Map<string, string>()
    for (const name of forward) {
      const value = attempt.caller.origin.headers?.[name]
      if (typeof value === 'string') headers.set(name, value)
    }
    for (const name in attempt.headers) {
      const lower = name.toLowerCase()
      if (!neverForwarded.has(lower)) headers.set(lower, attempt.headers[name]!)
    }
    for (let index = 0; index < own.length; index += 2) headers.set(own[index]!, own[index + 1]!)
    return [...headers].flat()
  }

  /** The same without anything of the client's, which is the way of most calls. */
  function withLayered(own: string[], layered: Attempt['headers']): string[] {
    let headers = own
    for (const name in layered) {
      const lower = name.toLowerCase()
      if (neverForwarded.has(lower)) continue
      if (headers === own) headers = own.slice()
      let at = 0
      while (at < headers.length && headers[at] !== lower) at += 2
      // Of the provider's own none is replaced, of layers the last one counts.
      if (at === headers.length) headers.push(lower, layered[name]!)
      else if (at >= own.length) headers[at + 1] = layered[name]!
    }
    return headers
  }

  const patience = options.patience ?? 10_000
  const timeouts = { connect: patience, headers: patience, firstToken: patience, idle: patience, total: patience }

  async function ask(
    path: string,
    signal?: AbortSignal,
    question?: object,
    more: readonly string[] = []
  ): Promise<Reply> {
    const deadline = AbortSignal.timeout(patience)
    const either = signal === undefined ? deadline : AbortSignal.any([signal, deadline])
    const body = question === undefined ? null : JSON.stringify(question)
    try {
      for (let key = 0; ; key++) {
        const headers = [...ownHeaders(key), ...more]
        const call = { path, headers, body: body ?? '', signal: either, timeouts, stream: false, largest: largestReply }
        const reply = await (body === null
          ? upstream.get(path, headers, either, timeouts, largestReply)
          : upstream.post(call))
        // One bad key does not stop the rest.
        if (!refusesKey.has(reply.status) || key + 1 >= keys.length) return reply
      }
    } catch (error) {
      throw error === deadline.reason ? new UpstreamTimeout(`no answer within ${patience} ms.`) : error
    }
  }

  async function probe(path: string, signal?: AbortSignal, more?: readonly string[]): Promise<Health> {
    return await healthFrom(signal, async () => {
      const { status } = await ask(path, signal, undefined, more)
      return status === 200 ? { ok: true } : { ok: false, detail: `It answered with status ${status}.` }
    })
  }

  return {
    ask,
    probe,
    keys: keys.length,
    maxEvent: options.maxEvent ?? 8 * 1024 * 1024,
    redact: redacting(keys, Object.values(options.headers ?? {})),
    post: (attempt, path, body, more = []) =>
      upstream.post({
        path,
        headers: headersFor(attempt, more),
        body: bodyOf(body),
        signal: attempt.signal,
        timeouts: attempt.timeouts,
        stream: attempt.request.stream === true
      }),
    close: () => upstream.close()
  }
}

/** What finding out comes to: a fault on the way says that the provider is not well. @throws the signal's reason */
export async function healthFrom(signal: AbortSignal | undefined, find: () => Promise<Health>): Promise<Health> {
  try {
    return await find()
  } catch (error) {
    signal?.throwIfAborted()
    return { ok: false, detail: error instanceof Error ? error.message : String(error) }
  }
}

/** The same options without keys and without these headers, for a provider that gets its credential elsewhere. */
export function withoutCredentials(
  { headers = {}, ...options }: EndpointOptions,
  names: readonly string[]
): EndpointOptions {
  const kept = Object.entries(headers).filter(([name]) => !names.includes(name.toLowerCase()))
  return { ...options, apiKeys: [], headers: Object.fromEntries(kept) }
}
