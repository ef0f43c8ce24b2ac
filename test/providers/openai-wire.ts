import { readFileSync } from 'node:fs'
import type { Test } from 'tap'
import type { ModelGatewayOptions } from '../../app.ts'
import { type Manner, openaiVendor, type Started, type Vendor } from '../conformance/provider.ts'
import { build, hello, towards } from '../helper.ts'
import { failure, json, type Reply, type ReplyOptions, type Script, sse, startUpstream } from '../upstream.ts'

// What the tests of vendors that speak OpenAI's wire share.

export type ProviderOptions = NonNullable<ModelGatewayOptions['providers']>[string]

/** An answer or a stream as a vendor sends it; `source` says where that is written. */
export interface Fixture {
  readonly source: string
  readonly status?: number
  readonly headers?: Readonly<Record<string, string>>
  readonly body?: object
  readonly events?: ReadonlyArray<string | object>
}

export function fixture(name: string): Fixture {
  return JSON.parse(readFileSync(new URL(`../fixtures/${name}.json`, import.meta.url), 'utf8'))
}

/** A fixture on the wire. */
export function replyOf(name: string, options: ReplyOptions = {}): Reply {
  const { status, headers, body, events } = fixture(name)
  if (events) return sse(eventsOf(events), options)
  return json(body, { status, headers, ...options })
}

/** The events of a stream as bytes. */
export function eventsOf(events: ReadonlyArray<string | object>): string[] {
  return events.map(event => (typeof event === 'string' ? `${event}\n\n` : `data: ${JSON.stringify(event)}\n\n`))
}

/** A provider of a gateway before a scripted upstream, for the suites; `own`: what its vendor says in another way. */
export async function started(
  t: Test,
  options: Record<string, unknown>,
  manner?: Manner,
  own: Partial<Vendor> = {}
): Promise<Started> {
  const upstream = await startUpstream()
  t.teardown(() => upstream.close())
  const keys = ['sk-first-key-of-two', 'pk-other-key-of-two']
  const provider = { baseUrl: upstream.url, apiKeys: keys, ...options } as ProviderOptions
  const app = await build(t, { providers: { own: provider } })
  await app.ready()
  const vendor: Vendor = {
    ...openaiVendor(upstream, manner),
    refusal: (status, message) => failure(status, { message, code: status }),
    ...own
  }
  return { vendor, provider: app.gateway.providers.get('own')!, keys }
}

/** A gateway that listens before a scripted upstream, with one alias for one provider. */
export async function front(
  t: Test,
  own: Record<string, unknown>,
  script?: Script,
  target: Record<string, unknown> = {}
) {
  const server = await startUpstream()
  t.teardown(() => server.close())
  if (script) server.script(script)
  const up = { baseUrl: server.url, apiKeys: ['sk-upstream-secret'], ...own } as ProviderOptions
  const models = { test: { targets: [{ provider: 'up', model: 'upstream-model', ...target }] } }
  const app = await build(t, towards(server, { providers: { up }, models }))
  const url = await app.listen({ host: '127.0.0.1', port: 0 })
  const post = (body: object = {}) =>
    fetch(`${url}/v1/chat/completions`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ ...hello, ...body })
    })
  /** What reaches the provider. */
  const sent = async (body: object = {}) => {
    const count = server.requests.length
    await (await post(body)).arrayBuffer()
    return server.requests[count]!
  }
  return { server, app, url, post, sent, provider: () => app.gateway.providers.get('up')! }
}

/** The error of an answer. */
export async function errorOf(response: Response) {
  const { error } = (await response.json()) as {
    error: { message: string; type: string; param: string | null; code: string | null }
  }
  return { status: response.status, ...error }
}
