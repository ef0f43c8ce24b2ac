import type { Provider } from '../schemas/provider.ts'
import type { Heard } from './heard.ts'
import type { Reply, ReplyOptions } from './upstream/replies.ts'
import type { Upstream } from './upstream/server.ts'

/** What is needed of a test runner: the contexts of node:test and of tap have it as they are. */
export interface Test<T> {
  test(name: string, run: (t: T) => Promise<void>): Promise<unknown>
}

/** A provider to be tested. `T` is what the runner hands to a test, for closing what was opened. */
export interface Subject<T> {
  readonly name: string
  /** The model that is asked for. Default `m`. */
  readonly model?: string
  /** A provider of its own for each test, closed with it. */
  start(t: T): Promise<Started>
}

export interface Started {
  readonly provider: Provider
  /** Absent for a provider without an upstream: only what applies to it is tested. */
  readonly vendor?: Vendor
  /** The keys that the provider was given, in order: each attempt has to use its own, and no error may hold one. */
  readonly keys?: readonly string[]
}

/** A scripted upstream and how its vendor says things. The options of a reply are the kit's: cuts, delays, headers. */
export interface Vendor {
  readonly upstream: Upstream
  whole(speech: Speech, options?: ReplyOptions): Reply
  /** Usage included, if the vendor has it; the end of the stream as the vendor marks it. */
  stream(speech: Speech, options?: ReplyOptions): Reply
  refusal(status: number, message: string): Reply
  /** A stream that says the speech and then, instead of its end, that it failed. Absent where the wire has no such thing. */
  failing?(speech: Speech, message: string): Reply
  /** The optional parts of a speech that `whole` and `stream` say; a speech has no others. */
  readonly says?: readonly Said[]
  /** Reads the body of a request back, for `conversationsCross`. */
  understood?(json: unknown): Heard
  /** What `provider.models` gets. */
  models?(ids: readonly string[]): Reply
  /** What `provider.countTokens` gets. */
  count?(tokens: number): Reply
  /** What `provider.health` gets of a vendor that is well. */
  healthy?(): Reply
}

export type Said = 'calls' | 'thinking' | 'cacheRead' | 'cacheWrite' | 'reasoningTokens' | 'filtered'

/** What a model is to say. The suite decides it, a vendor's script puts it on the wire. */
export interface Speech {
  /** In the pieces that it is streamed in. */
  readonly text: readonly string[]
  readonly finish: 'stop' | 'length'
  /** All of them, those of a cache too. */
  readonly inputTokens: number
  /** All of them, thoughts too. */
  readonly outputTokens: number
  /** After the text; with any of them the vendor's reason for the end is that it called tools. */
  readonly calls?: readonly SpokenCall[]
  /** Before the text, in pieces. */
  readonly thinking?: readonly string[]
  /** Input tokens read from a cache. */
  readonly cacheRead?: number
  /** Input tokens written to a cache, for the vendor's shortest time. */
  readonly cacheWrite?: number
  /** Output tokens that were thoughts. */
  readonly reasoningTokens?: number
  /** The vendor's filter has ended it; instead of `finish`. */
  readonly filtered?: boolean
}

/** A call of a tool, whose arguments are JSON in the pieces that they are streamed in; none at all for no arguments. */
export interface SpokenCall {
  readonly id: string
  readonly name: string
  readonly arguments: readonly string[]
}
